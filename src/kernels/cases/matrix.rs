//! What the cases of `matmul` and `conv2d` share: numbers for a [`Matrix`] and its tolerances.

use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, PANEL, gated_rows, inputs};
use super::super::{Limits, vectors};
use super::{EPS, Expected, Kernel, Step, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// Rounding errors of a sum of n terms grow like a random walk, about sqrt(n) eps sum|terms| / 2 at worst seen; n is
/// below 3000 in every case, and the blocks in which the kernels sum shorten it further.
const K: f64 = 32.0;
/// The polynomial of erf is good to 1.5e-7, exp on a GPU to a few ulps: relative to what the activation multiplies.
const ACTIVATION: f64 = 1e-6;

/// The numbers of a product, as the reference takes them.
struct Numbers {
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    row_bias: Vec<f64>,
    residual: Vec<f64>,
}

impl Numbers {
    fn of(config: &Matrix) -> Self {
        let rows = config.rows() as usize;
        let pixels = (config.batch * config.input[0] * config.input[1]) as usize;
        let columns = (config.outputs << u32::from(config.gated)) as usize;
        let fan = (config.inputs * config.kernel[0] * config.kernel[1]) as usize;
        let [input, weight, output] = config.types;
        let batch = config.batch as usize;
        Self {
            x: numbers("x", pixels * config.inputs as usize, input, 0.25, 1.5),
            weight: numbers("weight", columns * fan, weight, 0.0, 1.7 / (fan as f64).sqrt()),
            bias: numbers("bias", columns, DType::F32, 0.1, 0.5),
            row_bias: numbers("row bias", batch * config.outputs as usize, DType::F32, -0.2, 0.7),
            residual: numbers("residual", rows * config.outputs as usize, output, 0.3, 1.0),
        }
    }

    fn reference(&self, config: &Matrix) -> Vec<f64> {
        config.reference(&self.x, &self.weight, &self.bias, &self.row_bias, &self.residual)
    }

    fn absolute(&self) -> Self {
        Self {
            x: absolute(&self.x),
            weight: absolute(&self.weight),
            bias: absolute(&self.bias),
            row_bias: absolute(&self.row_bias),
            residual: absolute(&self.residual),
        }
    }
}

/// The logical column of every physical one.
fn columns(config: &Matrix) -> Vec<Option<usize>> {
    if config.gated {
        return gated_rows(config.outputs).into_iter().map(|row| row.map(|(_, n)| n as usize)).collect();
    }
    let physical = (config.panels() * PANEL) as usize;
    (0..physical).map(|n| (n < config.outputs as usize).then_some(n)).collect()
}

/// `weight` [N][K][taps] in panels of 32 columns: [panels][taps][K4 * 4][32].
fn pack(config: &Matrix, weight: &[f64]) -> Vec<f64> {
    let (depth, taps) = (config.inputs as usize, (config.kernel[0] * config.kernel[1]) as usize);
    let mut packed = Vec::new();
    for panel in columns(config).chunks(PANEL as usize) {
        for tap in 0..taps {
            for k in 0..vectors(config.inputs) as usize * 4 {
                let value = |n: &Option<usize>| match n {
                    Some(n) if k < depth => weight[(n * depth + k) * taps + tap],
                    _ => 0.0,
                };
                packed.extend(panel.iter().map(value));
            }
        }
    }
    packed
}

impl Kernel for Matrix {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let numbers = Numbers::of(self);
        let [input, weight, output] = self.types;
        let mut tensors = vec![
            Tensor::given("x", self.inputs, input, &numbers.x),
            Tensor::given("weight", PANEL, weight, &pack(self, &numbers.weight)),
        ];
        let mut operand = |wanted: bool, make: &dyn Fn() -> Tensor| {
            wanted.then(|| {
                tensors.push(make());
                tensors.len() - 1
            })
        };
        let bias = operand(self.bias, &|| {
            let values: Vec<f64> = columns(self).iter().map(|n| n.map_or(0.0, |n| numbers.bias[n])).collect();
            Tensor::given("bias", values.len() as u32, DType::F32, &values)
        });
        let row_bias =
            operand(self.row_bias, &|| Tensor::given("row bias", self.outputs, DType::F32, &numbers.row_bias));
        let residual = operand(self.residual, &|| Tensor::given("residual", self.outputs, output, &numbers.residual));
        let reads = inputs(0, 1, bias, row_bias, residual);
        tensors.push(Tensor::made("out", self.rows() as u32, self.outputs, output));
        let writes = vec![tensors.len() - 1];
        let mut call = self.call(limits)?;
        // The weight stands in for operands that are not there, whole.
        for launch in &mut call.launches {
            launch.ranges.iter_mut().zip(&reads).filter(|(_, index)| **index == 1).for_each(|(range, _)| *range = None);
        }
        Some(Work { tensors, steps: vec![Step { call, reads, writes }] })
    }

    fn expected(&self) -> Vec<Expected> {
        let numbers = Numbers::of(self);
        let values = numbers.reference(self);
        let magnitudes = numbers.absolute().reference(&Matrix { activation: Activation::None, ..*self });
        // A gated result multiplies two sums, each with its error; no activation here is steeper than 1.2.
        let k = if self.gated { 3.0 * K } else { 1.2 * K };
        let curved = self.gated || self.activation != Activation::None;
        let relative = k * EPS + if curved { ACTIVATION } else { 0.0 };
        let tolerances = magnitudes.iter().map(|magnitude| relative * magnitude).collect();
        vec![Expected::new("out", self.types[2], values, tolerances)]
    }
}
