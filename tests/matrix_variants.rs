//! Every variant of the matrix kernels through naga: valid, within the adapter's workgroup memory, and expressible for
//! Vulkan, Metal and DX12 as far as these have what it uses.

mod backends;

use std::collections::HashSet;

use scumble::kernels::elementwise::Activation;
use scumble::kernels::matrix::{self, Matrix, Slice};
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
        second: 0,
        outputs: 320,
        kernel: [3, 3],
        stride: 1,
        padding: [1, 1],
        upsample: false,
        activation: Activation::None,
        scale: 1.0,
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
        for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu, Activation::LeakyRelu] {
            all.push(Matrix { activation, types, ..plain });
        }
        all.push(Matrix { gated: true, types, ..plain });
        all.push(Matrix { row_bias: Some(Slice { channels: 320, first: 0 }), types, ..plain });
        all.push(Matrix { kernel: [1, 1], padding: [0, 0], second: 640, types, ..plain });
        all.push(Matrix { second: 96, scale: 0.2, residual: true, types, ..plain });
        all.push(Matrix { residual: true, bias: false, types, ..plain });
        all.push(Matrix { batch: 32, types, ..plain });
    }
    all
}

/// Checks one variant, whose uniform takes the host's parameters.
fn check(variant: &Variant, limits: &Limits) {
    let (module, info) = parse(variant);
    let members = module.types.iter().find_map(|(_, ty)| match &ty.inner {
        naga::TypeInner::Struct { members, span } if ty.name.as_deref() == Some("Params") => {
            Some((members.clone(), *span))
        }
        _ => None,
    });
    let (members, span) = members.expect("a shader has Params");
    assert!(
        span as usize <= size_of::<matrix::Params>(),
        "{variant:?}: the shader's Params are larger than the host's"
    );
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
        let mut seen = HashSet::new();
        for case in matrices() {
            for candidate in 0..case.candidates(&limits).len() {
                let run = case.call_with(candidate, &limits).expect("the case fits");
                for call in [Some(&run.call), run.reduce.as_ref().map(|(_, call)| call)].into_iter().flatten() {
                    if seen.insert(call.variant.clone()) {
                        check(&call.variant, &limits);
                    }
                }
            }
        }
        let coop = seen.iter().filter(|variant| variant.stem == "matrix_coop").count();
        assert!(limits.cooperative == 0 || coop > 20, "only {coop} variants of matrix_coop for {limits:?}");
    }
}
