//! A denoising run as a table: what the model is asked at each evaluation and how the latent moves after it.

use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::kinds::SamplerKind;
use crate::error::{Error, Result};

/// The most tensors that a solver keeps, the latent included.
pub const MAX_SLOTS: usize = 6;

/// One whole denoising run. All states are f32 tensors of the latent's shape; slot 0 is the latent (diffusers' `sample`),
/// slots from 1 are the solver's memory, zero at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The solver that made the table.
    pub sampler: SamplerKind,
    /// Factor of the unit-variance noise that the run starts from.
    pub init_noise_sigma: f32,
    /// Tensors that the run needs, the latent included; at most [`MAX_SLOTS`].
    pub slots: usize,
    /// Whether the solver expects a learned variance: the model's output must have twice the latent's channels. Without it,
    /// a second half of channels is left unread.
    pub learned_variance: bool,
    /// The model's evaluations in order.
    pub evaluations: Vec<Evaluation>,
}

/// One call of the model and the update after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// What the model's time embedding receives.
    pub timestep: f32,
    /// Noise level sqrt((1 - alpha) / alpha) of the latent that the model sees, for display.
    pub sigma: f32,
    /// Model input = `input_scale` x slot 0 (diffusers' `scale_model_input`).
    pub input_scale: f32,
    /// The data estimate.
    pub prediction: Prediction,
    /// The new value of each slot, all computed from the old ones.
    pub rows: Vec<Row>,
    /// Whether one noise tensor is drawn from the generator in this evaluation, even if its factor is 0.
    pub draws_noise: bool,
    /// What the noise is multiplied with besides its factor in the rows, where the model predicts that.
    pub deviation: Option<Deviation>,
    /// Whether diffusers' loop ends an iteration here and calls back with the latent; every evaluation does.
    pub step_end: bool,
}

/// x0 = `slot0` x slot 0 + `model_output` x model output, then bounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Factor of the latent.
    pub slot0: f32,
    /// Factor of the model's output.
    pub model_output: f32,
    /// How the data estimate is bounded, if it is.
    pub bound: Option<Bound>,
}

/// What keeps a data estimate near the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// The estimate is kept within plus and minus this.
    Fixed(f32),
    /// Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): the estimate is kept within plus and minus
    /// s and divided by s, the quantile `ratio` of its magnitude, at least 1 and at most `most`.
    Dynamic {
        /// Share of the elements below the quantile, 0 to 1.
        ratio: f32,
        /// The largest s.
        most: f32,
    },
}

/// The deviation of the noise that a model with a learned variance predicts, element by element: v is the second half of its
/// output's channels, with guidance that of the prompt's own prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deviation {
    /// exp(`constant` + `slope` v): v chooses between the logarithms of the smallest and the largest variance (Nichol and
    /// Dhariwal 2021, arXiv 2102.09672, equation 15).
    Range {
        /// At v = 0.
        constant: f32,
        /// Per unit of v.
        slope: f32,
    },
    /// sqrt(v).
    Root,
}

/// A linear combination: the new value of one slot. Without clipping the x0 term is folded into the others and is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Factors of the old slots.
    pub slots: Vec<f32>,
    /// Factor of the model's output.
    pub model_output: f32,
    /// Factor of the bounded data estimate.
    pub x0: f32,
    /// Factor of the noise drawn in this evaluation.
    pub noise: f32,
}

