//! What this adapter can do at best, measured: moving memory, multiplying and adding in every way that kernels could use,
//! and starting work that waits for other work.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::statistics::{Sample, Sampling};
use super::{Work, wrong};
use crate::error::Result;
use crate::gpu::{Clock, Gpu};
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape};
use crate::kernels::roof_coop::{self, RoofCoop};
use crate::kernels::roof_copy::{self, RoofCopy};
use crate::kernels::roof_fma::{self, RoofFma};
use crate::kernels::{Call, roof_half};
use crate::tensor::{DType, HostTensor};

/// Vectors of the large copy: 128 MiB each way, more than caches hold, or as much as a binding takes.
const COPY_VECTORS: u32 = 8 << 20;
/// ... and 16 MiB each way on a CPU, which would be long at it.
const COPY_VECTORS_CPU: u32 = 1 << 20;
/// Vectors of the copy that caches hold: 2 MiB each way.
const CACHE_VECTORS: u32 = 128 << 10;
/// ... and 128 KiB each way on a CPU.
const CACHE_VECTORS_CPU: u32 = 8 << 10;
/// Vectors of the multiply-adds, enough for every lane of a large GPU.
const FMA_VECTORS: u32 = 1 << 18;
/// ... and of a CPU.
const FMA_VECTORS_CPU: u32 = 1 << 13;
/// Workgroups that multiply cooperative matrices: some thousand subgroups.
const COOP_GROUPS: u32 = 4096;
/// ... and on a CPU.
const COOP_GROUPS_CPU: u32 = 64;
/// Sums of cooperative matrices stay whole numbers below 2^24 up to so many rounds: 16 products of at most 4 in absolute
/// value, four times a round.
const MOST_ROUNDS: u32 = 1 << 16;
/// Dispatches of the chain in which each waits for the one before.
const CHAIN: usize = 200;
/// A sample takes at least this long, so that starting it does not count.
const LEAST_SECONDS: f64 = 0.02;
/// Samples of each roof.
const SAMPLING: Sampling = Sampling { least: 5, most: 50, budget: Duration::from_millis(500) };

/// What holds work back at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Moving its bytes.
    Copy,
    /// Multiplying and adding in f32.
    Fma,
    /// Multiplying cooperative matrices.
    Cooperative,
}

impl Bound {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Fma, Self::Cooperative];

    /// Its word in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Fma => "multiply-add",
            Self::Cooperative => "cooperative",
        }
    }
}

/// The roofs of an adapter: rates of the fastest sample, since a roof is what can be reached, and medians of the delays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofs {
    /// Bytes a second of the faster of two ways to copy, read and written ones counted: a kernel, and the driver's own
    /// copy of buffers.
    pub copy: f64,
    /// Bytes a second of the copying kernel. A software driver reads storage buffers lane by lane and is slow at it;
    /// kernels that read textures go beyond.
    pub kernel_copy: f64,
    /// Bytes a second of the copying kernel on buffers that fit the second-level cache.
    pub cache_copy: f64,
    /// Floating-point operations a second of f32 multiply-adds in registers.
    pub fma: f64,
    /// ... of f16 multiply-adds, where shaders may use halves.
    pub half_fma: Option<f64>,
    /// ... of products of cooperative matrices of f16 summed in f32, where the adapter has them.
    pub cooperative: Option<f64>,
    /// Seconds from one nearly empty dispatch to the next that waits for it.
    pub launch_gap: f64,
    /// Seconds of the host's clock to submit one nearly empty dispatch and wait for it.
    pub round_trip: f64,
    /// Whose seconds all but the last are.
    pub clock: Clock,
}

