//! The kernels' cases, each compared with its f64 reference before it is timed.

use std::sync::Arc;
use std::time::Instant;

use super::{Roofs, Row, median, once};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::trial::Trial;
use crate::kernels::cases::{self, Case};
use crate::tensor::DType;

/// A sample takes at least this long: short kernels are run several times before they are waited for.
const LEAST_SECONDS: f64 = 0.01;
/// ... but not more often than this.
const MOST_REPEATS: u32 = 1000;

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

/// Verifies a case and times it; `None` when the adapter's bindings are too small for it.
///
/// # Errors
/// When the result is wrong or the device fails.
pub fn run(case: &Case, gpu: &Arc<Gpu>, roofs: &Roofs, runs: u32) -> Result<Option<Row>> {
    let Some(trial) = verified(case, gpu)? else { return Ok(None) };
    let repeats = (LEAST_SECONDS / once(gpu, trial.executor())?.max(1e-9)).ceil().clamp(1.0, f64::from(MOST_REPEATS));
    let sample = |_| {
        let start = Instant::now();
        (0..repeats as u32).for_each(|_| trial.run());
        gpu.wait()?;
        Ok(start.elapsed().as_secs_f64() / repeats.trunc())
    };
    let mut seconds = (0..runs.max(1)).map(sample).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    let (flops, bytes) = trial.cost();
    let ideal = roofs.ideal(flops, bytes);
    Ok(Some(Row { name: case.name.clone(), seconds: median(&seconds), flops, bytes, ideal, verified: true }))
}

/// A case on the adapter, its result compared with the reference; `None` when the adapter's bindings are too small.
///
/// # Errors
/// When the result is wrong or the device fails.
pub fn verified<'a>(case: &'a Case, gpu: &Arc<Gpu>) -> Result<Option<Trial<'a>>> {
    let Some(trial) = Trial::new(gpu, case, &gpu.limits())? else { return Ok(None) };
    trial.prepare()?;
    trial.run();
    trial.judge()?;
    Ok(Some(trial))
}
