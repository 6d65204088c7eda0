//! The small Imagen that is compiled into the program (`assets/emoji-imagen/README.md`): both stages.

use super::files::Files;
use super::imagen::{ImagenDefaults, ImagenStage};
use crate::error::Result;

/// The name by which `--model` and the picture's text know it.
pub const NAME: &str = "emoji-imagen";
/// What its README recommends for the first stage.
const FIRST: ImagenDefaults = ImagenDefaults { steps: 50, guidance_scale: 2.0, noise_level: 0 };
/// What its README recommends for the second stage.
const SECOND: ImagenDefaults = ImagenDefaults { steps: 12, guidance_scale: 1.5, noise_level: 100 };

macro_rules! files {
    ($stage:literal: $($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../assets/emoji-imagen/", $stage, "/", $path)) as &[u8])),*]
    };
}

/// The weights of the first stage's UNet, by which the model is identified.
pub const UNET: &[u8] = include_bytes!("../../assets/emoji-imagen/I/unet/diffusion_pytorch_model.safetensors");

const I: &[(&str, &[u8])] = files!["I":
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

const II: &[(&str, &[u8])] = files!["II":
    "image_noising_scheduler/scheduler_config.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

/// Opens the embedded stages.
pub fn open() -> Result<Vec<ImagenStage>> {
    let stage = |files, defaults| -> Result<ImagenStage> {
        Ok(ImagenStage { defaults, ..ImagenStage::from_files(&Files::Embedded(files), NAME.to_owned())? })
    };
    Ok(vec![stage(I, FIRST)?, stage(II, SECOND)?])
}
