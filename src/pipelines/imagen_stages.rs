//! The stages of DeepFloyd IF on the GPU: what is settled before, the UNet's graphs, the picture that is enlarged, the pixels.

use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::resampling::{Resampling, Resize};
use crate::models::generator::context::{self, TextKeys};
use crate::models::generator::unet::{self, Conditioning};
use crate::models::nn;
use crate::pipelines::denoiser::{Denoiser, Run};
use crate::pipelines::pixels::{self, PixelsStage};
use crate::pipelines::request::Request;
use crate::pipelines::stages::{Side, execute};
use crate::sampling::{AysList, Program, SamplerKind, ScheduleKind, SchedulerConfig, published};
use crate::tensor::{DType, HostTensor};
use crate::weights::imagen::ImagenStage;
use crate::weights::{Claims, Source, Weights};

/// Tokens of a prompt, padding included: what IF's UNets were trained with.
pub(super) const TOKENS: u32 = 77;

/// What one stage does for a request.
#[derive(Debug, Clone)]
pub struct StageSettings {
    /// Pixels of its picture.
    pub height: u32,
    /// Pixels of its picture.
    pub width: u32,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Noise added to the picture that it enlarges, in steps of its schedule.
    pub noise_level: u32,
    /// Factors of that picture and of the noise.
    pub noising: [f32; 2],
    /// Solver and schedule.
    pub scheduler: SchedulerConfig,
    /// The published list of timesteps that it takes, by its word.
    pub list: Option<String>,
    /// The denoising run as a table.
    pub program: Program,
}

impl StageSettings {
    /// Fills in the stage's defaults; `position` 0 is the first stage, which `--steps`, `--cfg-scale`, `--sampler` and the
    /// picture's size are about; the later ones take their own, and `--sr-steps`.
    ///
    /// # Errors
    /// What the stage does not have, and sizes that its UNet cannot halve.
    pub fn resolve(stage: &ImagenStage, request: &Request, position: usize, stages: usize) -> Result<Self> {
        let (first, last) = (position == 0, position + 1 == stages);
        let config = &stage.unet.config;
        let [height, width] = size(stage, request, first, last)?;
        let defaults = stage.defaults;
        let place = format!("{}: scheduler", stage.name);
        let scheduler = SchedulerConfig::from_json(&stage.scheduler, &place)?;
        let word = request.schedule.as_deref().filter(|_| first);
        let sampler = request.sampler.as_deref().filter(|_| first).map(SamplerKind::from_str).transpose()?;
        let scheduler = match sampler {
            Some(kind) if kind != scheduler.sampler() => scheduler.with_sampler(kind)?,
            _ => scheduler,
        };
        let list = word.and_then(published::find);
        let scheduler = match word {
            Some(word) if list.is_none() => {
                scheduler.with_schedule(ScheduleKind::from_str(word)?, AysList::StableDiffusion)?
            }
            _ => scheduler,
        };
        let asked = if first { request.steps } else { request.sr_steps };
        if let (Some(list), Some(steps)) = (list, asked.filter(|steps| Some(*steps as usize) != list.map(<[_]>::len))) {
            return Err(Error::usage("steps of a published list of timesteps")
                .at("--steps")
                .expected(list.len())
                .found(steps)
                .hint("leaving out --steps"));
        }
        let program = scheduler.program(asked.unwrap_or(defaults.steps) as usize, list)?;
        let noise_level = if stage.enlarges() { request.noise_level.unwrap_or(defaults.noise_level) } else { 0 };
        let noising = match &stage.noising {
            Some(noising) => {
                let place = format!("{}: image_noising_scheduler", stage.name);
                let level = SchedulerConfig::from_json(noising, &place)?.noise_at(noise_level);
                level.map_err(|error| error.at("--noise-level"))?
            }
            None => [1.0, 0.0],
        };
        let guidance_scale = request.guidance_scale.filter(|_| first).unwrap_or(defaults.guidance_scale);
        let list = list.and(word).map(str::to_owned);
        let settings = Self { height, width, guidance_scale, noise_level, noising, scheduler, list, program };
        settings.run(3).check(&format!("{}: unet", stage.name))?;
        debug_assert!(config.out_channels == 6);
        Ok(settings)
    }

