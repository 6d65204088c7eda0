//! RMSNorm over the channels of each row, as `layer_norm` without mean and bias.

use bytemuck::{Pod, Zeroable};

use super::{Call, Enable, Launch, Limits, Variant, bands, fold, vector_bytes, vectors};
use crate::tensor::DType;

/// Invocations of a workgroup, unless a row takes more.
const LANES: u32 = 128;
/// Vectors of a row that an invocation keeps in registers at the most.
const KEPT: u32 = 16;

/// What to compute, over [rows, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Rows.
    pub rows: u32,
    /// C.
    pub channels: u32,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Stored element types of the input and the output.
    pub types: [DType; 2],
}

/// The uniform of `shaders/rms_norm.wgsl`.
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

/// x, weight -> y. `None` when one row is too large for a binding.
pub fn call(config: &RmsNorm, limits: &Limits) -> Option<Call> {
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
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold((end - begin).div_ceil(u64::from(group)), limits),
            ranges: vec![x, None, y],
        }
    });
    let kept = if depth <= KEPT { depth } else { 1 };
    let elements = u64::from(config.rows) * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: "rms_norm",
            enables: if subgroups { vec![Enable::Subgroups] } else { vec![] },
            constants: vec![("SPAN", span), ("ROWS", group), ("DEPTH", depth), ("KEPT", kept)],
            types: vec![("X", config.types[0]), ("Y", config.types[1])],
        },
        launches: launches.collect(),
        flops: 4 * elements,
        bytes: elements * config.types.iter().map(|dtype| dtype.bytes() as u64).sum::<u64>(),
    })
}

/// The same in f64.
pub fn reference(config: &RmsNorm, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let channels = config.channels as usize;
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(channels) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / channels as f64;
        let scale = 1.0 / (mean + f64::from(config.eps)).sqrt();
        y.extend(row.iter().zip(weight).map(|(v, weight)| v * scale * weight));
    }
    y
}
