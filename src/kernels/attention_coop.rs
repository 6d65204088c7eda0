//! `attention_coop`: how an attention is laid out over cooperative matrices, and the text of its shader.
//!
//! Matrices live in named variables, because an array of them that a loop indexes may be put into memory; the shader's
//! text is therefore unrolled here. Weights and scores of a subgroup pass through its own part of workgroup memory,
//! because a cooperative matrix is opaque to WGSL.

use std::fmt;

use super::attention::Attention;
use super::{Enable, Limits, Variant, shader_text};
use crate::tensor::DType;

/// Widest head whose queries and sums fit into the registers of one subgroup.
const WIDEST: u32 = 160;
/// Registers of a lane that matrices may take of the 255 that GPUs have. CPU drivers, whose subgroups are as narrow as
/// their vectors, keep them in memory anyway.
const REGISTERS: u32 = 200;
/// At most so many are worth the time to compile and measure them.
const CANDIDATES: usize = 5;
/// Keys up to which all of them are taken in one pass.
const ONE_PASS: u32 = 96;

/// How `attention_coop` cuts the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows, columns and depth of a matrix: 16 or 8.
    pub size: u32,
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// Subgroups of a workgroup: 1 to 8.
    pub subgroups: u32,
    /// Blocks of `size` queries of a subgroup.
    pub blocks: u32,
    /// Keys taken at a time: a multiple of `size`.
    pub keys: u32,
    /// Whether barriers of subgroups guard what a subgroup alone uses, where all others wait for the whole workgroup.
    /// naga gives them no order of workgroup memory in SPIR-V, so they are right only where the driver keeps it.
    pub narrow: bool,
    /// Whether workgroup memory is an array of vectors of four; else of scalars, which Metal demands.
    pub vectors: bool,
}

impl fmt::Display for Cooperative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, subgroups, keys, .. } = self;
        let barriers = if self.narrow { " narrow" } else { "" };
        write!(f, "coop{size} {}x{keys}/{subgroups}{barriers}", self.queries())
    }
}

impl Cooperative {
    /// Queries of a workgroup.
    pub fn queries(&self) -> u32 {
        self.subgroups * self.blocks * self.size
    }

    /// Matrices across a head of `width` channels.
    fn depth(&self, width: u32) -> u32 {
        width.div_ceil(self.size)
    }

    /// Bytes of workgroup memory for heads of `width` channels; the same sums as in the shader.
    pub fn memory(&self, width: u32) -> u32 {
        let line = self.depth(width) * self.size / 4 + 2;
        let halves = (2 * self.keys * line + self.queries() * (self.keys / 4 + 2)).max(self.queries() * line);
        8 * halves + 16 * self.queries() * (self.keys / 4 + 1) + 32
    }

    /// 32-bit registers of a lane that hold matrices for heads of `width` channels: queries in halves, sums and one
    /// block of scores in f32.
    fn registers(&self, width: u32) -> u32 {
        let elements = self.size * self.size / self.lanes;
        let depth = self.depth(width);
        self.blocks * (depth * elements / 2 + depth * elements + elements)
            + self.blocks * self.keys * self.size / self.lanes
    }

    /// Whether a subgroup's lanes can share the rows, and the whole is within `limits`.
    fn fits(&self, width: u32, limits: &Limits) -> bool {
        let rows = self.blocks * self.size;
        let shared = self.lanes.is_multiple_of(rows) && (self.keys / 4).is_multiple_of(self.lanes / rows);
        shared
            && self.subgroups * self.lanes <= limits.invocations
            && self.memory(width) <= limits.workgroup_memory
            && (self.lanes <= 8 || self.registers(width) <= REGISTERS)
    }

