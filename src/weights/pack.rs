//! From a checkpoint's rows to the layouts that kernels read, a panel at a time.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::Source;
use crate::error::Result;
use crate::graph::{Layout, RowSource, WeightSpec};
use crate::tensor::DType;

/// Bytes handed on at once, about.
const PIECE_BYTES: usize = 16 << 20;
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
            // A vector is one row of a table, and its elements are what a source calls rows.
            let vector = source.info(&spec.keys[0]).is_some_and(|info| info.shape.len() == 1);
            let unit = if vector { channels } else { 1 };
            let end = (*first + *count) as usize;
            let mut row = *first as usize;
            while row < end {
                let next = (row + step).min(end);
                let mut values = vec![0f32; (next - row) * padded];
                let read = reader.read(0, row * unit..next * unit)?;
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
    let together = (PIECE_BYTES / panel_bytes.max(1)).max(1);
    let mut piece = vec![0u8; panel_bytes * together.min(matrix.rows.len().div_ceil(PANEL))];
    for group in matrix.rows.chunks(PANEL * together) {
        let packed = &mut piece[..panel_bytes * group.len().div_ceil(PANEL)];
        let panels = packed.par_chunks_exact_mut(panel_bytes).zip(group.par_chunks(PANEL));
        panels
            .try_for_each_init(|| Panel::new(source, keys, matrix), |panel, (packed, rows)| panel.pack(rows, packed))?;
        sink(packed)?;
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

/// What one thread needs to pack panels.
struct Panel<'a> {
    reader: Rows<'a>,
    matrix: &'a Matrix<'a>,
    /// Values of a source row, of which a matrix may take some columns only.
    row: usize,
    /// The rows of a panel that consists of several runs.
    gathered: Vec<f32>,
    /// [taps][BLOCK][PANEL]: a block of channels, small enough for the first cache.
    tile: Vec<f32>,
}

/// Physical channels that are turned at once.
const BLOCK: usize = 16;

impl<'a> Panel<'a> {
    fn new(source: &'a dyn Source, keys: &'a [String], matrix: &'a Matrix<'a>) -> Self {
        Self {
            reader: Rows { source, keys, buffer: Vec::new() },
            matrix,
            row: keys.first().and_then(|key| source.info(key)).map_or(1, |info| info.matrix()[1]),
            gathered: Vec::new(),
            tile: vec![0.0; matrix.taps * BLOCK * PANEL],
        }
    }

    /// Reads up to 32 physical rows and writes [taps][K][32] of them.
    fn pack(&mut self, rows: &[RowSource], packed: &mut [u8]) -> Result<()> {
        let runs = runs(rows);
        let values = if let [(0, (key, row), PANEL)] = runs[..] {
            self.reader.read(key, row..row + PANEL)?
        } else {
            self.gathered.clear();
            self.gathered.resize(PANEL * self.row, 0.0);
            for (at, (key, row), count) in runs {
                let read = self.reader.read(key, row..row + count)?;
                self.gathered[at * self.row..(at + count) * self.row].copy_from_slice(read);
            }
            &self.gathered
        };
        assert_eq!(
            values.len(),
            PANEL * self.row,
            "{:?}: tensors of one matrix have rows of one length",
            self.reader.keys
        );
        let Matrix { columns, taps, dtype, .. } = *self.matrix;
        let bytes = PANEL * dtype.bytes();
        for (block, columns) in columns.chunks(BLOCK).enumerate() {
            match taps {
                1 => turn::<1>(values, self.row, columns, &mut self.tile),
                9 => turn::<9>(values, self.row, columns, &mut self.tile),
                taps => turn_any(values, self.row, columns, taps, &mut self.tile),
            }
            for (tap, tile) in self.tile.chunks_exact(BLOCK * PANEL).enumerate() {
                let begin = (tap * self.matrix.columns.len() + block * BLOCK) * bytes;
                let to = &mut packed[begin..begin + columns.len() * bytes];
                encode_into(&tile[..columns.len() * PANEL], dtype, to);
            }
        }
        Ok(())
    }
}

/// [`turn_any`] of a count of taps that the compiler knows.
fn turn<const TAPS: usize>(values: &[f32], row: usize, columns: &[Option<u32>], tile: &mut [f32]) {
    turn_any(values, row, columns, TAPS, tile);
}

/// 32 rows of `row` values [K][taps] -> `tile` [taps][BLOCK][PANEL] of these columns.
#[inline(always)]
fn turn_any(values: &[f32], row: usize, columns: &[Option<u32>], taps: usize, tile: &mut [f32]) {
    // Most columns follow one another as in the source; then the inner loop has neither a branch nor a look-up.
    let first = columns[0].unwrap_or(0);
    let straight =
        columns.len() == BLOCK && columns.iter().zip(first..).all(|(column, expected)| *column == Some(expected));
    for (lane, source) in values.chunks_exact(row).enumerate() {
        if straight {
            let source = &source[first as usize * taps..][..BLOCK * taps];
            for k in 0..BLOCK {
                for tap in 0..taps {
                    tile[(tap * BLOCK + k) * PANEL + lane] = source[k * taps + tap];
                }
            }
            continue;
        }
        for (k, column) in columns.iter().enumerate() {
            for tap in 0..taps {
                tile[(tap * BLOCK + k) * PANEL + lane] =
                    column.map_or(0.0, |column| source[column as usize * taps + tap]);
            }
        }
    }
}

/// Values as stored, in the bytes `to` that they take.
fn encode_into(values: &[f32], dtype: DType, to: &mut [u8]) {
    match dtype {
        DType::F32 => to.copy_from_slice(bytemuck::cast_slice(values)),
        DType::F16 | DType::BF16 => {
            const MOST: usize = BLOCK * PANEL;
            let mut halves = [half::f16::ZERO; MOST];
            for (values, to) in values.chunks(MOST).zip(to.chunks_mut(2 * MOST)) {
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                to.copy_from_slice(bytemuck::cast_slice(halves));
            }
        }
    }
}

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.bytes()];
    encode_into(values, dtype, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{RandomSource, TensorInfo};

    fn source(tensors: &[(&str, &[usize])]) -> RandomSource {
        let info = |shape: &[usize]| TensorInfo { dtype: DType::F32, shape: shape.to_vec() };
        RandomSource::new(3, tensors.iter().map(|(name, shape)| ((*name).to_owned(), info(shape))))
    }

    fn packed(source: &dyn Source, keys: &[&str], layout: Layout) -> Vec<u8> {
        let spec = WeightSpec { part: 0, keys: keys.iter().map(|key| (*key).to_owned()).collect(), layout };
        let mut bytes = Vec::new();
        pack(&spec, Some(source), &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert_eq!(bytes.len() as u64, spec.bytes());
        bytes
    }

    /// Every element of a packed matrix is where [`Layout::Matrix`] says, or zero.
    fn check_matrix(shapes: [[usize; 3]; 2], rows: &[RowSource], columns: &[Option<u32>]) {
        let taps = shapes[0][2];
        let source = source(&[("a", &shapes[0]), ("b", &shapes[1])]);
        let tensors = ["a", "b"].map(|name| (&source as &dyn Source).tensor(name).unwrap());
        for dtype in [DType::F32, DType::F16] {
            let layout = Layout::Matrix { rows: rows.to_vec(), columns: columns.to_vec(), taps: taps as u32, dtype };
            let bytes = packed(&source, &["a", "b"], layout);
            let stored = |index: usize| match dtype {
                DType::F32 => f32::from_le_bytes(bytes[4 * index..][..4].try_into().unwrap()),
                _ => half::f16::from_le_bytes(bytes[2 * index..][..2].try_into().unwrap()).to_f32(),
            };
            for n in 0..rows.len().next_multiple_of(PANEL) {
                for (tap, k) in (0..taps).flat_map(|tap| (0..columns.len()).map(move |k| (tap, k))) {
                    let value = rows.get(n).copied().flatten().zip(columns[k]).map_or(0.0, |((key, row), column)| {
                        let [_, width, _] = shapes[key as usize];
                        tensors[key as usize][(row as usize * width + column as usize) * taps + tap]
                    });
                    let value = if dtype == DType::F32 { value } else { half::f16::from_f32(value).to_f32() };
                    let vector = ((n / PANEL * taps + tap) * columns.len() + k) * 8 + n % PANEL / 4;
                    assert_eq!(stored(vector * 4 + n % 4), value, "row {n}, tap {tap}, k {k}, {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn matrices_lie_in_panels() {
        let whole = |key: u8, count: u32| (0..count).map(move |row| Some((key, row)));
        let straight: Vec<Option<u32>> = (0..48).map(Some).collect();
        for taps in [1, 4, 9] {
            let shapes = [[70, 48, taps], [33, 48, taps]];
            // Whole panels, a run that begins inside one, and the end of the second tensor.
            let rows: Vec<RowSource> = whole(0, 70).chain(whole(1, 33)).collect();
            check_matrix(shapes, &rows, &straight);
            // Holes in rows and columns, columns out of order, and fewer than a block of them at the end.
            let rows: Vec<RowSource> = whole(1, 20).chain([None; 5]).chain(whole(0, 9)).collect();
            let columns: Vec<Option<u32>> =
                (20..48).map(Some).chain([None; 3]).chain((0..20).map(Some)).chain([None]).collect();
            check_matrix(shapes, &rows, &columns);
            // A matrix that is cut by its columns: some of the source's, in whole blocks and not.
            for part in [0..32, 16..48, 5..41] {
                let columns: Vec<Option<u32>> = part.map(Some).collect();
                check_matrix(shapes, &rows, &columns);
            }
        }
    }

    #[test]
    fn vectors_and_tables_are_padded() {
        let source = source(&[("v", &[40]), ("t", &[9, 6])]);
        let tensor = |name: &str| (&source as &dyn Source).tensor(name).unwrap();
        let rows = (10..40).map(|row| Some((0, row))).chain([None]).collect();
        let bytes = packed(&source, &["v"], Layout::Vector { rows });
        let stored: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        assert_eq!((&stored[..30], stored[30], stored[31]), (&tensor("v")[10..], 0.0, 0.0));
        let bytes = packed(&source, &["t"], Layout::Table { first: 2, count: 5, channels: 6, dtype: DType::F32 });
        let stored: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        for (row, values) in stored.chunks_exact(8).enumerate() {
            assert_eq!((&values[..6], &values[6..]), (&tensor("t")[(row + 2) * 6..][..6], &[0.0; 2][..]));
        }
    }
}
