//! A kernel's case as a graph of its own, run and judged on an adapter: what the kernel tests and the bench share.

use std::sync::Arc;

use super::executor::Executor;
use super::{Graph, Operand, Shape, Value};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::Limits;
use crate::kernels::cases::{Case, Expected, Tensor, Work, compare};

/// Rows behind every judged tensor that no kernel may touch.
const CANARY_ROWS: u32 = 5;

/// A case on a device: poison, run, judge.
#[derive(Debug)]
pub struct Trial<'a> {
    case: &'a Case,
    work: Work,
    executor: Executor,
    copies: u32,
}

/// The name of an input's copy.
fn copy_name(name: &str, copy: u32) -> String {
    if copy == 0 { name.to_owned() } else { format!("{name}#{copy}") }
}

/// The graph of a case's work: every given tensor an input, every judged one an output with rows to spare.
///
/// A judged tensor that a single dispatch writes is bound whole, so that writing past its rows is seen. With more than one
/// of `copies` the work is done so often, each time on inputs of its own, so that caches do not hold them; the last results
/// are the outputs, and since nothing reads the others, they take turns in one buffer, so that the rounds do not overlap.
pub fn graph(case: &Case, work: &Work, limits: &Limits, copies: u32) -> Graph {
    let mut g = Graph::new(case.dtype, *limits);
    (0..copies).for_each(|copy| add_round(&mut g, case, work, copy, copy + 1 == copies));
    g
}

fn add_round(g: &mut Graph, case: &Case, work: &Work, copy: u32, last: bool) {
    let results: Vec<_> = work.results().iter().map(|tensor| tensor.name).collect();
    let judged = |index: usize| results.contains(&work.tensors[index].name);
    let shape = |index: usize| {
        let tensor = &work.tensors[index];
        Shape::tokens(1, tensor.rows + if judged(index) { CANARY_ROWS } else { 0 }, tensor.channels)
    };
    let mut values: Vec<Option<Value>> = Vec::new();
    for (index, tensor) in work.tensors.iter().enumerate() {
        let name = copy_name(tensor.name, copy);
        values.push(tensor.bytes.is_some().then(|| g.input(&name, shape(index), tensor.dtype)));
    }
    for step in &work.steps {
        let mut call = step.call.clone();
        if let [launch] = call.launches.as_mut_slice() {
            let writes = launch.ranges.iter_mut().skip(step.reads.len());
            let whole = |range: &Option<(u64, u64)>| range.is_none_or(|(offset, _)| offset == 0);
            let judged = writes.zip(&step.writes).filter(|(range, index)| judged(**index) && whole(range));
            judged.for_each(|(range, _)| *range = None);
        }
        let read = |index: &usize| values[*index].map(Operand::Value);
        let reads: Vec<Operand> = step.reads.iter().filter_map(read).collect();
        assert_eq!(reads.len(), step.reads.len(), "{}: a call reads what nothing has made", case.name);
        if let [Some(value)] = step.writes.iter().map(|index| values[*index]).collect::<Vec<_>>()[..] {
            g.push_into(&case.name, call, reads, value);
            continue;
        }
        let outputs: Vec<_> = step.writes.iter().map(|index| (shape(*index), work.tensors[*index].dtype)).collect();
        let made = g.push_many(&case.name, call, reads, &outputs);
        step.writes.iter().zip(made).for_each(|(index, value)| values[*index] = Some(value));
    }
    for (index, value) in values.iter().enumerate().filter(|(index, _)| last && judged(*index)) {
        if let Some(value) = value {
            g.output(work.tensors[index].name, *value);
        }
    }
}