    /// Whether the UNet is asked twice, without and with the prompt.
    pub fn guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// The run over pictures of `channels` channels.
    pub(super) fn run(&self, channels: u32) -> Run {
        Run {
            program: self.program.clone(),
            sample: Shape::new(1, self.height, self.width, channels),
            predicted: 2 * channels,
            guided: self.guided(),
            guidance_scale: self.guidance_scale,
            guidance_rescale: 0.0,
        }
    }
}

/// Height and width of a stage's picture. A request's size is the last stage's; the ones before keep their own.
fn size(stage: &ImagenStage, request: &Request, first: bool, last: bool) -> Result<[u32; 2]> {
    let config = &stage.unet.config;
    let own = config.sample_size.map(|size| size.map(|axis| axis as u32));
    let asked = [(request.height, "-H/--height"), (request.width, "-W/--width")];
    let unit = 1 << (config.block_out_channels.len() - 1);
    let mut found = [0; 2];
    for (axis, (asked, option)) in asked.into_iter().enumerate() {
        let value = match (asked.filter(|_| last || first), own) {
            (Some(value), _) if last => value,
            (_, Some(own)) => own[axis],
            (Some(value), None) => value,
            (None, None) => {
                return Err(Error::usage("the model has no default size").at(option).hint("giving both -W and -H"));
            }
        };
        if value == 0 || !value.is_multiple_of(unit) {
            return Err(Error::usage("picture size")
                .at(option)
                .expected(format!("a positive multiple of {unit} pixels"))
                .found(value)
                .hint(format!("{}", (value / unit).max(1) * unit)));
        }
        found[axis] = value;
    }
    Ok(found)
}

/// The graphs of a stage.
pub(super) struct Graphs {
    /// `context` [B, T, D] -> what the UNet reads of the prompt.
    pub text: Graph,
    /// `sample`, `timestep`, perhaps `low` and `level`, and those -> `prediction`.
    pub unet: Graph,
    /// `picture`, `noise` -> `low`: the enlarged picture with noise.
    pub low: Option<Graph>,
    /// `picture` -> `pixels`.
    pub pixels: Graph,
}

impl Graphs {
    /// Builds the graphs for a picture of `from` [height, width] to enlarge. They take every tensor of the UNet.
    pub fn build(
        stage: &ImagenStage,
        settings: &StageSettings,
        limits: Limits,
        precision: DType,
        from: Option<[u32; 2]>,
    ) -> Result<Self> {
        let config = &stage.unet.config;
        let batch = 1 + u32::from(settings.guided());
        let source = stage.unet.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let mut text = Graph::new(precision, limits);
        let width = config.text_width().unwrap_or(config.cross_attention_dim) as u32;
        let vectors = text.input("context", Shape::tokens(batch, TOKENS, width), precision);
        let made = context::text_keys(&mut text, &w, config, vectors);
        made.iter().for_each(|(path, value)| text.output(path, value));
        let mut g = Graph::new(precision, limits);
        let picture = Shape::new(batch, settings.height, settings.width, 3);
        let sample = g.input("sample", picture, precision);
        let row = Shape::new(batch, 1, 1, 1);
        let timestep = g.input("timestep", row, DType::F32);
        let mut given = Conditioning::new(timestep);
        let mut x = sample;
        if stage.enlarges() {
            let low = g.input("low", picture, precision);
            x = nn::concat(&mut g, "low", sample, low);
            given.class = Some(g.input("level", row, DType::F32));
        }
        let read = made.iter().map(|(path, value)| (path.to_owned(), g.input(path, text.shape(value), precision)));
        let read: TextKeys = read.collect();
        let prediction = unet::unet(&mut g, &w, config, x, given, &read);
        g.output("prediction", prediction);
        claims.finish(source)?;
        let low = from.map(|from| {
            let tables =
                Resampling::new(Resize::Bilinear { align_corners: true }, from, [settings.height, settings.width]);
            mixed(settings.noising, Some(&tables), limits, precision, from)
        });
        Ok(Self { text, unet: g, low, pixels: pixels::graph([settings.height, settings.width], limits) })
    }

    /// All of them by name.
    pub fn named(self) -> Vec<(&'static str, Graph)> {
        let mut all = vec![("context", self.text), ("unet", self.unet), ("pixels", self.pixels)];
        all.extend(self.low.map(|graph| ("picture", graph)));
        all
    }
}

