//! From what `--model` names to a system on an adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::args::GenerateArgs;
use crate::cli::model_hash::HashSource;
use crate::cli::painter::open_model;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::pipelines::{Dalle, Imagen, StableDiffusion, System, Tiling};
use crate::tensor::DType;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::dalle::DalleCheckpoint;
#[cfg(feature = "embedded-model")]
use crate::weights::embedded_dalle;
#[cfg(feature = "embedded-model")]
use crate::weights::embedded_imagen;
use crate::weights::imagen::ImagenStage;
use crate::weights::kind::ModelKind;

/// A model whose configs were read and checked, before there is an adapter.
pub enum Opened {
    /// Stable Diffusion.
    StableDiffusion(Box<Checkpoint>),
    /// DALL-E mini or mega.
    Dalle(Box<DalleCheckpoint>),
    /// Stages of DeepFloyd IF, one after the other.
    Imagen(Vec<ImagenStage>),
}

impl Opened {
    /// Opens what the command names, and tells what its hash is made from.
    pub fn open(args: &GenerateArgs) -> Result<(Self, HashSource)> {
        let kind = args.model.as_deref().map(kind_of).transpose()?.unwrap_or(ModelKind::StableDiffusion);
        refuse_options(args, kind)?;
        match kind {
            ModelKind::StableDiffusion => {
                let (checkpoint, hash) = open_model(args.model.as_deref(), args.prediction_type.as_deref())?;
                Ok((Self::StableDiffusion(Box::new(checkpoint)), hash))
            }
            ModelKind::DalleMini => {
                let path = args.model.as_deref().unwrap_or_else(|| Path::new(""));
                let (checkpoint, hash) = open_dalle(path, args.vqgan.as_deref())?;
                Ok((Self::Dalle(Box::new(checkpoint)), hash))
            }
            ModelKind::Imagen | ModelKind::ImagenSuperResolution => {
                let (stages, hash) = open_imagen(args.model.as_deref().unwrap_or_else(|| Path::new("")), &args.then)?;
                Ok((Self::Imagen(stages), hash))
            }
            ModelKind::Karlo | ModelKind::Kandinsky | ModelKind::LatentUpscaler | ModelKind::Esrgan => {
                Err(Error::new("unsupported model")
                    .at("--model")
                    .expected("Stable Diffusion, DALL-E mini or DeepFloyd IF")
                    .found(kind))
            }
        }
    }

    /// The system on `gpu`.
    pub fn on(self, gpu: Arc<Gpu>, precision: DType, args: &GenerateArgs) -> Result<Arc<dyn System>> {
        match self {
            Self::Imagen(stages) => Ok(Arc::new(Imagen::new(gpu, stages, precision)?)),
            Self::Dalle(checkpoint) => Ok(Arc::new(Dalle::new(gpu, *checkpoint, precision))),
            Self::StableDiffusion(checkpoint) => {
                let tiling = Tiling::from_environment(&args.vae_tiling)?;
                Ok(Arc::new(StableDiffusion::new(gpu, *checkpoint, precision).with_tiling(tiling)))
            }
        }
    }
}

/// An option of another kind of model must not pass unseen. Those that a request carries are the systems' own matter.
fn refuse_options(args: &GenerateArgs, kind: ModelKind) -> Result<()> {
    let imagen = matches!(kind, ModelKind::Imagen | ModelKind::ImagenSuperResolution);
    let given = [
        ("--vqgan", args.vqgan.is_some() && kind != ModelKind::DalleMini, "DALL-E mini and mega"),
        ("--then", !args.then.is_empty() && !imagen, "the stages of DeepFloyd IF"),
        ("--prediction-type", args.prediction_type.is_some() && kind != ModelKind::StableDiffusion, "Stable Diffusion"),
        ("--vae-tiling", args.vae_tiling != "auto" && kind != ModelKind::StableDiffusion, "Stable Diffusion"),
    ];
    match given.into_iter().find(|(_, given, _)| *given) {
        None => Ok(()),
        Some((option, _, whose)) => Err(Error::usage("an option of other models")
            .at(option)
            .expected(format!("a model of {whose}"))
            .found(kind)),
    }
}

/// A DALL-E by its built-in name or in a directory, and what its hash is made from.
pub fn open_dalle(path: &Path, vqgan: Option<&Path>) -> Result<(DalleCheckpoint, HashSource)> {
    #[cfg(feature = "embedded-model")]
    if path.as_os_str() == embedded_dalle::NAME && !path.exists() {
        return Ok((embedded_dalle::open()?, HashSource::Bytes(embedded_dalle::BART)));
    }
    let checkpoint = DalleCheckpoint::open(path, vqgan)?;
    let hash = HashSource::Files(vec![checkpoint.file.clone().into()]);
    Ok((checkpoint, hash))
}

/// The stage of an Imagen in a directory, or both of the built-in one, and those that follow, and what their hash is made from.
pub fn open_imagen(path: &Path, then: &[PathBuf]) -> Result<(Vec<ImagenStage>, HashSource)> {
    #[cfg(feature = "embedded-model")]
    if path.as_os_str() == embedded_imagen::NAME && !path.exists() {
        let mut stages = embedded_imagen::open()?;
        stages.extend(then.iter().map(|path| ImagenStage::open(path)).collect::<Result<Vec<_>>>()?);
        return Ok((stages, HashSource::Bytes(embedded_imagen::UNET)));
    }
    let mut stages = vec![ImagenStage::open(path)?];
    let hash = HashSource::Files(stages[0].files.clone());
    stages.extend(then.iter().map(|path| ImagenStage::open(path)).collect::<Result<Vec<_>>>()?);
    Ok((stages, hash))
}

/// The kind of a model by its built-in name or by its path.
pub fn kind_of(model: &Path) -> Result<ModelKind> {
    match model.to_str() {
        Some("emoji") if !model.exists() => Ok(ModelKind::StableDiffusion),
        #[cfg(feature = "embedded-model")]
        Some(embedded_dalle::NAME) if !model.exists() => Ok(ModelKind::DalleMini),
        #[cfg(feature = "embedded-model")]
        Some(embedded_imagen::NAME) if !model.exists() => Ok(ModelKind::Imagen),
        _ => ModelKind::of(model),
    }
}
