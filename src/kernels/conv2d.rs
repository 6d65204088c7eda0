//! 2-D convolution as an implicit matrix product. See [`super::matrix`] for the shaders.

use super::elementwise::Activation;
use super::matrix::{Matrix, Slice};
use crate::tensor::DType;

/// A convolution with bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2d {
    /// Pictures.
    pub batch: u32,
    /// Height and width of the input as stored.
    pub input: [u32; 2],
    /// Height and width of the output.
    pub output: [u32; 2],
    /// Input channels.
    pub inputs: u32,
    /// Output channels.
    pub outputs: u32,
    /// Kernel height and width.
    pub kernel: [u32; 2],
    /// Stride on both axes.
    pub stride: u32,
    /// Zeros above and to the left; those below and to the right follow from the output's size.
    pub padding: [u32; 2],
    /// Enlarges the input by nearest neighbour to the output's size (at most doubling) before the convolution.
    pub upsample: bool,
    /// Whether [B, outputs] in f32 is added to every position of its picture.
    pub row_bias: bool,
    /// Whether a tensor of the output's shape and type is added at the end.
    pub residual: bool,
    /// How input, weight and output are stored.
    pub dtype: DType,
}

impl Conv2d {
    /// The same as an implicit matrix product.
    pub fn matrix(&self) -> Matrix {
        Matrix {
            batch: self.batch,
            input: self.input,
            output: self.output,
            inputs: self.inputs,
            second: 0,
            outputs: self.outputs,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
            activation: Activation::None,
            scale: 1.0,
            bias: true,
            row_bias: self.row_bias.then_some(Slice { channels: self.outputs, first: 0 }),
            residual: self.residual,
            gated: false,
            types: [self.dtype; 3],
        }
    }
}
