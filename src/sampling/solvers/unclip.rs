//! DDPM as Karlo runs it (Ho et al. 2020, arXiv 2006.11239, equations 6 and 7; diffusers' `scheduling_unclip.py`): betas are
//! those between the timesteps that are visited, and the learned variance is not kept from zero.

use super::{Run, vp_estimate};
use crate::error::{Error, Result};
use crate::sampling::arrays::{exp, ln};
use crate::sampling::program::{Deviation, Draft, Linear, Program};
use crate::sampling::schedule::{Training, whole_timesteps};
use crate::sampling::settings::Variance;

pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    if run.steps < 2 {
        return Err(Error::usage("number of steps for sampler unclip")
            .expected("at least 2: the first and the last timestep")
            .found(run.steps));
    }
    let training = Training::new(settings, false);
    let timesteps = whole_timesteps(settings, run.steps);
    let mut drafts = Vec::new();
    for (i, &t) in timesteps.iter().enumerate() {
        let prev = timesteps.get(i + 1).copied().unwrap_or(t - 1);
        let alpha = training.alpha(t)?;
        let alpha_prev = if prev >= 0 { training.alpha(prev)? } else { 1.0 };
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let step_beta = if prev == t - 1 { training.betas[t as usize] } else { 1.0 - alpha / alpha_prev };
        let step_alpha = 1.0 - step_beta;
        let small = beta_prev / beta * step_beta;
        let (factor, learned) = match settings.variance {
            Variance::Range => (1.0, Some(Deviation::between(small, step_beta))),
            _ => (exp(0.5 * ln(small.max(1e-20))), None),
        };
        let mean = (alpha_prev.sqrt() * step_beta / beta) * Linear::X0
            + (step_alpha.sqrt() * beta_prev / beta) * Linear::LATENT;
        drafts.push(Draft {
            timestep: t as f32,
            sigma: training.sigmas[t as usize],
            input_scale: 1.0,
            estimate: vp_estimate(settings.prediction, alpha.sqrt(), beta.sqrt(), settings.bound),
            draws_noise: t > 0,
            deviation: learned.filter(|_| t > 0),
            next: vec![if t > 0 { mean + factor * Linear::NOISE } else { mean }],
        });
    }
    run.finish(1.0, 1, drafts)
}