impl Roofs {
    /// Measures all that this adapter has; each result is checked before it is timed.
    ///
    /// # Errors
    /// When a result is wrong or the device fails.
    pub fn measure(gpu: &Arc<Gpu>) -> Result<Self> {
        let limits = gpu.limits();
        let of = |gpu_count: u32, cpu_count: u32| if gpu.is_cpu() { cpu_count } else { gpu_count };
        let most = u32::try_from(limits.binding / 16).unwrap_or(u32::MAX);
        let (kernel_copy, driver_copy) = copies(gpu, of(COPY_VECTORS, COPY_VECTORS_CPU).min(most), true)?;
        let (cache_copy, _) = copies(gpu, of(CACHE_VECTORS, CACHE_VECTORS_CPU), false)?;
        let (fma, clock) = multiply_adds(gpu, "roof_fma")?;
        let half_fma = limits.f16.then(|| multiply_adds(gpu, "roof_half")).transpose()?.map(|(rate, _)| rate);
        let cooperative = (limits.cooperative > 0).then(|| products(gpu)).transpose()?;
        let (launch_gap, round_trip) = launches(gpu)?;
        let copy = kernel_copy.max(driver_copy);
        Ok(Self { copy, kernel_copy, cache_copy, fma, half_fma, cooperative, launch_gap, round_trip, clock })
    }

    /// Floating-point operations a second at the roof that such work could use, and which roof it is.
    pub fn rate(&self, half_matrices: bool) -> (f64, Bound) {
        match self.cooperative {
            Some(rate) if half_matrices && rate > self.fma => (rate, Bound::Cooperative),
            _ => (self.fma, Bound::Fma),
        }
    }

    /// Seconds that work takes at the roofs, memory and arithmetic at once, and which of them it waits for.
    pub fn ideal(&self, work: Work) -> (f64, Bound) {
        let (rate, bound) = self.rate(work.half_matrices);
        let (computing, moving) = (work.flops as f64 / rate, work.bytes as f64 / self.copy);
        if computing > moving { (computing, bound) } else { (moving, Bound::Copy) }
    }

    /// As `scumble bench --json` writes them.
    pub fn json(&self) -> Value {
        json!({
            "copy_gbps": self.copy / 1e9,
            "kernel_copy_gbps": self.kernel_copy / 1e9,
            "cache_copy_gbps": self.cache_copy / 1e9,
            "fma_gflops": self.fma / 1e9,
            "half_fma_gflops": self.half_fma.map(|rate| rate / 1e9),
            "cooperative_gflops": self.cooperative.map(|rate| rate / 1e9),
            "launch_gap_seconds": self.launch_gap,
            "round_trip_seconds": self.round_trip,
            "clock": self.clock.name(),
        })
    }
}

/// An executor of `chain` dispatches of one call over vectors of four, each reading what the one before it wrote.
fn executor(gpu: &Arc<Gpu>, count: u32, call: &Call, chain: usize) -> Result<Executor> {
    let mut g = Graph::new(DType::F32, gpu.limits());
    let shape = Shape::tokens(1, count, 4);
    let x = g.input("x", shape, DType::F32);
    let y = (0..chain).fold(x, |x, _| g.push("roof", call.clone(), vec![x.into()], shape, DType::F32));
    g.output("y", y);
    let executor = Executor::new(gpu, &g, |_, _| Ok(()))?;
    executor.poison();
    let data = (0..count * 4).map(|i| (i % 257) as f32 / 257.0).collect();
    executor.write("x", &HostTensor { shape: vec![count as usize, 4], data })?;
    Ok(executor)
}

/// Runs once and compares with the reference.
fn verify(gpu: &Gpu, executor: &Executor, what: &str, tolerance: f64, reference: fn(f64) -> f64) -> Result<()> {
    executor.run();
    gpu.wait()?;
    let (x, y) = (executor.read("x")?.data, executor.read("y")?.data);
    for (x, y) in x.iter().zip(&y) {
        let expected = reference(f64::from(*x));
        let close = (f64::from(*y) - expected).abs() <= tolerance;
        if !close {
            return Err(wrong(what, expected, y));
        }
    }
    Ok(())
}

/// The time of one run, of as many together as make a sample long enough.
fn sample(gpu: &Gpu, executor: &Executor) -> Result<Sample> {
    let clock = gpu.clock();
    let repeats = repeats(executor.time_together(clock, 1)?.seconds);
    let sample = SAMPLING.take(|| executor.time_together(clock, repeats))?;
    Ok(divided(sample, repeats))
}

