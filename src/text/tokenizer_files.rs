//! The files that a CLIP tokenizer is read from, and what they say: vocabulary, merges, side files.

use std::io::Read;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// openai/CLIP's merges, as every CLIP implementation ships them (MIT licence, Copyright (c) 2021 OpenAI).
static BUNDLED_MERGES: &[u8] = include_bytes!("../../assets/bpe_simple_vocab_16e6.txt.gz");
/// How many of the file's lines after its header are merges: 49,152 - 256 - 2 (openai/CLIP, simple_tokenizer.py).
const BUNDLED_MERGE_COUNT: usize = 48_894;

/// Joined text pieces, in the order of their priority.
pub(super) type Merges = Vec<(String, String)>;
/// Token text to id, in no particular order.
pub(super) type Vocabulary = Vec<(String, u32)>;

/// The small JSON files that stand beside a vocabulary; each may be missing.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    /// `tokenizer_config.json`
    pub config: Option<Vec<u8>>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Option<Vec<u8>>,
    /// `added_tokens.json`
    pub added_tokens: Option<Vec<u8>>,
}

/// Where a tokenizer's vocabulary comes from.
#[derive(Debug, Clone)]
pub enum TokenizerFiles {
    /// A `tokenizer.json`: only its vocabulary, merges, added tokens and sides are read; normalization and splitting are
    /// CLIP's own, as transformers' `CLIPTokenizer` does.
    Json {
        /// The file's bytes.
        tokenizer: Vec<u8>,
        /// What stands beside it.
        side: SideFiles,
        /// The folder's name for errors.
        place: String,
    },
    /// `vocab.json` and `merges.txt`.
    VocabMerges {
        /// `vocab.json`
        vocab: Vec<u8>,
        /// `merges.txt`
        merges: Vec<u8>,
        /// What stands beside them.
        side: SideFiles,
        /// The folder's name for errors.
        place: String,
    },
    /// openai/CLIP's 49,408 tokens, which come with scumble for checkpoints that hold no tokenizer.
    Bundled {
        /// The id that fills up short prompts: 49407 (the end token) for Stable Diffusion 1.x and SDXL's first text encoder,
        /// 0 (`!`) for 2.x and SDXL's second. A token that pads is special, so with 0 every `!` in a prompt is id 0, as
        /// in transformers with these models' `"pad_token": "!"`.
        pad: u32,
    },
}

impl TokenizerFiles {
    /// Finds a tokenizer's files in a folder: `read` gives a file's bytes by its name, or `None` where it does not exist.
    ///
    /// `tokenizer.json` is preferred, as in transformers. Errors: those of `read`; neither form is there.
    pub fn find(place: &str, mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let side = SideFiles {
            config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
        };
        let place = place.to_owned();
        if let Some(tokenizer) = read("tokenizer.json")? {
            return Ok(Self::Json { tokenizer, side, place });
        }
        let (vocab, merges) = (read("vocab.json")?, read("merges.txt")?);
        if let (Some(vocab), Some(merges)) = (vocab, merges) {
            return Ok(Self::VocabMerges { vocab, merges, side, place });
        }
        Err(Error::new("no tokenizer")
            .at(place)
            .expected("tokenizer.json, or vocab.json with merges.txt")
            .found("neither")
            .hint("downloading the model's tokenizer folder again"))
    }
}

/// A tokenizer's parts before any of them has a meaning.
pub(super) struct Parts {
    pub vocabulary: Vocabulary,
    pub merges: Merges,
    /// `tokenizer_config.json`
    pub config: Map<String, Value>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Map<String, Value>,
    /// `added_tokens.json`
    pub added_tokens: Map<String, Value>,
    /// `tokenizer.json` without its model.
    pub tokenizer: Map<String, Value>,
    /// For errors.
    pub place: String,
}

impl Parts {
    pub(super) fn read(files: &TokenizerFiles) -> Result<Self> {
        match files {
            TokenizerFiles::Json { tokenizer, side, place } => {
                let file = format!("{place}/tokenizer.json");
                let mut tokenizer = object(tokenizer, &file)?;
                let model = tokenizer.remove("model").unwrap_or(Value::Null);
                let (vocabulary, merges) = model_parts(&model, &file)?;
                Ok(Self { tokenizer, ..Self::with_side(vocabulary, merges, side, place)? })
            }
            TokenizerFiles::VocabMerges { vocab, merges, side, place } => {
                let file = format!("{place}/vocab.json");
                let vocabulary = vocabulary(&Value::Object(object(vocab, &file)?), &file)?;
                let merges = merge_lines(merges, &format!("{place}/merges.txt"))?;
                Self::with_side(vocabulary, merges, side, place)
            }
            TokenizerFiles::Bundled { pad } => {
                let (vocabulary, merges) = bundled()?;
                let place = "the CLIP vocabulary that comes with scumble";
                let mut parts = Self::with_side(vocabulary, merges, &SideFiles::default(), place)?;
                let Some((token, _)) = parts.vocabulary.iter().find(|(_, id)| id == pad) else {
                    return Err(Error::new("padding token").at(place).expected("an id below 49408").found(pad));
                };
                parts.config.insert("pad_token".into(), Value::String(token.clone()));
                Ok(parts)
            }
        }
    }

    fn with_side(vocabulary: Vocabulary, merges: Merges, side: &SideFiles, place: &str) -> Result<Self> {
        let read = |bytes: &Option<Vec<u8>>, name: &str| match bytes {
            Some(bytes) => object(bytes, &format!("{place}/{name}")),
            None => Ok(Map::new()),
        };
        Ok(Self {
            vocabulary,
            merges,
            config: read(&side.config, "tokenizer_config.json")?,
            special_tokens_map: read(&side.special_tokens_map, "special_tokens_map.json")?,
            added_tokens: read(&side.added_tokens, "added_tokens.json")?,
            tokenizer: Map::new(),
            place: place.to_owned(),
        })
    }
}

