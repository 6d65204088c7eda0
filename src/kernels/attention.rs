//! Scaled dot-product attention over heads, without storing scores.
//!
//! `attention_tile` shares keys and values through workgroup memory on GPUs; `attention_lanes` and `attention_texels` give
//! every lane its own queries, for CPU adapters. Both take q and kv, which may be parts of one fused tensor.

use bytemuck::{Pod, Zeroable};

use super::bands::{self, Span};
use super::{Call, Launch, Limits, Variant, attention_lanes, vector_bytes, vectors};
use crate::tensor::DType;

/// One attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Batch elements.
    pub batch: u32,
    /// Queries of one batch element.
    pub queries: u32,
    /// Keys of one batch element.
    pub keys: u32,
    /// Heads.
    pub heads: u32,
    /// Channels of one head as stored: a multiple of four.
    pub width: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether query i sees the keys 0..=i only.
    pub causal: bool,
    /// Channels of a row of the tensor that holds the queries.
    pub query_channels: u32,
    /// Channels of a row of the tensor that holds keys and values.
    pub key_channels: u32,
    /// First channel of the queries, the keys and the values in their rows, multiples of four.
    pub offsets: [u32; 3],
    /// How everything is stored.
    pub dtype: DType,
}

/// The uniform of `shaders/attention_lanes.wgsl`, `shaders/attention_texels.wgsl` and `shaders/attention_tile.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    queries: u32,
    keys: u32,
    heads: u32,
    causal: u32,
    query4: u32,
    key4: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    first_batch: u32,
    q_base: u32,
    kv_base: u32,
    out_base: u32,
    scale: f32,
    pad: [u32; 2],
}

impl Attention {
    /// Floating-point operations, 2 per multiply-add; masked scores count half.
    pub fn flops(&self) -> u64 {
        let scores = u64::from(self.batch * self.heads) * u64::from(self.queries) * u64::from(self.keys);
        4 * scores * u64::from(self.width) / if self.causal { 2 } else { 1 }
    }

    /// Queries of one workgroup.
    fn tile(&self, limits: &Limits) -> u32 {
        if limits.lanes() { attention_lanes::tile(self, limits) } else { 16 * self.rows() }
    }

    /// Queries of an invocation of `attention_tile`, which keeps a part of their outputs in registers.
    fn rows(&self) -> u32 {
        if self.width <= 160 { 4 } else { 1 }
    }

    fn variant(&self, limits: &Limits) -> Variant {
        if limits.lanes() {
            return attention_lanes::variant(self, limits);
        }
        let vectors = self.width / 4;
        let constants = vec![("D4", vectors), ("VECTORS", vectors.div_ceil(8)), ("ROWS", self.rows())];
        Variant {
            stem: "attention_tile",
            enables: vec![],
            constants,
            types: vec![("In", self.dtype), ("Out", self.dtype)],
        }
    }

    fn spans(&self, begin: u64, end: u64, limits: &Limits) -> [Span; 3] {
        let vector = vector_bytes(self.dtype);
        let part = |rows: u32, width: u32| {
            bands::span(begin, end, u64::from(rows) * u64::from(width) * vector, vector, limits)
        };
        [
            part(self.queries, vectors(self.query_channels)),
            part(self.keys, vectors(self.key_channels)),
            part(self.queries, self.heads * self.width / 4),
        ]
    }

    fn launch(&self, begin: u64, end: u64, tile: u32, limits: &Limits) -> Launch {
        let spans = self.spans(begin, end, limits);
        let [q_offset, k_offset, v_offset] = self.offsets.map(|offset| offset / 4);
        let params = Params {
            queries: self.queries,
            keys: self.keys,
            heads: self.heads,
            causal: u32::from(self.causal),
            query4: vectors(self.query_channels),
            key4: vectors(self.key_channels),
            q_offset,
            k_offset,
            v_offset,
            first_batch: begin as u32,
            q_base: spans[0].base,
            kv_base: spans[1].base,
            out_base: spans[2].base,
            scale: self.scale * std::f32::consts::LOG2_E,
            pad: [0; 2],
        };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: [self.queries.div_ceil(tile), (end - begin) as u32 * self.heads, 1],
            ranges: spans.iter().map(|part| Some((part.offset, part.size))).collect(),
        }
    }

    /// The same in f64: q [B, TQ, query_channels], kv [B, TK, key_channels] -> [B, TQ, heads * width].
    pub fn reference(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        let (width, heads) = (self.width as usize, self.heads as usize);
        let [q_offset, k_offset, v_offset] = self.offsets.map(|offset| offset as usize);
        let mut out = Vec::new();
        for row in 0..(self.batch * self.queries) as usize {
            let (batch, query) = (row / self.queries as usize, row % self.queries as usize);
            for head in 0..heads {
                let at = |offset: usize| offset + head * width;
                let wanted = &q[row * self.query_channels as usize + at(q_offset)..][..width];
                let visible = if self.causal { (query + 1).min(self.keys as usize) } else { self.keys as usize };
                let part = |key: usize, offset: usize| {
                    &kv[(batch * self.keys as usize + key) * self.key_channels as usize + at(offset)..][..width]
                };
                let dot = |key: usize| wanted.iter().zip(part(key, k_offset)).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = (0..visible).map(|key| f64::from(self.scale) * dot(key)).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..width).map(|d| {
                    weights.iter().enumerate().map(|(key, weight)| weight * part(key, v_offset)[d]).sum::<f64>() / total
                }));
            }
        }
        out
    }
}

/// The dispatches. `None` when one batch element is larger than a binding.
///
/// # Panics
/// When the head width or an offset is no multiple of four.
pub fn call(config: &Attention, limits: &Limits) -> Option<Call> {
    let aligned = config.width.is_multiple_of(4) && config.offsets.iter().all(|offset| offset.is_multiple_of(4));
    assert!(aligned, "attention needs head widths and offsets that are multiples of four: {config:?}");
    let tile = config.tile(limits);
    let limit = u64::from(limits.workgroups);
    let bands = bands::split(u64::from(config.batch), |begin, end| {
        config.spans(begin, end, limits).iter().all(|part| part.size <= limits.binding)
            && (end - begin) * u64::from(config.heads) <= limit
            && u64::from(config.queries.div_ceil(tile)) <= limit
    })?;
    let variant = config.variant(limits);
    let launches = bands.into_iter().map(|(begin, end)| config.launch(begin, end, tile, limits)).collect();
    let rows = u64::from(config.batch) * (2 * u64::from(config.queries) + 2 * u64::from(config.keys));
    let bytes = rows * u64::from(config.heads * config.width / 4) * vector_bytes(config.dtype);
    Some(Call { variant, launches, flops: config.flops(), bytes })
}
