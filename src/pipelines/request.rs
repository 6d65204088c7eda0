//! What a caller asks for, and what it comes to for a given model.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::sampling::{AysList, SamplerKind, ScheduleKind, SchedulerConfig};
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};

/// How activations and matrices are stored on the GPU. Sums are f32 in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f16 on a GPU; f32 on a software driver, where halves cost time and save nothing.
    #[default]
    Auto,
    /// f32 all through.
    F32,
    /// f16 storage, f32 sums, softmax, norms and schedule.
    F16,
}

impl Precision {
    /// The stored type on an adapter of this kind.
    pub fn resolve(self, cpu: bool) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Auto if cpu => DType::F32,
            Precision::Auto => DType::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "auto" => Ok(Precision::Auto),
            "f32" => Ok(Precision::F32),
            "f16" => Ok(Precision::F16),
            _ => Err(Error::usage("unknown precision").at("--precision").expected("auto, f32 or f16").found(word)),
        }
    }
}

/// One picture to be made. What is `None` takes the model's default.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What the picture shows.
    pub prompt: String,
    /// What it does not show; without it an empty prompt (SDXL: zeros, where the model asks for that).
    pub negative_prompt: Option<String>,
    /// Pixels, divisible by 8.
    pub width: Option<u32>,
    /// Pixels, divisible by 8.
    pub height: Option<u32>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Guidance scale; 1 and less run without guidance.
    pub guidance_scale: Option<f32>,
    /// Guidance rescale (arXiv:2305.08891), 0 for none.
    pub guidance_rescale: f32,
    /// The solver, by its word; the model's own without.
    pub sampler: Option<String>,
    /// The schedule, by its word; the model's own without.
    pub schedule: Option<String>,
    /// Seed of torch's CPU generator.
    pub seed: u64,
    /// Layers of the text encoder left out at the end (diffusers' `clip_skip`).
    pub clip_skip: Option<u32>,
    /// Initial noise of unit variance [1, C, H/8, W/8]; drawn from the seed without.
    pub latents: Option<HostTensor>,
    /// For a system that enlarges a picture: [1, 3, H, W] from -1 to 1.
    pub image: Option<HostTensor>,
    /// For a system that enlarges a picture: how much noise is added to it, in steps of its schedule.
    pub noise_level: Option<u32>,
    /// Image tokens: only the `top_k` most likely ones are drawn from; all without.
    pub top_k: Option<u32>,
    /// Image tokens: what the logits are divided by, 1 without.
    pub temperature: Option<f32>,
    /// unCLIP: denoising steps of the prior.
    pub prior_steps: Option<u32>,
    /// unCLIP: guidance scale of the prior.
    pub prior_guidance_scale: Option<f32>,
    /// unCLIP: denoising steps of the super-resolution stage.
    pub sr_steps: Option<u32>,
}

impl Request {
    /// Errors for the first of `options` that was asked for: its name, whether it was, and why `model` has none.
    pub(super) fn refuse(model: &str, options: &[(&str, bool, &str)]) -> Result<()> {
        match options.iter().find(|(_, asked, _)| *asked) {
            None => Ok(()),
            Some((option, _, why)) => {
                Err(Error::usage(format!("not an option of {model}")).at(option).found(why).hint("leaving it out"))
            }
        }
    }
}

/// A request with every choice made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Guidance rescale.
    pub guidance_rescale: f32,
    /// Layers of the text encoder left out at the end.
    pub clip_skip: u32,
    /// Solver and schedule.
    pub scheduler: SchedulerConfig,
    /// Whether the UNet is asked twice, without and with the prompt.
    pub guided: bool,
}

/// A model's defaults of steps and guidance, as the reference pipelines have them.
pub(super) fn defaults(checkpoint: &Checkpoint) -> (u32, f32) {
    if let Some(recommended) = checkpoint.recommended {
        return recommended;
    }
    match checkpoint.class {
        PipelineClass::StableDiffusion => (50, 7.5),
        PipelineClass::StableDiffusionXl => (50, 5.0),
        PipelineClass::LatentConsistency => (4, 8.5),
        PipelineClass::LatentUpscaler => (75, 9.0),
    }
}

