//! Which tile a product takes on CPU adapters: `matrix_lanes` and `matrix_texels` with `matrix_rows` (see [`super::lanes`]).

use super::lanes::{LANES, broadcast};
use super::matrix::Matrix;
use super::{Enable, Limits, Variant};
use crate::tensor::DType;

/// Products from these sizes on are worth the longer compilation of a larger tile (0.1, 0.2 and 0.4 s).
const MEDIUM_FLOPS: u64 = 30_000_000;
const LARGE_FLOPS: u64 = 150_000_000;
/// Rows and panels of one workgroup's tile.
pub fn tile(product: &Matrix, limits: &Limits) -> (u32, u32) {
    let flops = product.flops();
    if broadcast(limits) {
        let rows = match flops {
            0..MEDIUM_FLOPS => 8,
            MEDIUM_FLOPS..LARGE_FLOPS => 16,
            LARGE_FLOPS.. => 32,
        };
        return (rows, product.panels().min(2));
    }
    let (rows, widths): (u32, &[u32]) = match flops {
        0..MEDIUM_FLOPS => (8, &[2, 1]),
        MEDIUM_FLOPS..LARGE_FLOPS => (8, &[5, 4, 2, 1]),
        LARGE_FLOPS.. => (16, &[5, 4, 2, 1]),
    };
    if product.gated {
        return (rows, widths[0] & !1);
    }
    let cost = |panels: u32| product.panels().div_ceil(panels) * (5 * (rows + 4 * panels) + rows * panels);
    let panels = widths.iter().copied().min_by_key(|panels| cost(*panels)).unwrap_or(1);
    (rows, panels)
}

/// The variant for a product.
pub fn variant(product: &Matrix, limits: &Limits) -> Variant {
    let (rows, panels) = tile(product, limits);
    let halves = 1 << u32::from(product.gated);
    let broadcast = broadcast(limits);
    let loads = if broadcast { rows / LANES } else { rows };
    let [input, weight, output] = product.types;
    let shapes =
        [("ROWS", rows), ("LOADS", loads), ("GROUPS", panels / halves), ("SECOND", u32::from(product.second > 0))];
    let constants = [("ACTIVATION", product.activation.code()), ("HALVES", halves)].into_iter().chain(shapes).collect();
    let enables = if broadcast { vec![Enable::Subgroups] } else { vec![] };
    if limits.textures {
        return Variant { stem: "matrix_texels", enables, constants, types: vec![("Out", output)] };
    }
    let types: Vec<(&'static str, DType)> = vec![("In", input), ("Weight", weight), ("Out", output)];
    Variant { stem: "matrix_lanes", enables, constants, types }
}
