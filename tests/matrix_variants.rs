//! Every variant of the matrix and attention kernels through naga: valid, and expressible for Vulkan, Metal and DX12.

use std::collections::HashSet;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use scumble::kernels::attention::{self, Attention};
use scumble::kernels::elementwise::Activation;
use scumble::kernels::matrix::{self, Matrix, Slice};
use scumble::kernels::{KernelSet, Limits, Variant};
use scumble::tensor::DType;

const TYPES: [[DType; 3]; 3] = [[DType::F32; 3], [DType::F16; 3], [DType::F16, DType::F16, DType::F32]];

fn matrices() -> Vec<Matrix> {
    let plain = Matrix {
        batch: 2,
        input: [8, 8],
        output: [8, 8],
        inputs: 320,
        second: 0,
        outputs: 320,
        kernel: [3, 3],
        stride: 1,
        padding: [1, 1],
        upsample: false,
        activation: Activation::None,
        bias: true,
        row_bias: None,
        residual: false,
        gated: false,
        types: [DType::F32; 3],
    };
    let mut all = Vec::new();
    for types in TYPES {
        for outputs in [4, 64, 128, 320] {
            all.push(Matrix { outputs, types, ..plain });
        }
        for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            all.push(Matrix { activation, types, ..plain });
        }
        all.push(Matrix { gated: true, types, ..plain });
        all.push(Matrix { row_bias: Some(Slice { channels: 320, first: 0 }), types, ..plain });
        all.push(Matrix { kernel: [1, 1], padding: [0, 0], second: 640, types, ..plain });
        all.push(Matrix { residual: true, bias: false, types, ..plain });
        all.push(Matrix { batch: 32, types, ..plain });
    }
    all
}

fn attentions() -> Vec<Attention> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::F16] {
        for width in [4, 12, 24, 40, 64, 80, 128, 148, 160, 512] {
            all.push(Attention {
                batch: 1,
                queries: 64,
                keys: 77,
                heads: 2,
                width,
                scale: 1.0,
                causal: false,
                query_channels: 2 * width,
                key_channels: 4 * width,
                offsets: [0, 0, 2 * width],
                dtype,
            });
        }
    }
    all
}

/// Which limits a variant is held to, and which writers must express it.
#[derive(Clone, Copy)]
struct Target {
    capabilities: Capabilities,
    memory: u32,
    metal: bool,
    direct: bool,
}

/// WebGPU's defaults, on every backend.
const ANYWHERE: Target =
    Target { capabilities: Capabilities::SHADER_FLOAT16_IN_FLOAT32, memory: 16384, metal: true, direct: true };

/// What cooperative matrices of `size` may need: 16 x 16 ones are Vulkan's alone, and HLSL has none.
fn cooperative(size: u32) -> Target {
    let capabilities = Capabilities::SHADER_FLOAT16
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::SUBGROUP
        | Capabilities::SUBGROUP_BARRIER
        | Capabilities::COOPERATIVE_MATRIX;
    let memory = if size == 16 { 48 << 10 } else { 32 << 10 };
    Target { capabilities, memory, metal: size == 8, direct: false }
}

/// Checks one variant, whose uniform takes `params` bytes on the host.
fn check(variant: &Variant, params: usize, target: Target) {
    let source = variant.source();
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), target.capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    let members = module.types.iter().find_map(|(_, ty)| match &ty.inner {
        naga::TypeInner::Struct { members, span } if ty.name.as_deref() == Some("Params") => {
            Some((members.clone(), *span))
        }
        _ => None,
    });
    let (members, span) = members.expect("a shader has Params");
    assert!(span as usize <= params, "{variant:?}: the shader's Params are larger than the host's");
    assert!(
        members.iter().enumerate().all(|(i, member)| member.offset as usize == 4 * i),
        "{variant:?}: Params have holes"
    );
    let memory: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()))
        .sum();
    assert!(memory <= target.memory, "{variant:?}: {memory} bytes of workgroup memory");
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant:?}: SPIR-V: {e}"));
    if target.metal {
        let metal = msl::Options { lang_version: (2, 3), ..msl::Options::default() };
        msl::write_string(&module, &info, &metal, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{variant:?}: MSL: {e}"));
    }
    if target.direct {
        let (options, pipeline) = (hlsl::Options::default(), hlsl::PipelineOptions::default());
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{variant:?}: HLSL: {e}"));
    }
}

#[test]
fn every_variant_is_valid_everywhere() {
    for kernels in [KernelSet::Tile, KernelSet::Lanes] {
        let limits = Limits { kernels, ..Limits::default() };
        for case in matrices() {
            for candidate in 0..case.candidates(&limits).len() {
                let run = case.call_with(candidate, &limits).expect("the case fits WebGPU's limits");
                check(&run.call.variant, size_of::<matrix::Params>(), ANYWHERE);
            }
        }
        for case in attentions() {
            let call = attention::call(&case, &limits).expect("the case fits WebGPU's limits");
            check(&call.variant, size_of::<attention::Params>(), ANYWHERE);
        }
    }
}

/// An adapter with cooperative matrices: a desktop GPU with Vulkan (16), or one with Metal (8).
fn with_matrices(size: u32) -> Limits {
    Limits {
        kernels: KernelSet::Cooperative,
        f16: true,
        subgroup: if size == 16 { 32 } else { 0 },
        cooperative: size,
        workgroup_memory: cooperative(size).memory,
        invocations: 1024,
        ..Limits::default()
    }
}

#[test]
fn every_variant_with_cooperative_matrices_is_valid_where_there_are_any() {
    for size in [16, 8] {
        let limits = with_matrices(size);
        let mut seen = HashSet::new();
        for case in matrices() {
            for candidate in 0..case.candidates(&limits).len() {
                let run = case.call_with(candidate, &limits).expect("the case fits");
                let all = [Some(&run.call), run.reduce.as_ref().map(|(_, call)| call)];
                for call in all.into_iter().flatten() {
                    let here = if call.variant.stem == "matrix_coop" { cooperative(size) } else { ANYWHERE };
                    let here = Target { capabilities: cooperative(size).capabilities, ..here };
                    if seen.insert(call.variant.clone()) {
                        check(&call.variant, size_of::<matrix::Params>(), here);
                    }
                }
            }
        }
        let coop = seen.iter().filter(|variant| variant.stem == "matrix_coop").count();
        assert!(coop > 20, "only {coop} variants of matrix_coop for {size}");
    }
}

#[test]
fn both_shaders_of_a_kernel_read_the_same_parameters() {
    let fields = |stem: &str| -> Vec<String> {
        let text = scumble::kernels::shader_text(stem);
        let body = text.split("struct Params {").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
        body.lines()
            .filter_map(|line| line.split(',').next())
            .map(|field| field.trim().to_owned())
            .filter(|field| !field.is_empty())
            .collect()
    };
    assert_eq!(fields("attention_tile"), fields("attention_lanes"));
}
