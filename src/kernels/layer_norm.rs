//! LayerNorm over the channels of each row.

use bytemuck::{Pod, Zeroable};

use super::{Call, Limits, Variant, fold, vectors, whole};
use crate::tensor::DType;

/// What to compute, over [rows, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// Rows.
    pub rows: u32,
    /// C.
    pub channels: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Stored element type of the input and the output.
    pub dtype: DType,
}

/// The uniform of `shaders/layer_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    rows: u32,
    width: u32,
    channels: u32,
    eps: f32,
}

/// x, weight, bias -> y.
pub fn call(config: &LayerNorm, limits: &Limits) -> Call {
    let params =
        Params { rows: config.rows, width: vectors(config.channels), channels: config.channels, eps: config.eps };
    let types = vec![("X", config.dtype), ("Y", config.dtype)];
    let variant = Variant { stem: "layer_norm", enables: vec![], constants: vec![], types };
    let elements = u64::from(config.rows) * u64::from(config.channels);
    let call = whole(variant, &params, fold(u64::from(config.rows), limits), 4);
    Call { flops: 8 * elements, bytes: 2 * elements * config.dtype.bytes() as u64, ..call }
}

/// The same in f64.
pub fn reference(config: &LayerNorm, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let channels = config.channels as usize;
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(channels) {
        let mean = row.iter().sum::<f64>() / channels as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
        let scale = 1.0 / (variance + f64::from(config.eps)).sqrt();
        y.extend(row.iter().enumerate().map(|(c, v)| (v - mean) * scale * weight[c] + bias[c]));
    }
    y
}
