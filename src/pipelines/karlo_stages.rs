//! Karlo's stages over pictures on the GPU: what is settled before, the decoder, and the two UNets that enlarge its picture.

use std::sync::Arc;

use super::clip_stage::ClipText;
use super::denoiser::{Denoiser, Run, Standing};
use super::prior::{PriorSettings, unclip_program};
use super::request::Request;
use super::stages::execute;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Resident;
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::kernels::elementwise::Activation;
use crate::kernels::resampling::{Filter, Resampling, Resize};
use crate::models::config::UnetConfig;
use crate::models::generator::context::{self, TextKeys};
use crate::models::generator::text_proj::text_proj;
use crate::models::generator::unet::{self, Conditioning};
use crate::models::nn;
use crate::sampling::Program;
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::Part;
use crate::weights::karlo::KarloCheckpoint;
use crate::weights::{Claims, Source, Weights};

/// Defaults of diffusers' `UnCLIPPipeline`.
const STEPS: [u32; 3] = [25, 25, 7];
const PRIOR_SCALE: f32 = 4.0;
const DECODER_SCALE: f32 = 8.0;

/// A run over pictures.
#[derive(Debug, Clone)]
pub struct PictureSettings {
    /// Height and width in pixels.
    pub size: [u32; 2],
    /// The denoising run as a table.
    pub program: Program,
    /// Channels of the UNet's prediction.
    pub predicted: u32,
}

/// What Karlo does for a request.
#[derive(Debug, Clone)]
pub struct KarloSettings {
    /// The prior's.
    pub prior: PriorSettings,
    /// The decoder's.
    pub decoder: PictureSettings,
    /// The decoder's guidance scale.
    pub guidance_scale: f32,
    /// Prior and decoder are asked twice, without and with the prompt: where either's guidance scale is above 1.
    pub guided: bool,
    /// That of the enlargement.
    pub super_resolution: PictureSettings,
}

impl KarloSettings {
    /// Fills in the defaults.
    ///
    /// # Errors
    /// What Karlo does not have; schedulers and numbers of steps that diffusers does not run.
    pub fn resolve(checkpoint: &KarloCheckpoint, request: &Request) -> Result<Self> {
        refuse(request)?;
        let prior_scale = request.prior_guidance_scale.unwrap_or(PRIOR_SCALE);
        let guidance_scale = request.guidance_scale.unwrap_or(DECODER_SCALE);
        let guided = prior_scale > 1.0 || guidance_scale > 1.0;
        let name = &checkpoint.name;
        let steps = [request.prior_steps, request.steps, request.sr_steps];
        let [prior_steps, steps, sr_steps] = [0, 1, 2].map(|stage: usize| steps[stage].unwrap_or(STEPS[stage]));
        let prior = PriorSettings::resolve(&checkpoint.prior, (prior_steps, prior_scale, guided), 1, name)?;
        let picture = |part: &Part<UnetConfig>, scheduler, steps, (place, option): (&str, &str)| {
            let place = format!("{name}: {place}");
            let size = part.config.sample_size.map(|size| size.map(|axis| axis as u32)).ok_or_else(|| {
                Error::new("unsupported config")
                    .at(format!("{place}: `sample_size`"))
                    .expected("a size")
                    .found("nothing")
            })?;
            let program = unclip_program(scheduler, steps, &format!("{place}'s scheduler"), option)?;
            Ok(PictureSettings { size, program, predicted: part.config.out_channels as u32 })
        };
        let decoder = picture(&checkpoint.decoder, &checkpoint.decoder_scheduler, steps, ("decoder", "--steps"))?;
        let [first, _] = &checkpoint.super_resolution;
        let option = ("super resolution", "--sr-steps");
        let super_resolution = picture(first, &checkpoint.super_resolution_scheduler, sr_steps, option)?;
        let settings = Self { prior, decoder, guidance_scale, guided, super_resolution };
        settings.decoder_run().check(&format!("{name}: decoder"))?;
        settings.super_resolution_run().check(&format!("{name}: super resolution"))?;
        for (part, picture) in [("decoder", &settings.decoder), ("super_res", &settings.super_resolution)] {
            if picture.predicted != 3 && !picture.program.learned_variance {
                let place = format!("{name}: {part}_scheduler: `variance_type`");
                let error = Error::new("scheduler and model do not fit each other").at(place);
                return Err(error.expected("learned_range, as the UNet predicts a variance").found("a fixed one"));
            }
        }
        Ok(settings)
    }

    pub(super) fn decoder_run(&self) -> Run {
        self.decoder.run(self.guided, self.guidance_scale)
    }

    pub(super) fn super_resolution_run(&self) -> Run {
        self.super_resolution.run(false, 1.0)
    }
}

