//! CLIP's byte-pair tokenizer, giving the ids of transformers 5.23's `CLIPTokenizer` as diffusers' pipelines ask for them.

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::special_tokens::SpecialTokens;
use super::tokenizer_files::{Parts, TokenizerFiles, malformed};
use crate::error::{Error, Result};

/// Where a text is cut into words before byte pairs are merged (transformers 5.23, `tokenization_clip.py`).
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Which end of a text is filled up or cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// `max_length` ids: start, text, end, padding.
    pub ids: Vec<u32>,
    /// Where start, text and end stand among them; the rest is padding.
    pub seen: std::ops::Range<usize>,
    /// The part of the prompt that did not fit and was left out, as it was written.
    pub truncated: Option<String>,
    /// How many tokens were left out.
    pub truncated_tokens: usize,
}

/// CLIP's tokenizer: Unicode composition (NFC), single spaces, lower case, words, byte pairs.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos_id: u32,
    eos_id: u32,
    pad_id: u32,
    max_length: Option<usize>,
    padding_side: Side,
    truncation_side: Side,
}

impl ClipTokenizer {
    /// Builds the tokenizer. Errors name the file that is malformed or lacks something.
    pub fn load(files: &TokenizerFiles) -> Result<Self> {
        let parts = Parts::read(files)?;
        let special = SpecialTokens::resolve(&parts)?;
        let vocabulary: Vocab = parts.vocabulary.iter().cloned().collect();
        check_merges(&vocabulary, &parts)?;
        let library = |fault: tokenizers::Error| malformed(&parts.place, "a byte-pair tokenizer", &fault.to_string());
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, parts.merges.clone())
            .unk_token(special.unknown.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .build()
            .map_err(library)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_normalizer(Some(normalizer().map_err(library)?)).map_err(library)?;
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer().map_err(library)?));
        tokenizer.add_tokens(special.added.iter().cloned()).map_err(library)?;
        tokenizer.set_encode_special_tokens(parts.config.get("split_special_tokens") == Some(&Value::Bool(true)));

        let id = |token: &str| {
            tokenizer.token_to_id(token).or_else(|| tokenizer.token_to_id(&special.unknown)).ok_or_else(|| {
                malformed(&parts.place, &format!("the special token {token:?} in the vocabulary"), "none")
            })
        };
        let pad = special.pad.as_ref().ok_or_else(|| {
            malformed(
                &format!("{}/tokenizer_config.json", parts.place),
                "a pad_token, which fills up short prompts",
                "null",
            )
        })?;
        let (bos_id, eos_id, pad_id) = (id(&special.bos)?, id(&special.eos)?, id(pad)?);
        Ok(Self {
            bos_id,
            eos_id,
            pad_id,
            max_length: max_length(&parts),
            padding_side: side(&parts, "padding_side", "padding")?,
            truncation_side: side(&parts, "truncation_side", "truncation")?,
            tokenizer,
        })
    }

    /// The ids of `prompt`, exactly `max_length` of them, as diffusers' pipelines ask for them (`padding="max_length"`,
    /// `truncation=True`): start, text, end, padding; what does not fit is left out and told.
    ///
    /// Errors: `max_length` has no room for the start and the end token; the tokenizer cannot spell the prompt.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Encoded> {
        let Some(room) = max_length.checked_sub(2) else {
            return Err(Error::new("prompt length").expected("at least 2 tokens").found(max_length));
        };
        let encoding = self
            .tokenizer
            .encode(prompt, false)
            .map_err(|fault| Error::new("the tokenizer cannot spell this prompt").found(fault))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let cut = ids.len().saturating_sub(room);
        let kept = match self.truncation_side {
            Side::Right => &ids[..ids.len() - cut],
            Side::Left => &ids[cut..],
        };
        let truncated = (cut > 0).then(|| {
            let text = match self.truncation_side {
                Side::Right => prompt.get(offsets[ids.len() - cut].0..),
                Side::Left => prompt.get(..offsets[cut - 1].1),
            };
            text.unwrap_or(prompt).trim().to_owned()
        });
        let mut row = Vec::with_capacity(max_length);
        row.push(self.bos_id);
        row.extend_from_slice(kept);
        row.push(self.eos_id);
        let (count, missing) = (row.len(), max_length - row.len());
        let padding = std::iter::repeat_n(self.pad_id, missing);
        let seen = match self.padding_side {
            Side::Right => {
                row.extend(padding);
                0..count
            }
            Side::Left => {
                row.splice(0..0, padding).for_each(drop);
                missing..max_length
            }
        };
        Ok(Encoded { ids: row, seen, truncated, truncated_tokens: cut })
    }

    /// How many tokens there are, added ones included. Ids may be larger where the vocabulary has gaps: compare those that
    /// `encode` gives with the text encoder's own `vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The length that `tokenizer_config.json` (`model_max_length`) asks prompts to be filled up to, start and end
    /// included; `None` where it names none.
    pub fn model_max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The id that fills up short prompts.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The id that every prompt starts with.
    pub fn bos_id(&self) -> u32 {
        self.bos_id
    }

    /// The id that ends a prompt's text.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }
}

/// The place of the token whose vector stands for a text in a CLIP: the first end token, or, with the `eos_token_id` 2 of old
/// configs, the first of the largest id (transformers `CLIPTextModel.forward`); 0 where there is none.
pub fn pooled_place(ids: &[u32], eos: u32) -> usize {
    let pooled = if eos == 2 { ids.iter().max().copied() } else { Some(eos) };
    ids.iter().position(|id| Some(*id) == pooled).unwrap_or(0)
}

fn normalizer() -> tokenizers::Result<NormalizerWrapper> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let steps = vec![NFC.into(), spaces.into(), Lowercase.into()];
    Ok(tokenizers::normalizers::Sequence::new(steps).into())
}

fn pre_tokenizer() -> tokenizers::Result<PreTokenizerWrapper> {
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    Ok(tokenizers::pre_tokenizers::sequence::Sequence::new(vec![words.into(), bytes.into()]).into())
}

/// Every merge must join two known pieces into a known one: the library takes that for granted and would panic.
fn check_merges(vocabulary: &Vocab, parts: &Parts) -> Result<()> {
    for (left, right) in &parts.merges {
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|piece| !vocabulary.contains_key(*piece)) {
            let expected = format!("the merge {left:?} {right:?} to be of tokens in the vocabulary");
            return Err(malformed(&parts.place, &expected, &format!("no token {missing:?}")));
        }
    }
    Ok(())
}

/// transformers' rule: `model_max_length`, else `max_len`; huge numbers mean that there is none.
fn max_length(parts: &Parts) -> Option<usize> {
    const HUGE: u64 = 1 << 20;
    let found = ["model_max_length", "max_len"].iter().find_map(|key| parts.config.get(*key).filter(|v| !v.is_null()));
    found.and_then(Value::as_u64).filter(|length| *length < HUGE).map(|length| length as usize)
}

/// The side that `tokenizer_config.json` names, else the `direction` in `tokenizer.json`, else the right.
fn side(parts: &Parts, key: &str, section: &str) -> Result<Side> {
    let direction = || parts.tokenizer.get(section).and_then(|section| section.get("direction"));
    match parts.config.get(key).or_else(direction).and_then(Value::as_str) {
        None => Ok(Side::Right),
        Some(word) if word.eq_ignore_ascii_case("right") => Ok(Side::Right),
        Some(word) if word.eq_ignore_ascii_case("left") => Ok(Side::Left),
        Some(other) => Err(malformed(&parts.place, &format!("{key} left or right"), &format!("{other:?}"))),
    }
}
