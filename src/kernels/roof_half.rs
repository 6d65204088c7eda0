//! Multiplications and additions of packed halves in registers alone: an arithmetic rate to look at beside that of f32.

use super::roof_fma::{Params, RoofFma, UNROLLED};
use super::{Call, Enable, LANES, Limits, Variant, fold, whole};

/// x -> y, where `limits.f16`; as [`super::roof_fma::call`], with the chains in halves.
pub fn call(config: RoofFma, limits: &Limits) -> Call {
    let variant = Variant {
        stem: "roof_half",
        enables: vec![Enable::F16],
        constants: vec![("CHAINS", config.chains), ("UNROLLED", UNROLLED)],
        types: vec![],
    };
    let params = Params::of(config);
    let call = whole(variant, &params, fold(u64::from(config.count).div_ceil(LANES), limits), 2);
    let flops = 2 * 4 * u64::from(config.chains * UNROLLED) * u64::from(config.count) * u64::from(config.rounds);
    Call { flops, bytes: 2 * 16 * u64::from(config.count), ..call }
}
