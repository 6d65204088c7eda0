//! Kernels: one stem names a shader (`shaders/<stem>.wgsl`), a file here, its label, its cases and its bench row.
//!
//! A file here is pure arithmetic: it turns a configuration and shapes into a [`Call`] (shader variant, parameters,
//! workgroups, bound ranges) and knows the same formula in f64 for tests. It needs no GPU.
//!
//! The memory layout that all kernels share: activations are channels-last, and the channel axis is padded with zeros
//! to a multiple of four, so that a row of C channels is `C4 = ceil(C / 4)` vectors of four. A vector is `vec4<f32>`,
//! or four halves in a `vec2<u32>`, which needs no shader feature.

use crate::tensor::DType;

pub mod attention;
pub mod attention_cache;
pub mod attention_coop;
pub mod attention_lanes;
pub mod attention_shared;
pub mod band_norm;
pub mod bands;
pub mod cases;
pub mod concat;
pub mod conv2d;
pub mod dynamic_threshold;
pub mod elementwise;
pub mod embed;
pub mod group_norm;
pub mod guidance_rescale;
pub mod lanes;
pub mod layer_norm;
pub mod matmul;
pub mod matrix;
pub mod matrix_lanes;
pub mod matrix_reduce;
pub mod matrix_tiles;
pub mod matrix_vector;
pub mod pixels;
pub mod pool;
pub mod position_bias;
pub mod put_row;
pub mod resample;
pub mod resampling;
pub mod rms_norm;
pub mod roof_coop;
pub mod roof_copy;
pub mod roof_fma;
pub mod roof_half;
pub mod sample_token;
pub mod scheduler_step;
pub mod sinusoid;
pub mod template;
pub mod tuning;

/// Invocations of a workgroup in the kernels that take one invocation a vector.
pub const LANES: u64 = 64;
/// Vectors that a workgroup takes in the kernels whose invocations take several each.
pub const BATCH: u64 = 4 * LANES;

/// The text of `shaders/<stem>.wgsl`.
///
/// # Panics
/// When no shader has that stem, which is a fault of the kernel's file.
pub fn shader_text(stem: &str) -> &'static str {
    SHADERS
        .iter()
        .find(|(name, _)| *name == stem)
        .map(|(_, text)| *text)
        .unwrap_or_else(|| panic!("no shader {stem}.wgsl"))
}

macro_rules! shaders {
    ($($stem:literal),* $(,)?) => {
        /// Every shader: stem and text.
        pub const SHADERS: &[(&str, &str)] = &[$(($stem, include_str!(concat!("../../shaders/", $stem, ".wgsl")))),*];
    };
}

shaders![
    "attention_cache",
    "attention_coop",
    "attention_lanes",
    "attention_rows",
    "attention_shared",
    "attention_texels",
    "attention_tile",
    "band_norm",
    "band_rows",
    "band_stats",
    "concat",
    "dynamic_threshold",
    "elementwise",
    "embed",
    "group_norm",
    "group_norm_stats",
    "guidance_rescale",
    "layer_norm",
    "matrix_coop",
    "matrix_epilogue",
    "matrix_finish",
    "matrix_lanes",
    "matrix_reduce",
    "matrix_rows",
    "matrix_texels",
    "matrix_tile",
    "matrix_vector",
    "pair",
    "pixels",
    "pool",
    "resample",
    "prediction",
    "put_row",
    "position_bias",
    "rms_norm",
    "roof_coop",
    "roof_copy",
    "roof_fma",
    "rows_subgroup",
    "rows_workgroup",
    "roof_half",
    "sample_token",
    "scheduler_step",
    "sinusoid",
];

/// Inputs that a shader reads as textures of `vec4`, by stem: the kernels for CPU adapters (see `graph::staging`).
pub const STAGED: &[(&str, &[usize])] = &[("matrix_texels", &[0, 1, 2, 4, 5]), ("attention_texels", &[0, 1])];

/// An optional part of WGSL that a variant needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enable {
    /// Half-precision numbers.
    F16,
    /// Subgroup operations. naga 30 takes no directive for them (browsers demand one).
    Subgroups,
    /// Cooperative matrices.
    CooperativeMatrix,
}

