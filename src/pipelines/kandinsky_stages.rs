//! Kandinsky 2.2's stages behind the prior on the GPU: what is settled before, the embedding of a black picture, the UNet, MoVQ's
//! decoder.

use std::str::FromStr;
use std::sync::Arc;

use super::denoiser::{Denoiser, Run};
use super::prior::PriorSettings;
use super::request::Request;
use super::stages::execute;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::kernels::{Limits, pixels};
use crate::models::decoder::movq;
use crate::models::generator::context::{self, PromptVectors, TextKeys};
use crate::models::generator::unet::{self, Conditioning};
use crate::models::nn;
use crate::models::vision::clip_image;
use crate::sampling::{AysList, Program, SamplerKind, ScheduleKind, SchedulerConfig};
use crate::tensor::{DType, HostTensor};
use crate::weights::kandinsky::KandinskyCheckpoint;
use crate::weights::{Claims, Source, Weights};

/// Defaults of diffusers' `KandinskyV22PriorPipeline`.
const PRIOR_STEPS: u32 = 25;
const PRIOR_SCALE: f32 = 4.0;
/// Defaults of diffusers' `KandinskyV22Pipeline`.
const STEPS: u32 = 100;
const SCALE: f32 = 4.0;
const SIDE: u32 = 512;

/// What Kandinsky 2.2 does for a request.
#[derive(Debug, Clone)]
pub struct KandinskySettings {
    /// The prior's. It makes a second embedding where there is a negative prompt.
    pub prior: PriorSettings,
    /// Height and width of the picture in pixels.
    pub size: [u32; 2],
    /// Height, width and channels of the latent.
    pub latent: [u32; 3],
    /// The decoder's guidance scale.
    pub guidance_scale: f32,
    /// Solver and schedule of the decoder.
    pub scheduler: SchedulerConfig,
    /// The decoder's run as a table.
    pub program: Program,
}

impl KandinskySettings {
    /// Fills in the defaults.
    ///
    /// # Errors
    /// What Kandinsky does not have; schedulers and numbers of steps that diffusers does not run.
    pub fn resolve(checkpoint: &KandinskyCheckpoint, request: &Request) -> Result<Self> {
        refuse(request)?;
        let name = &checkpoint.name;
        let prior_scale = request.prior_guidance_scale.unwrap_or(PRIOR_SCALE);
        let asked = (request.prior_steps.unwrap_or(PRIOR_STEPS), prior_scale, prior_scale > 1.0);
        let samples = 1 + u32::from(request.negative_prompt.is_some());
        let prior = PriorSettings::resolve(&checkpoint.prior, asked, samples, name)?;
        let scheduler = scheduler(request, checkpoint)?;
        let program = scheduler.program(request.steps.unwrap_or(STEPS) as usize, None)?;
        let scale = checkpoint.movq.config.scale() as u32;
        let sides = [(request.height, "-H/--height"), (request.width, "-W/--width")];
        let sides = sides.map(|(asked, option)| side(asked.unwrap_or(SIDE), scale, option));
        let [height, width] = sides;
        let [height, width] = [height?, width?];
        let settings = Self {
            prior,
            size: [height * scale, width * scale],
            latent: [height, width, checkpoint.movq.config.latent_channels as u32],
            guidance_scale: request.guidance_scale.unwrap_or(SCALE),
            scheduler,
            program,
        };
        settings.run().check(&format!("{name}: unet"))?;
        check_latents(request.latents.as_ref(), &settings.run())?;
        Ok(settings)
    }

    /// Whether the UNet is asked twice, for the picture's embedding and for what it is led away from.
    pub fn guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Whether that is the embedding of a black picture: there is no negative prompt.
    pub fn black(&self) -> bool {
        self.guided() && self.prior.samples == 1
    }

    /// The decoder's run.
    pub(super) fn run(&self) -> Run {
        let [height, width, channels] = self.latent;
        Run {
            program: self.program.clone(),
            sample: Shape::new(1, height, width, channels),
            predicted: 2 * channels,
            guided: self.guided(),
            guidance_scale: self.guidance_scale,
            guidance_rescale: 0.0,
        }
    }
}

