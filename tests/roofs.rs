//! The bench's roofs: shaders that only some adapters can run, and what is measured with them on this one.

use std::sync::Arc;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use scumble::bench::{Roofs, kernels};
use scumble::gpu::{Clock, Gpu, GpuOptions};
use scumble::graph::trial::Trial;
use scumble::kernels::roof_coop::{self, RoofCoop};
use scumble::kernels::roof_fma::RoofFma;
use scumble::kernels::{Limits, Variant, roof_half};
use scumble::tensor::DType;

/// Through the validator and the writers of SPIR-V and MSL, and of HLSL where `everywhere`.
fn check(variant: &Variant, everywhere: bool) {
    let source = variant.source();
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    let capabilities = Capabilities::SHADER_FLOAT16
        | Capabilities::SUBGROUP
        | Capabilities::SUBGROUP_BARRIER
        | Capabilities::COOPERATIVE_MATRIX;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant:?}: SPIR-V: {e}"));
    let metal = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
    if everywhere || variant.constants.contains(&("SIZE", 8)) {
        msl::write_string(&module, &info, &metal, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{variant:?}: MSL: {e}"));
    }
    if everywhere {
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..hlsl::Options::default() };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{variant:?}: HLSL: {e}"));
    }
}

#[test]
fn the_shaders_are_valid() {
    let limits = Limits { f16: true, ..Limits::default() };
    for chains in [2, 8] {
        check(&roof_half::call(RoofFma { count: 64, rounds: 16, chains }, &limits).variant, true);
    }
    // Metal multiplies 8 x 8 only, and naga's HLSL has no cooperative matrices.
    for (cooperative, subgroup) in [(16, 32), (16, 0), (16, 64), (8, 32), (8, 8)] {
        let limits = Limits { cooperative, subgroup, ..limits };
        let call = roof_coop::call(RoofCoop { groups: 3, rounds: 5 }, &limits);
        assert_eq!(call.flops, 2 * u64::from(cooperative).pow(3) * 3 * 5 * 4 * 8);
        check(&call.variant, false);
    }
}

/// Two products written out by hand.
#[test]
fn the_reference_multiplies() {
    // a: the identity, then twice its mirror image; b: the numbers 0, 1, 2, ...
    let size = 8;
    let square = size * size;
    let mut a = vec![0.0; 2 * square];
    for i in 0..size {
        a[i * size + i] = 1.0;
        a[square + i * size + (size - 1 - i)] = 2.0;
    }
    let b: Vec<f64> = (0..4 * square).map(|i| i as f64).collect();
    let config = RoofCoop { groups: 1, rounds: 3 };
    let twelve: Vec<f64> = b[2 * square..3 * square].iter().map(|v| v * 12.0).collect();
    assert_eq!(roof_coop::reference(config, size, 2, &a, &b), twelve);
    let mirrored = roof_coop::reference(config, size, 4 + 3, &a, &b);
    assert_eq!(mirrored[..size], b[3 * square + (size - 1) * size..].iter().map(|v| v * 24.0).collect::<Vec<_>>());
}

#[test]
fn this_adapters_roofs() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let roofs = Roofs::measure(&gpu).unwrap();
    for rate in [roofs.copy, roofs.kernel_copy, roofs.cache_copy, roofs.fma, roofs.launch_gap, roofs.round_trip] {
        assert!(rate > 0.0 && rate.is_finite(), "{roofs:?}");
    }
    assert!(roofs.copy >= roofs.kernel_copy);
    assert_eq!(roofs.cooperative.is_some(), gpu.limits().cooperative > 0);
    assert_eq!(roofs.half_fma.is_some(), gpu.limits().f16);
}

/// Every clock gives times of the same order; a device without timestamps gives the wall's.
#[test]
fn clocks_agree_and_are_told() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let cases = kernels::cases(Some("matmul"), Some(DType::F32));
    let case = cases.iter().find(|case| case.flops() > 50_000_000).unwrap();
    let trial = Trial::rotated(&gpu, case, &gpu.limits(), |_| 3).unwrap().unwrap();
    trial.prepare().unwrap();
    trial.run();
    trial.judge().unwrap();
    let executor = trial.executor();
    let mut clocks = vec![Clock::Wall];
    if gpu.clock() == Clock::Dispatches {
        clocks.extend([Clock::Passes, Clock::Dispatches]);
    }
    for clock in clocks {
        let together = executor.time_together(clock, 2).unwrap();
        let single = executor.time_run(clock).unwrap();
        let profile = executor.profile(clock).unwrap();
        assert_eq!((together.clock, single.clock, profile.clock), (clock, clock, clock));
        assert_eq!(profile.dispatches, 3 * trial.dispatches());
        assert!(profile.seconds.iter().all(|seconds| *seconds > 0.0), "{clock:?}: {profile:?}");
        for lap in [together, single] {
            // The device's time is part of the host's, but for the clocks' own errors.
            assert!(lap.seconds > 0.0 && lap.seconds <= 1.05 * lap.wall + 1e-3, "{clock:?}: {lap:?}");
        }
    }
    trial.judge().unwrap();
    let plain = Gpu::open(&GpuOptions { webgpu_defaults: true, ..GpuOptions::default() }).unwrap();
    assert_eq!(plain.clock(), Clock::Wall);
}
