//! The solvers that add fresh noise at every step: DDPM (Ho et al. 2020, arXiv 2006.11239, equations 6 and 7;
//! `scheduling_ddpm.py`) and Euler with k-diffusion's ancestral split (`scheduling_euler_ancestral_discrete.py`).

use super::{Run, init_noise_sigma, input_scale, sigma_estimate, vp_estimate};
use crate::error::Result;
use crate::sampling::arrays::{exp, ln};
use crate::sampling::program::{Deviation, Draft, Linear, Program};
use crate::sampling::schedule::{Training, euler_run, whole_timesteps};
use crate::sampling::settings::Variance;

pub(super) fn ddpm(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, false);
    let timesteps: Vec<i64> = match run.custom {
        Some(custom) => custom.iter().map(|&t| t as i64).collect(),
        None => whole_timesteps(settings, run.steps),
    };
    let mut drafts = Vec::new();
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha = training.alpha(t)?;
        let alpha_prev = timesteps.get(i + 1).map_or(Ok(1.0), |&prev| training.alpha(prev))?;
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let step_alpha = alpha / alpha_prev;
        let step_beta = 1.0 - step_alpha;
        let small = (beta_prev / beta * step_beta).max(1e-20);
        let (factor, learned) = match settings.variance {
            Variance::Small | Variance::Unread => (small.sqrt(), None),
            Variance::SmallLog => (exp(0.5 * ln(small)), None),
            Variance::Large => (step_beta.sqrt(), None),
            // The root of a logarithm below 0, which diffusers takes as well: no step is finite.
            Variance::LargeLog => (ln(step_beta).sqrt(), None),
            Variance::Learned => (1.0, Some(Deviation::Root)),
            Variance::Range => (1.0, Some(Deviation::between(small, step_beta))),
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

pub(super) fn euler(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, true);
    let path = euler_run(&training, settings, run.steps, run.custom)?;
    let mut drafts = Vec::new();
    for (i, &timestep) in path.timesteps.iter().enumerate() {
        let (from, to) = (path.sigmas[i], path.sigmas[i + 1]);
        let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
        let down = (to * to - up * up).sqrt();
        let slope = (Linear::LATENT - Linear::X0) / from;
        drafts.push(Draft {
            timestep,
            sigma: from,
            input_scale: input_scale(from),
            estimate: sigma_estimate(settings.prediction, from, None),
            draws_noise: true,
            deviation: None,
            next: vec![Linear::LATENT + (down - from) * slope + up * Linear::NOISE],
        });
    }
    run.finish(init_noise_sigma(settings, &path.sigmas), 1, drafts)
}
