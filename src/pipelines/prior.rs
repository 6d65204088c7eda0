//! unCLIP's first stage, which Karlo and Kandinsky 2.2 share: texts -> pictures' embeddings, by a prior that denoises them.

use std::sync::Arc;

use super::clip_stage::ClipText;
use super::denoiser::{Denoiser, Run};
use super::stages::execute;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape, Value};
use crate::kernels::Limits;
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::models::generator::prior::{self, PriorText};
use crate::models::nn;
use crate::sampling::{Program, SamplerKind, SchedulerConfig, TorchGenerator};
use crate::tensor::{DType, HostTensor};
use crate::weights::prior::PriorPart;
use crate::weights::{Claims, Source, Weights};

/// What the prior does for a request.
#[derive(Debug, Clone)]
pub struct PriorSettings {
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Whether the prior is asked twice, without and with the prompt.
    pub guided: bool,
    /// The denoising run as a table.
    pub program: Program,
    /// Embeddings that are made at once.
    pub samples: u32,
    /// Channels of an embedding.
    pub width: u32,
}

impl PriorSettings {
    /// `samples` embeddings in `steps` steps; `place` names the model in errors.
    ///
    /// # Errors
    /// A scheduler or a number of steps that diffusers' pipelines do not run.
    pub fn resolve(
        part: &PriorPart,
        (steps, guidance_scale, guided): (u32, f32, bool),
        samples: u32,
        place: &str,
    ) -> Result<Self> {
        let program = unclip_program(&part.scheduler, steps, &format!("{place}: prior's scheduler"), "--prior-steps")?;
        let width = part.prior.config.embedding_dim as u32;
        let settings = Self { guidance_scale, guided, program, samples, width };
        settings.run().check(&format!("{place}: prior"))?;
        Ok(settings)
    }

    /// The run over all embeddings as one vector, the order in which diffusers draws their noise.
    pub(super) fn run(&self) -> Run {
        let channels = self.samples * self.width;
        Run {
            program: self.program.clone(),
            sample: Shape::new(1, 1, 1, channels),
            predicted: channels,
            guided: self.guided,
            guidance_scale: self.guidance_scale,
            guidance_rescale: 0.0,
        }
    }
}

/// The table of `steps` steps of an `UnCLIPScheduler`, the one class whose steps take the timestep that follows; `option` is
/// how steps are asked for.
pub(super) fn unclip_program(scheduler: &serde_json::Value, steps: u32, place: &str, option: &str) -> Result<Program> {
    let config = SchedulerConfig::from_json(scheduler, place)?;
    if config.sampler() != SamplerKind::UnClip {
        return Err(Error::new("unsupported scheduler").at(place).expected("UnCLIPScheduler").found(config.sampler()));
    }
    config.program(steps as usize, None).map_err(|error| error.at(option))
}

/// The graphs of the prior.
pub(super) struct PriorGraphs {
    /// `vectors` [B, T, D], `embedding` [B, 1, 1, E] -> `tokens` and `token`, what all steps read of the text.
    pub text: Graph,
    /// `sample`, `timestep`, those and `mask` -> `prediction`.
    pub model: Graph,
    /// `sample` -> `embedding`, as CLIP has it, stored as the next stage reads it.
    pub finish: Graph,
}

impl PriorGraphs {
    /// Builds the graphs. They take every tensor of the prior.
    ///
    /// # Errors
    /// A missing or an unexpected tensor; several embeddings that do not end on whole vectors.
    pub fn build(part: &PriorPart, settings: &PriorSettings, limits: Limits, precision: DType) -> Result<Self> {
        let config = &part.prior.config;
        let source = part.prior.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let (samples, width) = (settings.samples, settings.width);
        if samples > 1 && !width.is_multiple_of(4) {
            return Err(Error::new("unsupported prior")
                .at("`embedding_dim`")
                .expected("a multiple of 4 where several embeddings are made at once")
                .found(width));
        }
        let runs = settings.run().batch();
        let batch = runs * samples;
        let mut text = Graph::new(precision, limits);
        let tokens = Shape::tokens(batch, config.text_tokens as u32, config.text_width() as u32);
        let vectors = text.input("vectors", tokens, precision);
        let row = Shape::new(batch, 1, 1, config.text_embedding_dim as u32);
        let embedding = text.input("embedding", row, precision);
        let made = prior::text(&mut text, &w, config, vectors, embedding);
        text.output("tokens", made.vectors);
        text.output("token", made.embedding);
        let mut g = Graph::new(precision, limits);
        let sample = g.input("sample", Shape::new(runs, 1, 1, samples * width), precision);
        let timestep = g.input("timestep", Shape::new(runs, 1, 1, 1), DType::F32);
        let read = PriorText {
            vectors: g.input("tokens", text.shape(made.vectors), precision),
            embedding: g.input("token", text.shape(made.embedding), precision),
        };
        let mask = g.input("mask", Shape::new(batch, 1, 1, config.tokens() as u32), DType::F32);
        let each = split(&mut g, sample, batch);
        let prediction = prior::prior(&mut g, &w, config, (each, timestep), read, mask);
        let prediction = split(&mut g, prediction, runs);
        g.output("prediction", prediction);
        let mut finish = Graph::new(DType::F32, limits);
        let sample = finish.input("sample", Shape::new(1, 1, 1, samples * width), DType::F32);
        let each = split(&mut finish, sample, samples);
        let whole = prior::post_process(&mut finish, &w, each);
        let copy = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: Activation::None };
        let types = [DType::F32, DType::F32, precision];
        let call = elementwise::call(copy, samples, width, types, finish.limits());
        let shape = Shape::new(samples, 1, 1, width);
        let stored = nn::push(&mut finish, "embedding", call, vec![whole.into(), whole.into()], shape, precision);
        finish.output("embedding", stored);
        claims.finish(source)?;
        Ok(Self { text, model: g, finish })
    }

    /// All of them by name.
    pub fn named(self) -> Vec<(&'static str, Graph)> {
        vec![("prior text", self.text), ("prior", self.model), ("prior embedding", self.finish)]
    }
}

