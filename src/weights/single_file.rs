//! Checkpoints as one file (`.safetensors`, `.ckpt`) with the original key names: detected, described and translated.
//!
//! The version follows from the keys as in diffusers' `from_single_file`, and so does what they leave open: an SD 2.x file
//! is taken to be SD 2.1 (768 px, v_prediction), since nothing in it tells 2.0-base or 2.1-base (epsilon) apart;
//! [`super::checkpoint::CheckpointOptions`] overrides the prediction type. Files that carry the marks `v_pred` and
//! `ztsnr` (empty tensors that newer training tools write) say it themselves.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Part, PipelineClass, TextEncoderPart, TokenizerFiles};
use super::file_source::{Change, FileSource, changed_shape};
use super::files::listing;
use super::original_config::{self, Version, vae_levels};
use super::original_keys::{
    self, SD1_TEXT, SD2_TEXT, SDXL_TEXT, SDXL_TEXT_2, Shapes, TextLayout, UNET, UnetLayout, VAE,
};
use super::tensor_file::TensorFile;
use super::{keys, unexpected_key_error};
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, UnetConfig, VaeConfig};

/// The model of a single file's picture with noise, which consists of its schedule alone.
const LOW_SCALE: &str = "low_scale_model.";

/// Opens the file at `path`.
pub(super) fn open(path: &Path, name: String) -> Result<Checkpoint> {
    let file = Arc::new(TensorFile::open(path)?);
    from_file(&file, name)
}

/// Translates an opened file.
pub fn from_file(file: &Arc<TensorFile>, name: String) -> Result<Checkpoint> {
    let shapes: Shapes =
        file.names().map(|key| (key.to_string(), file.shape(key).unwrap_or_default().to_vec())).collect();
    let translated = translate(&shapes, file.place())?;
    let source = |part: Translation| {
        let mut source = FileSource::new(file.place());
        for (stored, name, change) in part.tensors {
            source.add(&name, file, &stored, change)?;
        }
        Ok::<_, Error>(Box::new(source))
    };
    let version = translated.version;
    let vae_config = VaeConfig::from_json(&translated.vae.config, file.place())?;
    check_encoder(&translated.vae_encoder, &vae_config, file.place())?;
    let mut text_encoders = Vec::new();
    for (layout, part) in translated.text_encoders {
        let config = ClipConfig::from_json(&part.config, layout.with_projection, file.place())?;
        text_encoders.push(TextEncoderPart {
            config,
            weights: source(part)?,
            tokenizer: TokenizerFiles::Clip { pad_token: layout.pad_token() },
        });
    }
    let checkpoint = Checkpoint {
        name,
        class: match version {
            Version::Sd1 | Version::Sd2 => PipelineClass::StableDiffusion,
            Version::Sdxl => PipelineClass::StableDiffusionXl,
            Version::X4 => PipelineClass::LatentUpscaler,
        },
        text_encoders,
        unet: Part {
            config: UnetConfig::from_json(&translated.unet.config, file.place())?,
            weights: source(translated.unet)?,
        },
        vae: Part { config: vae_config, weights: source(translated.vae)? },
        scheduler: scheduler(version, &shapes),
        force_zeros_for_empty_prompt: version == Version::Sdxl,
        requires_aesthetics_score: false,
        recommended: None,
        files: vec![Arc::clone(file)],
    };
    checkpoint.check_fit(file.place())
}

/// Errors for a tensor of the VAE's encoder, which nothing reads, that an encoder of this config does not have.
fn check_encoder(tensors: &[(String, String, Change)], config: &VaeConfig, place: &str) -> Result<()> {
    let known = config.encoder_names();
    let names: HashSet<&String> = known.iter().collect();
    match tensors.iter().find(|(_, name, _)| !names.contains(name)) {
        None => Ok(()),
        Some((stored, ..)) => Err(unexpected_key_error(place, stored, &known)),
    }
}

/// The published scheduler config, corrected by the marks that the file carries.
pub(super) fn scheduler(version: Version, shapes: &Shapes) -> Value {
    let mut config = original_config::scheduler(version);
    if shapes.contains_key("v_pred") {
        config["prediction_type"] = "v_prediction".into();
    }
    if shapes.contains_key("ztsnr") {
        config["rescale_betas_zero_snr"] = true.into();
    }
    config
}

