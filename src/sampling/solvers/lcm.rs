//! Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378), as diffusers' `scheduling_lcm.py`.

use super::{Run, vp_estimate};
use crate::error::{Error, Result};
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::Training;
use crate::sampling::settings::Settings;

/// The data deviation of the consistency function's boundary condition.
const SIGMA_DATA: f32 = 0.5;

pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, false);
    let timesteps = match run.custom {
        Some(custom) => custom.iter().map(|&t| t as i64).collect(),
        None => distilled_timesteps(settings, run.steps)?,
    };
    let final_alpha = if settings.set_alpha_to_one { 1.0 } else { training.alphas_cumprod[0] };
    let mut drafts = Vec::new();
    for (i, &t) in timesteps.iter().enumerate() {
        let prev = timesteps.get(i + 1).copied();
        let alpha = training.alpha(t)?;
        let alpha_prev = prev.map_or(Ok(alpha), |p| if p >= 0 { training.alpha(p) } else { Ok(final_alpha) })?;
        let scaled = t as f32 * settings.timestep_scaling as f32;
        let square = SIGMA_DATA * SIGMA_DATA;
        let skip = square / (scaled * scaled + square);
        let out = scaled / (scaled * scaled + square).sqrt();
        let denoised = out * Linear::X0 + skip * Linear::LATENT;
        let next = match prev {
            Some(_) => alpha_prev.sqrt() * denoised + (1.0 - alpha_prev).sqrt() * Linear::NOISE,
            None => denoised,
        };
        drafts.push(Draft {
            timestep: t as f32,
            sigma: training.sigmas[t as usize],
            input_scale: 1.0,
            estimate: vp_estimate(settings.prediction, alpha.sqrt(), (1.0 - alpha).sqrt(), settings.bound),
            draws_noise: prev.is_some(),
            deviation: None,
            next: vec![next],
        });
    }
    run.finish(1.0, 1, drafts)
}

/// Evenly chosen members of the schedule that the model was distilled on, highest first.
fn distilled_timesteps(settings: &Settings, steps: usize) -> Result<Vec<i64>> {
    let original = settings.original_steps;
    if original > settings.train_steps {
        return Err(Error::new("scheduler setting")
            .at("original_inference_steps")
            .expected(format!("at most {} (num_train_timesteps)", settings.train_steps))
            .found(original));
    }
    if steps > original {
        return Err(Error::usage("number of steps for sampler lcm")
            .at("--steps")
            .expected(format!("1 to {original} (original_inference_steps)"))
            .found(steps));
    }
    let stride = (settings.train_steps / original) as i64;
    let share = original as f64 / steps as f64;
    let index = |i: usize| (i as f64 * share).floor() as i64;
    Ok((0..steps).map(|i| (original as i64 - index(i)) * stride - 1).collect())
}
