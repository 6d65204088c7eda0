//! The numeric self-test: a candidate is used only where its numbers were right on this adapter.
//!
//! wgpu checks neither the sizes of cooperative matrices nor what a driver makes of them, and drivers differ in what they
//! promise about subgroups. So every candidate of a class in which one uses such an optional part runs on problems that
//! show swapped operands, lost tails and reads of what nobody wrote.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Progress, Record, Subject, in_short, verified};
use crate::error::Result;
use crate::gpu::Gpu;

/// Runs of a candidate on a problem: a race between invocations seldom gives the same bits three times.
const RUNS: u32 = 3;

/// Tests every candidate of `subjects` where there is a choice or an optional part of WGSL, and notes the faults.
///
/// # Errors
/// When the device fails.
pub fn run(
    gpu: &Arc<Gpu>,
    subjects: &[&dyn Subject],
    record: &mut Record,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let limits = gpu.limits();
    let mut trials = Vec::new();
    for subject in subjects {
        let Some((class, candidates)) = subject.candidates(&limits) else { continue };
        record.class(class, &candidates);
        if candidates.len() > 1 || candidates.iter().any(|candidate| candidate.optional()) {
            trials.extend((0..candidates.len()).map(|candidate| (*subject, class, candidate)));
        }
    }
    if trials.is_empty() {
        return Ok(());
    }
    progress(Progress::Testing(trials.len()));
    // Drivers compile on the thread that asks, and a reference takes as long as many runs, so threads help.
    let faults: Vec<Option<String>> = trials
        .par_iter()
        .map(|(subject, _, candidate)| verified(gpu, *subject, *candidate, RUNS).err().as_ref().map(in_short))
        .collect();
    gpu.check()?;
    for ((_, class, candidate), fault) in trials.into_iter().zip(faults) {
        let Some(fault) = fault else { continue };
        if let Some(outcome) = record.classes.get_mut(&class).and_then(|found| found.candidates.get_mut(candidate)) {
            tracing::warn!("{}: {} is not used: {fault}", class, outcome.name);
            outcome.fault.get_or_insert(fault);
        }
    }
    Ok(())
}
