//! PNDM (Liu et al. 2022, arXiv 2202.09778, equation 9 and algorithm 2), as diffusers' `scheduling_pndm.py`: a linear
//! multistep method that starts either with itself at lower order (`skip_prk_steps`) or with three Runge-Kutta steps.

use super::{Run, noise_of, vp_estimate};
use crate::error::{Error, Result};
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::{Training, whole_timesteps};
use crate::sampling::settings::Settings;

/// The latent at which a repeated or a Runge-Kutta step began.
const START: usize = 1;
/// The last three model outputs that count, newest first.
const OUTPUTS: [usize; 3] = [2, 3, 4];
/// The Runge-Kutta mean so far.
const MEAN: usize = 5;

struct Pndm<'a> {
    settings: &'a Settings,
    training: Training,
    stride: i64,
    slots: usize,
}

pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let stride = (settings.train_steps / run.steps) as i64;
    let slots = if settings.skip_prk_steps { MEAN } else { MEAN + 1 };
    let solver = Pndm { settings, training: Training::new(settings, false), stride, slots };
    let timesteps = whole_timesteps(settings, run.steps);
    let drafts = if settings.skip_prk_steps { solver.warm_up(&timesteps) } else { solver.runge_kutta(&timesteps) }?;
    run.finish(1.0, slots, drafts)
}

impl Pndm<'_> {
    /// The multistep method from the first step on, with the second timestep evaluated twice.
    fn warm_up(&self, timesteps: &[i64]) -> Result<Vec<Draft>> {
        let [now, e1, e2] = [Linear::MODEL, Linear::slot(OUTPUTS[0]), Linear::slot(OUTPUTS[1])];
        let repeated = timesteps.get(1).copied();
        let mut drafts = Vec::new();
        for (count, t) in
            timesteps.iter().take(1).copied().chain(repeated).chain(timesteps[1..].iter().copied()).enumerate()
        {
            let output = match count {
                0 => now,
                1 => 0.5 * (now + e1),
                2 => 0.5 * (3.0 * now - e1),
                3 => (1.0 / 12.0) * (23.0 * now - 16.0 * e1 + 5.0 * e2),
                _ => fourth_order(),
            };
            if count == 1 {
                let next = self.previous(Linear::slot(START), t + self.stride, t, output)?;
                drafts.push(self.draft(t, vec![next, Linear::ZERO, e1, e2, Linear::ZERO])?);
            } else {
                let next = self.previous(Linear::LATENT, t, t - self.stride, output)?;
                drafts.push(self.draft(t, vec![next, Linear::LATENT, now, e1, e2])?);
            }
        }
        Ok(drafts)
    }

    /// Three Runge-Kutta steps of four evaluations, then the multistep method.
    fn runge_kutta(&self, timesteps: &[i64]) -> Result<Vec<Draft>> {
        let [now, e1, e2, e3, mean] = [
            Linear::MODEL,
            Linear::slot(OUTPUTS[0]),
            Linear::slot(OUTPUTS[1]),
            Linear::slot(OUTPUTS[2]),
            Linear::slot(MEAN),
        ];
        let [first, second, third, fourth] = match timesteps {
            [a, b, c, d, ..] => [*a, *b, *c, *d],
            _ => {
                return Err(Error::usage("number of steps for sampler pndm with skip_prk_steps false")
                    .at("--steps")
                    .expected("at least 4")
                    .found(timesteps.len()));
            }
        };
        let half = self.stride / 2;
        let mut drafts = Vec::new();
        for (from, to) in [(first, second), (second, third), (third, fourth)] {
            for (stage, t) in [from, to + half, to + half, to].into_iter().enumerate() {
                let prev = t - if stage % 2 == 1 { 0 } else { half };
                let start = if stage == 0 { Linear::LATENT } else { Linear::slot(START) };
                let output = if stage == 3 { mean + (1.0 / 6.0) * now } else { now };
                let next = self.previous(start, from, prev, output)?;
                let weight = if stage == 0 { 1.0 / 6.0 } else { 1.0 / 3.0 };
                let mean = if stage == 3 { Linear::ZERO } else { mean + weight * now };
                let outputs = if stage == 0 { [now, e1, e2] } else { [e1, e2, e3] };
                drafts.push(self.draft(t, vec![next, start, outputs[0], outputs[1], outputs[2], mean])?);
            }
        }
        for &t in &timesteps[3..] {
            let next = self.previous(Linear::LATENT, t, t - self.stride, fourth_order())?;
            drafts.push(self.draft(t, vec![next, Linear::ZERO, now, e1, e2, Linear::ZERO])?);
        }
        Ok(drafts)
    }

    /// Equation 9: the latent at `prev` from the one at `t`.
    fn previous(&self, sample: Linear, t: i64, prev: i64, output: Linear) -> Result<Linear> {
        let alphas = &self.training.alphas_cumprod;
        let final_alpha = if self.settings.set_alpha_to_one { 1.0 } else { alphas[0] };
        let alpha = self.training.alpha(t)?;
        let alpha_prev = if prev >= 0 { self.training.alpha(prev)? } else { final_alpha };
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let output = noise_of(self.settings.prediction, alpha.sqrt(), beta.sqrt(), sample, output);
        let divisor = alpha * beta_prev.sqrt() + (alpha * beta * alpha_prev).sqrt();
        Ok((alpha_prev / alpha).sqrt() * sample - (alpha_prev - alpha) * output / divisor)
    }

    fn draft(&self, t: i64, next: Vec<Linear>) -> Result<Draft> {
        let alpha = self.training.alpha(t)?;
        debug_assert_eq!(next.len(), self.slots);
        Ok(Draft {
            timestep: t as f32,
            sigma: self.training.sigmas[t as usize],
            input_scale: 1.0,
            estimate: vp_estimate(self.settings.prediction, alpha.sqrt(), (1.0 - alpha).sqrt(), None),
            draws_noise: false,
            deviation: None,
            next,
        })
    }
}

/// Adams-Bashforth of order four over the newest output and the three before it.
fn fourth_order() -> Linear {
    let [e1, e2, e3] = OUTPUTS.map(Linear::slot);
    (1.0 / 24.0) * (55.0 * Linear::MODEL - 59.0 * e1 + 37.0 * e2 - 9.0 * e3)
}
