//! A linear layer of very few rows: what a generator of tokens does for each of them. The time goes into reading the weight,
//! which the kernels with tiles of rows would multiply with rows that are not there.

use super::matrix::{Matrix, PANEL};
use super::{Call, Limits, Variant, whole};

/// Rows up to which this kernel runs.
pub const MOST_ROWS: u64 = 4;
/// Parts of the sum of a workgroup on a GPU.
const SLICES: u32 = 16;

/// Whether this kernel multiplies `product`.
pub fn takes(product: &Matrix) -> bool {
    product.kernel == [1, 1] && product.stride == 1 && !product.upsample && product.rows() <= MOST_ROWS
}

/// a, second, weight, bias, row bias, residual -> out. `None` for a product that it does not take or whose grid would be too
/// large.
pub fn call(product: &Matrix, limits: &Limits) -> Option<Call> {
    let groups = product.panels() / product.halves();
    if !takes(product) || groups > limits.workgroups {
        return None;
    }
    let memory = |slices: u32| slices * 8 * product.rows() as u32 * product.halves() * 16;
    let fits = |slices: &u32| 8 * slices <= limits.invocations && memory(*slices) <= limits.workgroup_memory;
    let slices = if limits.lanes() { 1 } else { [SLICES, 8, 4, 2].into_iter().find(fits).unwrap_or(1) };
    let [input, weight, output] = product.types;
    let variant = Variant {
        stem: "matrix_vector",
        enables: vec![],
        constants: vec![
            ("ACTIVATION", product.activation.code()),
            ("HALVES", product.halves()),
            ("ROWS", product.rows() as u32),
            ("SLICES", slices),
            ("SECOND", u32::from(product.second > 0)),
        ],
        types: vec![("In", input), ("Weight", weight), ("Out", output)],
    };
    let call = whole(variant, &product.params(), [groups, 1, 1], 7);
    let weights = u64::from(product.panels() * PANEL) * u64::from(product.depth4()) * 4 * weight.bytes() as u64;
    Some(Call { flops: product.flops(), bytes: weights, ..call })
}
