//! One row of each batch element put into its place in a tensor that lives on: a step's keys and values into their cache.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, vector_bytes, vectors, whole};
use crate::tensor::DType;

/// Bytes that an invocation copies: a vector of halves.
const UNIT: u64 = 8;

/// What to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutRow {
    /// Batch elements.
    pub batch: u32,
    /// Channels of a row of x.
    pub channels: u32,
    /// The first of those that are copied, a multiple of four.
    pub first: u32,
    /// How many are copied: the channels of y.
    pub count: u32,
    /// Rows of a batch element of y.
    pub rows: u32,
    /// The row that is written; `None` where the third operand says it.
    pub row: Option<u32>,
    /// Stored element type of x and y.
    pub dtype: DType,
}

/// The uniform of `shaders/put_row.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    end: u32,
    width: u32,
    x_width: u32,
    first: u32,
    rows: u32,
    fixed: u32,
    pad0: u32,
    pad1: u32,
}

/// x, at -> y. `None` when y is larger than a binding.
///
/// # Panics
/// When the copied channels do not begin with a vector.
pub fn call(config: &PutRow, limits: &Limits) -> Option<Call> {
    assert!(config.first.is_multiple_of(4), "a row is copied in vectors: {config:?}");
    let units = |channels: u32| u64::from(vectors(channels)) * vector_bytes(config.dtype) / UNIT;
    let [width, x_width, first] = [config.count, config.channels, config.first].map(|channels| units(channels) as u32);
    let end = config.batch * width;
    let params =
        Params { end, width, x_width, first, rows: config.rows, fixed: config.row.unwrap_or(0), pad0: 0, pad1: 0 };
    let constants = vec![("INDEXED", u32::from(config.row.is_none()))];
    let variant = Variant { stem: "put_row", enables: vec![], constants, types: vec![] };
    let grid = fold(u64::from(end).div_ceil(LANES), limits);
    let bytes = 2 * u64::from(end) * UNIT;
    let fits = u64::from(config.batch * config.rows) * u64::from(width) * UNIT <= limits.binding;
    fits.then(|| Call { bytes, ..whole(variant, &params, grid, 3) })
}

/// What each batch element's row of y holds in the end.
pub fn reference(config: &PutRow, x: &[f64]) -> Vec<f64> {
    let part = |row: &[f64]| row[config.first as usize..][..config.count as usize].to_vec();
    x.chunks_exact(config.channels as usize).flat_map(part).collect()
}