    /// The layouts that may run `config` within `limits`, the best guess first; none where its storage, its width or
    /// the adapter forbids it.
    pub fn plans(config: &Attention, limits: &Limits) -> Vec<Self> {
        let size = limits.cooperative;
        let able = limits.f16 && limits.subgroup >= size && size != 0;
        if !able || config.dtype != DType::F16 || config.width > WIDEST || config.scale <= 0.0 {
            return Vec::new();
        }
        let most = limits.subgroup / size;
        let once = config.keys.next_multiple_of(size).max(size);
        let layouts = if config.keys <= ONE_PASS {
            [(4, 1, once), (4, most, once), (2, most, once), (4, most, 32), (2, 1, once), (2, 1, 32), (1, 1, 32)]
        } else {
            [(4, most, 32), (4, 1, 64), (2, most, 64), (4, 1, 32), (8, 1, 32), (2, 1, 32), (1, 1, 32)]
        };
        let mut plans = Vec::new();
        for (subgroups, blocks, keys) in layouts {
            let (lanes, vectors) = (limits.subgroup, size == 16);
            let plan = Self { size, lanes, subgroups, blocks, keys, narrow: false, vectors };
            if plan.fits(config.width, limits) && !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        if let Some(first) = plans.first().copied() {
            plans.insert(1, Self { narrow: true, ..first });
        }
        plans.truncate(CANDIDATES);
        plans
    }

    /// The shader for heads of `width` channels.
    pub fn variant(&self, width: u32) -> Variant {
        let padded = self.depth(width) * self.size / 4;
        let parts = self.lanes / (self.blocks * self.size);
        let constants = vec![
            ("SIZE", self.size),
            ("SUBGROUP", self.lanes),
            ("SUBGROUPS", self.subgroups),
            ("BLOCKS", self.blocks),
            ("DEPTH", self.depth(width)),
            ("KEYS", self.keys),
            ("D4", width / 4),
            ("NARROW", u32::from(self.narrow)),
            ("CELLS", if self.vectors { 1 } else { 4 }),
            ("GROUPS", self.keys / 4 / parts),
            ("STAGES", (self.keys * padded).div_ceil(self.subgroups * self.lanes)),
        ];
        Variant {
            stem: "attention_coop",
            enables: vec![Enable::F16, Enable::Subgroups, Enable::CooperativeMatrix],
            constants,
            types: vec![("In", DType::F16), ("Out", DType::F16)],
        }
    }
}

const NARROW: &str = "fn meet() { subgroupBarrier(); }\n";
const WIDE: &str = "fn meet() { workgroupBarrier(); }\n";

/// Workgroup memory as vectors of four.
const VECTORS: &str = "\
alias Half = vec4<f16>;
alias Float = vec4<f32>;
fn put(at: u32, value: vec4<f16>) { halves[at] = value; }
fn number(at: u32) -> vec4<f32> { return floats[at]; }
fn put_number(at: u32, value: vec4<f32>) { floats[at] = value; }
";

/// Workgroup memory as scalars.
const SCALARS: &str = "\
alias Half = f16;
alias Float = f32;
fn put(at: u32, value: vec4<f16>) {
  halves[4u * at] = value.x;
  halves[4u * at + 1u] = value.y;
  halves[4u * at + 2u] = value.z;
  halves[4u * at + 3u] = value.w;
}
fn number(at: u32) -> vec4<f32> {
  return vec4<f32>(floats[4u * at], floats[4u * at + 1u], floats[4u * at + 2u], floats[4u * at + 3u]);
}
fn put_number(at: u32, value: vec4<f32>) {
  floats[4u * at] = value.x;
  floats[4u * at + 1u] = value.y;
  floats[4u * at + 2u] = value.z;
  floats[4u * at + 3u] = value.w;
}
";

/// What follows a variant's constants: element types of workgroup memory and of matrices, then the unrolled shader.
pub(super) fn text(variant: &Variant) -> String {
    let constant = |name: &str| {
        let found = variant.constants.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{}.wgsl: no constant {name}", variant.stem)).1
    };
    let size = constant("SIZE");
    let mut text = String::from(if constant("CELLS") == 1 { VECTORS } else { SCALARS });
    text.push_str(if constant("NARROW") == 1 { NARROW } else { WIDE });
    for (role, scalar) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
        text.push_str(&format!("alias Matrix{role} = coop_mat{size}x{size}<{scalar}, {role}>;\n"));
    }
    let lines: Vec<String> = shader_text(variant.stem).lines().map(str::to_owned).collect();
    unroll(&lines, &constant, &mut text);
    text
}

/// Repeats the lines between `//@for i NAME` and `//@end` NAME times, `{i}` being the number of the round.
fn unroll(lines: &[String], constant: &impl Fn(&str) -> u32, text: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let Some((name, count)) = lines[at].trim().strip_prefix("//@for ").and_then(|head| head.split_once(' ')) else {
            text.push_str(&lines[at]);
            text.push('\n');
            at += 1;
            continue;
        };
        let mut open = 0;
        let length = lines[at..].iter().position(|line| {
            open += i32::from(line.trim().starts_with("//@for ")) - i32::from(line.trim() == "//@end");
            open == 0
        });
        let end = at + length.unwrap_or_else(|| panic!("no //@end for {}", lines[at]));
        for round in 0..constant(count) {
            let wanted = format!("{{{name}}}");
            let body: Vec<String> =
                lines[at + 1..end].iter().map(|line| line.replace(&wanted, &round.to_string())).collect();
            unroll(&body, constant, text);
        }
        at = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_nested() {
        let lines: Vec<String> =
            "a\n//@for i TWO\nb{i}\n//@for j TWO\nc{i}{j}\n//@end\n//@end\nd".lines().map(str::to_owned).collect();
        let mut text = String::new();
        unroll(&lines, &|_| 2, &mut text);
        assert_eq!(text, "a\nb0\nc00\nc01\nb1\nc10\nc11\nd\n");
    }
}