/// One part's config and its tensors: stored key, name, change.
#[derive(Debug)]
pub struct Translation {
    /// As `config.json` would have it.
    pub config: Value,
    /// Every tensor that the part's model reads.
    pub tensors: Vec<(String, String, Change)>,
}

/// A whole file's translation.
#[derive(Debug)]
pub struct Translated {
    /// What the file is.
    pub version: Version,
    /// One or two text encoders.
    pub text_encoders: Vec<(TextLayout, Translation)>,
    /// The denoiser.
    pub unet: Translation,
    /// The latent's decoder.
    pub vae: Translation,
    /// The tensors of the VAE's encoder, which no model reads.
    pub vae_encoder: Vec<(String, String, Change)>,
}

/// Translates names and shapes alone; `place` names the file in errors.
pub fn translate(shapes: &Shapes, place: &str) -> Result<Translated> {
    let version = detect(shapes, place)?;
    let layouts: &[TextLayout] = match version {
        Version::Sd1 => &[SD1_TEXT],
        Version::Sd2 | Version::X4 => &[SD2_TEXT],
        Version::Sdxl => &[SDXL_TEXT, SDXL_TEXT_2],
    };
    let vae_prefix = if has_prefix(shapes, VAE) { VAE } else { "vae." };
    let mut prefixes = vec![UNET, vae_prefix];
    if version == Version::X4 {
        prefixes.push(LOW_SCALE);
        // It holds the tables of a schedule and nothing that is learned.
        rename(shapes, LOW_SCALE, place, |_| None)?;
    }
    prefixes.extend(layouts.iter().map(|layout| layout.prefix));
    for key in shapes.keys().filter(|key| !prefixes.iter().any(|prefix| key.starts_with(prefix))) {
        if !keys::is_skipped(key) {
            return Err(unexpected_key_error(
                place,
                key,
                &shapes.keys().filter(|k| *k != key).cloned().collect::<Vec<_>>(),
            ));
        }
    }
    let stripped = strip(shapes, UNET);
    let layout = UnetLayout::read(&stripped);
    let unet = Translation {
        config: original_config::unet(version, &stripped, &layout, place)?,
        tensors: rename(shapes, UNET, place, |key| Some(vec![(layout.rename(key)?, Change::Keep)]))?,
    };
    let stripped = strip(shapes, vae_prefix);
    let levels = vae_levels(&stripped);
    let vae_config = original_config::vae(version, &stripped, place)?;
    let vae_tensors = rename(shapes, vae_prefix, place, |key| Some(vec![original_keys::vae(key, levels)?]))?;
    let (vae_encoder, vae_tensors) = vae_tensors
        .into_iter()
        .partition(|(_, name, _)| name.starts_with("encoder.") || name.starts_with("quant_conv."));
    let vae = Translation { config: vae_config, tensors: vae_tensors };
    let text_encoders = layouts.iter().map(|layout| {
        let dropped = layout.dropped_layer(shapes);
        let tensors = rename(shapes, layout.prefix, place, |key| layout.rename(key, dropped))?;
        let named =
            tensors.iter().map(|(stored, name, change)| (name.clone(), changed_shape(&shapes[stored], *change)));
        let config = original_config::text_encoder(layout.open_clip, &named.collect(), place)?;
        Ok((*layout, Translation { config, tensors }))
    });
    Ok(Translated { version, text_encoders: text_encoders.collect::<Result<_>>()?, unet, vae, vae_encoder })
}

fn has_prefix(shapes: &Shapes, prefix: &str) -> bool {
    shapes.range(prefix.to_string()..).next().is_some_and(|(key, _)| key.starts_with(prefix))
}

/// The keys with `prefix`, without it.
fn strip(shapes: &Shapes, prefix: &str) -> Shapes {
    let with_prefix = shapes.iter().filter_map(|(key, shape)| Some((key.strip_prefix(prefix)?, shape)));
    with_prefix.map(|(key, shape)| (key.to_string(), shape.clone())).collect()
}

/// Applies `new_names` to every key with `prefix`; a key that it does not know is an error unless a rule skips it.
fn rename(
    shapes: &Shapes,
    prefix: &str,
    place: &str,
    new_names: impl Fn(&str) -> Option<Vec<(String, Change)>>,
) -> Result<Vec<(String, String, Change)>> {
    let mut tensors = Vec::new();
    let mut unknown = None;
    for stored in shapes.keys() {
        let Some(key) = stored.strip_prefix(prefix) else { continue };
        if keys::is_skipped(stored) || keys::is_skipped(key) {
            continue;
        }
        match new_names(key) {
            Some(names) => tensors.extend(names.into_iter().map(|(name, change)| (stored.clone(), name, change))),
            None => unknown = unknown.or(Some(stored)),
        }
    }
    match unknown {
        None => Ok(tensors),
        Some(key) => {
            let known: Vec<String> = tensors.into_iter().map(|(stored, ..)| stored).collect();
            Err(unexpected_key_error(place, key, &known))
        }
    }
}

