//! `scumble bench`: the roofs of an adapter, the kernels, one UNet step and one VAE decode, a whole picture.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::bench::compare::{compare, fault};
use crate::bench::image::image;
use crate::bench::stages::{stage, word};
use crate::bench::{Roofs, Row, kernels, plot};
use crate::cli::args::{BenchArgs, BenchWhat, PrecisionArg};
use crate::cli::bench_tables as tables;
use crate::cli::progress::{Reporter, Unit};
use crate::cli::{files, painter, print_line, tune};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::cases::Case;
use crate::pipelines::inspect::Stage;
use crate::pipelines::{Precision, Request, Settings};
use crate::tensor::DType;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::published;

/// Seed of the random weights.
const SEED: u64 = 1;
/// What the picture shows, to whatever a model of random weights makes of it.
const PROMPT: &str = "a lighthouse on a cliff at dawn, oil painting";
/// Unless it was asked for, a picture is drawn only if its steps are expected to take no longer than this, in seconds.
const LONGEST_PICTURE: f64 = 60.0;

/// A model to be timed, and the picture that is asked of it.
struct Model {
    checkpoint: Checkpoint,
    random: bool,
    request: Request,
    settings: Settings,
}

/// The run: what it works on and what it has found so far.
struct Run<'a> {
    args: &'a BenchArgs,
    gpu: Arc<Gpu>,
    roofs: Roofs,
    reporter: Reporter,
    report: Value,
    rows: Vec<Row>,
    wrong: Option<Error>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    for path in [&args.json, &args.plot].into_iter().flatten() {
        files::check_writable(path)?;
    }
    let earlier = args.compare.as_deref().map(earlier).transpose()?;
    let what = |what| match args.what {
        Some(asked) => asked == what,
        None => what == BenchWhat::Kernels || args.filter.is_none(),
    };
    let mut cases = if what(BenchWhat::Kernels) { Some(cases(args)?) } else { None };
    let model = if what(BenchWhat::Step) || what(BenchWhat::Image) { Some(prepare(args)?) } else { None };
    let gpu = painter::open_gpu(args.adapter.as_deref())?;
    print_line(&format!("adapter: {}", gpu.describe()))?;
    print_line(&format!("times: {}", gpu.clock().name()))?;
    if let Some(cases) = cases.as_mut().filter(|_| !gpu.is_cpu()) {
        cases.splice(..0, kernels::large_cases(args.filter.as_deref(), dtype(args)));
    }
    let mut reporter = Reporter::stderr();
    tune::settle_for(&gpu, args.precision, args.no_tune, &mut reporter)?;
    reporter.begin("measuring the roofs", 0, Unit::Pieces);
    let measured = Roofs::measure(&gpu);
    reporter.end();
    let mut report = json!({ "adapter": gpu.describe(), "clock": gpu.clock().name(), "roofs": null, "rows": [] });
    let roofs = match measured {
        Ok(roofs) => roofs,
        Err(error) => {
            report["error"] = error.to_string().into();
            write_json(args, &report)?;
            return Err(error);
        }
    };
    tables::roofs(&roofs, gpu.limits().cooperative)?;
    report["roofs"] = roofs.json();
    report["kernels"] = gpu.limits().kernels.name().into();
    report["runs"] = args.runs.into();
    let mut run = Run { args, gpu, roofs, reporter, report, rows: Vec::new(), wrong: None };
    if let Some(cases) = &cases {
        run.time_kernels(cases)?;
    }
    if let Some(model) = model {
        run.describe(&model);
        if what(BenchWhat::Step) {
            run.time_stages(&model)?;
        }
        if what(BenchWhat::Image) && (args.what.is_some() || run.is_soon_drawn(&model)?) {
            run.time_image(model)?;
        }
    }
    run.finish(earlier.as_ref())
}

fn write_json(args: &BenchArgs, report: &Value) -> Result<()> {
    let Some(path) = &args.json else { return Ok(()) };
    files::replace_file(path, |out| writeln!(out, "{report:#}"))
}

/// The report of an earlier run.
fn earlier(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|error| Error::io("cannot read the earlier run", path, &error))?;
    let expected = "what scumble bench --json wrote";
    let broken = |found: &dyn std::fmt::Display| {
        Error::new("no report of an earlier run").at(path.display()).expected(expected).found(found)
    };
    let report: Value = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
    fault(&report).map_or(Ok(report), |found| Err(broken(&found)))
}

/// The model with its weights, and the size of its pictures.
fn prepare(args: &BenchArgs) -> Result<Model> {
    let (checkpoint, random) = open(&args.model)?;
    let (width, height) = match args.size {
        Some((width, height)) => (Some(width), Some(height)),
        None => (args.width, args.height),
    };
    let request = Request { prompt: PROMPT.into(), width, height, steps: args.steps, ..Request::default() };
    let settings = Settings::resolve(&request, &checkpoint)?;
    Ok(Model { checkpoint, random, request, settings })
}

