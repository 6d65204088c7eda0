//! Separable resizing along one axis. What it sums comes from a [`Table`].

use bytemuck::{Pod, Zeroable};

use super::resampling::Table;
use super::{Call, LANES, Launch, Limits, Variant, bands, fold, folds, vector_bytes};
use crate::tensor::DType;

/// What to compute, over [outer, N, inner] vectors of four channels: along the rows of a picture [B, H, W, C] outer is B and
/// inner W * C4, along its columns outer is B * H and inner C4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resample {
    /// Repetitions of the axis.
    pub outer: u32,
    /// Vectors between two places of the axis.
    pub inner: u32,
    /// Whether results are rounded to whole numbers in 0..255, as libraries do between two passes over 8-bit pictures.
    pub quantize: bool,
    /// How x and y are stored.
    pub types: [DType; 2],
}

/// The uniform of `shaders/resample.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    inner: u32,
    input: u32,
    output: u32,
    taps: u32,
    x_base: u32,
    y_base: u32,
}

/// x [outer, N, inner], [`Table::packed`] -> y [outer, M, inner]. `None` when the lines of one result are too large for a
/// binding.
pub fn call(config: &Resample, table: &Table, limits: &Limits) -> Option<Call> {
    let (input, output) = (u64::from(table.input()), u64::from(table.output()));
    let inner = u64::from(config.inner);
    let [x, y] = config.types.map(vector_bytes);
    // Lines of the input that the lines `begin..end` of the output read; starts do not fall.
    let source = |begin: u64, end: u64| {
        let first = |line: u64| line / output * input + u64::from(table.start((line % output) as u32));
        bands::span(first(begin), first(end - 1) + u64::from(table.taps()), inner * x, x, limits)
    };
    let target = |begin: u64, end: u64| bands::span(begin, end, inner * y, y, limits);
    let fits = |begin: u64, end: u64| {
        source(begin, end).size <= limits.binding
            && target(begin, end).size <= limits.binding
            && folds(((end - begin) * inner).div_ceil(LANES), limits)
    };
    let lines = u64::from(config.outer) * output;
    let launches = bands::split(lines, fits)?.into_iter().map(|(begin, end)| {
        let (from, to) = (source(begin, end), target(begin, end));
        let params = Params {
            begin: (begin * inner) as u32,
            end: (end * inner) as u32,
            inner: config.inner,
            input: table.input(),
            output: table.output(),
            taps: table.taps(),
            x_base: from.base,
            y_base: to.base,
        };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold(((end - begin) * inner).div_ceil(LANES), limits),
            ranges: vec![Some((from.offset, from.size)), None, Some((to.offset, to.size))],
        }
    });
    let variant = Variant {
        stem: "resample",
        enables: vec![],
        constants: vec![("QUANTIZE", u32::from(config.quantize))],
        types: config.types.iter().zip(["X", "Y"]).map(|(dtype, name)| (name, *dtype)).collect(),
    };
    let launches = launches.collect();
    let flops = 8 * lines * inner * u64::from(table.taps());
    let bytes = u64::from(config.outer) * inner * (input * x + output * y);
    Some(Call { variant, launches, flops, bytes })
}

/// The same in f64 over x [outer, N, inner] of single numbers.
pub fn reference(table: &Table, outer: usize, inner: usize, quantize: bool, x: &[f64]) -> Vec<f64> {
    let (input, output) = (table.input() as usize, table.output());
    let mut y = Vec::with_capacity(outer * output as usize * inner);
    for o in 0..outer {
        for i in 0..output {
            let first = o * input + table.start(i) as usize;
            for j in 0..inner {
                let term = |(k, weight): (usize, &f32)| f64::from(*weight) * x[(first + k) * inner + j];
                let sum: f64 = table.weights(i).iter().enumerate().map(term).sum();
                y.push(if quantize { (sum + 0.5).floor().clamp(0.0, 255.0) } else { sum });
            }
        }
    }
    y
}
