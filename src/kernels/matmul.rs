//! `out = act(x W^T + bias) + residual`, or `value * gelu(gate)`: a linear layer. See [`super::matrix`] for the shaders.

use super::elementwise::Activation;
use super::matrix::Matrix;
pub use super::matrix::gated_rows;
use crate::tensor::DType;

/// A linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matmul {
    /// Rows of x.
    pub rows: u32,
    /// Channels of x.
    pub inputs: u32,
    /// Channels of the result.
    pub outputs: u32,
    /// Applied after the bias.
    pub activation: Activation,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether a tensor of the result's shape and type is added at the end.
    pub residual: bool,
    /// Value columns times the activation (GELU where there is none) of gate columns, packed by [`gated_rows`].
    pub gated: bool,
    /// How x is stored.
    pub input: DType,
    /// How the weight is stored.
    pub weight: DType,
    /// How the result is stored.
    pub output: DType,
}

impl Matmul {
    /// The same as a convolution of one tap.
    pub fn matrix(&self) -> Matrix {
        Matrix {
            batch: 1,
            input: [self.rows, 1],
            output: [self.rows, 1],
            inputs: self.inputs,
            second: 0,
            outputs: self.outputs,
            kernel: [1, 1],
            stride: 1,
            padding: [0, 0],
            upsample: false,
            activation: self.activation,
            scale: 1.0,
            bias: self.bias,
            row_bias: None,
            residual: self.residual,
            gated: self.gated,
            types: [self.input, self.weight, self.output],
        }
    }
}
