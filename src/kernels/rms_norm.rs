//! RMSNorm over the channels of each row, as `layer_norm` without mean and bias.

use super::layer_norm::{self, Rows};
use super::{Call, Limits};
use crate::tensor::DType;

/// What to compute, over [rows, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Rows.
    pub rows: u32,
    /// C.
    pub channels: u32,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Stored element types of the input and the output.
    pub types: [DType; 2],
}

/// x, weight -> y. `None` when one row is too large for a binding.
pub fn call(config: &RmsNorm, limits: &Limits) -> Option<Call> {
    let RmsNorm { rows, channels, eps, types } = *config;
    layer_norm::normalised(&Rows { stem: "rms_norm", rows, channels, eps, types, vectors: 1, flops: 4 }, limits)
}

/// The same in f64.
pub fn reference(config: &RmsNorm, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let channels = config.channels as usize;
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(channels) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / channels as f64;
        let scale = 1.0 / (mean + f64::from(config.eps)).sqrt();
        y.extend(row.iter().zip(weight).map(|(v, weight)| v * scale * weight));
    }
    y
}