impl Enable {
    /// The line that a shader must begin with.
    fn directive(self) -> Option<&'static str> {
        match self {
            Self::F16 => Some("enable f16;\n"),
            Self::Subgroups => None,
            Self::CooperativeMatrix => Some("enable wgpu_cooperative_matrix;\n"),
        }
    }
}

/// A shader's text behind a generated prelude of constants and element types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel's stem: `shaders/<stem>.wgsl`.
    pub stem: &'static str,
    /// Optional parts of WGSL that the text uses. With [`Enable::F16`] halves are `vec4<f16>`, else two packed `u32`.
    pub enables: Vec<Enable>,
    /// `const NAME: u32 = value;` lines of the prelude.
    pub constants: Vec<(&'static str, u32)>,
    /// Element types: `("In", F16)` defines `InVec`, `load_in` and `store_in`.
    pub types: Vec<(&'static str, DType)>,
}

impl Variant {
    /// The inputs that are read as textures.
    pub fn staged(&self) -> &'static [usize] {
        STAGED.iter().find(|(stem, _)| *stem == self.stem).map_or(&[], |(_, inputs)| inputs)
    }

    /// The whole WGSL source.
    pub fn source(&self) -> String {
        let mut text = String::with_capacity(8192);
        self.enables.iter().filter_map(|enable| enable.directive()).for_each(|line| text.push_str(line));
        for (name, value) in &self.constants {
            text.push_str(&format!("const {name}: u32 = {value}u;\n"));
        }
        for (name, dtype) in &self.types {
            let lower = name.to_lowercase();
            match dtype {
                DType::F32 => text.push_str(&format!(
                    "alias {name}Vec = vec4<f32>;\n\
                     fn load_{lower}(v: vec4<f32>) -> vec4<f32> {{ return v; }}\n\
                     fn store_{lower}(v: vec4<f32>) -> vec4<f32> {{ return v; }}\n"
                )),
                DType::F16 | DType::BF16 if self.enables.contains(&Enable::F16) => text.push_str(&format!(
                    "alias {name}Vec = vec4<f16>;\n\
                     fn load_{lower}(v: vec4<f16>) -> vec4<f32> {{ return vec4<f32>(v); }}\n\
                     fn store_{lower}(v: vec4<f32>) -> vec4<f16> {{ return vec4<f16>(v); }}\n"
                )),
                DType::F16 | DType::BF16 => text.push_str(&format!(
                    "alias {name}Vec = vec2<u32>;\n\
                     fn load_{lower}(v: vec2<u32>) -> vec4<f32> {{ \
                     return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y)); }}\n\
                     fn store_{lower}(v: vec4<f32>) -> vec2<u32> {{ \
                     return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }}\n"
                )),
            }
        }
        if self.stem.starts_with("matrix_") {
            text.push_str(shader_text("matrix_epilogue"));
            if !lanes::is(self.stem) && !self.constants.contains(&("PARTIAL", 1)) {
                text.push_str(shader_text("matrix_finish"));
            }
        }
        match self.stem {
            "attention_coop" => text.push_str(&attention_coop::prelude(self)),
            "attention_shared" => text.push_str(attention_shared::prelude(self)),
            "scheduler_step" | "dynamic_threshold" => text.push_str(shader_text("prediction")),
            "group_norm" | "group_norm_stats" => text.push_str(shader_text("pair")),
            "layer_norm" | "rms_norm" if self.enables.contains(&Enable::Subgroups) => {
                text.push_str(shader_text("rows_subgroup"))
            }
            "layer_norm" | "rms_norm" => text.push_str(shader_text("rows_workgroup")),
            _ => {}
        }
        text.push_str(&template::expand(shader_text(self.stem), &self.constants));
        if let Some((rest, spread)) = lanes::rest(self) {
            text.push_str(&spread);
            text.push_str(&template::expand(shader_text(rest), &self.constants));
        }
        text
    }
}

