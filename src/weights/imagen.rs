//! Opening the stages of DeepFloyd IF: diffusers directories of `IFPipeline` and `IFSuperResolutionPipeline`.

use std::path::Path;

use serde_json::Value;

use super::checkpoint::Part;
use super::files::Files;
use super::index::{DIFFUSERS_STEM, Index, TRANSFORMERS_STEM, read_index};
use super::keys;
use super::t5::{T5Part, t5_part};
use crate::error::{Error, Result};
use crate::models::config::{ClassEmbedding, UnetConfig};

/// What a request leaves open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImagenDefaults {
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Noise added to the picture that is enlarged, in steps of its schedule.
    pub noise_level: u32,
}

/// One stage: a UNet over pixels, and what it is told.
pub struct ImagenStage {
    /// The directory's name.
    pub name: String,
    /// The text encoder and its tokenizer; a stage without takes the vectors of another.
    pub text: Option<T5Part>,
    /// The UNet.
    pub unet: Part<UnetConfig>,
    /// The scheduler's config.
    pub scheduler: Value,
    /// The schedule of the noise that is added to the picture, where the stage enlarges one.
    pub noising: Option<Value>,
    /// What a request leaves open.
    pub defaults: ImagenDefaults,
    /// The files of the UNet's tensors, by which the model is identified.
    pub files: Vec<std::path::PathBuf>,
}

impl ImagenStage {
    /// Opens the directory at `path`. Headers are read; tensors are not.
    ///
    /// # Errors
    /// Missing or broken files, a config that scumble does not implement.
    pub fn open(path: &Path) -> Result<Self> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self::from_files(&Files::Directory(path.to_path_buf()), name)
    }

    pub(super) fn from_files(files: &Files, name: String) -> Result<Self> {
        let index = read_index(files)?;
        let enlarges = match index.class_name() {
            "IFPipeline" => false,
            "IFSuperResolutionPipeline" => true,
            other => {
                let expected = "IFPipeline or IFSuperResolutionPipeline";
                return Err(index.unsupported("_class_name", expected, other));
            }
        };
        // The checker and the watermark change the finished picture; scumble has neither.
        let mut known = vec![
            "unet",
            "scheduler",
            "text_encoder",
            "tokenizer",
            "safety_checker",
            "feature_extractor",
            "watermarker",
        ];
        if enlarges {
            known.push("image_noising_scheduler");
        }
        index.refuse_parts_but(&known)?;
        let (config, place) = index.config("unet", &["UNet2DConditionModel"])?;
        let unet = Part {
            config: UnetConfig::from_json(&config, &place)?,
            weights: index.source("unet", DIFFUSERS_STEM, keys::unet)?,
        };
        check_unet(&unet.config, enlarges, &place)?;
        let text = index.has_part("text_encoder").then(|| t5_part(&index, TRANSFORMERS_STEM)).transpose()?;
        if let Some(text) = &text {
            check_widths(&unet.config, text.config.width, &place)?;
        }
        let noising = enlarges.then(|| index.scheduler("image_noising_scheduler")).transpose()?;
        let defaults = if enlarges {
            ImagenDefaults { steps: 50, guidance_scale: 4.0, noise_level: 250 }
        } else {
            ImagenDefaults { steps: 100, guidance_scale: 7.0, noise_level: 0 }
        };
        let scheduler = index.scheduler("scheduler")?;
        let files = paths(&index)?;
        Ok(Self { name, text, unet, scheduler, noising, defaults, files })
    }

    /// Whether it enlarges a picture.
    pub fn enlarges(&self) -> bool {
        self.noising.is_some()
    }
}

fn paths(index: &Index<'_>) -> Result<Vec<std::path::PathBuf>> {
    if index.seed.is_some() {
        return Ok(Vec::new());
    }
    Ok(index.files.weights("unet", DIFFUSERS_STEM)?.iter().map(|file| file.place().into()).collect())
}

/// What the pipeline gives the UNet: a sample, or one and a picture; text; a noise level with the latter.
fn check_unet(config: &UnetConfig, enlarges: bool, place: &str) -> Result<()> {
    let inputs = if enlarges { 6 } else { 3 };
    let class = config.class;
    let fits = if enlarges { matches!(class, Some(ClassEmbedding::Timestep)) } else { class.is_none() };
    let wrong = |field: &str, expected: String, found: String| {
        Err(Error::new("unsupported config").at(format!("{place}: `{field}`")).expected(expected).found(found))
    };
    if config.in_channels != inputs {
        return wrong("in_channels", inputs.to_string(), config.in_channels.to_string());
    }
    if config.out_channels != 6 {
        return wrong("out_channels", "6".to_owned(), config.out_channels.to_string());
    }
    if !fits {
        return wrong("class_embed_type", if enlarges { "timestep" } else { "null" }.to_owned(), format!("{class:?}"));
    }
    if config.text_width().is_none() || config.image_width().is_some() || config.text_time.is_some() {
        return wrong("encoder_hid_dim_type", "a UNet that reads text alone".to_owned(), "another".to_owned());
    }
    Ok(())
}

/// The UNet must take vectors of the text encoder's width.
pub fn check_widths(config: &UnetConfig, width: usize, place: &str) -> Result<()> {
    match config.text_width() {
        Some(wanted) if wanted != width => Err(Error::new("text encoder and UNet do not fit each other")
            .at(place)
            .expected(format!("vectors of {wanted} channels"))
            .found(width)),
        _ => Ok(()),
    }
}
