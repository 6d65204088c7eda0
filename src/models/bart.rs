//! What the layers of DALL-E mini's encoder and decoder share: NormFormer blocks (arXiv:2110.09456) whose LayerNorms in
//! front of a linear layer have a bias only.

use crate::graph::{Graph, Operand, Shape, Value};
use crate::kernels::attention_cache::{self, AttentionCache};
use crate::kernels::elementwise::Activation;
use crate::kernels::layer_norm::{self, LayerNorm};
use crate::kernels::matmul::{Matmul, gated_rows};
use crate::kernels::matrix::Operands;
use crate::models::attention::{CLIP, Heads, Projections, projection};
use crate::models::config::{self, DalleConfig};
use crate::models::nn::{self, Linear, padded, vector};
use crate::weights::Weights;

/// Epsilon of every LayerNorm.
const EPS: f32 = 1e-5;

/// The projections of an attention.
pub(super) fn projections(config: &DalleConfig) -> Projections {
    Projections { bias: config.bias, causal: false, ..CLIP }
}

/// The heads of an attention over vectors of `config`'s width.
pub(super) fn heads(config: &DalleConfig, count: usize) -> Heads {
    Heads { count: count as u32, width: (config.width / count) as u32 }
}

/// x [.., C] normalised over the channels, with scale and bias.
pub(super) fn norm(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    nn::layer_norm(g, w, x, EPS)
}

/// The same in front of a linear layer: without a scale where the checkpoint has none (`force_ln_scale` gives it one).
pub(super) fn norm_before(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    if w.has("weight") {
        return norm(g, w, x);
    }
    let shape = g.shape(x);
    let dtype = g.dtype(x);
    let channels = shape.channels.next_multiple_of(4);
    let weight = (0..channels).map(|channel| if channel < shape.channels { 1.0 } else { 0.0 }).collect();
    let weight = g.constant(weight);
    let bias = vector(g, &w.at("bias"), shape.channels);
    let config = LayerNorm { rows: shape.rows(), channels: shape.channels, eps: EPS, dtype };
    let call = layer_norm::call(&config, g.limits());
    nn::push(g, w.path(), call, vec![x.into(), weight.into(), bias.into()], shape, dtype)
}

/// Query, key and value projections of x as one product [B, T, 3 * inner].
pub(super) fn query_key_value(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, x: Value, heads: Heads) -> Value {
    let names = projections(config);
    projection(g, w, &names, &[names.query, names.key, names.value], x, heads)
}

/// The query projection of x alone [B, T, inner].
pub(super) fn query(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, x: Value, heads: Heads) -> Value {
    let names = projections(config);
    projection(g, w, &names, &[names.query], x, heads)
}

/// q [B, TQ, ..] attends to the keys up to `last` of kv [B, S, ..]; keys and values begin at the channels `at` of kv.
/// Ends with the output's projection [B, TQ, C].
pub(super) fn attend(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &DalleConfig,
    q: Value,
    (kv, at): (Value, [u32; 2]),
    last: Value,
    heads: Heads,
) -> Value {
    let (to, from) = (g.shape(q), g.shape(kv));
    let inner = heads.count * heads.padded();
    let dtype = g.precision();
    let attention = AttentionCache {
        batch: to.batch,
        queries: to.positions(),
        keys: from.positions(),
        heads: heads.count,
        width: heads.padded(),
        scale: 1.0 / (heads.width as f32).sqrt(),
        query_channels: to.channels,
        key_channels: from.channels,
        offsets: [0, at[0], at[1]],
        dtype,
    };
    let call = attention_cache::call(&attention, g.limits());
    let inputs = vec![q.into(), kv.into(), last.into()];
    let h = nn::push(g, w.path(), call, inputs, to.with_channels(inner), dtype);
    let out = Linear { heads: Some(heads), bias: config.bias, ..Linear::new(config.width as u32) };
    nn::linear(g, &w.at(projections(config).out), h, out)
}

/// x + LN(y), the end of an attention block.
pub(super) fn normed_sum(g: &mut Graph, w: &Weights<'_>, x: Value, y: Value) -> Value {
    let y = norm(g, w, y);
    nn::add(g, w.path(), x, y, Activation::None)
}

/// x + the feed-forward part of x: `W2 LN1(gelu(W0 z) * (W1 z))`, or without gates `W1 LN1(act(W0 z))`, with `z = LN0(x)`.
pub(super) fn feed_forward(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, x: Value, width: usize) -> Value {
    let width = width as u32;
    let bias = config.bias;
    let w = &w.at(if config.gated { "glu" } else { "ffn" });
    let z = norm_before(g, &w.at("ln0"), x);
    let z = if config.gated {
        gates(g, w, z, width, bias)
    } else {
        let activation = match config.activation {
            config::Activation::Gelu => Activation::Gelu,
            config::Activation::QuickGelu => Activation::QuickGelu,
        };
        nn::linear(g, &w.at("fc0"), z, Linear { bias, activation, ..Linear::new(width) })
    };
    let z = norm_before(g, &w.at("ln1"), z);
    let last = Linear { bias, residual: Some(x), ..Linear::new(config.width as u32) };
    nn::linear(g, &w.at(if config.gated { "fc2" } else { "fc1" }), z, last)
}

/// z -> gelu(W0 z) * (W1 z), one product of both matrices.
fn gates(g: &mut Graph, w: &Weights<'_>, z: Value, out: u32, bias: bool) -> Value {
    let from = g.shape(z);
    // The kernel's values come first and its gates second: W1 and W0.
    let parts = ["fc1", "fc0"].map(|part| w.at(part));
    let rows = |source: Option<(u8, u32)>| source.map(|(_, row)| ((row / out) as u8, row % out));
    let rows: Vec<_> = gated_rows(out).into_iter().map(rows).collect();
    let keys = parts.iter().map(|part| part.at("weight").claim(&[&[out, from.channels]])).collect();
    let weight = w.matrix(g, keys, rows.clone(), padded(from.channels), 1);
    let bias = bias.then(|| {
        let keys = parts.iter().map(|part| part.at("bias").claim(&[&[out]])).collect();
        w.vector(g, keys, rows)
    });
    let config = Matmul {
        rows: from.rows(),
        inputs: from.channels,
        outputs: out,
        activation: Activation::None,
        bias: bias.is_some(),
        residual: false,
        gated: true,
        input: g.dtype(z),
        weight: g.precision(),
        output: g.precision(),
    };
    let operands = Operands {
        x: Operand::from(z),
        second: None,
        weight: weight.into(),
        bias: bias.map(Operand::from),
        row_bias: None,
        residual: None,
    };
    let shape = Shape { channels: out, ..from };
    nn::push_product(g, w.at("fc0+fc1").path(), &config.matrix(), operands, shape)
}
