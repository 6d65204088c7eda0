//! The denoising stage on the GPU: the UNet's graph and the solver's, and one step of both.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident, WeightSink};
use crate::graph::recording::Submission;
use crate::graph::{Graph, Shape, WeightSpec};
use crate::kernels::{guidance_rescale, scheduler_step};
use crate::models::generator::unet::{self, Conditioning};
use crate::pipelines::request::Settings;
use crate::pipelines::stages::{Side, TextVectors, execute};
use crate::sampling::{Evaluation, Program};
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::{Claims, Weights, pack};

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
}

impl DenoiseStage {
    /// The UNet's graph for pictures of `settings`' size.
    pub fn build(
        checkpoint: &Checkpoint,
        limits: crate::kernels::Limits,
        precision: DType,
        settings: &Settings,
    ) -> Result<Graph> {
        Self::build_sized(
            checkpoint,
            limits,
            precision,
            Self::latent_shape(checkpoint, settings),
            1 + u32::from(settings.guided),
        )
    }

    fn build_sized(
        checkpoint: &Checkpoint,
        limits: crate::kernels::Limits,
        precision: DType,
        latent: Shape,
        batch: u32,
    ) -> Result<Graph> {
        let config = &checkpoint.unet.config;
        let mut g = Graph::new(precision, limits);
        let source = checkpoint.unet.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let sample = g.input("sample", Shape { batch, ..latent }, precision);
        let tokens = checkpoint.text_encoders.iter().map(|part| part.config.max_positions).max().unwrap_or(77) as u32;
        let row = |channels: u32| Shape::new(batch, 1, 1, channels);
        let given = Conditioning {
            timestep: g.input("timestep", row(1), DType::F32),
            context: g.input("context", Shape::tokens(batch, tokens, config.cross_attention_dim as u32), precision),
            pooled: config.text_time.as_ref().map(|added| {
                let width = (added.input_dim - 6 * added.time_embed_dim) as u32;
                g.input("pooled", row(width), precision)
            }),
            sizes: config.text_time.as_ref().map(|_| g.input("sizes", row(6), DType::F32)),
            guidance: config.time_cond_proj_dim.map(|_| g.input("guidance", row(1), DType::F32)),
        };
        let prediction = unet::unet(&mut g, &w, config, sample, given);
        g.output("prediction", prediction);
        claims.finish(source)?;
        Ok(g)
    }

    /// [1, H/8, W/8, C].
    pub fn latent_shape(checkpoint: &Checkpoint, settings: &Settings) -> Shape {
        let scale = checkpoint.vae.config.scale() as u32;
        Shape::new(1, settings.height / scale, settings.width / scale, checkpoint.unet.config.in_channels as u32)
    }

    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        precision: DType,
        settings: &Settings,
        program: &Program,
    ) -> Result<Self> {
        let shape = Self::latent_shape(checkpoint, settings);
        let batch = 1 + u32::from(settings.guided);
        let graph = Self::build(checkpoint, gpu.limits(), precision, settings)?;
        let unet = execute(gpu, &graph, &[checkpoint.unet.weights.as_ref()])?;
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
        Ok(Self { unet, updates, turn: 0, shape, batch })
    }

    /// Takes a prompt's vectors as those of `side`; the order of the batch is [negative, prompt].
    pub fn condition(&self, text: &TextVectors, side: Side) -> Result<()> {
        let row = if side == Side::Prompt { self.batch - 1 } else { 0 };
        self.unet.copy_row("context", row, &text.context)?;
        match &text.pooled {
            Some(pooled) => self.unet.copy_row("pooled", row, pooled),
            None => Ok(()),
        }
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
            clip: evaluation.prediction.clip,
            input_scale: next_scale,
            guidance,
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

    /// The text vectors as the model gets them, named for a dump: [1, T, D] and pooled [1, D]. Blocks.
    pub fn conditioning(&self, pooled: bool) -> Result<Vec<(String, HostTensor)>> {
        let inputs = [("context", "text_embeddings"), ("pooled", "pooled_text_embeddings")];
        let mut named = Vec::new();
        for (input, name) in inputs.into_iter().take(1 + usize::from(pooled)) {
            let HostTensor { shape, data } = self.unet.read(input)?;
            let axes: Vec<usize> =
                [1].into_iter().chain(shape[1..].iter().copied().filter(|axis| *axis != 1)).collect();
            let rows = data.chunks_exact(data.len() / self.batch as usize).rev();
            for (row, side) in rows.zip(["", "negative_"]) {
                named.push((format!("{side}{name}"), HostTensor { shape: axes.clone(), data: row.to_vec() }));
            }
        }
        Ok(named)
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.unet.bytes() + self.updates.iter().map(Executor::bytes).sum::<u64>()
    }
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