impl Program {
    /// Runs the table in plain loops with f64 sums: the latent after each evaluation. `model` gets the scaled input and
    /// the timestep; `noise` is asked once for each evaluation that draws. `init` is the latent to start from (already
    /// multiplied by `init_noise_sigma`). With a learned variance `model` gives that behind its prediction.
    pub fn reference_run(
        &self,
        mut model: impl FnMut(&[f32], f32) -> Vec<f32>,
        init: Vec<f32>,
        mut noise: impl FnMut() -> Vec<f32>,
    ) -> Vec<Vec<f32>> {
        let n = init.len();
        let mut slots = vec![vec![0.0f32; n]; self.slots];
        slots[0] = init;
        let mut latents = Vec::with_capacity(self.evaluations.len());
        for step in &self.evaluations {
            let input: Vec<f32> = slots[0].iter().map(|x| x * step.input_scale).collect();
            let output = model(&input, step.timestep);
            let drawn = if step.draws_noise { noise() } else { vec![0.0; n] };
            let x0: Vec<f32> = slots[0].iter().zip(&output).map(|(&x, &m)| step.prediction.estimate(x, m)).collect();
            let x0 = step.prediction.bounded(x0);
            let deviation = |i: usize| step.deviation.map_or(1.0, |deviation| deviation.of(output[n + i]));
            let value = |row: &Row, i: usize| {
                let memory: f64 =
                    row.slots.iter().zip(&slots).map(|(&k, slot)| f64::from(k) * f64::from(slot[i])).sum();
                let terms = [(row.model_output, output[i]), (row.x0, x0[i])];
                let known = terms.iter().filter(|(k, _)| *k != 0.0).map(|&(k, v)| f64::from(k) * f64::from(v));
                let noise = if row.noise == 0.0 { 0.0 } else { f64::from(row.noise * drawn[i]) * deviation(i) };
                (memory + known.sum::<f64>() + noise) as f32
            };
            let new: Vec<Vec<f32>> = step.rows.iter().map(|row| (0..n).map(|i| value(row, i)).collect()).collect();
            slots = new;
            latents.push(slots[0].clone());
        }
        latents
    }
}

impl Prediction {
    /// The unbounded data estimate from one value of the latent and of the model's output.
    pub fn estimate(&self, latent: f32, model_output: f32) -> f32 {
        let x0 = f64::from(self.slot0) * f64::from(latent) + f64::from(self.model_output) * f64::from(model_output);
        x0 as f32
    }

    /// A whole sample's estimate, bounded.
    fn bounded(&self, x0: Vec<f32>) -> Vec<f32> {
        let (bound, divisor) = match self.bound {
            None => return x0,
            Some(Bound::Fixed(bound)) => (bound, 1.0),
            Some(Bound::Dynamic { ratio, most }) => {
                let threshold = quantile(&x0, ratio).max(1.0).min(most);
                (threshold, threshold)
            }
        };
        x0.into_iter().map(|x| if x.is_nan() { x } else { x.clamp(-bound, bound) / divisor }).collect()
    }
}

impl Deviation {
    /// Between the smallest and the largest variance of a step.
    pub(super) fn between(smallest: f32, largest: f32) -> Self {
        let (low, high) = (f64::from(smallest).ln(), f64::from(largest).ln());
        Deviation::Range { constant: ((high + low) / 4.0) as f32, slope: ((high - low) / 4.0) as f32 }
    }

    /// For one value of the model's second half.
    fn of(self, v: f32) -> f64 {
        match self {
            Deviation::Range { constant, slope } => (f64::from(constant) + f64::from(slope) * f64::from(v)).exp(),
            Deviation::Root => f64::from(v).sqrt(),
        }
    }
}

/// `torch.quantile(values.abs(), ratio)`: the rank is an f32, and neighbours are interpolated linearly.
fn quantile(values: &[f32], ratio: f32) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f32;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    below + (above - below) * rank.fract()
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: initial noise x {:.6}, {} tensors", self.sampler, self.init_noise_sigma, self.slots)?;
        writeln!(f, "{:>4} {:>10} {:>12} {:>12} {:>6}", "", "timestep", "sigma", "input scale", "noise")?;
        for (i, step) in self.evaluations.iter().enumerate() {
            let noise = if step.draws_noise { format!("{:.4}", step.rows[0].noise) } else { "-".to_string() };
            let (t, sigma, scale) = (step.timestep, step.sigma, step.input_scale);
            writeln!(f, "{i:>4} {t:>10.3} {sigma:>12.6} {scale:>12.6} {noise:>6}")?;
        }
        Ok(())
    }
}

/// A linear combination in f64 while a solver puts it together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Linear {
    slots: [f64; MAX_SLOTS],
    model_output: f64,
    x0: f64,
    noise: f64,
}

impl Linear {
    pub const ZERO: Linear = Linear { slots: [0.0; MAX_SLOTS], model_output: 0.0, x0: 0.0, noise: 0.0 };
    /// The latent.
    pub const LATENT: Linear = Linear::slot(0);
    pub const MODEL: Linear = Linear { model_output: 1.0, ..Linear::ZERO };
    pub const X0: Linear = Linear { x0: 1.0, ..Linear::ZERO };
    pub const NOISE: Linear = Linear { noise: 1.0, ..Linear::ZERO };

