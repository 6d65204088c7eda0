//! Guidance and one solver update in one kernel.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Limits, Variant, fold, vectors, whole};
use crate::tensor::DType;

/// What to compute, over latents [P, C].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerStep {
    /// P = H * W of the latent.
    pub positions: u32,
    /// C of the latent.
    pub channels: u32,
    /// Tensors that the solver keeps, the latent first.
    pub slots: u32,
    /// Whether the model's output holds two predictions to be combined.
    pub guided: bool,
    /// Whether the model's output has 2 C channels, of which the first half is the prediction.
    pub split: bool,
    /// What the second half of the channels means for the noise; anything but `Given` needs `split`.
    pub deviation: Deviation,
    /// Whether the second number of `factor` bounds the data estimate (`dynamic_threshold`).
    pub threshold: bool,
    /// Copies of the latent that the model takes (2 with guidance).
    pub batch: u32,
    /// Stored element type of the model's output.
    pub output: DType,
    /// Stored element type of the model's input.
    pub input: DType,
}

/// What scales the noise besides its factor in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviation {
    /// Nothing.
    Given,
    /// exp(k + l v) of the second half v of the model's channels.
    Range,
    /// sqrt(v).
    Root,
}

impl SchedulerStep {
    /// Vectors of four in the coefficient table.
    pub fn table_vectors(&self) -> u32 {
        2 + self.slots * (self.slots + 3).div_ceil(4)
    }

    /// Channels of the model's output.
    pub fn output_channels(&self) -> u32 {
        if self.split { 2 * self.channels } else { self.channels }
    }

    /// The constants of `shaders/prediction.wgsl`.
    pub(super) fn constants(&self) -> Vec<(&'static str, u32)> {
        let shift = if self.split { self.channels % 4 } else { 0 };
        vec![("GUIDED", u32::from(self.guided)), ("SPLIT", u32::from(self.split)), ("SHIFT", shift)]
    }

    pub(super) fn params(&self) -> Params {
        let width = vectors(self.channels);
        Params {
            vectors: self.positions * width,
            width,
            output_width: vectors(self.output_channels()),
            channels: self.channels,
            below: 0,
            share: 0.0,
            most: 0.0,
            pad0: 0,
        }
    }
}

/// One step's coefficients as the shader reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// x0 = `data[0]` * latent + `data[1]` * model output.
    pub data: [f32; 2],
    /// x0 is kept within plus and minus this.
    pub clip: Option<f32>,
    /// Scales the new latent for the model's next call.
    pub input_scale: f32,
    /// Guidance scale.
    pub guidance: f32,
    /// k and l of [`Deviation::Range`].
    pub deviation: [f32; 2],
    /// Per slot: factors of every slot, of the model's output, of x0 and of the noise.
    pub rows: Vec<(Vec<f32>, [f32; 3])>,
}

impl Coefficients {
    /// The bytes of the coefficient table.
    pub fn bytes(&self) -> Vec<u8> {
        let mut table = vec![self.data[0], self.data[1], self.clip.unwrap_or(0.0), self.input_scale];
        table.extend([self.guidance, self.deviation[0], self.deviation[1], 0.0]);
        for (slots, rest) in &self.rows {
            let begin = table.len();
            table.extend(slots);
            table.extend(rest);
            table.resize(begin + (slots.len() + 3).next_multiple_of(4), 0.0);
        }
        bytemuck::cast_slice(&table).to_vec()
    }
}

/// The uniform of `shaders/scheduler_step.wgsl` and `shaders/dynamic_threshold.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vectors: u32,
    width: u32,
    output_width: u32,
    channels: u32,
    below: u32,
    share: f32,
    most: f32,
    pad0: u32,
}

impl Params {
    pub(super) fn with_quantile(self, below: u32, share: f32, most: f32) -> Self {
        Self { below, share, most, ..self }
    }
}

/// model_output, factor, noise, state, table -> next state, model_input.
pub fn call(config: &SchedulerStep, limits: &Limits) -> Call {
    let params = config.params();
    let deviation = match config.deviation {
        Deviation::Given => 0,
        Deviation::Range => 1,
        Deviation::Root => 2,
    };
    let mut constants = config.constants();
    constants.extend([("SLOTS", config.slots), ("BATCH", config.batch)]);
    constants.extend([("DEVIATION", deviation), ("THRESHOLD", u32::from(config.threshold))]);
    let types = vec![("M", config.output), ("Input", config.input)];
    let variant = Variant { stem: "scheduler_step", enables: vec![], constants, types };
    whole(variant, &params, fold(u64::from(params.vectors).div_ceil(LANES), limits), 7)
}

/// What the reference takes for one position and channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The old slots.
    pub state: Vec<f64>,
    /// The predictions: one, or without and with the prompt.
    pub outputs: Vec<f64>,
    /// The noise drawn.
    pub noise: f64,
    /// What it is scaled with: 1, or from the model's second half.
    pub deviation: f64,
    /// The bound of dynamic thresholding.
    pub threshold: Option<f64>,
}

/// The guided prediction and the unbounded data estimate in f64.
pub fn prediction(coefficients: &Coefficients, latent: f64, outputs: &[f64], factor: f64) -> (f64, f64) {
    let e = match outputs {
        [u, c] => (u + f64::from(coefficients.guidance) * (c - u)) * factor,
        _ => outputs[0],
    };
    (e, f64::from(coefficients.data[0]) * latent + f64::from(coefficients.data[1]) * e)
}

/// The same as the kernel in f64 for one place: new state and model input.
pub fn reference(coefficients: &Coefficients, place: &Place, factor: f64) -> (Vec<f64>, f64) {
    let (e, mut x0) = prediction(coefficients, place.state[0], &place.outputs, factor);
    if let Some(threshold) = place.threshold {
        x0 = x0.clamp(-threshold, threshold) / threshold;
    } else if let Some(clip) = coefficients.clip {
        x0 = x0.clamp(-f64::from(clip), f64::from(clip));
    }
    let combine = |(slots, rest): &(Vec<f32>, [f32; 3])| {
        let memory: f64 = slots.iter().zip(&place.state).map(|(factor, value)| f64::from(*factor) * value).sum();
        let noise = f64::from(rest[2]) * place.noise * place.deviation;
        memory + f64::from(rest[0]) * e + f64::from(rest[1]) * x0 + noise
    };
    let next: Vec<f64> = coefficients.rows.iter().map(combine).collect();
    let input = f64::from(coefficients.input_scale) * next[0];
    (next, input)
}
