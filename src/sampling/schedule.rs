//! Noise schedules: betas, cumulative alphas, timesteps and sigmas, in the precision in which diffusers computes them.

use super::arrays::{exp, interpolate, ln, numpy_arange_down, numpy_linspace, symmetric_beta_quantile, torch_linspace};
use super::kinds::{AysList, SamplerKind};
use super::settings::{BetaCurve, Settings, SigmaCurve, Spacing};
use crate::error::{Error, Result};

/// The noise levels of every training step.
pub(super) struct Training {
    /// The variance of the noise that every training step adds.
    pub betas: Vec<f32>,
    /// Cumulative product of 1 - beta, one value for each training step.
    pub alphas_cumprod: Vec<f32>,
    /// sqrt((1 - alpha) / alpha) of each.
    pub sigmas: Vec<f32>,
}

impl Training {
    /// The table for a config; solvers over sigma (`keeps_signal`) nudge a zero last alpha so that sigma stays finite.
    pub fn new(settings: &Settings, keeps_signal: bool) -> Self {
        let mut betas = betas(settings);
        if settings.zero_snr {
            betas = rescaled_to_zero_snr(&betas);
        }
        let mut alphas_cumprod = cumulative_alphas(&betas);
        if let Some(last) = alphas_cumprod.last_mut().filter(|_| settings.zero_snr && keeps_signal) {
            *last = 1.0 / 16_777_216.0; // diffusers: 2^-24, the smallest f16 above zero
        }
        let sigmas = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        Self { betas, alphas_cumprod, sigmas }
    }

    /// The cumulative alpha of a training step, or an error where diffusers would index past its table.
    pub fn alpha(&self, timestep: i64) -> Result<f32> {
        usize::try_from(timestep).ok().and_then(|t| self.alphas_cumprod.get(t)).copied().ok_or_else(|| {
            Error::usage("timestep beyond the training steps")
                .expected(format!("0 to {}", self.alphas_cumprod.len() - 1))
                .found(timestep)
                .hint("fewer --steps, or a scheduler config with a smaller steps_offset")
        })
    }

    fn log_sigmas(&self) -> Vec<f32> {
        self.sigmas.iter().map(|&sigma| ln(sigma)).collect()
    }
}

fn betas(settings: &Settings) -> Vec<f32> {
    let (start, end, n) = (settings.beta_start, settings.beta_end, settings.train_steps);
    if let Some(betas) = &settings.trained_betas {
        return betas.clone();
    }
    match settings.beta_curve {
        BetaCurve::Linear => torch_linspace(start as f32, end as f32, n),
        BetaCurve::ScaledLinear => {
            torch_linspace(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|b| b * b).collect()
        }
        BetaCurve::Cosine => {
            betas_for_alpha_bar(n, |t| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2))
        }
        BetaCurve::Exponential => betas_for_alpha_bar(n, |t| (t * -12.0).exp()),
        BetaCurve::Laplace => betas_for_alpha_bar(n, |t| {
            let spread = 1.0 - 2.0 * (0.5 - t).abs() + 1e-6;
            let snr = (-0.5 * 1f64.copysign(0.5 - t) * spread.ln()).exp();
            (snr / (1.0 + snr)).sqrt()
        }),
        BetaCurve::Sigmoid => torch_linspace(-6.0, 6.0, n)
            .into_iter()
            .map(|x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32 * (end - start) as f32 + start as f32)
            .collect(),
    }
}

/// Betas whose cumulative alphas follow `alpha_bar(t)`, t in [0, 1], each at most 0.999.
fn betas_for_alpha_bar(n: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let share = |i: usize| i as f64 / n as f64;
    (0..n).map(|i| (1.0 - alpha_bar(share(i + 1)) / alpha_bar(share(i))).min(0.999) as f32).collect()
}

/// `torch.cumprod(1 - betas)`: torch accumulates f32 on the CPU in f64 and rounds each product.
fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let product = betas.iter().scan(1.0f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    product.collect()
}

/// Betas shifted and scaled so that the last step holds no signal (Lin et al. 2024, arXiv 2305.08891, algorithm 1).
fn rescaled_to_zero_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_alphas(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.into_iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
    let ratios = bars.windows(2).map(|pair| 1.0 - pair[1] / pair[0]);
    std::iter::once(1.0 - bars[0]).chain(ratios).collect()
}

/// Whole timesteps, descending, as DDIM, DDPM and PNDM choose them.
pub(super) fn whole_timesteps(settings: &Settings, steps: usize) -> Vec<i64> {
    let last = (settings.train_steps - 1) as f64;
    match settings.spacing {
        Spacing::Linspace => rounded_down(numpy_linspace(0.0, last, steps)),
        Spacing::Leading => leading(settings, settings.train_steps / steps, steps),
        Spacing::Trailing => trailing(settings, steps, settings.train_steps),
    }
}

