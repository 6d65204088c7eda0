//! Token and position embeddings.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, vector_bytes, vectors, whole};
use crate::tensor::DType;

/// A table is bound in at most this many row ranges.
pub const RANGES: u32 = 4;

/// The uniform of `shaders/embed.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    count: u32,
    width: u32,
    tokens: u32,
    split: u32,
}

/// Rows of a range, so that each fits one binding; `None` when [`RANGES`] of them do not hold the table.
pub fn split(vocabulary: u32, channels: u32, dtype: DType, limits: &Limits) -> Option<u32> {
    let row = u64::from(vectors(channels)) * vector_bytes(dtype);
    let rows = (limits.binding / row).min(u64::from(vocabulary)) as u32;
    (rows > 0 && vocabulary.div_ceil(rows) <= RANGES).then_some(rows)
}

/// ids [B, T], positions [T, C], table ranges [split, C] -> y [B, T, C].
pub fn call(batch: u32, tokens: u32, channels: u32, split: u32, dtype: DType, limits: &Limits) -> Call {
    let width = vectors(channels);
    let count = batch * tokens * width;
    let params = Params { count, width, tokens, split };
    let variant =
        Variant { stem: "embed", enables: vec![], constants: vec![], types: vec![("Table", dtype), ("Y", dtype)] };
    let call = whole(variant, &params, fold(u64::from(count).div_ceil(LANES), limits), 7);
    Call { bytes: 2 * u64::from(count) * vector_bytes(dtype), ..call }
}

/// The same in f64.
pub fn reference(ids: &[u32], table: &[f64], positions: &[f64], channels: usize) -> Vec<f64> {
    let tokens = positions.len() / channels;
    let element = |i: usize, c: usize| table[ids[i] as usize * channels + c] + positions[i % tokens * channels + c];
    (0..ids.len()).flat_map(|i| (0..channels).map(move |c| (i, c))).map(|(i, c)| element(i, c)).collect()
}
