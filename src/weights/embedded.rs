//! The model that is compiled into the program: a small Stable Diffusion that draws emoji (`assets/emoji/README.md`).

use super::checkpoint::Checkpoint;
use crate::error::Result;

/// The name by which `--model` and the picture's text know it.
pub const NAME: &str = "emoji";
/// Steps and guidance scale that its README recommends.
const RECOMMENDED: (u32, f32) = (20, 3.0);

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../assets/emoji/", $path)) as &[u8])),*]
    };
}

/// The UNet's weights, by which the model is identified.
pub const UNET: &[u8] = include_bytes!("../../assets/emoji/unet/diffusion_pytorch_model.safetensors");

const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Opens the embedded model.
pub fn open() -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::embedded(NAME, FILES)?;
    checkpoint.recommended = Some(RECOMMENDED);
    Ok(checkpoint)
}
