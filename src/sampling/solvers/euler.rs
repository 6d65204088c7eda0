//! Euler's and Heun's methods over sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn), as diffusers'
//! `scheduling_euler_discrete.py` and `scheduling_heun_discrete.py`.

use super::{Run, init_noise_sigma, input_scale, sigma_estimate};
use crate::error::Result;
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::{Training, euler_run};

pub(super) fn euler(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, true);
    let path = euler_run(&training, settings, run.steps, run.custom)?;
    let mut drafts = Vec::new();
    for (i, &timestep) in path.timesteps.iter().enumerate() {
        let sigma = path.sigmas[i];
        let slope = (Linear::LATENT - Linear::X0) / sigma;
        drafts.push(Draft {
            timestep,
            sigma,
            input_scale: input_scale(sigma),
            estimate: sigma_estimate(settings.prediction, sigma, None),
            draws_noise: false,
            deviation: None,
            next: vec![Linear::LATENT + (path.sigmas[i + 1] - sigma) * slope],
        });
    }
    run.finish(init_noise_sigma(settings, &path.sigmas), 1, drafts)
}

/// Slot 1 holds the first stage's slope, slot 2 the latent that it started from.
pub(super) fn heun(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, false);
    let path = euler_run(&training, settings, run.steps, run.custom)?;
    let mut drafts = Vec::new();
    for (i, &timestep) in path.timesteps.iter().enumerate() {
        let sigma = path.sigmas[i];
        let slope = (Linear::LATENT - Linear::X0) / sigma;
        let draft = |next: Vec<Linear>| Draft {
            timestep,
            sigma,
            input_scale: input_scale(sigma),
            estimate: sigma_estimate(settings.prediction, sigma, settings.bound),
            draws_noise: false,
            deviation: None,
            next,
        };
        if i > 0 {
            let mean = 0.5 * (Linear::slot(1) + slope);
            let second = Linear::slot(2) + (sigma - path.sigmas[i - 1]) * mean;
            drafts.push(draft(vec![second, Linear::ZERO, Linear::ZERO]));
        }
        let first = Linear::LATENT + (path.sigmas[i + 1] - sigma) * slope;
        drafts.push(draft(vec![first, slope, Linear::LATENT]));
    }
    run.finish(init_noise_sigma(settings, &path.sigmas), 3, drafts)
}