/// One dispatch of a call: parameters, grid and, per binding, the part of the buffer that is bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The bytes of the kernel's `Params`.
    pub params: Vec<u8>,
    /// Workgroups in x, y, z.
    pub workgroups: [u32; 3],
    /// Per storage binding, inputs first: byte offset and size, or the whole value.
    pub ranges: Vec<Option<(u64, u64)>>,
}

/// What a kernel asks of the executor: one shader variant, one or more dispatches of it, and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Which shader.
    pub variant: Variant,
    /// The dispatches, in order. More than one when a binding or a grid would pass the adapter's limits.
    pub launches: Vec<Launch>,
    /// Floating-point operations (2 per multiply-add).
    pub flops: u64,
    /// Bytes that must be moved at the least.
    pub bytes: u64,
}

/// Which family of matrix and attention kernels runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// Shaped for CPU adapters: one subgroup of eight lanes, operands in textures, no workgroup memory.
    Lanes,
    /// For any GPU: register tiles over workgroup memory.
    Tile,
    /// Cooperative matrices where both precision and adapter allow them, else as [`KernelSet::Tile`].
    Cooperative,
}

impl KernelSet {
    /// All, by the word that the environment uses.
    pub const NAMES: [(&'static str, Self); 3] =
        [("lanes", Self::Lanes), ("tile", Self::Tile), ("coop", Self::Cooperative)];

    /// The set called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, set)| *set)
    }

    /// Its word.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, set)| *set == self).map_or("", |(name, _)| *name)
    }
}

/// What an adapter allows, as far as building a graph must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest range of a buffer that one binding may cover, in bytes.
    pub binding: u64,
    /// Offsets of bindings are multiples of this, in bytes.
    pub alignment: u64,
    /// Workgroups per grid axis.
    pub workgroups: u32,
    /// Invocations of one workgroup.
    pub invocations: u32,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Which matrix and attention kernels run.
    pub kernels: KernelSet,
    /// Whether the kernels for CPU adapters read their operands as textures instead of storage buffers.
    pub textures: bool,
    /// Whether shaders may use `f16`.
    pub f16: bool,
    /// Invocations of every subgroup; 0 where there are no subgroup operations or their size varies.
    pub subgroup: u32,
    /// Rows, columns and depth of a cooperative matrix of f16 that is summed in f32: 16, 8, or 0 where there is none.
    pub cooperative: u32,
    /// Which candidates were measured to be the fastest, and which must not be used.
    pub tuning: tuning::Tuning,
}

impl Default for Limits {
    /// WebGPU's default limits and no optional feature.
    fn default() -> Self {
        Self {
            binding: 128 << 20,
            alignment: 256,
            workgroups: 65535,
            invocations: 256,
            workgroup_memory: 16384,
            kernels: KernelSet::Tile,
            textures: true,
            f16: false,
            subgroup: 0,
            cooperative: 0,
            tuning: tuning::Tuning::default(),
        }
    }
}

impl Limits {
    /// Whether the kernels for CPU adapters run.
    pub fn lanes(&self) -> bool {
        self.kernels == KernelSet::Lanes
    }
}

/// Vectors of four that `channels` values take.
pub fn vectors(channels: u32) -> u32 {
    channels.div_ceil(4)
}

/// Bytes of one vector of four.
pub fn vector_bytes(dtype: DType) -> u64 {
    4 * dtype.bytes() as u64
}

/// A grid of `count` workgroups folded from x into y.
pub fn fold(count: u64, limits: &Limits) -> [u32; 3] {
    let x = count.clamp(1, u64::from(limits.workgroups));
    [x as u32, count.div_ceil(x).max(1) as u32, 1]
}

/// Whether a folded grid of `count` workgroups is within the limits.
pub fn folds(count: u64, limits: &Limits) -> bool {
    count <= u64::from(limits.workgroups) * u64::from(limits.workgroups)
}

/// A call of one launch that binds every value whole.
pub fn whole(variant: Variant, params: &impl bytemuck::Pod, workgroups: [u32; 3], bindings: usize) -> Call {
    let params = bytemuck::bytes_of(params).to_vec();
    let launch = Launch { params, workgroups, ranges: vec![None; bindings] };
    Call { variant, launches: vec![launch], flops: 0, bytes: 0 }
}
