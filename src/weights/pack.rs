//! From a checkpoint's rows to the layouts that kernels read, a panel at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::Source;
use crate::error::Result;
use crate::graph::{Layout, RowSource, WeightSpec};
use crate::tensor::DType;

/// Bytes handed on at once, about.
const PIECE_BYTES: usize = 4 << 20;
/// Columns of the result that a panel holds.
const PANEL: usize = 32;

/// Packs one weight and hands its bytes on in order, in pieces of a few MiB.
///
/// # Errors
/// When a tensor cannot be read, or `sink` fails.
pub fn pack(spec: &WeightSpec, source: Option<&dyn Source>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    if let Layout::Constant { values } = &spec.layout {
        let mut padded = values.clone();
        padded.resize(values.len().next_multiple_of(32), 0.0);
        return sink(bytemuck::cast_slice(&padded));
    }
    let source =
        source.unwrap_or_else(|| panic!("weight {:?} belongs to part {}, which was not given", spec.keys, spec.part));
    match &spec.layout {
        Layout::Matrix { rows, columns, taps, dtype } => {
            let matrix = Matrix { rows, columns, taps: *taps as usize, dtype: *dtype };
            pack_matrix(source, &spec.keys, &matrix, sink)
        }
        Layout::Vector { rows } => {
            let mut reader = Rows { source, keys: &spec.keys, buffer: Vec::new() };
            let mut values = vec![0f32; rows.len().next_multiple_of(32)];
            for (at, (key, row), count) in runs(rows) {
                values[at..at + count].copy_from_slice(reader.read(key, row..row + count)?);
            }
            sink(bytemuck::cast_slice(&values))
        }
        Layout::Table { first, count, channels, dtype } => {
            let channels = *channels as usize;
            let padded = channels.next_multiple_of(4);
            let step = (PIECE_BYTES / (padded * dtype.bytes())).max(1);
            let mut reader = Rows { source, keys: &spec.keys, buffer: Vec::new() };
            let end = (*first + *count) as usize;
            let mut row = *first as usize;
            while row < end {
                let next = (row + step).min(end);
                let mut values = vec![0f32; (next - row) * padded];
                let read = reader.read(0, row..next)?;
                for (to, from) in values.chunks_exact_mut(padded).zip(read.chunks_exact(channels)) {
                    to[..channels].copy_from_slice(from);
                }
                sink(&encode(&values, *dtype))?;
                row = next;
            }
            Ok(())
        }
        Layout::Constant { .. } => Ok(()),
    }
}

struct Rows<'a> {
    source: &'a dyn Source,
    keys: &'a [String],
    buffer: Vec<f32>,
}

impl Rows<'_> {
    fn read(&mut self, key: usize, rows: Range<usize>) -> Result<&[f32]> {
        // A vector is a matrix of one column to a source, so elements and rows are asked for alike.
        self.source.rows(&self.keys[key], rows, &mut self.buffer)?;
        Ok(&self.buffer)
    }
}

/// Consecutive rows of one source tensor: physical start, (key, source row), count.
fn runs(rows: &[RowSource]) -> Vec<(usize, (usize, usize), usize)> {
    let mut found: Vec<(usize, (usize, usize), usize)> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let Some((key, row)) = row.map(|(key, row)| (key as usize, row as usize)) else { continue };
        match found.last_mut() {
            Some((start, (k, first), count)) if *start + *count == at && *k == key && *first + *count == row => {
                *count += 1
            }
            _ => found.push((at, (key, row), 1)),
        }
    }
    found
}

fn pack_matrix(
    source: &dyn Source,
    keys: &[String],
    matrix: &Matrix<'_>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let panel_bytes = matrix.taps * matrix.columns.len() * PANEL * matrix.dtype.bytes();
    let together = (PIECE_BYTES / panel_bytes.max(1)).clamp(1, 64);
    for group in matrix.rows.chunks(PANEL * together) {
        let panels: Vec<&[RowSource]> = group.chunks(PANEL).collect();
        let packed: Result<Vec<Vec<u8>>> = panels
            .par_iter()
            .map(|panel| pack_panel(&mut Rows { source, keys, buffer: Vec::new() }, panel, matrix))
            .collect();
        packed?.iter().try_for_each(|bytes| sink(bytes))?;
    }
    Ok(())
}

/// What all panels of a matrix share.
struct Matrix<'a> {
    rows: &'a [RowSource],
    columns: &'a [Option<u32>],
    taps: usize,
    dtype: DType,
}

/// The bytes of 32 physical rows: [taps][K][32].
fn pack_panel(reader: &mut Rows<'_>, panel: &[RowSource], matrix: &Matrix<'_>) -> Result<Vec<u8>> {
    let Matrix { columns, taps, .. } = *matrix;
    let logical = columns.iter().flatten().count();
    let mut values = vec![0f32; taps * columns.len() * PANEL];
    for (at, (key, row), count) in runs(panel) {
        let read = reader.read(key, row..row + count)?;
        for (offset, source) in read.chunks_exact(logical * taps).enumerate() {
            for (k, column) in columns.iter().enumerate() {
                let Some(column) = column else { continue };
                let from = &source[*column as usize * taps..][..taps];
                for (tap, value) in from.iter().enumerate() {
                    values[(tap * columns.len() + k) * PANEL + at + offset] = *value;
                }
            }
        }
    }
    Ok(encode(&values, matrix.dtype))
}

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 | DType::BF16 => {
            let halves: Vec<half::f16> = values.iter().map(|value| half::f16::from_f32(*value)).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }
}
