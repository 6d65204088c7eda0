//! Finding and opening adapters.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::kernels::KernelSet;

/// How to choose and open an adapter.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// A part of the adapter's name (any case) or its index in [`adapters`]; the fastest kind if absent.
    pub adapter: Option<String>,
    /// Opens the device with WebGPU's default limits and no optional feature, as a browser would give.
    pub webgpu_defaults: bool,
    /// Keeps bounds checks, loop bounds and workgroup clearing in the shaders.
    pub checked: bool,
    /// Binds at most this many bytes at once, as a smaller adapter would make it necessary.
    pub max_binding: Option<u64>,
    /// Holds at most this many bytes, as an adapter with less memory would make it necessary.
    pub memory: Option<u64>,
    /// Which matrix and attention kernels run; those that suit the adapter if absent.
    pub kernels: Option<KernelSet>,
    /// Where compiled pipelines are kept between runs. Nothing is written to disk without it.
    pub cache_dir: Option<PathBuf>,
}

impl GpuOptions {
    /// The developer switches of the environment: `SCUMBLE_WEBGPU_DEFAULTS=1`, `SCUMBLE_CHECKED=1`,
    /// `SCUMBLE_KERNELS=lanes|tile|coop`, `SCUMBLE_MAX_BINDING=BYTES` and `SCUMBLE_MEMORY_BUDGET=BYTES`.
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| value != "0" && !value.is_empty());
        Self {
            adapter: None,
            webgpu_defaults: set("SCUMBLE_WEBGPU_DEFAULTS"),
            checked: set("SCUMBLE_CHECKED"),
            max_binding: std::env::var("SCUMBLE_MAX_BINDING").ok().and_then(|bytes| bytes.parse().ok()),
            memory: std::env::var("SCUMBLE_MEMORY_BUDGET").ok().and_then(|bytes| bytes.parse().ok()),
            kernels: std::env::var("SCUMBLE_KERNELS").ok().and_then(|name| KernelSet::named(&name)),
            cache_dir: None,
        }
    }
}

/// What `scumble info` tells of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// The driver's name for it.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Discrete, integrated, virtual, CPU.
    pub kind: String,
    /// Driver name and version.
    pub driver: String,
    /// Optional features that matter to compute, present or not.
    pub features: Vec<(&'static str, bool)>,
    /// Cooperative matrices: rows x columns x depth, the type of the factors and of the sum.
    pub cooperative: Vec<String>,
    /// Limits that matter to compute, in bytes or counts.
    pub limits: Vec<(&'static str, u64)>,
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = if cfg!(debug_assertions) { wgpu::InstanceFlags::DEBUG } else { wgpu::InstanceFlags::empty() };
    wgpu::Instance::new(descriptor)
}

fn enumerate() -> Vec<wgpu::Adapter> {
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()))
}

/// All adapters of this machine, in the order that `--adapter INDEX` counts.
pub fn adapters() -> Vec<AdapterSummary> {
    enumerate().iter().map(summary).collect()
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let features = adapter.features();
    let limits = adapter.limits();
    let sizes = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        adapter.cooperative_matrix_properties()
    } else {
        vec![]
    };
    let size = |found: &wgpu::CooperativeMatrixProperties| {
        let wgpu::CooperativeMatrixProperties { m_size, n_size, k_size, ab_type, cr_type, .. } = found;
        format!("{m_size}x{n_size}x{k_size} {ab_type:?} to {cr_type:?}").to_lowercase()
    };
    AdapterSummary {
        name: info.name,
        backend: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        features: vec![
            ("shader-f16", features.contains(wgpu::Features::SHADER_F16)),
            ("subgroups", features.contains(wgpu::Features::SUBGROUP)),
            ("timestamp-query", features.contains(wgpu::Features::TIMESTAMP_QUERY)),
            ("cooperative-matrix", features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)),
            ("pipeline-cache", features.contains(wgpu::Features::PIPELINE_CACHE)),
        ],
        cooperative: sizes.iter().map(size).collect(),
        limits: vec![
            ("max buffer size (bytes)", limits.max_buffer_size),
            ("max storage binding (bytes)", limits.max_storage_buffer_binding_size),
            ("workgroup memory (bytes)", u64::from(limits.max_compute_workgroup_storage_size)),
            ("max workgroup size", u64::from(limits.max_compute_invocations_per_workgroup)),
            ("storage buffers per stage", u64::from(limits.max_storage_buffers_per_shader_stage)),
            ("subgroup size, least", u64::from(info.subgroup_min_size)),
            ("subgroup size, most", u64::from(info.subgroup_max_size)),
        ],
    }
}

/// Optional features that kernels or the bench use where an adapter has them.
const WANTED: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS)
    .union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES)
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::SUBGROUP_BARRIER);

