//! Rewriting checkpoints: any readable file as safetensors, and Stable Diffusion between its two layouts, one file in the
//! original key names and a directory in diffusers' layout.
//!
//! A [`Plan`] says what a file will hold; its bytes are taken from the mapped sources piece by piece when it is written,
//! so that a model of any size is converted in little memory. Unless another type is asked for, every bit is kept.

pub mod original_names;
pub mod to_diffusers;
pub mod to_single;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::stored::FileType;
use super::tensor_file::{Format, TensorFile};
use super::{file_source::Change, shown};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Elements that are read and converted at a time.
const PIECE: usize = 1 << 20;

/// Some elements of a stored tensor.
#[derive(Clone)]
struct Part {
    file: Arc<TensorFile>,
    stored: String,
    elements: Range<usize>,
    /// The whole matrix with its axes swapped, instead of `elements`.
    transposed: bool,
}

/// A tensor to be written: parts of stored ones, one after the other.
#[derive(Clone)]
struct Planned {
    name: String,
    file_type: FileType,
    shape: Vec<usize>,
    parts: Vec<Part>,
}

/// A safetensors file to be written.
pub struct Plan {
    tensors: Vec<Planned>,
    metadata: BTreeMap<String, String>,
    dtype: Option<DType>,
}

/// Why a plan could not be written.
#[derive(Debug)]
pub enum WriteError {
    /// The source cannot be converted.
    Source(Error),
    /// The target takes no more.
    Target(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(fault: io::Error) -> Self {
        Self::Target(fault)
    }
}

impl Plan {
    /// A file without tensors.
    fn new() -> Self {
        Self { tensors: Vec::new(), metadata: BTreeMap::from([("format".into(), "pt".into())]), dtype: None }
    }

    /// Every tensor of `file` under its own name, with the file's metadata.
    pub fn whole(file: &Arc<TensorFile>) -> Result<Self> {
        let mut plan = Self::new();
        match file.format() {
            Format::Safetensors => plan.metadata.clone_from(file.metadata()),
            Format::Msgpack => plan.metadata = BTreeMap::from([("format".into(), "flax".into())]),
            Format::TorchZip | Format::TorchScript | Format::TorchLegacy => {}
        }
        for name in file.names() {
            plan.add(name, file, name, Change::Keep)?;
        }
        Ok(plan)
    }

    /// Adds `stored` of `file`, changed, under `name`.
    fn add(&mut self, name: &str, file: &Arc<TensorFile>, stored: &str, change: Change) -> Result<()> {
        let missing = || Error::new("no such tensor").at(format!("{}: `{}`", file.place(), shown(stored)));
        let (shape, file_type) = file.shape(stored).zip(file.file_type(stored)).ok_or_else(missing)?;
        let (shape, part) = whole_part(file, stored, shape, change)?;
        self.tensors.push(Planned { name: name.into(), file_type, shape, parts: vec![part] });
        Ok(())
    }

    /// Stores floating-point tensors of any type as `dtype`.
    #[must_use]
    pub fn with_type(mut self, dtype: Option<DType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// The type that a tensor gets.
    fn type_of(&self, tensor: &Planned) -> FileType {
        match (self.dtype, tensor.file_type) {
            (Some(dtype), FileType::Float(_) | FileType::Double) => FileType::Float(dtype),
            (_, kind) => kind,
        }
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes of all tensors as they will be written.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| self.bytes_of(tensor)).sum()
    }

    fn bytes_of(&self, tensor: &Planned) -> u64 {
        tensor.shape.iter().product::<usize>() as u64 * self.type_of(tensor).bytes() as u64
    }

