//! Every variant of the matrix and attention kernels through naga: valid, and expressible for Vulkan, Metal and DX12.

mod backends;

use scumble::kernels::attention::{self, Attention};
use scumble::kernels::elementwise::Activation;
use scumble::kernels::matrix::{self, Matrix};
use scumble::kernels::{Limits, Variant};
use scumble::tensor::DType;

use backends::{adapters, parse, write_everywhere};

const TYPES: [[DType; 3]; 3] = [[DType::F32; 3], [DType::F16; 3], [DType::F16, DType::F16, DType::F32]];

fn matrices() -> Vec<Matrix> {
    let plain = Matrix {
        batch: 2,
        input: [8, 8],
        output: [8, 8],
        inputs: 320,
        outputs: 320,
        kernel: [3, 3],
        stride: 1,
        padding: [1, 1],
        upsample: false,
        activation: Activation::None,
        bias: true,
        row_bias: false,
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
        all.push(Matrix { row_bias: true, types, ..plain });
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

/// Checks one variant, whose uniform takes `params` bytes on the host.
fn check(variant: &Variant, params: usize, limits: &Limits) {
    let (module, info) = parse(variant);
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
    assert!(memory <= limits.workgroup_memory, "{variant:?}: {memory} bytes of workgroup memory");
    write_everywhere(variant, &module, &info);
}

#[test]
fn every_variant_is_valid_everywhere() {
    for limits in adapters() {
        for case in matrices() {
            let call = case.call(&limits).expect("the case fits WebGPU's limits");
            check(&call.variant, size_of::<matrix::Params>(), &limits);
        }
        for case in attentions() {
            let call = attention::call(&case, &limits).expect("the case fits WebGPU's limits");
            check(&call.variant, size_of::<attention::Params>(), &limits);
        }
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
    assert!(fields("matrix_tile").starts_with(&fields("matrix_lanes")));
    assert_eq!(fields("matrix_texels"), fields("matrix_lanes"));
    assert_eq!(fields("attention_tile"), fields("attention_lanes"));
    assert_eq!(fields("attention_texels"), fields("attention_lanes"));
}
