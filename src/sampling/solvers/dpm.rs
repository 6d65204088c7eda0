//! DPM-Solver++ multistep and its stochastic variant (Lu et al. 2022, arXiv 2211.01095), orders 1 to 3, as diffusers'
//! `scheduling_dpmsolver_multistep.py`.

use super::{Run, vp_estimate};
use crate::error::Result;
use crate::sampling::arrays::{exp, ln};
use crate::sampling::kinds::SamplerKind;
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::{Training, multistep_run};
use crate::sampling::settings::Formula;

/// A noise level of a variance-preserving latent alpha x0 + sigma noise, and half its log signal-to-noise ratio.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub alpha: f32,
    pub sigma: f32,
    pub lambda: f32,
}

impl Level {
    /// From the noise level of a latent x0 + sigma noise.
    pub fn new(sigma: f32) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Self { alpha, sigma, lambda: ln(alpha) - ln(sigma) }
    }
}

/// Slots 1 and 2 hold the last two data estimates, newest first.
pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, true);
    let path = multistep_run(&training, settings, run.sampler, run.steps, run.custom);
    let levels: Vec<Level> = path.sigmas.iter().map(|&sigma| Level::new(sigma)).collect();
    let count = path.timesteps.len();
    let stochastic = run.sampler == SamplerKind::Dpmpp2mSde;
    let few = settings.lower_order_final && count < 15;
    let mut drafts = Vec::new();
    for (i, &timestep) in path.timesteps.iter().enumerate() {
        let first_at_last = settings.euler_at_final || few || !settings.final_sigma_min;
        let order = match settings.solver_order.min(i + 1) {
            _ if i + 1 == count && first_at_last => 1,
            3 if i + 2 == count && few => 2,
            order => order,
        };
        let update = Update { order, formula: settings.formula, stochastic };
        let mut next = vec![update.next(&levels, i), Linear::X0, Linear::slot(1)];
        next.truncate(settings.solver_order);
        drafts.push(Draft {
            timestep,
            sigma: path.sigmas[i],
            input_scale: 1.0,
            estimate: vp_estimate(settings.prediction, levels[i].alpha, levels[i].sigma, settings.bound),
            draws_noise: stochastic,
            deviation: None,
            next,
        });
    }
    run.finish(1.0, settings.solver_order, drafts)
}

struct Update {
    order: usize,
    formula: Formula,
    stochastic: bool,
}

impl Update {
    /// The latent at level `i + 1` from the one at level `i`.
    fn next(&self, levels: &[Level], i: usize) -> Linear {
        let (from, to) = (levels[i], levels[i + 1]);
        let h = to.lambda - from.lambda;
        // decay - 1 is the integral's weight; the stochastic equation runs through twice the log ratio.
        let decay = if self.stochastic { exp(-2.0 * h) } else { exp(-h) };
        let weight = to.alpha * (1.0 - decay);
        let mut next = if self.stochastic {
            let spread = to.sigma * (1.0 - decay).sqrt();
            (to.sigma / from.sigma * exp(-h)) * Linear::LATENT + spread * Linear::NOISE
        } else {
            (to.sigma / from.sigma) * Linear::LATENT
        };
        next = next + weight * Linear::X0;
        let span = if self.stochastic { 2.0 * h } else { h };
        let second = to.alpha * ((decay - 1.0) / span + 1.0);
        match self.order {
            1 => next,
            2 => {
                let r0 = (from.lambda - levels[i - 1].lambda) / h;
                let d1 = (1.0 / r0) * (Linear::X0 - Linear::slot(1));
                match self.formula {
                    Formula::Heun => next + second * d1,
                    _ => next + 0.5 * (weight * d1),
                }
            }
            _ => {
                let r0 = (from.lambda - levels[i - 1].lambda) / h;
                let r1 = (levels[i - 1].lambda - levels[i - 2].lambda) / h;
                let near = (1.0 / r0) * (Linear::X0 - Linear::slot(1));
                let far = (1.0 / r1) * (Linear::slot(1) - Linear::slot(2));
                let d1 = near + (r0 / (r0 + r1)) * (near - far);
                let d2 = (1.0 / (r0 + r1)) * (near - far);
                let third = to.alpha * ((decay - 1.0 + span) / (span * span) - 0.5);
                if self.stochastic {
                    let third = to.alpha * ((1.0 - decay - span) / (span * span) - 0.5);
                    next + second * d1 + third * d2
                } else {
                    next + second * d1 - third * d2
                }
            }
        }
    }
}
