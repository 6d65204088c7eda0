//! The matrix kernels for CPU adapters: which tile a product takes, and the part of their text that is generated.
//!
//! `matrix_lanes` reads storage buffers, `matrix_texels` textures; both go on with `matrix_rows`. Where subgroups have
//! eight lanes, each lane fetches the vectors of its own rows and the others see them by broadcast, which costs one
//! instruction a number instead of a load.

use super::matrix::Matrix;
use super::{Enable, Limits, Variant};
use crate::tensor::DType;

/// The two shaders.
pub const STEMS: [&str; 2] = ["matrix_lanes", "matrix_texels"];

/// Products from these sizes on are worth the longer compilation of a larger tile (0.1, 0.2 and 0.4 s).
const MEDIUM_FLOPS: u64 = 30_000_000;
const LARGE_FLOPS: u64 = 150_000_000;
/// Lanes of a workgroup and of a subgroup.
const LANES: u32 = 8;

/// Whether lanes can show each other what they fetched.
fn broadcasts(limits: &Limits) -> bool {
    limits.subgroup == LANES
}

/// Rows and panels of one workgroup's tile.
pub fn tile(product: &Matrix, limits: &Limits) -> (u32, u32) {
    let flops = product.flops();
    if broadcasts(limits) {
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
    let broadcast = broadcasts(limits);
    let loads = if broadcast { rows / LANES } else { rows };
    let [input, weight, output] = product.types;
    let shapes = [("ROWS", rows), ("LOADS", loads), ("GROUPS", panels / halves)];
    let constants = [("ACTIVATION", product.activation.code()), ("HALVES", halves)].into_iter().chain(shapes).collect();
    let enables = if broadcast { vec![Enable::Subgroups] } else { vec![] };
    if limits.textures {
        return Variant { stem: "matrix_texels", enables, constants, types: vec![("Out", output)] };
    }
    let types: Vec<(&'static str, DType)> = vec![("In", input), ("Weight", weight), ("Out", output)];
    Variant { stem: "matrix_lanes", enables, constants, types }
}

/// The function that makes the vectors of all rows from those that the lanes fetched.
pub fn spread(variant: &Variant) -> String {
    let constant = |name: &str| variant.constants.iter().find(|(known, _)| *known == name).map_or(0, |found| found.1);
    let (rows, loads) = (constant("ROWS"), constant("LOADS"));
    let parts: Vec<String> = (0..rows)
        .map(|row| match loads < rows {
            true => format!("subgroupBroadcast(loaded[{}], {}u)", row / LANES, row % LANES),
            false => format!("loaded[{row}]"),
        })
        .collect();
    format!(
        "fn spread(loaded: array<vec4<f32>, {loads}>) -> array<vec4<f32>, {rows}> {{\n  \
         return array<vec4<f32>, {rows}>({});\n}}\n",
        parts.join(", ")
    )
}
