//! Every plan of an attention for adapters of several kinds through naga: valid, within the adapter's workgroup memory,
//! and expressible where such an adapter is found.

mod backends;

use std::collections::HashSet;

use naga::AddressSpace;

use scumble::kernels::attention::{Attention, Bias, Params, Plan, call_with};
use scumble::kernels::{KernelSet, Limits, Variant};
use scumble::tensor::DType;

use backends::{parse, write_everywhere};

fn attentions() -> Vec<Attention> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::F16] {
        for width in [4, 12, 24, 40, 64, 80, 128, 148, 160, 512] {
            for keys in [1, 77, 4096] {
                all.push(Attention {
                    batch: 1,
                    queries: 64,
                    keys,
                    heads: 2,
                    width,
                    scale: 1.0,
                    causal: false,
                    query_channels: 2 * width,
                    key_channels: 4 * width,
                    offsets: [0, 0, 2 * width],
                    dtype,
                    bias: None,
                });
            }
        }
    }
    all
}

/// WebGPU's defaults, subgroups of some sizes, NVIDIA, AMD, Metal, and Mesa's software driver with matrices of 8.
fn adapters() -> Vec<Limits> {
    let plain = Limits::default();
    let half = Limits { f16: true, workgroup_memory: 32768, ..plain };
    let coop = |cooperative, subgroup, workgroup_memory| Limits {
        cooperative,
        subgroup,
        workgroup_memory,
        invocations: 1024,
        kernels: KernelSet::Cooperative,
        ..half
    };
    let mut all = backends::adapters();
    all.extend([plain, half]);
    all.extend([4, 8, 16, 32, 64].map(|subgroup| Limits { subgroup, ..plain }));
    all.extend([8, 32, 64].map(|subgroup| Limits { subgroup, ..half }));
    all.extend([coop(16, 32, 49152), coop(16, 64, 65536), coop(8, 32, 32768), coop(8, 8, 32768)]);
    all
}

fn check(variant: &Variant, limits: &Limits) {
    let (module, info) = parse(variant);
    let params = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).expect("Params").1;
    assert!(params.inner.size(module.to_ctx()) as usize <= size_of::<Params>(), "{variant:?}: Params");
    let shared = module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::WorkGroup);
    let memory: u32 = shared.map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx())).sum();
    assert!(memory <= limits.workgroup_memory, "{variant:?}: {memory} bytes of workgroup memory");
    let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
    assert!(invocations <= limits.invocations, "{variant:?}: {invocations} invocations");
    write_everywhere(variant, &module, &info);
}

#[test]
fn every_plan_is_valid() {
    let mut seen = HashSet::new();
    let biased = |case: Attention| {
        let own = Bias { batch: true, heads: true, queries: true };
        [case, Attention { bias: Some(own), ..case }]
    };
    for limits in adapters() {
        for case in attentions().into_iter().flat_map(biased) {
            let plans = case.candidates(&limits);
            assert!(!plans.is_empty() && plans.len() <= 16, "{case:?}: {} candidates", plans.len());
            for index in 0..plans.len() {
                let variant = call_with(&case, index, &limits).expect("the case fits the limits").variant;
                if seen.insert((variant.clone(), limits.workgroup_memory)) {
                    check(&variant, &limits);
                }
            }
        }
    }
}

/// Where matrices are, heads of the published models run on them.
#[test]
fn cooperative_matrices_come_first() {
    for limits in adapters().into_iter().filter(|limits| limits.cooperative != 0) {
        for case in attentions().into_iter().filter(|case| case.dtype == DType::F16 && case.width <= 160) {
            let first = case.candidates(&limits)[0];
            assert!(matches!(first, Plan::Cooperative(_)), "{case:?}: {first}");
        }
    }
}

/// What a driver allows and Metal does not: the same kernel over vectors of four in workgroup memory.
#[test]
fn matrices_over_vectors_are_valid() {
    for limits in adapters().into_iter().filter(|limits| limits.cooperative != 0) {
        for case in attentions() {
            for plan in case.candidates(&limits) {
                if let Plan::Cooperative(plan) = plan {
                    let plan =
                        Plan::Cooperative(scumble::kernels::attention_coop::Cooperative { vectors: true, ..plan });
                    check(&case.run_as(&plan, &limits).unwrap().variant, &limits);
                }
            }
        }
    }
}
