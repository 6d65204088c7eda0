//! A tensor as it lies in a file, whatever the format: element type, shape, and the bytes of its elements in order.

use std::collections::BTreeMap;
use std::ops::Range;

use super::shown;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Axes of a tensor at most, in formats where a file could claim any number for a few bytes.
pub(super) const MOST_AXES: usize = 16;
/// Tensors of a file at most; the largest published checkpoints have some ten thousands.
pub(super) const MOST_TENSORS: usize = 1 << 18;
/// Bytes of all names of a file's tensors at most.
pub(super) const MOST_NAME_BYTES: usize = 64 << 20;
/// Levels of containers in each other at most.
pub(super) const MOST_LEVELS: usize = 64;
/// Values, containers included, of a file's structure at most.
pub(super) const MOST_VALUES: usize = 1 << 22;

/// Element types of a file; those that are no floats may lie in a file but nobody may ask for their values as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A type that scumble converts to f32 without loss.
    Float(DType),
    /// IEEE 754 double precision, rounded to f32 when read.
    Double,
    /// Any other whole-byte type, with its name in the safetensors format and bytes per element.
    Other(&'static str, usize),
}

impl FileType {
    /// Every type with its name in the safetensors format.
    pub(super) const ALL: [Self; 16] = [
        Self::Float(DType::F32),
        Self::Float(DType::F16),
        Self::Float(DType::BF16),
        Self::Double,
        Self::Other("BOOL", 1),
        Self::Other("U8", 1),
        Self::Other("I8", 1),
        Self::Other("F8_E5M2", 1),
        Self::Other("F8_E4M3", 1),
        Self::Other("F8_E8M0", 1),
        Self::Other("I16", 2),
        Self::Other("U16", 2),
        Self::Other("I32", 4),
        Self::Other("U32", 4),
        Self::Other("I64", 8),
        Self::Other("U64", 8),
    ];

    /// The type of that name in the safetensors format.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name in the safetensors format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(DType::F32) => "F32",
            Self::Float(DType::F16) => "F16",
            Self::Float(DType::BF16) => "BF16",
            Self::Double => "F64",
            Self::Other(name, _) => name,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.bytes(),
            Self::Double => 8,
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// Where the elements are, in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// These bytes of the file.
    Plain(Range<usize>),
    /// These pieces of the file, one after the other, each of whole elements.
    Pieces(Vec<Range<usize>>),
    /// Element i, j, ... is the one at `start + i * strides[0] + j * strides[1] + ...` bytes; checked to lie in the file.
    Strided { start: usize, strides: Vec<usize> },
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub file_type: FileType,
    /// Axis lengths, slowest first.
    pub shape: Vec<usize>,
    pub layout: Layout,
}

impl Entry {
    /// Number of elements; readers of files check that it fits.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Hands out elements `range` as runs of bytes, in order.
    pub fn runs<'a>(
        &self,
        file: &'a [u8],
        range: Range<usize>,
        mut take: impl FnMut(&'a [u8]) -> Result<()>,
    ) -> Result<()> {
        let size = self.file_type.bytes();
        match &self.layout {
            Layout::Plain(bytes) => take(&file[bytes.start + range.start * size..bytes.start + range.end * size]),
            Layout::Pieces(pieces) => {
                let mut first = 0;
                for piece in pieces {
                    let count = piece.len() / size;
                    let from = range.start.clamp(first, first + count) - first;
                    let to = range.end.clamp(first, first + count) - first;
                    if from < to {
                        take(&file[piece.start + from * size..piece.start + to * size])?;
                    }
                    first += count;
                }
                Ok(())
            }
            Layout::Strided { start, strides } => {
                let (run, outer) = self.longest_run(strides);
                let mut at = range.start;
                while at < range.end {
                    let mut rest = at / run;
                    let mut offset = *start + at % run * size;
                    for (axis, stride) in self.shape[..outer].iter().zip(strides).rev() {
                        offset += rest % axis * stride;
                        rest /= axis;
                    }
                    let length = (run - at % run).min(range.end - at);
                    take(&file[offset..offset + length * size])?;
                    at += length;
                }
                Ok(())
            }
        }
    }

