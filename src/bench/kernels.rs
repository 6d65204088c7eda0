//! The kernels' cases, each compared with its f64 reference before it is timed.

use std::sync::Arc;
use std::time::Duration;

use super::statistics::Sampling;
use super::{Family, Roofs, Row, Work};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::trial::Trial;
use crate::kernels::cases::{self, Case};
use crate::tensor::DType;

/// A sample takes at least this long: short kernels are run several times together.
const LEAST_SECONDS: f64 = 0.005;
/// ... but not more often than this.
const MOST_REPEATS: f64 = 200.0;
/// Bytes of all copies of the inputs, more than the caches of large GPUs hold.
const ROTATED_BYTES: u64 = 128 << 20;
/// ... and on a CPU, whose memory they share with everything else.
const ROTATED_BYTES_CPU: u64 = 16 << 20;
/// Copies of the inputs at the most; the inputs of small cases stay in caches for all that, as they do in a model.
const MOST_COPIES: u64 = 64;
/// ... and on a CPU.
const MOST_COPIES_CPU: u64 = 4;
/// Time for the samples of one case.
const BUDGET: Duration = Duration::from_millis(500);
/// Samples of one case at the most.
const MOST_SAMPLES: u32 = 100;

/// The kernels' stems, sorted.
pub fn stems() -> Vec<&'static str> {
    let mut stems: Vec<_> = cases::cases().iter().map(|case| case.stem).collect();
    stems.sort_unstable();
    stems.dedup();
    stems
}

/// The cases of the kernels whose stem starts with `filter`, stored as `dtype`; all without. Those of a real model's size
/// come first.
pub fn cases(filter: Option<&str>, dtype: Option<DType>) -> Vec<Case> {
    let types = dtype.map_or_else(|| vec![DType::F32, DType::F16], |dtype| vec![dtype]);
    let sizes = types.iter().flat_map(|dtype| cases::model_sizes(*dtype));
    let all = sizes.chain(cases::cases());
    let wanted = |case: &Case| types.contains(&case.dtype) && filter.is_none_or(|filter| case.stem.starts_with(filter));
    all.filter(wanted).collect()
}

/// Further cases, whose sizes give a GPU enough to do and would keep a software driver busy for minutes.
pub fn large_cases(filter: Option<&str>, dtype: Option<DType>) -> Vec<Case> {
    let types = dtype.map_or_else(|| vec![DType::F32, DType::F16], |dtype| vec![dtype]);
    let sizes = types.into_iter().flat_map(cases::large_sizes);
    sizes.filter(|case| filter.is_none_or(|filter| case.stem.starts_with(filter))).collect()
}

/// How many copies of inputs of `bytes` are used in turn.
fn copies(bytes: u64, cpu: bool) -> u32 {
    let (total, most) = if cpu { (ROTATED_BYTES_CPU, MOST_COPIES_CPU) } else { (ROTATED_BYTES, MOST_COPIES) };
    // Below two nothing takes turns.
    total.div_ceil(bytes.max(1)).clamp(2, most) as u32
}

/// Verifies a case and times it, at least `runs` samples; `None` when the adapter's bindings are too small for it.
///
/// # Errors
/// When the result is wrong or the device fails.
pub fn run(case: &Case, gpu: &Arc<Gpu>, roofs: &Roofs, runs: u32) -> Result<Option<Row>> {
    let rotated = Trial::rotated(gpu, case, &gpu.limits(), |bytes| copies(bytes, gpu.is_cpu()))?;
    let Some(trial) = rotated else { return Ok(None) };
    judge(&trial)?;
    let (executor, clock) = (trial.executor(), gpu.clock());
    let once = executor.time_together(clock, 1)?.seconds;
    let repeats = (LEAST_SECONDS / once.max(1e-9)).ceil().clamp(1.0, MOST_REPEATS) as u32;
    let sampling = Sampling { least: runs, most: MOST_SAMPLES, budget: BUDGET };
    let share = 1.0 / f64::from(repeats * trial.copies());
    let sample = sampling.take(|| {
        let mut lap = executor.time_together(clock, repeats)?;
        (lap.seconds, lap.wall) = (lap.seconds * share, lap.wall * share);
        Ok(lap)
    })?;
    let (flops, bytes) = trial.cost();
    let mut row = Row { family: Some(Family::of(case.stem)), ..Row::empty(&case.name, clock) };
    row.add(Work::new(case.stem, case.dtype, flops, bytes), 0.0, roofs);
    Ok(Some(row.timed(&sample)))
}

fn judge(trial: &Trial<'_>) -> Result<()> {
    trial.prepare()?;
    trial.run();
    trial.judge()
}

/// A case on the adapter, its result compared with the reference; `None` when the adapter's bindings are too small.
///
/// # Errors
/// When the result is wrong or the device fails.
pub fn verified<'a>(case: &'a Case, gpu: &Arc<Gpu>) -> Result<Option<Trial<'a>>> {
    let Some(trial) = Trial::new(gpu, case, &gpu.limits())? else { return Ok(None) };
    judge(&trial)?;
    Ok(Some(trial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded() {
        assert_eq!(copies(1 << 20, false), 64);
        assert_eq!(copies(8 << 20, false), 16);
        assert_eq!(copies(1 << 30, false), 2);
        assert_eq!(copies(1 << 10, true), 4);
        assert_eq!(copies(9 << 20, true), 2);
    }
}