    /// Writes the file; `tell` is given how many bytes of tensors have been written. The widest elements come first, so that every
    /// tensor is aligned to its elements.
    ///
    /// # Errors
    /// When `out` fails, or a finite value becomes infinite in the type that was asked for.
    pub fn write(&self, out: &mut dyn Write, tell: &mut dyn FnMut(u64)) -> std::result::Result<(), WriteError> {
        let mut tensors: Vec<&Planned> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| {
            let size = |tensor| std::cmp::Reverse(self.type_of(tensor).bytes());
            (size(a), &a.name).cmp(&(size(b), &b.name))
        });
        let mut header = Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), json!(self.metadata));
        }
        let mut end = 0;
        for tensor in &tensors {
            let start = end;
            end += self.bytes_of(tensor);
            let entry =
                json!({"dtype": self.type_of(tensor).name(), "shape": tensor.shape, "data_offsets": [start, end]});
            header.insert(tensor.name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut done = 0;
        for tensor in tensors {
            for part in &tensor.parts {
                self.write_part(tensor, part, out, &mut |bytes| {
                    done += bytes;
                    tell(done);
                })?;
            }
        }
        Ok(())
    }

    fn write_part(
        &self,
        tensor: &Planned,
        part: &Part,
        out: &mut dyn Write,
        tell: &mut dyn FnMut(u64),
    ) -> std::result::Result<(), WriteError> {
        let mut bytes = Vec::new();
        let target = self.type_of(tensor);
        let step = if part.transposed { part.elements.len().max(1) } else { PIECE };
        for start in part.elements.clone().step_by(step) {
            let piece = start..(start + step).min(part.elements.end);
            bytes.clear();
            match target {
                FileType::Float(dtype) if target != tensor.file_type => {
                    let mut values = Vec::with_capacity(piece.len());
                    part.file.read(&part.stored, piece, &mut values).map_err(WriteError::Source)?;
                    narrow(&values, dtype, &mut bytes).map_err(|value| {
                        let place = format!("{}: `{}`", part.file.place(), shown(&part.stored));
                        let error = Error::new("a value beyond the type's range").at(place);
                        let error = error.expected(format!("at most the largest {}", dtype.name())).found(value);
                        WriteError::Source(error.hint("--dtype bf16 or f32"))
                    })?;
                }
                _ => {
                    let take = |run: &[u8]| {
                        bytes.extend_from_slice(run);
                        Ok(())
                    };
                    part.file.read_bytes(&part.stored, piece, take).map_err(WriteError::Source)?;
                }
            }
            if part.transposed {
                bytes = transposed(&bytes, tensor.shape[0], target.bytes());
            }
            out.write_all(&bytes)?;
            tell(bytes.len() as u64);
        }
        Ok(())
    }
}

/// All of a stored tensor, or the rows that `change` takes, and the shape that this gives.
fn whole_part(file: &Arc<TensorFile>, stored: &str, shape: &[usize], change: Change) -> Result<(Vec<usize>, Part)> {
    let place = || format!("{}: `{}`", file.place(), shown(stored));
    let count: usize = shape.iter().product();
    let changed = super::file_source::changed_shape(shape, change);
    let (elements, transposed) = match change {
        Change::Keep | Change::Squeeze | Change::SqueezeFront => (0..count, false),
        Change::RowPart(part, _) => {
            let length = changed.iter().product::<usize>();
            (part * length..(part + 1) * length, false)
        }
        // Written in one piece, which a projection of text vectors always is.
        Change::Transpose if count <= PIECE * 4 => (0..count, true),
        Change::Transpose => return Err(Error::new("matrix too large to transpose").at(place())),
    };
    Ok((changed, Part { file: Arc::clone(file), stored: stored.into(), elements, transposed }))
}

/// The bytes of a matrix with its axes swapped, which has `rows` rows afterwards.
fn transposed(bytes: &[u8], rows: usize, size: usize) -> Vec<u8> {
    let columns = bytes.len() / size / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for column in 0..columns {
            let at = (column * rows + row) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// Appends `values` as `dtype`, rounded to the nearest; the first finite value that would become infinite is the error.
fn narrow(values: &[f32], dtype: DType, out: &mut Vec<u8>) -> std::result::Result<(), f32> {
    let lost = |value: f32, is_finite: bool| value.is_finite() && !is_finite;
    for &value in values {
        match dtype {
            DType::F32 => out.extend(value.to_le_bytes()),
            DType::F16 => {
                let half = half::f16::from_f32(value);
                if lost(value, half.is_finite()) {
                    return Err(value);
                }
                out.extend(half.to_le_bytes());
            }
            DType::BF16 => {
                let half = half::bf16::from_f32(value);
                if lost(value, half.is_finite()) {
                    return Err(value);
                }
                out.extend(half.to_le_bytes());
            }
        }
    }
    Ok(())
}