/// `picture` of the size `from` and `noise` -> `low`: the picture resized by `tables`, if there are any, and mixed with noise by
/// the factors `noising`.
pub(super) fn mixed(
    noising: [f32; 2],
    tables: Option<&Resampling>,
    limits: Limits,
    precision: DType,
    from: [u32; 2],
) -> Graph {
    let mut g = Graph::new(precision, limits);
    let to = tables.map_or(from, |tables| [tables.rows.output(), tables.columns.output()]);
    let picture = g.input("picture", Shape::new(1, from[0], from[1], 3), DType::F32);
    let noise = g.input("noise", Shape::new(1, to[0], to[1], 3), DType::F32);
    let wide = tables.map_or(picture, |tables| nn::resample(&mut g, "picture", picture, tables, DType::F32));
    let shape = g.shape(noise);
    let [scale_a, scale_b] = noising;
    let mix = Elementwise { scale_a, scale_b: Some(scale_b), shift: 0.0, activation: Activation::None };
    let types = [DType::F32, DType::F32, precision];
    let call = elementwise::call(mix, shape.rows(), shape.channels, types, g.limits());
    let low = nn::push(&mut g, "low", call, vec![wide.into(), noise.into()], shape, precision);
    g.output("low", low);
    g
}

/// A stage on the GPU, with its solver.
pub(super) struct PixelStage {
    pub denoiser: Denoiser,
    low: Option<Executor>,
    pixels: PixelsStage,
    batch: u32,
}

impl PixelStage {
    /// Loads the stage for these prompts, the negative one first. What comes of their vectors is computed first, so that the
    /// weights which make it are gone before the UNet's are there.
    pub fn new(
        gpu: &Arc<Gpu>,
        (stage, settings): (&ImagenStage, &StageSettings),
        precision: DType,
        from: Option<[u32; 2]>,
        prompts: &[(Side, Resident)],
    ) -> Result<Self> {
        let graphs = Graphs::build(stage, settings, gpu.limits(), precision, from)?;
        let weights: [&dyn Source; 1] = [stage.unet.weights.as_ref()];
        let batch = 1 + u32::from(settings.guided());
        let text = execute(gpu, &graphs.text, &weights)?;
        for (side, vectors) in prompts.iter().filter(|(side, _)| batch > 1 || *side == Side::Prompt) {
            text.copy_row("context", side.row(batch), vectors)?;
        }
        text.run().wait()?;
        let keys = graphs.text.outputs.iter().map(|(path, _)| Ok((path.as_str(), text.resident(path)?)));
        let keys: Vec<(&str, Resident)> = keys.collect::<Result<_>>()?;
        drop(text);
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let shared: Vec<(&str, &Resident)> = keys.iter().map(|(path, resident)| (*path, resident)).collect();
        let denoiser = Denoiser::new(gpu, &graphs.unet, &shared, &weights, settings.run(3))?;
        let low = graphs.low.as_ref().map(|graph| execute(gpu, graph, &[])).transpose()?;
        let pixels = PixelsStage::new(gpu, [settings.height, settings.width])?;
        Ok(Self { denoiser, low, pixels, batch })
    }

    /// Gives the UNet the picture [1, 3, H, W] to enlarge, with this noise [1, 3, H', W'] mixed into it.
    pub fn enlarge(&self, picture: &HostTensor, noise: &HostTensor, level: u32) -> Result<Option<HostTensor>> {
        let Some(low) = &self.low else { return Ok(None) };
        low.write("picture", &picture.channels_last())?;
        low.write("noise", &noise.channels_last())?;
        low.run();
        let made = low.resident("low")?;
        let model = self.denoiser.model();
        for row in 0..self.batch {
            model.copy_row("low", row, &made)?;
        }
        let count = self.batch as usize;
        model.write("level", &HostTensor { shape: vec![count], data: vec![level as f32; count] })?;
        Ok(Some(low.read("low")?.channels_first()))
    }

    /// Red, green and blue of every pixel of [1, 3, H, W]. Blocks.
    pub fn pixels(&self, picture: &HostTensor) -> Result<Vec<u8>> {
        self.pixels.run(picture)
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.denoiser.bytes()
    }
}
