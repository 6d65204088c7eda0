//! LayerNorm over the channels of each row: a subgroup a row where there are subgroups, else some lanes of a workgroup.

use bytemuck::{Pod, Zeroable};

use super::{Call, Enable, Launch, Limits, Variant, bands, fold, vector_bytes, vectors};
use crate::tensor::DType;

/// Invocations of a workgroup, unless a row takes more.
const LANES: u32 = 128;
/// Vectors of a row that an invocation keeps in registers at the most.
const KEPT: u32 = 16;

/// What to compute, over [rows, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// Rows.
    pub rows: u32,
    /// C.
    pub channels: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Stored element type of the input and the output.
    pub dtype: DType,
}

/// The uniform of `shaders/layer_norm.wgsl` and `shaders/rms_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    width: u32,
    channels: u32,
    x_base: u32,
    y_base: u32,
    eps: f32,
    pad: u32,
}

/// x, weight, bias -> y. `None` when one row is too large for a binding.
pub fn call(config: &LayerNorm, limits: &Limits) -> Option<Call> {
    let LayerNorm { rows, channels, eps, dtype } = *config;
    normalised(&Rows { stem: "layer_norm", rows, channels, eps, types: [dtype, dtype], vectors: 2, flops: 8 }, limits)
}

/// What a norm over the channels of each row is called with.
pub(super) struct Rows {
    /// The shader, which goes on with `rows_subgroup` or `rows_workgroup`.
    pub stem: &'static str,
    /// Rows.
    pub rows: u32,
    /// C.
    pub channels: u32,
    /// Added below the root.
    pub eps: f32,
    /// Stored element types of the input and the output.
    pub types: [DType; 2],
    /// How many vectors [C] lie between the input and the output: weight, bias.
    pub vectors: usize,
    /// Operations of an element.
    pub flops: u64,
}

/// The dispatches of a norm over rows. `None` when one row is too large for a binding.
pub(super) fn normalised(config: &Rows, limits: &Limits) -> Option<Call> {
    let width = vectors(config.channels);
    let subgroups = (8..=128).contains(&limits.subgroup);
    let span = match (subgroups, limits.lanes()) {
        (true, _) => limits.subgroup,
        (false, true) => 8,
        (false, false) => 32,
    };
    // On a CPU, invocations beyond one subgroup make barriers costly and hide nothing.
    let group = if limits.lanes() { 1 } else { LANES / span };
    let depth = width.div_ceil(span);
    let tensor = |dtype: DType| (u64::from(width) * vector_bytes(dtype), vector_bytes(dtype));
    let launches = bands::rows(u64::from(config.rows), &config.types.map(tensor), u64::from(width), limits)?;
    let launches = launches.into_iter().map(|(begin, end, parts)| {
        let params = Params {
            begin: begin as u32,
            end: end as u32,
            width,
            channels: config.channels,
            x_base: parts[0].base,
            y_base: parts[1].base,
            eps: config.eps,
            pad: 0,
        };
        let [x, y] = [parts[0], parts[1]].map(|part| Some((part.offset, part.size)));
        let between = std::iter::repeat_n(None, config.vectors);
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold((end - begin).div_ceil(u64::from(group)), limits),
            ranges: std::iter::once(x).chain(between).chain([y]).collect(),
        }
    });
    let kept = if depth <= KEPT { depth } else { 1 };
    let elements = u64::from(config.rows) * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: config.stem,
            enables: if subgroups { vec![Enable::Subgroups] } else { vec![] },
            constants: vec![("SPAN", span), ("ROWS", group), ("DEPTH", depth), ("KEPT", kept)],
            types: vec![("X", config.types[0]), ("Y", config.types[1])],
        },
        launches: launches.collect(),
        flops: config.flops * elements,
        bytes: elements * config.types.iter().map(|dtype| dtype.bytes() as u64).sum::<u64>(),
    })
}

/// The same in f64.
pub fn reference(config: &LayerNorm, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let channels = config.channels as usize;
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(channels) {
        let mean = row.iter().sum::<f64>() / channels as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
        let scale = 1.0 / (variance + f64::from(config.eps)).sqrt();
        y.extend(row.iter().enumerate().map(|(c, v)| (v - mean) * scale * weight[c] + bias[c]));
    }
    y
}