impl PictureSettings {
    fn run(&self, guided: bool, guidance_scale: f32) -> Run {
        let [height, width] = self.size;
        Run {
            program: self.program.clone(),
            sample: Shape::new(1, height, width, 3),
            predicted: self.predicted,
            guided,
            guidance_scale,
            guidance_rescale: 0.0,
        }
    }
}

fn refuse(request: &Request) -> Result<()> {
    Request::refuse(
        "Karlo",
        &[
            ("-n/--negative-prompt", request.negative_prompt.is_some(), "its guidance is against an empty prompt"),
            ("-W/--width", request.width.is_some(), "its pictures have one size"),
            ("-H/--height", request.height.is_some(), "its pictures have one size"),
            ("--sampler", request.sampler.is_some(), "its stages have the sampler that they were made for"),
            ("--schedule", request.schedule.is_some(), "its stages have the schedule that they were made for"),
            ("--guidance-rescale", request.guidance_rescale != 0.0, "its predictions have a variance"),
            ("--clip-skip", request.clip_skip.is_some(), "prior and decoder read the last layer"),
            ("--latents", request.latents.is_some(), "each of its three stages begins with noise of its own"),
            ("--top-k", request.top_k.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--temperature", request.temperature.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--noise-level", request.noise_level.is_some(), "no noise is added to the picture that is enlarged"),
            ("a picture", request.image.is_some(), "it draws from text alone"),
        ],
    )
}

/// The decoder's graphs.
pub(super) struct DecoderGraphs {
    /// `image` [1, 1, 1, D], `embedding` [B, 1, 1, D], `vectors` [B, T, D] -> `class` and what the UNet reads of the text.
    pub text: Graph,
    /// `sample`, `timestep`, those and `mask` -> `prediction`.
    pub unet: Graph,
}

impl DecoderGraphs {
    /// Builds the graphs. They take every tensor of the text's projections (part 0) and of the decoder (part 1).
    pub fn build(
        checkpoint: &KarloCheckpoint,
        settings: &KarloSettings,
        limits: Limits,
        precision: DType,
    ) -> Result<Self> {
        let KarloCheckpoint { text_proj: projections, decoder, prior, .. } = checkpoint;
        let sources = [projections.weights.as_ref(), decoder.weights.as_ref()];
        let claims = [Claims::default(), Claims::default()];
        let [of_text, w] = [0, 1].map(|part: usize| Weights::new(part, sources[part], &claims[part]));
        let batch = 1 + u32::from(settings.guided);
        let width = projections.config.clip_dim as u32;
        let tokens = prior.text.config.max_positions as u32;
        let mut text = Graph::new(precision, limits);
        let image = text.input("image", Shape::new(1, 1, 1, width), precision);
        let embedding = text.input("embedding", Shape::new(batch, 1, 1, width), precision);
        let vectors = text.input("vectors", Shape::tokens(batch, tokens, width), precision);
        let given = text_proj(&mut text, &of_text, &projections.config, image, (embedding, vectors));
        let made = context::text_keys(&mut text, &w, &decoder.config, given.context);
        made.iter().for_each(|(path, value)| text.output(path, value));
        text.output("class", given.class);
        let mut g = Graph::new(precision, limits);
        let [height, width] = settings.decoder.size;
        let sample = g.input("sample", Shape::new(batch, height, width, 3), precision);
        let timestep = g.input("timestep", Shape::new(batch, 1, 1, 1), DType::F32);
        let class = Some(g.input("class", text.shape(given.class), precision));
        let read: TextKeys =
            made.iter().map(|(path, value)| (path.to_owned(), g.input(path, text.shape(value), precision))).collect();
        let all = tokens + projections.config.extra_tokens as u32;
        let mask = Some(g.input("mask", Shape::new(batch, 1, 1, all), DType::F32));
        let conditioning = Conditioning { class, mask, ..Conditioning::new(timestep) };
        let prediction = unet::unet(&mut g, &w, &decoder.config, sample, conditioning, &read);
        g.output("prediction", prediction);
        claims.iter().zip(sources).try_for_each(|(claims, source)| claims.finish(source))?;
        Ok(Self { text, unet: g })
    }
}