fn object(bytes: &[u8], file: &str) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(malformed(file, "a JSON object", &brief(&other))),
        Err(fault) => Err(malformed(file, "JSON", &fault.to_string())),
    }
}

fn model_parts(model: &Value, file: &str) -> Result<(Vocabulary, Merges)> {
    match model.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "BPE" => {}
        Some(other) => return Err(malformed(file, "a model of type BPE", &brief(other))),
    }
    let vocabulary = vocabulary(model.get("vocab").unwrap_or(&Value::Null), file)?;
    let Some(Value::Array(lines)) = model.get("merges") else {
        return Err(malformed(file, "model.merges, an array", "none"));
    };
    let merges = lines.iter().map(|line| merge_value(line, file)).collect::<Result<_>>()?;
    Ok((vocabulary, merges))
}

/// Both forms of `tokenizer.json`: `"a b"` (before tokenizers 0.20) and `["a", "b"]`.
fn merge_value(line: &Value, file: &str) -> Result<(String, String)> {
    match line {
        Value::String(text) => merge_line(text, file),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Ok((left.clone(), right.clone())),
            _ => Err(malformed(file, "a merge of two pieces", &brief(line))),
        },
        other => Err(malformed(file, "a merge of two pieces", &brief(other))),
    }
}

fn vocabulary(vocab: &Value, file: &str) -> Result<Vocabulary> {
    let Value::Object(map) = vocab else {
        return Err(malformed(file, "a vocabulary (token to id)", &brief(vocab)));
    };
    map.iter()
        .map(|(token, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok((token.clone(), id)),
            None => Err(malformed(file, &format!("an id for token {token:?}"), &brief(id))),
        })
        .collect()
}

fn merge_lines(bytes: &[u8], file: &str) -> Result<Merges> {
    let text = std::str::from_utf8(bytes).map_err(|fault| malformed(file, "UTF-8 text", &fault.to_string()))?;
    text.lines().filter(|line| !line.starts_with("#version")).map(|line| merge_line(line, file)).collect()
}

fn merge_line(line: &str, file: &str) -> Result<(String, String)> {
    match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(malformed(file, "two pieces with a space between them", &format!("{:?}", clip(line)))),
    }
}

/// openai/CLIP's vocabulary: 256 bytes, the same 256 with `</w>`, the merges joined, the start and the end token.
fn bundled() -> Result<(Vocabulary, Merges)> {
    let mut text = String::new();
    let file = "bpe_simple_vocab_16e6.txt.gz";
    flate2::read::GzDecoder::new(BUNDLED_MERGES)
        .read_to_string(&mut text)
        .map_err(|fault| malformed(file, "gzipped text", &fault.to_string()))?;
    let merges: Merges =
        text.lines().skip(1).take(BUNDLED_MERGE_COUNT).map(|line| merge_line(line, file)).collect::<Result<_>>()?;
    let letters = byte_letters();
    let words = letters
        .iter()
        .map(char::to_string)
        .chain(letters.iter().map(|letter| format!("{letter}</w>")))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    Ok((words.zip(0..).collect(), merges))
}

/// CLIP's own tokenizer as the files of a tokenizer folder, name and contents, for prompts that `pad_token` fills up.
///
/// # Errors
/// When scumble's own vocabulary is broken.
pub fn clip_folder(pad_token: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (vocabulary, merges) = bundled()?;
    let ids: Map<String, Value> = vocabulary.into_iter().map(|(word, id)| (word, id.into())).collect();
    let mut lines = String::from("#version: 0.2\n");
    for (left, right) in merges {
        lines.extend([&left, " ", &right, "\n"]);
    }
    let token = |text: &str| json!({"content": text, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let special = json!({
        "bos_token": token("<|startoftext|>"),
        "eos_token": token("<|endoftext|>"),
        "unk_token": token("<|endoftext|>"),
        "pad_token": pad_token,
    });
    let config = json!({
        "add_prefix_space": false,
        "bos_token": "<|startoftext|>",
        "do_lower_case": true,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    });
    Ok(vec![
        ("vocab.json", Value::Object(ids).to_string().into_bytes()),
        ("merges.txt", lines.into_bytes()),
        ("special_tokens_map.json", format!("{special:#}\n").into_bytes()),
        ("tokenizer_config.json", format!("{config:#}\n").into_bytes()),
    ])
}

/// The 256 letters that stand for bytes in a byte-level vocabulary, in the order of CLIP's ids: first the bytes that print
/// in Latin-1, then the others as U+0100 onwards (openai/CLIP, simple_tokenizer.py `bytes_to_unicode`).
fn byte_letters() -> Vec<char> {
    let printable: Vec<char> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').collect();
    let rest = 256 - printable.len();
    printable.into_iter().chain(('\u{100}'..).take(rest)).collect()
}

pub(super) fn malformed(file: &str, expected: &str, found: &str) -> Error {
    Error::new("malformed tokenizer file")
        .at(file)
        .expected(expected)
        .found(found)
        .hint("downloading the model's tokenizer again")
}

/// A value as an error can show it.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(map) => format!("an object of {}", map.len()),
        Value::String(text) => format!("{:?}", clip(text)),
        other => other.to_string(),
    }
}

fn clip(text: &str) -> String {
    text.chars().take(60).collect()
}
