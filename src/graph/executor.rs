//! From a plan to the GPU: pipelines, buffers and bind groups made once, then one loop over the compiled launches.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::recording::{self, Pace, Recording, Submission};
use super::rows::{decode_rows, encode_rows};
use super::staging::{Part, Scratch, Stage};
use super::upload::Upload;
use super::{Graph, Node, Operand, Shape, Value, ValueInfo, WeightSpec, plan};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Pipeline};
use crate::kernels::Launch;
use crate::tensor::HostTensor;

/// Every launch's parameters start on this boundary, WebGPU's default alignment of uniform offsets.
pub(super) const PARAMS_STRIDE: u64 = 256;

const VALUE_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_DST).union(wgpu::BufferUsages::COPY_SRC);

/// Writes a weight's packed bytes: called with consecutive pieces.
pub type WeightSink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// One dispatch, ready to be recorded.
pub(super) struct CompiledLaunch {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) stages: Vec<Stage>,
    pub(super) workgroups: [u32; 3],
    /// Its share of the call's [`recording::work`].
    pub(super) work: u64,
    pub(super) node: usize,
}

/// A graph ready to run: nothing is allocated any more.
pub struct Executor {
    pub(super) gpu: Arc<Gpu>,
    pub(super) launches: Vec<CompiledLaunch>,
    pub(super) labels: Vec<String>,
    activations: Vec<Buffer>,
    named: HashMap<String, Resident>,
    bytes: u64,
    pace: Arc<Mutex<Pace>>,
    /// Weights and parameters, which the bind groups refer to; held so that they count as long as they are there.
    _constant: Vec<Buffer>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("launches", &self.launches.len()).field("bytes", &self.bytes).finish()
    }
}

/// A value on the GPU that outlives the graph which made it. Clones share the storage.
#[derive(Debug, Clone)]
pub struct Resident {
    pub(super) buffer: Buffer,
    info: ValueInfo,
}

impl Resident {
    /// A copy of each batch element.
    ///
    /// # Errors
    /// No memory for them.
    pub fn rows(&self, gpu: &Gpu) -> Result<Vec<Self>> {
        let batch = self.info.shape.batch;
        let info = ValueInfo { shape: Shape { batch: 1, ..self.info.shape }, ..self.info.clone() };
        let size = info.shape.bytes(info.dtype);
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut rows = Vec::new();
        for row in 0..batch {
            let buffer = gpu.buffer(&info.label, size, VALUE_USAGE)?;
            encoder.copy_buffer_to_buffer(&self.buffer, u64::from(row) * size, &buffer, 0, size);
            rows.push(Self { buffer, info: info.clone() });
        }
        gpu.queue.submit([encoder.finish()]);
        Ok(rows)
    }

    /// The value as a [B, H, W, C] tensor. Blocks.
    ///
    /// # Errors
    /// A lost device.
    pub fn read(&self, gpu: &Gpu) -> Result<HostTensor> {
        let Self { buffer, info } = self;
        let bytes = gpu.read(buffer, info.shape.bytes(info.dtype))?;
        Ok(decode_rows(&bytes, info.shape, info.dtype))
    }
}

/// A weight's place: buffer, offset and size in bytes.
type Place = (usize, u64, u64);

