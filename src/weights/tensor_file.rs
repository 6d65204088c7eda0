//! One file of tensors, memory-mapped or compiled in: names, shapes, and values converted to f32 on request.
//!
//! What the file is follows from its first bytes, never from its name: safetensors, a PyTorch archive (`.ckpt`, `.pt`,
//! `.pth`, `.bin`: a zip of raw storages and a pickle, or the older row of pickles with raw storages behind; TorchScript
//! too), or flax's msgpack. Nothing in a file is executed, and nothing of the tensors' size is allocated on opening.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;

use super::bytes::Bytes;
use super::stored::{Contents, Entry, FileType};
use super::{msgpack, pickle, safetensors_header, shown};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// What a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://huggingface.co/docs/safetensors/index#format>.
    Safetensors,
    /// `torch.save` since PyTorch 1.6.
    TorchZip,
    /// `torch.jit.save`.
    TorchScript,
    /// `torch.save` before PyTorch 1.6.
    TorchLegacy,
    /// `flax.serialization.msgpack_serialize`.
    Msgpack,
}

impl Format {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch zip archive",
            Self::TorchScript => "TorchScript archive",
            Self::TorchLegacy => "PyTorch pickle",
            Self::Msgpack => "flax msgpack",
        }
    }
}

/// A checked file of tensors that can be read in any order, any number of elements at a time.
pub struct TensorFile {
    bytes: Bytes,
    contents: Contents,
    format: Format,
    place: String,
}

impl TensorFile {
    /// Maps the file at `path` and checks its structure.
    ///
    /// As with every memory map, a file that another program shortens while it is in use ends this one.
    pub fn open(path: &Path) -> Result<Self> {
        Self::checked(Bytes::map(path)?, path.display().to_string())
    }

    /// A file that was compiled into the program; `place` names it in errors.
    pub fn embedded(bytes: &'static [u8], place: impl Into<String>) -> Result<Self> {
        Self::checked(Bytes::Static(bytes), place.into())
    }

    /// A file that lies in memory; `place` names it in errors.
    pub fn from_bytes(bytes: Vec<u8>, place: impl Into<String>) -> Result<Self> {
        Self::checked(Bytes::Owned(bytes), place.into())
    }

    fn checked(bytes: Bytes, place: String) -> Result<Self> {
        let file = bytes.all();
        let (format, contents) = if safetensors_header::begins(file) {
            (Format::Safetensors, safetensors_header::parse(file, &place)?)
        } else if pickle::is_archive(file) {
            pickle::open_archive(file, &place)?
        } else if pickle::is_pickle(file) {
            (Format::TorchLegacy, pickle::open_legacy(file, &place)?)
        } else if let Some(kind) = other_format(file) {
            let expected = "safetensors, a PyTorch checkpoint or flax msgpack";
            return Err(Error::new("not a file of weights").at(place).expected(expected).found(kind));
        } else if msgpack::is_map(file) {
            (Format::Msgpack, msgpack::parse(file, &place)?)
        } else {
            (Format::Safetensors, safetensors_header::parse(file, &place)?)
        };
        Ok(Self { bytes, contents, format, place })
    }

    /// The path or name given on opening.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What the file's bytes are.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The free text that a safetensors file carries (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// Names of what the file holds beside its tensors (a training's counters and states), at most a thousand.
    pub fn left_out(&self) -> &[String] {
        &self.contents.left_out
    }

    /// Feeds the whole file to a hash.
    pub fn hash_into(&self, hash: &mut impl sha2::Digest) {
        hash.update(self.bytes.all());
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.entries.keys().map(String::as_str)
    }

    /// Axis lengths of `name`, slowest first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.contents.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Element type of `name` in the file.
    pub fn file_type(&self, name: &str) -> Option<FileType> {
        self.contents.entries.get(name).map(|e| e.file_type)
    }

    /// Element type of `name` as it is handed out: f32 for f64, otherwise the type in the file. An error if there is no such
    /// tensor or its type cannot be read as f32.
    pub fn float_type(&self, name: &str) -> Result<DType> {
        let entry = self.float_entry(name)?;
        Ok(if let FileType::Float(dtype) = entry.file_type { dtype } else { DType::F32 })
    }

    /// Appends elements `range` (in row-major order) of `name` to `out`, converted to f32.
    pub fn read(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let entry = self.float_entry(name)?;
        self.check_range(name, entry, &range)?;
        entry.runs(self.bytes.all(), range, |part| {
            convert(entry.file_type, part, out);
            self.bytes.release(part, &self.place);
            Ok(())
        })
    }

