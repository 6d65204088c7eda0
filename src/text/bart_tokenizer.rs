//! DALL-E mini's tokenizer: BART's byte-pair encoding, with what dalle-mini or min-dalle does to a prompt before.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel};
use tokenizers::{AddedToken, Tokenizer};

use super::dalle_normalizer::normalize;
use crate::error::{Error, Result};

/// The byte-level letter for a space, which begins every word but the first of BART's and all of min-dalle's.
const SPACE: char = '\u{120}';

/// How a prompt is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextRule {
    /// As min-dalle does it.
    MinDalle,
    /// As dalle-mini does it, through its text normaliser or not.
    DalleMini {
        /// Whether the normaliser runs.
        normalize: bool,
    },
}

/// The tokenizer's files.
#[derive(Debug, Clone, Copy)]
pub struct BartFiles<'a> {
    /// Where they are, for errors.
    pub place: &'a str,
    /// `vocab.json`.
    pub vocabulary: Option<&'a [u8]>,
    /// `merges.txt`.
    pub merges: Option<&'a [u8]>,
    /// `tokenizer.json`, which serves where one of the others is missing.
    pub whole: Option<&'a [u8]>,
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BartTokens {
    /// Start, text, end, padding.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub count: usize,
    /// How many tokens of the text did not fit and were left out.
    pub left_out: usize,
}

/// Prompts to ids.
#[derive(Debug)]
pub struct BartTokenizer {
    vocabulary: HashMap<String, u32>,
    ranks: HashMap<(String, String), usize>,
    /// BART's own, where dalle-mini's rule holds.
    byte_level: Option<Tokenizer>,
    rule: TextRule,
    start: u32,
    pad: u32,
    end: u32,
    unknown: u32,
}

impl BartTokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// Malformed files; no special tokens.
    pub fn load(files: &BartFiles<'_>, rule: TextRule) -> Result<Self> {
        let fault = |file: &str, expected: &str, found: String| {
            Error::new("broken tokenizer")
                .at(format!("{}/{file}", files.place.trim_end_matches('/')))
                .expected(expected)
                .found(found)
        };
        let whole: Option<Value> = match files.whole {
            Some(bytes) => {
                Some(serde_json::from_slice(bytes).map_err(|e| fault("tokenizer.json", "JSON", e.to_string()))?)
            }
            None => None,
        };
        let model = whole.as_ref().and_then(|whole| whole.get("model"));
        let vocabulary: HashMap<String, u32> = match (files.vocabulary, model.and_then(|model| model.get("vocab"))) {
            (Some(bytes), _) => serde_json::from_slice(bytes)
                .map_err(|e| fault("vocab.json", "an object of tokens and ids", e.to_string()))?,
            (None, Some(vocab)) => serde_json::from_value(vocab.clone())
                .map_err(|e| fault("tokenizer.json", "an object of tokens and ids", e.to_string()))?,
            (None, None) => return Err(fault("vocab.json", "a vocabulary", "none".into())),
        };
        let merges: Vec<(String, String)> = match (files.merges, model.and_then(|model| model.get("merges"))) {
            (Some(bytes), _) => {
                let text = std::str::from_utf8(bytes).map_err(|e| fault("merges.txt", "text", e.to_string()))?;
                let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
                lines
                    .map(|line| pair(line).ok_or_else(|| fault("merges.txt", "two pieces a line", line.into())))
                    .collect()
            }
            (None, Some(Value::Array(merges))) => {
                let read = |merge: &Value| match merge {
                    Value::String(line) => pair(line),
                    Value::Array(parts) => match parts.as_slice() {
                        [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                        _ => None,
                    },
                    _ => None,
                };
                let read =
                    |merge| read(merge).ok_or_else(|| fault("tokenizer.json", "pairs of pieces", merge.to_string()));
                merges.iter().map(read).collect()
            }
            _ => Err(fault("merges.txt", "merges", "none".into())),
        }?;
        let id = |token: &str| {
            vocabulary
                .get(token)
                .copied()
                .ok_or_else(|| fault("vocab.json", &format!("the token {token}"), "none".into()))
        };
        let [start, pad, end, unknown] = [id("<s>")?, id("<pad>")?, id("</s>")?, id("<unk>")?];
        let byte_level = match rule {
            TextRule::MinDalle => None,
            TextRule::DalleMini { .. } => {
                let built = byte_level(&vocabulary, &merges);
                Some(built.map_err(|e| fault("merges.txt", "merges of the vocabulary's tokens", e.to_string()))?)
            }
        };
        let ranks = merges.into_iter().enumerate().map(|(rank, merge)| (merge, rank)).collect();
        Ok(Self { vocabulary, ranks, byte_level, rule, start, pad, end, unknown })
    }

    /// A prompt of `length` tokens. Of one that is too long the end is left out.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn encode(&self, text: &str, length: usize) -> Result<BartTokens> {
        let mut words = match (self.rule, &self.byte_level) {
            (TextRule::DalleMini { normalize: normalized }, Some(tokenizer)) => {
                // dalle-mini normalises prompts, but not the empty one that guidance takes.
                let text = if normalized && !text.is_empty() { normalize(text) } else { text.to_owned() };
                let encoded =
                    tokenizer.encode(text, false).map_err(|e| Error::new("the prompt cannot be tokenized").found(e))?;
                encoded.get_ids().to_vec()
            }
            _ => self.words(text),
        };
        let left_out = words.len().saturating_sub(length - 2);
        words.truncate(length - 2);
        let mut ids: Vec<u32> = std::iter::once(self.start).chain(words).chain([self.end]).collect();
        let count = ids.len();
        ids.resize(length, self.pad);
        Ok(BartTokens { ids, count, left_out })
    }

    /// min-dalle's way: lower case, ASCII, words at spaces, each with a space before it. (It also writes out the names of
    /// emoji, for which scumble has no list.)
    fn words(&self, text: &str) -> Vec<u32> {
        let text: String = text.to_lowercase().chars().filter(char::is_ascii).collect();
        let words = text.split(' ').filter(|word| !word.is_empty());
        let pieces = words.flat_map(|word| self.merge(word));
        pieces.map(|piece| self.vocabulary.get(&piece).copied().unwrap_or(self.unknown)).collect()
    }

    /// A word's pieces: of all neighbours that may be joined always those of the lowest rank, the first of them first.
    fn merge(&self, word: &str) -> Vec<String> {
        let mut pieces: Vec<String> = std::iter::once(SPACE).chain(word.chars()).map(String::from).collect();
        loop {
            let rank = |i: usize| self.ranks.get(&(pieces[i].clone(), pieces[i + 1].clone())).copied();
            let best = (0..pieces.len() - 1).filter_map(|i| rank(i).map(|rank| (rank, i))).min();
            let Some((_, i)) = best else { return pieces };
            let second = pieces.remove(i + 1);
            pieces[i].push_str(&second);
        }
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    line.split_once(' ').map(|(a, b)| (a.to_owned(), b.trim_end().to_owned()))
}

fn byte_level(vocabulary: &HashMap<String, u32>, merges: &[(String, String)]) -> tokenizers::Result<Tokenizer> {
    let vocab: Vocab = vocabulary.iter().map(|(token, id)| (token.clone(), *id)).collect();
    let model = BPE::builder().vocab_and_merges(vocab, merges.to_vec()).build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))));
    let special = ["<s>", "<pad>", "</s>", "<unk>"].map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special)?;
    if vocabulary.contains_key("<mask>") {
        tokenizer.add_special_tokens([AddedToken::from("<mask>", true).lstrip(true)])?;
    }
    Ok(tokenizer)
}
