//! Shapes of Stable Diffusion 1.5 at 256 x 128 pixels, full size: too slow in f64 for every test run, right for timing.

use super::super::conv2d::Conv2d;
use super::super::elementwise::Activation;
use super::super::matmul::Matmul;
use super::{Case, attention, norms};
use crate::tensor::DType;

/// The cases, activations stored as `dtype`.
pub fn model_sizes(dtype: DType) -> Vec<Case> {
    let conv = |height: u32, channels: u32| Conv2d {
        batch: 1,
        input: [height, 2 * height],
        output: [height, 2 * height],
        inputs: channels,
        outputs: channels,
        kernel: [3; 2],
        stride: 1,
        padding: [1; 2],
        upsample: false,
        row_bias: false,
        residual: false,
        dtype,
    };
    let convs = [
        ("SD 1.5, level 1, 32 x 16, 320 to 320", conv(16, 320)),
        ("SD 1.5, level 2, 16 x 8, 640 to 640", conv(8, 640)),
        ("SD 1.5, level 3, 8 x 4, 1280 to 1280", conv(4, 1280)),
    ];
    let convs = convs.into_iter().map(|(what, config)| Case::new("conv2d", what, dtype, config.matrix()));
    let linear = |rows: u32, inputs: u32, outputs: u32| Matmul {
        rows,
        inputs,
        outputs,
        activation: Activation::None,
        bias: false,
        residual: false,
        gated: false,
        input: dtype,
        weight: dtype,
        output: dtype,
    };
    let products = [
        ("SD 1.5, level 1, projections, 512 x 320 to 960", linear(512, 320, 960)),
        ("SD 1.5, level 1, gated, 512 x 320 to 1280", Matmul { gated: true, bias: true, ..linear(512, 320, 1280) }),
        ("SD 1.5, level 2, back, 128 x 2560 to 640", Matmul { residual: true, bias: true, ..linear(128, 2560, 640) }),
    ];
    let products = products.into_iter().map(|(what, config)| Case::new("matmul", what, dtype, config.matrix()));
    convs.chain(products).chain(attention::sizes(dtype)).chain(norms::sizes(dtype)).collect()
}
