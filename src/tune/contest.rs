//! Timing the candidates of a class on a problem of the published models.

use std::sync::Arc;

use super::{Progress, Record, Subject, in_short, verified};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::trial::Trial;
use crate::kernels::cases::Candidate;
use crate::kernels::tuning::Class;

/// A sample takes about this long: enough for the clock, short for all candidates together.
const SAMPLE_SECONDS: f64 = 0.004;
/// ... but holds no more runs than this.
const MOST_RUNS: f64 = 200.0;
/// Samples of a candidate; the fastest counts, because disturbances only add.
const SAMPLES: u32 = 3;
/// A candidate whose first run takes this much longer than the best so far is not timed further.
const HOPELESS: f64 = 3.0;

/// Verifies and times the candidates of `subjects` that have no fault, with `all` also where there is no choice.
///
/// # Errors
/// When the device fails.
pub fn run(
    gpu: &Arc<Gpu>,
    subjects: &[&dyn Subject],
    all: bool,
    record: &mut Record,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let limits = gpu.limits();
    let mut open: Vec<(&dyn Subject, Class, Vec<Candidate>)> = Vec::new();
    for subject in subjects {
        let Some((class, candidates)) = subject.candidates(&limits) else { continue };
        let entry = record.class(class, &candidates);
        let fit = entry.candidates.iter().filter(|outcome| outcome.fault.is_none()).count();
        if fit > usize::from(!all) {
            open.push((*subject, class, candidates));
        }
    }
    for (done, (subject, class, candidates)) in open.iter().enumerate() {
        progress(Progress::Timing(*class, done, open.len()));
        let entry = record.class(*class, candidates);
        let mut best = f64::INFINITY;
        for (candidate, outcome) in entry.candidates.iter_mut().take(candidates.len()).enumerate() {
            if outcome.fault.is_some() {
                continue;
            }
            match verified(gpu, *subject, candidate, 1) {
                Ok(None) => {}
                Ok(Some(trial)) => {
                    let seconds = time(gpu, &trial, best)?;
                    best = best.min(seconds);
                    outcome.seconds = Some(seconds);
                }
                Err(fault) => {
                    gpu.check()?;
                    let fault = in_short(&fault);
                    tracing::warn!("{class}: {} is not used: {fault}", outcome.name);
                    outcome.fault = Some(fault);
                }
            }
        }
    }
    Ok(())
}

/// Seconds of one run.
fn time(gpu: &Gpu, trial: &Trial<'_>, best: f64) -> Result<f64> {
    let mean = |runs: u32| trial.executor().time_together(gpu.clock(), runs).map(|lap| lap.seconds / f64::from(runs));
    let first = mean(1)?;
    if first > HOPELESS * best || first > SAMPLE_SECONDS {
        return Ok(first.min(mean(1)?));
    }
    let runs = (SAMPLE_SECONDS / first.max(1e-9)).clamp(1.0, MOST_RUNS) as u32;
    let samples = (0..SAMPLES).map(|_| mean(runs)).collect::<Result<Vec<f64>>>()?;
    Ok(samples.into_iter().fold(f64::INFINITY, f64::min))
}
