//! Which tile an attention takes on CPU adapters: `attention_lanes` and `attention_texels` with `attention_rows` (see
//! [`super::lanes`]).

use super::attention::Attention;
use super::lanes::{LANES, broadcast};
use super::{Enable, Limits, Variant};

/// Attention below this size is not worth a long compilation.
const SMALL_FLOPS: u64 = 50_000_000;

/// Queries of a lane and keys of a round: the wider a head and the smaller the work, the fewer, so that the unrolled
/// loop is compiled in about a second or, for small work, a fraction of it.
fn sizes(attention: &Attention, limits: &Limits) -> (u32, u32) {
    let small = attention.flops() < SMALL_FLOPS;
    match (broadcast(limits), attention.width) {
        (true, 0..=96) if !small => (4, LANES),
        (true, 97..=192) if !small => (2, LANES),
        (true, _) => (1, LANES),
        (false, 0..=96) if small => (1, 1),
        (false, 0..=96) => (4, 1),
        (false, 97..=192) => (2, 2),
        (false, _) => (1, 1),
    }
}

/// Queries of one workgroup.
pub fn tile(attention: &Attention, limits: &Limits) -> u32 {
    LANES * sizes(attention, limits).0
}

/// The variant for an attention.
pub fn variant(attention: &Attention, limits: &Limits) -> Variant {
    let (queries, keys) = sizes(attention, limits);
    let broadcast = broadcast(limits);
    let vectors = attention.width / 4;
    let loads = if broadcast { keys / LANES } else { keys };
    let constants = vec![("D4", vectors), ("QUERIES", queries), ("KEYS", keys), ("LOADS", loads)];
    let enables = if broadcast { vec![Enable::Subgroups] } else { vec![] };
    if limits.textures {
        return Variant { stem: "attention_texels", enables, constants, types: vec![("Out", attention.dtype)] };
    }
    let types = vec![("In", attention.dtype), ("Out", attention.dtype)];
    Variant { stem: "attention_lanes", enables, constants, types }
}
