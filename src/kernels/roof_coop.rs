//! Products of cooperative matrices in registers alone: the rate that matrix kernels in f16 are measured against.

use bytemuck::{Pod, Zeroable};

use super::{Call, Enable, Limits, Variant, whole};

/// Accumulators of a subgroup: two matrices A times four matrices B.
pub const ACCUMULATORS: u32 = 8;
/// Products into each accumulator in one round, unrolled so that the loop itself does not count.
pub const UNROLLED: u32 = 4;
/// Invocations of a workgroup where the size of subgroups varies.
const LANES: u32 = 64;
/// The fewest invocations of a subgroup that multiplies matrices.
const LEAST_SUBGROUP: u32 = 8;

/// What to compute: `groups` workgroups do `rounds` rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoofCoop {
    /// Workgroups.
    pub groups: u32,
    /// Rounds of [`UNROLLED`] products into each of [`ACCUMULATORS`] accumulators.
    pub rounds: u32,
}

/// The uniform of `shaders/roof_coop.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    rounds: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

/// Invocations of a workgroup: one subgroup where all are of one size.
pub fn lanes(limits: &Limits) -> u32 {
    if limits.subgroup > 0 { limits.subgroup } else { LANES }
}

/// Accumulators that a workgroup has room to store: those of its subgroups, be they as small as they may.
pub fn slots(limits: &Limits) -> u32 {
    let subgroups = if limits.subgroup > 0 { 1 } else { LANES / LEAST_SUBGROUP };
    subgroups * ACCUMULATORS
}

/// (a, b) -> c, where `limits.cooperative` is not zero. The operations are those of one subgroup in a workgroup; with
/// several they are a multiple, which the stored results tell.
pub fn call(config: RoofCoop, limits: &Limits) -> Call {
    let size = limits.cooperative;
    let variant = Variant {
        stem: "roof_coop",
        enables: vec![Enable::F16, Enable::Subgroups, Enable::CooperativeMatrix],
        constants: vec![("SIZE", size), ("LANES", lanes(limits)), ("SLOTS", slots(limits))],
        types: vec![],
    };
    let params = Params { rounds: config.rounds, pad0: 0, pad1: 0, pad2: 0 };
    let call = whole(variant, &params, [config.groups, 1, 1], 3);
    let products = u64::from(config.groups) * u64::from(config.rounds) * u64::from(UNROLLED * ACCUMULATORS);
    let element_bytes = 4 * u64::from(size * size);
    let bytes = u64::from(config.groups * slots(limits)) * element_bytes;
    Call { flops: 2 * u64::from(size).pow(3) * products, bytes, ..call }
}

/// The same in f64: what accumulator `index` (row-major [size, size]) must hold. `a` is [2, size, size], `b` [4, size, size].
pub fn reference(config: RoofCoop, size: usize, index: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let square = size * size;
    let (a, b) = (&a[index / 4 * square..][..square], &b[index % 4 * square..][..square]);
    let element = |row: usize, column: usize| -> f64 {
        (0..size).map(|k| a[row * size + k] * b[k * size + column]).sum::<f64>() * f64::from(config.rounds * UNROLLED)
    };
    (0..square).map(|at| element(at / size, at % size)).collect()
}
