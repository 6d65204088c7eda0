//! What the kernels for CPU adapters share.
//!
//! `*_lanes` read storage buffers, `*_texels` textures; both go on with `*_rows`. Where subgroups have eight lanes, each
//! lane fetches the vectors of its own rows and the others see them by broadcast, which costs one instruction a number
//! instead of a load.

use super::{Limits, Variant};

/// Lanes of a workgroup and of a subgroup.
pub const LANES: u32 = 8;

/// Whether lanes can show each other what they fetched.
pub fn broadcast(limits: &Limits) -> bool {
    limits.subgroup == LANES
}

/// Whether a stem is one of these kernels'.
pub fn is(stem: &str) -> bool {
    stem.ends_with("_lanes") || stem.ends_with("_texels")
}

/// The stem of the text that goes on behind a variant's own, and the function between the two, which makes the vectors
/// of all rows from those that the lanes fetched; `None` for other kernels.
pub fn rest(variant: &Variant) -> Option<(&'static str, String)> {
    let (rest, rows) = match variant.stem {
        "matrix_lanes" | "matrix_texels" => ("matrix_rows", "ROWS"),
        "attention_lanes" | "attention_texels" => ("attention_rows", "KEYS"),
        _ => return None,
    };
    let constant = |name: &str| variant.constants.iter().find(|(known, _)| *known == name).map_or(0, |found| found.1);
    let (rows, loads) = (constant(rows), constant("LOADS"));
    let part = |row: u32| match loads < rows {
        true => format!("subgroupBroadcast(loaded[{}], {}u)", row / LANES, row % LANES),
        false => format!("loaded[{row}]"),
    };
    let parts = (0..rows).map(part).collect::<Vec<_>>().join(", ");
    let spread = format!(
        "fn spread(loaded: array<vec4<f32>, {loads}>) -> array<vec4<f32>, {rows}> {{\n  \
         return array<vec4<f32>, {rows}>({parts});\n}}\n"
    );
    Some((rest, spread))
}
