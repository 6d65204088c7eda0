//! One safetensors file, memory-mapped or compiled in: names, shapes, and values converted to f32 on request.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;

use super::safetensors_header::{self, Entry, FileType};
use super::shown;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Shorter parts of a file are not worth a system call to release.
#[cfg(unix)]
const RELEASED_BYTES: usize = 16 << 10;
/// A page fault maps the file's cached pages of the whole block of this size (Linux: `fault_around_bytes`).
#[cfg(unix)]
const FAULT_BYTES: usize = 64 << 10;

/// The bytes of a file.
enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

/// A checked safetensors file whose tensors can be read in any order, any number of elements at a time.
pub struct SafetensorsFile {
    bytes: Bytes,
    entries: HashMap<String, Entry>,
    place: String,
}

impl SafetensorsFile {
    /// Maps the file at `path` and checks its header.
    ///
    /// As with every memory map, a file that another program shortens while it is in use ends this one.
    pub fn open(path: &Path) -> Result<Self> {
        let fault = |e: &std::io::Error| Error::io("cannot read the weights", path, e);
        let file = File::open(path).map_err(|e| fault(&e))?;
        let metadata = file.metadata().map_err(|e| fault(&e))?;
        if !metadata.is_file() {
            return Err(Error::new("cannot read the weights")
                .at(path.display())
                .expected("a file")
                .found("a directory"));
        }
        let bytes = if metadata.len() == 0 {
            Bytes::Static(&[])
        } else {
            // SAFETY: the map is read-only; the risk that the file changes underneath is documented above.
            Bytes::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(|e| fault(&e))?)
        };
        Self::checked(bytes, path.display().to_string())
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
        let mut file = Self { bytes, entries: HashMap::new(), place };
        file.entries = safetensors_header::parse(file.all(), &file.place)?;
        Ok(file)
    }

    fn all(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The path or name given on opening.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Feeds the whole file to a hash.
    pub fn hash_into(&self, hash: &mut impl sha2::Digest) {
        hash.update(self.all());
    }

    /// All names, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Axis lengths of `name`, slowest first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Element type of `name`; an error if there is no such tensor or its type cannot be read as f32.
    pub fn float_type(&self, name: &str) -> Result<DType> {
        self.float_bytes(name).map(|(dtype, _)| dtype)
    }

    /// Appends elements `range` (in the file's row-major order) of `name` to `out`, converted to f32.
    pub fn read(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (dtype, bytes) = self.float_bytes(name)?;
        let count = bytes.len() / dtype.bytes();
        if range.start > range.end || range.end > count {
            let place = format!("{}: `{}`", self.place, shown(name));
            let error = Error::new("elements beyond the tensor's end").at(place).expected(format!("0..{count}"));
            return Err(error.found(format!("{range:?}")));
        }
        let part = &bytes[range.start * dtype.bytes()..range.end * dtype.bytes()];
        convert(dtype, part, out);
        self.release(part);
        Ok(())
    }

    /// Gives the pages of `part`, which has been read, back to the system, so that a checkpoint that has been uploaded does
    /// not count as memory of this program. Whoever reads them again gets them from the file again.
    #[cfg(unix)]
    fn release(&self, part: &[u8]) {
        if let Bytes::Mapped(map) = &self.bytes
            && part.len() >= RELEASED_BYTES
        {
            let begin = part.as_ptr().addr() - map.as_ptr().addr();
            let (offset, end) = (begin / FAULT_BYTES * FAULT_BYTES, begin + part.len());
            // SAFETY: the map is shared and read-only, so its pages hold nothing that the file does not hold.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, end - offset) };
            if let Err(fault) = advised {
                tracing::debug!("{}: pages stay mapped: {fault}", self.place);
            }
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _part: &[u8]) {}

    /// Type and bytes of a floating-point tensor.
    fn float_bytes(&self, name: &str) -> Result<(DType, &[u8])> {
        let place = || format!("{}: `{}`", self.place, shown(name));
        let entry = self.entries.get(name).ok_or_else(|| Error::new("no such tensor").at(place()))?;
        match entry.file_type {
            FileType::Float(dtype) => Ok((dtype, &self.all()[entry.bytes.clone()])),
            FileType::Other(found, _) => {
                Err(Error::new("unsupported element type").at(place()).expected("F32, F16 or BF16").found(found))
            }
        }
    }

    /// Appends columns `range` of the matrix `name` [R, C], each as R values: rows of the transposed tensor.
    pub fn read_columns(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (dtype, bytes) = self.float_bytes(name)?;
        let [rows, columns] = match self.shape(name) {
            Some(&[rows, columns]) => [rows, columns],
            other => {
                let place = format!("{}: `{}`", self.place, shown(name));
                return Err(Error::new("tensor shape")
                    .at(place)
                    .expected("a matrix")
                    .found(shown(&format!("{other:?}"))));
            }
        };
        if range.start > range.end || range.end > columns {
            return Err(super::rows_error(&self.place, name, &range, columns));
        }
        let start = out.len();
        out.resize(start + range.len() * rows, 0.0);
        let mut line = Vec::with_capacity(range.len());
        for row in 0..rows {
            line.clear();
            let at = (row * columns + range.start) * dtype.bytes()..(row * columns + range.end) * dtype.bytes();
            convert(dtype, &bytes[at], &mut line);
            for (column, value) in line.iter().enumerate() {
                out[start + column * rows + row] = *value;
            }
        }
        Ok(())
    }
}

/// Appends little-endian elements to `out` as f32; exact for all three types.
fn convert(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        DType::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        DType::BF16 => {
            out.extend(
                bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
            );
        }
        DType::F16 => convert_f16(bytes, out),
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
#[path = "safetensors_file_tests.rs"]
mod tests;
