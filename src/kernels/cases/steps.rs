//! Cases of `scheduler_step` and `guidance_rescale`.

use super::super::guidance_rescale;
use super::super::scheduler_step::{self, Coefficients, SchedulerStep};
use super::super::{Limits, vectors};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

/// About ten products and sums, one after another; the magnitudes below take every term as positive.
const K: f64 = 12.0;

struct Update {
    config: SchedulerStep,
    clip: Option<f32>,
    /// Whether the step draws noise; without it the noise buffer holds NaN, as a stale one may.
    noisy: bool,
}

/// Per position and channel: the solver's memory, the predictions and the noise.
struct Place {
    state: Vec<f64>,
    outputs: Vec<f64>,
    noise: f64,
}

const FACTOR: f32 = 0.8125;

impl Update {
    fn coefficients(&self) -> Coefficients {
        let slots = self.config.slots as usize;
        let factors = numbers("factors", slots * (slots + 3), DType::F32, 0.2, 1.0);
        let row = |row: &[f64]| {
            let all: Vec<f32> = row.iter().map(|factor| *factor as f32).collect();
            let noise = if self.noisy { all[slots + 2] } else { 0.0 };
            (all[..slots].to_vec(), [all[slots], all[slots + 1], noise])
        };
        Coefficients {
            data: [1.25, -0.875],
            clip: self.clip,
            input_scale: 0.375,
            guidance: 7.5,
            rows: factors.chunks_exact(slots + 3).map(row).collect(),
        }
    }

    fn count(&self) -> usize {
        (self.config.positions * self.config.channels) as usize
    }

    fn predictions(&self) -> usize {
        1 + usize::from(self.config.guided)
    }

    fn numbers(&self) -> [Vec<f64>; 3] {
        let (count, slots) = (self.count(), self.config.slots as usize);
        [
            numbers("model output", count * self.predictions(), self.config.output, 0.1, 1.5),
            numbers("noise", count, DType::F32, 0.0, 2.0),
            numbers("state", count * slots, DType::F32, 0.3, 2.0),
        ]
    }

    /// What `reference` takes for every element of a latent.
    fn places(&self) -> Vec<Place> {
        let ([output, noise, state], count) = (self.numbers(), self.count());
        let at = |values: &[f64], i: usize| values.iter().skip(i).step_by(count).copied().collect();
        let noise = |i: usize| if self.noisy { noise[i] } else { 0.0 };
        (0..count).map(|i| Place { state: at(&state, i), outputs: at(&output, i), noise: noise(i) }).collect()
    }

    /// The new memory [slots, P, C] and the model's input [P, C] that `reference` gives.
    fn reference(&self, coefficients: &Coefficients, places: &[Place]) -> (Vec<f64>, Vec<f64>) {
        let results: Vec<_> = places
            .iter()
            .map(|place| {
                let Place { state, outputs, noise } = place;
                scheduler_step::reference(coefficients, state, outputs, f64::from(FACTOR), *noise)
            })
            .collect();
        let slots = 0..self.config.slots as usize;
        let next = slots.flat_map(|slot| results.iter().map(move |(next, _)| next[slot])).collect();
        (next, results.iter().map(|(_, input)| *input).collect())
    }

    /// The same with every term positive: guidance g of u and c is at most |u| + g (|c| + |u|).
    fn magnitudes(&self) -> (Vec<f64>, Vec<f64>) {
        let mut coefficients = Coefficients { clip: None, ..self.coefficients() };
        coefficients.data = coefficients.data.map(f32::abs);
        for (slots, rest) in &mut coefficients.rows {
            slots.iter_mut().chain(rest).for_each(|factor| *factor = factor.abs());
        }
        let mut places = self.places();
        for place in &mut places {
            place.state.iter_mut().for_each(|value| *value = value.abs());
            place.noise = place.noise.abs();
            let first = place.outputs[0].abs();
            place.outputs.iter_mut().for_each(|value| *value = value.abs() + 2.0 * first);
            place.outputs[0] = first;
        }
        self.reference(&coefficients, &places)
    }
}

