//! The header of a safetensors file: 8 bytes of length (little-endian), then that many bytes of JSON.
//!
//! Format: <https://huggingface.co/docs/safetensors/index#format>. The checks are at least as strict as those of the
//! `safetensors` crate (a property test holds the two against each other); written here so that an error can name the
//! tensor, and because the crate lets duplicate names pass.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::shown;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Bytes that hold the header's length.
const LENGTH_BYTES: usize = 8;
/// The format's own bound on the header's length.
const LONGEST_HEADER: usize = 100_000_000;

/// Element types of the format; integers may lie in a file but nobody may ask for their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    /// A type that scumble converts to f32.
    Float(DType),
    /// Any other whole-byte type of the format, with its name and bytes per element.
    Other(&'static str, usize),
}

impl FileType {
    /// Names and sizes as in the format's reference implementation.
    fn parse(name: &str) -> Option<Self> {
        const OTHERS: [(&str, usize); 13] = [
            ("BOOL", 1),
            ("U8", 1),
            ("I8", 1),
            ("F8_E5M2", 1),
            ("F8_E4M3", 1),
            ("F8_E8M0", 1),
            ("I16", 2),
            ("U16", 2),
            ("I32", 4),
            ("U32", 4),
            ("I64", 8),
            ("U64", 8),
            ("F64", 8),
        ];
        match name {
            "F32" => Some(Self::Float(DType::F32)),
            "F16" => Some(Self::Float(DType::F16)),
            "BF16" => Some(Self::Float(DType::BF16)),
            _ => OTHERS.iter().find(|(n, _)| *n == name).map(|&(n, bytes)| Self::Other(n, bytes)),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.bytes(),
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// One tensor of a header.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub file_type: FileType,
    pub shape: Vec<usize>,
    /// Where its bytes lie in the whole file.
    pub bytes: Range<usize>,
}

/// Reads and checks the header of `file`; `place` names it in errors.
pub(super) fn parse(file: &[u8], place: &str) -> Result<HashMap<String, Entry>> {
    let fault = |what: &str| Error::new(what).at(place).hint("downloading or exporting the file again");
    let Some(length) = file.first_chunk::<LENGTH_BYTES>() else {
        let what = if file.is_empty() { "empty safetensors file" } else { "truncated safetensors file" };
        return Err(fault(what).expected("at least 8 bytes").found(format!("{} bytes", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let rest = file.len() - LENGTH_BYTES;
    let length = match usize::try_from(length) {
        Ok(n) if n <= LONGEST_HEADER && n <= rest => n,
        Ok(n) if n <= LONGEST_HEADER => {
            return Err(fault("truncated safetensors header").expected(format!("{n} bytes")).found(format!("{rest}")));
        }
        _ => {
            let error = fault("not a safetensors file").expected(format!("a header of at most {LONGEST_HEADER} bytes"));
            return Err(error.found(format!("a header length of {length}")));
        }
    };
    let start = LENGTH_BYTES + length;
    let text = std::str::from_utf8(&file[LENGTH_BYTES..start])
        .map_err(|e| fault("safetensors header").expected("UTF-8").found(format!("{e}")))?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|e| {
        fault("safetensors header").expected("JSON of the safetensors format").found(shown(&e.to_string()))
    })?;
    check(raw.tensors, start, file.len(), place)
}

/// Turns raw entries into checked ones: known types, lengths that fit their shapes, bytes without overlap or hole.
fn check(raw: Vec<(String, RawEntry)>, start: usize, end: usize, place: &str) -> Result<HashMap<String, Entry>> {
    let fault = |what: &str, name: &str| {
        Error::new(what).at(format!("{place}: `{}`", shown(name))).hint("downloading or exporting the file again")
    };
    let mut order: Vec<(usize, usize)> = raw.iter().map(|(_, e)| e.data_offsets).collect();
    order.sort_unstable();
    let mut entries = HashMap::with_capacity(raw.len());
    for (name, RawEntry { dtype, shape, data_offsets: (from, to) }) in raw {
        let Some(file_type) = FileType::parse(&dtype) else {
            return Err(Error::new("unsupported element type")
                .at(format!("{place}: `{}`", shown(&name)))
                .found(shown(&dtype))
                .expected("F32, F16 or BF16"));
        };
        // Axes of length 0 must not hide others whose product overflows: later code multiplies any of them.
        let bounded = shape.iter().try_fold(file_type.bytes(), |size, &axis| size.checked_mul(axis.max(1)));
        let Some(size) = bounded.map(|size| if shape.contains(&0) { 0 } else { size }) else {
            return Err(fault("tensor too large", &name)
                .expected("a size in bytes")
                .found(shown(&format!("shape {shape:?}"))));
        };
        if to < from || to - from != size {
            let expected = format!("{size} bytes for {dtype} of shape {}", shown(&format!("{shape:?}")));
            return Err(fault("tensor data", &name).expected(expected).found(format!("offsets {from}..{to}")));
        }
        if to > end - start {
            let error = fault("tensor data beyond the file's end", &name).expected(format!("at most {}", end - start));
            return Err(error.found(format!("offsets {from}..{to}")));
        }
        entries.insert(name, Entry { file_type, shape, bytes: start + from..start + to });
    }
    let mut next = 0;
    for (from, to) in order {
        if from != next {
            let what = if from < next { "overlapping tensor data" } else { "hole in the tensor data" };
            let error = Error::new(what).at(place).expected(format!("a tensor at offset {next}"));
            return Err(error.found(format!("offset {from}")).hint("downloading or exporting the file again"));
        }
        next = to;
    }
    if next != end - start {
        let error = Error::new("bytes after the last tensor").at(place).expected(format!("{next} bytes of data"));
        return Err(error.found(end - start).hint("downloading or exporting the file again"));
    }
    Ok(entries)
}

/// A tensor as the header's JSON has it.
#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's JSON: tensors in the order of the file, no name twice.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the name `{}` twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<Option<HashMap<String, String>>>()?;
                    } else {
                        let entry =
                            map.next_value().map_err(|e| A::Error::custom(format!("`{}`: {e}", shown(&name))))?;
                        tensors.push((name, entry));
                    }
                }
                Ok(RawHeader { tensors })
            }
        }
        deserializer.deserialize_map(Header)
    }
}
