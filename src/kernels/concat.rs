//! Two tensors side by side along the channels: the skip connections of the UNet.

use bytemuck::{Pod, Zeroable};

use super::{BATCH, Call, LANES, Launch, Limits, Variant, bands, fold, vector_bytes, vectors};
use crate::tensor::DType;

/// The uniform of `shaders/concat.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    width: u32,
    width_a: u32,
    width_b: u32,
    channels_a: u32,
    channels: u32,
    a_base: u32,
    b_base: u32,
    y_base: u32,
    step_rows: u32,
    step_columns: u32,
}

/// a [rows, A], b [rows, B] -> y [rows, A + B].
pub fn call(rows: u32, channels_a: u32, channels_b: u32, dtype: DType, limits: &Limits) -> Option<Call> {
    let channels = channels_a + channels_b;
    let width = vectors(channels);
    let bytes = vector_bytes(dtype);
    let sizes = [channels_a, channels_b, channels].map(|count| (u64::from(vectors(count)) * bytes, bytes));
    let launches =
        bands::rows(u64::from(rows), &sizes, u64::from(width), limits)?.into_iter().map(|(begin, end, parts)| {
            let params = Params {
                begin: begin as u32 * width,
                end: end as u32 * width,
                width,
                width_a: vectors(channels_a),
                width_b: vectors(channels_b),
                channels_a,
                channels,
                a_base: parts[0].base,
                b_base: parts[1].base,
                y_base: parts[2].base,
                step_rows: LANES as u32 / width,
                step_columns: LANES as u32 % width,
            };
            Launch {
                params: bytemuck::bytes_of(&params).to_vec(),
                workgroups: fold(((end - begin) * u64::from(width)).div_ceil(BATCH), limits),
                ranges: parts.iter().map(|part| Some((part.offset, part.size))).collect(),
            }
        });
    Some(Call {
        variant: Variant { stem: "concat", enables: vec![], constants: vec![], types: vec![("A", dtype)] },
        launches: launches.collect(),
        flops: 0,
        bytes: 2 * u64::from(rows) * u64::from(channels) * dtype.bytes() as u64,
    })
}

/// The same in f64.
pub fn reference(a: &[f64], channels_a: usize, b: &[f64], channels_b: usize) -> Vec<f64> {
    a.chunks_exact(channels_a).zip(b.chunks_exact(channels_b)).flat_map(|(x, y)| x.iter().chain(y).copied()).collect()
}