impl Kernel for Update {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let [output, noise, state] = self.numbers();
        let SchedulerStep { positions, channels, slots, batch, output: stored, input, .. } = self.config;
        let noise = if self.noisy { noise } else { vec![f64::NAN; noise.len()] };
        let table = Tensor::made("table", self.config.table_vectors(), 4, DType::F32);
        let tensors = vec![
            Tensor::given("model output", channels, stored, &output),
            Tensor::given("factor", 1, DType::F32, &[f64::from(FACTOR)]),
            Tensor::given("noise", channels, DType::F32, &noise),
            Tensor::given("state", channels, DType::F32, &state),
            Tensor { bytes: Some(self.coefficients().bytes()), ..table },
            Tensor::made("next", slots * positions, channels, DType::F32),
            Tensor::made("model input", batch * positions, channels, input),
        ];
        Some(Work::of(scheduler_step::call(&self.config, limits), tensors, 2))
    }

    fn expected(&self) -> Vec<Expected> {
        let (next, input) = self.reference(&self.coefficients(), &self.places());
        let (next_terms, input_terms) = self.magnitudes();
        let tolerances = |terms: Vec<f64>| -> Vec<f64> { terms.iter().map(|terms| K * EPS * terms).collect() };
        let copies = self.config.batch as usize;
        vec![
            Expected::new("next", DType::F32, next, tolerances(next_terms)),
            Expected::new(
                "model input",
                self.config.input,
                input.repeat(copies),
                tolerances(input_terms).repeat(copies),
            ),
        ]
    }
}

struct Rescale {
    positions: u32,
    channels: u32,
    mean: f64,
    dtype: DType,
}

const GUIDANCE: f32 = 7.5;
const PHI: f32 = 0.7;

impl Rescale {
    fn numbers(&self) -> Vec<f64> {
        numbers("model output", 2 * (self.positions * self.channels) as usize, self.dtype, self.mean, 1.7)
    }
}

impl Kernel for Rescale {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let Rescale { positions, channels, dtype, .. } = *self;
        let call = guidance_rescale::call(positions, channels, GUIDANCE, PHI, dtype);
        let fits = u64::from(2 * positions * vectors(channels)) * super::super::vector_bytes(dtype) <= limits.binding;
        let tensors = vec![
            Tensor::given("model output", channels, dtype, &self.numbers()),
            Tensor::made("factor", 1, 1, DType::F32),
        ];
        fits.then(|| Work::of(call, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let numbers = self.numbers();
        let (without, with) = numbers.split_at(numbers.len() / 2);
        let factor = guidance_rescale::reference(without, with, f64::from(GUIDANCE), f64::from(PHI));
        // The squares about a mean that is off by eps |mean| err by eps |mean| over the deviation, here 1; guidance
        // multiplies the mean's rounding. 256 invocations sum short runs, then a tree.
        let terms = (1.0 + 2.0 * f64::from(GUIDANCE) * self.mean.abs()) * (factor.abs() + 1.0);
        vec![Expected::new("factor", DType::F32, vec![factor], vec![32.0 * EPS * terms])]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let step = |positions: u32, channels: u32, slots: u32, guided: bool| Update {
        config: SchedulerStep {
            positions,
            channels,
            slots,
            guided,
            batch: 1 + u32::from(guided),
            output: dtype,
            input: dtype,
        },
        clip: None,
        noisy: false,
    };
    let updates = [
        ("Euler with guidance", step(12 * 20, 4, 1, true)),
        ("ancestral without guidance", Update { noisy: true, ..step(9 * 7, 4, 1, false) }),
        ("clipped", Update { clip: Some(1.0), ..step(65, 4, 2, true) }),
        ("four slots, noise", Update { noisy: true, ..step(33, 4, 4, true) }),
        ("five slots, channels not a multiple of four", Update { noisy: true, ..step(21, 3, 5, true) }),
        ("one position", step(1, 4, 3, false)),
    ];
    let updates = updates.into_iter().map(|(what, update)| Case::new("scheduler_step", what, dtype, update));
    let rescale = |positions: u32, channels: u32, mean: f64| Rescale { positions, channels, mean, dtype };
    let rescales = [
        ("a latent", rescale(12 * 20, 4, 0.1)),
        ("channels not a multiple of four", rescale(131, 3, 0.5)),
        ("mean 100", rescale(300, 4, 100.0)),
        ("one position", rescale(1, 4, 0.0)),
    ];
    updates
        .chain(rescales.into_iter().map(|(what, config)| Case::new("guidance_rescale", what, dtype, config)))
        .collect()
}
