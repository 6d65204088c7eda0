//! The small DALL-E that is compiled into the program (`assets/emoji-dalle/README.md`).

use super::dalle::{DalleCheckpoint, DalleDefaults};
use super::files::Files;
use crate::error::Result;

/// The name by which `--model` and the picture's text know it.
pub const NAME: &str = "emoji-dalle";
/// What its README recommends.
const RECOMMENDED: DalleDefaults = DalleDefaults { guidance_scale: 1.75, top_k: Some(8), temperature: 0.3 };

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../assets/emoji-dalle/", $path)) as &[u8])),*]
    };
}

/// The weights of encoder and decoder, by which the model is identified.
pub const BART: &[u8] = include_bytes!("../../assets/emoji-dalle/model.safetensors");

const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "merges.txt",
    "model.safetensors",
    "vocab.json",
    "vqgan/config.json",
    "vqgan/model.safetensors",
];

/// Opens the embedded model.
pub fn open() -> Result<DalleCheckpoint> {
    let checkpoint = DalleCheckpoint::from_files(&Files::Embedded(FILES), NAME.to_owned(), None)?;
    Ok(DalleCheckpoint { defaults: RECOMMENDED, ..checkpoint })
}
