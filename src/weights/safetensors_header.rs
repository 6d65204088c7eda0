//! The header of a safetensors file: 8 bytes of length (little-endian), then that many bytes of JSON.
//!
//! Format: <https://huggingface.co/docs/safetensors/index#format>. The checks are at least as strict as those of the
//! `safetensors` crate (a property test holds the two against each other); written here so that an error can name the
//! tensor, and because the crate lets duplicate names pass.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::shown;
use super::stored::{Contents, Entry, FileType, Layout, byte_size};
use crate::error::{Error, Result};

/// Bytes that hold the header's length.
const LENGTH_BYTES: usize = 8;
/// The format's own bound on the header's length.
const LONGEST_HEADER: usize = 100_000_000;

/// Whether a file begins as one of this format does: a possible length of the header, and a brace.
pub(super) fn begins(file: &[u8]) -> bool {
    let length = file.first_chunk::<LENGTH_BYTES>().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| length <= LONGEST_HEADER as u64) && file.get(LENGTH_BYTES) == Some(&b'{')
}

/// Reads and checks the header of `file`; `place` names it in errors.
pub(super) fn parse(file: &[u8], place: &str) -> Result<Contents> {
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
    let entries = check(raw.tensors, start, file.len(), place)?;
    Ok(Contents { entries, metadata: raw.metadata, left_out: Vec::new() })
}

/// Turns raw entries into checked ones: known types, lengths that fit their shapes, bytes without overlap or hole.
fn check(raw: Vec<(String, RawEntry)>, start: usize, end: usize, place: &str) -> Result<BTreeMap<String, Entry>> {
    let fault = |what: &str, name: &str| {
        Error::new(what).at(format!("{place}: `{}`", shown(name))).hint("downloading or exporting the file again")
    };
    let mut order: Vec<(usize, usize)> = raw.iter().map(|(_, e)| e.data_offsets).collect();
    order.sort_unstable();
    let mut entries = BTreeMap::new();
    for (name, RawEntry { dtype, shape, data_offsets: (from, to) }) in raw {
        let Some(file_type) = FileType::parse(&dtype) else {
            return Err(Error::new("unsupported element type")
                .at(format!("{place}: `{}`", shown(&name)))
                .found(shown(&dtype))
                .expected("F32, F16 or BF16"));
        };
        let Some(size) = byte_size(&shape, file_type) else {
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
        entries.insert(name, Entry { file_type, shape, layout: Layout::Plain(start + from..start + to) });
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
    metadata: BTreeMap<String, String>,
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
                let mut metadata = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the name `{}` twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        metadata = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                    } else {
                        let entry =
                            map.next_value().map_err(|e| A::Error::custom(format!("`{}`: {e}", shown(&name))))?;
                        tensors.push((name, entry));
                    }
                }
                Ok(RawHeader { tensors, metadata })
            }
        }
        deserializer.deserialize_map(Header)
    }
}