/// The release of Mesa from which on its software driver reads neighbouring elements of a storage buffer with one
/// instruction; 25.0 reads them lane by lane, four times slower than texels.
const MESA_VECTORS: u32 = 26;

/// Whether a CPU adapter's storage buffers are as fast as its textures.
pub(super) fn reads_buffers_in_vectors(info: &wgpu::AdapterInfo) -> bool {
    let release = info.driver_info.split("Mesa ").nth(1).and_then(|rest| rest.split(['.', '-', ' ']).next());
    release.and_then(|release| release.parse::<u32>().ok()).is_some_and(|release| release >= MESA_VECTORS)
}

/// The size of the square matrices of f16 that an adapter multiplies and sums in f32: 16, 8 or 0.
fn cooperative_size(adapter: &wgpu::Adapter) -> u32 {
    let needs = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP
        | wgpu::Features::SUBGROUP_BARRIER;
    if !adapter.features().contains(needs) {
        return 0;
    }
    let sizes = adapter.cooperative_matrix_properties();
    let square = |size: u32| {
        sizes.iter().any(|found| {
            [found.m_size, found.n_size, found.k_size] == [size; 3]
                && found.ab_type == wgpu::CooperativeScalarType::F16
                && found.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(|size| square(*size)).unwrap_or(0)
}

/// The same for a device that was opened on the adapter: 0 if it has not got the feature.
pub(super) fn cooperative(adapter: &wgpu::Adapter, device: &wgpu::Device) -> u32 {
    let has = device.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    if has { cooperative_size(adapter) } else { 0 }
}

/// Discrete before integrated before virtual before software.
fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

pub(super) fn choose(options: &GpuOptions) -> Result<(wgpu::Adapter, wgpu::AdapterInfo)> {
    let found = enumerate();
    if found.is_empty() {
        return Err(Error::new("no GPU adapter")
            .expected("a Vulkan, Metal or DX12 driver")
            .found("none")
            .hint("installing your GPU's Vulkan driver, or the software one (Debian and Ubuntu: apt-get install mesa-vulkan-drivers)"));
    }
    let list = || {
        let names = found.iter().enumerate();
        names.map(|(index, adapter)| format!("{index} {}", adapter.get_info().name)).collect::<Vec<_>>().join(", ")
    };
    let chosen = match &options.adapter {
        None => found.iter().min_by_key(|adapter| rank(&adapter.get_info())),
        Some(wanted) => match wanted.parse::<usize>() {
            Ok(index) => found.get(index),
            Err(_) => {
                let wanted = wanted.to_lowercase();
                found.iter().find(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
            }
        },
    };
    let Some(adapter) = chosen else {
        let wanted = options.adapter.as_deref().unwrap_or_default();
        return Err(Error::usage("no such adapter").at("--adapter").expected(list()).found(wanted));
    };
    Ok((adapter.clone(), adapter.get_info()))
}

pub(super) fn open(
    adapter: &wgpu::Adapter,
    info: &wgpu::AdapterInfo,
    options: &GpuOptions,
) -> Result<(wgpu::Device, wgpu::Queue)> {
    let floor = wgpu::Limits::default();
    let limits = if options.webgpu_defaults { floor.clone() } else { adapter.limits() };
    let supported = adapter.limits();
    let needs = [
        (
            "storage buffers per stage",
            floor.max_storage_buffers_per_shader_stage,
            supported.max_storage_buffers_per_shader_stage,
        ),
        (
            "workgroup size",
            floor.max_compute_invocations_per_workgroup,
            supported.max_compute_invocations_per_workgroup,
        ),
        ("workgroup memory", floor.max_compute_workgroup_storage_size, supported.max_compute_workgroup_storage_size),
    ];
    for (what, least, has) in needs {
        if has < least {
            return Err(Error::new("the adapter is too small")
                .at(format!("{}: {what}", info.name))
                .expected(format!("at least {least}"))
                .found(has)
                .hint("another --adapter"));
        }
    }
    let mut features = wgpu::Features::empty();
    if !options.webgpu_defaults {
        features |= adapter.features() & WANTED;
        if cooperative_size(adapter) > 0 {
            features |= adapter.features() & wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
    }
    // SAFETY: cooperative matrices are the only experimental feature that is asked for; a variant that uses them runs
    // only with shapes that the adapter lists, and after its numbers were compared with the reference.
    let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("scumble"),
        required_features: features,
        required_limits: limits,
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        experimental_features,
        ..Default::default()
    };
    pollster::block_on(adapter.request_device(&descriptor))
        .map_err(|error| Error::new("opening the adapter").at(&info.name).found(error).hint("another --adapter"))
}
