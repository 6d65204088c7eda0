//! What `matmul` and `conv2d` share: a convolution as an implicit matrix product, of which a linear layer is the case
//! of one tap.
//!
//! Three families of shaders compute it: `matrix_coop` with cooperative matrices, `matrix_tile` through workgroup memory
//! on other GPUs, `matrix_lanes` and `matrix_texels` with one subgroup of eight lanes on CPU adapters. All take the operands a,
//! second, w, bias, row bias and residual, in this order; those that a product does not have are bound to the weight and
//! never read. `matrix_coop` may split a long sum into parts that a second kernel, `matrix_reduce`, adds.

use bytemuck::{Pod, Zeroable};

use super::bands::{self, Span};
use super::elementwise::Activation;
use super::matrix_reduce::{self, Partials};
use super::matrix_tiles::{Family, Tile};
use super::{Call, Enable, Launch, Limits, Variant, matrix_lanes, vector_bytes, vectors};
use crate::tensor::DType;

/// Columns of one panel of a packed weight.
pub const PANEL: u32 = 32;
/// The channels `first .. first + outputs` of a tensor [B, channels]; those up to a multiple of four must be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Channels of the whole tensor.
    pub channels: u32,
    /// The first channel, a multiple of four.
    pub first: u32,
}

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
    /// Channels of a second input of the same height and width, which follow those of the first one; 0 without.
    pub second: u32,
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
    /// Factor of what comes of that, before the residual.
    pub scale: f32,
    /// Whether there is a bias.
    pub bias: bool,
    /// Where a bias for every picture, [B, outputs] in f32, lies in its tensor.
    pub row_bias: Option<Slice>,
    /// Whether a tensor of the output's shape and type is added at the end.
    pub residual: bool,
    /// Value columns times the activation (GELU where there is none) of gate columns, packed by [`gated_rows`].
    pub gated: bool,
    /// Element types of the input, the weight and the output.
    pub types: [DType; 3],
}

/// The uniform of `shaders/matrix_lanes.wgsl`, `shaders/matrix_texels.wgsl`, `shaders/matrix_tile.wgsl`, `shaders/matrix_coop.wgsl`, `shaders/matrix_vector.wgsl` and `shaders/matrix_reduce.wgsl`.
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
    second4: u32,
    second_base: u32,
    row_bias4: u32,
    row_bias_first: u32,
    splits: u32,
    partial_rows: u32,
    partial4: u32,
}

/// The operands of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operands<O> {
    /// [B, H, W, inputs].
    pub x: O,
    /// [B, H, W, second].
    pub second: Option<O>,
    /// The packed weight.
    pub weight: O,
    /// `[outputs]` in f32, in the order of the weight's columns.
    pub bias: Option<O>,
    /// [B, channels] in f32; see [`Slice`].
    pub row_bias: Option<O>,
    /// [B, H, W, outputs].
    pub residual: Option<O>,
}

impl<O: Copy> Operands<O> {
    /// Those of the only call, in the order of its bindings.
    pub fn inputs(&self) -> Vec<O> {
        let or_weight = |operand: Option<O>| operand.unwrap_or(self.weight);
        let Self { x, second, weight, bias, row_bias, residual } = *self;
        vec![x, or_weight(second), weight, or_weight(bias), or_weight(row_bias), or_weight(residual)]
    }

    /// Those of the call that makes partial sums: no epilogue.
    pub fn partial_inputs(&self) -> Vec<O> {
        Self { bias: None, row_bias: None, residual: None, ..*self }.inputs()
    }

    /// Those of the call that adds them.
    pub fn reduce_inputs(&self, partials: O) -> Vec<O> {
        matrix_reduce::inputs(partials, self.bias, self.row_bias, self.residual, partials)
    }
}

