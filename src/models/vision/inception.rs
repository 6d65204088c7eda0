//! Inception v3 (arXiv:1512.00567) as FID takes its features from it: the network of 2015-12-05, of which torchvision's
//! differs in the pools of its blocks (pytorch-fid `FIDInceptionA`, `FIDInceptionC`, `FIDInceptionE_1`, `FIDInceptionE_2`).

use crate::graph::{Graph, Operand, Shape, Value};
use crate::kernels::conv2d::Conv2d;
use crate::kernels::elementwise::Activation;
use crate::kernels::matrix::{Matrix, Operands};
use crate::kernels::pool::{Mode, Pool};
use crate::models::nn::{self, padded, push_product};
use crate::weights::Weights;

/// Height and width of the pictures that the network was trained on, and gets.
pub const SIDE: u32 = 299;

/// Where features are taken, each the mean over the places of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Behind the first pool: 64 channels.
    FirstPool,
    /// Behind the second pool: 192 channels.
    SecondPool,
    /// Before the auxiliary classifier: 768 channels.
    PreAuxiliary,
    /// Before the classifier: 2048 channels.
    Final,
}

impl Depth {
    /// All of them, from the picture on.
    pub const ALL: [Self; 4] = [Self::FirstPool, Self::SecondPool, Self::PreAuxiliary, Self::Final];

    /// Numbers of a feature.
    pub fn channels(self) -> u32 {
        match self {
            Self::FirstPool => 64,
            Self::SecondPool => 192,
            Self::PreAuxiliary => 768,
            Self::Final => 2048,
        }
    }
}

/// A convolution without bias, BatchNorm and ReLU (`BasicConv2d`).
#[derive(Debug, Clone, Copy)]
struct Conv {
    out: u32,
    kernel: [u32; 2],
    stride: u32,
    padding: [u32; 2],
}

/// Of the same size as its input.
fn same(out: u32, height: u32, width: u32) -> Conv {
    Conv { out, kernel: [height, width], stride: 1, padding: [height / 2, width / 2] }
}

/// 3x3 without padding.
fn inner(out: u32, stride: u32) -> Conv {
    Conv { out, kernel: [3, 3], stride, padding: [0, 0] }
}

/// x [B, 299, 299, 3] in -1..1 -> features [B, 1, 1, C].
///
/// The source must fold BatchNorm: its `conv.weight` carries the scale, its `bn.bias` the whole shift
/// ([`crate::weights::inception::Folded`]).
pub fn inception(g: &mut Graph, w: &Weights<'_>, x: Value, depth: Depth) -> Value {
    let x = conv(g, &w.at("Conv2d_1a_3x3"), x, inner(32, 2));
    let x = conv(g, &w.at("Conv2d_2a_3x3"), x, inner(32, 1));
    let x = conv(g, &w.at("Conv2d_2b_3x3"), x, same(64, 3, 3));
    let mut x = max_of_three(g, "pool0", x);
    if depth != Depth::FirstPool {
        x = conv(g, &w.at("Conv2d_3b_1x1"), x, same(80, 1, 1));
        x = conv(g, &w.at("Conv2d_4a_3x3"), x, inner(192, 1));
        x = max_of_three(g, "pool1", x);
    }
    if matches!(depth, Depth::PreAuxiliary | Depth::Final) {
        for (name, pooled) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
            x = block_a(g, &w.at(name), x, pooled);
        }
        x = block_b(g, &w.at("Mixed_6a"), x);
        for (name, width) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
            x = block_c(g, &w.at(name), x, width);
        }
    }
    if depth == Depth::Final {
        x = block_d(g, &w.at("Mixed_7a"), x);
        x = block_e(g, &w.at("Mixed_7b"), x, Mode::Mean);
        x = block_e(g, &w.at("Mixed_7c"), x, Mode::Max);
    }
    nn::mean(g, "features", x)
}

/// 35 x 35.
fn block_a(g: &mut Graph, w: &Weights<'_>, x: Value, pooled: u32) -> Value {
    let branches = [
        branch(g, w, x, &[("branch1x1", same(64, 1, 1))]),
        branch(g, w, x, &[("branch5x5_1", same(48, 1, 1)), ("branch5x5_2", same(64, 5, 5))]),
        branch(
            g,
            w,
            x,
            &[
                ("branch3x3dbl_1", same(64, 1, 1)),
                ("branch3x3dbl_2", same(96, 3, 3)),
                ("branch3x3dbl_3", same(96, 3, 3)),
            ],
        ),
        pooled_branch(g, w, x, Mode::Mean, pooled),
    ];
    joined(g, w, &branches)
}

/// 35 x 35 -> 17 x 17.
fn block_b(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    let branches = [
        branch(g, w, x, &[("branch3x3", inner(384, 2))]),
        branch(
            g,
            w,
            x,
            &[("branch3x3dbl_1", same(64, 1, 1)), ("branch3x3dbl_2", same(96, 3, 3)), ("branch3x3dbl_3", inner(96, 2))],
        ),
        max_of_three(g, w.at("pool").path(), x),
    ];
    joined(g, w, &branches)
}

