//! What the shader tests share: the kinds of adapters that variants are made for, and naga's validator and writers.

use naga::Module;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use scumble::kernels::{Enable, KernelSet, Limits, Variant};

/// One of each kind of adapter, as far as kernels tell them apart.
pub fn adapters() -> Vec<Limits> {
    let plain = Limits::default();
    let lanes = Limits { kernels: KernelSet::Lanes, ..plain };
    let modern = Limits { f16: true, subgroup: 32, workgroup_memory: 49152, invocations: 1024, ..plain };
    let cooperative = Limits { kernels: KernelSet::Cooperative, cooperative: 16, ..modern };
    vec![
        plain,
        lanes,
        Limits { subgroup: 8, ..lanes },
        Limits { subgroup: 8, textures: false, ..lanes },
        Limits { textures: false, ..lanes },
        modern,
        cooperative,
        Limits { cooperative: 8, workgroup_memory: 32768, ..cooperative },
        Limits { cooperative: 8, subgroup: 8, workgroup_memory: 32768, ..cooperative },
    ]
}

/// Parses and validates a variant with no more capabilities than it enables.
pub fn parse(variant: &Variant) -> (Module, ModuleInfo) {
    let source = variant.source();
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    // unpack2x16float, which naga counts as a capability, is part of WebGPU without any feature.
    let capabilities = variant.enables.iter().fold(Capabilities::SHADER_FLOAT16_IN_FLOAT32, |all, enable| {
        all | match enable {
            Enable::F16 => Capabilities::SHADER_FLOAT16,
            Enable::Subgroups => Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER,
            Enable::CooperativeMatrix => Capabilities::COOPERATIVE_MATRIX,
        }
    });
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    (module, info)
}

/// Writes a variant for every backend that can express it: DX12 has no cooperative matrices; Metal has those of size 8,
/// which naga writes rightly over scalars alone.
pub fn write_everywhere(variant: &Variant, module: &Module, info: &ModuleInfo) {
    spv::write_vec(module, info, &spv::Options { lang_version: (1, 3), ..spv::Options::default() }, None)
        .unwrap_or_else(|e| panic!("{variant:?}: SPIR-V: {e}"));
    let cooperative = variant.enables.contains(&Enable::CooperativeMatrix);
    let has = |constant: (&'static str, u32)| variant.constants.contains(&constant);
    if !cooperative || has(("SIZE", 8)) && !has(("VECTORS", 1)) && !has(("CELLS", 1)) {
        let metal = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
        msl::write_string(module, info, &metal, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{variant:?}: MSL: {e}"));
    }
    if !cooperative {
        let model = if variant.enables.is_empty() { hlsl::ShaderModel::V5_1 } else { hlsl::ShaderModel::V6_2 };
        let options = hlsl::Options { shader_model: model, ..hlsl::Options::default() };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
            .write(module, info, None)
            .unwrap_or_else(|e| panic!("{variant:?}: HLSL: {e}"));
    }
}
