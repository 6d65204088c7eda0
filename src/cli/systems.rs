//! From what `--model` names to a system on an adapter.

use std::path::Path;
use std::sync::Arc;

use crate::cli::args::GenerateArgs;
use crate::cli::model_hash::HashSource;
use crate::cli::painter::open_model;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::pipelines::chain::no_enlarger;
use crate::pipelines::{
    Chain, Dalle, Esrgan, Imagen, Kandinsky, Karlo, LatentUpscaler, Link, StableDiffusion, System, Tiling,
};
use crate::tensor::DType;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::dalle::DalleCheckpoint;
#[cfg(feature = "embedded-model")]
use crate::weights::embedded_dalle;
#[cfg(feature = "embedded-model")]
use crate::weights::embedded_imagen;
use crate::weights::esrgan::EsrganCheckpoint;
use crate::weights::imagen::ImagenStage;
use crate::weights::kandinsky::KandinskyCheckpoint;
use crate::weights::karlo::KarloCheckpoint;
use crate::weights::kind::ModelKind;
use crate::weights::latent_upscaler::LatentUpscalerCheckpoint;

/// A model whose configs were read and checked, before there is an adapter.
pub enum Opened {
    /// Stable Diffusion.
    StableDiffusion(Box<Checkpoint>),
    /// DALL-E mini or mega.
    Dalle(Box<DalleCheckpoint>),
    /// Stages of DeepFloyd IF, one after the other.
    Imagen(Vec<ImagenStage>),
    /// Karlo.
    Karlo(Box<KarloCheckpoint>),
    /// Kandinsky 2.2.
    Kandinsky(Box<KandinskyCheckpoint>),
    /// Stable Diffusion's x4 upscaler.
    LatentUpscaler(Box<LatentUpscalerCheckpoint>),
    /// An upscaler of ESRGAN's family.
    Esrgan(Box<EsrganCheckpoint>),
}

/// What a command names: a model, and those that enlarge its picture, one after the other.
pub struct OpenedChain(Vec<(Opened, ModelKind)>);

impl OpenedChain {
    /// Opens what the command names, and tells what its hash is made from: the first model.
    pub fn open(args: &GenerateArgs) -> Result<(Self, HashSource)> {
        let path = args.model.as_deref();
        let enlarges = args.image.is_some();
        let kind = path.map(|path| if enlarges { enlarger_of(path) } else { kind_of(path) }).transpose()?;
        let kind = kind.unwrap_or(ModelKind::StableDiffusion);
        if enlarges && !kind.takes_picture() {
            return Err(no_enlarger("--model", &kind.to_string()));
        }
        let later = args.then.iter().map(|path| Ok((path, enlarger_of(path)?))).collect::<Result<Vec<_>>>()?;
        if let Some((path, kind)) = later.iter().find(|(_, kind)| !kind.takes_picture()) {
            return Err(no_enlarger("--then", &format!("{}, {kind}", path.display())));
        }
        let kinds: Vec<ModelKind> = std::iter::once(kind).chain(later.iter().map(|(_, kind)| *kind)).collect();
        refuse_options(args, &kinds)?;
        let (first, hash) = Opened::open(path, kind, args)?;
        let mut links = vec![(first, kind)];
        for (path, kind) in later {
            match links.last_mut() {
                // Stages of DeepFloyd IF share text vectors and generator.
                Some((Opened::Imagen(stages), _)) if kind == ModelKind::ImagenSuperResolution => {
                    stages.extend(open_enlarging_stage(path, false)?.0);
                }
                _ => links.push((Opened::open(Some(path), kind, args)?.0, kind)),
            }
        }
        Ok((Self(links), hash))
    }

    /// The models and their kinds.
    pub fn links(&self) -> &[(Opened, ModelKind)] {
        &self.0
    }

    /// The system on `gpu`.
    pub fn on(self, gpu: Arc<Gpu>, precision: DType, args: &GenerateArgs) -> Result<Arc<dyn System>> {
        let mut links = Vec::new();
        for (opened, kind) in self.0 {
            let stages = opened.stages();
            links.push(Link { system: opened.on(Arc::clone(&gpu), precision, args)?, kind, stages });
        }
        match links.pop() {
            Some(only) if links.is_empty() => Ok(only.system),
            last => {
                links.extend(last);
                Ok(Arc::new(Chain::new(gpu, links)?))
            }
        }
    }
}

