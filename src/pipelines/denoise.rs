//! The denoising stage on the GPU: the UNet's graph and the solver's, and one step of both.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident, WeightSink};
use crate::graph::recording::Submission;
use crate::graph::{Graph, Shape, WeightSpec};
use crate::kernels::{guidance_rescale, scheduler_step};
use crate::models::generator::context::{self, TextKeys};
use crate::models::generator::unet::{self, Conditioning};
use crate::pipelines::request::Settings;
use crate::pipelines::stages::{Side, TextVectors, execute, execute_sharing};
use crate::sampling::{Bound, Deviation, Evaluation, Program};
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};
use crate::weights::{Claims, Source, Weights, pack};

/// The graphs of the UNet: first what its cross-attentions read of the prompt, run once a picture, then a step.
pub(super) struct Graphs {
    /// `context` [B, T, D] -> the keys and values of every cross-attention, named by the layer's path.
    pub text: Graph,
    /// `sample`, `timestep` and those -> `prediction`.
    pub unet: Graph,
}

/// The UNet and the solver's update. They share buffers, so that a step copies nothing: the update reads the prediction
/// where the UNet leaves it and writes the model's next input where the UNet reads it.
pub(super) struct DenoiseStage {
    unet: Executor,
    /// The update, from one copy of the solver's state into the other, and back.
    updates: [Executor; 2],
    /// Which update is next; its `state` is the present one.
    turn: usize,
    shape: Shape,
    batch: u32,
    /// Bytes of the text's keys and values.
    keys: u64,
}

impl DenoiseStage {
    /// The graphs for pictures of `settings`' size. Together they take every tensor of the checkpoint's UNet.
    pub fn build(
        checkpoint: &Checkpoint,
        limits: crate::kernels::Limits,
        precision: DType,
        settings: &Settings,
    ) -> Result<Graphs> {
        let (config, batch) = (&checkpoint.unet.config, Self::batch(settings));
        let source = checkpoint.unet.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let mut text = Graph::new(precision, limits);
        let tokens = checkpoint.text_encoders.iter().map(|part| part.config.max_positions).max().unwrap_or(77) as u32;
        let vectors = text.input("context", Shape::tokens(batch, tokens, config.cross_attention_dim as u32), precision);
        let made = context::text_keys(&mut text, &w, config, vectors);
        made.iter().for_each(|(path, value)| text.output(path, value));
        let mut g = Graph::new(precision, limits);
        let sample = g.input("sample", Shape { batch, ..Self::latent_shape(checkpoint, settings) }, precision);
        let row = |channels: u32| Shape::new(batch, 1, 1, channels);
        let given = Conditioning {
            timestep: g.input("timestep", row(1), DType::F32),
            pooled: config.text_time.as_ref().map(|added| {
                let width = (added.input_dim - 6 * added.time_embed_dim) as u32;
                g.input("pooled", row(width), precision)
            }),
            sizes: config.text_time.as_ref().map(|_| g.input("sizes", row(6), DType::F32)),
            guidance: config.time_cond_proj_dim.map(|_| g.input("guidance", row(1), DType::F32)),
        };
        let read = made.iter().map(|(path, value)| (path.to_owned(), g.input(path, text.shape(value), precision)));
        let read: TextKeys = read.collect();
        let prediction = unet::unet(&mut g, &w, config, sample, given, &read);
        g.output("prediction", prediction);
        claims.finish(source)?;
        Ok(Graphs { text, unet: g })
    }

    /// Latents that the UNet gets at once.
    fn batch(settings: &Settings) -> u32 {
        1 + u32::from(settings.guided)
    }

    /// [1, H/8, W/8, C].
    pub fn latent_shape(checkpoint: &Checkpoint, settings: &Settings) -> Shape {
        let scale = checkpoint.vae.config.scale() as u32;
        Shape::new(1, settings.height / scale, settings.width / scale, checkpoint.unet.config.in_channels as u32)
    }

