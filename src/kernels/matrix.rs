//! What `matmul` and `conv2d` share: a convolution as an implicit matrix product, of which a linear layer is the case
//! of one tap.
//!
//! `matrix_tile` computes it through workgroup memory on GPUs, `matrix_lanes` and `matrix_texels` with one subgroup of eight
//! lanes on CPU adapters (see [`super::matrix_lanes`]). Both take the operands a, w, bias, row bias and residual, in this order;
//! those that a product does not have are bound to the weight and never read.

use bytemuck::{Pod, Zeroable};

use super::bands::{self, Span};
use super::elementwise::Activation;
use super::{Call, Launch, Limits, Variant, matrix_lanes, vector_bytes, vectors};
use crate::tensor::DType;

/// Columns of one panel of a packed weight.
pub const PANEL: u32 = 32;
/// A convolution or a linear layer (height = output height = rows, width = output width = 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Pictures.
    pub batch: u32,
    /// Height and width of the input as stored.
    pub input: [u32; 2],
    /// Height and width of the output.
    pub output: [u32; 2],
    /// Input channels.
    pub inputs: u32,
    /// Output channels; with `gated` those after the product with the gates.
    pub outputs: u32,
    /// Kernel height and width.
    pub kernel: [u32; 2],
    /// Stride, the same on both axes.
    pub stride: u32,
    /// Rows and columns of zeros above and to the left. Those below and to the right follow from the output size.
    pub padding: [u32; 2],
    /// The input is enlarged by nearest neighbour to the output's size before the convolution (stride 1).
    pub upsample: bool,
    /// Applied after the biases.
    pub activation: Activation,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a bias for every picture, [B, outputs] in f32.
    pub row_bias: bool,
    /// Whether a tensor of the output's shape and type is added at the end.
    pub residual: bool,
    /// Value columns times the GELU of gate columns, packed by [`gated_rows`].
    pub gated: bool,
    /// Element types of the input, the weight and the output.
    pub types: [DType; 3],
}

/// The uniform of `shaders/matrix_lanes.wgsl`, `shaders/matrix_texels.wgsl` and `shaders/matrix_tile.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    first_row: u32,
    end_row: u32,
    positions: u32,
    out_width: u32,
    height: u32,
    width: u32,
    upsample: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    pad_top: u32,
    pad_left: u32,
    k4: u32,
    out4: u32,
    a_base: u32,
    residual_base: u32,
    out_base: u32,
    scale: f32,
    panels: u32,
    flags: u32,
}

/// The operands in the order of the shaders' bindings.
pub fn inputs<O: Copy>(x: O, weight: O, bias: Option<O>, row_bias: Option<O>, residual: Option<O>) -> Vec<O> {
    vec![x, weight, bias.unwrap_or(weight), row_bias.unwrap_or(weight), residual.unwrap_or(weight)]
}

/// The source row of every physical output column of a gated product with `out` outputs: panels of 32 values and of the
/// 32 gates of the same columns alternate. The checkpoint's matrix has the values first, then the gates.
pub fn gated_rows(out: u32) -> Vec<Option<(u8, u32)>> {
    let panel = |p: u32| {
        let (first, gate) = (p / 2 * PANEL, p % 2);
        (first..first + PANEL).map(move |column| (column < out).then_some((0, gate * out + column)))
    };
    (0..2 * out.div_ceil(PANEL)).flat_map(panel).collect()
}

impl Matrix {
    /// Panels of 32 physical columns.
    pub fn panels(&self) -> u32 {
        self.outputs.div_ceil(PANEL) << u32::from(self.gated)
    }

