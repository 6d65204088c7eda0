//! Scaled dot-product attention over heads, without storing scores.
//!
//! `attention_coop` multiplies on cooperative matrices; `attention_shared` and `attention_tile` share queries and keys
//! through workgroup memory on other GPUs, the second with the least of it; `attention_lanes` and `attention_texels` give
//! every lane its own queries, for CPU adapters. All take q and kv, which may be parts of one fused tensor.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::attention_coop::Cooperative;
use super::attention_shared::Shared;
use super::bands::{self, Span};
use super::{Call, KernelSet, Launch, Limits, Variant, attention_lanes, tuning, vector_bytes, vectors};
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
    /// How everything but the bias is stored.
    pub dtype: DType,
    /// What is added to the scores.
    pub bias: Option<Bias>,
}

/// A third input in f32 that is added to the scaled scores: [B or 1, heads or 1, TQ or 1, TK], as a value of that batch,
/// height, width and channels. It hides keys (large negative numbers) or tells positions. A row of which every key is
/// hidden by the same large number weighs all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bias {
    /// Whether batch elements have their own.
    pub batch: bool,
    /// Whether heads have their own.
    pub heads: bool,
    /// Whether queries have their own.
    pub queries: bool,
}

/// One way to run an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// `attention_lanes` or `attention_texels`.
    Lanes,
    /// `attention_tile`, which asks for nothing.
    Tile,
    /// `attention_shared`.
    Shared(Shared),
    /// `attention_coop`.
    Cooperative(Cooperative),
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lanes => write!(f, "lanes"),
            Self::Tile => write!(f, "tile"),
            Self::Shared(plan) => write!(f, "{plan}"),
            Self::Cooperative(plan) => write!(f, "{plan}"),
        }
    }
}

/// The uniform of `shaders/attention_lanes.wgsl`, `shaders/attention_texels.wgsl`, `shaders/attention_tile.wgsl`, `shaders/attention_shared.wgsl` and `shaders/attention_coop.wgsl`.
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
    first_query: u32,
    end_query: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_base: u32,
}

impl Attention {
    /// Floating-point operations, 2 per multiply-add; masked scores count half.
    pub fn flops(&self) -> u64 {
        let scores = u64::from(self.batch * self.heads) * u64::from(self.queries) * u64::from(self.keys);
        4 * scores * u64::from(self.width) / if self.causal { 2 } else { 1 }
    }

    /// Queries of one workgroup.
    fn tile(&self, plan: &Plan, limits: &Limits) -> u32 {
        match plan {
            Plan::Lanes => attention_lanes::tile(self, limits),
            Plan::Tile => 16 * self.rows(),
            Plan::Shared(plan) => plan.queries(),
            Plan::Cooperative(plan) => plan.queries(),
        }
    }

    /// Queries of an invocation of `attention_tile`, which keeps a part of their outputs in registers.
    fn rows(&self) -> u32 {
        if self.width <= 160 { 4 } else { 1 }
    }

    /// The shape class by which candidates are tuned.
    pub fn class(&self) -> tuning::Class {
        tuning::Class::attention(self.width, self.keys, self.dtype)
    }

    /// The ways to run it within `limits`, the best guess first and one that runs on any such adapter last.
    pub fn candidates(&self, limits: &Limits) -> Vec<Plan> {
        if limits.lanes() {
            return vec![Plan::Lanes];
        }
        let mut plans = Vec::new();
        if limits.kernels == KernelSet::Cooperative && self.bias.is_none() {
            plans.extend(Cooperative::plans(self, limits).into_iter().map(Plan::Cooperative));
        }
        plans.extend(Shared::plans(self, limits).into_iter().map(Plan::Shared));
        plans.push(Plan::Tile);
        plans
    }

