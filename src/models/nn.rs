//! Layers: functions of (graph, weights, value). One call declares a layer's weights, checks their shapes and records it.

use std::ops::Range;

use super::wide;
use crate::error::Error;
use crate::graph::{Graph, Operand, RowSource, Shape, Value, WeightId};
use crate::kernels::conv2d::Conv2d;
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::matmul::Matmul;
use crate::kernels::matrix::{Matrix, Operands, Run, Slice};
use crate::kernels::pool::{self, Pool};
use crate::kernels::resample::Resample;
use crate::kernels::resampling::{Resampling, Table};
use crate::kernels::sinusoid::{self, Sinusoid};
use crate::kernels::{Call, concat as concat_kernel, embed, matmul, matrix_vector, resample as resample_kernel};
use crate::tensor::DType;
use crate::weights::Weights;

pub use super::attention::{
    ADDED, AUTOENCODER, CLIP, DIFFUSERS, Heads, POOLING, Projections, Scores, attend, attention, keys_values, queries,
};
pub use super::linears::linears;
pub(super) use super::linears::projected;
pub use super::norms::{Norm, group_norm, group_norm_of, group_norm_with, layer_norm};
pub use super::resnet::{Resize, Resnet, ResnetBlock, resnet, resnet_block};
pub use super::tokens::{
    add_vector, alternating_tokens, concat_tokens, double, gather, halve, linear_tokens, mean, pad_zeros, reshaped,
};

/// A linear layer's options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Output channels.
    pub out: u32,
    /// Whether there is a bias.
    pub bias: bool,
    /// Applied before the residual.
    pub activation: Activation,
    /// Added last: [rows, out].
    pub residual: Option<Value>,
    /// A second input [.., K2], whose channels follow those of the first.
    pub second: Option<Value>,
    /// The input is head-major, its heads padded.
    pub heads: Option<Heads>,
    /// The output is stored in f32 whatever the graph's precision.
    pub single: bool,
}

impl Linear {
    /// With bias and nothing else.
    pub fn new(out: u32) -> Self {
        Self { out, bias: true, activation: Activation::None, residual: None, second: None, heads: None, single: false }
    }
}

/// A convolution's options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv {
    /// Output channels.
    pub out: u32,
    /// Kernel height and width; padding is half of it.
    pub kernel: u32,
    /// Stride.
    pub stride: u32,
    /// Nearest-neighbour enlargement to this height and width (at most doubling) before the convolution.
    pub upsample: Option<(u32, u32)>,
    /// Added to every position of a batch element: the channels of a [B, 1, 1, ..] in f32 from the given one on, a multiple
    /// of four.
    pub row_bias: Option<(Value, u32)>,
    /// Added last: [B, H, W, out].
    pub residual: Option<Value>,
}

impl Conv {
    /// Stride 1, same size, with bias.
    pub fn new(out: u32, kernel: u32) -> Self {
        Self { out, kernel, stride: 1, upsample: None, row_bias: None, residual: None }
    }
}

fn identity(count: u32) -> Vec<RowSource> {
    slice(0..count)
}

/// These rows of the first tensor.
fn slice(rows: Range<u32>) -> Vec<RowSource> {
    rows.map(|row| Some((0, row))).collect()
}

/// A channel axis as stored: padded to a multiple of four.
pub(super) fn padded(count: u32) -> Vec<Option<u32>> {
    (0..count.next_multiple_of(4)).map(|k| (k < count).then_some(k)).collect()
}

pub(super) fn vector(g: &mut Graph, w: &Weights<'_>, count: u32) -> WeightId {
    let key = w.claim(&[&[count]]);
    w.vector(g, vec![key], identity(count))
}

/// Records `call`, or the fault that a row of the tensor is larger than a binding.
pub(crate) fn push(
    g: &mut Graph,
    label: &str,
    call: Option<Call>,
    inputs: Vec<Operand>,
    shape: Shape,
    dtype: DType,
) -> Value {
    match call {
        Some(call) => g.push(label, call, inputs, shape, dtype),
        None => {
            let limit = g.limits().binding;
            g.fail(
                Error::new("one row of a tensor is larger than a binding of this adapter")
                    .at(format!("{label} {shape}"))
                    .expected(format!("at most {limit} bytes"))
                    .hint("a smaller picture, or another --adapter"),
            );
            g.input(label, shape, dtype)
        }
    }
}