/// Whole timesteps as DPM-Solver and UniPC choose them: one more is spread and the lowest is left out.
pub(super) fn multistep_timesteps(settings: &Settings, steps: usize, last_timestep: usize) -> Vec<i64> {
    match settings.spacing {
        Spacing::Linspace => {
            let mut timesteps = rounded_down(numpy_linspace(0.0, last_timestep as f64 - 1.0, steps + 1));
            timesteps.truncate(steps);
            timesteps
        }
        Spacing::Leading => {
            let mut timesteps = leading(settings, last_timestep / (steps + 1), steps + 1);
            timesteps.truncate(steps);
            timesteps
        }
        Spacing::Trailing => trailing(settings, steps, last_timestep),
    }
}

fn rounded_down(ascending: Vec<f64>) -> Vec<i64> {
    ascending.into_iter().rev().map(|t| t.round_ties_even() as i64).collect()
}

fn leading(settings: &Settings, stride: usize, steps: usize) -> Vec<i64> {
    (0..steps).rev().map(|i| (i * stride) as i64 + settings.offset).collect()
}

fn trailing(settings: &Settings, steps: usize, from: usize) -> Vec<i64> {
    let stride = settings.train_steps as f64 / steps as f64;
    numpy_arange_down(from as f64, stride).into_iter().map(|t| t.round_ties_even() as i64 - 1).collect()
}

/// What a solver over sigma runs through: one timestep for each step, and one sigma more (the level reached at the end).
pub(super) struct SigmaRun {
    pub timesteps: Vec<f32>,
    pub sigmas: Vec<f32>,
}

/// Euler, Euler a and Heun: fractional timesteps in f32, extremes taken from the sigmas of the run itself.
pub(super) fn euler_run(
    training: &Training,
    settings: &Settings,
    steps: usize,
    custom: Option<&[usize]>,
) -> Result<SigmaRun> {
    let mut timesteps: Vec<f32> = match (custom, settings.spacing) {
        (Some(custom), _) => custom.iter().map(|&t| t as f32).collect(),
        (None, Spacing::Linspace) => {
            numpy_linspace(0.0, (settings.train_steps - 1) as f64, steps).into_iter().rev().map(|t| t as f32).collect()
        }
        (None, _) => whole_timesteps(settings, steps).into_iter().map(|t| t as f32).collect(),
    };
    let mut sigmas: Vec<f64> = if settings.log_linear {
        let (first, last) = (training.sigmas[0], training.sigmas[training.sigmas.len() - 1]);
        torch_linspace(ln(last), ln(first), steps + 1).into_iter().map(|l| f64::from(exp(l))).collect()
    } else {
        timesteps.iter().map(|&t| interpolate(&training.sigmas, f64::from(t))).collect()
    };
    if settings.curve != SigmaCurve::FromTimesteps {
        let (max, min) = (sigmas[0], sigmas[sigmas.len() - 1]);
        sigmas = curve(settings, min, max, steps);
        let logs = training.log_sigmas();
        timesteps = sigmas.iter().map(|&sigma| timestep_of(sigma, &logs) as f32).collect();
    }
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    sigmas.push(if settings.final_sigma_min { training.sigmas[0] } else { 0.0 });
    if settings.continuous && settings.prediction == super::settings::PredictionType::Velocity {
        if custom.is_some() {
            return Err(Error::usage("list of timesteps")
                .expected("discrete timesteps")
                .found("timestep_type continuous"));
        }
        timesteps = sigmas[..sigmas.len() - 1].iter().map(|&sigma| 0.25 * ln(sigma)).collect();
    }
    Ok(SigmaRun { timesteps, sigmas })
}

