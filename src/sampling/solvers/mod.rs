//! Solvers: each turns a config and a count of steps into a [`Program`].
//!
//! A solver computes its scalars in f32 in diffusers' order (0-dimensional torch tensors) and writes the update with
//! [`Linear`] values as its formula reads; the table rounds once more when it is finished.

mod ancestral;
mod ddim;
mod dpm;
mod euler;
mod lcm;
mod pndm;
mod unclip;
mod unipc;

use super::kinds::SamplerKind;
use super::program::{Bound, Draft, Estimate, Linear, Program};
use super::settings::{PredictionType, Settings, Variance};
use crate::error::{Error, Result};

/// What a solver is asked for.
pub(super) struct Run<'a> {
    pub sampler: SamplerKind,
    pub settings: &'a Settings,
    pub steps: usize,
    pub custom: Option<&'a [usize]>,
    /// DDIM's eta.
    pub eta: f32,
}

/// The table of a run.
pub(super) fn program(run: &Run) -> Result<Program> {
    match run.sampler {
        SamplerKind::Ddim => ddim::program(run),
        SamplerKind::Ddpm => ancestral::ddpm(run),
        SamplerKind::Pndm => pndm::program(run),
        SamplerKind::Euler => euler::euler(run),
        SamplerKind::EulerAncestral => ancestral::euler(run),
        SamplerKind::Heun => euler::heun(run),
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => dpm::program(run),
        SamplerKind::UniPc => unipc::program(run),
        SamplerKind::Lcm => lcm::program(run),
        SamplerKind::UnClip => unclip::program(run),
    }
}

impl Run<'_> {
    fn finish(&self, init_noise_sigma: f32, slots: usize, drafts: Vec<Draft>) -> Result<Program> {
        if drafts.is_empty() {
            return Err(Error::usage("schedule without any step")
                .at("--steps")
                .hint("another --schedule or count of --steps"));
        }
        let evaluations = drafts.into_iter().map(Draft::finish).collect::<Result<_>>()?;
        let learned_variance = matches!(self.settings.variance, Variance::Learned | Variance::Range | Variance::Unread);
        Ok(Program { sampler: self.sampler, init_noise_sigma, slots, learned_variance, evaluations })
    }
}

/// The data estimate of a variance-preserving latent, x = sqrt(alpha) x0 + sqrt(beta) noise, from both roots. Without any
/// signal (alpha = 0) a clipped estimate from noise is an infinity clipped in diffusers; a huge factor gives the same.
fn vp_estimate(prediction: PredictionType, root_alpha: f32, root_beta: f32, bound: Option<Bound>) -> Estimate {
    let (a, b) = (f64::from(root_alpha), f64::from(root_beta));
    let a = if bound.is_some() { a.max(1e-30) } else { a };
    let (slot0, model_output) = match prediction {
        PredictionType::Epsilon => (1.0 / a, -b / a),
        PredictionType::Velocity => (a, -b),
        PredictionType::Sample => (0.0, 1.0),
    };
    Estimate { slot0, model_output, bound }
}

/// The data estimate of a latent x = x0 + sigma noise.
fn sigma_estimate(prediction: PredictionType, sigma: f32, bound: Option<Bound>) -> Estimate {
    let s = f64::from(sigma);
    let (slot0, model_output) = match prediction {
        PredictionType::Epsilon => (1.0, -s),
        PredictionType::Velocity => (1.0 / (s * s + 1.0), -s / (s * s + 1.0).sqrt()),
        PredictionType::Sample => (0.0, 1.0),
    };
    Estimate { slot0, model_output, bound }
}

/// The model's input scale for a latent x = x0 + sigma noise: it was trained on unit variance.
fn input_scale(sigma: f32) -> f32 {
    (1.0 / (f64::from(sigma).powi(2) + 1.0).sqrt()) as f32
}

/// Factor of the starting noise for solvers over sigma.
fn init_noise_sigma(settings: &Settings, sigmas: &[f32]) -> f32 {
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    match settings.spacing {
        super::settings::Spacing::Leading => (max * max + 1.0).sqrt(),
        _ => max,
    }
}

/// The noise in the latent, from the latent and an unclipped model output.
fn noise_of(prediction: PredictionType, root_alpha: f32, root_beta: f32, sample: Linear, output: Linear) -> Linear {
    match prediction {
        PredictionType::Epsilon => output,
        PredictionType::Velocity => root_alpha * output + root_beta * sample,
        PredictionType::Sample => (sample - root_alpha * output) / root_beta,
    }
}