/// Records a product, in two nodes where its sum is split, or with the kernel for few rows; see [`push`].
pub(super) fn push_product(
    g: &mut Graph,
    label: &str,
    config: &Matrix,
    operands: Operands<Operand>,
    shape: Shape,
) -> Value {
    let dtype = config.types[2];
    if let Some(call) = matrix_vector::call(config, g.limits()) {
        return g.push(label, call, operands.inputs(), shape, dtype);
    }
    match config.call(g.limits()) {
        Some(Run { call, reduce: Some((partials, reduce)) }) => {
            let sums = Shape::tokens(partials.splits, partials.rows, partials.columns);
            let sums = g.push(label, call, operands.partial_inputs(), sums, DType::F32);
            g.push(label, reduce, operands.reduce_inputs(sums.into()), shape, dtype)
        }
        run => push(g, label, run.map(|run| run.call), operands.inputs(), shape, dtype),
    }
}

/// The first N of the `rows` outputs of a linear layer: x [.., K] -> [.., N].
pub fn linear_part(g: &mut Graph, w: &Weights<'_>, x: Value, rows: u32, options: Linear) -> Value {
    let depth = g.shape(x).channels;
    let key = w.at("weight").claim(&[&[rows, depth]]);
    let weight = w.matrix(g, vec![key], identity(options.out), padded(depth), 1);
    product(g, w.path(), x, weight, None, options)
}

/// x [.., K] -> [.., N]; also a 1x1 convolution.
pub fn linear(g: &mut Graph, w: &Weights<'_>, x: Value, options: Linear) -> Value {
    let from = g.shape(x);
    let second = options.second.map_or(0, |second| g.shape(second).channels);
    let first = options.heads.map_or(from.channels, |heads| heads.count * heads.width);
    let key = w.at("weight").claim(&[&[options.out, first + second], &[options.out, first + second, 1, 1]]);
    let mut columns = options.heads.map_or_else(|| padded(from.channels), Heads::channels);
    columns.extend(padded(second).into_iter().map(|column| column.map(|column| first + column)));
    let bias_key = options.bias.then(|| w.at("bias").claim(&[&[options.out]]));
    let bytes = (columns.len() * g.precision().bytes()) as u64;
    let parts = wide::parts(options.out, if options.single { 0 } else { bytes }, g.limits());
    wide::joined(g, w.path(), parts, options.residual, |g, rows, residual| {
        let outputs = slice(rows);
        let weight = w.matrix(g, vec![key.clone()], outputs.clone(), columns.clone(), 1);
        let options = Linear { out: outputs.len() as u32, residual, ..options };
        let bias = bias_key.clone().map(|key| w.vector(g, vec![key], outputs));
        product(g, w.path(), x, weight, bias, options)
    })
}

/// x [rows, K] times a packed matrix, with the epilogue that `options` asks for.
pub(super) fn product(
    g: &mut Graph,
    label: &str,
    x: Value,
    weight: WeightId,
    bias: Option<WeightId>,
    options: Linear,
) -> Value {
    let from = g.shape(x);
    if let Some(second) = options.second {
        let other = g.shape(second);
        assert!(other.rows() == from.rows(), "{label}: {from} and {other} have different rows");
        assert!(g.dtype(x) == g.dtype(second), "{label}: two inputs of different types");
    }
    let output = if options.single { DType::F32 } else { g.precision() };
    let config = Matmul {
        rows: from.rows(),
        inputs: from.channels,
        outputs: options.out,
        activation: options.activation,
        bias: bias.is_some(),
        residual: options.residual.is_some(),
        gated: false,
        input: g.dtype(x),
        weight: g.precision(),
        output,
    };
    let second = options.second.map_or(0, |second| g.shape(second).channels);
    let config = Matrix { second, ..config.matrix() };
    let operands = Operands {
        x: x.into(),
        second: options.second.map(Operand::from),
        weight: weight.into(),
        bias: bias.map(Operand::from),
        row_bias: None,
        residual: options.residual.map(Operand::from),
    };
    push_product(g, label, &config, operands, from.with_channels(options.out))
}

/// x [.., K] -> value * GELU(gate) [.., N], both from one product (arXiv:2002.05202; diffusers `GEGLU`).
pub fn geglu(g: &mut Graph, w: &Weights<'_>, x: Value, out: u32) -> Value {
    let from = g.shape(x);
    let key = w.at("weight").claim(&[&[2 * out, from.channels]]);
    let bias = w.at("bias").claim(&[&[2 * out]]);
    let rows = matmul::gated_rows(out);
    let weight = w.matrix(g, vec![key], rows.clone(), padded(from.channels), 1);
    let bias = w.vector(g, vec![bias], rows);
    let config = Matmul {
        rows: from.rows(),
        inputs: from.channels,
        outputs: out,
        activation: Activation::None,
        bias: true,
        residual: false,
        gated: true,
        input: g.dtype(x),
        weight: g.precision(),
        output: g.precision(),
    };
    let operands = Operands {
        x: x.into(),
        second: None,
        weight: weight.into(),
        bias: Some(bias.into()),
        row_bias: None,
        residual: None,
    };
    push_product(g, w.path(), &config.matrix(), operands, from.with_channels(out))
}