impl Executor {
    /// Compiles, allocates and uploads. `fill` is asked for each weight's packed bytes in turn.
    pub fn new(
        gpu: &Arc<Gpu>,
        graph: &Graph,
        fill: impl FnMut(&WeightSpec, &mut WeightSink<'_>) -> Result<()>,
    ) -> Result<Self> {
        Self::sharing(gpu, graph, &[], fill)
    }

    /// The same, with inputs and outputs that lie where values of other graphs do: what one graph writes the other reads
    /// without a copy.
    ///
    /// # Errors
    /// As [`Executor::new`], and when a shared value is stored in another way than the named one.
    pub fn sharing(
        gpu: &Arc<Gpu>,
        graph: &Graph,
        shared: &[(&str, &Resident)],
        mut fill: impl FnMut(&WeightSpec, &mut WeightSink<'_>) -> Result<()>,
    ) -> Result<Self> {
        if let Some(fault) = graph.fault() {
            return Err(fault.clone());
        }
        let plan = plan::plan(graph);
        let given = given(graph, &plan, shared)?;
        let buffers = allocate(gpu, graph, &plan, &given)?;
        // The driver compiles while weights are packed and copied.
        let (compiled, uploaded) = std::thread::scope(|scope| {
            let compiled = scope.spawn(|| compile_pipelines(gpu, graph));
            let uploaded = upload(gpu, graph, &mut fill);
            (compiled.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), uploaded)
        });
        let (mut constant, places) = uploaded?;
        compiled?;
        let params = upload_params(gpu, graph)?;
        let memory = Memory { plan: &plan, buffers: &buffers, weights: &constant, places: &places };
        let launches = compile(gpu, graph, &memory, &params)?;
        let named = graph.inputs.iter().chain(&graph.outputs);
        let named = named
            .map(|(name, value)| {
                let buffer = buffers[buffer_index(&plan, *value)].clone();
                (name.clone(), Resident { buffer, info: graph.info(*value).clone() })
            })
            .collect();
        constant.push(params);
        gpu.check()?;
        let elsewhere: u64 = given.keys().map(|buffer| plan.sizes[*buffer]).sum();
        let bytes = plan.bytes() - elsewhere + graph.weight_bytes();
        let labels = graph.nodes.iter().map(|node| node.label.clone()).collect();
        let pace = Arc::default();
        Ok(Self {
            gpu: Arc::clone(gpu),
            launches,
            labels,
            activations: buffers,
            named,
            bytes,
            pace,
            _constant: constant,
        })
    }

    /// Fills inputs, outputs and everything between with NaN, so that a test sees what a kernel reads but nothing wrote.
    pub fn poison(&self) {
        for buffer in &self.activations {
            self.gpu.queue.write_buffer(buffer, 0, &vec![0xFF; buffer.size() as usize]);
        }
    }

    /// Bytes on the GPU: weights and activations, without what is shared with another graph.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records and submits one run. Returns without waiting for it.
    pub fn run(&self) -> Submission {
        let mut recording = self.begin();
        self.record(&mut recording);
        recording.submit()
    }

    /// An empty recording, submitted in slices as this graph's runs before let expect.
    pub fn begin(&self) -> Recording {
        Recording::new(&self.gpu, &self.pace)
    }

    /// Appends one run to a recording, which another graph on the same device may have begun.
    pub fn record(&self, recording: &mut Recording) {
        recording.launches(&self.launches);
    }

    /// Seconds of this processor for recording one run and making the driver's commands of it, which are thrown away.
    pub fn recording_seconds(&self) -> f64 {
        let start = std::time::Instant::now();
        Recording::new(&self.gpu, &Arc::default()).discard(&self.launches);
        start.elapsed().as_secs_f64()
    }

    /// Fills an input from a [B, H, W, C] tensor of its shape.
    pub fn write(&self, name: &str, tensor: &HostTensor) -> Result<()> {
        let Resident { buffer, info } = self.find(name)?;
        let shape = info.shape;
        let expected = shape.rows() as usize * shape.channels as usize;
        if tensor.data.len() != expected {
            return Err(Error::new("input length").at(name).expected(shape).found(format!("{:?}", tensor.shape)));
        }
        self.gpu.queue.write_buffer(buffer, 0, &encode_rows(&tensor.data, shape, info.dtype));
        Ok(())
    }

    /// Fills an input's storage with these bytes.
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let Resident { buffer, .. } = self.find(name)?;
        self.gpu.queue.write_buffer(buffer, 0, bytes);
        Ok(())
    }

    /// Reads an input or output as a [B, H, W, C] tensor. Blocks.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let Resident { buffer, info } = self.find(name)?;
        let bytes = self.gpu.read(buffer, info.shape.bytes(info.dtype))?;
        Ok(decode_rows(&bytes, info.shape, info.dtype))
    }

    /// The first `size` bytes of an input or output. Blocks.
    pub fn read_bytes(&self, name: &str, size: u64) -> Result<Vec<u8>> {
        let Resident { buffer, .. } = self.find(name)?;
        self.gpu.read(buffer, size)
    }

    /// The shape of an input or output.
    pub fn shape(&self, name: &str) -> Result<Shape> {
        Ok(self.find(name)?.info.shape)
    }

    /// An input or output, sharing its storage: the next run changes it.
    pub fn resident(&self, name: &str) -> Result<Resident> {
        self.find(name).cloned()
    }

    /// A copy of an input or output that the next run leaves alone.
    pub fn snapshot(&self, name: &str) -> Result<Resident> {
        let Resident { buffer, info } = self.find(name)?;
        let size = info.shape.bytes(info.dtype);
        let copy = self.gpu.buffer(&info.label, size, VALUE_USAGE)?;
        self.copy(buffer, &copy, 0, size);
        Ok(Resident { buffer: copy, info: info.clone() })
    }

    /// Copies a value of the same shape into a named value of this graph, on the GPU.
    pub fn copy_from(&self, name: &str, source: &Resident) -> Result<()> {
        let to = self.find(name)?;
        if to.info.shape.batch != source.info.shape.batch {
            return Err(Error::new("copy between graphs").at(name).expected(to.info.shape).found(source.info.shape));
        }
        self.copy_batch(name, 0, source, source.info.shape.batch)
    }

    /// Copies the first batch element of a value into batch element `row` of a named value of this graph, on the GPU.
    pub fn copy_row(&self, name: &str, row: u32, source: &Resident) -> Result<()> {
        self.copy_batch(name, row, source, 1)
    }

    fn copy_batch(&self, name: &str, row: u32, source: &Resident, count: u32) -> Result<()> {
        let to = self.find(name)?;
        let wanted = Shape { batch: count, ..to.info.shape };
        let found = Shape { batch: count, ..source.info.shape };
        if wanted != found || to.info.dtype != source.info.dtype || row + count > to.info.shape.batch {
            return Err(Error::new("copy between graphs").at(name).expected(wanted).found(found));
        }
        let size = wanted.bytes(to.info.dtype);
        self.copy(&source.buffer, &to.buffer, u64::from(row) * (size / u64::from(count)), size);
        Ok(())
    }

    fn copy(&self, from: &Buffer, to: &Buffer, offset: u64, size: u64) {
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from, 0, to, offset, size);
        self.gpu.queue.submit([encoder.finish()]);
    }

    pub(super) fn find(&self, name: &str) -> Result<&Resident> {
        self.named.get(name).ok_or_else(|| {
            let mut known: Vec<_> = self.named.keys().map(String::as_str).collect();
            known.sort_unstable();
            Error::new("no such value in the graph").at(name).expected(known.join(", "))
        })
    }
}

