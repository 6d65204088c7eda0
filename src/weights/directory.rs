//! Stable Diffusion in diffusers layout: `model_index.json` names the parts, each in its folder with a config.

use std::collections::HashSet;

use super::checkpoint::{Checkpoint, Part, PipelineClass, TextEncoderPart};
use super::files::Files;
use super::index::{DIFFUSERS_STEM, Index, TRANSFORMERS_STEM, read_index};
use super::keys;
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, UnetConfig, VaeConfig};

/// Opens the checkpoint whose files are `files`.
pub(super) fn open(files: &Files, name: String) -> Result<Checkpoint> {
    open_index(&read_index(files)?, name)
}

/// Opens the configs among `files` with random weights and CLIP's vocabulary.
pub(super) fn open_random(files: &Files, name: String, seed: u64) -> Result<Checkpoint> {
    open_index(&Index { seed: Some(seed), ..read_index(files)? }, name)
}

fn open_index(index: &Index<'_>, name: String) -> Result<Checkpoint> {
    let class = pipeline_class(index)?;
    refuse_unknown_parts(index, class)?;
    open_parts(index, name, class)
}

/// The parts that every class has.
pub(super) fn open_parts(index: &Index<'_>, name: String, class: PipelineClass) -> Result<Checkpoint> {
    if index.flag("requires_aesthetics_score", false)? {
        return Err(Error::new("unsupported model")
            .at(&index.place)
            .expected("a base model")
            .found("a refiner (`requires_aesthetics_score`)"));
    }
    let (unet_config, unet_place) = index.config("unet", &["UNet2DConditionModel"])?;
    let (vae_config, vae_place) = index.config("vae", &["AutoencoderKL"])?;
    let vae_config = VaeConfig::from_json(&vae_config, &vae_place)?;
    let text_encoders = match class {
        PipelineClass::StableDiffusionXl => vec![text_encoder(index, "")?, text_encoder(index, "_2")?],
        _ => vec![text_encoder(index, "")?],
    };
    let unet = Part {
        config: UnetConfig::from_json(&unet_config, &unet_place)?,
        weights: index.source("unet", DIFFUSERS_STEM, keys::unet)?,
    };
    let encoder: HashSet<String> = vae_config.encoder_names().into_iter().collect();
    let decoder = |stored: &str| keys::vae(stored).filter(|(name, _)| !encoder.contains(name));
    let vae = Part { weights: index.source("vae", DIFFUSERS_STEM, decoder)?, config: vae_config };
    let checkpoint = Checkpoint {
        name,
        class,
        text_encoders,
        unet,
        vae,
        scheduler: index.scheduler("scheduler")?,
        force_zeros_for_empty_prompt: index
            .flag("force_zeros_for_empty_prompt", class == PipelineClass::StableDiffusionXl)?,
        requires_aesthetics_score: false,
        recommended: None,
        files: if index.seed.is_some() { Vec::new() } else { index.files.weights("unet", DIFFUSERS_STEM)? },
    };
    checkpoint.check_fit(&index.place)
}

/// How the parts of the index work together.
fn pipeline_class(index: &Index<'_>) -> Result<PipelineClass> {
    use PipelineClass::{LatentConsistency, StableDiffusion, StableDiffusionXl};
    let all = [StableDiffusion, StableDiffusionXl, LatentConsistency];
    let found = index.class_name();
    all.into_iter()
        .find(|class| class.name() == found)
        .ok_or_else(|| index.unsupported("_class_name", &all.map(PipelineClass::name).join(", "), found))
}

/// Errors for a part that takes part in drawing and that scumble does not know.
fn refuse_unknown_parts(index: &Index<'_>, class: PipelineClass) -> Result<()> {
    let mut known = vec![
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
        // Checks and converts pictures, before or after drawing; the last is only used with picture prompts.
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "watermark",
    ];
    if class == PipelineClass::StableDiffusionXl {
        known.extend(["text_encoder_2", "tokenizer_2"]);
    }
    index.refuse_parts_but(&known)
}

/// The text encoder and tokenizer with this suffix ("" or "_2").
fn text_encoder(index: &Index<'_>, suffix: &str) -> Result<TextEncoderPart> {
    let part = format!("text_encoder{suffix}");
    let projects = suffix == "_2";
    let class = if projects { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
    let (config, place) = index.config(&part, &[class])?;
    Ok(TextEncoderPart {
        config: ClipConfig::from_json(&config, projects, &place)?,
        weights: index.source(&part, TRANSFORMERS_STEM, |stored| keys::text_encoder(stored, projects))?,
        tokenizer: index.tokenizer(&format!("tokenizer{suffix}"))?,
    })
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
