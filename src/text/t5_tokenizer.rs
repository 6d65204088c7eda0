//! T5's tokenizer: SentencePiece's unigram pieces, from `tokenizer.json` or from `spiece.model`.

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{Error, Result};

/// Pieces that transformers appends to those of the file, for T5's training on gaps.
const EXTRA: u32 = 100;

/// The tokenizer's files.
#[derive(Debug, Clone, Copy)]
pub struct T5Files<'a> {
    /// Where they are, for errors.
    pub place: &'a str,
    /// `tokenizer.json`.
    pub whole: Option<&'a [u8]>,
    /// `spiece.model`, which serves where there is none.
    pub pieces: Option<&'a [u8]>,
}

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct T5Tokens {
    /// Text, end, padding.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub count: usize,
    /// What of the text was left out, if anything.
    pub cut: Option<String>,
}

/// Texts to ids.
#[derive(Debug)]
pub struct T5Tokenizer {
    tokenizer: Tokenizer,
    place: String,
    end: u32,
    pad: u32,
}

impl T5Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// Malformed files; no special tokens.
    pub fn load(files: &T5Files<'_>) -> Result<Self> {
        let place = files.place.trim_end_matches('/').to_owned();
        let fault = |file: &str, found: &dyn std::fmt::Display| {
            Error::new("broken tokenizer").at(format!("{place}/{file}")).expected("a T5 tokenizer").found(found)
        };
        let mut tokenizer = match (files.whole, files.pieces) {
            (Some(bytes), _) => Tokenizer::from_bytes(bytes).map_err(|error| fault("tokenizer.json", &error))?,
            (None, Some(bytes)) => from_pieces(bytes).map_err(|error| fault("spiece.model", &error))?,
            (None, None) => return Err(fault("tokenizer.json", &"nothing")),
        };
        tokenizer.with_truncation(None).map_err(|error| fault("tokenizer.json", &error))?;
        tokenizer.with_padding(None);
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| fault(token, &"no such token"));
        let (end, pad) = (id("</s>")?, id("<pad>")?);
        Ok(Self { tokenizer, place, end, pad })
    }

    /// The ids of `text`, `length` of them: lower case and without outer white space, as diffusers' pipelines of IF clean a
    /// caption where they lack the packages for more.
    ///
    /// # Errors
    /// The tokenizer cannot spell the text.
    pub fn encode(&self, text: &str, length: usize) -> Result<T5Tokens> {
        let text = text.to_lowercase();
        let text = text.trim();
        let encoding = self.tokenizer.encode(text, false).map_err(|error| {
            Error::new("the tokenizer cannot spell the text").at(&self.place).found(error.to_string())
        })?;
        let mut ids = encoding.get_ids().to_vec();
        let most = length.saturating_sub(1);
        let cut = (ids.len() > most).then(|| {
            let from = encoding.get_offsets().get(most).map_or(0, |offsets| offsets.0);
            text.get(from..).unwrap_or("").trim().to_owned()
        });
        ids.truncate(most);
        ids.push(self.end);
        let count = ids.len();
        ids.resize(length, self.pad);
        Ok(T5Tokens { ids, count, cut })
    }
}

/// As transformers' `T5Tokenizer` (5.23) is made of a SentencePiece model.
fn from_pieces(bytes: &[u8]) -> std::result::Result<Tokenizer, String> {
    let model = Model::read(bytes).ok_or("a truncated or foreign file")?;
    let unknown = model.pieces.iter().position(|piece| piece.kind == UNKNOWN).ok_or("no unknown piece")?;
    let special: Vec<AddedToken> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind == UNKNOWN || piece.kind == CONTROL)
        .map(|piece| AddedToken::from(piece.text.clone(), true))
        .collect();
    let mut vocabulary: Vec<(String, f64)> =
        model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
    vocabulary.extend((0..EXTRA).rev().map(|index| (format!("<extra_id_{index}>"), 0.0)));
    let unigram = Unigram::from(vocabulary, Some(unknown), false).map_err(|error| error.to_string())?;
    let mut tokenizer = Tokenizer::new(unigram);
    if !model.charsmap.is_empty() {
        let charsmap = Precompiled::from(&model.charsmap).map_err(|error| error.to_string())?;
        tokenizer.with_normalizer(Some(charsmap)).map_err(|error| error.to_string())?;
    }
    let metaspace = Metaspace::new('\u{2581}', PrependScheme::Always, true);
    let splits = vec![PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit), PreTokenizerWrapper::Metaspace(metaspace)];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(splits)));
    let extra = (0..EXTRA).map(|index| AddedToken::from(format!("<extra_id_{index}>"), true));
    let special: Vec<AddedToken> = special.into_iter().chain(extra).collect();
    tokenizer.add_special_tokens(special).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

/// SentencePiece's types of pieces that text never has.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What is read of `sentencepiece_model.proto`.
#[derive(Default)]
struct Model {
    pieces: Vec<Piece>,
    charsmap: Vec<u8>,
}

impl Model {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut model = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (3, Field::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Field::Bytes(charsmap)) = field? {
                            model.charsmap = charsmap.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
                (2, Field::Fixed(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Some(piece)
    }
}

enum Field<'a> {
    Number(u64),
    Fixed(u32),
    Bytes(&'a [u8]),
    Long,
}

/// The fields of a protobuf message: number and value; `None` where it is broken.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Long)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}
