//! Cases of `scheduler_step`, `dynamic_threshold` and `guidance_rescale`.

use super::super::dynamic_threshold::{self, DynamicThreshold};
use super::super::guidance_rescale;
use super::super::scheduler_step::{self, Coefficients, Deviation, Place, SchedulerStep};
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

const FACTOR: f32 = 0.8125;
/// The bound that a thresholded step is given.
const BOUND: f32 = 1.375;
/// k and l of a learned variance.
const RANGE: [f32; 2] = [-0.75, 0.5];

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
            deviation: RANGE,
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
        let values = count * self.predictions() * (1 + usize::from(self.config.split));
        let mut output = numbers("model output", values, self.config.output, 0.1, 1.5);
        if self.config.deviation == Deviation::Root {
            output.iter_mut().for_each(|value| *value = value.abs());
        }
        [output, numbers("noise", count, DType::F32, 0.0, 2.0), numbers("state", count * slots, DType::F32, 0.3, 2.0)]
    }

    /// What `reference` takes for every element of a latent.
    fn places(&self) -> Vec<Place> {
        let ([output, noise, state], count) = (self.numbers(), self.count());
        let (channels, wide) = (self.config.channels as usize, self.config.output_channels() as usize);
        let output = |prediction: usize, i: usize, half: usize| {
            let row = prediction * self.config.positions as usize + i / channels;
            output[row * wide + half * channels + i % channels]
        };
        let learned = |i: usize| match self.config.deviation {
            Deviation::Given => 1.0,
            Deviation::Range => {
                let v = output(self.predictions() - 1, i, 1);
                (f64::from(RANGE[0]) + f64::from(RANGE[1]) * v).exp()
            }
            Deviation::Root => output(self.predictions() - 1, i, 1).sqrt(),
        };
        let place = |i: usize| Place {
            state: state.iter().skip(i).step_by(count).copied().collect(),
            outputs: (0..self.predictions()).map(|prediction| output(prediction, i, 0)).collect(),
            noise: if self.noisy { noise[i] } else { 0.0 },
            deviation: learned(i),
            threshold: self.config.threshold.then_some(f64::from(BOUND)),
        };
        (0..count).map(place).collect()
    }

    /// The new memory [slots, P, C] and the model's input [P, C] that `reference` gives.
    fn reference(&self, coefficients: &Coefficients, places: &[Place]) -> (Vec<f64>, Vec<f64>) {
        let results: Vec<_> =
            places.iter().map(|place| scheduler_step::reference(coefficients, place, f64::from(FACTOR))).collect();
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
            place.threshold = None;
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
            Tensor::given("model output", self.config.output_channels(), stored, &output),
            Tensor::given("factor", 2, DType::F32, &[f64::from(FACTOR), f64::from(BOUND)]),
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

/// The bound alone, from the predictions and the memory of an update.
struct Threshold {
    bound: DynamicThreshold,
    update: Update,
}

impl Threshold {
    fn estimates(&self, coefficients: &Coefficients, places: &[Place]) -> Vec<f64> {
        let estimate = |place: &Place| {
            scheduler_step::prediction(coefficients, place.state[0], &place.outputs, f64::from(FACTOR)).1
        };
        places.iter().map(estimate).collect()
    }
}

impl Kernel for Threshold {
    fn work(&self, _: &Limits) -> Option<Work> {
        let (update, SchedulerStep { channels, output, .. }) = (&self.update, self.bound.step);
        let [values, _, state] = update.numbers();
        let table = Tensor::made("table", self.bound.step.table_vectors(), 4, DType::F32);
        let tensors = vec![
            Tensor::given("model output", self.bound.step.output_channels(), output, &values),
            Tensor::given("factor", 1, DType::F32, &[f64::from(FACTOR)]),
            Tensor::given("state", channels, DType::F32, &state),
            Tensor { bytes: Some(update.coefficients().bytes()), ..table },
            Tensor::made("bound", 1, 2, DType::F32),
        ];
        Some(Work::of(dynamic_threshold::call(&self.bound), tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let coefficients = self.update.coefficients();
        let estimates = self.estimates(&coefficients, &self.update.places());
        let bound = dynamic_threshold::reference(&self.bound, &estimates);
        // A quantile is no farther off than the worst of the values.
        let magnitudes = Coefficients { data: coefficients.data.map(f32::abs), clip: None, ..coefficients };
        let mut places = self.update.places();
        for place in &mut places {
            place.state[0] = place.state[0].abs();
            let first = place.outputs[0].abs();
            place.outputs.iter_mut().for_each(|value| *value = value.abs() + 2.0 * first);
            place.outputs[0] = first;
        }
        let worst = self.estimates(&magnitudes, &places).into_iter().fold(1.0, f64::max);
        vec![Expected::new("bound", DType::F32, vec![f64::from(FACTOR), bound], vec![0.0, K * EPS * worst])]
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

fn config(positions: u32, channels: u32, slots: u32, guided: bool, dtype: DType) -> SchedulerStep {
    SchedulerStep {
        positions,
        channels,
        slots,
        guided,
        split: false,
        deviation: Deviation::Given,
        threshold: false,
        batch: 1 + u32::from(guided),
        output: dtype,
        input: dtype,
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let step = |positions: u32, channels: u32, slots: u32, guided: bool| Update {
        config: config(positions, channels, slots, guided, dtype),
        clip: None,
        noisy: false,
    };
    let learned = |positions: u32, channels: u32, guided: bool, deviation: Deviation| {
        let config = SchedulerStep { split: true, deviation, ..config(positions, channels, 1, guided, dtype) };
        Update { config, clip: Some(1.0), noisy: deviation != Deviation::Given }
    };
    let threshold = |update: Update| Update { config: SchedulerStep { threshold: true, ..update.config }, ..update };
    let updates = [
        ("Euler with guidance", step(12 * 20, 4, 1, true)),
        ("ancestral without guidance", Update { noisy: true, ..step(9 * 7, 4, 1, false) }),
        ("clipped", Update { clip: Some(1.0), ..step(65, 4, 2, true) }),
        ("four slots, noise", Update { noisy: true, ..step(33, 4, 4, true) }),
        ("five slots, channels not a multiple of four", Update { noisy: true, ..step(21, 3, 5, true) }),
        ("one position", step(1, 4, 3, false)),
        ("learned range with guidance, three channels", learned(8 * 9, 3, true, Deviation::Range)),
        ("learned range, four channels", learned(70, 4, true, Deviation::Range)),
        ("learned range, six channels", learned(31, 6, false, Deviation::Range)),
        ("learned variance, five channels", learned(67, 5, true, Deviation::Root)),
        ("second half left unread, seven channels", learned(12, 7, true, Deviation::Given)),
        ("thresholded", threshold(step(5 * 13, 3, 2, true))),
        ("thresholded, learned range", threshold(learned(64, 3, true, Deviation::Range))),
    ];
    let updates = updates.into_iter().map(|(what, update)| Case::new("scheduler_step", what, dtype, update));
    let rescale = |positions: u32, channels: u32, mean: f64| Rescale { positions, channels, mean, dtype };
    let rescales = [
        ("a latent", rescale(12 * 20, 4, 0.1)),
        ("channels not a multiple of four", rescale(131, 3, 0.5)),
        ("mean 100", rescale(300, 4, 100.0)),
        ("one position", rescale(1, 4, 0.0)),
    ];
    let thresholds = [
        ("a picture", (16 * 17, 3), true, true, 0.95, 9.0),
        ("half the values, without guidance", (41, 5), false, false, 0.5, 9.0),
        ("all values", (300, 4), true, false, 1.0, 9.0),
        ("limited", (99, 6), false, true, 0.995, 1.5),
        ("at least one", (257, 3), true, true, 0.0, 2.0),
        ("one value", (1, 1), false, false, 0.9, 9.0),
    ];
    let thresholds = thresholds.into_iter().map(|(what, (positions, channels), guided, split, ratio, most)| {
        let config = SchedulerStep { split, threshold: true, ..config(positions, channels, 1, guided, dtype) };
        let update = Update { config, clip: None, noisy: false };
        let bound = DynamicThreshold { step: config, ratio, most };
        Case::new("dynamic_threshold", what, dtype, Threshold { bound, update })
    });
    updates
        .chain(thresholds)
        .chain(rescales.into_iter().map(|(what, config)| Case::new("guidance_rescale", what, dtype, config)))
        .collect()
}
