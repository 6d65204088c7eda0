//! The attention layer: projections, the kernel over their heads, the output's projection. Part of [`super::nn`].

use super::nn::{Linear, linear, padded, product, push};
use crate::graph::{Graph, RowSource, Value};
use crate::kernels::attention::{self, Attention};
use crate::weights::Weights;

/// Attention heads. A head's width is stored padded to a multiple of four, with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub count: u32,
    /// Channels of one head.
    pub width: u32,
}

impl Heads {
    pub(super) fn padded(self) -> u32 {
        self.width.next_multiple_of(4)
    }

    /// The head-major channels of tensor number `key`, every head padded.
    fn rows(self, key: u8) -> Vec<RowSource> {
        self.channels().into_iter().map(|channel| channel.map(|channel| (key, channel))).collect()
    }

    pub(super) fn channels(self) -> Vec<Option<u32>> {
        let padded = self.padded();
        let channel = |p: u32| (p % padded < self.width).then(|| p / padded * self.width + p % padded);
        (0..self.count * padded).map(channel).collect()
    }
}

/// The names and habits of an attention layer's projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projections {
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) out: &'static str,
    /// Whether query, key and value have biases (the output always has).
    pub(super) bias: bool,
    pub(super) causal: bool,
}

/// A diffusers `Attention` of a transformer block.
pub const DIFFUSERS: Projections =
    Projections { query: "to_q", key: "to_k", value: "to_v", out: "to_out.0", bias: false, causal: false };
/// The attention of an autoencoder.
pub const AUTOENCODER: Projections = Projections { bias: true, ..DIFFUSERS };
/// The attention of a CLIP text encoder.
pub const CLIP: Projections =
    Projections { query: "q_proj", key: "k_proj", value: "v_proj", out: "out_proj", bias: true, causal: true };

/// x [B, T, C] attends to the keys and values of another value ([`keys_values`]), or to itself; residual [B, T, C] is added
/// after the output projection.
pub fn attention(
    g: &mut Graph,
    w: &Weights<'_>,
    names: &Projections,
    x: Value,
    other: Option<Value>,
    heads: Heads,
    residual: Value,
) -> Value {
    let inner = heads.count * heads.padded();
    let (q, kv) = match other {
        None => {
            let fused = projection(g, w, names, &[names.query, names.key, names.value], x, heads);
            ((fused, 0), (fused, [inner, 2 * inner]))
        }
        Some(kv) => {
            let q = projection(g, w, names, &[names.query], x, heads);
            ((q, 0), (kv, [0, inner]))
        }
    };
    let (to, from) = (g.shape(q.0), g.shape(kv.0));
    let config = Attention {
        batch: to.batch,
        queries: to.positions(),
        keys: from.positions(),
        heads: heads.count,
        width: heads.padded(),
        scale: 1.0 / (heads.width as f32).sqrt(),
        causal: names.causal,
        query_channels: to.channels,
        key_channels: from.channels,
        offsets: [q.1, kv.1[0], kv.1[1]],
        dtype: g.precision(),
        bias: None,
    };
    let dtype = g.precision();
    let call = attention::call(&config, g.limits());
    let inputs = vec![q.0.into(), kv.0.into()];
    let h = push(g, w.path(), call, inputs, to.with_channels(inner), dtype);
    let out = Linear { residual: Some(residual), heads: Some(heads), ..Linear::new(heads.count * heads.width) };
    linear(g, &w.at(names.out), h, out)
}

/// context [B, S, D] -> keys and values [B, S, 2 * inner] of the attention at `w`, for any number of calls of it.
pub fn keys_values(g: &mut Graph, w: &Weights<'_>, names: &Projections, context: Value, heads: Heads) -> Value {
    projection(g, w, names, &[names.key, names.value], context, heads)
}

/// Several projections of x in one product, head-major, every head padded.
pub(super) fn projection(
    g: &mut Graph,
    w: &Weights<'_>,
    names: &Projections,
    parts: &[&str],
    x: Value,
    heads: Heads,
) -> Value {
    let (width, out) = (g.shape(x).channels, heads.count * heads.width);
    let rows: Vec<RowSource> = (0..parts.len() as u8).flat_map(|key| heads.rows(key)).collect();
    let shapes: [&[u32]; 2] = [&[out, width], &[out, width, 1, 1]];
    let keys = parts.iter().map(|part| w.at(part).at("weight").claim(&shapes)).collect();
    let weight = w.matrix(g, keys, rows.clone(), padded(width), 1);
    let bias = names.bias.then(|| {
        let keys = parts.iter().map(|part| w.at(part).at("bias").claim(&[&[out]])).collect();
        w.vector(g, keys, rows.clone())
    });
    let options = Linear { bias: names.bias, ..Linear::new(rows.len() as u32) };
    product(g, w.at(parts.join("+")).path(), x, weight, bias, options)
}
