//! The device: choosing an adapter, compiling shader variants, allocating, submitting, reading back.
//!
//! Besides `graph::executor` this is the only place that names wgpu.

mod adapter;
pub(crate) mod disk;
mod memory;
mod pipeline_cache;
mod profile;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::kernels::tuning::Tuning;
use crate::kernels::{KernelSet, Limits, Variant};

pub use adapter::{AdapterSummary, GpuOptions, adapters};
pub use memory::Memory;
pub(crate) use memory::{Buffer, Charge, Texture};
use pipeline_cache::PipelineCache;
pub use profile::Clock;
pub(crate) use profile::Timestamps;

/// wgpu's version in Cargo.lock: its shader writers are part of what a cached measurement depends on.
const WGPU_VERSION: &str = "30.0.1";

/// A compiled shader variant with the layout of its bindings.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// A pipeline that is being compiled, or was, or the reason why it cannot be.
type Compiled = Arc<OnceLock<Result<Arc<Pipeline>>>>;

/// A device with its queue and its compiled pipelines.
#[derive(Debug)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: Limits,
    tuning: Mutex<Tuning>,
    checked: bool,
    cache: Option<PipelineCache>,
    faults: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<(Variant, usize, usize), Compiled>>,
    ledger: memory::Ledger,
    budget: u64,
}

