//! The attention layer: projections, the kernel over their heads, the output's projection. Part of [`super::nn`].

use super::nn::{Linear, linear, padded, product, push};
use crate::graph::{Graph, Operand, RowSource, Value};
use crate::kernels::attention::{self, Attention, Bias};
use crate::tensor::DType;
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
    /// Channels of one head as stored.
    pub fn padded(self) -> u32 {
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

/// The keys and values that an attention to text and picture at once makes of the text (diffusers `AttnAddedKVProcessor`);
/// its other projections are [`AUTOENCODER`]'s.
pub const ADDED: Projections = Projections { key: "add_k_proj", value: "add_v_proj", ..AUTOENCODER };
/// Attention that pools text vectors (diffusers `AttentionPooling`), which has no output projection of its own.
pub const POOLING: Projections = Projections { out: "", causal: false, ..CLIP };

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
            let q = queries(g, w, names, x, heads);
            ((q, 0), (kv, [0, inner]))
        }
    };
    let h = attend(g, w.path(), q, kv, heads, Scores { causal: names.causal, ..Scores::default() });
    let out = Linear { residual: Some(residual), heads: Some(heads), ..Linear::new(heads.count * heads.width) };
    linear(g, &w.at(names.out), h, out)
}

/// What becomes of the scores before the softmax.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scores {
    /// Whether query i sees the keys 0..=i only.
    pub causal: bool,
    /// Whether they are not divided by the root of a head's width.
    pub raw: bool,
    /// What is added to them: [B or 1, heads or 1, T or 1, S] in f32.
    pub bias: Option<Value>,
}

/// Queries, from the given channel on of [B, T, ..], attend to keys and values, from the given channels on of [B, S, ..], all
/// head-major with every head padded -> [B, T, inner], head-major and padded.
pub fn attend(
    g: &mut Graph,
    label: &str,
    (q, first): (Value, u32),
    (kv, [keys, values]): (Value, [u32; 2]),
    heads: Heads,
    scores: Scores,
) -> Value {
    let (to, from) = (g.shape(q), g.shape(kv));
    let dtype = g.precision();
    let shared = scores.bias.map(|bias| {
        let of = g.shape(bias);
        let fits = |own: u32, all: u32| own == 1 || own == all;
        let all = fits(of.batch, to.batch) && fits(of.height, heads.count) && fits(of.width, to.positions());
        assert!(all && of.channels == from.positions(), "{label}: a bias {of} for {to} and {from}");
        assert!(g.dtype(bias) == DType::F32, "{label}: a bias that is not in f32");
        Bias { batch: of.batch > 1, heads: of.height > 1, queries: of.width > 1 }
    });
    let config = Attention {
        batch: to.batch,
        queries: to.positions(),
        keys: from.positions(),
        heads: heads.count,
        width: heads.padded(),
        scale: if scores.raw { 1.0 } else { 1.0 / (heads.width as f32).sqrt() },
        causal: scores.causal,
        query_channels: to.channels,
        key_channels: from.channels,
        offsets: [first, keys, values],
        dtype,
        bias: shared,
    };
    let call = attention::call(&config, g.limits());
    let inputs = [q, kv].into_iter().chain(scores.bias).map(Operand::from).collect();
    push(g, label, call, inputs, to.with_channels(heads.count * heads.padded()), dtype)
}

/// x [B, T, C] -> queries [B, T, inner] of the attention at `w`.
pub fn queries(g: &mut Graph, w: &Weights<'_>, names: &Projections, x: Value, heads: Heads) -> Value {
    projection(g, w, names, &[names.query], x, heads)
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