/// What a product runs: one call, or two with partial sums between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The product; with `reduce` its partial sums.
    pub call: Call,
    /// The partial sums, [1, splits * rows, 1, columns] in f32, and the call that adds them.
    pub reduce: Option<(Partials, Call)>,
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
        2 * self.rows() * taps * u64::from(self.inputs + self.second) * u64::from(self.outputs << u32::from(self.gated))
    }

    /// Vectors of all input channels: those of both inputs, each padded.
    pub fn depth4(&self) -> u32 {
        vectors(self.inputs) + vectors(self.second)
    }

    fn variant(&self, tile: &Tile, limits: &Limits) -> Variant {
        let halves = self.halves();
        let mut constants = vec![("ACTIVATION", self.activation.code()), ("HALVES", halves)];
        let [input, weight, output] = self.types;
        let (mut enables, mut types) = (vec![], vec![("Out", output)]);
        let stem = match tile.family {
            Family::Lanes => return matrix_lanes::variant(self, limits),
            Family::Tile => {
                constants.push(("SECOND", u32::from(self.second > 0)));
                constants.extend(tile.constants());
                if limits.f16 && self.types.contains(&DType::F16) {
                    enables.push(Enable::F16);
                }
                types = vec![("In", input), ("Weight", weight), ("Out", output)];
                "matrix_tile"
            }
            Family::Cooperative => {
                enables = vec![Enable::F16, Enable::Subgroups, Enable::CooperativeMatrix];
                constants.extend(self.cooperative_constants(tile, limits));
                "matrix_coop"
            }
        };
        Variant { stem, enables, constants, types }
    }

    /// The part of an input of `channels` that the output lines `begin..end` read; a line is one row of one picture.
    fn input_span(&self, channels: u32, begin: u64, end: u64, limits: &Limits) -> Span {
        let (lines, height) = (u64::from(self.output[0]), u64::from(self.input[0]));
        let row = |line: u64, tap: u64| {
            let y = (line % lines * u64::from(self.stride) + tap).saturating_sub(u64::from(self.padding[0]));
            line / lines * height + (y >> u32::from(self.upsample)).min(height - 1)
        };
        let last = row(end - 1, u64::from(self.kernel[0] - 1)) + 1;
        let vector = vector_bytes(self.types[0]);
        let bytes = u64::from(self.input[1]) * u64::from(vectors(channels)) * vector;
        bands::span(row(begin, 0), last, bytes, vector, limits)
    }

    fn output_span(&self, begin: u64, end: u64, limits: &Limits) -> Span {
        let vector = vector_bytes(self.types[2]);
        let bytes = u64::from(self.output[1]) * u64::from(vectors(self.outputs)) * vector;
        bands::span(begin, end, bytes, vector, limits)
    }

    /// Workgroups for the output lines `begin..end`: tiles of rows in x, folded into z, and tiles of columns in y.
    fn grid(&self, tile: &Tile, begin: u64, end: u64, limits: &Limits) -> [u64; 3] {
        let tiles = ((end - begin) * u64::from(self.output[1])).div_ceil(u64::from(tile.rows));
        let z = tiles.div_ceil(u64::from(limits.workgroups));
        [tiles.div_ceil(z), u64::from((self.panels() * PANEL).div_ceil(tile.columns)), z]
    }

    /// What runs, the fastest candidate as far as it is known. `None` when one line of the input or output is larger than a
    /// binding.
    pub fn call(&self, limits: &Limits) -> Option<Run> {
        let count = self.candidates(limits).len();
        self.call_with(limits.tuning.pick(self.class(), count), limits)
    }

    /// What runs with candidate number `candidate` of [`Matrix::candidates`]. `None` as for [`Matrix::call`], or when there
    /// is no such candidate.
    pub fn call_with(&self, candidate: usize, limits: &Limits) -> Option<Run> {
        let tile = self.bounded(*self.candidates(limits).get(candidate)?);
        let lines = u64::from(self.batch) * u64::from(self.output[0]);
        let bands = bands::split(lines, |begin, end| {
            let inputs = [self.inputs, self.second].map(|channels| self.input_span(channels, begin, end, limits).size);
            let grid = self.grid(&tile, begin, end, limits);
            inputs.iter().chain([&self.output_span(begin, end, limits).size]).all(|size| *size <= limits.binding)
                && grid.iter().all(|count| *count <= u64::from(limits.workgroups))
        })?;
        if let (Some(partials), [band]) = (self.partials(&tile, limits), bands.as_slice()) {
            return Some(self.split_run(&tile, partials, *band, limits));
        }
        let tile = Tile { split: 1, ..tile };
        let launches = bands.into_iter().map(|(begin, end)| self.launch(&tile, begin, end, limits)).collect();
        let passes = 1 + u64::from(self.residual);
        let written = self.rows() * u64::from(vectors(self.outputs)) * vector_bytes(self.types[2]) * passes;
        let bytes = self.read_bytes() + written;
        let variant = self.variant(&tile, limits);
        Some(Run { call: Call { variant, launches, flops: self.flops(), bytes }, reduce: None })
    }

    /// The partial sums of a tile that splits; `None` where it does not, or a binding is too small for them.
    fn partials(&self, tile: &Tile, limits: &Limits) -> Option<Partials> {
        let rows = self.rows().next_multiple_of(u64::from(tile.rows)) as u32;
        let columns = (self.panels() * PANEL).next_multiple_of(tile.columns);
        let partials = Partials { splits: tile.split, rows, columns };
        (tile.split > 1 && partials.bytes() <= limits.binding).then_some(partials)
    }

    fn split_run(&self, tile: &Tile, partials: Partials, band: (u64, u64), limits: &Limits) -> Run {
        let whole = self.launch(tile, band.0, band.1, limits);
        let params = self.split_params(partials);
        let [x, y, _] = whole.workgroups;
        let mut ranges = whole.ranges;
        // No epilogue: the weight stands in for the residual, and the partial sums are bound whole.
        ranges.iter_mut().skip(5).for_each(|range| *range = None);
        let params = bytemuck::bytes_of(&params).to_vec();
        let launches = vec![Launch { params, workgroups: [x, y, partials.splits], ranges }];
        let variant = self.variant(tile, limits);
        let call = Call { variant, launches, flops: self.flops(), bytes: self.read_bytes() + partials.bytes() };
        Run { call, reduce: Some((partials, matrix_reduce::call(self, partials, limits))) }
    }

    /// Bytes of the inputs and the weight.
    fn read_bytes(&self) -> u64 {
        let [input, weight, _] = self.types;
        let depth = u64::from(self.depth4());
        let read = u64::from(self.batch * self.input[0] * self.input[1]) * depth * vector_bytes(input);
        let taps = u64::from(self.kernel[0] * self.kernel[1]);
        read + u64::from(self.panels() * PANEL) * taps * depth * vector_bytes(weight)
    }

    /// The parameters of one launch over everything.
    pub(super) fn params(&self) -> Params {
        let [height, width] = if self.upsample { self.output } else { self.input };
        let slice = self.row_bias.unwrap_or(Slice { channels: self.outputs, first: 0 });
        Params {
            first_row: 0,
            end_row: self.rows() as u32,
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
            k4: self.depth4(),
            out4: vectors(self.outputs),
            a_base: 0,
            residual_base: 0,
            out_base: 0,
            scale: self.scale,
            panels: self.panels(),
            flags: u32::from(self.bias) + 2 * u32::from(self.row_bias.is_some()) + 4 * u32::from(self.residual),
            second4: vectors(self.second),
            second_base: 0,
            row_bias4: vectors(slice.channels),
            row_bias_first: slice.first / 4,
            splits: 1,
            partial_rows: 0,
            partial4: 0,
        }
    }

    /// The parameters of both calls of a split product.
    pub(super) fn split_params(&self, partials: Partials) -> Params {
        let Partials { splits, rows, columns } = partials;
        Params { splits, partial_rows: rows, partial4: columns / 4, ..self.params() }
    }

    fn launch(&self, tile: &Tile, begin: u64, end: u64, limits: &Limits) -> Launch {
        let (a, out) = (self.input_span(self.inputs, begin, end, limits), self.output_span(begin, end, limits));
        let second = self.input_span(self.second, begin, end, limits);
        let params = Params {
            first_row: (begin * u64::from(self.output[1])) as u32,
            end_row: (end * u64::from(self.output[1])) as u32,
            a_base: a.base,
            residual_base: out.base,
            out_base: out.base,
            second_base: second.base,
            ..self.params()
        };
        let range = |part: Span| Some((part.offset, part.size));
        let second = if self.second > 0 { range(second) } else { None };
        let workgroups = self.grid(tile, begin, end, limits).map(|count| count as u32);
        let ranges = vec![range(a), second, None, None, None, range(out), range(out)];
        Launch { params: bytemuck::bytes_of(&params).to_vec(), workgroups, ranges }
    }

    /// What becomes of a gate: GELU where no activation is named.
    pub(super) fn gate(&self) -> Activation {
        if self.activation == Activation::None { Activation::Gelu } else { self.activation }
    }

    /// The same in f64: `a [B, H, W, K]` with the channels of both inputs, `w [N][K][kernel height][kernel width]`
    /// (gated: values, then gates), `bias [N]`, `row_bias [B, channels]`, `residual [B, OH, OW, N]`.
    pub fn reference(&self, a: &[f64], w: &[f64], bias: &[f64], row_bias: &[f64], residual: &[f64]) -> Vec<f64> {
        let outputs = self.outputs as usize;
        let positions = (self.output[0] * self.output[1]) as usize;
        let mut out = Vec::with_capacity(self.rows() as usize * outputs);
        for row in 0..self.rows() as usize {
            for n in 0..outputs {
                let sum = |n: usize| self.sum(a, w, row, n) + if self.bias { bias[n] } else { 0.0 };
                let mut value = sum(n);
                if let Some(slice) = self.row_bias {
                    value += row_bias[row / positions * slice.channels as usize + slice.first as usize + n];
                }
                value =
                    if self.gated { value * self.gate().apply(sum(outputs + n)) } else { self.activation.apply(value) };
                value *= f64::from(self.scale);
                out.push(value + if self.residual { residual[row * outputs + n] } else { 0.0 });
            }
        }
        out
    }

    /// One dot product of the reference.
    fn sum(&self, a: &[f64], w: &[f64], row: usize, n: usize) -> f64 {
        let size = |pair: [u32; 2]| (pair[0] as usize, pair[1] as usize);
        let ((height, width), (out_height, out_width)) = (size(self.input), size(self.output));
        let ((kernel_height, kernel_width), inputs) = (size(self.kernel), (self.inputs + self.second) as usize);
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
