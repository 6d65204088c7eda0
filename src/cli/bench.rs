//! `scumble bench`: the roofs of an adapter, the kernels, one UNet step and one VAE decode.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::bench::stages::{StageReport, stage};
use crate::bench::{Roofs, Row, kernels};
use crate::cli::args::{BenchArgs, BenchWhat, PrecisionArg};
use crate::cli::info::size;
use crate::cli::progress::{Reporter, Unit};
use crate::cli::{files, painter, print_line, tune};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::pipelines::inspect::Stage;
use crate::pipelines::{Precision, Request, Settings};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::published;

/// Seed of the random weights.
const SEED: u64 = 1;

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.json {
        files::check_writable(path)?;
    }
    let step = args.what != Some(BenchWhat::Kernels);
    let model = if step { Some(prepare(args)?) } else { None };
    let gpu = painter::open_gpu(args.adapter.as_deref())?;
    let mut reporter = Reporter::stderr();
    tune::settle_for(&gpu, args.precision, args.no_tune, &mut reporter)?;
    reporter.begin("measuring the roofs", 0, Unit::Pieces);
    let roofs = Roofs::measure(&gpu)?;
    reporter.end();
    let (copy, kernel, fma) = (roofs.copy / 1e9, roofs.kernel_copy / 1e9, roofs.fma / 1e9);
    print_line(&format!("adapter: {}", gpu.describe()))?;
    print_line(&format!("roofs: copy {copy:.2} GB/s (by a kernel {kernel:.2}), f32 multiply-add {fma:.2} GFLOP/s"))?;
    let mut report = json!({ "adapter": gpu.describe(), "roofs": roofs.json(), "rows": [] });
    let mut wrong = None;
    if args.what != Some(BenchWhat::Step) {
        wrong = time_kernels(args, &gpu, &roofs, &mut reporter, &mut report)?;
    }
    if let Some((checkpoint, settings)) = &model {
        time_stages(args, &gpu, &roofs, (checkpoint, settings), &mut reporter, &mut report)?;
    }
    if let Some(path) = &args.json {
        files::replace_file(path, |out| writeln!(out, "{report:#}"))?;
    }
    wrong.map_or(Ok(()), Err)
}

/// The model with random weights, and the size of its pictures.
fn prepare(args: &BenchArgs) -> Result<(Checkpoint, Settings)> {
    let checkpoint = open(&args.model)?;
    let request = Request { width: args.width, height: args.height, ..Request::default() };
    let settings = Settings::resolve(&request, &checkpoint)?;
    Ok((checkpoint, settings))
}

/// A published model by its name, the embedded one, or the configs at a path.
fn open(model: &str) -> Result<Checkpoint> {
    if let Some(checkpoint) = published::random(model, SEED)? {
        return Ok(checkpoint);
    }
    let path = Path::new(model);
    if path.exists() {
        return published::random_like(path, SEED);
    }
    #[cfg(feature = "embedded-model")]
    if model == crate::weights::embedded::NAME {
        return Ok(published::with_random_weights(crate::weights::embedded::open()?, SEED));
    }
    let known = published::names().join(", ");
    Err(Error::usage("no such model").at("--model").expected(format!("emoji, {known} or a path")).found(model))
}

/// Times the kernels; those with a wrong result are told, not timed, and the first of them is given back.
fn time_kernels(
    args: &BenchArgs,
    gpu: &Arc<Gpu>,
    roofs: &Roofs,
    reporter: &mut Reporter,
    report: &mut Value,
) -> Result<Option<Error>> {
    let dtype = match args.precision {
        PrecisionArg::Auto => None,
        precision => Some(Precision::from(precision).resolve(gpu.is_cpu())),
    };
    let cases = kernels::cases(args.filter.as_deref(), dtype);
    if cases.is_empty() {
        let filter = args.filter.as_deref().unwrap_or_default();
        return Err(Error::usage("no kernel of that name")
            .at("--filter")
            .expected(kernels::stems().join(", "))
            .found(filter));
    }
    reporter.begin("computing the references", 0, Unit::Pieces);
    cases.par_iter().for_each(|case| _ = case.expected());
    reporter.begin("kernels", cases.len() as u64, Unit::Pieces);
    let mut rows = Vec::new();
    let mut wrong = None;
    for (done, case) in cases.iter().enumerate() {
        match kernels::run(case, gpu, roofs, args.runs) {
            Ok(row) => rows.extend(row),
            Err(error) => {
                gpu.check()?;
                reporter.line(&format!("not timed: {error}"));
                let name = case.name.clone();
                rows.push(Row { name, seconds: 0.0, flops: 0, bytes: 0, ideal: 0.0, verified: false });
                wrong.get_or_insert(error);
            }
        }
        reporter.set(done as u64 + 1);
    }
    reporter.end();
    table("kernels", &rows, None)?;
    add(report, &rows);
    Ok(wrong)
}