    fn variant(&self, plan: &Plan, limits: &Limits) -> Variant {
        let mut variant = self.plain_variant(plan, limits);
        if !matches!(plan, Plan::Cooperative(_)) {
            let bias = u32::from(self.bias.is_some());
            variant.constants.extend([("BIAS", bias), ("OUT", 3 + bias)]);
        }
        variant
    }

    fn plain_variant(&self, plan: &Plan, limits: &Limits) -> Variant {
        let vectors = self.width / 4;
        match plan {
            Plan::Lanes => attention_lanes::variant(self, limits),
            Plan::Tile => Variant {
                stem: "attention_tile",
                enables: vec![],
                constants: vec![("D4", vectors), ("VECTORS", vectors.div_ceil(8)), ("ROWS", self.rows())],
                types: vec![("In", self.dtype), ("Out", self.dtype)],
            },
            Plan::Shared(plan) => plan.variant(self.width, self.dtype),
            Plan::Cooperative(plan) => plan.variant(self.width),
        }
    }

    /// Numbers of the bias from one batch element, head and query to the next, 0 where all share, and all of its bytes.
    fn bias_strides(&self) -> ([u32; 3], u64) {
        let Some(bias) = self.bias else { return ([0; 3], 0) };
        let mut next = 4 * vectors(self.keys);
        let mut stride = |own: bool, count: u32| {
            let stride = if own { next } else { 0 };
            next *= if own { count } else { 1 };
            stride
        };
        let query = stride(bias.queries, self.queries);
        let head = stride(bias.heads, self.heads);
        let batch = stride(bias.batch, self.batch);
        ([batch, head, query], 4 * u64::from(next))
    }

    /// What the queries of `band`, the keys and the outputs bind.
    fn spans(&self, band: &Band, limits: &Limits) -> [Span; 3] {
        let vector = vector_bytes(self.dtype);
        let part =
            |begin: u64, end: u64, width: u32| bands::span(begin, end, u64::from(width) * vector, vector, limits);
        let keys = u64::from(self.keys);
        let queries = u64::from(self.queries);
        let begin = band.batch.0 * queries + band.queries.0;
        let end = (band.batch.1 - 1) * queries + band.queries.1;
        [
            part(begin, end, vectors(self.query_channels)),
            part(band.batch.0 * keys, band.batch.1 * keys, vectors(self.key_channels)),
            part(begin, end, self.heads * self.width / 4),
        ]
    }

    /// Bands of whole batch elements, or where one is too large, of queries of each; `None` when the keys of one or a
    /// workgroup's queries are larger than a binding.
    fn bands(&self, tile: u32, limits: &Limits) -> Option<Vec<Band>> {
        let limit = u64::from(limits.workgroups);
        let queries = u64::from(self.queries);
        let tile = u64::from(tile);
        let fits = |band: &Band| {
            self.spans(band, limits).iter().all(|part| part.size <= limits.binding)
                && (band.batch.1 - band.batch.0) * u64::from(self.heads) <= limit
                && (band.queries.1 - band.queries.0).div_ceil(tile) <= limit
        };
        let whole = |begin: u64, end: u64| Band { batch: (begin, end), queries: (0, queries) };
        if let Some(found) = bands::split(u64::from(self.batch), |begin, end| fits(&whole(begin, end))) {
            return Some(found.into_iter().map(|(begin, end)| whole(begin, end)).collect());
        }
        // Whole workgroups, so that neighbours in a workgroup are the same as without bands, to the bit.
        let part = |element: u64, begin: u64, end: u64| Band {
            batch: (element, element + 1),
            queries: (begin * tile, (end * tile).min(queries)),
        };
        let elements = 0..u64::from(self.batch);
        let found = bands::split(queries.div_ceil(tile), |begin, end| {
            elements.clone().all(|element| fits(&part(element, begin, end)))
        })?;
        Some(elements.flat_map(|element| found.iter().map(move |(begin, end)| part(element, *begin, *end))).collect())
    }

