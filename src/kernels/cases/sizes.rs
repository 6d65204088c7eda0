//! Shapes of Stable Diffusion 1.5 in full size: too slow in f64 for every test run, right for timing. At 256 x 128 pixels for
//! every adapter, at 512 x 512 for GPUs.

use super::super::conv2d::Conv2d;
use super::super::elementwise::Activation;
use super::super::matmul::Matmul;
use super::{Case, attention, norms};
use crate::tensor::DType;

fn conv3x3([height, width]: [u32; 2], inputs: u32, outputs: u32, dtype: DType) -> Conv2d {
    Conv2d {
        batch: 1,
        input: [height, width],
        output: [height, width],
        inputs,
        outputs,
        kernel: [3; 2],
        stride: 1,
        padding: [1; 2],
        upsample: false,
        row_bias: false,
        residual: false,
        dtype,
    }
}

fn product(rows: u32, inputs: u32, outputs: u32, dtype: DType) -> Matmul {
    Matmul {
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
    }
}

/// The cases at 512 x 512 pixels, where a GPU has enough to do; their references take a CPU some seconds each.
pub fn large_sizes(dtype: DType) -> Vec<Case> {
    let convs = [
        ("SD 1.5 at 512, level 1, 64 x 64, 320 to 320", conv3x3([64; 2], 320, 320, dtype)),
        ("SD 1.5 at 512, level 2, 32 x 32, 640 to 640", conv3x3([32; 2], 640, 640, dtype)),
        ("SD 1.5 at 512, level 3, 16 x 16, 1280 to 1280", conv3x3([16; 2], 1280, 1280, dtype)),
        ("SD 1.5 at 512, up, level 1, 64 x 64, 960 to 320", conv3x3([64; 2], 960, 320, dtype)),
    ];
    let convs = convs.into_iter().map(|(what, config)| Case::new("conv2d", what, dtype, config.matrix()));
    let linear = |rows, inputs, outputs| product(rows, inputs, outputs, dtype);
    let gated = Matmul { gated: true, bias: true, ..linear(4096, 320, 1280) };
    let products = [
        ("SD 1.5 at 512, level 1, projections, 4096 x 320 to 960", linear(4096, 320, 960)),
        ("SD 1.5 at 512, level 1, gated, 4096 x 320 to 1280", gated),
        ("SD 1.5 at 512, level 2, projections, 1024 x 640 to 1920", linear(1024, 640, 1920)),
        ("square, 2048 x 2048 to 2048", linear(2048, 2048, 2048)),
    ];
    let products = products.into_iter().map(|(what, config)| Case::new("matmul", what, dtype, config.matrix()));
    convs.chain(products).chain(attention::large_sizes(dtype)).collect()
}

/// The cases at 256 x 128 pixels, activations stored as `dtype`.
pub fn model_sizes(dtype: DType) -> Vec<Case> {
    let conv = |height: u32, channels: u32| conv3x3([height, 2 * height], channels, channels, dtype);
    let convs = [
        ("SD 1.5, level 1, 32 x 16, 320 to 320", conv(16, 320)),
        ("SD 1.5, level 2, 16 x 8, 640 to 640", conv(8, 640)),
        ("SD 1.5, level 3, 8 x 4, 1280 to 1280", conv(4, 1280)),
    ];
    let convs = convs.into_iter().map(|(what, config)| Case::new("conv2d", what, dtype, config.matrix()));
    let linear = |rows, inputs, outputs| product(rows, inputs, outputs, dtype);
    let products = [
        ("SD 1.5, level 1, projections, 512 x 320 to 960", linear(512, 320, 960)),
        ("SD 1.5, level 1, gated, 512 x 320 to 1280", Matmul { gated: true, bias: true, ..linear(512, 320, 1280) }),
        ("SD 1.5, level 2, back, 128 x 2560 to 640", Matmul { residual: true, bias: true, ..linear(128, 2560, 640) }),
    ];
    let products = products.into_iter().map(|(what, config)| Case::new("matmul", what, dtype, config.matrix()));
    convs.chain(products).chain(attention::sizes(dtype)).chain(norms::sizes(dtype)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Limits;

    /// No test runs these; they must at least be told apart and fit every adapter.
    #[test]
    fn sizes_have_names_and_fit() {
        let all: Vec<Case> = large_sizes(DType::F32).into_iter().chain(model_sizes(DType::F32)).collect();
        let mut names: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for case in &all {
            let work = case.work(&Limits::default()).unwrap_or_else(|| panic!("{} does not fit", case.name));
            let some = |of: fn(&crate::kernels::Call) -> u64| work.steps.iter().any(|step| of(&step.call) > 0);
            assert!(some(|call| call.bytes) && some(|call| call.flops), "{}", case.name);
        }
    }
}
