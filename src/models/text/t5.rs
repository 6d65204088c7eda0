//! T5's text encoder (arXiv:1910.10683; transformers `T5EncoderModel`).
//!
//! The sum that runs through all layers passes f16's range in the large models, as does what goes into the last product of a
//! feed-forward part: both are stored in f32 whatever the precision. What is normalised, and heads, are not.

use std::ops::Range;

use crate::graph::{Graph, Operand, RowSource, Shape, Value};
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::matmul::{Matmul, gated_rows};
use crate::kernels::matrix::Operands;
use crate::kernels::position_bias::{self, PositionBias};
use crate::kernels::rms_norm::{self, RmsNorm};
use crate::models::attention::{Heads, Projections, Scores, attend, projection};
use crate::models::config::T5Config;
use crate::models::embedding::lookup;
use crate::models::nn::{self, Linear, padded, vector};
use crate::tensor::DType;
use crate::weights::Weights;

const PROJECTIONS: Projections = Projections { query: "q", key: "k", value: "v", out: "o", bias: false, causal: false };

/// The shape of what runs through the layers.
pub fn stream(config: &T5Config, batch: u32, tokens: u32) -> Shape {
    Shape::tokens(batch, tokens, config.width as u32)
}

/// ids [B, T] -> vectors [B, T, C] in f32.
pub fn embedding(g: &mut Graph, w: &Weights<'_>, config: &T5Config, ids: Value) -> Value {
    let shape = g.shape(ids).with_channels(config.width as u32);
    let x = lookup(g, "shared", (&w.at("shared.weight"), config.vocabulary as u32), ids, shape);
    let copy = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: Activation::None };
    let types = [g.dtype(x), g.dtype(x), DType::F32];
    let call = elementwise::call(copy, shape.rows(), shape.channels, types, g.limits());
    nn::push(g, "shared", call, vec![x.into(), x.into()], shape, DType::F32)
}

/// mask [B, 1, 1, T] in f32, 0 or the least number -> what every layer adds to its scores [B, heads, T, T].
pub fn bias(g: &mut Graph, w: &Weights<'_>, config: &T5Config, mask: Value) -> Value {
    let of = g.shape(mask);
    let [heads, buckets] = [config.heads, config.buckets].map(|count| count as u32);
    let kernel =
        PositionBias { batch: of.batch, heads, tokens: of.channels, buckets, max_distance: config.max_distance as u32 };
    let table = w.at("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    table.claim(&[&[buckets, heads]]);
    let table = table.table(g, 0, buckets, heads, DType::F32);
    let places = g.constant(kernel.table());
    let call = position_bias::call(&kernel, g.limits());
    let inputs = vec![places.into(), table.into(), mask.into()];
    nn::push(g, "position_bias", call, inputs, Shape::new(of.batch, heads, of.channels, of.channels), DType::F32)
}

/// x [B, T, C] in f32 through some layers.
pub fn layers(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &T5Config,
    range: Range<usize>,
    mut x: Value,
    bias: Value,
) -> Value {
    for index in range {
        let w = w.at("encoder.block").at(index);
        x = attention(g, &w.at("layer.0"), config, x, bias);
        x = feed_forward(g, &w.at("layer.1"), config, x);
        g.tap(w.path(), x);
    }
    x
}

/// The norm behind the last layer [B, T, C], in the graph's precision.
pub fn final_norm(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value) -> Value {
    norm(g, &w.at("encoder.final_layer_norm"), config, x)
}

fn norm(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value) -> Value {
    let shape = g.shape(x);
    let types = [g.dtype(x), g.precision()];
    let weight = vector(g, &w.at("weight"), shape.channels);
    let kernel = RmsNorm { rows: shape.rows(), channels: shape.channels, eps: config.eps as f32, types };
    let call = rms_norm::call(&kernel, g.limits());
    nn::push(g, w.path(), call, vec![x.into(), weight.into()], shape, types[1])
}

/// x + attention of the normalised x to itself; its scores are not scaled.
fn attention(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value, bias: Value) -> Value {
    let heads = Heads { count: config.heads as u32, width: config.head_width as u32 };
    let inner = heads.count * heads.padded();
    let h = norm(g, &w.at("layer_norm"), config, x);
    let w = w.at("SelfAttention");
    let qkv = projection(g, &w, &PROJECTIONS, &[PROJECTIONS.query, PROJECTIONS.key, PROJECTIONS.value], h, heads);
    let scores = Scores { causal: false, raw: true, bias: Some(bias) };
    let h = attend(g, w.path(), (qkv, 0), (qkv, [inner, 2 * inner]), heads, scores);
    let out = Linear { bias: false, residual: Some(x), heads: Some(heads), single: true, ..plain(config.width) };
    nn::linear(g, &w.at(PROJECTIONS.out), h, out)
}

fn plain(out: usize) -> Linear {
    Linear { bias: false, ..Linear::new(out as u32) }
}

/// x + Wo(act(Wi x)), or with gates Wo(act(Wi_0 x) * (Wi_1 x)).
fn feed_forward(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value) -> Value {
    let h = norm(g, &w.at("layer_norm"), config, x);
    let w = w.at("DenseReluDense");
    let h = if config.gated {
        gates(g, &w, config, h)
    } else {
        let wide = Linear { activation: config.activation, single: true, ..plain(config.feed_forward) };
        nn::linear(g, &w.at("wi"), h, wide)
    };
    nn::linear(g, &w.at("wo"), h, Linear { residual: Some(x), single: true, ..plain(config.width) })
}

/// x -> act(Wi_0 x) * (Wi_1 x) in f32, one product of both matrices.
fn gates(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value) -> Value {
    let (from, out) = (g.shape(x), config.feed_forward as u32);
    // The kernel's values come first and its gates second.
    let keys = ["wi_1", "wi_0"].map(|part| w.at(part).at("weight").claim(&[&[out, from.channels]]));
    let rows = |source: RowSource| source.map(|(_, row)| ((row / out) as u8, row % out));
    let rows: Vec<RowSource> = gated_rows(out).into_iter().map(rows).collect();
    let weight = w.matrix(g, keys.to_vec(), rows, padded(from.channels), 1);
    let kernel = Matmul {
        rows: from.rows(),
        inputs: from.channels,
        outputs: out,
        activation: config.activation,
        bias: false,
        residual: false,
        gated: true,
        input: g.dtype(x),
        weight: g.precision(),
        output: DType::F32,
    };
    let operands = Operands {
        x: Operand::from(x),
        second: None,
        weight: weight.into(),
        bias: None,
        row_bias: None,
        residual: None,
    };
    nn::push_product(g, w.path(), &kernel.matrix(), operands, from.with_channels(out))
}
