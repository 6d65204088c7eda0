//! The pipeline as `scumble generate` drives it: opening the model and the adapter, telling progress.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::cli::args::{GenerateArgs, PrecisionArg};
use crate::cli::generate::{Painter, Picture};
use crate::cli::latents::Dump;
use crate::cli::model_hash::HashSource;
use crate::cli::progress::{Reporter, Unit};
use crate::cli::systems::OpenedChain;
use crate::cli::{cache, tune};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, GpuOptions};
use crate::pipelines::{Drawing, Event, Precision, Request, System, TileSide, Tiling, Variation};
use crate::sampling::{SamplerKind, ScheduleKind, published};
use crate::weights::checkpoint::{Checkpoint, CheckpointOptions};

/// A system on an adapter, with the stages that the last picture left loaded.
struct Studio {
    system: Arc<dyn System>,
    hash: HashSource,
    pictures: u32,
    drawing: Option<Box<dyn Drawing>>,
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

/// The adapter that `--adapter` names, with the developer switches of the environment and the pipelines that were kept.
pub fn open_gpu(adapter: Option<&str>) -> Result<Arc<Gpu>> {
    let (adapter, cache_dir) = (adapter.map(str::to_owned), cache::directory());
    let options = GpuOptions { adapter, cache_dir, ..GpuOptions::from_environment() };
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

/// Opens model and adapter as the command asks for.
pub fn load(args: &GenerateArgs, reporter: &mut Reporter) -> Result<Box<dyn Painter>> {
    args.sampler.as_deref().map(SamplerKind::from_str).transpose()?;
    let word = args.schedule.as_deref().filter(|word| published::find(word).is_none());
    word.map(ScheduleKind::from_str).transpose()?;
    Tiling::from_environment(&args.vae_tiling)?;
    TileSide::from_str(&args.tile)?;
    reporter.begin("opening the model", 0, Unit::Pieces);
    let (opened, hash) = OpenedChain::open(args)?;
    reporter.begin("opening the adapter", 0, Unit::Pieces);
    let gpu = open_gpu(args.adapter.as_deref())?;
    reporter.end();
    let precision = Precision::from(args.precision).resolve(gpu.is_cpu());
    tune::settle(&gpu, precision, args.no_tune, reporter)?;
    reporter.line(&format!("adapter: {}, {}", gpu.describe(), precision.name()));
    let system = opened.on(gpu, precision, args)?;
    Ok(Box::new(Studio { system, hash, pictures: args.batch, drawing: None }))
}

impl Painter for Studio {
    fn model_name(&self) -> String {
        self.system.name().to_owned()
    }

    fn hash_source(&self) -> HashSource {
        self.hash.clone()
    }

    fn draw(&mut self, request: &Request, reporter: &mut Reporter, dump: Option<&mut Dump>) -> Result<Picture> {
        let keep = dump.is_some();
        let drawing = match self.drawing.take() {
            Some(mut drawing) => {
                let (seed, latents, image) = (request.seed, request.latents.clone(), request.image.clone());
                drawing.again(Variation { seed, latents, image }, keep)?;
                drawing
            }
            None => Arc::clone(&self.system).draw(request.clone(), self.pictures, keep)?,
        };
        let drawing = self.drawing.insert(drawing);
        let picture = follow(drawing.as_mut(), reporter)?;
        if let Some(dump) = dump {
            drawing.take_dump().into_iter().for_each(|(name, tensor)| dump.push(name, tensor));
        }
        Ok(Picture { width: picture.width, height: picture.height, rgb: picture.rgb, summary: drawing.summary() })
    }
}

/// Drives a drawing to its picture and tells `reporter` how it goes.
pub fn follow(drawing: &mut dyn Drawing, reporter: &mut Reporter) -> Result<crate::pipelines::Picture> {
    for event in drawing {
        match event? {
            Event::Stage { what, steps, .. } => {
                let unit = if steps > 0 { Unit::Steps } else { Unit::Pieces };
                reporter.begin(what, steps as u64, unit);
            }
            Event::Step(done, _) => reporter.set(done as u64),
            Event::Note(note) => reporter.line(&note),
            Event::Picture(picture) => return Ok(picture),
        }
    }
    Err(Error::new("the drawing ended without a picture"))
}
