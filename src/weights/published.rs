//! The configs of the published models, for timing and planning a model whose checkpoint is not at hand.
//!
//! What `assets/configs/` holds was written down from the `config.json` files of
//! `stable-diffusion-v1-5/stable-diffusion-v1-5`, `stabilityai/stable-diffusion-2-1` and
//! `stabilityai/stable-diffusion-xl-base-1.0` on the Hugging Face hub.

use std::path::Path;

use super::checkpoint::Checkpoint;
use super::files::Files;
use super::{RandomSource, directory};
use crate::error::Result;

type Contents = &'static [(&'static str, &'static [u8])];

macro_rules! configs {
    ($model:literal: $($path:literal),* $(,)?) => {
        ($model, &[$(($path, include_bytes!(concat!("../../assets/configs/", $model, "/", $path)) as &[u8])),*])
    };
}

/// Name and configs of each published model.
const MODELS: [(&str, Contents); 3] = [
    configs!("sd15": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "unet/config.json", "vae/config.json"),
    configs!("sd21": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "unet/config.json", "vae/config.json"),
    configs!("sdxl": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder_2/config.json", "unet/config.json", "vae/config.json"),
];

/// The names that [`random`] knows besides paths.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|(name, _)| *name).collect()
}

/// The published model `name` with random weights drawn from `seed`; `None` for another name.
///
/// # Errors
/// When a config is refused, which is a fault of scumble's own files.
pub fn random(name: &str, seed: u64) -> Result<Option<Checkpoint>> {
    match MODELS.iter().find(|(model, _)| *model == name) {
        Some((_, files)) => directory::open_random(&Files::Embedded(files), name.to_owned(), seed).map(Some),
        None => Ok(None),
    }
}

/// The model at `path` with random weights drawn from `seed`: the configs of a directory in diffusers layout, whose
/// weights are not looked at and need not be there, or the shapes of a single `.safetensors` file.
///
/// # Errors
/// When there is no such path, or its configs are refused.
pub fn random_like(path: &Path, seed: u64) -> Result<Checkpoint> {
    if !path.is_dir() {
        return Checkpoint::open(path).map(|checkpoint| with_random_weights(checkpoint, seed));
    }
    let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    directory::open_random(&Files::Directory(path.to_path_buf()), name, seed)
}

/// The same model with weights drawn from `seed`.
#[must_use]
pub fn with_random_weights(mut checkpoint: Checkpoint, seed: u64) -> Checkpoint {
    for part in &mut checkpoint.text_encoders {
        part.weights = Box::new(RandomSource::on_demand(seed));
    }
    checkpoint.unet.weights = Box::new(RandomSource::on_demand(seed));
    checkpoint.vae.weights = Box::new(RandomSource::on_demand(seed));
    checkpoint
}