impl Opened {
    /// Opens a model of this kind, and tells what its hash is made from.
    fn open(path: Option<&Path>, kind: ModelKind, args: &GenerateArgs) -> Result<(Self, HashSource)> {
        let given = path.unwrap_or_else(|| Path::new(""));
        match kind {
            ModelKind::StableDiffusion => {
                let (checkpoint, hash) = open_model(path, args.prediction_type.as_deref())?;
                Ok((Self::StableDiffusion(Box::new(checkpoint)), hash))
            }
            ModelKind::DalleMini => {
                let (checkpoint, hash) = open_dalle(given, args.vqgan.as_deref())?;
                Ok((Self::Dalle(Box::new(checkpoint)), hash))
            }
            ModelKind::Imagen => {
                let (stages, hash) = open_imagen(given)?;
                Ok((Self::Imagen(stages), hash))
            }
            ModelKind::ImagenSuperResolution => {
                let (stages, hash) = open_enlarging_stage(given, true)?;
                Ok((Self::Imagen(stages), hash))
            }
            ModelKind::LatentUpscaler => {
                let checkpoint = LatentUpscalerCheckpoint::open(given)?;
                Ok((Self::LatentUpscaler(Box::new(checkpoint)), HashSource::of_checkpoint(given)))
            }
            ModelKind::Esrgan => {
                let checkpoint = EsrganCheckpoint::open(given)?;
                Ok((Self::Esrgan(Box::new(checkpoint)), HashSource::of_checkpoint(given)))
            }
            ModelKind::Karlo => {
                let checkpoint = KarloCheckpoint::open(given)?;
                let hash = HashSource::Files(checkpoint.files.clone());
                Ok((Self::Karlo(Box::new(checkpoint)), hash))
            }
            ModelKind::Kandinsky => {
                let checkpoint = KandinskyCheckpoint::open(given, args.prior.as_deref())?;
                let hash = HashSource::Files(checkpoint.files.clone());
                Ok((Self::Kandinsky(Box::new(checkpoint)), hash))
            }
        }
    }

    /// Opens the model that the command names, whatever it draws from; its kind.
    pub fn alone(args: &GenerateArgs) -> Result<(Self, ModelKind)> {
        let path = args.model.as_deref();
        let kind = path.map(kind_of).transpose()?.unwrap_or(ModelKind::StableDiffusion);
        refuse_options(args, &[kind])?;
        Ok((Self::open(path, kind, args)?.0, kind))
    }

    /// The model's name, without folders and endings.
    pub fn name(&self) -> &str {
        match self {
            Self::StableDiffusion(checkpoint) => &checkpoint.name,
            Self::Dalle(checkpoint) => &checkpoint.name,
            Self::Imagen(stages) => &stages[0].name,
            Self::Karlo(checkpoint) => &checkpoint.name,
            Self::Kandinsky(checkpoint) => &checkpoint.name,
            Self::LatentUpscaler(checkpoint) => &checkpoint.model.name,
            Self::Esrgan(checkpoint) => &checkpoint.name,
        }
    }

    /// Stages that a chain counts.
    pub fn stages(&self) -> usize {
        match self {
            Self::Imagen(stages) => stages.len(),
            Self::Dalle(_)
            | Self::StableDiffusion(_)
            | Self::Karlo(_)
            | Self::Kandinsky(_)
            | Self::LatentUpscaler(_)
            | Self::Esrgan(_) => 1,
        }
    }