/// x [B, H, W, I] -> [B, H, W, O], 3x3.
pub fn conv3x3(g: &mut Graph, w: &Weights<'_>, x: Value, out: u32) -> Value {
    conv(g, w, x, Conv::new(out, 3))
}

/// x [B, H, W, I] -> [B, H', W', O], H' = ceil(H / stride) after the enlargement.
pub fn conv(g: &mut Graph, w: &Weights<'_>, x: Value, options: Conv) -> Value {
    let inputs = g.shape(x).channels;
    let key = w.at("weight").claim(&[&[options.out, inputs, options.kernel, options.kernel]]);
    let bias_key = w.at("bias").claim(&[&[options.out]]);
    let taps = options.kernel * options.kernel;
    let bytes = u64::from(taps * inputs.next_multiple_of(4)) * g.precision().bytes() as u64;
    let parts = wide::parts(options.out, bytes, g.limits());
    wide::joined(g, w.path(), parts, options.residual, |g, rows, residual| {
        let row_bias = options.row_bias.map(|(value, first)| (value, first + rows.start));
        let outputs = slice(rows);
        let weight = w.matrix(g, vec![key.clone()], outputs.clone(), padded(inputs), taps);
        let options = Conv { out: outputs.len() as u32, residual, row_bias, ..options };
        let bias = w.vector(g, vec![bias_key.clone()], outputs);
        convolution(g, w, x, weight, bias, options)
    })
}

/// The same with packed weights.
fn convolution(g: &mut Graph, w: &Weights<'_>, x: Value, weight: WeightId, bias: WeightId, options: Conv) -> Value {
    let from = g.shape(x);
    let (height, width) = options.upsample.unwrap_or((from.height, from.width));
    let to = Shape::new(from.batch, height.div_ceil(options.stride), width.div_ceil(options.stride), options.out);
    let config = Conv2d {
        batch: from.batch,
        input: [from.height, from.width],
        output: [to.height, to.width],
        inputs: from.channels,
        outputs: options.out,
        kernel: [options.kernel, options.kernel],
        stride: options.stride,
        padding: [options.kernel / 2, options.kernel / 2],
        upsample: options.upsample.is_some(),
        row_bias: options.row_bias.is_some(),
        residual: options.residual.is_some(),
        dtype: g.precision(),
    };
    let part = |(value, first): (Value, u32)| Slice { channels: g.shape(value).channels, first };
    let config = Matrix { row_bias: options.row_bias.map(part), ..config.matrix() };
    let operands = Operands {
        x: x.into(),
        second: None,
        weight: weight.into(),
        bias: Some(bias.into()),
        row_bias: options.row_bias.map(|(value, _)| value.into()),
        residual: options.residual.map(Operand::from),
    };
    push_product(g, w.path(), &config, operands, to)
}

/// [a | b] along the channels.
pub fn concat(g: &mut Graph, label: &str, a: Value, b: Value) -> Value {
    let (from, other) = (g.shape(a), g.shape(b));
    assert!(from.rows() == other.rows(), "{label}: {from} and {other} have different rows");
    let dtype = g.dtype(a);
    let call = concat_kernel::call(from.rows(), from.channels, other.channels, dtype, g.limits());
    push(g, label, call, vec![a.into(), b.into()], from.with_channels(from.channels + other.channels), dtype)
}

/// act(a + b).
pub fn add(g: &mut Graph, label: &str, a: Value, b: Value, activation: Activation) -> Value {
    pointwise(g, label, a, Some(b), Elementwise { scale_a: 1.0, scale_b: Some(1.0), shift: 0.0, activation })
}

/// x [B, H, W, C] -> [B, OH, OW, C]; `config.batch`, `input`, `channels` and `dtype` are those of x.
pub fn pool(g: &mut Graph, label: &str, x: Value, config: Pool) -> Value {
    let from = g.shape(x);
    let (batch, input, channels, dtype) = (from.batch, [from.height, from.width], from.channels, g.dtype(x));
    let config = Pool { batch, input, channels, dtype, ..config };
    let call = pool::call(&config, g.limits());
    push(g, label, call, vec![x.into()], Shape::new(batch, config.output[0], config.output[1], channels), dtype)
}

/// a * b, b being a value or a table of the shape of a and stored like it.
pub fn multiply(g: &mut Graph, label: &str, a: Value, b: impl Into<Operand>) -> Value {
    let (shape, dtype) = (g.shape(a), g.dtype(a));
    let call = elementwise::product(shape.rows(), shape.channels, [dtype; 3], g.limits());
    push(g, label, call, vec![a.into(), b.into()], shape, dtype)
}