/// Which version the keys show, or an error that says what the file is instead.
pub fn detect(shapes: &Shapes, place: &str) -> Result<Version> {
    let other = |kind: &str| {
        let error = Error::new("unsupported model").at(place).found(kind);
        Err(error.expected("a checkpoint of Stable Diffusion 1.x, 2.x or XL (base)"))
    };
    if shapes.is_empty() {
        return other("a file without tensors");
    }
    if let Some(kind) = other_model(shapes) {
        return other(kind);
    }
    let Some([_, in_channels, ..]) = shapes.get(&format!("{UNET}input_blocks.0.0.weight")).map(Vec::as_slice) else {
        let names: Vec<String> = shapes.keys().take(8).cloned().collect();
        return other(&format!("tensors of another kind ({})", listing(&names)));
    };
    let no_decoder = !has_prefix(shapes, VAE) && !has_prefix(shapes, "vae.");
    match in_channels {
        9 => return other("an inpainting model (9 input channels)"),
        8 => return other("a model that edits a picture (8 input channels)"),
        _ if no_decoder && ![5, 8].contains(in_channels) => return other("a model without VAE"),
        7 if shapes.contains_key(&format!("{UNET}label_emb.weight")) && has_prefix(shapes, SD2_TEXT.prefix) => {
            return Ok(Version::X4);
        }
        7 => return other("an upscaler (7 input channels) without class embedding or text encoder"),
        5 => return other("a depth-to-picture model (5 input channels)"),
        _ => {}
    }
    // As in diffusers, keys of the text encoder decide; the UNet's widths are read from its shapes.
    if has_prefix(shapes, SDXL_TEXT_2.prefix) && has_prefix(shapes, SDXL_TEXT.prefix) {
        Ok(Version::Sdxl)
    } else if has_prefix(shapes, "conditioner.embedders.0.model.") {
        other("the SDXL refiner")
    } else if has_prefix(shapes, SD2_TEXT.prefix) {
        Ok(Version::Sd2)
    } else if has_prefix(shapes, SD1_TEXT.prefix) {
        Ok(Version::Sd1)
    } else {
        other("a UNet without text encoder")
    }
}

/// The kind of a file that shows one which scumble does not draw with.
fn other_model(shapes: &Shapes) -> Option<&'static str> {
    // Prefix or whole key -> kind; the first match decides. Keys as in diffusers' `CHECKPOINT_KEY_NAMES`.
    const KINDS: [(&str, &str); 18] = [
        ("edm_mean", "Playground 2.5"),
        ("edm_vpred.", "CosXL"),
        ("control_model.", "a ControlNet"),
        ("controlnet_cond_embedding.", "a ControlNet"),
        ("input_hint_block.", "a ControlNet"),
        ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
        ("joint_blocks.", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.", "FLUX"),
        ("double_blocks.", "FLUX"),
        ("lora_", "a LoRA, which changes a model"),
        ("emb_params", "a textual inversion"),
        ("string_to_param", "a textual inversion"),
        ("conv_in.", "a single part (a diffusers UNet)"),
        ("down_blocks.", "a single part (a diffusers UNet)"),
        ("input_blocks.", "a single part (a UNet)"),
        ("decoder.", "a single part (a VAE)"),
        ("text_model.", "a single part (a text encoder)"),
        ("embeddings.", "a single part (a text encoder)"),
    ];
    const LORA: [&str; 6] = [".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down."];
    if shapes.keys().any(|key| LORA.iter().any(|part| key.contains(part))) {
        return Some("a LoRA, which changes a model");
    }
    let kind = KINDS.iter().find(|(prefix, _)| has_prefix(shapes, prefix)).map(|(_, kind)| *kind);
    kind.or_else(|| shapes.keys().all(|key| key.starts_with(VAE)).then_some("a single part (a VAE)"))
}

#[cfg(test)]
#[path = "single_file_tests.rs"]
mod tests;
