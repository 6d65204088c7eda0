//! GroupNorm with an optional SiLU, in three kernels: statistics per chunk, their combination, the application.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Launch, Limits, Variant, bands, fold, vector_bytes, vectors, whole};
use crate::tensor::DType;

/// Rows that one invocation of the statistics sums.
const CHUNK: u32 = 64;

/// What to compute, over [B, P, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// B.
    pub batch: u32,
    /// P = H * W.
    pub positions: u32,
    /// C.
    pub channels: u32,
    /// Divides C.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Stored element type of the input and the output.
    pub dtype: DType,
}

impl GroupNorm {
    /// Chunks of rows of one batch element.
    pub fn chunks(&self) -> u32 {
        self.positions.div_ceil(self.chunk())
    }

    fn chunk(&self) -> u32 {
        CHUNK.max(self.positions.div_ceil(1024))
    }

    fn row_bytes(&self) -> u64 {
        u64::from(vectors(self.channels)) * vector_bytes(self.dtype)
    }
}

/// The uniform of `shaders/group_norm_stats.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StatsParams {
    positions: u32,
    width: u32,
    chunk: u32,
    chunks: u32,
    first: u32,
    x_base: u32,
    pad0: u32,
    pad1: u32,
}

/// The uniform of `shaders/group_norm_combine.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CombineParams {
    channels: u32,
    stride: u32,
    per_group: u32,
    chunks: u32,
    chunk: u32,
    last: u32,
    eps: f32,
    pad: u32,
}

/// The uniform of `shaders/group_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct ApplyParams {
    begin: u32,
    end: u32,
    width: u32,
    plane: u32,
    x_base: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

/// x -> partials [B, chunks, 2, C] in f32.
pub fn stats(config: &GroupNorm, limits: &Limits) -> Option<Call> {
    let (width, chunk, chunks) = (vectors(config.channels), config.chunk(), config.chunks());
    let row = |index: u64| {
        let (image, within) = (index / u64::from(chunks), index % u64::from(chunks));
        (image * u64::from(config.positions)) + (within * u64::from(chunk)).min(u64::from(config.positions))
    };
    let part = |begin, end| bands::span(row(begin), row(end), config.row_bytes(), vector_bytes(config.dtype), limits);
    let fits =
        |begin: u64, end: u64| part(begin, end).size <= limits.binding && end - begin <= u64::from(limits.workgroups);
    let pieces = bands::split(u64::from(chunks * config.batch), fits)?;
    let launches = pieces.into_iter().map(|(begin, end)| {
        let bound = part(begin, end);
        let params = StatsParams {
            positions: config.positions,
            width,
            chunk,
            chunks,
            first: begin as u32,
            x_base: bound.base,
            pad0: 0,
            pad1: 0,
        };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: [width.div_ceil(LANES as u32), (end - begin) as u32, 1],
            ranges: vec![Some((bound.offset, bound.size)), None],
        }
    });
    let elements = u64::from(config.batch * config.positions) * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: "group_norm_stats",
            enables: vec![],
            constants: vec![],
            types: vec![("X", config.dtype)],
        },
        launches: launches.collect(),
        flops: 4 * elements,
        bytes: elements * config.dtype.bytes() as u64,
    })
}

/// partials, weight -> norm [B, 2, C] in f32.
pub fn combine(config: &GroupNorm) -> Call {
    let (chunk, chunks) = (config.chunk(), config.chunks());
    let params = CombineParams {
        channels: config.channels,
        stride: vectors(config.channels) * 4,
        per_group: config.channels / config.groups,
        chunks,
        chunk,
        last: config.positions - chunk * (chunks - 1),
        eps: config.eps,
        pad: 0,
    };
    let variant = Variant { stem: "group_norm_combine", enables: vec![], constants: vec![], types: vec![] };
    whole(variant, &params, [config.groups, config.batch, 1], 3)
}

/// x, norm, bias -> y.
pub fn apply(config: &GroupNorm, limits: &Limits) -> Option<Call> {
    let width = vectors(config.channels);
    let rows = u64::from(config.batch) * u64::from(config.positions);
    let tensor = (config.row_bytes(), vector_bytes(config.dtype));
    let launches =
        bands::rows(rows, &[tensor, tensor], u64::from(width), limits)?.into_iter().map(|(begin, end, parts)| {
            let params = ApplyParams {
                begin: begin as u32 * width,
                end: end as u32 * width,
                width,
                plane: config.positions * width,
                x_base: parts[0].base,
                y_base: parts[1].base,
                pad0: 0,
                pad1: 0,
            };
            Launch {
                params: bytemuck::bytes_of(&params).to_vec(),
                workgroups: fold(((end - begin) * u64::from(width)).div_ceil(LANES), limits),
                ranges: vec![
                    Some((parts[0].offset, parts[0].size)),
                    None,
                    None,
                    Some((parts[1].offset, parts[1].size)),
                ],
            }
        });
    let elements = rows * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: "group_norm",
            enables: vec![],
            constants: vec![("SILU", u32::from(config.silu))],
            types: vec![("X", config.dtype), ("Y", config.dtype)],
        },
        launches: launches.collect(),
        flops: 6 * elements,
        bytes: 2 * elements * config.dtype.bytes() as u64,
    })
}

/// The same in f64, over x [B, P, C].
pub fn reference(config: &GroupNorm, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let (positions, channels) = (config.positions as usize, config.channels as usize);
    let per_group = channels / config.groups as usize;
    let mut y = vec![0.0; x.len()];
    for image in 0..config.batch as usize {
        for group in 0..config.groups as usize {
            let indices: Vec<usize> = (0..positions)
                .flat_map(|p| (0..per_group).map(move |c| (image * positions + p) * channels + group * per_group + c))
                .collect();
            let mean = indices.iter().map(|i| x[*i]).sum::<f64>() / indices.len() as f64;
            let variance = indices.iter().map(|i| (x[*i] - mean).powi(2)).sum::<f64>() / indices.len() as f64;
            let scale = 1.0 / (variance + f64::from(config.eps)).sqrt();
            for i in indices {
                let channel = i % channels;
                let v = (x[i] - mean) * scale * weight[channel] + bias[channel];
                y[i] = if config.silu { v / (1.0 + (-v).exp()) } else { v };
            }
        }
    }
    y
}
