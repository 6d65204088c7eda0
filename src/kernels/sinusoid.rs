//! The sinusoidal embedding of timesteps, sizes and guidance scales.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, vectors, whole};
use crate::tensor::DType;

/// What to compute, over x [B, N].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sinusoid {
    /// B.
    pub batch: u32,
    /// N.
    pub inputs: u32,
    /// Width of one embedding.
    pub dim: u32,
    /// Cosines before sines (`flip_sin_to_cos`).
    pub flip: bool,
    /// `downscale_freq_shift`.
    pub shift: f32,
    /// Multiplies x.
    pub scale: f32,
}

impl Sinusoid {
    /// The dim / 2 frequencies, in f32 as diffusers' `get_timestep_embedding` computes them.
    pub fn frequencies(&self) -> Vec<f32> {
        let half = self.dim / 2;
        let log = -(10000f64.ln()) as f32;
        (0..half).map(|i| (log * i as f32 / (half as f32 - self.shift)).exp()).collect()
    }
}

/// The uniform of `shaders/sinusoid.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    count: u32,
    width: u32,
    width_x: u32,
    inputs: u32,
    dim: u32,
    flip: u32,
    scale: f32,
    pad: u32,
}

/// x [B, N] in f32, frequencies -> y [B, N * dim].
pub fn call(config: &Sinusoid, dtype: DType, limits: &Limits) -> Call {
    let width = vectors(config.inputs * config.dim);
    let count = config.batch * width;
    let params = Params {
        count,
        width,
        width_x: vectors(config.inputs),
        inputs: config.inputs,
        dim: config.dim,
        flip: u32::from(config.flip),
        scale: config.scale,
        pad: 0,
    };
    let variant = Variant { stem: "sinusoid", enables: vec![], constants: vec![], types: vec![("Y", dtype)] };
    whole(variant, &params, fold(u64::from(count).div_ceil(LANES), limits), 3)
}

/// The same in f64, from the f32 angles that the reference uses.
pub fn reference(config: &Sinusoid, x: &[f32]) -> Vec<f64> {
    let half = (config.dim / 2) as usize;
    let frequencies = config.frequencies();
    let mut y = Vec::new();
    for value in x {
        let angles: Vec<f64> = frequencies.iter().map(|f| f64::from(config.scale * value * f)).collect();
        let (sines, cosines) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
        if config.flip {
            y.extend(cosines.chain(sines));
        } else {
            y.extend(sines.chain(cosines));
        }
        y.extend(std::iter::repeat_n(0.0, config.dim as usize - 2 * half));
    }
    y
}