/// How often something of `seconds` must run to take [`LEAST_SECONDS`].
fn repeats(seconds: f64) -> u32 {
    (LEAST_SECONDS / seconds.max(1e-9)).ceil().clamp(1.0, 200.0) as u32
}

fn divided(sample: Sample, by: u32) -> Sample {
    let by = f64::from(by);
    Sample { median: sample.median / by, minimum: sample.minimum / by, wall: sample.wall / by, ..sample }
}

/// Bytes a second of the copying kernel and, if asked for, of the driver's copy.
fn copies(gpu: &Arc<Gpu>, count: u32, driver: bool) -> Result<(f64, f64)> {
    let call = roof_copy::call(RoofCopy { count }, &gpu.limits());
    let bytes = call.bytes as f64;
    let executor = executor(gpu, count, &call, 1)?;
    verify(gpu, &executor, "roof_copy", 0.0, |x| roof_copy::reference(&[x])[0])?;
    let kernel = bytes / sample(gpu, &executor)?.minimum;
    if !driver {
        return Ok((kernel, 0.0));
    }
    let (x, clock) = (executor.resident("x")?, gpu.clock());
    let repeats = repeats(executor.time_copies("y", &x, clock, 1)?.seconds);
    let copied = SAMPLING.take(|| executor.time_copies("y", &x, clock, repeats))?;
    Ok((kernel, bytes / divided(copied, repeats).minimum))
}

/// Operations a second of multiply-adds in f32 (`roof_fma`) or halves (`roof_half`).
fn multiply_adds(gpu: &Arc<Gpu>, stem: &str) -> Result<(f64, Clock)> {
    let half = stem == "roof_half";
    let count = if gpu.is_cpu() { FMA_VECTORS_CPU } else { FMA_VECTORS };
    let chains = if gpu.is_cpu() { 2 } else { 8 };
    let build = if half { roof_half::call } else { roof_fma::call };
    // After 16 rounds of 16 multiply-adds the chains have reached f's fixed point 1 but for some roundings of numbers below
    // 2; a step stops where a quarter of the distance is less than a rounding, two ulps off, or four if the product is rounded too.
    let tolerance = if half { 4.0 / 1024.0 } else { 4.0 * f64::from(f32::EPSILON) };
    let mut rounds = 16;
    loop {
        let call = build(RoofFma { count, rounds, chains }, &gpu.limits());
        let executor = executor(gpu, count, &call, 1)?;
        verify(gpu, &executor, stem, tolerance, |_| 1.0)?;
        if executor.time_together(gpu.clock(), 1)?.seconds >= LEAST_SECONDS || rounds >= 1 << 20 {
            let sample = sample(gpu, &executor)?;
            return Ok((call.flops as f64 / sample.minimum, sample.clock));
        }
        rounds *= 4;
    }
}

/// Small whole numbers from -2 to 2, the same for the same seed.
fn whole_numbers(count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * i + seed * i + i / 7) % 5) as f64 - 2.0).collect()
}

/// Operations a second of products of cooperative matrices.
fn products(gpu: &Arc<Gpu>) -> Result<f64> {
    let groups = if gpu.is_cpu() { COOP_GROUPS_CPU } else { COOP_GROUPS };
    let mut rounds = 4;
    loop {
        let config = RoofCoop { groups, rounds };
        let (executor, subgroups) = cooperative(gpu, config)?;
        if executor.time_together(gpu.clock(), 1)?.seconds >= LEAST_SECONDS || rounds >= MOST_ROUNDS {
            let flops = roof_coop::call(config, &gpu.limits()).flops * u64::from(subgroups);
            return Ok(flops as f64 / sample(gpu, &executor)?.minimum);
        }
        rounds *= 4;
    }
}

