//! DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16), as diffusers' `scheduling_ddim.py`.

use super::{Run, noise_of, vp_estimate};
use crate::error::Result;
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::{Training, whole_timesteps};

pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, false);
    let final_alpha = if settings.set_alpha_to_one { 1.0 } else { training.alphas_cumprod[0] };
    let stride = (settings.train_steps / run.steps) as i64;
    let mut drafts = Vec::new();
    for t in whole_timesteps(settings, run.steps) {
        let alpha = training.alpha(t)?;
        let alpha_prev = if t >= stride { training.alpha(t - stride)? } else { final_alpha };
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let variance = (beta_prev / beta) * (1.0 - alpha / alpha_prev);
        let deviation = if run.eta == 0.0 { 0.0 } else { run.eta * variance.sqrt() };
        let noise = noise_of(settings.prediction, alpha.sqrt(), beta.sqrt(), Linear::LATENT, Linear::MODEL);
        let direction = (1.0 - alpha_prev - deviation * deviation).sqrt();
        drafts.push(Draft {
            timestep: t as f32,
            sigma: training.sigmas[t as usize],
            input_scale: 1.0,
            estimate: vp_estimate(settings.prediction, alpha.sqrt(), beta.sqrt(), settings.bound),
            draws_noise: run.eta > 0.0,
            deviation: None,
            next: vec![alpha_prev.sqrt() * Linear::X0 + direction * noise + deviation * Linear::NOISE],
        });
    }
    run.finish(1.0, 1, drafts)
}