    /// The old value of slot `index`.
    pub const fn slot(index: usize) -> Linear {
        let mut slots = [0.0; MAX_SLOTS];
        slots[index] = 1.0;
        Linear { slots, ..Linear::ZERO }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Linear {
        Linear { slots: self.slots.map(&f), model_output: f(self.model_output), x0: f(self.x0), noise: f(self.noise) }
    }

    fn row(self, slots: usize, prediction: &Estimate) -> Row {
        let (x0, latent, model_output) = match prediction.bound {
            Some(_) => (self.x0, 0.0, 0.0),
            None => (0.0, self.x0 * prediction.slot0, self.x0 * prediction.model_output),
        };
        let mut factors: Vec<f32> = self.slots[..slots].iter().map(|&k| k as f32).collect();
        factors[0] = (self.slots[0] + latent) as f32;
        let model_output = (self.model_output + model_output) as f32;
        Row { slots: factors, model_output, x0: x0 as f32, noise: self.noise as f32 }
    }
}

impl Add for Linear {
    type Output = Linear;
    fn add(self, other: Linear) -> Linear {
        let mut slots = self.slots;
        slots.iter_mut().zip(other.slots).for_each(|(a, b)| *a += b);
        Linear {
            slots,
            model_output: self.model_output + other.model_output,
            x0: self.x0 + other.x0,
            noise: self.noise + other.noise,
        }
    }
}

impl Neg for Linear {
    type Output = Linear;
    fn neg(self) -> Linear {
        self.map(|k| -k)
    }
}

impl Sub for Linear {
    type Output = Linear;
    fn sub(self, other: Linear) -> Linear {
        self + -other
    }
}

/// A zero factor stays zero whatever it is multiplied with, so that an absent term cannot turn into NaN.
impl Mul<Linear> for f64 {
    type Output = Linear;
    fn mul(self, value: Linear) -> Linear {
        value.map(|k| if k == 0.0 { 0.0 } else { self * k })
    }
}

impl Mul<Linear> for f32 {
    type Output = Linear;
    fn mul(self, value: Linear) -> Linear {
        f64::from(self) * value
    }
}

impl Div<f32> for Linear {
    type Output = Linear;
    fn div(self, divisor: f32) -> Linear {
        self.map(|k| if k == 0.0 { 0.0 } else { k / f64::from(divisor) })
    }
}

/// The data estimate's factors in f64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Estimate {
    pub slot0: f64,
    pub model_output: f64,
    pub bound: Option<Bound>,
}

/// One evaluation while a solver puts it together.
pub(super) struct Draft {
    pub timestep: f32,
    pub sigma: f32,
    pub input_scale: f32,
    pub estimate: Estimate,
    pub draws_noise: bool,
    pub deviation: Option<Deviation>,
    /// New values of the slots in order.
    pub next: Vec<Linear>,
}

impl Draft {
    /// The finished evaluation; an error where the settings make a coefficient infinite or undefined.
    pub fn finish(self) -> Result<Evaluation> {
        let slots = self.next.len();
        let rows: Vec<Row> = self.next.into_iter().map(|value| value.row(slots, &self.estimate)).collect();
        let Estimate { slot0, model_output, bound } = self.estimate;
        let prediction = Prediction { slot0: slot0 as f32, model_output: model_output as f32, bound };
        let factors =
            rows.iter().flat_map(|row| row.slots.iter().copied().chain([row.model_output, row.x0, row.noise]));
        let (constant, slope) = match self.deviation {
            Some(Deviation::Range { constant, slope }) => (constant, slope),
            Some(Deviation::Root) | None => (0.0, 0.0),
        };
        let scales = [self.timestep, self.input_scale, prediction.slot0, prediction.model_output, constant, slope];
        if !factors.chain(scales).all(f32::is_finite) {
            return Err(Error::usage("solver step without a finite result")
                .at(format!("timestep {}", self.timestep))
                .hint("another --sampler, --schedule or count of --steps; a schedule with zero terminal signal needs v_prediction"));
        }
        Ok(Evaluation {
            timestep: self.timestep,
            sigma: self.sigma,
            input_scale: self.input_scale,
            prediction,
            rows,
            draws_noise: self.draws_noise,
            deviation: self.deviation,
            step_end: true,
        })
    }
}