    fn launch(&self, band: &Band, tile: u32, limits: &Limits) -> Launch {
        let spans = self.spans(band, limits);
        let [q_offset, k_offset, v_offset] = self.offsets.map(|offset| offset / 4);
        let [first_query, end_query] = [band.queries.0, band.queries.1].map(|query| query as u32);
        let [bias_batch, bias_head, bias_query] = self.bias_strides().0;
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
            first_batch: band.batch.0 as u32,
            q_base: spans[0].base,
            kv_base: spans[1].base,
            out_base: spans[2].base,
            scale: self.scale * std::f32::consts::LOG2_E,
            first_query,
            end_query,
            bias_batch,
            bias_head,
            bias_query,
            bias_base: 0,
        };
        let mut ranges: Vec<_> = spans.iter().map(|part| Some((part.offset, part.size))).collect();
        if self.bias.is_some() {
            ranges.insert(2, None);
        }
        let elements = (band.batch.1 - band.batch.0) as u32;
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: [(end_query - first_query).div_ceil(tile), elements * self.heads, 1],
            ranges,
        }
    }

    /// The dispatches of `plan`. `None` when the keys of one batch element or the bias are larger than a binding.
    ///
    /// # Panics
    /// When the head width or an offset is no multiple of four.
    pub fn run_as(&self, plan: &Plan, limits: &Limits) -> Option<Call> {
        let aligned = self.width.is_multiple_of(4) && self.offsets.iter().all(|offset| offset.is_multiple_of(4));
        assert!(aligned, "attention needs head widths and offsets that are multiples of four: {self:?}");
        if self.bias_strides().1 > limits.binding {
            return None;
        }
        let tile = self.tile(plan, limits);
        let launches = self.bands(tile, limits)?.iter().map(|band| self.launch(band, tile, limits)).collect();
        let rows = u64::from(self.batch) * (2 * u64::from(self.queries) + 2 * u64::from(self.keys));
        let bytes = rows * u64::from(self.heads * self.width / 4) * vector_bytes(self.dtype);
        Some(Call { variant: self.variant(plan, limits), launches, flops: self.flops(), bytes })
    }

    /// The same in f64: q [B, TQ, query_channels], kv [B, TK, key_channels] -> [B, TQ, heads * width]. Without a bias.
    pub fn reference(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        self.biased_reference(q, kv, &|_, _, _, _| 0.0)
    }

    /// The same with the bias of a batch element, a head, a query and a key.
    pub fn biased_reference(
        &self,
        q: &[f64],
        kv: &[f64],
        bias: &dyn Fn(usize, usize, usize, usize) -> f64,
    ) -> Vec<f64> {
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
                let scores: Vec<f64> =
                    (0..visible).map(|key| f64::from(self.scale) * dot(key) + bias(batch, head, query, key)).collect();
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

/// The part of an attention that one dispatch computes: batch elements, and of each these queries.
struct Band {
    batch: (u64, u64),
    queries: (u64, u64),
}

/// The dispatches of the candidate that was tuned, or guessed. `None` when the keys of one batch element are larger
/// than a binding.
///
/// # Panics
/// When the head width or an offset is no multiple of four.
pub fn call(config: &Attention, limits: &Limits) -> Option<Call> {
    let plans = config.candidates(limits);
    let all = Attention { bias: None, ..*config }.candidates(limits);
    // The tuning counts the candidates of a class, of which a bias leaves some out.
    let unfit = |index: usize| !plans.contains(&all[index]);
    config.run_as(&all[limits.tuning.pick_but(config.class(), all.len(), unfit)], limits)
}

/// The dispatches of one candidate, counted as in [`Attention::candidates`]. `None` when there is no such candidate or
/// the keys of one batch element are larger than a binding.
///
/// # Panics
/// When the head width or an offset is no multiple of four.
pub fn call_with(config: &Attention, candidate: usize, limits: &Limits) -> Option<Call> {
    config.run_as(config.candidates(limits).get(candidate)?, limits)
}