impl Gpu {
    /// Opens the adapter that `options` names, or the best one. Blocks until the device is there.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        let (adapter, info) = adapter::choose(options)?;
        let (device, queue) = adapter::open(&adapter, &info, options)?;
        let mut gpu = Self::from_device(device, queue, info, options.checked);
        gpu.watch();
        gpu.cache = options.cache_dir.as_deref().and_then(|dir| PipelineCache::open(&gpu.device, &gpu.info, dir));
        gpu.limits.binding = options.max_binding.unwrap_or(u64::MAX).min(gpu.limits.binding);
        gpu.budget = options.memory.unwrap_or(u64::MAX);
        gpu.limits.cooperative = adapter::cooperative(&adapter, &gpu.device);
        if gpu.limits.cooperative > 0 && gpu.info.backend == wgpu::Backend::Metal {
            // wgpu reports a range; every GPU with such matrices runs 32 lanes.
            gpu.limits.subgroup = 32;
        }
        gpu.limits.kernels = options.kernels.unwrap_or(match (gpu.is_cpu(), gpu.limits.cooperative) {
            (true, _) => KernelSet::Lanes,
            (false, 0) => KernelSet::Tile,
            (false, _) => KernelSet::Cooperative,
        });
        Ok(gpu)
    }

    /// Uses the device of a host application, which keeps the handlers of its errors and of its loss. `checked` keeps
    /// wgpu's run-time checks in the shaders.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue, info: wgpu::AdapterInfo, checked: bool) -> Self {
        let (limits, features) = (device.limits(), device.features());
        let cpu = info.device_type == wgpu::DeviceType::Cpu;
        let same = info.subgroup_min_size == info.subgroup_max_size && features.contains(wgpu::Features::SUBGROUP);
        let limits = Limits {
            // What one texture of WebGPU's default size holds in halves, because CPU adapters stage operands in textures.
            binding: limits.max_storage_buffer_binding_size.min(if cpu { 128 << 20 } else { u64::MAX }),
            alignment: u64::from(limits.min_storage_buffer_offset_alignment),
            workgroups: limits.max_compute_workgroups_per_dimension,
            invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            kernels: if cpu { KernelSet::Lanes } else { KernelSet::Tile },
            textures: !adapter::reads_buffers_in_vectors(&info),
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroup: if same { info.subgroup_max_size } else { 0 },
            // Only an adapter tells which sizes of matrices a device multiplies.
            cooperative: 0,
            tuning: Tuning::default(),
        };
        let tuning = Mutex::default();
        let (faults, pipelines) = (Arc::default(), Mutex::default());
        let (cache, ledger, budget) = (None, memory::Ledger::default(), u64::MAX);
        Self { device, queue, info, limits, tuning, checked, cache, faults, pipelines, ledger, budget }
    }

    /// Notes the device's errors and its loss for [`Gpu::check`].
    fn watch(&self) {
        let sink = Arc::clone(&self.faults);
        self.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        }));
        let sink = Arc::clone(&self.faults);
        self.device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                let text = format!("the device was lost: {message}");
                sink.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            }
        });
    }

    /// The adapter's name as its driver gives it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// What the adapter and its driver call themselves, for a report.
    pub fn describe(&self) -> String {
        let info = &self.info;
        format!("{} ({:?}, {} {})", info.name, info.backend, info.driver, info.driver_info).replace(" )", ")")
    }

    /// Whether this adapter is a software driver on the CPU.
    pub fn is_cpu(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// What building a graph must know.
    pub fn limits(&self) -> Limits {
        Limits { tuning: *self.tuning.lock().unwrap_or_else(PoisonError::into_inner), ..self.limits }
    }

    /// Which candidates run in graphs that are built from now on.
    pub fn set_tuning(&self, tuning: Tuning) {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner) = tuning;
    }

    /// Everything that results measured on this device depend on besides the shaders: pairs of a name and a value.
    pub fn identity(&self) -> Vec<(&'static str, String)> {
        let (info, limits) = (&self.info, &self.limits);
        vec![
            ("backend", format!("{:?}", info.backend)),
            ("vendor", info.vendor.to_string()),
            ("device", info.device.to_string()),
            ("name", info.name.clone()),
            ("driver", info.driver.clone()),
            ("driver_info", info.driver_info.clone()),
            ("wgpu", WGPU_VERSION.to_owned()),
            ("checked", self.checked.to_string()),
            ("kernels", limits.kernels.name().to_owned()),
            ("f16", limits.f16.to_string()),
            ("subgroup", limits.subgroup.to_string()),
            ("cooperative", limits.cooperative.to_string()),
            ("invocations", limits.invocations.to_string()),
            ("workgroup_memory", limits.workgroup_memory.to_string()),
            ("binding", limits.binding.to_string()),
        ]
    }

    /// Where compiled pipelines are kept, if they are, and how many bytes of them were found there.
    pub fn pipeline_cache(&self) -> Option<(&Path, usize)> {
        self.cache.as_ref().map(PipelineCache::place)
    }

    /// Writes newly compiled pipelines to [`GpuOptions::cache_dir`]; nothing without one. Dropping the device does so too.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_pipelines(&self) -> Result<()> {
        self.cache.as_ref().map_or(Ok(()), PipelineCache::save)
    }

    /// The largest buffer in bytes.
    pub fn max_buffer_size(&self) -> u64 {
        self.device.limits().max_buffer_size
    }

    /// Compiles `variant` with `reads` read-only and `writes` writable storage bindings after its parameters, or finds
    /// it compiled.
    pub(crate) fn pipeline(&self, variant: &Variant, reads: usize, writes: usize) -> Result<Arc<Pipeline>> {
        let key = (variant.clone(), reads, writes);
        let place = Arc::clone(self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        // Outside the lock: other variants compile meanwhile, the same one once.
        place.get_or_init(|| self.compile(variant, reads, writes).map(Arc::new)).clone()
    }

    fn compile(&self, variant: &Variant, reads: usize, writes: usize) -> Result<Pipeline> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = variant.source();
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(variant.stem),
            source: wgpu::ShaderSource::Wgsl(source.as_str().into()),
        };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the shaders are our own; their loops are bounded by parameters that the host computes, their
            // indices stay inside the bound ranges (the tests run with the checks on) and they divide by no zero.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let entry = |index: usize, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
            binding: index as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
        let texture = wgpu::BindingType::Texture {
            sample_type: wgpu::TextureSampleType::Float { filterable: false },
            view_dimension: wgpu::TextureViewDimension::D2,
            multisampled: false,
        };
        entries.extend((1..=reads).map(|index| {
            let entry = entry(index, wgpu::BufferBindingType::Storage { read_only: true });
            if variant.staged().contains(&(index - 1)) {
                wgpu::BindGroupLayoutEntry { ty: texture, ..entry }
            } else {
                entry
            }
        }));
        entries.extend(
            (reads + 1..=reads + writes)
                .map(|index| entry(index, wgpu::BufferBindingType::Storage { read_only: false })),
        );
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(variant.stem),
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(variant.stem),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(variant.stem),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: self.checked,
                ..Default::default()
            },
            cache: self.cache.as_ref().map(PipelineCache::for_new_pipeline),
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(Pipeline { pipeline, layout }),
            Some(error) => Err(Error::new("shader compilation").at(variant.stem).found(error)),
        }
    }

    /// Waits for everything submitted so far; an error if the device failed meanwhile.
    pub fn wait(&self) -> Result<()> {
        self.poll(None)
    }

    /// Waits for this submission and those before it, not for later ones; an error if the device failed meanwhile.
    pub(crate) fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        self.poll(Some(submission))
    }

    fn poll(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.check()?;
        polled.map(|_| ()).map_err(|error| Error::new("waiting for the GPU").at(self.name()).found(error))
    }

    /// The first fault that the device has reported since it was opened, as an error.
    pub fn check(&self) -> Result<()> {
        match self.faults.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            None => Ok(()),
            Some(text) => Err(Error::new("the GPU failed")
                .at(self.name())
                .found(text)
                .hint("a smaller picture, --precision f16, or another --adapter")),
        }
    }

    /// Copies `size` bytes from the start of `buffer` to the host. Blocks.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, size: u64) -> Result<Vec<u8>> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.buffer("readback", size, usage)?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |outcome| {
            // A receiver that is gone means that the read was given up; there is nobody to tell.
            let _ = sender.send(outcome);
        });
        self.wait()?;
        let outcome = receiver.recv().map_err(|error| Error::new("reading back from the GPU").found(error))?;
        outcome.map_err(|error| Error::new("reading back from the GPU").at(self.name()).found(error))?;
        let view = staging
            .slice(..)
            .get_mapped_range()
            .map_err(|error| Error::new("reading back from the GPU").at(self.name()).found(error))?;
        Ok(view[..size as usize].to_vec())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if let Err(fault) = self.save_pipelines() {
            tracing::warn!("{fault}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_wgpu_is_the_one_that_is_built_with() {
        let lock = include_str!("../../Cargo.lock");
        let entry = format!("name = \"wgpu\"\nversion = \"{WGPU_VERSION}\"\n");
        assert!(lock.contains(&entry), "Cargo.lock has another version");
    }
}
