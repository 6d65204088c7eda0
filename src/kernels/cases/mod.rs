//! Cases: for every kernel, shapes of real models scaled down and shapes chosen to hurt, with numbers and what must come
//! of them in f64. The tests and the bench run the same ones, through `graph::trial`.
//!
//! A case knows no GPU and no graph: [`Case::work`] gives tensors as kernels store them and the calls over them.
//! Tolerances are k * eps * sum of |terms| with k and its reason beside each kernel's cases, plus the one rounding of
//! an f16 result.

mod attention;
mod bands;
mod compare;
mod conv2d;
mod matmul;
mod matrix;
mod matrix_vector;
mod norms;
mod pointwise;
mod pool;
mod resample;
mod roofs;
mod rows;
mod sampled;
mod sizes;
mod steps;
mod t5;
mod tokens;
mod tuning;

use std::sync::OnceLock;

use super::tuning::{Class, Tuning};
use super::{Call, Enable, Limits, Variant, vectors};
use crate::tensor::DType;

pub use compare::compare;
pub use sizes::{large_sizes, model_sizes};
pub use tuning::{contests, self_tests};

/// The rounding unit of f32 sums: half an ulp of 1.
const EPS: f64 = f32::EPSILON as f64 / 2.0;

/// Numbers of a case as a kernel stores them: rows of channels, every row padded with zeros to a multiple of four.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// What it is in the kernel's formula; unique in its case.
    pub name: &'static str,
    /// Rows of all batch elements.
    pub rows: u32,
    /// Channels of a row, without padding.
    pub channels: u32,
    /// Stored element type.
    pub dtype: DType,
    /// The stored bytes; `None` when a call makes them.
    pub bytes: Option<Vec<u8>>,
}

impl Tensor {
    /// A tensor that is given: `rows * channels` values, rounded to `dtype`.
    pub fn given(name: &'static str, channels: u32, dtype: DType, values: &[f64]) -> Self {
        let width = channels as usize;
        assert!(values.len().is_multiple_of(width), "{name}: {} values are no rows of {width}", values.len());
        let mut bytes = Vec::new();
        for row in values.chunks_exact(width) {
            let padding = std::iter::repeat_n(&0.0, width.next_multiple_of(4) - width);
            for value in row.iter().chain(padding) {
                match dtype {
                    DType::F32 => bytes.extend((*value as f32).to_le_bytes()),
                    DType::F16 | DType::BF16 => bytes.extend(half::f16::from_f64(*value).to_le_bytes()),
                }
            }
        }
        Self { name, rows: (values.len() / width) as u32, channels, dtype, bytes: Some(bytes) }
    }

    /// A tensor that a call makes.
    pub fn made(name: &'static str, rows: u32, channels: u32, dtype: DType) -> Self {
        Self { name, rows, channels, dtype, bytes: None }
    }

    /// Bytes of the tensor as stored.
    pub fn size(&self) -> usize {
        self.rows as usize * vectors(self.channels) as usize * 4 * self.dtype.bytes()
    }

    /// The stored numbers, padding included.
    pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
        match dtype {
            DType::F32 => {
                bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            DType::F16 | DType::BF16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
        }
    }
}

/// One call of a case; operands are indices into [`Work::tensors`].
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What runs.
    pub call: Call,
    /// What it reads, in the order of the shader's bindings.
    pub reads: Vec<usize>,
    /// What it writes, bound after that.
    pub writes: Vec<usize>,
}

/// A case laid out for an adapter's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Everything that the calls read and write.
    pub tensors: Vec<Tensor>,
    /// The calls in order.
    pub steps: Vec<Step>,
}

impl Work {
    /// The tensors that something makes and nothing reads: what [`Case::expected`] is about, in its order.
    pub fn results(&self) -> Vec<&Tensor> {
        let read = |index: &usize| self.steps.iter().any(|step| step.reads.contains(index));
        let made = (0..self.tensors.len()).filter(|index| self.tensors[*index].bytes.is_none() && !read(index));
        made.map(|index| &self.tensors[index]).collect()
    }

    /// Work of one call that reads all tensors but the last `writes`.
    fn of(call: Call, tensors: Vec<Tensor>, writes: usize) -> Self {
        let split = tensors.len() - writes;
        let step = Step { call, reads: (0..split).collect(), writes: (split..tensors.len()).collect() };
        Self { tensors, steps: vec![step] }
    }
}

/// What a tensor of a case must hold in the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// Which tensor.
    pub name: &'static str,
    /// Whether the stored bytes, rather than numbers, are meant.
    pub packed: bool,
    /// Which of the tensor's values are meant, counted without padding; all if absent.
    pub places: Option<Vec<usize>>,
    /// The values, without padding.
    pub values: Vec<f64>,
    /// How far off each may be.
    pub tolerances: Vec<f64>,
}