fn time_stages(
    args: &BenchArgs,
    gpu: &Arc<Gpu>,
    roofs: &Roofs,
    (checkpoint, settings): (&Checkpoint, &Settings),
    reporter: &mut Reporter,
    report: &mut Value,
) -> Result<()> {
    let precision = Precision::from(args.precision).resolve(gpu.is_cpu());
    let mut peak = 0;
    for (kind, key) in [(Stage::Denoise, "step_seconds"), (Stage::Decode, "decode_seconds")] {
        let mut progress = |what: &str| reporter.begin(what, 0, Unit::Pieces);
        let model = (checkpoint, settings, precision);
        let timed = stage(kind, gpu, model, roofs, args.runs, &mut progress)?;
        reporter.end();
        let batch = if kind == Stage::Denoise && settings.guided { 2 } else { 1 };
        let (width, height, name) = (settings.width, settings.height, &checkpoint.name);
        let what = format!("{name}, {width} x {height} pixels, batch {batch}, {}", precision.name());
        show(&what, &timed)?;
        report[key] = timed.whole.seconds.into();
        for rows in [std::slice::from_ref(&timed.whole), &timed.scopes, &timed.kernels] {
            add(report, rows);
        }
        peak = peak.max(timed.bytes);
    }
    report["peak_bytes"] = peak.into();
    report["model"] = checkpoint.name.as_str().into();
    report["size"] = json!([settings.width, settings.height]);
    report["precision"] = precision.name().into();
    report["runs"] = args.runs.into();
    Ok(())
}

fn add(report: &mut Value, rows: &[Row]) {
    if let Some(list) = report["rows"].as_array_mut() {
        list.extend(rows.iter().map(Row::json));
    }
}

fn show(what: &str, timed: &StageReport) -> Result<()> {
    let Row { name, seconds, flops, .. } = &timed.whole;
    let rates = format!("{:.2} GFLOP, {:.2} GFLOP/s", *flops as f64 / 1e9, timed.whole.gflops());
    let share = timed.whole.share() * 100.0;
    print_line(&format!("\n{name}: {what}: {seconds:.4} s, {rates}, {share:.0} % of the roof"))?;
    print_line(&format!("verified; {} on the adapter", size(timed.bytes)))?;
    let total = timed.scopes.iter().map(|row| row.seconds).sum();
    table("by place (each layer waited for)", &timed.scopes, Some(total))?;
    table("by kernel", &timed.kernels, Some(total))
}

/// Rows for people; with `total` also each one's share of that time.
fn table(title: &str, rows: &[Row], total: Option<f64>) -> Result<()> {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(title.len());
    let time = if total.is_some() { "    time" } else { "" };
    print_line(&format!("{title:<width$}   seconds{time}   GFLOP/s      GB/s   roof"))?;
    for row in rows {
        let time = total.map_or_else(String::new, |total| format!("  {:>4.0} %", row.seconds / total * 100.0));
        let (name, seconds, gflops, gbps) = (&row.name, row.seconds, row.gflops(), row.gbps());
        let share = row.share() * 100.0;
        let note = if row.verified { "" } else { "  WRONG, not timed" };
        print_line(&format!("{name:<width$}{seconds:>10.5}{time}{gflops:>10.2}{gbps:>10.2}{share:>5.0} %{note}"))?;
    }
    Ok(())
}
