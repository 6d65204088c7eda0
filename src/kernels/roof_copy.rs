//! A copy: the memory bandwidth that the other kernels are measured against.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, whole};

/// What to copy: `count` vectors of four f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoofCopy {
    /// Vectors.
    pub count: u32,
}

/// The uniform of `shaders/roof_copy.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

/// x -> y.
pub fn call(config: RoofCopy, limits: &Limits) -> Call {
    let variant = Variant { stem: "roof_copy", enables: vec![], constants: vec![], types: vec![] };
    let params = Params { count: config.count, pad0: 0, pad1: 0, pad2: 0 };
    let call = whole(variant, &params, fold(u64::from(config.count).div_ceil(LANES), limits), 2);
    Call { bytes: 2 * 16 * u64::from(config.count), ..call }
}

/// The same in f64.
pub fn reference(x: &[f64]) -> Vec<f64> {
    x.to_vec()
}
