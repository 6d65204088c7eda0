//! A whole model: its parts with configs and weights, its tokenizers and its schedule.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::files::Files;
use super::tensor_file::TensorFile;
use super::{Source, directory, single_file};
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, UnetConfig, VaeConfig};

/// How the parts of a checkpoint work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipelineClass {
    /// Stable Diffusion 1.x and 2.x: one text encoder.
    StableDiffusion,
    /// Stable Diffusion XL: two text encoders, pooled text and picture sizes as added conditioning.
    StableDiffusionXl,
    /// A consistency-distilled Stable Diffusion whose UNet takes the guidance scale as an input.
    LatentConsistency,
    /// Stable Diffusion's x4 upscaler: the UNet also reads a picture with noise, and the noise's level.
    LatentUpscaler,
}

impl PipelineClass {
    /// The class's name in `model_index.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "StableDiffusionPipeline",
            Self::StableDiffusionXl => "StableDiffusionXLPipeline",
            Self::LatentConsistency => "LatentConsistencyModelPipeline",
            Self::LatentUpscaler => "StableDiffusionUpscalePipeline",
        }
    }
}

/// A network: what it looks like and its tensors.
pub struct Part<C> {
    /// The checked config.
    pub config: C,
    /// Its tensors under diffusers' names.
    pub weights: Box<dyn Source>,
}

/// A text encoder with the tokenizer that belongs to it.
pub struct TextEncoderPart {
    /// The checked config.
    pub config: ClipConfig,
    /// Its tensors under transformers' names, all with the prefix `text_model.` (except `text_projection.weight`).
    pub weights: Box<dyn Source>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
}

/// What a tokenizer is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// The files of a tokenizer folder by name: `tokenizer.json`, or `vocab.json` and `merges.txt`; beside them, where
    /// there are any, `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    Folder {
        /// The folder, for errors.
        place: String,
        /// Contents by file name.
        files: BTreeMap<String, Vec<u8>>,
    },
    /// CLIP's own vocabulary, which comes with scumble (single files have none).
    Clip {
        /// The padding token: `<|endoftext|>`, or `!` for OpenCLIP.
        pad_token: &'static str,
    },
}

/// What a caller knows better than a single file, which has no configs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// What the UNet predicts: `epsilon`, `v_prediction` or `sample`. It replaces the scheduler config's
    /// `prediction_type`. A single SD 2.x file does not tell; without this it is taken to be SD 2.1 (v_prediction), as
    /// diffusers' `from_single_file` takes it.
    pub prediction_type: Option<String>,
}

/// A model, opened: configs read and checked, weights mapped but not touched.
pub struct Checkpoint {
    /// File stem or directory name.
    pub name: String,
    /// How the parts work together.
    pub class: PipelineClass,
    /// One text encoder, or two for SDXL.
    pub text_encoders: Vec<TextEncoderPart>,
    /// The denoiser.
    pub unet: Part<UnetConfig>,
    /// The latent's decoder. Its source leaves out the encoder, whose names were checked.
    pub vae: Part<VaeConfig>,
    /// `scheduler_config.json`, or for single files the published config of the version; `_class_name` is the class that
    /// `model_index.json` names, which is the one diffusers uses.
    pub scheduler: Value,
    /// Steps and guidance scale that the model's makers recommend, where the pipeline's own defaults do not fit it.
    pub recommended: Option<(u32, f32)>,
    /// SDXL: without a negative prompt the unconditional text vectors are zero.
    pub force_zeros_for_empty_prompt: bool,
    /// SDXL refiner; always false for now, since such a checkpoint is refused.
    pub requires_aesthetics_score: bool,
    /// The single file, or the UNet's file or shards: what [`Checkpoint::hash`] is made from.
    pub(super) files: Vec<Arc<TensorFile>>,
}

