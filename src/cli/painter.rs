//! The pipeline as `scumble generate` drives it: opening the model and the adapter, telling progress.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::cli::args::{GenerateArgs, PrecisionArg};
use crate::cli::generate::{Painter, Picture};
use crate::cli::info;
use crate::cli::latents::Dump;
use crate::cli::model_hash::HashSource;
use crate::cli::progress::{Reporter, Unit};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, GpuOptions};
use crate::pipelines::{Event, Generation, Precision, Request, Settings, StableDiffusion, Tiling};
use crate::sampling::{SamplerKind, ScheduleKind};
use crate::weights::checkpoint::{Checkpoint, CheckpointOptions};

/// A model on an adapter, with the stages that the last picture left loaded.
struct Studio {
    model: Arc<StableDiffusion>,
    name: String,
    hash: HashSource,
    pictures: u32,
    generation: Option<Generation>,
}

/// Opens the model that `--model` names, or the embedded one, and its name for the picture's text.
pub fn open_model(model: Option<&Path>, prediction_type: Option<&str>) -> Result<(Checkpoint, HashSource)> {
    let embedded = model.is_none_or(|path| path.as_os_str() == "emoji" && !path.exists());
    if embedded {
        #[cfg(feature = "embedded-model")]
        {
            use crate::weights::embedded;
            let mut checkpoint = embedded::open()?;
            if let Some(kind) = prediction_type {
                checkpoint.scheduler["prediction_type"] = kind.into();
            }
            return Ok((checkpoint, HashSource::Bytes(embedded::UNET)));
        }
        #[cfg(not(feature = "embedded-model"))]
        return Err(Error::usage("no model").at("--model").hint("a diffusers directory or a .safetensors file"));
    }
    let path = model.unwrap_or_else(|| Path::new(""));
    let options = CheckpointOptions { prediction_type: prediction_type.map(str::to_owned) };
    Ok((Checkpoint::open_with(path, &options)?, HashSource::of_checkpoint(path)))
}

/// The adapter that `--adapter` names, with the developer switches of the environment.
pub fn open_gpu(adapter: Option<&str>) -> Result<Arc<Gpu>> {
    let options = GpuOptions { adapter: adapter.map(str::to_owned), ..GpuOptions::from_environment() };
    Ok(Arc::new(Gpu::open(&options)?))
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::Auto => Precision::Auto,
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::F16 => Precision::F16,
        }
    }
}

/// What would run for `request`, as text for a terminal: sizes, schedule and memory. Needs no adapter.
pub fn explain(args: &GenerateArgs, request: &Request) -> Result<String> {
    let (checkpoint, _) = open_model(args.model.as_deref(), args.prediction_type.as_deref())?;
    let settings = Settings::resolve(request, &checkpoint)?;
    let Settings { width, height, steps, guidance_scale, guidance_rescale, clip_skip, scheduler, guided } = &settings;
    let program = scheduler.program(*steps as usize, None)?;
    let calls = if *guided { "two predictions a step" } else { "off" };
    let mut text = format!("model: {} ({})\n", checkpoint.name, checkpoint.class.name());
    text.push_str(&format!("picture: {width} x {height} pixels, steps: {steps}\n"));
    text.push_str(&format!("sampler: {}, schedule: {}\n", scheduler.sampler(), scheduler.schedule()));
    text.push_str(&format!("prediction: {}\n", info::prediction_word(scheduler.prediction_type())));
    text.push_str(&format!("guidance: {guidance_scale} ({calls}), rescale {guidance_rescale}\n"));
    text.push_str(&format!("text encoder layers left out at the end: {clip_skip}\n"));
    info::memory(&mut text, &checkpoint, &settings)?;
    text.push_str(&program.to_string());
    Ok(text)
}

/// Opens model and adapter as the command asks for.
pub fn load(args: &GenerateArgs, reporter: &mut Reporter) -> Result<Box<dyn Painter>> {
    args.sampler.as_deref().map(SamplerKind::from_str).transpose()?;
    args.schedule.as_deref().map(ScheduleKind::from_str).transpose()?;
    let tiling = Tiling::from_environment(&args.vae_tiling)?;
    reporter.begin("opening the model", 0, Unit::Pieces);
    let (checkpoint, hash) = open_model(args.model.as_deref(), args.prediction_type.as_deref())?;
    reporter.begin("opening the adapter", 0, Unit::Pieces);
    let gpu = open_gpu(args.adapter.as_deref())?;
    reporter.end();
    let precision = Precision::from(args.precision).resolve(gpu.is_cpu());
    reporter.line(&format!("adapter: {}, {}", gpu.describe(), precision.name()));
    let name = checkpoint.name.clone();
    let model = Arc::new(StableDiffusion::new(gpu, checkpoint, precision).with_tiling(tiling));
    Ok(Box::new(Studio { model, name, hash, pictures: args.batch, generation: None }))
}

impl Painter for Studio {
    fn model_name(&self) -> String {
        self.name.clone()
    }

    fn hash_source(&self) -> HashSource {
        self.hash.clone()
    }

    fn draw(&mut self, request: &Request, reporter: &mut Reporter, mut dump: Option<&mut Dump>) -> Result<Picture> {
        let keep = dump.is_some();
        match &mut self.generation {
            Some(generation) => generation.again(request.seed, request.latents.clone(), keep)?,
            None => self.generation = Some(self.model.generate(request.clone(), self.pictures, keep)?),
        }
        let Some(generation) = &mut self.generation else {
            return Err(Error::new("no generation to draw from"));
        };
        if generation.is_fresh() {
            reporter.begin("loading the text encoder", 0, Unit::Pieces);
        } else {
            reporter.begin("denoising", generation.program().evaluations.len() as u64, Unit::Steps);
        }
        while let Some(event) = generation.next() {
            match event? {
                Event::TextLoaded => reporter.begin("encoding the prompt", 0, Unit::Pieces),
                Event::TextEncoded(cut) => {
                    reporter.end();
                    for text in cut {
                        reporter
                            .line(&format!("warning: the prompt is too long for the text encoder; left out: {text:?}"));
                    }
                    reporter.begin("loading the denoiser", 0, Unit::Pieces);
                }
                Event::DenoiserLoaded(bytes) => {
                    reporter.end();
                    reporter.line(&format!("denoiser: {} MiB on the adapter", bytes >> 20));
                    reporter.begin("denoising", generation.program().evaluations.len() as u64, Unit::Steps);
                }
                Event::Step(done, count) => {
                    reporter.set(done as u64);
                    if done == count {
                        reporter.begin("loading the decoder", 0, Unit::Pieces);
                    }
                }
                Event::DecoderLoaded(tiled) => {
                    let how = if tiled { "decoding in bands of rows" } else { "decoding" };
                    reporter.begin(how, 0, Unit::Pieces);
                }
                Event::Decoded(picture) => {
                    for (name, tensor) in generation.take_dump() {
                        if let Some(dump) = dump.as_deref_mut() {
                            dump.push(name, tensor);
                        }
                    }
                    let settings = generation.settings();
                    return Ok(Picture {
                        width: picture.width,
                        height: picture.height,
                        rgb: picture.rgb,
                        steps: settings.steps,
                        guidance_scale: settings.guidance_scale,
                        sampler: settings.scheduler.sampler().to_string(),
                        schedule: settings.scheduler.schedule().to_string(),
                    });
                }
            }
        }
        Err(Error::new("the generation ended without a picture"))
    }
}