    /// Output rows of all pictures.
    pub fn rows(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.output[0]) * u64::from(self.output[1])
    }

    /// Floating-point operations, 2 per multiply-add, without padding.
    pub fn flops(&self) -> u64 {
        let taps = u64::from(self.kernel[0] * self.kernel[1]);
        2 * self.rows() * taps * u64::from(self.inputs) * u64::from(self.outputs << u32::from(self.gated))
    }

    /// Rows and panels of one workgroup's tile.
    fn tile(&self, limits: &Limits) -> (u32, u32) {
        if limits.lanes() { matrix_lanes::tile(self, limits) } else { (64, 2) }
    }

    fn variant(&self, limits: &Limits) -> Variant {
        if limits.lanes() {
            return matrix_lanes::variant(self, limits);
        }
        let halves = 1 << u32::from(self.gated);
        let constants = vec![("ACTIVATION", self.activation.code()), ("HALVES", halves)];
        let [input, weight, output] = self.types;
        let types = vec![("In", input), ("Weight", weight), ("Out", output)];
        Variant { stem: "matrix_tile", enables: vec![], constants, types }
    }

    /// The part of the input that the output lines `begin..end` read; a line is one row of one picture.
    fn input_span(&self, begin: u64, end: u64, limits: &Limits) -> Span {
        let (lines, height) = (u64::from(self.output[0]), u64::from(self.input[0]));
        let row = |line: u64, tap: u64| {
            let y = (line % lines * u64::from(self.stride) + tap).saturating_sub(u64::from(self.padding[0]));
            line / lines * height + (y >> u32::from(self.upsample)).min(height - 1)
        };
        let last = row(end - 1, u64::from(self.kernel[0] - 1)) + 1;
        let vector = vector_bytes(self.types[0]);
        let bytes = u64::from(self.input[1]) * u64::from(vectors(self.inputs)) * vector;
        bands::span(row(begin, 0), last, bytes, vector, limits)
    }

    fn output_span(&self, begin: u64, end: u64, limits: &Limits) -> Span {
        let vector = vector_bytes(self.types[2]);
        let bytes = u64::from(self.output[1]) * u64::from(vectors(self.outputs)) * vector;
        bands::span(begin, end, bytes, vector, limits)
    }

    /// Workgroups for the output lines `begin..end`: tiles of rows in x, folded into z, and tiles of panels in y.
    fn grid(&self, begin: u64, end: u64, limits: &Limits) -> [u64; 3] {
        let (rows, panels) = self.tile(limits);
        let tiles = ((end - begin) * u64::from(self.output[1])).div_ceil(u64::from(rows));
        let z = tiles.div_ceil(u64::from(limits.workgroups));
        [tiles.div_ceil(z), u64::from(self.panels().div_ceil(panels)), z]
    }

    /// The dispatches. `None` when one line of the input or output is larger than a binding.
    pub fn call(&self, limits: &Limits) -> Option<Call> {
        let lines = u64::from(self.batch) * u64::from(self.output[0]);
        let bands = bands::split(lines, |begin, end| {
            let parts = [self.input_span(begin, end, limits), self.output_span(begin, end, limits)];
            let grid = self.grid(begin, end, limits);
            parts.iter().all(|part| part.size <= limits.binding)
                && grid.iter().all(|count| *count <= u64::from(limits.workgroups))
        })?;
        let launches = bands.into_iter().map(|(begin, end)| self.launch(begin, end, limits)).collect();
        let [input, weight, output] = self.types;
        let read = u64::from(self.batch * self.input[0] * self.input[1])
            * u64::from(vectors(self.inputs))
            * vector_bytes(input);
        let taps = u64::from(self.kernel[0] * self.kernel[1]);
        let weights = u64::from(self.panels() * PANEL) * taps * u64::from(vectors(self.inputs)) * vector_bytes(weight);
        let passes = 1 + u64::from(self.residual);
        let written = self.rows() * u64::from(vectors(self.outputs)) * vector_bytes(output) * passes;
        Some(Call { variant: self.variant(limits), launches, flops: self.flops(), bytes: read + weights + written })
    }

    fn launch(&self, begin: u64, end: u64, limits: &Limits) -> Launch {
        let (a, out) = (self.input_span(begin, end, limits), self.output_span(begin, end, limits));
        let [height, width] = if self.upsample { self.output } else { self.input };
        let params = Params {
            first_row: (begin * u64::from(self.output[1])) as u32,
            end_row: (end * u64::from(self.output[1])) as u32,
            positions: self.output[0] * self.output[1],
            out_width: self.output[1],
            height,
            width,
            upsample: u32::from(self.upsample),
            kernel_height: self.kernel[0],
            kernel_width: self.kernel[1],
            stride: self.stride,
            pad_top: self.padding[0],
            pad_left: self.padding[1],
            k4: vectors(self.inputs),
            out4: vectors(self.outputs),
            a_base: a.base,
            residual_base: out.base,
            out_base: out.base,
            scale: 1.0,
            panels: self.panels(),
            flags: u32::from(self.bias) + 2 * u32::from(self.row_bias) + 4 * u32::from(self.residual),
        };
        let range = |part: Span| Some((part.offset, part.size));
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: self.grid(begin, end, limits).map(|count| count as u32),
            ranges: vec![range(a), None, None, None, range(out), range(out)],
        }
    }

    /// The same in f64: `a [B, H, W, K]`, `w [N][K][kernel height][kernel width]` (gated: values, then gates), `bias [N]`,
    /// `row_bias [B, N]`, `residual [B, OH, OW, N]`.
    pub fn reference(&self, a: &[f64], w: &[f64], bias: &[f64], row_bias: &[f64], residual: &[f64]) -> Vec<f64> {
        let outputs = self.outputs as usize;
        let positions = (self.output[0] * self.output[1]) as usize;
        let mut out = Vec::with_capacity(self.rows() as usize * outputs);
        for row in 0..self.rows() as usize {
            for n in 0..outputs {
                let sum = |n: usize| self.sum(a, w, row, n) + if self.bias { bias[n] } else { 0.0 };
                let mut value = sum(n);
                if self.row_bias {
                    value += row_bias[row / positions * outputs + n];
                }
                value = if self.gated {
                    value * Activation::Gelu.apply(sum(outputs + n))
                } else {
                    self.activation.apply(value)
                };
                out.push(value + if self.residual { residual[row * outputs + n] } else { 0.0 });
            }
        }
        out
    }

    /// One dot product of the reference.
    fn sum(&self, a: &[f64], w: &[f64], row: usize, n: usize) -> f64 {
        let size = |pair: [u32; 2]| (pair[0] as usize, pair[1] as usize);
        let ((height, width), (out_height, out_width)) = (size(self.input), size(self.output));
        let ((kernel_height, kernel_width), inputs) = (size(self.kernel), self.inputs as usize);
        let (picture, y, x) = (row / (out_height * out_width), row / out_width % out_height, row % out_width);
        let at = |place: usize, tap: usize, padding: u32, stored: usize, enlarged: usize| {
            let limit = if self.upsample { enlarged } else { stored };
            let place =
                (place * self.stride as usize + tap).checked_sub(padding as usize).filter(|place| *place < limit)?;
            Some(if self.upsample { place * stored / enlarged } else { place })
        };
        let mut sum = 0.0;
        for ky in 0..kernel_height {
            for kx in 0..kernel_width {
                let iy = at(y, ky, self.padding[0], height, out_height);
                let ix = at(x, kx, self.padding[1], width, out_width);
                let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                let pixel = &a[((picture * height + iy) * width + ix) * inputs..][..inputs];
                let weight = |k: usize| w[((n * inputs + k) * kernel_height + ky) * kernel_width + kx];
                sum += pixel.iter().enumerate().map(|(k, value)| value * weight(k)).sum::<f64>();
            }
        }
        sum
    }
}
