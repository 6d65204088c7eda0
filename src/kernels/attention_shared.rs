//! `attention_shared`: attention with a workgroup's queries kept in workgroup memory, on GPUs without cooperative matrices.

use std::fmt;

use super::attention::Attention;
use super::{Enable, Limits, Variant, shader_text, vector_bytes};
use crate::tensor::DType;

/// Lanes that share a row of scores.
const ROW_LANES: u32 = 8;
/// Keys up to which all of them are taken in one pass where memory allows it.
const ONE_PASS: u32 = 96;

/// How `attention_shared` cuts the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Queries of an invocation, 1 to 4: a workgroup has 16 times as many.
    pub rows: u32,
    /// Keys taken at a time, in 32.
    pub quads: u32,
    /// Lanes of a subgroup, at least 8, whose operations find a row's maxima and sums; 0 to do without.
    pub subgroup: u32,
    /// Whether the shader has halves.
    pub f16: bool,
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shared {}x{}", self.queries(), 32 * self.quads)?;
        let parts = [(self.subgroup != 0, " subgroups"), (self.f16, " f16")];
        parts.iter().filter(|(has, _)| *has).try_for_each(|(_, word)| f.write_str(word))
    }
}

impl Shared {
    /// Queries of a workgroup.
    pub fn queries(&self) -> u32 {
        16 * self.rows
    }

    /// Bytes of workgroup memory for heads of `width` channels stored as `dtype`; the same sums as in the shader.
    fn memory(&self, width: u32, dtype: DType) -> u32 {
        let staged = width / 4 * (self.queries() + 32 * self.quads) * vector_bytes(dtype) as u32;
        let rows = if self.subgroup == 0 { 128 * 16 } else { 0 };
        staged + 16 * ROW_LANES * self.quads * self.queries() + rows
    }

    /// The layouts that may run `config` within `limits`, the best guess first; none where workgroup memory is short.
    pub fn plans(config: &Attention, limits: &Limits) -> Vec<Self> {
        let f16 = limits.f16 && config.dtype == DType::F16;
        let subgroup = if limits.subgroup >= ROW_LANES && limits.subgroup <= 128 { limits.subgroup } else { 0 };
        let once = config.keys.div_ceil(32).max(1);
        let quads = if config.keys <= ONE_PASS && once > 1 { vec![once, 1] } else { vec![1] };
        let mut plans = Vec::new();
        for quads in quads {
            // Scores and sums of more rows would not fit into registers.
            let most = if quads > 1 || config.width > 128 { 2 } else { 4 };
            for rows in [4, 2, 1].into_iter().filter(|rows| *rows <= most) {
                let plan = Self { rows, quads, subgroup, f16 };
                if plan.memory(config.width, config.dtype) <= limits.workgroup_memory && config.width <= 256 {
                    plans.push(plan);
                }
            }
        }
        plans.truncate(3);
        if subgroup != 0 {
            let plain = plans.iter().map(|plan| Self { subgroup: 0, ..*plan });
            let plain = plain.filter(|plan| plan.memory(config.width, config.dtype) <= limits.workgroup_memory);
            plans.extend(plain.take(1).collect::<Vec<_>>());
        }
        plans
    }

    /// The shader for heads of `width` channels.
    pub fn variant(&self, width: u32, dtype: DType) -> Variant {
        let mut enables = Vec::new();
        if self.f16 {
            enables.push(Enable::F16);
        }
        if self.subgroup != 0 {
            enables.push(Enable::Subgroups);
        }
        let vectors = width / 4;
        let constants = vec![
            ("D4", vectors),
            ("VECTORS", vectors.div_ceil(ROW_LANES)),
            ("ROWS", self.rows),
            ("QUADS", self.quads),
            ("SUBGROUP", self.subgroup),
        ];
        Variant { stem: "attention_shared", enables, constants, types: vec![("In", dtype), ("Out", dtype)] }
    }
}

/// Maxima and sums over the eight lanes of a row within a subgroup; invocations are numbered so that they are in one.
const SUBGROUPS: &str = "\
struct Who {
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32,
}
fn place(who: Who) -> u32 { return who.subgroup * SUBGROUP + who.lane; }
fn row_maxima(mine: vec4<f32>, index: u32) -> vec4<f32> {
  let pair = max(mine, subgroupShuffleXor(mine, 1u));
  let quad = max(pair, subgroupShuffleXor(pair, 2u));
  return max(quad, subgroupShuffleXor(quad, 4u));
}
fn row_totals(mine: vec4<f32>, index: u32) -> vec4<f32> {
  let pair = mine + subgroupShuffleXor(mine, 1u);
  let quad = pair + subgroupShuffleXor(pair, 2u);
  return quad + subgroupShuffleXor(quad, 4u);
}
";

/// The same through workgroup memory. A barrier of the caller parts one exchange from the next.
const MEMORY: &str = "\
struct Who {
  @builtin(local_invocation_index) index: u32,
}
var<workgroup> exchanged: array<vec4<f32>, 128>;
fn place(who: Who) -> u32 { return who.index; }
fn row_maxima(mine: vec4<f32>, index: u32) -> vec4<f32> {
  exchanged[index] = mine;
  workgroupBarrier();
  var most = mine;
  for (var i = 0u; i < 8u; i++) {
    most = max(most, exchanged[(index & 120u) + i]);
  }
  return most;
}
fn row_totals(mine: vec4<f32>, index: u32) -> vec4<f32> {
  exchanged[index] = mine;
  workgroupBarrier();
  var sum = vec4<f32>();
  for (var i = 0u; i < 8u; i++) {
    sum += exchanged[(index & 120u) + i];
  }
  return sum;
}
";

/// What follows a variant's constants.
pub(super) fn text(variant: &Variant) -> String {
    let exchange = if variant.enables.contains(&Enable::Subgroups) { SUBGROUPS } else { MEMORY };
    [exchange, shader_text(variant.stem)].concat()
}
