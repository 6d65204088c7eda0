//! Choosing among the ways to run a product or an attention on an adapter: what gives wrong numbers there is left out,
//! and the fastest of the rest is taken.
//!
//! A kernel lists its candidates by shape class (`kernels::tuning`). [`self_test`] runs each on small problems against
//! their f64 references; [`contest`] times those that passed on shapes of Stable Diffusion. The outcome is a [`Record`],
//! which [`store`] keeps on disk for this adapter, driver and these shaders, and whose [`Record::tuning`] a device is given.

pub mod contest;
pub mod record;
pub mod self_test;
pub mod store;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::trial::Trial;
use crate::kernels::Limits;
use crate::kernels::cases::{self, Candidate, Case, Work};
use crate::kernels::tuning::Class;
use crate::tensor::DType;

pub use record::{ClassRecord, Outcome, Record};

/// Characters that are kept of what is wrong with a candidate.
const FAULT_LENGTH: usize = 300;

/// A problem that can be solved in several ways, with what must come of it.
pub trait Subject: Sync {
    /// What must come of it, and its name.
    fn case(&self) -> &Case;

    /// Its class and all candidates, the best guess first; `None` where it does not fit the limits.
    fn candidates(&self, limits: &Limits) -> Option<(Class, Vec<Candidate>)>;

    /// The tensors and calls of one candidate.
    fn work(&self, candidate: usize, limits: &Limits) -> Option<Work>;
}

impl Subject for Case {
    fn case(&self) -> &Case {
        self
    }

    fn candidates(&self, limits: &Limits) -> Option<(Class, Vec<Candidate>)> {
        Case::candidates(self, limits)
    }

    fn work(&self, candidate: usize, limits: &Limits) -> Option<Work> {
        self.work_with(candidate, limits)
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The numbers are tested; each class's first candidate that passes will run.
    Test,
    /// Also the candidates of each class that has more than one are timed.
    Choose,
    /// Also those of classes without a choice, for a table.
    Survey,
}

/// What is being done, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// This many runs of candidates are being compared with their references.
    Testing(usize),
    /// The candidates of a class are being timed: how many classes were before, and how many there are.
    Timing(Class, usize, usize),
}

/// Tests and times all candidates on `gpu`, which then runs the best of those whose operands are stored as `precision`.
///
/// # Errors
/// When the device fails. A candidate that fails alone is noted in the record.
pub fn measure(gpu: &Arc<Gpu>, precision: DType, effort: Effort, progress: &mut dyn FnMut(Progress)) -> Result<Record> {
    let mut record = Record::default();
    let tests: Vec<Case> = [DType::F32, DType::F16].into_iter().flat_map(cases::self_tests).collect();
    let subjects: Vec<&dyn Subject> = tests.iter().map(|case| case as &dyn Subject).collect();
    self_test::run(gpu, &subjects, &mut record, progress)?;
    // Timing must not run what has just failed.
    gpu.set_tuning(record.tuning());
    if effort != Effort::Test {
        let contests = cases::contests(precision);
        let subjects: Vec<&dyn Subject> = contests.iter().map(|case| case as &dyn Subject).collect();
        contest::run(gpu, &subjects, effort == Effort::Survey, &mut record, progress)?;
        record.timed = true;
        gpu.set_tuning(record.tuning());
    }
    Ok(record)
}

/// What `gpu` is to run for a model stored as `precision`: read from `cache_dir` if it was measured before, else measured
/// now and kept there. Blocks for a few seconds where something is measured.
///
/// # Errors
/// When the device fails. A cache that cannot be read or written is only warned of.
pub fn prepare(
    gpu: &Arc<Gpu>,
    precision: DType,
    effort: Effort,
    cache_dir: Option<&Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Record> {
    if let Some(found) = recall(gpu, precision, cache_dir).filter(|found| found.timed || effort == Effort::Test) {
        return Ok(found);
    }
    let record = measure(gpu, precision, effort, progress)?;
    if let Some(folder) = cache_dir {
        let key = store::Key::of(gpu, precision);
        store::save(folder, &key, &record).unwrap_or_else(|fault| tracing::warn!("{fault}"));
    }
    Ok(record)
}

/// Makes `gpu` run what an earlier [`prepare`] found, if it was kept.
pub fn recall(gpu: &Gpu, precision: DType, cache_dir: Option<&Path>) -> Option<Record> {
    let record = store::load(cache_dir?, &store::Key::of(gpu, precision))?;
    gpu.set_tuning(record.tuning());
    Some(record)
}

/// A fault on one line of a bearable length; compilers tell more.
fn in_short(fault: &Error) -> String {
    let words: Vec<_> = fault.to_string().split_whitespace().map(str::to_owned).collect();
    words.join(" ").chars().take(FAULT_LENGTH).collect()
}

/// Runs a candidate `runs` times on poisoned buffers, compares the first run with the reference and the others with the
/// first, bit by bit. `None` where it does not fit the limits.
///
/// # Errors
/// What is wrong with the candidate, or that the device failed.
fn verified<'a>(gpu: &Arc<Gpu>, subject: &'a dyn Subject, candidate: usize, runs: u32) -> Result<Option<Trial<'a>>> {
    let limits = gpu.limits();
    let Some(work) = subject.work(candidate, &limits) else { return Ok(None) };
    let trial = Trial::with_work(gpu, subject.case(), work, &limits)?;
    let mut first = None;
    for _ in 0..runs.max(1) {
        trial.prepare()?;
        trial.run();
        if first.is_none() {
            trial.judge()?;
        }
        let bytes = trial.results()?;
        if first.get_or_insert_with(|| bytes.clone()) != &bytes {
            let error = Error::new("the same work gave other numbers").at(&subject.case().name);
            return Err(error.expected("the same bits in every run"));
        }
    }
    Ok(Some(trial))
}
