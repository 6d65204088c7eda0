//! The stages of a diffusion system on the GPU: text, one denoising step, decoding. Each owns its graph and weights.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::kernels::{guidance_rescale, pixels, scheduler_step};
use crate::models::decoder::vae;
use crate::models::generator::unet::{self, Conditioning};
use crate::models::nn;
use crate::models::text::clip::{self, Take};
use crate::pipelines::request::Settings;
use crate::sampling::{Evaluation, Program};
use crate::tensor::{DType, HostTensor};
use crate::text::ClipTokenizer;
use crate::weights::checkpoint::{Checkpoint, PipelineClass, TokenizerFiles};
use crate::weights::{Claims, Source, Weights, pack};

/// Compiles `graph` and fills its weights from the parts in order.
pub(super) fn execute(gpu: &Arc<Gpu>, graph: &Graph, parts: &[&dyn Source]) -> Result<Executor> {
    Executor::new(gpu, graph, |spec, sink| pack::pack(spec, parts.get(spec.part).copied(), sink))
}

/// Every graph of a model for pictures of `settings`, by the name of its stage. Needs no GPU and reads no weights.
///
/// # Errors
/// What the model or the settings ask for and scumble does not have; a missing or an unexpected tensor.
pub fn graphs(
    checkpoint: &Checkpoint,
    limits: crate::kernels::Limits,
    precision: DType,
    settings: &Settings,
) -> Result<Vec<(&'static str, Graph)>> {
    let slots = settings.scheduler.program(settings.steps as usize, None)?.slots as u32;
    let shape = DenoiseStage::latent_shape(checkpoint, settings);
    let batch = 1 + u32::from(settings.guided);
    Ok(vec![
        ("text", TextStage::build(checkpoint, limits, precision, settings.clip_skip)?),
        ("unet", DenoiseStage::build(checkpoint, limits, precision, settings)?),
        ("scheduler", step_graph(limits, precision, shape, batch, settings, slots)),
        ("vae", DecodeStage::build(checkpoint, limits, precision, settings)?),
    ])
}

/// The text encoders of a model, one prompt at a time.
pub(super) struct TextStage {
    executor: Executor,
    tokenizers: Vec<(ClipTokenizer, usize)>,
    ends: Vec<Ending>,
    pooled: bool,
}

/// How an encoder finds the row that it pools.
struct Ending {
    eos: u32,
    /// Old configs name 2 and mean the largest id (transformers `CLIPTextTransformer.forward`).
    largest: bool,
}

/// What a prompt becomes: vectors of its tokens [1, T, D] and, for SDXL, a pooled one [1, 1, 1, D].
pub(super) struct TextVectors {
    pub context: Resident,
    pub pooled: Option<Resident>,
}

/// Which half of guidance a prompt serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Prompt,
    Negative,
}

impl Side {
    fn output(self) -> &'static str {
        match self {
            Side::Prompt => "context",
            Side::Negative => "negative_context",
        }
    }
}

impl TextStage {
    pub fn build(
        checkpoint: &Checkpoint,
        gpu_limits: crate::kernels::Limits,
        precision: DType,
        clip_skip: u32,
    ) -> Result<Graph> {
        let xl = checkpoint.class == PipelineClass::StableDiffusionXl;
        let mut g = Graph::new(precision, gpu_limits);
        let take = |skip: u32| Take { skip: skip as usize + usize::from(xl), final_norm: !xl };
        let mut contexts = Vec::new();
        let mut pooled = None;
        for (index, part) in checkpoint.text_encoders.iter().enumerate() {
            let source = part.weights.as_ref();
            let claims = Claims::default();
            let w = Weights::new(index, source, &claims);
            let tokens = part.config.max_positions as u32;
            let ids = g.input(&format!("ids.{index}"), Shape::tokens(1, tokens, 1), DType::F32);
            let last = index + 1 == checkpoint.text_encoders.len();
            let ends = (xl && last).then(|| g.input("ends", Shape::new(1, 1, 1, 1), DType::F32));
            let takes = [take(clip_skip), take(0)];
            let vectors = clip::clip(&mut g, &w, &part.config, ids, ends, takes);
            pooled = vectors.pooled.or(pooled);
            contexts.push(vectors.contexts);
            claims.finish(source)?;
        }
        for (choice, name) in ["context", "negative_context"].into_iter().enumerate() {
            let mut joined = contexts[0][choice];
            for other in &contexts[1..] {
                joined = nn::concat(&mut g, name, joined, other[choice]);
            }
            g.output(name, joined);
        }
        if let Some(pooled) = pooled {
            g.output("pooled", pooled);
        }
        Ok(g)
    }

