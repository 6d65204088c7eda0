//! GroupNorm with SiLU over a picture that lies in bands of rows, each a tensor of its own: statistics of a band, their
//! combination over all bands, and the application to rows that go from one band into another.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Launch, Limits, Variant, bands, fold, folds, vector_bytes, vectors, whole};
use crate::tensor::DType;

/// The fewest rows that one invocation of the statistics sums, and the most chunks of a band.
const CHUNK: u32 = 64;
const CHUNKS: u32 = 256;

/// What to compute, over [rows, C] in bands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BandNorm {
    /// C.
    pub channels: u32,
    /// Divides C.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Stored element type of the bands.
    pub dtype: DType,
}

/// Rows of one band that go into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// First row in the source.
    pub from: u32,
    /// First row in the target.
    pub to: u32,
    /// How many.
    pub count: u32,
}

/// The uniform of `shaders/band_stats.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StatsParams {
    width: u32,
    chunk: u32,
    first: u32,
    rows: u32,
    out_first: u32,
    x_base: u32,
    pad0: u32,
    pad1: u32,
}

/// The uniform of `shaders/band_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct NormParams {
    channels: u32,
    stride: u32,
    per_group: u32,
    chunks: u32,
    rows: u32,
    eps: f32,
    pad0: u32,
    pad1: u32,
}

/// The uniform of `shaders/band_rows.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RowsParams {
    begin: u32,
    end: u32,
    width: u32,
    x_base: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

fn chunk(rows: u32) -> u32 {
    CHUNK.max(rows.div_ceil(CHUNKS))
}

/// Chunks that the statistics of `rows` rows take.
pub fn chunks(rows: u32) -> u32 {
    rows.div_ceil(chunk(rows))
}

/// Rows `first .. first + rows` of x -> their chunks of partials [chunks, 3, C] in f32, from chunk `out_first` on.
pub fn stats(config: &BandNorm, first: u32, rows: u32, out_first: u32, limits: &Limits) -> Option<Call> {
    let (width, chunk) = (vectors(config.channels), chunk(rows));
    let vector = vector_bytes(config.dtype);
    let row = |index: u64| u64::from(first) + (index * u64::from(chunk)).min(u64::from(rows));
    let part = |begin, end| bands::span(row(begin), row(end), u64::from(width) * vector, vector, limits);
    let fits =
        |begin: u64, end: u64| part(begin, end).size <= limits.binding && end - begin <= u64::from(limits.workgroups);
    let launches = bands::split(u64::from(chunks(rows)), fits)?.into_iter().map(|(begin, end)| {
        let bound = part(begin, end);
        let params = StatsParams {
            width,
            chunk,
            first: row(begin) as u32,
            rows: (row(end) - row(begin)) as u32,
            out_first: out_first + begin as u32,
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
    let elements = u64::from(rows) * u64::from(config.channels);
    Some(Call {
        variant: Variant { stem: "band_stats", enables: vec![], constants: vec![], types: vec![("X", config.dtype)] },
        launches: launches.collect(),
        flops: 4 * elements,
        bytes: elements * config.dtype.bytes() as u64,
    })
}

/// partials of `rows` rows in `chunks` chunks, weight -> norm [2, C] in f32.
pub fn combine(config: &BandNorm, rows: u32, chunks: u32) -> Call {
    let params = NormParams {
        channels: config.channels,
        stride: vectors(config.channels) * 4,
        per_group: config.channels / config.groups,
        chunks,
        rows,
        eps: config.eps,
        pad0: 0,
        pad1: 0,
    };
    let variant = Variant { stem: "band_norm", enables: vec![], constants: vec![], types: vec![] };
    whole(variant, &params, [config.groups, 1, 1], 3)
}

/// Rows of x, normalised and through SiLU where `norm`, into rows of y. The operands are x, norm and bias; a plain copy
/// takes x three times.
pub fn rows(norm: bool, channels: u32, dtype: DType, rows: Rows, limits: &Limits) -> Option<Call> {
    let (width, vector) = (vectors(channels), vector_bytes(dtype));
    let row_bytes = u64::from(width) * vector;
    let part = |first: u32, begin: u64, end: u64| {
        bands::span(u64::from(first) + begin, u64::from(first) + end, row_bytes, vector, limits)
    };
    let fits = |begin: u64, end: u64| {
        part(rows.from, begin, end).size.max(part(rows.to, begin, end).size) <= limits.binding
            && folds(((end - begin) * u64::from(width)).div_ceil(LANES), limits)
    };
    let launches = bands::split(u64::from(rows.count), fits)?.into_iter().map(|(begin, end)| {
        let (x, y) = (part(rows.from, begin, end), part(rows.to, begin, end));
        let at = |first: u32, row: u64| (first + row as u32) * width;
        let params = RowsParams {
            begin: at(rows.from, begin),
            end: at(rows.from, end),
            width,
            x_base: x.base,
            y_base: at(rows.from, begin).wrapping_sub(at(rows.to, begin)).wrapping_add(y.base),
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let bound = Some((x.offset, x.size));
        let others = if norm { None } else { bound };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold(((end - begin) * u64::from(width)).div_ceil(LANES), limits),
            ranges: vec![bound, others, others, Some((y.offset, y.size))],
        }
    });
    let elements = u64::from(rows.count) * u64::from(channels);
    let constants = vec![("NORM", u32::from(norm))];
    Some(Call {
        variant: Variant { stem: "band_rows", enables: vec![], constants, types: vec![("X", dtype)] },
        launches: launches.collect(),
        flops: if norm { 6 * elements } else { 0 },
        bytes: 2 * elements * dtype.bytes() as u64,
    })
}

/// GroupNorm and SiLU in f64 over x [rows, C], all bands together.
pub fn reference(config: &BandNorm, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let channels = config.channels as usize;
    let per_group = channels / config.groups as usize;
    let mut y = x.to_vec();
    for group in 0..config.groups as usize {
        let inside = |index: &usize| index % channels / per_group == group;
        let count = (x.len() / config.groups as usize) as f64;
        let mean = (0..x.len()).filter(inside).map(|index| x[index]).sum::<f64>() / count;
        let variance = (0..x.len()).filter(inside).map(|index| (x[index] - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + f64::from(config.eps)).sqrt();
        for index in (0..x.len()).filter(inside) {
            let v = (x[index] - mean) * scale * weight[index % channels] + bias[index % channels];
            y[index] = v / (1.0 + (-v).exp());
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::elementwise::Activation;
    use crate::kernels::group_norm::{self, GroupNorm};

    #[test]
    fn the_reference_is_group_norms() {
        let config = BandNorm { channels: 6, groups: 3, eps: 1e-6, dtype: DType::F32 };
        let x: Vec<f64> = (0..30).map(|i| f64::from(i * i % 17) - 3.0).collect();
        let (weight, bias) = ([1.5, -0.5, 0.2, 2.0, 1.0, 0.7], [0.1, -0.3, 0.0, 1.0, 0.4, -2.0]);
        let whole = GroupNorm {
            batch: 1,
            positions: 5,
            channels: 6,
            second: 0,
            groups: 3,
            eps: 1e-6,
            modulation: None,
            activation: Activation::Silu,
            dtype: DType::F32,
        };
        let expected = group_norm::reference(&whole, &x, &weight, &bias, &[]);
        for (got, expected) in reference(&config, &x, &weight, &bias).iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-12, "{got} and {expected}");
        }
    }
}