/// The latent's side for a picture's. As in diffusers' `downscale_height_and_width`, a side that is no multiple of the square
/// of MoVQ's `scale` grows to the next one.
fn side(pixels: u32, scale: u32, option: &str) -> Result<u32> {
    if pixels == 0 {
        return Err(Error::usage("picture size").at(option).expected("1 pixel or more").found(pixels));
    }
    Ok(pixels.div_ceil(scale * scale) * scale)
}

fn scheduler(request: &Request, checkpoint: &KandinskyCheckpoint) -> Result<SchedulerConfig> {
    let config = SchedulerConfig::from_json(&checkpoint.scheduler, &format!("{}: scheduler", checkpoint.name))?;
    let config = match request.sampler.as_deref().map(SamplerKind::from_str).transpose()? {
        Some(kind) if kind != config.sampler() => config.with_sampler(kind)?,
        _ => config,
    };
    match request.schedule.as_deref().map(ScheduleKind::from_str).transpose()? {
        Some(kind) => config.with_schedule(kind, AysList::StableDiffusion),
        None => Ok(config),
    }
}

fn check_latents(latents: Option<&HostTensor>, run: &Run) -> Result<()> {
    let axes = run.axes();
    match latents.filter(|latents| latents.shape != axes) {
        None => Ok(()),
        Some(latents) => Err(Error::usage("initial latents of another shape")
            .at("--latents")
            .expected(format!("{axes:?}"))
            .found(format!("{:?}", latents.shape))),
    }
}

fn refuse(request: &Request) -> Result<()> {
    Request::refuse(
        "Kandinsky 2.2",
        &[
            ("--guidance-rescale", request.guidance_rescale != 0.0, "its predictions have a variance"),
            ("--clip-skip", request.clip_skip.is_some(), "the prior reads the last layer"),
            ("--top-k", request.top_k.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--temperature", request.temperature.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--noise-level", request.noise_level.is_some(), "it takes no picture"),
            ("--sr-steps", request.sr_steps.is_some(), "it has no super-resolution stage"),
            ("a picture", request.image.is_some(), "it draws from text alone"),
        ],
    )
}

/// `picture` [1, S, S, 3] as the image encoder takes it -> `embedding` [1, 1, 1, E]. Takes every tensor of the encoder.
pub(super) fn image_graph(checkpoint: &KandinskyCheckpoint, limits: Limits, precision: DType) -> Result<Graph> {
    let mut g = Graph::new(precision, limits);
    let part = &checkpoint.image_encoder;
    let (source, side) = (part.weights.as_ref(), part.config.image_size as u32);
    let claims = Claims::default();
    let picture = g.input("picture", Shape::new(1, side, side, 3), DType::F32);
    let made = clip_image::clip_image(&mut g, &Weights::new(0, source, &claims), &part.config, picture);
    // In the graph's precision, from f32.
    let stored = nn::scale(&mut g, "embedding", made, 1.0, 0.0);
    g.output("embedding", stored);
    claims.finish(source)?;
    Ok(g)
}

/// The embedding of a picture of zeros, which is not prepared as others are (diffusers `get_zero_embed`).
pub(super) fn black(gpu: &Arc<Gpu>, checkpoint: &KandinskyCheckpoint, precision: DType) -> Result<Resident> {
    let graph = image_graph(checkpoint, gpu.limits(), precision)?;
    let encoder = execute(gpu, &graph, &[checkpoint.image_encoder.weights.as_ref()])?;
    let side = checkpoint.image_encoder.config.image_size;
    encoder.write("picture", &HostTensor { shape: vec![1, side, side, 3], data: vec![0.0; side * side * 3] })?;
    encoder.run().wait()?;
    encoder.resident("embedding")
}

/// The UNet's graphs.
pub(super) struct UnetGraphs {
    /// `image` [B, 1, 1, E] -> what the UNet reads of the embedding.
    pub image: Graph,
    /// `sample`, `timestep` and those -> `prediction`.
    pub unet: Graph,
}

