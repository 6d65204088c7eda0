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
use crate::models::nn::{self, Linear, padded, product, vector};
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
    let (binding, precision) = (g.limits().binding, g.precision().bytes() as u64);
    let h = norm(g, &w.at("layer_norm"), config, x);
    let w = w.at("SelfAttention");
    let Projections { query, key, value, .. } = PROJECTIONS;
    let mut project = |parts: &[&str]| projection(g, &w, &PROJECTIONS, parts, h, heads);
    let whole = 3 * u64::from(inner) * config.width.next_multiple_of(4) as u64 * precision;
    let (q, kv) = if whole <= binding {
        let fused = project(&[query, key, value]);
        ((fused, 0), (fused, [inner, 2 * inner]))
    } else {
        ((project(&[query]), 0), (project(&[key, value]), [0, inner]))
    };
    let scores = Scores { causal: false, raw: true, bias: Some(bias) };
    let h = attend(g, w.path(), q, kv, heads, scores);
    let out = Linear { bias: false, residual: Some(x), heads: Some(heads), single: true, ..plain(config.width) };
    nn::linear(g, &w.at(PROJECTIONS.out), h, out)
}

fn plain(out: usize) -> Linear {
    Linear { bias: false, ..Linear::new(out as u32) }
}

/// x + Wo(act(Wi x)), or with gates Wo(act(Wi_0 x) * (Wi_1 x)), in as many parts of the inner channels as the adapter's
/// bindings ask for.
fn feed_forward(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value) -> Value {
    let h = norm(g, &w.at("layer_norm"), config, x);
    let w = w.at("DenseReluDense");
    let names: &[&str] = if config.gated { &["wi_1", "wi_0"] } else { &["wi"] };
    let [width, inner] = [config.width, config.feed_forward].map(|count| count as u32);
    let keys: Vec<String> = names.iter().map(|name| w.at(name).at("weight").claim(&[&[inner, width]])).collect();
    let last = w.at("wo").at("weight").claim(&[&[width, inner]]);
    let row = names.len() as u64 * u64::from(width.next_multiple_of(32)) * g.precision().bytes() as u64;
    let most = (g.limits().binding / row / PANEL * PANEL).max(PANEL).min(u64::from(inner)) as u32;
    let mut sum = x;
    for first in (0..inner).step_by(most as usize) {
        let count = most.min(inner - first);
        let parts = Part { keys: &keys, first, count, gated: config.gated };
        let h = opened(g, &w, config, h, &parts);
        let columns = padded(count).into_iter().map(|column| column.map(|column| first + column)).collect();
        let rows = (0..width).map(|row| Some((0, row))).collect();
        let weight = w.matrix(g, vec![last.clone()], rows, columns, 1);
        let out = Linear { residual: Some(sum), single: true, ..plain(config.width) };
        sum = product(g, w.at("wo").path(), h, weight, None, out);
    }
    sum
}

/// Columns of a packed matrix lie in panels of so many.
const PANEL: u64 = 32;

/// Some of the inner channels of a feed-forward part.
struct Part<'a> {
    keys: &'a [String],
    first: u32,
    count: u32,
    gated: bool,
}

/// x -> act(Wi_0 x) * (Wi_1 x), one product of both matrices whose values come first and whose gates second, or act(Wi x); in
/// f32.
fn opened(g: &mut Graph, w: &Weights<'_>, config: &T5Config, x: Value, part: &Part<'_>) -> Value {
    let (from, out) = (g.shape(x), part.count);
    let rows: Vec<RowSource> = if part.gated {
        let row = |source: RowSource| source.map(|(_, row)| ((row / out) as u8, part.first + row % out));
        gated_rows(out).into_iter().map(row).collect()
    } else {
        (0..out).map(|row| Some((0, part.first + row))).collect()
    };
    let weight = w.matrix(g, part.keys.to_vec(), rows, padded(from.channels), 1);
    let kernel = Matmul {
        rows: from.rows(),
        inputs: from.channels,
        outputs: out,
        activation: config.activation,
        bias: false,
        residual: false,
        gated: part.gated,
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
