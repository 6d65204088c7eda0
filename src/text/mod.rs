//! Prompts to token ids.
//!
//! A prompt is text without any syntax: weighting such as `(word:1.2)` is passed to the tokenizer as it stands, as
//! diffusers does.

pub mod bart_tokenizer;
pub mod clip_tokenizer;
mod dalle_normalizer;
mod special_tokens;
pub mod t5_tokenizer;
#[cfg(test)]
mod tests;
pub mod tokenizer_files;

pub use bart_tokenizer::{BartFiles, BartTokenizer, BartTokens, TextRule};
pub use clip_tokenizer::{ClipTokenizer, Encoded, pooled_place};
pub use t5_tokenizer::{T5Files, T5Tokenizer, T5Tokens};
pub use tokenizer_files::{SideFiles, TokenizerFiles, clip_folder};
