//! ESRGAN's network: a picture to a larger one (arXiv:1809.00219, figures 3 and 4), with Real-ESRGAN's pixel-unshuffle
//! (arXiv:2107.10833, figure 4) and the residuals of ESRGAN+ (arXiv:2001.08073, figure 3).
//!
//! The names of tensors are those of Real-ESRGAN's files; `weights::esrgan` translates the older ones. A dense block's
//! convolutions read what came before them from two tensors, so that of its 576 channels read 256 are copied.

use crate::graph::{Graph, Operand, RowSource, Shape, Value};
use crate::kernels::conv2d::Conv2d;
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::matrix::{Matrix, Operands};
use crate::models::config::RrdbConfig;
use crate::models::nn::{self, Linear};
use crate::tensor::DType;
use crate::weights::Weights;

/// The share of a branch that is added to what it branched off from.
const RESIDUAL: f32 = 0.2;

/// A 3x3 convolution's options.
#[derive(Clone, Copy)]
struct Layer {
    out: u32,
    /// More input channels, behind those of the first input.
    second: Option<Value>,
    activation: Activation,
    /// Doubles the size by nearest neighbour first.
    double: bool,
    /// Factor of the result before `residual`.
    scale: f32,
    /// Added last.
    residual: Option<Value>,
    /// Stored in f32 whatever the graph's precision.
    single: bool,
}

impl Layer {
    fn new(out: u32) -> Self {
        let activation = Activation::None;
        Self { out, second: None, activation, double: false, scale: 1.0, residual: None, single: false }
    }

    fn leaky(out: u32) -> Self {
        Self { activation: Activation::LeakyRelu, ..Self::new(out) }
    }
}

/// picture [1, H / u, W / u, 3 u u] from 0 to 1, its pixels unshuffled -> [1, s H, s W, 3] in f32, around 0..1.
pub fn enlarge(g: &mut Graph, w: &Weights<'_>, config: &RrdbConfig, picture: Value) -> Value {
    let width = config.width as u32;
    let first = conv(g, &w.at("conv_first"), picture, Layer::new(width));
    g.tap("conv_first", first);
    let mut x = first;
    for block in 0..config.blocks {
        x = residual_block(g, &w.at("body").at(block), config, x);
        g.tap(&format!("body.{block}"), x);
    }
    x = conv(g, &w.at("conv_body"), x, Layer { residual: Some(first), ..Layer::new(width) });
    g.tap("conv_body", x);
    for index in 1..=config.doublings {
        let name = format!("conv_up{index}");
        x = conv(g, &w.at(&name), x, Layer { double: true, ..Layer::leaky(width) });
        g.tap(&name, x);
    }
    x = conv(g, &w.at("conv_hr"), x, Layer::leaky(width));
    g.tap("conv_hr", x);
    conv(g, &w.at("conv_last"), x, Layer { single: true, ..Layer::new(RrdbConfig::PICTURE as u32) })
}

/// x [1, H, W, C] -> [1, H, W, C]: three dense blocks and a residual around them.
fn residual_block(g: &mut Graph, w: &Weights<'_>, config: &RrdbConfig, x: Value) -> Value {
    let mut h = x;
    for index in 1..=3 {
        h = dense_block(g, &w.at(format!("rdb{index}")), config, h);
    }
    let sum = Elementwise { scale_a: RESIDUAL, scale_b: Some(1.0), shift: 0.0, activation: Activation::None };
    let (shape, dtype) = (g.shape(x), g.precision());
    let call = elementwise::call(sum, shape.rows(), shape.channels, [dtype; 3], g.limits());
    nn::push(g, w.path(), call, vec![h.into(), x.into()], shape, dtype)
}

/// x [1, H, W, C] -> [1, H, W, C]: each convolution reads x and what all before it made, G channels each.
fn dense_block(g: &mut Graph, w: &Weights<'_>, config: &RrdbConfig, x: Value) -> Value {
    let growth = Layer::leaky(config.growth as u32);
    let shortcut = config.plus.then(|| {
        let options = Linear { bias: false, ..Linear::new(config.growth as u32) };
        nn::linear(g, &w.at("conv1x1"), x, options)
    });
    let one = conv(g, &w.at("conv1"), x, growth);
    let two = conv(g, &w.at("conv2"), x, Layer { second: Some(one), residual: shortcut, ..growth });
    let early = nn::concat(g, w.path(), x, one);
    let three = conv(g, &w.at("conv3"), early, Layer { second: Some(two), ..growth });
    let late = nn::concat(g, w.path(), two, three);
    let further = config.plus.then_some(two);
    let four = conv(g, &w.at("conv4"), early, Layer { second: Some(late), residual: further, ..growth });
    let late = nn::concat(g, w.path(), late, four);
    let last = Layer { second: Some(late), scale: RESIDUAL, residual: Some(x), ..Layer::new(config.width as u32) };
    conv(g, &w.at("conv5"), early, last)
}

/// x [1, H, W, I] and perhaps [1, H, W, J] -> [1, H, W, O], or twice as high and wide.
fn conv(g: &mut Graph, w: &Weights<'_>, x: Value, options: Layer) -> Value {
    const KERNEL: u32 = 3;
    let from = g.shape(x);
    let second = options.second.map_or(0, |second| g.shape(second).channels);
    let key = w.at("weight").claim(&[&[options.out, from.channels + second, KERNEL, KERNEL]]);
    let bias = w.at("bias").claim(&[&[options.out]]);
    let rows: Vec<RowSource> = (0..options.out).map(|row| Some((0, row))).collect();
    let mut columns = nn::padded(from.channels);
    columns.extend(nn::padded(second).into_iter().map(|column| column.map(|column| from.channels + column)));
    let weight = w.matrix(g, vec![key], rows.clone(), columns, KERNEL * KERNEL);
    let bias = w.vector(g, vec![bias], rows);
    let factor = 1 + u32::from(options.double);
    let to = Shape { height: factor * from.height, width: factor * from.width, ..from.with_channels(options.out) };
    let dtype = g.precision();
    let config = Conv2d {
        batch: from.batch,
        input: [from.height, from.width],
        output: [to.height, to.width],
        inputs: from.channels,
        outputs: options.out,
        kernel: [KERNEL; 2],
        stride: 1,
        padding: [KERNEL / 2; 2],
        upsample: options.double,
        row_bias: false,
        residual: options.residual.is_some(),
        dtype,
    };
    let types = [dtype, dtype, if options.single { DType::F32 } else { dtype }];
    let Layer { activation, scale, .. } = options;
    let config = Matrix { second, activation, scale, types, ..config.matrix() };
    let operands = Operands {
        x: x.into(),
        second: options.second.map(Operand::from),
        weight: weight.into(),
        bias: Some(bias.into()),
        row_bias: None,
        residual: options.residual.map(Operand::from),
    };
    nn::push_product(g, w.path(), &config, operands, to)
}