    pub fn new(gpu: &Arc<Gpu>, checkpoint: &Checkpoint, precision: DType, clip_skip: u32) -> Result<Self> {
        let graph = Self::build(checkpoint, gpu.limits(), precision, clip_skip)?;
        let parts: Vec<&dyn Source> = checkpoint.text_encoders.iter().map(|part| part.weights.as_ref()).collect();
        let executor = execute(gpu, &graph, &parts)?;
        let mut tokenizers = Vec::new();
        let mut ends = Vec::new();
        for part in &checkpoint.text_encoders {
            let tokenizer = tokenizer(&part.tokenizer)?;
            tokenizers.push((tokenizer, part.config.vocab_size));
            let eos = part.config.eos_token_id;
            ends.push(Ending { eos, largest: eos == 2 });
        }
        let pooled = checkpoint.class == PipelineClass::StableDiffusionXl;
        Ok(Self { executor, tokenizers, ends, pooled })
    }

    /// Encodes one prompt; also returns what of it was cut off, if anything.
    pub fn run(&self, prompt: &str, side: Side) -> Result<(TextVectors, Option<String>)> {
        let mut cut = None;
        for (index, (tokenizer, vocabulary)) in self.tokenizers.iter().enumerate() {
            let name = format!("ids.{index}");
            let length = self.executor.shape(&name)?.height as usize;
            let encoded = tokenizer.encode(prompt, length)?;
            if let Some(id) = encoded.ids.iter().find(|id| **id as usize >= *vocabulary) {
                return Err(Error::new("a token lies outside the text encoder's vocabulary")
                    .at(format!("text encoder {}", index + 1))
                    .expected(format!("ids below {vocabulary}"))
                    .found(id)
                    .hint("the tokenizer that belongs to this model"));
            }
            let words: Vec<u32> = encoded.ids.iter().flat_map(|id| [*id, 0, 0, 0]).collect();
            self.executor.write_bytes(&name, bytemuck::cast_slice(&words))?;
            if self.pooled && index + 1 == self.tokenizers.len() {
                let end = self.ends[index].row(&encoded.ids);
                self.executor.write_bytes("ends", bytemuck::cast_slice(&[end, 0, 0, 0]))?;
            }
            cut = cut.or(encoded.truncated);
        }
        self.executor.run();
        let pooled = self.pooled.then(|| self.executor.snapshot("pooled")).transpose()?;
        Ok((TextVectors { context: self.executor.snapshot(side.output())?, pooled }, cut))
    }
}

fn tokenizer(files: &TokenizerFiles) -> Result<ClipTokenizer> {
    let files = match files {
        TokenizerFiles::Folder { place, files } => {
            crate::text::TokenizerFiles::find(place, |name| Ok(files.get(name).cloned()))?
        }
        // OpenCLIP pads with "!", which is token 0; CLIP with the end token.
        TokenizerFiles::Clip { pad_token } => {
            crate::text::TokenizerFiles::Bundled { pad: if *pad_token == "!" { 0 } else { 49407 } }
        }
    };
    ClipTokenizer::load(&files)
}

impl Ending {
    fn row(&self, ids: &[u32]) -> u32 {
        let position = if self.largest {
            let largest = ids.iter().max();
            ids.iter().position(|id| Some(id) == largest)
        } else {
            ids.iter().position(|id| *id == self.eos)
        };
        position.unwrap_or(0) as u32
    }
}

/// The UNet and the solver's update.
pub(super) struct DenoiseStage {
    unet: Executor,
    step: Executor,
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
        let step = step_graph(gpu.limits(), precision, shape, batch, settings, program.slots as u32);
        let step = execute(gpu, &step, &[])?;
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
        Ok(Self { unet, step, shape, batch })
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
    pub fn start(&self, noise: &HostTensor, program: &Program) -> Result<()> {
        let Some(first) = program.evaluations.first() else { return Ok(()) };
        let slots = program.slots;
        let mut state = noise.channels_last().data;
        state.iter_mut().for_each(|value| *value *= program.init_noise_sigma);
        let input: Vec<f32> = state.iter().map(|value| value * first.input_scale).collect();
        state.resize(state.len() * slots, 0.0);
        self.step.write("state", &HostTensor { shape: vec![slots], data: state })?;
        let data = input.repeat(self.batch as usize);
        self.unet.write("sample", &HostTensor { shape: vec![self.batch as usize], data })
    }

