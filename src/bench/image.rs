//! A whole picture: text encoding, all steps, decoding, and what loading takes before them.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::wrong;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::pipelines::inspect::{self, StageMemory};
use crate::pipelines::{Event, Request, StableDiffusion, Work};
use crate::tensor::DType;
use crate::weights::checkpoint::Checkpoint;

/// The parts of one picture's making, in seconds of the host's clock, up to the end of each on the adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ImageTimes {
    /// Text encoder, UNet and decoder: reading or drawing weights, uploading, compiling.
    pub loading: f64,
    /// From the request to the end of the first step.
    pub to_first_step: f64,
    /// Encoding the prompts.
    pub encoding: f64,
    /// All steps.
    pub denoising: f64,
    /// Decoding and reading the picture back.
    pub decoding: f64,
}

impl ImageTimes {
    /// The picture without loading anything.
    pub fn picture(&self) -> f64 {
        self.encoding + self.denoising + self.decoding
    }
}

/// Pictures that were drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageReport {
    /// The first, for which shaders were compiled.
    pub first: ImageTimes,
    /// The fastest of the others, for which they were there; the first if it was the only one.
    pub warm: ImageTimes,
    /// Pictures drawn.
    pub count: u32,
    /// Steps of each.
    pub steps: u32,
    /// Calls of the UNet of each; some samplers make two a step.
    pub evaluations: usize,
    /// The most bytes that were held on the adapter at once.
    pub bytes: u64,
    /// The same as foretold before anything ran.
    pub foretold: u64,
}

impl ImageReport {
    /// Steps a second.
    pub fn steps_per_second(&self) -> f64 {
        f64::from(self.steps) / self.warm.denoising.max(1e-9)
    }

    /// As `scumble bench --json` writes it.
    pub fn json(&self) -> Value {
        let times = |times: &ImageTimes| {
            json!({
                "seconds": times.picture(),
                "loading_seconds": times.loading,
                "to_first_step_seconds": times.to_first_step,
                "encoding_seconds": times.encoding,
                "denoising_seconds": times.denoising,
                "decoding_seconds": times.decoding,
            })
        };
        json!({
            "steps": self.steps,
            "evaluations": self.evaluations,
            "steps_per_second": self.steps_per_second(),
            "pictures": self.count,
            "first": times(&self.first),
            "warm": times(&self.warm),
            "bytes": self.bytes,
            "foretold_bytes": self.foretold,
        })
    }
}

/// Draws `count` pictures (at least one) of `request` and times their parts. Every picture starts from nothing loaded; all
/// must be the same, and not of one colour. `progress` is told what is being done.
///
/// # Errors
/// When a stage cannot run or the pictures are wrong.
pub fn image(
    gpu: &Arc<Gpu>,
    checkpoint: Checkpoint,
    precision: DType,
    request: &Request,
    count: u32,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageReport> {
    let model = Arc::new(StableDiffusion::new(Arc::clone(gpu), checkpoint, precision));
    gpu.reset_peak_memory();
    let (first, pixels, (steps, evaluations, foretold)) = draw(&model, gpu, request, "first picture", progress)?;
    if pixels.iter().all(|value| *value == pixels[0]) {
        return Err(wrong("the picture", "pixels that differ", format!("{} everywhere", pixels[0])));
    }
    let mut warm: Option<ImageTimes> = None;
    for _ in 1..count {
        let (times, again, _) = draw(&model, gpu, request, "next picture", progress)?;
        if again != pixels {
            return Err(wrong("the picture", "the same pixels in a second run", "others"));
        }
        if warm.is_none_or(|best| times.picture() < best.picture()) {
            warm = Some(times);
        }
    }
    let warm = warm.unwrap_or(first);
    let bytes = gpu.memory().peak;
    Ok(ImageReport { first, warm, count: count.max(1), steps, evaluations, bytes, foretold })
}

type Drawn = (ImageTimes, Vec<u8>, (u32, usize, u64));

fn draw(
    model: &Arc<StableDiffusion>,
    gpu: &Gpu,
    request: &Request,
    what: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<Drawn> {
    let start = Instant::now();
    let mut last = start;
    let mut work = Work::Loading;
    let mut times = ImageTimes::default();
    progress(what);
    let mut generation = model.generate(request.clone(), 1, false)?;
    let stages = inspect::memory(model.checkpoint(), generation.settings(), model.precision(), gpu.limits())?;
    let foretold = stages.iter().map(StageMemory::peak).max().unwrap_or(0);
    while let Some(event) = generation.next() {
        let event = event?;
        // A step is done when it is told, and the next one is under way, which waiting would hold up.
        if !matches!(event, Event::Step(..)) {
            gpu.wait()?;
        }
        let part = match work {
            Work::Loading => &mut times.loading,
            Work::Encoding => &mut times.encoding,
            Work::Generating => &mut times.denoising,
            Work::Decoding => &mut times.decoding,
        };
        *part += last.elapsed().as_secs_f64();
        last = Instant::now();
        match event {
            Event::Stage { work: next, .. } => work = next,
            Event::Step(1, _) => times.to_first_step = start.elapsed().as_secs_f64(),
            Event::Step(done, count) => progress(&format!("{what}: step {done} of {count}")),
            Event::Picture(picture) => {
                let told = (generation.settings().steps, generation.program().evaluations.len(), foretold);
                return Ok((times, picture.rgb, told));
            }
            Event::Note(_) => {}
        }
    }
    Err(Error::new("the generation ended without a picture"))
}