/// A UNet that enlarges: `sample`, `low` [1, H, W, 3] and `timestep` -> `prediction`. Takes every tensor of it.
pub(super) fn super_resolution_graph(
    part: &Part<UnetConfig>,
    settings: &PictureSettings,
    limits: Limits,
    precision: DType,
) -> Result<Graph> {
    let source = part.weights.as_ref();
    let claims = Claims::default();
    let mut g = Graph::new(precision, limits);
    let [height, width] = settings.size;
    let picture = Shape::new(1, height, width, 3);
    let [sample, low] = ["sample", "low"].map(|name| g.input(name, picture, precision));
    let timestep = g.input("timestep", Shape::new(1, 1, 1, 1), DType::F32);
    let x = nn::concat(&mut g, "low", sample, low);
    let (w, given) = (Weights::new(0, source, &claims), Conditioning::new(timestep));
    let prediction = unet::unet(&mut g, &w, &part.config, x, given, &TextKeys::default());
    g.output("prediction", prediction);
    claims.finish(source)?;
    Ok(g)
}

/// `picture` [1, h, w, 3] -> `low` [1, H, W, 3]: kept within -1 and 1, and enlarged (torch's `bicubic` with antialiasing).
pub(super) fn enlarge_graph(from: [u32; 2], to: [u32; 2], limits: Limits, precision: DType) -> Graph {
    let mut g = Graph::new(DType::F32, limits);
    let picture = g.input("picture", Shape::new(1, from[0], from[1], 3), DType::F32);
    // max(x + 1, 0), then max(2 - y, 0), then 1 - z.
    let above = nn::scale_with(&mut g, "clamp", picture, (1.0, 1.0), Activation::Relu);
    let below = nn::scale_with(&mut g, "clamp", above, (-1.0, 2.0), Activation::Relu);
    let clamped = nn::scale(&mut g, "clamp", below, -1.0, 1.0);
    let tables = Resampling::new(Resize::Antialias(Filter::Bicubic), from, to);
    let low = nn::resample(&mut g, "low", clamped, &tables, precision);
    g.output("low", low);
    g
}

/// The decoder for these texts, the empty one first, and this embedding.
pub(super) fn load_decoder(
    gpu: &Arc<Gpu>,
    checkpoint: &KarloCheckpoint,
    settings: &KarloSettings,
    precision: DType,
    (texts, image): (&[&ClipText], &Resident),
) -> Result<Denoiser> {
    let graphs = DecoderGraphs::build(checkpoint, settings, gpu.limits(), precision)?;
    let sources: [&dyn Source; 2] = [checkpoint.text_proj.weights.as_ref(), checkpoint.decoder.weights.as_ref()];
    let text = execute(gpu, &graphs.text, &sources)?;
    text.copy_from("image", image)?;
    for (row, given) in texts.iter().enumerate() {
        text.copy_row("vectors", row as u32, &given.vectors)?;
        text.copy_row("embedding", row as u32, &given.embedding)?;
    }
    text.run().wait()?;
    let made = graphs.text.outputs.iter().map(|(path, _)| Ok((path.as_str(), text.resident(path)?)));
    let made: Vec<(&str, Resident)> = made.collect::<Result<_>>()?;
    drop(text);
    // The adapter takes memory back when it is next waited for.
    gpu.wait()?;
    let shared: Vec<(&str, &Resident)> = made.iter().map(|(path, resident)| (*path, resident)).collect();
    let denoiser = Denoiser::new(gpu, &graphs.unet, &shared, &sources, settings.decoder_run())?;
    let extra = checkpoint.text_proj.config.extra_tokens;
    let mask: Vec<f32> = texts.iter().flat_map(|text| text.mask(extra, 0)).collect();
    denoiser.model().write("mask", &HostTensor { shape: vec![texts.len(), mask.len() / texts.len()], data: mask })?;
    Ok(denoiser)
}

/// The picture [1, 3, h, w] that is enlarged, as the UNets read it.
pub(super) fn enlarge(
    gpu: &Arc<Gpu>,
    picture: &HostTensor,
    settings: &PictureSettings,
    precision: DType,
) -> Result<Resident> {
    let from = [picture.shape[2] as u32, picture.shape[3] as u32];
    let enlarge = execute(gpu, &enlarge_graph(from, settings.size, gpu.limits(), precision), &[])?;
    enlarge.write("picture", &picture.channels_last())?;
    enlarge.run().wait()?;
    enlarge.resident("low")
}

/// One of the UNets that enlarge, which begins anew or goes on where the other stands.
pub(super) fn load_super_resolution(
    gpu: &Arc<Gpu>,
    part: &Part<UnetConfig>,
    settings: &KarloSettings,
    precision: DType,
    (low, standing): (&Resident, Option<&Standing>),
) -> Result<Denoiser> {
    let graph = super_resolution_graph(part, &settings.super_resolution, gpu.limits(), precision)?;
    let sources: [&dyn Source; 1] = [part.weights.as_ref()];
    let mut denoiser = Denoiser::new(gpu, &graph, &[("low", low)], &sources, settings.super_resolution_run())?;
    if let Some(standing) = standing {
        denoiser.take_over(standing)?;
    }
    Ok(denoiser)
}