    /// Loads the stage for these prompts. What comes of the text vectors is computed first, so that the weights which make
    /// it are gone before the UNet's are there. The vectors as the model gets them join `dump`, named.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        precision: DType,
        (settings, program): (&Settings, &Program),
        prompts: &[(Side, TextVectors)],
        dump: Option<&mut Vec<(String, HostTensor)>>,
    ) -> Result<Self> {
        let (shape, batch) = (Self::latent_shape(checkpoint, settings), Self::batch(settings));
        let weights: [&dyn Source; 1] = [checkpoint.unet.weights.as_ref()];
        let graphs = Self::build(checkpoint, gpu.limits(), precision, settings)?;
        let text = execute(gpu, &graphs.text, &weights)?;
        for (side, vectors) in prompts {
            text.copy_row("context", side.row(batch), &vectors.context)?;
        }
        text.run().wait()?;
        let keys = graphs.text.outputs.iter().map(|(path, _)| Ok((path.as_str(), text.resident(path)?)));
        let keys: Vec<(&str, Resident)> = keys.collect::<Result<_>>()?;
        let mut named = if dump.is_some() { rows("text_embeddings", &text.read("context")?) } else { Vec::new() };
        drop(text);
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let shared: Vec<(&str, &Resident)> = keys.iter().map(|(path, resident)| (*path, resident)).collect();
        let unet = execute_sharing(gpu, &graphs.unet, &shared, &weights)?;
        for (side, vectors) in prompts {
            if let Some(pooled) = &vectors.pooled {
                unet.copy_row("pooled", side.row(batch), pooled)?;
            }
        }
        if let Some(dump) = dump {
            if checkpoint.class == PipelineClass::StableDiffusionXl {
                named.extend(rows("pooled_text_embeddings", &unet.read("pooled")?));
            }
            dump.append(&mut named);
        }
        let updates =
            updates(gpu, &unet, &step_graph(gpu.limits(), precision, shape, batch, settings, program.slots as u32))?;
        let scale = |value: f32| HostTensor { shape: vec![batch as usize], data: vec![value; batch as usize] };
        if checkpoint.unet.config.time_cond_proj_dim.is_some() {
            unet.write("guidance", &scale(settings.guidance_scale - 1.0))?;
        }
        if checkpoint.unet.config.text_time.is_some() {
            let size = [settings.height as f32, settings.width as f32];
            let ids = [size[0], size[1], 0.0, 0.0, size[0], size[1]];
            let data: Vec<f32> = (0..batch).flat_map(|_| ids).collect();
            unet.write("sizes", &HostTensor { shape: vec![batch as usize, 6], data })?;
        }
        let keys = graphs.text.outputs.iter().map(|(_, value)| graphs.text.shape(*value).bytes(precision)).sum();
        Ok(Self { unet, updates, turn: 0, shape, batch, keys })
    }

    /// Starts a run from noise of unit variance [1, C, H, W].
    pub fn start(&mut self, noise: &HostTensor, program: &Program) -> Result<()> {
        let Some(first) = program.evaluations.first() else { return Ok(()) };
        let slots = program.slots;
        let mut state = noise.channels_last().data;
        state.iter_mut().for_each(|value| *value *= program.init_noise_sigma);
        let input: Vec<f32> = state.iter().map(|value| value * first.input_scale).collect();
        state.resize(state.len() * slots, 0.0);
        self.turn = 0;
        self.updates[0].write("state", &HostTensor { shape: vec![slots], data: state })?;
        let data = input.repeat(self.batch as usize);
        self.unet.write("sample", &HostTensor { shape: vec![self.batch as usize], data })
    }

    /// One call of the model and the update after it, submitted; the caller may go on to the next before it is done.
    /// `next_scale` scales the latent for the following call.
    ///
    /// The writes here do not disturb a step that is still running: wgpu puts them into the queue in front of the next
    /// submission, behind all earlier ones, and what they change is read by this step's commands alone. All of them come
    /// before the step's first submission, however many slices it takes.
    pub fn evaluate(
        &mut self,
        evaluation: &Evaluation,
        guidance: f32,
        next_scale: f32,
        noise: Option<&HostTensor>,
    ) -> Result<Submission> {
        let batch = self.batch as usize;
        let update = &self.updates[self.turn];
        self.unet.write("timestep", &HostTensor { shape: vec![batch], data: vec![evaluation.timestep; batch] })?;
        let coefficients = scheduler_step::Coefficients {
            data: [evaluation.prediction.slot0, evaluation.prediction.model_output],
            clip: match evaluation.prediction.bound {
                Some(Bound::Fixed(clip)) => Some(clip),
                Some(Bound::Dynamic { .. }) | None => None,
            },
            input_scale: next_scale,
            guidance,
            deviation: match evaluation.deviation {
                Some(Deviation::Range { constant, slope }) => [constant, slope],
                Some(Deviation::Root) | None => [0.0; 2],
            },
            rows: evaluation
                .rows
                .iter()
                .map(|row| (row.slots.clone(), [row.model_output, row.x0, row.noise]))
                .collect(),
        };
        update.write_bytes("table", &coefficients.bytes())?;
        if let Some(noise) = noise {
            update.write("noise", &noise.channels_last())?;
        }
        let mut recording = self.unet.begin();
        self.unet.record(&mut recording);
        update.record(&mut recording);
        self.turn = 1 - self.turn;
        Ok(recording.submit())
    }

    /// The solver's memory on the GPU, the latent first.
    pub fn state(&self) -> Result<Resident> {
        self.updates[self.turn].resident("state")
    }

    /// The latent [1, C, H, W] as it stands. Blocks.
    pub fn latent(&self) -> Result<HostTensor> {
        let rows = self.updates[self.turn].read("state")?;
        let count = (self.shape.rows() * self.shape.channels) as usize;
        let axes = [1, self.shape.height as usize, self.shape.width as usize, self.shape.channels as usize];
        Ok(HostTensor { shape: axes.to_vec(), data: rows.data[..count].to_vec() }.channels_first())
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.keys + self.unet.bytes() + self.updates.iter().map(Executor::bytes).sum::<u64>()
    }
}