impl<'a> Trial<'a> {
    /// Compiles and allocates `case` for `limits`, which may be tighter than the adapter's; `None` when a row of a
    /// tensor is larger than their binding.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(gpu: &Arc<Gpu>, case: &'a Case, limits: &Limits) -> Result<Option<Self>> {
        Self::rotated(gpu, case, limits, |_| 1)
    }

    /// The same on several copies of the inputs in turn, of whose bytes `copies` makes their number.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn rotated(
        gpu: &Arc<Gpu>,
        case: &'a Case,
        limits: &Limits,
        copies: impl FnOnce(u64) -> u32,
    ) -> Result<Option<Self>> {
        case.work(limits).map(|work| Self::over(gpu, case, work, limits, copies)).transpose()
    }

    /// As [`Trial::new`], with calls that were laid out before.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn with_work(gpu: &Arc<Gpu>, case: &'a Case, work: Work, limits: &Limits) -> Result<Self> {
        Self::over(gpu, case, work, limits, |_| 1)
    }

    fn over(
        gpu: &Arc<Gpu>,
        case: &'a Case,
        work: Work,
        limits: &Limits,
        copies: impl FnOnce(u64) -> u32,
    ) -> Result<Self> {
        let given = work.tensors.iter().filter_map(|tensor| tensor.bytes.as_ref());
        let copies = copies(given.map(|bytes| bytes.len() as u64).sum()).max(1);
        let executor = Executor::new(gpu, &graph(case, &work, limits, copies), |_, _| Ok(()))?;
        Ok(Self { case, work, executor, copies })
    }

    /// Fills every buffer with NaN, then the inputs with their numbers.
    ///
    /// # Errors
    /// When an input is unknown, which is a fault of the case.
    pub fn prepare(&self) -> Result<()> {
        self.executor.poison();
        for tensor in &self.work.tensors {
            if let Some(bytes) = &tensor.bytes {
                let names = (0..self.copies).map(|copy| copy_name(tensor.name, copy));
                names.into_iter().try_for_each(|name| self.executor.write_bytes(&name, bytes))?;
            }
        }
        Ok(())
    }

    /// Submits one run without waiting for it.
    pub fn run(&self) {
        self.executor.run();
    }

    /// The graph's executor.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// How often a run does the work, each time on its own copy of the inputs.
    pub fn copies(&self) -> u32 {
        self.copies
    }

    /// Floating-point operations of doing the work once, and the bytes that this must move at the least.
    pub fn cost(&self) -> (u64, u64) {
        let calls = self.work.steps.iter().map(|step| &step.call);
        calls.fold((0, 0), |(flops, bytes), call| (flops + call.flops, bytes + call.bytes))
    }

    /// Dispatches of doing the work once.
    pub fn dispatches(&self) -> usize {
        self.work.steps.iter().map(|step| step.call.launches.len()).sum()
    }

    /// The stored bytes of every judged tensor, without the rows behind it. Blocks.
    ///
    /// # Errors
    /// When reading back fails, or a row behind a tensor is no longer as it was poisoned.
    pub fn results(&self) -> Result<Vec<Vec<u8>>> {
        let read = |tensor: &Tensor| {
            let size = tensor.size();
            let spare = size / tensor.rows as usize * CANARY_ROWS as usize;
            let mut bytes = self.executor.read_bytes(tensor.name, (size + spare) as u64)?;
            match bytes.split_off(size).iter().position(|byte| *byte != 0xFF) {
                None => Ok(bytes),
                Some(byte) => Err(Error::new("a kernel wrote behind its tensor")
                    .at(format!("{}: {}", self.case.name, tensor.name))
                    .found(format!("byte {byte} behind it changed"))),
            }
        };
        self.work.results().into_iter().map(read).collect()
    }

    /// Compares what a run made with what the case expects. Blocks.
    ///
    /// # Errors
    /// A number outside its tolerance, padding that is not zero, a write behind a tensor, or a failed device.
    pub fn judge(&self) -> Result<()> {
        let bytes = self.results()?;
        let results = self.work.results();
        assert_eq!(results.len(), self.case.expected().len(), "{}: not all results are judged", self.case.name);
        let results = results.into_iter().zip(&bytes).zip(self.case.expected());
        results.into_iter().try_for_each(|((tensor, bytes), expected)| self.judge_tensor(tensor, bytes, expected))
    }

    fn judge_tensor(&self, tensor: &Tensor, bytes: &[u8], expected: &Expected) -> Result<()> {
        assert_eq!(tensor.name, expected.name, "{}: results in another order than expected", self.case.name);
        let place = format!("{}: {}", self.case.name, expected.name);
        if expected.packed {
            let got: Vec<f64> = bytes.iter().map(|byte| f64::from(*byte)).collect();
            return compare(&place, &got, &expected.values, &expected.tolerances);
        }
        let channels = tensor.channels as usize;
        let stored = Tensor::decode(tensor.dtype, bytes);
        let mut got = Vec::with_capacity(stored.len());
        for (index, row) in stored.chunks_exact(channels.next_multiple_of(4)).enumerate() {
            got.extend_from_slice(&row[..channels]);
            if let Some(value) = row[channels..].iter().find(|value| **value != 0.0) {
                return Err(Error::new("padding is not zero")
                    .at(format!("{place}, row {index}"))
                    .expected("zeros behind the channels")
                    .found(value));
            }
        }
        if let Some(places) = &expected.places {
            got = places.iter().map(|place| got.get(*place).copied().unwrap_or(f64::NAN)).collect();
        }
        compare(&place, &got, &expected.values, &expected.tolerances)
    }
}
