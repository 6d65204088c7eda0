//! T5's text encoder and its tokenizer in a diffusers directory.

use super::Source;
use super::file_source::Change;
use super::files::listing;
use super::index::Index;
use crate::error::{Error, Result};
use crate::models::config::T5Config;

/// The tokenizer's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct T5TokenizerFiles {
    /// The folder, for errors.
    pub place: String,
    /// `tokenizer.json`.
    pub whole: Option<Vec<u8>>,
    /// `spiece.model`, which serves where there is none.
    pub pieces: Option<Vec<u8>>,
}

/// A text encoder with its tokenizer.
pub struct T5Part {
    /// The checked config.
    pub config: T5Config,
    /// Its tensors under transformers' names.
    pub weights: Box<dyn Source>,
    /// The tokenizer.
    pub tokenizer: T5TokenizerFiles,
}

/// Opens the parts `text_encoder` and `tokenizer`.
pub(super) fn t5_part(index: &Index<'_>, stem: &str) -> Result<T5Part> {
    let (config, place) = index.config("text_encoder", &["T5EncoderModel"])?;
    Ok(T5Part {
        config: T5Config::from_json(&config, &place)?,
        weights: index.source("text_encoder", stem, name)?,
        tokenizer: tokenizer(index)?,
    })
}

/// The encoder's copy of the token table is the shared one's.
fn name(stored: &str) -> Option<(String, Change)> {
    (stored != "encoder.embed_tokens.weight").then(|| (stored.to_owned(), Change::Keep))
}

fn tokenizer(index: &Index<'_>) -> Result<T5TokenizerFiles> {
    const PART: &str = "tokenizer";
    let place = index.files.place(PART);
    if index.seed.is_some() {
        return Ok(T5TokenizerFiles { place, whole: None, pieces: None });
    }
    index.check_part(PART, &["T5Tokenizer", "T5TokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast"])?;
    let names = index.files.list(PART);
    let read = |name: &str| {
        let there = names.iter().any(|found| found == name);
        there.then(|| index.files.read(&format!("{PART}/{name}"))).transpose()
    };
    let files = T5TokenizerFiles { whole: read("tokenizer.json")?, pieces: read("spiece.model")?, place };
    if files.whole.is_none() && files.pieces.is_none() {
        let error = Error::new("missing tokenizer").at(files.place).found(listing(&names));
        return Err(error.expected("tokenizer.json or spiece.model"));
    }
    Ok(files)
}