    /// Elements that lie side by side wherever a run begins, and how many axes count the runs.
    fn longest_run(&self, strides: &[usize]) -> (usize, usize) {
        let (mut run, mut outer) = (1, self.shape.len());
        while outer > 0 && (self.shape[outer - 1] == 1 || strides[outer - 1] == run * self.file_type.bytes()) {
            outer -= 1;
            run *= self.shape[outer];
        }
        (run, outer)
    }
}

/// Bytes of a tensor, `None` if that overflows. Axes of length 0 do not hide others whose product overflows, since later
/// code multiplies any of them.
pub(super) fn byte_size(shape: &[usize], file_type: FileType) -> Option<usize> {
    let bounded = shape.iter().try_fold(file_type.bytes(), |size, &axis| size.checked_mul(axis.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { bounded })
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The tensors by name.
    pub entries: BTreeMap<String, Entry>,
    /// Free text that the file carries.
    pub metadata: BTreeMap<String, String>,
    /// Names of what else there is beside the tensors.
    pub left_out: Vec<String>,
}

/// Collects the tensors of a file whose structure can repeat and nest what it holds, within limits.
pub(super) struct Collector<'a> {
    contents: Contents,
    place: &'a str,
    file_length: usize,
    name_bytes: usize,
    data_bytes: usize,
}

impl<'a> Collector<'a> {
    /// For the file of `file_length` bytes that `place` names.
    pub fn new(place: &'a str, file_length: usize) -> Self {
        Self { contents: Contents::default(), place, file_length, name_bytes: 0, data_bytes: 0 }
    }

    /// Adds a tensor whose layout has been checked against the file. Errors: a name twice, or more of anything than
    /// a file of this length can mean.
    pub fn add(&mut self, name: String, entry: Entry) -> Result<()> {
        /// A tensor of a few bytes may be repeated along an axis, and tensors may share their bytes; data that a file holds
        /// many times over is an attack on memory or disk.
        const SHARED: usize = 16;
        const ALWAYS: usize = 64 << 20;
        let fault = |what: &str| Error::new(what).at(format!("{}: `{}`", self.place, shown(&name)));
        self.name_bytes += name.len();
        if self.name_bytes > MOST_NAME_BYTES || self.contents.entries.len() >= MOST_TENSORS {
            return Err(fault("too many tensors").expected(format!("at most {MOST_TENSORS}, with short names")));
        }
        let size = byte_size(&entry.shape, entry.file_type).ok_or_else(|| fault("tensor too large"))?;
        self.data_bytes = self.data_bytes.saturating_add(size);
        let most = self.file_length.saturating_mul(SHARED).saturating_add(ALWAYS);
        if self.data_bytes > most {
            let error = fault("tensors that repeat the file's data too often");
            return Err(error.expected(format!("at most {most} bytes in all")).found(self.data_bytes));
        }
        match self.contents.entries.entry(name) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(entry);
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(taken) => Err(Error::new("two tensors for one name")
                .at(format!("{}: `{}`", self.place, shown(taken.key())))
                .expected("one")),
        }
    }

    /// Notes that the file holds `name`, which is no tensor.
    pub fn leave_out(&mut self, name: &str) {
        const MOST: usize = 1000;
        if self.contents.left_out.len() < MOST {
            self.contents.left_out.push(shown(name));
        }
    }

    /// The result; an error if there is no tensor.
    pub fn finish(self, kind: &str) -> Result<Contents> {
        if self.contents.entries.is_empty() {
            return Err(Error::new("no tensors").at(self.place).found(kind).hint("a file of weights"));
        }
        Ok(self.contents)
    }
}