/// A checked run of the products, and how many subgroups of each workgroup did them.
fn cooperative(gpu: &Arc<Gpu>, config: RoofCoop) -> Result<(Executor, u32)> {
    let limits = gpu.limits();
    let (size, slots) = (limits.cooperative, roof_coop::slots(&limits));
    let mut g = Graph::new(DType::F16, limits);
    let a = g.input("a", Shape::tokens(1, 2 * size, size), DType::F16);
    let b = g.input("b", Shape::tokens(1, 4 * size, size), DType::F16);
    let shape = Shape::tokens(1, config.groups * slots * size, size);
    let c = g.push("roof", roof_coop::call(config, &limits), vec![a.into(), b.into()], shape, DType::F32);
    g.output("c", c);
    let executor = Executor::new(gpu, &g, |_, _| Ok(()))?;
    executor.poison();
    let square = (size * size) as usize;
    let (a, b) = (whole_numbers(2 * square, 3), whole_numbers(4 * square, 1));
    for (name, values) in [("a", &a), ("b", &b)] {
        let data = values.iter().map(|value| *value as f32).collect();
        executor.write(name, &HostTensor { shape: vec![values.len() / size as usize, size as usize], data })?;
    }
    executor.run();
    let stored = executor.read("c")?.data;
    let expected: Vec<f64> = (0..roof_coop::ACCUMULATORS as usize)
        .flat_map(|index| roof_coop::reference(config, size as usize, index, &a, &b))
        .collect();
    // What a subgroup does not fill stays poisoned, and the first workgroup tells how many there are.
    let filled = stored.chunks_exact(expected.len()).take((slots / roof_coop::ACCUMULATORS) as usize);
    let subgroups = filled.take_while(|slots| slots.iter().any(|value| !value.is_nan())).count();
    for group in stored.chunks_exact(slots as usize * square) {
        for sums in group.chunks_exact(expected.len()).take(subgroups.max(1)) {
            let pair = sums.iter().zip(&expected).find(|(got, expected)| f64::from(**got) != **expected);
            if let Some((got, expected)) = pair {
                return Err(wrong("roof_coop", expected, got));
            }
        }
    }
    Ok((executor, subgroups as u32))
}

/// Seconds between dependent dispatches, and of a round trip between host and device.
fn launches(gpu: &Arc<Gpu>) -> Result<(f64, f64)> {
    let call = roof_copy::call(RoofCopy { count: 1 }, &gpu.limits());
    let chain = executor(gpu, 1, &call, CHAIN)?;
    verify(gpu, &chain, "a chain of roof_copy", 0.0, |x| x)?;
    let gap = sample(gpu, &chain)?.median / CHAIN as f64;
    let single = executor(gpu, 1, &call, 1)?;
    verify(gpu, &single, "roof_copy", 0.0, |x| x)?;
    Ok((gap, SAMPLING.take(|| single.time_together(Clock::Wall, 1))?.wall))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roofs(cooperative: Option<f64>) -> Roofs {
        Roofs {
            copy: 1e9,
            kernel_copy: 1e9,
            cache_copy: 2e9,
            fma: 1e10,
            half_fma: None,
            cooperative,
            launch_gap: 1e-6,
            round_trip: 1e-5,
            clock: Clock::Wall,
        }
    }

    #[test]
    fn the_ideal_is_the_roof_that_work_could_use() {
        let work = |half_matrices| Work { flops: 40_000_000_000, bytes: 1_000_000_000, half_matrices };
        assert_eq!(roofs(None).ideal(work(true)), (4.0, Bound::Fma));
        assert_eq!(roofs(Some(2e10)).ideal(work(true)), (2.0, Bound::Cooperative));
        assert_eq!(roofs(Some(2e10)).ideal(work(false)), (4.0, Bound::Fma));
        assert_eq!(roofs(Some(1e12)).ideal(work(true)), (1.0, Bound::Copy));
        // Emulated matrices can be slower than plain multiply-adds.
        assert_eq!(roofs(Some(1e9)).ideal(work(true)), (4.0, Bound::Fma));
    }

    #[test]
    fn what_is_missing_is_null() {
        let json = roofs(None).json();
        assert!(json["cooperative_gflops"].is_null() && json["half_fma_gflops"].is_null());
        assert_eq!(json["copy_gbps"], 1.0);
    }
}
