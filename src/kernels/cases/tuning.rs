//! Problems for choosing among candidates on an adapter: small ones that show wrong numbers, and those of Stable
//! Diffusion that show which is fastest.

use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, Slice};
use super::attention::{self, Heads, causal, cross, own};
use super::sampled::Sampled;
use super::{Case, Kernel};
use crate::tensor::DType;

/// A product with a bias whose pictures have `size`; linear where that is one column wide.
pub(super) fn product(dtype: DType, batch: u32, size: [u32; 2], inputs: u32, outputs: u32) -> Matrix {
    Matrix {
        batch,
        input: size,
        output: size,
        inputs,
        second: 0,
        outputs,
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
        upsample: false,
        activation: Activation::None,
        scale: 1.0,
        bias: true,
        row_bias: None,
        residual: false,
        gated: false,
        types: [dtype; 3],
    }
}

fn convolution(matrix: Matrix) -> Matrix {
    Matrix { kernel: [3; 2], padding: [1; 2], ..matrix }
}

fn case(stem: &'static str, size: &str, dtype: DType, kernel: impl Kernel + 'static) -> Case {
    Case::new(stem, size, dtype, kernel)
}

/// For every shape class two or three small problems, activations stored as `dtype`: depths that fill the kernels' blocks and
/// depths that leave a tail, rows and columns that are no multiple of any tile, every epilogue; causal and open attention
/// over keys that leave a tail. Each is compared whole.
pub fn self_tests(dtype: DType) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |stem, what: &str, config: Matrix| {
        let Matrix { batch, input: [height, width], inputs, outputs, .. } = config;
        let size = format!("self-test, {what}, {batch} x {height} x {width}, {inputs} to {outputs}");
        all.push(case(stem, &size, dtype, config));
    };
    for size in [[9, 7], [13, 21], [31, 29], [41, 39]] {
        let even = Matrix {
            row_bias: Some(Slice { channels: 2 * 128, first: 128 }),
            activation: Activation::Silu,
            ..product(dtype, 2, size, 64, 128)
        };
        add(
            "conv2d",
            "even",
            convolution(Matrix { batch: 1, input: [size[0] * 2, size[1]], output: [size[0] * 2, size[1]], ..even }),
        );
        add("conv2d", "odd", convolution(Matrix { residual: true, ..product(dtype, 2, size, 37, 75) }));
        let dense = Matrix { second: 23, activation: Activation::LeakyRelu, ..product(dtype, 1, size, 37, 75) };
        add("conv2d", "two inputs", convolution(Matrix { scale: 0.2, residual: true, ..dense }));
    }
    for rows in [131, 517, 1061, 3083] {
        let linear = |inputs, outputs| product(dtype, 1, [rows, 1], inputs, outputs);
        add("matmul", "even", Matrix { residual: true, ..linear(128, 256) });
        add("matmul", "odd", Matrix { activation: Activation::Gelu, second: 40, ..linear(100, 75) });
        add("matmul", "gated, even", Matrix { gated: true, ..linear(64, 128) });
        add("matmul", "gated, odd", Matrix { gated: true, ..linear(84, 75) });
    }
    let mut attend = |heads: Heads| {
        let (rows, keys, width, sees) = heads.shape();
        all.push(case(
            "attention",
            &format!("self-test, {rows} queries, {keys} keys, {sees}, width {width}"),
            dtype,
            heads,
        ));
    };
    for width in [40, 64, 80, 128, 160, 512] {
        attend(causal(own(dtype, 1, 77, 2, width)));
        attend(cross(dtype, [2, 83, 77, 2, width]));
        attend(causal(own(dtype, 1, 150, 2, width)));
        attend(cross(dtype, [2, 37, 203, 2, width]));
    }
    all
}

/// For every shape class one problem of the published models, where there is one: those of Stable Diffusion 1.5 for a
/// picture of 512 x 512 pixels with guidance; heads of 64 channels are those of 2.1. Samples of each are compared.
pub fn contests(dtype: DType) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |stem, what: &str, config: Matrix| {
        let size = format!("{what}, {} x {} to {}", config.rows(), config.inputs, config.outputs);
        all.push(case(stem, &size, dtype, Sampled::new(config)));
    };
    for (side, channels) in [(64, 320), (32, 640), (16, 1280), (8, 1280)] {
        let resnet = Matrix { residual: true, ..product(dtype, 2, [side, side], channels, channels) };
        add("conv2d", "3 x 3", convolution(resnet));
        let tokens = product(dtype, 1, [2 * side * side, 1], channels, channels);
        add("matmul", "projection", Matrix { residual: true, ..tokens });
        add("matmul", "gated", Matrix { gated: true, outputs: 4 * channels, ..tokens });
    }
    let mut attend = |heads: Heads| {
        let (queries, keys, width, _) = heads.shape();
        let what = format!("{queries} queries, {keys} keys, width {width}");
        all.push(case("attention", &what, dtype, attention::Sampled(heads)));
    };
    for (tokens, heads, width) in [(4096, 8, 40), (4096, 5, 64), (1024, 8, 80), (1024, 8, 128), (256, 8, 160)] {
        attend(own(dtype, 2, tokens, heads, width));
        attend(cross(dtype, [2, tokens, 77, heads, width]));
    }
    attend(own(dtype, 1, 4096, 1, 512));
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::super::Limits;
    use super::super::super::tuning::{CLASSES, Class};
    use super::*;

    fn classes(cases: &[Case], limits: &Limits) -> HashSet<Class> {
        cases.iter().map(|case| case.candidates(limits).unwrap().0).collect()
    }

    #[test]
    fn every_class_is_tested_and_most_are_timed() {
        let limits = Limits { binding: 1 << 30, ..Limits::default() };
        for dtype in [DType::F32, DType::F16] {
            let all: HashSet<Class> = Class::all(dtype).collect();
            assert_eq!(classes(&self_tests(dtype), &limits), all);
            let timed = classes(&contests(dtype), &limits);
            let missing: Vec<String> = all.difference(&timed).map(Class::to_string).collect();
            assert_eq!(missing, [Class::attention(512, 77, dtype).to_string()], "no model has it");
            assert_eq!(timed.len(), CLASSES / 2 - 1);
            assert_eq!(contests(dtype).len(), timed.len(), "one problem a class");
        }
    }

    #[test]
    fn names_are_unique() {
        let all: Vec<Case> =
            [DType::F32, DType::F16].into_iter().flat_map(|d| [self_tests(d), contests(d)]).flatten().collect();
        assert_eq!(all.iter().map(|case| &case.name).collect::<HashSet<_>>().len(), all.len());
    }
}