/// A published model by its name or the embedded one, with random weights, or the model at a path with its own; and whether
/// the weights are random.
fn open(model: &str) -> Result<(Checkpoint, bool)> {
    if let Some(checkpoint) = published::random(model, SEED)? {
        return Ok((checkpoint, true));
    }
    let path = Path::new(model);
    if path.exists() {
        let weights = |part: &str| {
            let files = std::fs::read_dir(path.join(part)).into_iter().flatten().flatten();
            files.into_iter().any(|file| file.path().extension().is_some_and(|ending| ending == "safetensors"))
        };
        let bare = path.is_dir() && !weights("unet");
        return match bare {
            true => Ok((published::random_like(path, SEED)?, true)),
            false => Ok((Checkpoint::open(path)?, false)),
        };
    }
    #[cfg(feature = "embedded-model")]
    if model == crate::weights::embedded::NAME {
        return Ok((published::with_random_weights(crate::weights::embedded::open()?, SEED), true));
    }
    let known = published::names().join(", ");
    Err(Error::usage("no such model").at("--model").expected(format!("emoji, {known} or a path")).found(model))
}

/// The number format that kernels are timed in; both without.
fn dtype(args: &BenchArgs) -> Option<DType> {
    match args.precision {
        PrecisionArg::Auto => None,
        PrecisionArg::F32 => Some(DType::F32),
        PrecisionArg::F16 => Some(DType::F16),
    }
}

/// The kernels' cases that `--filter` and `--precision` leave.
fn cases(args: &BenchArgs) -> Result<Vec<Case>> {
    let cases = kernels::cases(args.filter.as_deref(), dtype(args));
    if cases.is_empty() {
        let filter = args.filter.as_deref().unwrap_or_default();
        return Err(Error::usage("no kernel of that name")
            .at("--filter")
            .expected(kernels::stems().join(", "))
            .found(filter));
    }
    Ok(cases)
}

