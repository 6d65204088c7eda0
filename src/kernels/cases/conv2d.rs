//! Cases of `conv2d`.

use super::super::conv2d::Conv2d;
use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, Slice};
use super::Case;
use crate::tensor::DType;

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let same = |batch: u32, input: [u32; 2], inputs: u32, outputs: u32, kernel: u32| Conv2d {
        batch,
        input,
        output: input,
        inputs,
        outputs,
        kernel: [kernel; 2],
        stride: 1,
        padding: [kernel / 2; 2],
        upsample: false,
        row_bias: false,
        residual: false,
        dtype,
    };
    let down = same(2, [9, 7], 12, 40, 3);
    let up = same(2, [3, 5], 20, 33, 3);
    let all = [
        ("first of SD", same(2, [16, 12], 4, 320, 3)),
        ("last of SD", same(2, [12, 16], 320, 4, 3)),
        ("resnet of SD, first", Conv2d { row_bias: true, ..same(2, [8, 12], 96, 64, 3) }),
        ("resnet of SD, second", Conv2d { residual: true, ..same(2, [8, 8], 128, 64, 3) }),
        ("shortcut of SD", same(2, [8, 9], 192, 64, 1)),
        ("downsampler of SD", Conv2d { stride: 2, output: [8, 6], ..same(2, [16, 12], 64, 64, 3) }),
        ("upsampler of SD", Conv2d { upsample: true, output: [16, 12], ..same(2, [8, 6], 64, 64, 3) }),
        ("last of the VAE", same(1, [24, 20], 64, 3, 3)),
        ("one pixel", same(1, [1, 1], 36, 20, 3)),
        ("every axis different", Conv2d { row_bias: true, residual: true, ..same(3, [5, 7], 10, 27, 3) }),
        ("one tap, tails", same(2, [6, 5], 9, 17, 1)),
        ("wide kernel", same(1, [6, 5], 7, 6, 7)),
        ("flat kernel", Conv2d { kernel: [1, 7], padding: [0, 3], ..same(1, [5, 17], 8, 12, 1) }),
        ("tall kernel", Conv2d { kernel: [7, 1], padding: [3, 0], ..same(2, [17, 5], 12, 20, 1) }),
        ("5x5 of Inception", same(2, [9, 7], 48, 64, 5)),
        (
            "first of Inception, no padding",
            Conv2d { stride: 2, output: [6, 4], padding: [0, 0], ..same(2, [13, 9], 3, 32, 3) },
        ),
        ("no padding", Conv2d { output: [7, 5], padding: [0, 0], ..same(2, [9, 7], 32, 40, 3) }),
        ("stride 2 of odd sizes", Conv2d { stride: 2, output: [5, 4], ..down }),
        ("stride 2, padded below and right", Conv2d { stride: 2, output: [4, 3], padding: [0, 0], ..down }),
        ("upsampled to 2n", Conv2d { upsample: true, output: [6, 10], residual: true, ..up }),
        ("upsampled to 2n - 1", Conv2d { upsample: true, output: [5, 9], ..up }),
        ("rows of one tile and one more", same(1, [13, 5], 8, 12, 3)),
    ];
    let case = |what: &str, config: Matrix| Case::new("conv2d", what, dtype, config);
    let slice = Slice { channels: 163, first: 44 };
    let sliced = Matrix { row_bias: Some(slice), ..same(3, [5, 7], 40, 76, 3).matrix() };
    let relu = Matrix { activation: Activation::Relu, ..same(2, [7, 6], 12, 24, 3).matrix() };
    let sliced = [("slice of a wider row bias", sliced), ("with ReLU, of Inception", relu)];
    let two = |second: u32, config: Conv2d| Matrix { second, ..config.matrix() };
    let leaky = |config: Matrix| Matrix { activation: Activation::LeakyRelu, ..config };
    let pairs = [
        ("second of ESRGAN's dense block", leaky(two(32, same(1, [9, 14], 64, 32, 3)))),
        ("last of ESRGAN's dense block", Matrix { scale: 0.2, residual: true, ..two(96, same(1, [8, 9], 96, 64, 3)) }),
        ("two inputs, every axis different", leaky(two(7, Conv2d { residual: true, ..same(3, [5, 7], 10, 27, 3) }))),
        ("two inputs, stride 2", two(13, Conv2d { stride: 2, output: [5, 4], ..down })),
        ("two inputs, upsampled", Matrix { scale: -1.7, ..two(9, Conv2d { upsample: true, output: [5, 9], ..up }) }),
        ("two inputs, one tap, scaled", Matrix { scale: 0.3, ..two(5, same(2, [6, 5], 9, 17, 1)) }),
    ];
    let all = all.into_iter().map(|(what, config)| (what, config.matrix())).chain(sliced).chain(pairs);
    all.map(|(what, config)| case(what, config)).collect()
}
