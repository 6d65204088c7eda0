//! The factor of guidance rescale.

use bytemuck::{Pod, Zeroable};

use super::{Call, Variant, vectors, whole};
use crate::tensor::DType;

/// The uniform of `shaders/guidance_rescale.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vectors: u32,
    width: u32,
    channels: u32,
    elements: u32,
    guidance: f32,
    phi: f32,
    pad0: u32,
    pad1: u32,
}

/// model_output [2, P, C] -> factor `[1]`, for guidance scale g and rescale phi.
pub fn call(positions: u32, channels: u32, guidance: f32, phi: f32, dtype: DType) -> Call {
    let width = vectors(channels);
    let params = Params {
        vectors: positions * width,
        width,
        channels,
        elements: positions * channels,
        guidance,
        phi,
        pad0: 0,
        pad1: 0,
    };
    let variant = Variant { stem: "guidance_rescale", enables: vec![], constants: vec![], types: vec![("M", dtype)] };
    whole(variant, &params, [1, 1, 1], 2)
}

/// The same in f64: `without` and `with` are the two predictions.
pub fn reference(without: &[f64], with: &[f64], guidance: f64, phi: f64) -> f64 {
    let guided: Vec<f64> = without.iter().zip(with).map(|(u, c)| u + guidance * (c - u)).collect();
    phi * deviation(with) / deviation(&guided) + 1.0 - phi
}

fn deviation(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt()
}