impl Checkpoint {
    /// SHA-256 of the single file, or of the UNet's file (its shards one after the other), in hexadecimal. Reads all of
    /// it. Its first ten digits are what AUTOMATIC1111 calls the model hash.
    pub fn hash(&self) -> String {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        self.files.iter().for_each(|file| file.hash_into(&mut hash));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Opens a diffusers directory or a single file (`.safetensors`, `.ckpt`) in the original key names.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &CheckpointOptions::default())
    }

    /// Opens a diffusers directory or a single file, with what the caller knows better.
    pub fn open_with(path: &Path, options: &CheckpointOptions) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| {
            Error::io("no such model", path, &e).hint("a diffusers directory, or a .safetensors or .ckpt file")
        })?;
        let mut checkpoint = if metadata.is_dir() {
            directory::open(&Files::Directory(path.to_path_buf()), name_of(path))?
        } else {
            single_file::open(path, name_of(path))?
        };
        if checkpoint.class == PipelineClass::LatentUpscaler {
            return Err(Error::new("unsupported model")
                .at(path.display())
                .expected("a checkpoint of Stable Diffusion 1.x, 2.x or XL (base)")
                .found("the x4 upscaler")
                .hint("scumble upscale IN.png -m MODEL, or --then MODEL behind another"));
        }
        if let Some(kind) = &options.prediction_type {
            checkpoint.scheduler["prediction_type"] = Value::from(kind.as_str());
        }
        Ok(checkpoint)
    }

    /// Opens a model in diffusers layout that is compiled into the program: (path relative to its root, contents).
    pub fn embedded(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Result<Self> {
        directory::open(&Files::Embedded(files), name.to_string())
    }

    /// Errors unless the parts fit each other: widths of text vectors, channels of the latent, added conditioning.
    pub(super) fn check_fit(self, place: &str) -> Result<Self> {
        if self.class == PipelineClass::LatentUpscaler {
            super::latent_upscaler::check_fit(&self, place)?;
            return Ok(self);
        }
        let unet = &self.unet.config;
        let fault = |what: &str, expected: String, found: String| {
            Err(Error::new(format!("parts that do not fit: {what}")).at(place).expected(expected).found(found))
        };
        if unet.in_channels != self.vae.config.latent_channels {
            let kind = match unet.in_channels {
                9 => " (an inpainting model)",
                8 => " (a model that edits a picture)",
                7 => " (an upscaler)",
                _ => "",
            };
            let expected = format!("{}, the VAE's latent channels", self.vae.config.latent_channels);
            return fault("the UNet's input channels", expected, format!("{}{kind}", unet.in_channels));
        }
        if unet.out_channels != unet.in_channels {
            return fault("the UNet's output channels", unet.in_channels.to_string(), unet.out_channels.to_string());
        }
        // Inputs that the UNets of other systems have and that nothing here gives.
        let word = |value: Option<String>| value.map(|value| value.to_lowercase());
        let foreign = [
            ("class_embed_type", word(unet.class.map(|class| format!("{class:?}")))),
            ("addition_embed_type", word(unet.addition.as_ref().map(|addition| format!("{addition:?}")))),
            ("encoder_hid_dim_type", word(unet.hidden.as_ref().map(|hidden| format!("{hidden:?}")))),
        ];
        if let Some((field, Some(value))) = foreign.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::new("unsupported model")
                .at(format!("{}, unet/config.json: `{field}`", self.name))
                .expected("a UNet of Stable Diffusion")
                .found(format!("{value}, an input that only other systems have"))
                .hint("the directory of the whole pipeline that this UNet belongs to"));
        }
        let width: usize = self.text_encoders.iter().map(|part| part.config.hidden_size).sum();
        if unet.cross_attention_dim != width {
            let expected = format!("{width}, the width of the text vectors");
            return fault("the UNet's `cross_attention_dim`", expected, unet.cross_attention_dim.to_string());
        }
        let pooled = self.text_encoders.last().and_then(|part| part.config.projection_dim);
        match (self.class, &unet.text_time) {
            (PipelineClass::StableDiffusionXl, Some(added)) => {
                let expected = 6 * added.time_embed_dim + pooled.unwrap_or(0);
                if added.input_dim != expected {
                    let expected = format!("{expected} (six picture sizes and the pooled text)");
                    let what = "the UNet's `projection_class_embeddings_input_dim`";
                    return fault(what, expected, added.input_dim.to_string());
                }
            }
            (PipelineClass::StableDiffusionXl, None) => {
                return fault("the UNet's `addition_embed_type`", "\"text_time\"".into(), "null".into());
            }
            (_, Some(_)) => return fault("the UNet's `addition_embed_type`", "null".into(), "\"text_time\"".into()),
            (_, None) => {}
        }
        Ok(self)
    }
}

/// A path's last component without the ending of a file of weights.
pub(super) fn name_of(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = full.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let endings = [".safetensors", ".ckpt", ".pt", ".pth", ".bin"];
    endings.iter().find_map(|ending| name.strip_suffix(ending)).map_or(name.clone(), str::to_string)
}
