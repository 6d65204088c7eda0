//! Token and position embeddings.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Launch, Limits, Variant, bands, fold, vector_bytes, vectors};
use crate::tensor::DType;

/// A table is bound in at most this many row ranges.
pub const RANGES: u32 = 4;

/// The uniform of `shaders/embed.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    width: u32,
    tokens: u32,
    split: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

/// Rows of a range, so that each fits one binding; `None` when [`RANGES`] of them do not hold the table.
pub fn split(vocabulary: u32, channels: u32, dtype: DType, limits: &Limits) -> Option<u32> {
    let row = u64::from(vectors(channels)) * vector_bytes(dtype);
    let rows = (limits.binding / row).min(u64::from(vocabulary)) as u32;
    (rows > 0 && vocabulary.div_ceil(rows) <= RANGES).then_some(rows)
}

/// ids [B, T], positions [T.., C], table ranges [split, C] -> y [B, T, C]. Behind an id stands the position of its row's first
/// token, 0 for a whole text. `None` when one row is too large for a binding.
pub fn call(batch: u32, tokens: u32, channels: u32, split: u32, dtype: DType, limits: &Limits) -> Option<Call> {
    let (rows, width) = (u64::from(batch * tokens), vectors(channels));
    let row = u64::from(width) * vector_bytes(dtype);
    let launches = bands::rows(rows, &[(row, vector_bytes(dtype))], u64::from(width), limits)?;
    let launches = launches.into_iter().map(|(begin, end, parts)| {
        let params = Params {
            begin: begin as u32 * width,
            end: end as u32 * width,
            width,
            tokens,
            split,
            y_base: parts[0].base,
            pad0: 0,
            pad1: 0,
        };
        let mut ranges = vec![None; 2 + RANGES as usize];
        ranges.push(Some((parts[0].offset, parts[0].size)));
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold(((end - begin) * u64::from(width)).div_ceil(LANES), limits),
            ranges,
        }
    });
    let types = vec![("Table", dtype), ("Y", dtype)];
    let variant = Variant { stem: "embed", enables: vec![], constants: vec![], types };
    Some(Call { variant, launches: launches.collect(), flops: rows * u64::from(channels), bytes: 2 * rows * row })
}

/// The same in f64.
pub fn reference(ids: &[u32], table: &[f64], positions: &[f64], channels: usize) -> Vec<f64> {
    let tokens = positions.len() / channels;
    let element = |i: usize, c: usize| table[ids[i] as usize * channels + c] + positions[i % tokens * channels + c];
    (0..ids.len()).flat_map(|i| (0..channels).map(move |c| (i, c))).map(|(i, c)| element(i, c)).collect()
}
