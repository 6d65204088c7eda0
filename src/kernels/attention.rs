use bytemuck::{Pod, Zeroable};
use super::{Call, Limits, Variant, whole};
use crate::tensor::DType;
#[derive(Debug, Clone, Copy)]
pub struct Attention { pub batch: u32, pub queries: u32, pub keys: u32, pub heads: u32, pub width: u32, pub scale: f32, pub causal: bool, pub query_channels: u32, pub key_channels: u32, pub offsets: [u32; 3], pub dtype: DType }
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params { queries: u32, keys: u32, heads: u32, q4: u32, k4: u32, o4: u32, q_off: u32, k_off: u32, v_off: u32, causal: u32, scale: f32, pad: u32 }
pub fn call(c: &Attention, _l: &Limits) -> Option<Call> {
    let p = Params { queries: c.queries, keys: c.keys, heads: c.heads, q4: c.query_channels / 4, k4: c.key_channels / 4, o4: c.heads * c.width / 4, q_off: c.offsets[0] / 4, k_off: c.offsets[1] / 4, v_off: c.offsets[2] / 4, causal: c.causal as u32, scale: c.scale, pad: 0 };
    Some(whole(Variant { stem: "attention", constants: vec![("D4", c.width / 4)], types: vec![("X", c.dtype)] }, &p, [c.queries.div_ceil(64), c.heads, c.batch], 3))
}
