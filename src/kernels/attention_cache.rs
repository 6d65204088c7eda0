//! Attention of few tokens to keys of which the last ones do not count: a generator's cache, which fills up while it runs, or
//! a text that is padded. How many count is read on the GPU, so that one compiled graph serves every step and every text.

use bytemuck::{Pod, Zeroable};

use super::{Call, Limits, Variant, vector_bytes, vectors, whole};
use crate::tensor::DType;

/// Invocations of a workgroup; one subgroup on CPU adapters.
const LANES: [u32; 2] = [64, 8];

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionCache {
    /// Batch elements.
    pub batch: u32,
    /// TQ.
    pub queries: u32,
    /// Keys of a batch element, whether they count or not.
    pub keys: u32,
    /// Heads.
    pub heads: u32,
    /// Channels of a head, a multiple of four.
    pub width: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Channels of a row of q.
    pub query_channels: u32,
    /// Channels of a row of keys and values.
    pub key_channels: u32,
    /// First channels of q, k and v in their rows, multiples of four.
    pub offsets: [u32; 3],
    /// Stored element type of everything.
    pub dtype: DType,
}

/// The uniform of `shaders/attention_cache.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    queries: u32,
    heads: u32,
    query4: u32,
    key4: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    scale: f32,
}

/// q, kv, last -> out. `None` when the tensors are larger than a binding, the grid or workgroup memory too small.
///
/// # Panics
/// When the head width or an offset is no multiple of four.
pub fn call(config: &AttentionCache, limits: &Limits) -> Option<Call> {
    let aligned = config.width.is_multiple_of(4) && config.offsets.iter().all(|offset| offset.is_multiple_of(4));
    assert!(aligned, "attention needs head widths and offsets that are multiples of four: {config:?}");
    let lanes = LANES[usize::from(limits.lanes())];
    let d4 = config.width / 4;
    let [query4, key4] = [config.query_channels, config.key_channels].map(vectors);
    let size = |rows: u32, width: u32| u64::from(rows) * u64::from(width) * vector_bytes(config.dtype);
    let rows = config.batch * config.queries;
    let sizes = [size(rows, query4), size(config.batch * config.keys, key4), size(rows, config.heads * d4)];
    let grid = [config.queries, config.batch * config.heads, 1];
    let memory = 4 * config.keys + 16 * lanes;
    let fits = sizes.iter().all(|size| *size <= limits.binding)
        && grid.iter().all(|count| *count <= limits.workgroups)
        && memory <= limits.workgroup_memory;
    let [q_offset, k_offset, v_offset] = config.offsets.map(|offset| offset / 4);
    let params = Params {
        queries: config.queries,
        heads: config.heads,
        query4,
        key4,
        q_offset,
        k_offset,
        v_offset,
        scale: config.scale * std::f32::consts::LOG2_E,
    };
    let variant = Variant {
        stem: "attention_cache",
        enables: vec![],
        constants: vec![
            ("LANES", lanes),
            ("KEYS", config.keys),
            ("D4", d4),
            ("SPAN", d4.next_power_of_two().min(lanes)),
        ],
        types: vec![("In", config.dtype), ("Out", config.dtype)],
    };
    let flops = 4 * u64::from(rows * config.heads) * u64::from(config.keys) * u64::from(config.width);
    fits.then(|| Call { flops, bytes: sizes.iter().sum(), ..whole(variant, &params, grid, 4) })
}

/// The same in f64: q [B, TQ, query_channels], kv [B, keys, key_channels], the last key of each element that counts.
pub fn reference(config: &AttentionCache, q: &[f64], kv: &[f64], last: &[u32]) -> Vec<f64> {
    let (width, query_width, key_width) =
        (config.width as usize, config.query_channels as usize, config.key_channels as usize);
    let [q_offset, k_offset, v_offset] = config.offsets.map(|offset| offset as usize);
    let mut out = Vec::new();
    for (row, query) in q.chunks_exact(query_width).enumerate() {
        let element = row / config.queries as usize;
        let keys = &kv[element * config.keys as usize * key_width..][..(last[element] as usize + 1) * key_width];
        for head in 0..config.heads as usize {
            let part = |row: &[f64], offset: usize| row[offset + head * width..][..width].to_vec();
            let wanted = part(query, q_offset);
            let dot = |key: &[f64]| part(key, k_offset).iter().zip(&wanted).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = keys.chunks_exact(key_width).map(|key| f64::from(config.scale) * dot(key)).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let rows = keys.chunks_exact(key_width).zip(&weights);
            let sum = rows.fold(vec![0.0; width], |mut sum, (key, weight)| {
                sum.iter_mut().zip(part(key, v_offset)).for_each(|(sum, value)| *sum += weight * value / total);
                sum
            });
            out.extend(sum);
        }
    }
    out
}