/// Where values and weights lie.
struct Memory<'a> {
    plan: &'a plan::Plan,
    buffers: &'a [Buffer],
    weights: &'a [Buffer],
    places: &'a [Place],
}

impl Memory<'_> {
    /// What a launch binds of its operands, inputs first.
    fn parts(&self, gpu: &Gpu, graph: &Graph, node: &Node, launch: &Launch) -> Result<Vec<Part>> {
        let outputs = node.outputs.iter().map(|value| Operand::Value(*value));
        let operands = node.inputs.iter().copied().chain(outputs).enumerate();
        operands
            .map(|(position, operand)| match operand {
                Operand::Weight(weight) => {
                    let (buffer, offset, size) = self.places[weight.0 as usize];
                    let dtype = graph.weights[weight.0 as usize].layout.dtype();
                    Ok(Part { buffer: self.weights[buffer].clone(), offset, size, dtype })
                }
                Operand::Value(value) => {
                    let info = graph.info(value);
                    let whole = info.shape.bytes(info.dtype);
                    let (offset, size) = launch.ranges[position].unwrap_or((0, whole));
                    check_binding(gpu, info, size)?;
                    let buffer = self.buffers[buffer_index(self.plan, value)].clone();
                    Ok(Part { buffer, offset, size, dtype: info.dtype })
                }
            })
            .collect()
    }
}

/// Has the graph's different pipelines compiled, several at a time.
fn compile_pipelines(gpu: &Gpu, graph: &Graph) -> Result<()> {
    let keys = graph.nodes.iter().map(|node| (&node.call.variant, node.inputs.len(), node.outputs.len()));
    let keys: Vec<_> = keys.collect::<HashSet<_>>().into_iter().collect();
    keys.par_iter().try_for_each(|(variant, reads, writes)| gpu.pipeline(variant, *reads, *writes).map(drop))
}

/// Compiles every launch of every node.
fn compile(gpu: &Gpu, graph: &Graph, memory: &Memory<'_>, params: &Buffer) -> Result<Vec<CompiledLaunch>> {
    let mut scratch = Scratch::default();
    for node in &graph.nodes {
        for launch in &node.call.launches {
            let parts = memory.parts(gpu, graph, node, launch)?;
            for position in node.call.variant.staged() {
                scratch.reserve(*position, parts[*position].size, parts[*position].dtype);
            }
        }
    }
    scratch.allocate(gpu)?;
    let mut launches = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let pipeline = gpu.pipeline(&node.call.variant, node.inputs.len(), node.outputs.len())?;
        let staged = node.call.variant.staged();
        for launch in &node.call.launches {
            let parts = memory.parts(gpu, graph, node, launch)?;
            let mut stages = Vec::new();
            let views: Vec<_> = (0..parts.len())
                .map(|position| {
                    staged.contains(&position).then(|| scratch.stage(position, &parts[position], &mut stages))
                })
                .collect();
            let size = (launch.params.len() as u64).next_multiple_of(16);
            let mut entries = vec![binding(0, params, launches.len() as u64 * PARAMS_STRIDE, size)];
            entries.extend(parts.iter().zip(&views).enumerate().map(|(position, (part, view))| match view {
                None => binding(position as u32 + 1, &part.buffer, part.offset, part.size),
                Some(view) => wgpu::BindGroupEntry {
                    binding: position as u32 + 1,
                    resource: wgpu::BindingResource::TextureView(view),
                },
            }));
            let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&node.label),
                layout: &pipeline.layout,
                entries: &entries,
            });
            launches.push(CompiledLaunch {
                pipeline: Arc::clone(&pipeline),
                bind_group,
                stages,
                workgroups: launch.workgroups,
                work: recording::work(&node.call) / node.call.launches.len() as u64,
                node: index,
            });
        }
    }
    Ok(launches)
}