/// DPM-Solver and UniPC: whole timesteps, extremes taken from all training steps.
pub(super) fn multistep_run(
    training: &Training,
    settings: &Settings,
    sampler: SamplerKind,
    steps: usize,
    custom: Option<&[usize]>,
) -> SigmaRun {
    let last = training.sigmas.len() - 1;
    let (min, max) = (f64::from(training.sigmas[0]), f64::from(training.sigmas[last]));
    let logs = training.log_sigmas();
    let (timesteps, sigmas): (Vec<f32>, Vec<f64>) = match settings.curve {
        SigmaCurve::FromTimesteps => {
            let whole = match custom {
                Some(custom) => custom.iter().map(|&t| t as i64).collect(),
                None => multistep_timesteps(settings, steps, last_unclipped(training, settings, sampler)),
            };
            let sigmas = whole.iter().map(|&t| interpolate(&training.sigmas, t as f64)).collect();
            (whole.into_iter().map(|t| t as f32).collect(), sigmas)
        }
        chosen => {
            let sigmas = match chosen {
                SigmaCurve::Lu => lu_sigmas(f64::from(logs[0]), f64::from(logs[last]), steps),
                _ => curve(settings, min, max, steps),
            };
            let rounds = match chosen {
                SigmaCurve::Karras if sampler == SamplerKind::UniPc => true,
                SigmaCurve::Karras | SigmaCurve::Lu => settings.beta_curve != BetaCurve::Cosine,
                _ => false,
            };
            let whole = |t: f64| if rounds { t.round_ties_even() } else { t.trunc() } as f32;
            (sigmas.iter().map(|&sigma| whole(timestep_of(sigma, &logs))).collect(), sigmas)
        }
    };
    let end = match (settings.final_sigma_min, settings.curve) {
        (false, _) => 0.0,
        (true, curve) if sampler == SamplerKind::UniPc && curve != SigmaCurve::FromTimesteps => {
            sigmas[sigmas.len() - 1] as f32
        }
        (true, _) => training.sigmas[0],
    };
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([end]).collect();
    SigmaRun { timesteps, sigmas }
}

/// The training steps below which lambda(t) stays above DPM-Solver's clipping threshold.
fn last_unclipped(training: &Training, settings: &Settings, sampler: SamplerKind) -> usize {
    let lambda = |alpha: f32| ln(alpha.sqrt()) - ln((1.0 - alpha).sqrt());
    let clipped = match sampler {
        SamplerKind::UniPc => 0,
        _ => {
            let rising = training.alphas_cumprod.iter().rev();
            rising.take_while(|&&alpha| f64::from(lambda(alpha)) < settings.lambda_min_clipped).count()
        }
    };
    settings.train_steps - clipped
}

/// Karras, exponential or beta sigmas between the extremes, highest first.
fn curve(settings: &Settings, min: f64, max: f64, steps: usize) -> Vec<f64> {
    let min = settings.sigma_min.unwrap_or(min);
    let max = settings.sigma_max.unwrap_or(max);
    match settings.curve {
        SigmaCurve::Karras => {
            let rho = 7.0; // Karras et al. 2022, equation 5
            let (low, high) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
            numpy_linspace(0.0, 1.0, steps).into_iter().map(|ramp| (high + ramp * (low - high)).powf(rho)).collect()
        }
        SigmaCurve::Beta => numpy_linspace(0.0, 1.0, steps)
            .into_iter()
            .map(|ramp| min + symmetric_beta_quantile(1.0 - ramp, 0.6) * (max - min))
            .collect(),
        _ => numpy_linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect(),
    }
}

/// Equal strides of log sigma as DPM-Solver's authors take them.
fn lu_sigmas(min: f64, max: f64, steps: usize) -> Vec<f64> {
    numpy_linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).exp()).collect()
}

/// The fractional timestep at which the training schedule has noise level `sigma` (diffusers' `_sigma_to_t`).
fn timestep_of(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let below = log_sigmas.iter().rposition(|&level| log_sigma - f64::from(level) >= 0.0).unwrap_or(0);
    let index = below.min(log_sigmas.len().saturating_sub(2));
    let (low, high) = (log_sigmas[index], log_sigmas[(index + 1).min(log_sigmas.len() - 1)]);
    let weight = ((f64::from(low) - log_sigma) / f64::from(low - high)).clamp(0.0, 1.0);
    (1.0 - weight) * index as f64 + weight * (index + 1) as f64
}

/// Align Your Steps: the published ten timesteps, or as many as asked for, interpolated evenly in their logarithm.
pub(super) fn ays_timesteps(list: AysList, steps: usize) -> Vec<usize> {
    // NVIDIA Toronto AI Lab, "Align Your Steps", quick-start guide; the same numbers as diffusers' `AysSchedules`.
    let published: [usize; 10] = match list {
        AysList::StableDiffusion => [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        AysList::StableDiffusionXl => [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    };
    let logs: Vec<f64> = published.iter().map(|&t| (t as f64).ln()).collect();
    let at = |x: f64| {
        let low = (x.floor() as usize).min(logs.len() - 2);
        let share = x - low as f64;
        (logs[low] * (1.0 - share) + logs[low + 1] * share).exp().round() as usize
    };
    numpy_linspace(0.0, (published.len() - 1) as f64, steps).into_iter().map(at).collect()
}
