//! From logits to a token: guidance, the top k, softmax at a temperature, and a draw with numbers that the host drew.

use bytemuck::{Pod, Zeroable};

use super::{Call, Limits, Variant, vectors, whole};

/// What to draw from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleToken {
    /// Rows of logits, 2 with guidance: without and with the prompt; else 1.
    pub batch: u32,
    /// Logits of a row.
    pub width: u32,
    /// How many of them, from the first on, are tokens that may be drawn.
    pub count: u32,
    /// Guidance scale.
    pub scale: f32,
    /// What logits are divided by.
    pub temperature: f32,
    /// Only so many of the largest logits (and those equal to the last of them) may be drawn.
    pub top_k: Option<u32>,
}

/// The uniform of `shaders/sample_token.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    count: u32,
    width: u32,
    batch: u32,
    top_k: u32,
    scale: f32,
    temperature: f32,
    pad0: u32,
    pad1: u32,
}

/// logits, noise, state -> next, drawn. `None` when the logits are larger than a binding.
pub fn call(config: &SampleToken, limits: &Limits) -> Option<Call> {
    let width = vectors(config.width);
    let top_k = config.top_k.filter(|k| *k < config.count);
    let params = Params {
        count: config.count,
        width,
        batch: config.batch,
        top_k: top_k.unwrap_or(config.count),
        scale: config.scale,
        temperature: config.temperature,
        pad0: 0,
        pad1: 0,
    };
    let constants = vec![("GUIDED", u32::from(config.batch == 2)), ("TOP_K", u32::from(top_k.is_some()))];
    let variant = Variant { stem: "sample_token", enables: vec![], constants, types: vec![] };
    let bytes = u64::from(config.batch * width) * 16;
    let flops = 16 * u64::from(config.count);
    let fits = bytes <= limits.binding && limits.invocations >= 256;
    fits.then(|| Call { flops, bytes: 2 * bytes, ..whole(variant, &params, [1, 1, 1], 5) })
}

/// The token in f64, from the rows of logits and the exponentials.
pub fn reference(config: &SampleToken, logits: &[f64], noise: &[f64]) -> u32 {
    let row = |row: usize| &logits[row * config.width as usize..][..config.count as usize];
    let guided: Vec<f64> = match config.batch {
        2 => row(0).iter().zip(row(1)).map(|(u, c)| u + f64::from(config.scale) * (c - u)).collect(),
        _ => row(0).to_vec(),
    };
    let mut sorted = guided.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = config.top_k.map_or(f64::NEG_INFINITY, |k| sorted[(k.min(config.count) - 1) as usize]);
    let quotient = |i: usize| ((guided[i] - sorted[0]) / f64::from(config.temperature)).exp() / noise[i];
    let kept = (0..guided.len()).filter(|i| guided[*i] >= least);
    kept.reduce(|best, i| if quotient(i) > quotient(best) { i } else { best }).unwrap_or(0) as u32
}