impl Settings {
    /// Fills in the model's defaults and checks what was asked for.
    ///
    /// # Errors
    /// Options of other systems; sizes, layers, samplers and schedules that the model does not have.
    pub fn resolve(request: &Request, checkpoint: &Checkpoint) -> Result<Self> {
        Request::refuse(
            "Stable Diffusion",
            &[
                ("--top-k", request.top_k.is_some(), "pictures are denoised, no tokens are drawn"),
                ("--temperature", request.temperature.is_some(), "pictures are denoised, no tokens are drawn"),
                ("--noise-level", request.noise_level.is_some(), "it takes no picture"),
                ("--prior-steps", request.prior_steps.is_some(), "it has no prior"),
                ("--prior-cfg-scale", request.prior_guidance_scale.is_some(), "it has no prior"),
                ("--sr-steps", request.sr_steps.is_some(), "it has no super-resolution stage"),
                ("a picture", request.image.is_some(), "it draws from text alone"),
            ],
        )?;
        let scale = checkpoint.vae.config.scale() as u32;
        let sample = checkpoint.unet.config.sample_size;
        let pixels = |asked: Option<u32>, axis: usize, option: &str| match (asked, sample) {
            (Some(value), _) => size(value, scale, option),
            (None, Some(size)) => Ok(size[axis] as u32 * scale),
            (None, None) => Err(Error::usage("the model has no default size").at(option).hint("giving both -W and -H")),
        };
        let (height, width) = (pixels(request.height, 0, "-H/--height")?, pixels(request.width, 1, "-W/--width")?);
        let (steps, guidance) = defaults(checkpoint);
        let steps = request.steps.unwrap_or(steps);
        let guidance_scale = request.guidance_scale.unwrap_or(guidance);
        let clip_skip = clip_skip(request, checkpoint)?;
        Ok(Self {
            width,
            height,
            steps,
            guidance_scale,
            guidance_rescale: request.guidance_rescale,
            clip_skip,
            scheduler: scheduler(request, checkpoint)?,
            guided: guidance_scale > 1.0 && checkpoint.unet.config.time_cond_proj_dim.is_none(),
        })
    }
}

/// The text encoder's layers left out at the end, checked.
pub(super) fn clip_skip(request: &Request, checkpoint: &Checkpoint) -> Result<u32> {
    let clip_skip = request.clip_skip.unwrap_or(0);
    let xl = checkpoint.class == PipelineClass::StableDiffusionXl;
    for part in &checkpoint.text_encoders {
        let most = part.config.num_layers as u32 - u32::from(xl && part.config.num_layers > 1);
        if clip_skip > most {
            return Err(Error::usage("more layers skipped than the text encoder has")
                .at("--clip-skip")
                .expected(format!("at most --clip-skip {}", most + 1))
                .found(clip_skip + 1));
        }
    }
    Ok(clip_skip)
}

fn size(value: u32, scale: u32, option: &str) -> Result<u32> {
    // diffusers' pipelines accept multiples of 8 and floor to the autoencoder's factor; only exact sizes are accepted here.
    let unit = scale.max(8);
    if value == 0 || !value.is_multiple_of(unit) {
        return Err(Error::usage("picture size")
            .at(option)
            .expected(format!("a positive multiple of {unit} pixels"))
            .found(value)
            .hint(format!("{}", (value / unit).max(1) * unit)));
    }
    Ok(value)
}

pub(super) fn scheduler(request: &Request, checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    let place = format!("{}: scheduler", checkpoint.name);
    let sampler = request.sampler.as_deref().map(SamplerKind::from_str).transpose()?;
    let xl = checkpoint.class == PipelineClass::StableDiffusionXl;
    let patched = |config: SchedulerConfig| {
        if checkpoint.class == PipelineClass::StableDiffusion {
            config.in_stable_diffusion_pipeline()
        } else {
            Ok(config)
        }
    };
    // A class that is unknown here still serves another sampler, which reads the settings they share.
    let config = match (SchedulerConfig::from_json(&checkpoint.scheduler, &place), sampler) {
        (Ok(own), None) => patched(own)?,
        (Ok(own), Some(kind)) if own.sampler() == kind => patched(own)?,
        (Ok(own), Some(kind)) => patched(own)?.with_sampler(kind)?,
        (Err(_), Some(kind)) => {
            patched(SchedulerConfig::from_json_for(&checkpoint.scheduler, kind, &place)?)?.with_sampler(kind)?
        }
        (Err(error), None) => return Err(error),
    };
    match request.schedule.as_deref().map(ScheduleKind::from_str).transpose()? {
        None => Ok(config),
        Some(kind) => {
            config.with_schedule(kind, if xl { AysList::StableDiffusionXl } else { AysList::StableDiffusion })
        }
    }
}
