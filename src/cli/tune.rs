//! `scumble tune`, and the tuning that other commands do on an adapter that is new.

use std::fmt::Write;
use std::sync::Arc;

use crate::cli::args::{PrecisionArg, TuneArgs};
use crate::cli::progress::{Reporter, Unit};
use crate::cli::{cache, painter, print_line};
use crate::error::Result;
use crate::gpu::{Gpu, GpuOptions};
use crate::kernels::tuning::Class;
use crate::pipelines::Precision;
use crate::tensor::DType;
use crate::tune::{self, ClassRecord, Effort, Outcome, Progress, Record, store};

/// Runs the command.
pub fn run(args: &TuneArgs) -> Result<()> {
    let gpu = painter::open_gpu(args.adapter.as_deref())?;
    print_line(&format!("adapter: {}, kernels: {}", gpu.describe(), gpu.limits().kernels.name()))?;
    if gpu.is_cpu() {
        print_line(
            "On a CPU kernels are chosen by rule and other commands measure nothing; what is found here is used.",
        )?;
    }
    let precisions = match (args.all, args.precision) {
        (true, _) => vec![DType::F32, DType::F16],
        (false, precision) => vec![Precision::from(precision).resolve(gpu.is_cpu())],
    };
    let effort = if args.no_tune { Effort::Test } else { Effort::Survey };
    let mut reporter = Reporter::stderr();
    for precision in precisions {
        let record = tune::measure(&gpu, precision, effort, &mut |progress| show(progress, &mut reporter))?;
        reporter.end();
        print_line(table(&record, precision).trim_end())?;
        if let Some(folder) = cache::directory() {
            let key = store::Key::of(&gpu, precision);
            store::save(&folder, &key, &record)?;
            print_line(&format!("kept in {}", key.path(&folder).display()))?;
        }
    }
    Ok(())
}

/// Makes `gpu` run what suits it for a model stored as `precision`: found in the cache, or on a GPU measured now.
/// `no_tune` leaves out the timing, not the test of the numbers.
pub fn settle(gpu: &Arc<Gpu>, precision: DType, no_tune: bool, reporter: &mut Reporter) -> Result<()> {
    let folder = cache::directory();
    if gpu.is_cpu() {
        tune::recall(gpu, precision, folder.as_deref());
        return Ok(());
    }
    let effort = if no_tune { Effort::Test } else { Effort::Choose };
    let record = tune::prepare(gpu, precision, effort, folder.as_deref(), &mut |progress| show(progress, reporter))?;
    reporter.end();
    for (class, name, fault) in record.faults() {
        reporter.line(&format!("not used on this adapter: {class}: {name}: {fault}"));
    }
    Ok(())
}

/// As [`settle`] for a command's option.
pub fn settle_for(gpu: &Arc<Gpu>, precision: PrecisionArg, no_tune: bool, reporter: &mut Reporter) -> Result<()> {
    settle(gpu, Precision::from(precision).resolve(gpu.is_cpu()), no_tune, reporter)
}

fn show(progress: Progress, reporter: &mut Reporter) {
    match progress {
        Progress::Testing(runs) => reporter.begin(format!("testing {runs} kernels"), 0, Unit::Pieces),
        Progress::Timing(_, done, count) => {
            if done == 0 {
                reporter.begin("timing kernels", count as u64, Unit::Pieces);
            }
            reporter.set(done as u64);
        }
    }
}

/// Candidates, times and choices by class: all classes of `precision`, and of others those with a fault.
fn table(record: &Record, precision: DType) -> String {
    let mut text = String::new();
    let faulty = |found: &ClassRecord| found.candidates.iter().any(|outcome| outcome.fault.is_some());
    let shown = |(class, found): &(&Class, &ClassRecord)| class.dtype() == precision || faulty(found);
    let tuning = record.tuning();
    for (class, found) in record.classes.iter().filter(shown) {
        let chosen = tuning.pick(*class, found.candidates.len());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{class}");
        for (index, Outcome { name, fault, seconds }) in found.candidates.iter().enumerate() {
            let time = seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.4} ms", seconds * 1e3));
            let mark = if index == chosen { '*' } else { ' ' };
            let fault = fault.as_ref().map_or_else(String::new, |fault| format!("  not used: {fault}"));
            let _ = writeln!(text, "  {mark} {name:<24}{time:>16}{fault}");
        }
    }
    text
}

/// What `scumble info` tells of the adapter with this index: kernels, and what is kept of it.
pub fn state(index: usize) -> Vec<String> {
    let folder = cache::directory();
    let adapter = Some(index.to_string());
    let options = GpuOptions { adapter, cache_dir: folder.clone(), ..GpuOptions::from_environment() };
    let gpu = match Gpu::open(&options) {
        Ok(gpu) => gpu,
        Err(fault) => return vec![format!("cannot be opened: {fault}")],
    };
    let limits = gpu.limits();
    let subgroup = match limits.subgroup {
        0 => "none, or of several sizes".to_owned(),
        size => size.to_string(),
    };
    let f16 = if limits.f16 { "native" } else { "packed in 32 bits" };
    let mut lines = vec![format!("kernels: {}, subgroups: {subgroup}, f16: {f16}", limits.kernels.name())];
    let Some(folder) = folder else {
        lines.push(format!("nothing is kept between runs: {} is empty", cache::VARIABLE));
        return lines;
    };
    for precision in [DType::F32, DType::F16] {
        let key = store::Key::of(&gpu, precision);
        let name = precision.name();
        let Some(record) = store::load(&folder, &key) else {
            let rule = if gpu.is_cpu() { "kernels are chosen by rule" } else { "will be measured on first use" };
            lines.push(format!("tuning, {name}: {rule}"));
            continue;
        };
        let what = if record.timed { "tested and timed" } else { "tested, not timed" };
        let faults = record.faults().count();
        lines.push(format!("tuning, {name}: {what}, {faults} not used, kept in {}", key.path(&folder).display()));
    }
    if let Some((path, bytes)) = gpu.pipeline_cache() {
        lines.push(format!("compiled pipelines: {bytes} bytes in {}", path.display()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tuning::Product;

    #[test]
    fn the_table_marks_the_choice_and_tells_faults() {
        let outcome = |name: &str, fault: Option<&str>, seconds| Outcome {
            name: name.into(),
            fault: fault.map(Into::into),
            seconds,
        };
        let candidates = vec![
            outcome("coop", Some("a number is outside"), None),
            outcome("small", None, Some(0.002)),
            outcome("large", None, Some(0.001)),
        ];
        let class = Class::matrix(Product::Linear, 100, DType::F16);
        let other = Class::matrix(Product::Linear, 100, DType::F32);
        let quiet = ClassRecord { candidates: vec![outcome("tile", None, None)] };
        let classes = [(class, ClassRecord { candidates }), (other, quiet)].into_iter().collect();
        let text = table(&Record { timed: true, classes }, DType::F16);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0], "linear, 1 to 192 rows, f16");
        assert!(lines[1].contains("coop") && lines[1].ends_with("-  not used: a number is outside"), "{text}");
        assert!(lines[2].starts_with("    small") && lines[2].ends_with("2.0000 ms"), "{text}");
        assert!(lines[3].starts_with("  * large"), "{text}");
    }
}