/// 17 x 17; `width` channels between the factors of the 7x7 convolutions.
fn block_c(g: &mut Graph, w: &Weights<'_>, x: Value, width: u32) -> Value {
    let [across, down] = [same(width, 1, 7), same(width, 7, 1)];
    let branches = [
        branch(g, w, x, &[("branch1x1", same(192, 1, 1))]),
        branch(
            g,
            w,
            x,
            &[("branch7x7_1", same(width, 1, 1)), ("branch7x7_2", across), ("branch7x7_3", same(192, 7, 1))],
        ),
        branch(
            g,
            w,
            x,
            &[
                ("branch7x7dbl_1", same(width, 1, 1)),
                ("branch7x7dbl_2", down),
                ("branch7x7dbl_3", across),
                ("branch7x7dbl_4", down),
                ("branch7x7dbl_5", same(192, 1, 7)),
            ],
        ),
        pooled_branch(g, w, x, Mode::Mean, 192),
    ];
    joined(g, w, &branches)
}

/// 17 x 17 -> 8 x 8.
fn block_d(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    let branches = [
        branch(g, w, x, &[("branch3x3_1", same(192, 1, 1)), ("branch3x3_2", inner(320, 2))]),
        branch(
            g,
            w,
            x,
            &[
                ("branch7x7x3_1", same(192, 1, 1)),
                ("branch7x7x3_2", same(192, 1, 7)),
                ("branch7x7x3_3", same(192, 7, 1)),
                ("branch7x7x3_4", inner(192, 2)),
            ],
        ),
        max_of_three(g, w.at("pool").path(), x),
    ];
    joined(g, w, &branches)
}

/// 8 x 8. The last one of the published network pools maxima where the paper has means.
fn block_e(g: &mut Graph, w: &Weights<'_>, x: Value, pool: Mode) -> Value {
    let single = branch(g, w, x, &[("branch3x3_1", same(384, 1, 1))]);
    let double = branch(g, w, x, &[("branch3x3dbl_1", same(448, 1, 1)), ("branch3x3dbl_2", same(384, 3, 3))]);
    let branches = [
        branch(g, w, x, &[("branch1x1", same(320, 1, 1))]),
        branch(g, w, single, &[("branch3x3_2a", same(384, 1, 3))]),
        branch(g, w, single, &[("branch3x3_2b", same(384, 3, 1))]),
        branch(g, w, double, &[("branch3x3dbl_3a", same(384, 1, 3))]),
        branch(g, w, double, &[("branch3x3dbl_3b", same(384, 3, 1))]),
        pooled_branch(g, w, x, pool, 192),
    ];
    joined(g, w, &branches)
}

fn branch(g: &mut Graph, w: &Weights<'_>, x: Value, steps: &[(&str, Conv)]) -> Value {
    steps.iter().fold(x, |x, (name, options)| conv(g, &w.at(name), x, *options))
}

/// Means or maxima of the places around each, then a 1x1 convolution. Places beyond the border do not count.
fn pooled_branch(g: &mut Graph, w: &Weights<'_>, x: Value, mode: Mode, out: u32) -> Value {
    let from = g.shape(x);
    let x = nn::pool(g, w.at("pool").path(), x, window(from, mode, 1, 1));
    conv(g, &w.at("branch_pool"), x, same(out, 1, 1))
}

/// Maxima over 3 x 3 places, two apart.
fn max_of_three(g: &mut Graph, label: &str, x: Value) -> Value {
    let from = g.shape(x);
    nn::pool(g, label, x, window(from, Mode::Max, 2, 0))
}

fn window(from: Shape, mode: Mode, stride: u32, padding: u32) -> Pool {
    let input = [from.height, from.width];
    Pool {
        batch: from.batch,
        input,
        output: input.map(|size| Pool::windows(size, 3, stride, padding)),
        channels: from.channels,
        mode,
        kernel: [3; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        enlarge: 1,
        dtype: crate::tensor::DType::F32,
    }
}

/// The branches side by side along the channels.
fn joined(g: &mut Graph, w: &Weights<'_>, branches: &[Value]) -> Value {
    let joined = branches[1..].iter().fold(branches[0], |before, branch| nn::concat(g, w.path(), before, *branch));
    g.tap(w.path(), joined);
    joined
}

fn conv(g: &mut Graph, w: &Weights<'_>, x: Value, options: Conv) -> Value {
    let Conv { out, kernel, stride, padding } = options;
    let from = g.shape(x);
    let key = w.at("conv.weight").claim(&[&[out, from.channels, kernel[0], kernel[1]]]);
    for part in ["bn.weight", "bn.running_mean", "bn.running_var"] {
        w.at(part).claim(&[&[out]]);
    }
    let bias = w.at("bn.bias").claim(&[&[out]]);
    let rows: Vec<_> = (0..out).map(|row| Some((0, row))).collect();
    let weight = w.matrix(g, vec![key], rows.clone(), padded(from.channels), kernel[0] * kernel[1]);
    let bias = w.vector(g, vec![bias], rows);
    let input = [from.height, from.width];
    let output = [0, 1].map(|axis| (input[axis] + 2 * padding[axis] - kernel[axis]) / stride + 1);
    let config = Conv2d {
        batch: from.batch,
        input,
        output,
        inputs: from.channels,
        outputs: out,
        kernel,
        stride,
        padding,
        upsample: false,
        row_bias: false,
        residual: false,
        dtype: g.precision(),
    };
    let config = Matrix { activation: Activation::Relu, ..config.matrix() };
    let operands = Operands {
        x: Operand::from(x),
        second: None,
        weight: weight.into(),
        bias: Some(bias.into()),
        row_bias: None,
        residual: None,
    };
    let y = push_product(g, w.path(), &config, operands, Shape::new(from.batch, output[0], output[1], out));
    g.tap(w.path(), y);
    y
}