    /// Hands out the bytes of elements `range` (in row-major order) of `name`, of any type, little-endian, run by run.
    ///
    /// Errors: no such tensor, elements beyond its end, and those of `take`.
    pub fn read_bytes(&self, name: &str, range: Range<usize>, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let entry = self.entry(name)?;
        self.check_range(name, entry, &range)?;
        entry.runs(self.bytes.all(), range, |part| {
            take(part)?;
            self.bytes.release(part, &self.place);
            Ok(())
        })
    }

    fn check_range(&self, name: &str, entry: &Entry, range: &Range<usize>) -> Result<()> {
        let count = entry.count();
        if range.start > range.end || range.end > count {
            let error =
                Error::new("elements beyond the tensor's end").at(self.at(name)).expected(format!("0..{count}"));
            return Err(error.found(format!("{range:?}")));
        }
        Ok(())
    }

    /// A tensor as errors name it.
    fn at(&self, name: &str) -> String {
        format!("{}: `{}`", self.place, shown(name))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.contents.entries.get(name).ok_or_else(|| Error::new("no such tensor").at(self.at(name)))
    }

    /// A floating-point tensor.
    fn float_entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.entry(name)?;
        match entry.file_type {
            FileType::Float(_) | FileType::Double => Ok(entry),
            FileType::Other(found, _) => {
                Err(Error::new("unsupported element type").at(self.at(name)).expected("F32, F16 or BF16").found(found))
            }
        }
    }

    /// Appends columns `range` of the matrix `name` [R, C], each as R values: rows of the transposed tensor.
    pub fn read_columns(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let entry = self.float_entry(name)?;
        let &[rows, columns] = entry.shape.as_slice() else {
            let found = shown(&format!("{:?}", entry.shape));
            return Err(Error::new("tensor shape").at(self.at(name)).expected("a matrix").found(found));
        };
        if range.start > range.end || range.end > columns {
            return Err(super::rows_error(&self.place, name, &range, columns));
        }
        let start = out.len();
        out.resize(start + range.len() * rows, 0.0);
        let mut line = Vec::with_capacity(range.len());
        for row in 0..rows {
            line.clear();
            let elements = row * columns + range.start..row * columns + range.end;
            entry.runs(self.bytes.all(), elements, |part| {
                convert(entry.file_type, part, &mut line);
                Ok(())
            })?;
            for (column, value) in line.iter().enumerate() {
                out[start + column * rows + row] = *value;
            }
        }
        Ok(())
    }
}

/// What a file is that holds no tensors for scumble, by its first bytes.
fn other_format(file: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 7] = [
        (b"\x89HDF", "an HDF5 file (Keras)"),
        (b"GGUF", "a GGUF file"),
        (b"\x1f\x8b", "a gzip file"),
        (b"version https://git-lfs", "a Git LFS pointer instead of the file that it stands for"),
        (b"<!DOCTYPE", "a web page"),
        (b"<html", "a web page"),
        (b"\x89PNG", "a picture"),
    ];
    let tar = file.get(257..262) == Some(b"ustar");
    let kind = KINDS.iter().find(|(magic, _)| file.starts_with(magic)).map(|(_, kind)| *kind);
    kind.or_else(|| tar.then_some("a tar archive (PyTorch before 0.2, or packed files)"))
}

/// Appends little-endian elements to `out` as f32; exact for all but f64.
fn convert(file_type: FileType, bytes: &[u8], out: &mut Vec<f32>) {
    match file_type {
        FileType::Float(DType::F32) => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        FileType::Float(DType::BF16) => {
            out.extend(
                bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
            );
        }
        FileType::Float(DType::F16) => convert_f16(bytes, out),
        #[allow(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
        FileType::Double => out.extend(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        // Nobody gets here: `float_entry` refuses these.
        FileType::Other(..) => {}
    }
}

/// Half to single in blocks, so that the hardware's conversion serves even where the file is not aligned.
fn convert_f16(bytes: &[u8], out: &mut Vec<f32>) {
    const BLOCK: usize = 2048;
    let mut halves = [half::f16::ZERO; BLOCK];
    for block in bytes.as_chunks::<2>().0.chunks(BLOCK) {
        for (half, pair) in halves.iter_mut().zip(block) {
            *half = half::f16::from_le_bytes(*pair);
        }
        let start = out.len();
        out.resize(start + block.len(), 0.0);
        halves[..block.len()].convert_to_f32_slice(&mut out[start..]);
    }
}

#[cfg(test)]
#[path = "tensor_file_tests.rs"]
mod tests;