/// The batch elements of a tensor [B, .., C], the prompt's as `name` and the negative one's; without axes of length 1.
fn rows(name: &str, tensor: &HostTensor) -> Vec<(String, HostTensor)> {
    let axes = tensor.shape[1..].iter().copied().filter(|axis| *axis != 1);
    let axes: Vec<usize> = [1].into_iter().chain(axes).collect();
    let elements = tensor.data.chunks_exact(tensor.data.len() / tensor.shape[0]).rev();
    let named = elements.zip(["", "negative_"]);
    named.map(|(row, side)| (format!("{side}{name}"), HostTensor { shape: axes.clone(), data: row.to_vec() })).collect()
}

/// Compiles the update twice: the second reads the state that the first writes, and the other way round.
fn updates(gpu: &Arc<Gpu>, unet: &Executor, graph: &Graph) -> Result<[Executor; 2]> {
    let (prediction, sample) = (unet.resident("prediction")?, unet.resident("sample")?);
    let nothing = |spec: &WeightSpec, sink: &mut WeightSink<'_>| pack::pack(spec, None, sink);
    let ends = [("model_output", &prediction), ("model_input", &sample)];
    let first = Executor::sharing(gpu, graph, &ends, nothing)?;
    let names = ["state", "next", "noise", "table"];
    let [state, next, noise, table] = names.map(|name| first.resident(name));
    let (state, next, noise, table) = (state?, next?, noise?, table?);
    let between = [("state", &next), ("next", &state), ("noise", &noise), ("table", &table)];
    let second = Executor::sharing(gpu, graph, &[&ends[..], &between].concat(), nothing)?;
    Ok([first, second])
}

/// Guidance and the solver's update: model_output, state, noise, table -> next, model_input.
pub(super) fn step_graph(
    limits: crate::kernels::Limits,
    precision: DType,
    shape: Shape,
    batch: u32,
    settings: &Settings,
    slots: u32,
) -> Graph {
    let mut g = Graph::new(precision, limits);
    let config = scheduler_step::SchedulerStep {
        positions: shape.positions(),
        channels: shape.channels,
        slots,
        guided: batch == 2,
        split: false,
        deviation: scheduler_step::Deviation::Given,
        threshold: false,
        batch,
        output: precision,
        input: precision,
    };
    let output = g.input("model_output", Shape { batch, ..shape }, precision);
    let noise = g.input("noise", shape, DType::F32);
    let state = Shape { batch: slots, ..shape };
    let memory = g.input("state", state, DType::F32);
    let table = g.input("table", Shape::new(1, config.table_vectors(), 1, 4), DType::F32);
    let rescaled = batch == 2 && settings.guidance_rescale > 0.0;
    let factor = if rescaled {
        let (scale, phi) = (settings.guidance_scale, settings.guidance_rescale);
        let call = guidance_rescale::call(shape.positions(), shape.channels, scale, phi, precision);
        g.push("guidance", call, vec![output.into()], Shape::new(1, 1, 1, 4), DType::F32).into()
    } else {
        g.constant(vec![1.0; 4]).into()
    };
    let call = scheduler_step::call(&config, g.limits());
    let inputs = vec![output.into(), factor, noise.into(), memory.into(), table.into()];
    let outputs = [(state, DType::F32), (Shape { batch, ..shape }, precision)];
    let made = g.push_many("scheduler", call, inputs, &outputs);
    g.output("next", made[0]);
    g.output("model_input", made[1]);
    g
}