fn binding(index: u32, buffer: &Buffer, offset: u64, size: u64) -> wgpu::BindGroupEntry<'_> {
    let size = wgpu::BufferSize::new(size.next_multiple_of(4));
    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
    wgpu::BindGroupEntry { binding: index, resource }
}

fn buffer_index(plan: &plan::Plan, value: Value) -> usize {
    plan.buffer_of[value.0 as usize].unwrap_or_else(|| panic!("value {} is used but never planned", value.0))
}

fn check_binding(gpu: &Gpu, info: &ValueInfo, size: u64) -> Result<()> {
    let limit = gpu.limits().binding;
    if size <= limit {
        return Ok(());
    }
    Err(Error::new("a tensor is larger than one binding of this adapter")
        .at(format!("{} {}", info.label, info.shape))
        .expected(format!("at most {limit} bytes"))
        .found(format!("{size} bytes"))
        .hint("a smaller picture, --precision f16, or another --adapter"))
}

/// The buffers of the plan that are other graphs'.
fn given(graph: &Graph, plan: &plan::Plan, shared: &[(&str, &Resident)]) -> Result<HashMap<usize, Buffer>> {
    let place = |(name, resident): &(&str, &Resident)| {
        let named = graph.inputs.iter().chain(&graph.outputs).find(|(known, _)| known == name);
        let value = named.map(|(_, value)| *value);
        let value = value.unwrap_or_else(|| panic!("{name} is to be shared, but is no input or output"));
        let (info, other) = (graph.info(value), &resident.info);
        if info.shape != other.shape || info.dtype != other.dtype {
            let stored = |info: &ValueInfo| format!("{} in {}", info.shape, info.dtype.name());
            return Err(Error::new("values to be shared differ").at(name).expected(stored(info)).found(stored(other)));
        }
        Ok((buffer_index(plan, value), resident.buffer.clone()))
    };
    shared.iter().map(place).collect()
}

fn allocate(gpu: &Gpu, graph: &Graph, plan: &plan::Plan, given: &HashMap<usize, Buffer>) -> Result<Vec<Buffer>> {
    let label = |buffer: usize| {
        let owners = (0..graph.values.len()).filter(|value| plan.buffer_of[*value] == Some(buffer));
        let largest = owners.max_by_key(|value| {
            let info = &graph.values[*value];
            info.shape.bytes(info.dtype)
        });
        largest.map_or_else(
            || "unused".to_owned(),
            |value| format!("{} {}", graph.values[value].label, graph.values[value].shape),
        )
    };
    let make = |(index, size): (usize, &u64)| match given.get(&index) {
        Some(buffer) => Ok(buffer.clone()),
        None => gpu.buffer(&label(index), *size, VALUE_USAGE),
    };
    plan.sizes.iter().enumerate().map(make).collect()
}

/// Lays the weights into large buffers and fills them piece by piece.
fn upload(
    gpu: &Gpu,
    graph: &Graph,
    fill: &mut impl FnMut(&WeightSpec, &mut WeightSink<'_>) -> Result<()>,
) -> Result<(Vec<Buffer>, Vec<Place>)> {
    let plan::WeightPlan { places, sizes } = plan::weights(graph, gpu.max_buffer_size());
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let buffers: Result<Vec<_>> =
        sizes.iter().enumerate().map(|(index, size)| gpu.buffer(&format!("weights {index}"), *size, usage)).collect();
    let buffers = buffers?;
    let mut upload = Upload::new(gpu);
    for (spec, (buffer, offset, size)) in graph.weights.iter().zip(&places) {
        let mut written = 0;
        fill(spec, &mut |piece: &[u8]| {
            upload.write(&buffers[*buffer], offset + written, piece)?;
            written += piece.len() as u64;
            Ok(())
        })?;
        assert_eq!(written, *size, "weight {:?} was packed to another size than declared", spec.keys);
    }
    upload.finish()?;
    Ok((buffers, places))
}

fn upload_params(gpu: &Gpu, graph: &Graph) -> Result<Buffer> {
    let mut bytes = Vec::new();
    for launch in graph.nodes.iter().flat_map(|node| &node.call.launches) {
        assert!(launch.params.len() as u64 <= PARAMS_STRIDE, "parameters of a launch take more than one slot");
        let next = bytes.len() + PARAMS_STRIDE as usize;
        bytes.extend_from_slice(&launch.params);
        bytes.resize(next, 0);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.buffer("parameters", bytes.len() as u64, usage)?;
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    Ok(buffer)
}