impl Run<'_> {
    /// Notes that something was wrong; the first fault is what the command ends with.
    fn note(&mut self, error: Error) -> Result<()> {
        // After the device's own failure nothing more can be timed.
        let lost = self.gpu.check();
        self.reporter.end();
        self.reporter.line(&format!("not timed: {error}"));
        self.wrong.get_or_insert(error);
        if lost.is_err() { self.finish(None) } else { Ok(()) }
    }

    /// Times the kernels; those with a wrong result are told, not timed.
    fn time_kernels(&mut self, cases: &[Case]) -> Result<()> {
        self.reporter.begin("computing the references", 0, Unit::Pieces);
        cases.par_iter().for_each(|case| _ = case.expected());
        self.reporter.begin("kernels", cases.len() as u64, Unit::Pieces);
        let first = self.rows.len();
        for (done, case) in cases.iter().enumerate() {
            match kernels::run(case, &self.gpu, &self.roofs, self.args.runs) {
                Ok(row) => self.rows.extend(row),
                Err(error) => {
                    self.rows.push(Row::wrong(&case.name));
                    self.note(error)?;
                }
            }
            self.reporter.set(done as u64 + 1);
        }
        self.reporter.end();
        tables::rows("kernels", &self.rows[first..], None)
    }

    fn precision(&self) -> DType {
        Precision::from(self.args.precision).resolve(self.gpu.is_cpu())
    }

    fn describe(&mut self, model: &Model) {
        let Settings { width, height, steps, .. } = model.settings;
        self.report["model"] = model.checkpoint.name.as_str().into();
        self.report["weights"] = if model.random { "random" } else { "the model's" }.into();
        self.report["size"] = json!([width, height]);
        self.report["precision"] = self.precision().name().into();
        self.report["steps"] = steps.into();
    }

    /// The most bytes held at once so far.
    fn note_bytes(&mut self, bytes: u64) {
        let most = self.report["peak_bytes"].as_u64().unwrap_or(0).max(bytes);
        self.report["peak_bytes"] = most.into();
    }

    fn time_stages(&mut self, model: &Model) -> Result<()> {
        let precision = self.precision();
        let settings = &model.settings;
        for kind in [Stage::Denoise, Stage::Decode] {
            let reporter = &mut self.reporter;
            let mut progress = |what: &str| reporter.begin(what, 0, Unit::Pieces);
            let parts = (&model.checkpoint, settings, precision);
            let timed = match stage(kind, &self.gpu, parts, &self.roofs, self.args.runs, &mut progress) {
                Ok(timed) => timed,
                Err(error) => {
                    self.rows.push(Row::wrong(word(kind)));
                    self.note(error)?;
                    continue;
                }
            };
            self.reporter.end();
            let batch = if kind == Stage::Denoise && settings.guided { 2 } else { 1 };
            let (width, height, name) = (settings.width, settings.height, &model.checkpoint.name);
            let what = format!("{name}, {width} x {height} pixels, batch {batch}, {}", precision.name());
            tables::stage(&what, &timed, &self.roofs)?;
            self.report[format!("{}_seconds", word(kind))] = timed.whole.seconds.into();
            self.report[word(kind)] = timed.json(&self.roofs);
            self.rows.extend(timed.rows().cloned());
            self.note_bytes(timed.bytes);
        }
        Ok(())
    }

    /// Whether the steps of a picture that nobody asked for take less than [`LONGEST_PICTURE`].
    fn is_soon_drawn(&self, model: &Model) -> Result<bool> {
        let Some(step) = self.report["step_seconds"].as_f64() else { return Ok(false) };
        let seconds = step * f64::from(model.settings.steps);
        let soon = seconds <= LONGEST_PICTURE;
        if !soon {
            print_line(&format!(
                "\nimage: left out, its steps would take {seconds:.0} s; `scumble bench image` draws it"
            ))?;
        }
        Ok(soon)
    }

    fn time_image(&mut self, model: Model) -> Result<()> {
        let count = if self.args.runs > 1 { 2 } else { 1 };
        let precision = self.precision();
        let Model { checkpoint, request, settings, .. } = model;
        let what = format!(
            "{}, {} x {} pixels, {} steps, {}",
            checkpoint.name,
            settings.width,
            settings.height,
            settings.steps,
            precision.name()
        );
        let reporter = &mut self.reporter;
        let mut progress = |what: &str| reporter.begin(what, 0, Unit::Pieces);
        match image(&self.gpu, checkpoint, precision, &request, count, &mut progress) {
            Ok(timed) => {
                self.reporter.end();
                tables::image(&what, &timed)?;
                self.report["image_seconds"] = timed.warm.picture().into();
                self.report["image"] = timed.json();
                self.note_bytes(timed.bytes);
                Ok(())
            }
            Err(error) => self.note(error),
        }
    }

    /// Prints and writes what was asked for; the error of the first wrong result, if there was one.
    fn finish(&mut self, earlier: Option<&Value>) -> Result<()> {
        self.report["rows"] = self.rows.iter().map(Row::json).collect();
        if let Some(error) = &self.wrong {
            self.report["error"] = error.to_string().into();
        }
        if let Some(earlier) = earlier {
            tables::comparison(&compare(earlier, &self.report))?;
        }
        if let Some(path) = &self.args.plot {
            let picture = plot::roofline(&self.gpu.describe(), &self.roofs, &self.rows);
            files::replace_file(path, |out| out.write_all(picture.as_bytes()))?;
        }
        write_json(self.args, &self.report)?;
        self.wrong.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::error::ErrorKind;

    /// A wrong kernel ends the command with a failure (exit code 1), but what was right is timed and the JSON is whole.
    #[test]
    fn a_wrong_case_is_reported_and_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let words = ["scumble", "bench", "kernels", "--runs", "1", "--json", path.to_str().unwrap()];
        let Command::Bench(args) = Cli::parse_from(words).command else { panic!("no bench") };
        let gpu = painter::open_gpu(None).unwrap();
        let roofs = Roofs {
            copy: 1e9,
            kernel_copy: 1e9,
            cache_copy: 1e9,
            fma: 1e9,
            half_fma: None,
            cooperative: None,
            launch_gap: 1e-6,
            round_trip: 1e-6,
            clock: gpu.clock(),
        };
        let report = json!({ "adapter": gpu.describe(), "roofs": roofs.json(), "rows": [] });
        let reporter = Reporter::lines(Box::new(std::io::sink()));
        let mut run = Run { args: &args, gpu, roofs, reporter, report, rows: Vec::new(), wrong: None };
        let mut cases = kernels::cases(Some("roof_copy"), Some(DType::F32));
        let spoiled = cases.remove(0).spoiled();
        cases.insert(0, spoiled);
        run.time_kernels(&cases).unwrap();
        let error = run.finish(None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failure);
        let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), cases.len());
        assert_eq!((&rows[0]["verified"], &rows[0]["seconds"]), (&json!(false), &json!(0.0)));
        assert!(rows[1..].iter().all(|row| row["verified"] == true && row["seconds"].as_f64().unwrap() > 0.0));
        assert!(report["error"].as_str().unwrap().contains("roof_copy"));
    }
}