/// act(x).
pub fn activate(g: &mut Graph, label: &str, x: Value, activation: Activation) -> Value {
    pointwise(g, label, x, None, Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation })
}

/// factor * x + shift.
pub fn scale(g: &mut Graph, label: &str, x: Value, factor: f32, shift: f32) -> Value {
    let config = Elementwise { scale_a: factor, scale_b: None, shift, activation: Activation::None };
    pointwise(g, label, x, None, config)
}

/// act(factor * x + shift).
pub fn scale_with(g: &mut Graph, label: &str, x: Value, (factor, shift): (f32, f32), activation: Activation) -> Value {
    pointwise(g, label, x, None, Elementwise { scale_a: factor, scale_b: None, shift, activation })
}

fn pointwise(g: &mut Graph, label: &str, a: Value, b: Option<Value>, config: Elementwise) -> Value {
    let shape = g.shape(a);
    let b = b.unwrap_or(a);
    let dtype = g.precision();
    let types = [g.dtype(a), g.dtype(b), dtype];
    let call = elementwise::call(config, shape.rows(), shape.channels, types, g.limits());
    push(g, label, call, vec![a.into(), b.into()], shape, dtype)
}

/// x [B, H, W, C] -> [B, H', W', C] by the tables of rows and columns, stored as `dtype`; what lies between the two passes
/// is in f32.
pub fn resample(g: &mut Graph, label: &str, x: Value, tables: &Resampling, dtype: DType) -> Value {
    let [rows, columns] = [&tables.rows, &tables.columns];
    let from = g.shape(x);
    assert!(
        rows.input() == from.height && columns.input() == from.width,
        "{label}: tables of another size than {from}"
    );
    let shrinks = |table: &Table| f64::from(table.output()) / f64::from(table.input());
    // Pillow's order where the result of a pass is rounded, else what leaves less to the second.
    let columns_first = tables.quantize || shrinks(columns) <= shrinks(rows);
    let passes = if columns_first { [(columns, false), (rows, true)] } else { [(rows, true), (columns, false)] };
    let passes: Vec<_> = passes.into_iter().filter(|(table, _)| !table.is_identity()).collect();
    let mut x = x;
    for (index, (table, vertical)) in passes.iter().enumerate() {
        let from = g.shape(x);
        let last = index + 1 == passes.len();
        let types = [g.dtype(x), if last { dtype } else { DType::F32 }];
        let (outer, inner, to) = if *vertical {
            (from.batch, from.width * from.vectors(), Shape { height: table.output(), ..from })
        } else {
            (from.batch * from.height, from.vectors(), Shape { width: table.output(), ..from })
        };
        let config = Resample { outer, inner, quantize: tables.quantize, types };
        let call = resample_kernel::call(&config, table, g.limits());
        let weights = g.constant(table.packed());
        x = push(g, label, call, vec![x.into(), weights.into()], to, types[1]);
    }
    if passes.is_empty() && g.dtype(x) != dtype {
        let config = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: Activation::None };
        let (shape, types) = (g.shape(x), [g.dtype(x), g.dtype(x), dtype]);
        let call = elementwise::call(config, shape.rows(), shape.channels, types, g.limits());
        return push(g, label, call, vec![x.into(), x.into()], shape, dtype);
    }
    x
}

/// x [B, 1, 1, N] in f32 -> sinusoidal embeddings [B, 1, 1, N * dim].
pub fn sinusoid(g: &mut Graph, label: &str, x: Value, config: Sinusoid) -> Value {
    let dtype = g.precision();
    let frequencies = g.constant(config.frequencies());
    let call = sinusoid::call(&config, dtype, g.limits());
    let shape = Shape::new(config.batch, 1, 1, config.inputs * config.dim);
    g.push(label, call, vec![x.into(), frequencies.into()], shape, dtype)
}

/// Row `rows[b]` of x [B, T, C], counted over the whole batch -> [B, 1, 1, C].
pub fn select_row(g: &mut Graph, label: &str, x: Value, rows: Value) -> Value {
    let batch = g.shape(rows).batch;
    select_row_at(g, label, x, rows.into(), batch)
}

/// The same with rows that are a value [B, 1, 1, 1] or a constant.
pub(super) fn select_row_at(g: &mut Graph, label: &str, x: Value, rows: Operand, batch: u32) -> Value {
    let from = g.shape(x);
    let dtype = g.dtype(x);
    let zeros = g.constant(vec![0.0; from.channels.next_multiple_of(4) as usize]);
    let call = embed::call(batch, 1, from.channels, from.rows(), dtype, g.limits());
    let inputs = vec![rows, zeros.into(), x.into(), x.into(), x.into(), x.into()];
    push(g, label, call, inputs, Shape::new(batch, 1, 1, from.channels), dtype)
}
