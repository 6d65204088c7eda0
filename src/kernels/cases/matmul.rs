//! Cases of `matmul`.

use super::super::elementwise::Activation;
use super::super::matmul::Matmul;
use super::super::matrix::Matrix;
use super::Case;
use crate::tensor::DType;

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let linear = |rows: u32, inputs: u32, outputs: u32| Matmul {
        rows,
        inputs,
        outputs,
        activation: Activation::None,
        bias: true,
        residual: false,
        gated: false,
        input: dtype,
        weight: dtype,
        output: dtype,
    };
    let activated = |activation: Activation, config: Matmul| Matmul { activation, ..config };
    let opened = |gated: bool, config: Matmul| Matmul { gated, bias: false, output: DType::F32, ..config };
    let mut all = vec![
        ("time embedding of SD", activated(Activation::Silu, linear(2, 320, 1280))),
        ("projection of SD, level 1", Matmul { bias: false, ..linear(72, 320, 960) }),
        ("feed-forward of SD, gated", Matmul { gated: true, ..linear(40, 160, 640) }),
        ("feed-forward of SD, back", Matmul { residual: true, ..linear(64, 640, 160) }),
        ("context of SD", Matmul { bias: false, ..linear(2 * 77, 96, 640) }),
        ("feed-forward of CLIP", activated(Activation::QuickGelu, linear(77, 192, 768))),
        ("feed-forward of OpenCLIP", activated(Activation::Gelu, linear(77, 160, 640))),
        ("stored in f32", Matmul { output: DType::F32, ..linear(2, 320, 72) }),
        ("one row", linear(1, 5, 3)),
        ("one number", Matmul { bias: false, ..linear(3, 1, 1) }),
        ("every axis odd", activated(Activation::Silu, linear(19, 37, 61))),
        ("rows of two tiles and one more", Matmul { residual: true, ..linear(129, 36, 72) }),
        ("columns of two panels and one more", linear(33, 66, 65)),
        ("gated, tails everywhere", Matmul { gated: true, ..linear(21, 43, 75) }),
        ("gated, one panel", Matmul { gated: true, ..linear(5, 6, 7) }),
        ("feed-forward of T5, gated", activated(Activation::GeluTanh, opened(true, linear(77, 64, 160)))),
        ("gated by SiLU, tails", activated(Activation::Silu, opened(true, linear(21, 43, 75)))),
        ("gated by ReLU, tails", activated(Activation::Relu, opened(true, linear(9, 22, 37)))),
        ("feed-forward of the first T5", activated(Activation::Relu, opened(false, linear(33, 21, 50)))),
        ("GELU by tanh", activated(Activation::GeluTanh, linear(19, 37, 61))),
        (
            "feed-forward of T5, back",
            Matmul { residual: true, input: DType::F32, ..opened(false, linear(77, 160, 64)) },
        ),
    ];
    if dtype == DType::F32 {
        // Large enough for the larger tile of CPU adapters; once is enough for a reference in f64.
        all.push(("large", linear(264, 1000, 960)));
    }
    let two = |second: u32, config: Matmul| Matrix { second, ..config.matrix() };
    let pairs = [
        ("shortcut of SD over two inputs", two(64, linear(2 * 35, 128, 64))),
        ("two inputs, tails", two(7, Matmul { residual: true, ..linear(37, 21, 19) })),
        ("two inputs, gated", two(33, Matmul { gated: true, ..linear(70, 30, 40) })),
        ("two inputs, a long sum", two(640, linear(18, 1280, 70))),
    ];
    let all = all.into_iter().map(|(what, config)| (what, config.matrix())).chain(pairs);
    all.map(|(what, config)| Case::new("matmul", what, dtype, config)).collect()
}