impl Expected {
    /// Values with their tolerances in f32; storing as `dtype` adds its rounding.
    fn new(name: &'static str, dtype: DType, values: Vec<f64>, f32_tolerances: Vec<f64>) -> Self {
        let stored = |(value, tolerance): (&f64, f64)| match dtype {
            DType::F32 => tolerance,
            // Half an ulp of a half, 1 / 2048, of a value that may already be off; 2^-25 among the subnormals.
            DType::F16 | DType::BF16 => tolerance + (value.abs() + tolerance) / 2048.0 * 1.001 + f64::powi(2.0, -25),
        };
        let tolerances = values.iter().zip(f32_tolerances).map(stored).collect();
        Self { name, packed: false, places: None, values, tolerances }
    }
}

/// A kernel's configuration with numbers.
trait Kernel: Send + Sync {
    /// The tensors and calls; `None` when the limits are too small.
    fn work(&self, limits: &Limits) -> Option<Work>;

    /// What must come of it.
    fn expected(&self) -> Vec<Expected>;

    /// The shape class that it is tuned in, and the names of what may run for it. `None` where there is one way only.
    fn choices(&self, _limits: &Limits) -> Option<(Class, Vec<String>)> {
        None
    }

    /// The calls alone, for a kernel that has choices.
    fn calls(&self, _limits: &Limits) -> Option<Vec<Call>> {
        None
    }
}

/// One of the ways in which a case may run.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What its kernel's file calls it.
    pub name: String,
    /// The shaders that it runs.
    pub variants: Vec<Variant>,
}

impl Candidate {
    /// Whether it needs an optional part of WGSL: what a driver is the most likely to get wrong.
    pub fn optional(&self) -> bool {
        let optional = |enable: &Enable| matches!(enable, Enable::F16 | Enable::Subgroups | Enable::CooperativeMatrix);
        self.variants.iter().any(|variant| variant.enables.iter().any(optional))
    }
}

/// `limits` that make `candidate` run in `class`.
fn forced(limits: &Limits, class: Class, candidate: usize) -> Limits {
    Limits { tuning: Tuning::only(class, candidate), ..*limits }
}

/// A named case of a kernel.
pub struct Case {
    /// Stem, what it is like, element type: unique.
    pub name: String,
    /// The file in `src/kernels`.
    pub stem: &'static str,
    /// How its activations are stored.
    pub dtype: DType,
    kernel: Box<dyn Kernel>,
    expected: OnceLock<Vec<Expected>>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish()
    }
}

impl Case {
    /// The same with expectations that nothing meets: what a wrong kernel looks like to a test.
    #[cfg(test)]
    pub(crate) fn spoiled(self) -> Self {
        let mut expected = self.kernel.expected();
        expected.iter_mut().flat_map(|tensor| &mut tensor.values).for_each(|value| *value += 1e3);
        Self { expected: expected.into(), ..self }
    }

    fn new(stem: &'static str, what: &str, dtype: DType, kernel: impl Kernel + 'static) -> Self {
        let name = format!("{stem}: {what}, {}", dtype.name());
        Self { name, stem, dtype, kernel: Box::new(kernel), expected: OnceLock::new() }
    }

    /// The tensors and calls within `limits`; `None` when a row of a tensor is larger than a binding.
    pub fn work(&self, limits: &Limits) -> Option<Work> {
        self.kernel.work(limits)
    }

    /// Its shape class and everything that may run for it, the best guess first. `None` where there is one way only, or
    /// the limits are too small.
    pub fn candidates(&self, limits: &Limits) -> Option<(Class, Vec<Candidate>)> {
        let (class, names) = self.kernel.choices(limits)?;
        let candidate = |(index, name)| {
            let calls = self.kernel.calls(&forced(limits, class, index))?;
            Some(Candidate { name, variants: calls.into_iter().map(|call| call.variant).collect() })
        };
        Some((class, names.into_iter().enumerate().map(candidate).collect::<Option<_>>()?))
    }

    /// As [`Case::work`], with a certain candidate of [`Case::candidates`].
    pub fn work_with(&self, candidate: usize, limits: &Limits) -> Option<Work> {
        let (class, _) = self.kernel.choices(limits)?;
        self.kernel.work(&forced(limits, class, candidate))
    }

    /// What must come of it, computed on the first call.
    pub fn expected(&self) -> &[Expected] {
        self.expected.get_or_init(|| self.kernel.expected())
    }

    /// Floating-point operations, 2 per multiply-add.
    pub fn flops(&self) -> u64 {
        self.sum(|call| call.flops)
    }

    /// Bytes that must be moved at the least.
    pub fn bytes(&self) -> u64 {
        self.sum(|call| call.bytes)
    }

    fn sum(&self, of: impl Fn(&Call) -> u64) -> u64 {
        self.work(&Limits::default()).map_or(0, |work| work.steps.iter().map(|step| of(&step.call)).sum())
    }
}