    /// The system on `gpu`.
    fn on(self, gpu: Arc<Gpu>, precision: DType, args: &GenerateArgs) -> Result<Arc<dyn System>> {
        match self {
            Self::Imagen(stages) => Ok(Arc::new(Imagen::new(gpu, stages, precision)?)),
            Self::Karlo(checkpoint) => Ok(Arc::new(Karlo::new(gpu, *checkpoint, precision))),
            Self::Kandinsky(checkpoint) => Ok(Arc::new(Kandinsky::new(gpu, *checkpoint, precision))),
            Self::Dalle(checkpoint) => Ok(Arc::new(Dalle::new(gpu, *checkpoint, precision))),
            Self::LatentUpscaler(checkpoint) => {
                let (tile, tiling) = (args.tile.parse()?, Tiling::from_environment(&args.vae_tiling)?);
                Ok(Arc::new(LatentUpscaler::new(gpu, *checkpoint, precision).with_tiles(tile, tiling)))
            }
            Self::Esrgan(checkpoint) => {
                let (tile, tiling) = (args.tile.parse()?, Tiling::from_environment("auto")?);
                Ok(Arc::new(Esrgan::new(gpu, *checkpoint, precision).with_tiles(tile, tiling)))
            }
            Self::StableDiffusion(checkpoint) => {
                let tiling = Tiling::from_environment(&args.vae_tiling)?;
                Ok(Arc::new(StableDiffusion::new(gpu, *checkpoint, precision).with_tiling(tiling)))
            }
        }
    }
}

/// An option of another kind of model must not pass unseen. Those that a request carries are the systems' own matter.
fn refuse_options(args: &GenerateArgs, kinds: &[ModelKind]) -> Result<()> {
    let first = kinds[0];
    let decodes = kinds.iter().any(|kind| matches!(kind, ModelKind::StableDiffusion | ModelKind::LatentUpscaler));
    let tiles = kinds.iter().any(|kind| matches!(kind, ModelKind::LatentUpscaler | ModelKind::Esrgan));
    let stable = first == ModelKind::StableDiffusion;
    let given = [
        ("--prior", args.prior.is_some() && first != ModelKind::Kandinsky, "Kandinsky 2.2"),
        ("--vqgan", args.vqgan.is_some() && first != ModelKind::DalleMini, "DALL-E mini and mega"),
        ("--prediction-type", args.prediction_type.is_some() && !stable, "Stable Diffusion"),
        ("--tile", args.tile != "auto" && !tiles, "the x4 upscaler or ESRGAN's family"),
        ("--vae-tiling", args.vae_tiling != "auto" && !decodes, "Stable Diffusion"),
    ];
    match given.into_iter().find(|(_, given, _)| *given) {
        None => Ok(()),
        Some((option, _, whose)) => Err(Error::usage("an option of other models")
            .at(option)
            .expected(format!("a model of {whose}"))
            .found(first)),
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

/// The stage of an Imagen in a directory, or both of the built-in one, and what their hash is made from.
pub fn open_imagen(path: &Path) -> Result<(Vec<ImagenStage>, HashSource)> {
    #[cfg(feature = "embedded-model")]
    if is_embedded_imagen(path) {
        return Ok((embedded_imagen::open()?, HashSource::Bytes(embedded_imagen::UNET)));
    }
    let stage = ImagenStage::open(path)?;
    let hash = HashSource::Files(stage.files.clone());
    Ok((vec![stage], hash))
}

/// An Imagen's stage that enlarges, in a directory or the built-in one, and what its hash is made from. The built-in one takes
/// the first stage's text encoder where it is `alone`.
fn open_enlarging_stage(path: &Path, alone: bool) -> Result<(Vec<ImagenStage>, HashSource)> {
    let (mut stages, hash) = open_imagen(path)?;
    if stages.len() > 1 {
        let text = stages[0].text.take();
        stages.drain(..1);
        stages[0].text = text.filter(|_| alone);
    }
    Ok((stages, hash))
}

#[cfg(feature = "embedded-model")]
fn is_embedded_imagen(path: &Path) -> bool {
    path.as_os_str() == embedded_imagen::NAME && !path.exists()
}

/// The kind of a model that enlarges a picture: the built-in Imagen's is its second stage.
fn enlarger_of(model: &Path) -> Result<ModelKind> {
    #[cfg(feature = "embedded-model")]
    if is_embedded_imagen(model) {
        return Ok(ModelKind::ImagenSuperResolution);
    }
    kind_of(model)
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