/// The same vectors in `batch` rows.
fn split(g: &mut Graph, x: Value, batch: u32) -> Value {
    let from = g.shape(x);
    if from.batch == batch {
        return x;
    }
    nn::reshaped(g, "rows", x, Shape::new(batch, 1, 1, from.batch * from.channels / batch))
}

/// The prior on the GPU, with its solver.
pub(super) struct PriorStage {
    pub denoiser: Denoiser,
    finish: Executor,
    run: Run,
    samples: usize,
    width: usize,
}

impl PriorStage {
    /// Loads the prior for these texts: one for each embedding, with guidance behind as many for its other side, as diffusers
    /// joins them. What comes of the texts is computed first, so that the weights which make it are gone before the rest is
    /// there.
    ///
    /// # Errors
    /// What does not fit the device.
    pub fn new(
        gpu: &Arc<Gpu>,
        part: &PriorPart,
        settings: &PriorSettings,
        precision: DType,
        texts: &[&ClipText],
    ) -> Result<Self> {
        let graphs = PriorGraphs::build(part, settings, gpu.limits(), precision)?;
        let weights: [&dyn Source; 1] = [part.prior.weights.as_ref()];
        let run = settings.run();
        assert!(texts.len() as u32 == run.batch() * settings.samples, "a prior of other texts");
        let text = execute(gpu, &graphs.text, &weights)?;
        for (row, given) in texts.iter().enumerate() {
            text.copy_row("vectors", row as u32, &given.vectors)?;
            text.copy_row("embedding", row as u32, &given.embedding)?;
        }
        text.run().wait()?;
        let (tokens, token) = (text.resident("tokens")?, text.resident("token")?);
        drop(text);
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let shared = [("tokens", &tokens), ("token", &token)];
        let denoiser = Denoiser::new(gpu, &graphs.model, &shared, &weights, run.clone())?;
        let config = &part.prior.config;
        let mask = texts.iter().flat_map(|text| text.mask(0, config.tokens() - text.tokens));
        let mask = HostTensor { shape: vec![texts.len(), config.tokens()], data: mask.collect() };
        denoiser.model().write("mask", &mask)?;
        let finish = execute(gpu, &graphs.finish, &weights)?;
        let (samples, width) = (settings.samples as usize, settings.width as usize);
        Ok(Self { denoiser, finish, run, samples, width })
    }

    /// Begins with the generator's next noise, which is returned: [N, E].
    pub fn start(&mut self, generator: &mut TorchGenerator) -> Result<HostTensor> {
        let noise = self.run.draw(generator);
        self.denoiser.start(&noise)?;
        Ok(self.flat(noise))
    }

    /// The embeddings [N, E] as they stand. Blocks.
    pub fn latents(&self) -> Result<HostTensor> {
        Ok(self.flat(self.denoiser.latent()?))
    }

    fn flat(&self, tensor: HostTensor) -> HostTensor {
        HostTensor { shape: vec![self.samples, self.width], ..tensor }
    }

    /// The finished embeddings as CLIP has them, [1, 1, 1, E] each, on the GPU; and [N, E] on the host. Blocks.
    ///
    /// # Errors
    /// When they are not finite.
    pub fn finished(&self, gpu: &Gpu) -> Result<(Vec<Resident>, HostTensor)> {
        let sample = self.denoiser.finished()?;
        self.finish.write("sample", &sample)?;
        self.finish.run();
        let read = self.finish.read("embedding")?;
        Ok((self.finish.resident("embedding")?.rows(gpu)?, self.flat(read)))
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.denoiser.bytes() + self.finish.bytes()
    }
}