/// All cases of all kernels.
pub fn cases() -> Vec<Case> {
    let all = [
        attention::cases as fn(DType) -> Vec<Case>,
        bands::cases,
        conv2d::cases,
        matmul::cases,
        matrix::cases,
        matrix_vector::cases,
        norms::cases,
        pointwise::cases,
        pool::cases,
        resample::cases,
        roofs::cases,
        rows::cases,
        steps::cases,
        t5::cases,
        tokens::cases,
    ];
    let types = [DType::F32, DType::F16];
    all.iter().flat_map(|cases| types.iter().flat_map(|dtype| cases(*dtype))).collect()
}

/// `count` numbers of `mean` plus or minus `spread`, the same for the same name, exactly representable as `dtype`.
fn numbers(name: &str, count: usize, dtype: DType, mean: f64, spread: f64) -> Vec<f64> {
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f64 / f64::from(1u32 << 24) * 2.0 - 1.0
    };
    let round = |value: f64| match dtype {
        DType::F32 => f64::from(value as f32),
        DType::F16 | DType::BF16 => half::f16::from_f64(value).to_f64(),
    };
    (0..count).map(|_| round(mean + spread * next())).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_kernel_file_has_cases() {
        let all = cases();
        let names: HashSet<_> = all.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), all.len());
        let stems: HashSet<_> = all.iter().map(|case| case.stem).collect();
        let shared = [
            "mod",
            "bands",
            "cases",
            "matrix",
            "matrix_lanes",
            "matrix_tiles",
            "template",
            "attention_coop",
            "attention_lanes",
            "attention_shared",
            "lanes",
            "resampling",
            "roof_coop",
            "roof_half",
            "tuning",
        ];
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernels")).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            assert!(stems.contains(stem.as_str()) || shared.contains(&stem.as_str()), "{stem} has no case");
        }
    }

    #[test]
    fn tensors_are_stored_as_they_are_declared() {
        for case in cases() {
            let work = case.work(&Limits::default()).unwrap();
            for tensor in &work.tensors {
                assert!(
                    tensor.bytes.as_ref().is_none_or(|b| b.len() == tensor.size()),
                    "{}: {}",
                    case.name,
                    tensor.name
                );
            }
            let names: HashSet<_> = work.tensors.iter().map(|tensor| tensor.name).collect();
            assert_eq!(names.len(), work.tensors.len(), "{}", case.name);
            let expected: Vec<_> = case.expected().iter().map(|expected| expected.name).collect();
            assert_eq!(work.results().iter().map(|tensor| tensor.name).collect::<Vec<_>>(), expected, "{}", case.name);
        }
    }

    #[test]
    fn numbers_are_representable_and_differ() {
        let values = numbers("x", 1000, DType::F16, 1000.0, 1.0);
        assert!(values.iter().all(|v| half::f16::from_f64(*v).to_f64() == *v && (v - 1000.0).abs() <= 1.0));
        assert_ne!(numbers("x", 9, DType::F32, 0.0, 1.0), numbers("y", 9, DType::F32, 0.0, 1.0));
        let mean = numbers("x", 10_000, DType::F32, 0.0, 1.0).iter().sum::<f64>() / 10_000.0;
        assert!(mean.abs() <= 0.03, "{mean}");
    }

    #[test]
    fn dispatches_cover_every_result_within_the_limits() {
        for case in cases() {
            for binding in [2048, 4096, 20480, 65536] {
                let limits = Limits { binding, workgroups: 64, ..Limits::default() };
                let Some(work) = case.work(&limits) else { continue };
                for step in work.steps.iter().filter(|step| step.call.launches.len() > 1) {
                    let launches = &step.call.launches;
                    let axes = launches.iter().flat_map(|launch| launch.workgroups);
                    assert!(axes.into_iter().all(|count| count > 0 && count <= 64), "{}", case.name);
                    for (position, tensor) in step.writes.iter().enumerate() {
                        let parts = work.steps.iter().filter(|step| step.writes.contains(tensor)).count();
                        let tensor = &work.tensors[*tensor];
                        // What several steps write, each a part, is checked by its numbers alone.
                        if parts > 1 {
                            continue;
                        }
                        let Some(first) = launches[0].ranges[step.reads.len() + position] else { continue };
                        let mut end = first.0;
                        assert_eq!(first.0, 0, "{}", case.name);
                        for launch in launches {
                            let (offset, size) = launch.ranges[step.reads.len() + position].unwrap();
                            assert!(offset % limits.alignment == 0 && size <= binding, "{}", case.name);
                            assert!(offset <= end && offset + size > end, "{}: a gap or an empty band", case.name);
                            end = offset + size;
                        }
                        assert_eq!(end, tensor.size() as u64, "{}", case.name);
                    }
                }
            }
        }
    }
}