impl UnetGraphs {
    /// Builds the graphs. They take every tensor of the UNet.
    pub fn build(
        checkpoint: &KandinskyCheckpoint,
        settings: &KandinskySettings,
        limits: Limits,
        precision: DType,
    ) -> Result<Self> {
        let config = &checkpoint.unet.config;
        let source = checkpoint.unet.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let run = settings.run();
        let batch = run.batch();
        let mut image = Graph::new(precision, limits);
        let embedding = image.input("image", Shape::new(batch, 1, 1, settings.prior.width), precision);
        let given = PromptVectors { image: Some(embedding), ..PromptVectors::default() };
        let made = context::text_keys(&mut image, &w, config, given);
        made.iter().for_each(|(path, value)| image.output(path, value));
        let mut g = Graph::new(precision, limits);
        let sample = g.input("sample", Shape { batch, ..run.sample }, precision);
        let timestep = g.input("timestep", Shape::new(batch, 1, 1, 1), DType::F32);
        let read = made.iter().map(|(path, value)| (path.to_owned(), g.input(path, image.shape(value), precision)));
        let read: TextKeys = read.collect();
        let prediction = unet::unet(&mut g, &w, config, sample, Conditioning::new(timestep), &read);
        g.output("prediction", prediction);
        claims.finish(source)?;
        Ok(Self { image, unet: g })
    }
}

/// The UNet for these embeddings, that which guidance leads away from first.
pub(super) fn load_unet(
    gpu: &Arc<Gpu>,
    checkpoint: &KandinskyCheckpoint,
    settings: &KandinskySettings,
    precision: DType,
    embeddings: &[&Resident],
) -> Result<Denoiser> {
    let graphs = UnetGraphs::build(checkpoint, settings, gpu.limits(), precision)?;
    let sources: [&dyn Source; 1] = [checkpoint.unet.weights.as_ref()];
    let image = execute(gpu, &graphs.image, &sources)?;
    for (row, embedding) in embeddings.iter().enumerate() {
        image.copy_row("image", row as u32, embedding)?;
    }
    image.run().wait()?;
    let made = graphs.image.outputs.iter().map(|(path, _)| Ok((path.as_str(), image.resident(path)?)));
    let made: Vec<(&str, Resident)> = made.collect::<Result<_>>()?;
    drop(image);
    // The adapter takes memory back when it is next waited for.
    gpu.wait()?;
    let shared: Vec<(&str, &Resident)> = made.iter().map(|(path, resident)| (*path, resident)).collect();
    Denoiser::new(gpu, &graphs.unet, &shared, &sources, settings.run())
}

/// `latent` [1, h, w, C] -> `image` [1, H, W, 3] and `pixels`, four bytes of each. Takes every tensor of MoVQ's decoder.
pub(super) fn movq_graph(
    checkpoint: &KandinskyCheckpoint,
    settings: &KandinskySettings,
    limits: Limits,
    precision: DType,
) -> Result<Graph> {
    let mut g = Graph::new(precision, limits);
    let source = checkpoint.movq.weights.as_ref();
    let claims = Claims::default();
    let latent = g.input("latent", settings.run().sample, DType::F32);
    let picture = movq::decode(&mut g, &Weights::new(0, source, &claims), &checkpoint.movq.config, latent);
    g.output("image", picture);
    let (shape, dtype) = (g.shape(picture), g.dtype(picture));
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

/// MoVQ's decoder on the GPU.
pub(super) struct MovqStage {
    executor: Executor,
    positions: u64,
}

impl MovqStage {
    /// Loads it.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &KandinskyCheckpoint,
        settings: &KandinskySettings,
        precision: DType,
    ) -> Result<Self> {
        let graph = movq_graph(checkpoint, settings, gpu.limits(), precision)?;
        let executor = execute(gpu, &graph, &[checkpoint.movq.weights.as_ref()])?;
        let positions = settings.size.map(u64::from).iter().product();
        Ok(Self { executor, positions })
    }

    /// The latent, first in a solver's memory -> red, green and blue of every pixel. Blocks.
    ///
    /// # Errors
    /// A picture that is not finite.
    pub fn run(&self, state: &Resident) -> Result<Vec<u8>> {
        self.executor.copy_row("latent", 0, state)?;
        self.executor.run();
        let packed = self.executor.read_bytes("pixels", self.positions * 4)?;
        if packed.chunks_exact(4).any(|pixel| pixel[3] != 255) {
            return Err(Error::new("the decoder made numbers that are not finite")
                .at("movq")
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