    /// One call of the model and the update after it. `next_scale` scales the latent for the following call.
    pub fn evaluate(
        &self,
        evaluation: &Evaluation,
        guidance: f32,
        next_scale: f32,
        noise: Option<&HostTensor>,
    ) -> Result<()> {
        let batch = self.batch as usize;
        self.unet.write("timestep", &HostTensor { shape: vec![batch], data: vec![evaluation.timestep; batch] })?;
        self.unet.run();
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
        self.step.write_bytes("table", &coefficients.bytes())?;
        if let Some(noise) = noise {
            self.step.write("noise", &noise.channels_last())?;
        }
        self.step.copy_from("model_output", &self.unet.resident("prediction")?)?;
        self.step.run();
        self.step.copy_from("state", &self.step.resident("next")?)?;
        self.unet.copy_from("sample", &self.step.resident("model_input")?)
    }

    /// The solver's memory on the GPU, the latent first.
    pub fn state(&self) -> Result<Resident> {
        self.step.resident("state")
    }

    /// The latent [1, C, H, W] as it stands. Blocks.
    pub fn latent(&self) -> Result<HostTensor> {
        let rows = self.step.read("state")?;
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
        self.unet.bytes() + self.step.bytes()
    }
}

fn step_graph(
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

/// The VAE's decoder.
pub(super) struct DecodeStage {
    executor: Executor,
    picture: Shape,
}

impl DecodeStage {
    /// SDXL's autoencoder overflows f16 (its config says `force_upcast`): it runs in f32.
    fn precision(checkpoint: &Checkpoint, precision: DType) -> DType {
        let upcast = checkpoint.class == PipelineClass::StableDiffusionXl && checkpoint.vae.config.force_upcast;
        if upcast { DType::F32 } else { precision }
    }

    pub fn build(
        checkpoint: &Checkpoint,
        limits: crate::kernels::Limits,
        precision: DType,
        settings: &Settings,
    ) -> Result<Graph> {
        let config = &checkpoint.vae.config;
        let mut g = Graph::new(Self::precision(checkpoint, precision), limits);
        let source = checkpoint.vae.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let latent = DenoiseStage::latent_shape(checkpoint, settings);
        let latent = g.input("latent", latent, DType::F32);
        let picture = vae::decode(&mut g, &w, config, latent);
        g.output("image", picture);
        let shape = g.shape(picture);
        let dtype = g.dtype(picture);
        let quads = Shape::new(1, shape.positions().div_ceil(4), 1, 4);
        match pixels::call(shape.positions(), dtype, g.limits()) {
            Some(call) => {
                let packed = g.push("pixels", call, vec![picture.into()], quads, DType::F32);
                g.output("pixels", packed);
            }
            None => g.fail(Error::new("the picture does not fit the adapter").at("pixels").found(shape)),
        }
        claims.finish(source)?;
        Ok(g)
    }

    pub fn new(gpu: &Arc<Gpu>, checkpoint: &Checkpoint, precision: DType, settings: &Settings) -> Result<Self> {
        let graph = Self::build(checkpoint, gpu.limits(), precision, settings)?;
        let executor = execute(gpu, &graph, &[checkpoint.vae.weights.as_ref()])?;
        Ok(Self { executor, picture: Shape::new(1, settings.height, settings.width, 3) })
    }

    /// latent [1, C, H/8, W/8] -> red, green and blue of every pixel. Blocks.
    pub fn run(&self, state: &Resident) -> Result<Vec<u8>> {
        self.executor.copy_row("latent", 0, state)?;
        self.executor.run();
        let count = self.picture.positions() as usize;
        let packed = self.executor.read_bytes("pixels", (count * 4) as u64)?;
        if packed.chunks_exact(4).any(|pixel| pixel[3] != 255) {
            return Err(Error::new("the decoder made numbers that are not finite")
                .at("vae")
                .expected("a picture")
                .found("NaN or infinity")
                .hint("--precision f32"));
        }
        Ok(packed.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
    }

    /// The decoded picture before rounding [1, 3, H, W], around -1..1. Blocks.
    pub fn image(&self) -> Result<HostTensor> {
        Ok(self.executor.read("image")?.channels_first())
    }
}
