//! Opening Stable Diffusion's x4 upscaler: diffusers' `StableDiffusionUpscalePipeline`, or the single file that was published.

use std::path::Path;

use serde_json::Value;

use super::checkpoint::{Checkpoint, PipelineClass, name_of};
use super::files::Files;
use super::index::{Index, read_index};
use super::{directory, original_config, single_file};
use crate::error::{Error, Result};
use crate::models::config::ClassEmbedding;

/// The most noise that diffusers' pipeline adds unless its config says otherwise.
const MOST_NOISE: u32 = 350;
/// What the pipeline makes of every VAE's `scaling_factor`.
const SCALING: f64 = 0.08333;

/// An upscaler, opened: configs read and checked, weights mapped but not touched.
pub struct LatentUpscalerCheckpoint {
    /// Its parts, which are those of Stable Diffusion 2.x; the UNet takes three channels and a class label more.
    pub model: Checkpoint,
    /// The schedule of the noise that is added to the picture.
    pub noising: Value,
    /// The largest `--noise-level`.
    pub most_noise: u32,
}

impl LatentUpscalerCheckpoint {
    /// Opens a directory or a single file. Headers are read; tensors are not.
    ///
    /// # Errors
    /// Missing or broken files, another model, a config that scumble does not implement.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::from_index(&read_index(&Files::Directory(path.to_path_buf()))?, name_of(path));
        }
        let model = single_file::open(path, name_of(path))?;
        if model.class != PipelineClass::LatentUpscaler {
            let error = Error::new("unsupported model").at(path.display()).expected("the x4 upscaler");
            return Err(error.found(model.class.name()));
        }
        Ok(Self { model: scaled(model), noising: original_config::low_res_scheduler(), most_noise: MOST_NOISE })
    }

    /// Opens the parts that the index names.
    pub(super) fn from_index(index: &Index<'_>, name: String) -> Result<Self> {
        let class = PipelineClass::LatentUpscaler;
        if index.class_name() != class.name() {
            return Err(index.unsupported("_class_name", class.name(), index.class_name()));
        }
        // The last three change or check the finished picture.
        index.refuse_parts_but(&[
            "unet",
            "vae",
            "text_encoder",
            "tokenizer",
            "scheduler",
            "low_res_scheduler",
            "safety_checker",
            "feature_extractor",
            "watermarker",
        ])?;
        let most_noise = match index.parts.get("max_noise_level") {
            None => MOST_NOISE,
            Some(value) => value
                .as_u64()
                .and_then(|level| u32::try_from(level).ok())
                .ok_or_else(|| index.unsupported("max_noise_level", "a whole number", &value.to_string()))?,
        };
        let model = directory::open_parts(index, name, class)?;
        Ok(Self { model: scaled(model), noising: index.scheduler("low_res_scheduler")?, most_noise })
    }

    /// Pixels of the enlarged picture per pixel of the given one.
    pub fn factor(&self) -> u32 {
        self.model.vae.config.scale() as u32
    }

    /// The levels of noise that the UNet has a class for.
    pub fn classes(&self) -> u32 {
        match self.model.unet.config.class {
            Some(ClassEmbedding::Table { count }) => count as u32,
            _ => 0,
        }
    }
}

/// diffusers' pipeline sets the autoencoder's scale whatever its config says, and knows no shift.
fn scaled(mut model: Checkpoint) -> Checkpoint {
    (model.vae.config.scaling_factor, model.vae.config.shift_factor) = (SCALING, 0.0);
    model
}

/// The UNet must take latent and picture, a class label and the text encoder's vectors, and predict a latent.
pub(super) fn check_fit(checkpoint: &Checkpoint, place: &str) -> Result<()> {
    let unet = &checkpoint.unet.config;
    let latent = checkpoint.vae.config.latent_channels;
    let fault = |field: &str, expected: String, found: String| {
        let error = Error::new("parts of the x4 upscaler that do not fit").at(format!("{place}: the UNet's `{field}`"));
        Err(error.expected(expected).found(found))
    };
    if unet.in_channels != latent + 3 {
        let expected = format!("{} (the latent's {latent} and a picture's 3)", latent + 3);
        return fault("in_channels", expected, unet.in_channels.to_string());
    }
    if unet.out_channels != latent {
        return fault("out_channels", latent.to_string(), unet.out_channels.to_string());
    }
    if !matches!(unet.class, Some(ClassEmbedding::Table { .. })) {
        return fault("num_class_embeds", "a number of noise levels".to_owned(), format!("{:?}", unet.class));
    }
    if unet.text_time.is_some() || unet.addition.is_some() || unet.hidden.is_some() || unet.time_cond_proj_dim.is_some()
    {
        return fault("addition_embed_type", "null, as of Stable Diffusion 2.x".to_owned(), "another input".to_owned());
    }
    let width: usize = checkpoint.text_encoders.iter().map(|part| part.config.hidden_size).sum();
    if unet.cross_attention_dim != width {
        let expected = format!("{width}, the width of the text vectors");
        return fault("cross_attention_dim", expected, unet.cross_attention_dim.to_string());
    }
    Ok(())
}
