//! The second half of a product whose sum is split: adds the parts and applies the epilogue. See [`super::matrix`].

use super::matrix::{Matrix, PANEL};
use super::{Call, Launch, Limits, Variant, fold, vector_bytes, vectors};

/// Partial sums in f32: `[parts][rows][columns]`, for whole tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partials {
    /// Parts of the sum.
    pub splits: u32,
    /// Rows of one part.
    pub rows: u32,
    /// Physical columns, in the order of the packed weight.
    pub columns: u32,
}

impl Partials {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        u64::from(self.splits) * u64::from(self.rows) * u64::from(self.columns) * 4
    }
}

/// The operands in the order of the shader's bindings; `stand_in` is bound for those that are not there.
pub fn inputs<O: Copy>(partials: O, bias: Option<O>, row_bias: Option<O>, residual: Option<O>, stand_in: O) -> Vec<O> {
    vec![partials, bias.unwrap_or(stand_in), row_bias.unwrap_or(stand_in), residual.unwrap_or(stand_in)]
}

/// Adds the partial sums of `config`, whose output fits one binding.
pub fn call(config: &Matrix, partials: Partials, limits: &Limits) -> Call {
    let output = config.types[2];
    let constants = vec![("ACTIVATION", config.activation.code()), ("HALVES", config.halves())];
    let variant = Variant { stem: "matrix_reduce", enables: vec![], constants, types: vec![("Out", output)] };
    let params = config.split_params(partials);
    let count = config.rows() * u64::from(vectors(config.outputs));
    let workgroups = fold(count.div_ceil(64), limits);
    let launch = Launch { params: bytemuck::bytes_of(&params).to_vec(), workgroups, ranges: vec![None; 5] };
    let read = config.rows() * u64::from(config.panels() * PANEL * partials.splits) * 4;
    let written = count * vector_bytes(output) * (1 + u64::from(config.residual));
    let flops = config.rows() * u64::from(config.panels() * PANEL) * u64::from(partials.splits);
    Call { variant, launches: vec![launch], flops, bytes: read + written }
}

/// The same in f64: `partials [splits][rows][columns]`, `bias [columns]` in physical order, the others as
/// [`Matrix::reference`] takes them.
pub fn reference(
    config: &Matrix,
    partials: Partials,
    sums: &[f64],
    bias: &[f64],
    row_bias: &[f64],
    residual: &[f64],
) -> Vec<f64> {
    let (rows, columns) = (partials.rows as usize, partials.columns as usize);
    let outputs = config.outputs as usize;
    let mut out = Vec::new();
    for row in 0..config.rows() as usize {
        for n in 0..outputs {
            let panel = PANEL as usize;
            let physical = n / panel * panel * config.halves() as usize + n % panel;
            let sum = |column: usize| {
                let parts = (0..partials.splits as usize).map(|s| sums[(s * rows + row) * columns + column]);
                parts.sum::<f64>() + if config.bias { bias[column] } else { 0.0 }
            };
            let mut value = sum(physical);
            if let Some(slice) = config.row_bias {
                let picture = row / (config.output[0] * config.output[1]) as usize;
                value += row_bias[picture * slice.channels as usize + slice.first as usize + n];
            }
            value = if config.gated {
                value * config.gate().apply(sum(physical + panel))
            } else {
                config.activation.apply(value)
            };
            value *= f64::from(config.scale);
            out.push(value + if config.residual { residual[row * outputs + n] } else { 0.0 });
        }
    }
    out
}
