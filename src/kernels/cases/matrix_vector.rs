//! Cases of `matrix_vector`: the numbers and tolerances of `matmul`.

use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, Slice};
use super::super::{Limits, matrix_vector};
use super::matrix::{Numbers, given, judged};
use super::{Case, Expected, Kernel, Step, Tensor, Work};
use crate::kernels::matmul::Matmul;
use crate::tensor::DType;

struct Few(Matrix);

impl Kernel for Few {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let (mut tensors, operands) = given(&self.0);
        let call = matrix_vector::call(&self.0, limits)?;
        tensors.push(Tensor::made("out", self.0.rows() as u32, self.0.outputs, self.0.types[2]));
        let writes = vec![tensors.len() - 1];
        Some(Work { steps: vec![Step { call, reads: operands.inputs(), writes }], tensors })
    }

    fn expected(&self) -> Vec<Expected> {
        let (values, tolerances) = judged(&self.0, &Numbers::of(&self.0));
        vec![Expected::new("out", self.0.types[2], values, tolerances)]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let linear = |rows: u32, inputs: u32, outputs: u32| {
        let types = Matmul {
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
        types.matrix()
    };
    let all = [
        ("projections of DALL-E", linear(2, 256, 768)),
        ("feed-forward of DALL-E, gated", Matrix { gated: true, ..linear(2, 128, 342) }),
        ("feed-forward of DALL-E, back", Matrix { residual: true, ..linear(2, 342, 128) }),
        ("logits of DALL-E", Matrix { types: [dtype, dtype, DType::F32], ..linear(2, 128, 1025) }),
        (
            "one row, tails, bias and activation",
            Matrix { bias: true, activation: Activation::Gelu, ..linear(1, 43, 61) },
        ),
        ("four rows, two inputs", Matrix { bias: true, second: 13, ..linear(4, 30, 75) }),
        ("three rows, gated with biases", Matrix { bias: true, gated: true, residual: true, ..linear(3, 65, 39) }),
        ("a long sum", Matrix { bias: true, activation: Activation::Silu, ..linear(2, 2730, 40) }),
        ("row bias", Matrix { row_bias: Some(Slice { channels: 70, first: 8 }), ..linear(2, 20, 60) }),
        ("one number", linear(1, 1, 1)),
    ];
    all.into_iter().map(|(what, config)| Case::new("matrix_vector", what, dtype, Few(config))).collect()
}
