//! Multiplications and additions in registers alone: the arithmetic rate that the other kernels are measured against.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, whole};

/// Multiply-adds of each chain in one round, unrolled so that the loop itself does not count.
pub const UNROLLED: u32 = 16;

/// What to compute over `count` vectors of four f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoofFma {
    /// Vectors.
    pub count: u32,
    /// Rounds of [`UNROLLED`] multiply-adds of each chain.
    pub rounds: u32,
    /// Independent chains of an invocation: enough to hide the latency of an addition, few enough to stay in registers.
    pub chains: u32,
}

/// The uniform of `shaders/roof_fma.wgsl` and `shaders/roof_half.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    count: u32,
    rounds: u32,
    pad0: u32,
    pad1: u32,
}

impl Params {
    /// The parameters of a configuration.
    pub fn of(config: RoofFma) -> Self {
        Self { count: config.count, rounds: config.rounds, pad0: 0, pad1: 0 }
    }
}

/// x -> y.
pub fn call(config: RoofFma, limits: &Limits) -> Call {
    let variant = Variant {
        stem: "roof_fma",
        enables: vec![],
        constants: vec![("CHAINS", config.chains), ("UNROLLED", UNROLLED)],
        types: vec![],
    };
    let params = Params::of(config);
    let call = whole(variant, &params, fold(u64::from(config.count).div_ceil(LANES), limits), 2);
    let flops = 2 * 4 * u64::from(config.chains * UNROLLED) * u64::from(config.count) * u64::from(config.rounds);
    Call { flops, bytes: 2 * 16 * u64::from(config.count), ..call }
}

/// The same in f64.
pub fn reference(config: RoofFma, x: &[f64]) -> Vec<f64> {
    let chain = |start: f64| (0..config.rounds * UNROLLED).fold(start, |v, _| v * 0.75 + 0.25);
    let mean =
        |v: f64| (0..config.chains).map(|k| chain(v + f64::from(k) / 8.0)).sum::<f64>() / f64::from(config.chains);
    x.iter().map(|v| mean(*v)).collect()
}
