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
    /// Copies of the latent that the model takes (2 with guidance).
    pub batch: u32,
    /// Stored element type of the model's output.
    pub output: DType,
    /// Stored element type of the model's input.
    pub input: DType,
}

impl SchedulerStep {
    /// Vectors of four in the coefficient table.
    pub fn table_vectors(&self) -> u32 {
        2 + self.slots * (self.slots + 3).div_ceil(4)
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
    /// Per slot: factors of every slot, of the model's output, of x0 and of the noise.
    pub rows: Vec<(Vec<f32>, [f32; 3])>,
}

impl Coefficients {
    /// The bytes of the coefficient table.
    pub fn bytes(&self) -> Vec<u8> {
        let mut table = vec![self.data[0], self.data[1], self.clip.unwrap_or(0.0), self.input_scale];
        table.extend([self.guidance, 0.0, 0.0, 0.0]);
        for (slots, rest) in &self.rows {
            let begin = table.len();
            table.extend(slots);
            table.extend(rest);
            table.resize(begin + (slots.len() + 3).next_multiple_of(4), 0.0);
        }
        bytemuck::cast_slice(&table).to_vec()
    }
}

/// The uniform of `shaders/scheduler_step.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vectors: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

/// model_output, factor, noise, state, table -> next state, model_input.
pub fn call(config: &SchedulerStep, limits: &Limits) -> Call {
    let count = config.positions * vectors(config.channels);
    let params = Params { vectors: count, pad0: 0, pad1: 0, pad2: 0 };
    let constants = vec![("SLOTS", config.slots), ("GUIDED", u32::from(config.guided)), ("BATCH", config.batch)];
    let types = vec![("M", config.output), ("Input", config.input)];
    let variant = Variant { stem: "scheduler_step", enables: vec![], constants, types };
    whole(variant, &params, fold(u64::from(count).div_ceil(LANES), limits), 7)
}

/// The same in f64 for one position: new state and model input, from the old state, the predictions and the noise.
pub fn reference(
    coefficients: &Coefficients,
    state: &[f64],
    outputs: &[f64],
    factor: f64,
    noise: f64,
) -> (Vec<f64>, f64) {
    let e = match outputs {
        [u, c] => (u + f64::from(coefficients.guidance) * (c - u)) * factor,
        _ => outputs[0],
    };
    let mut x0 = f64::from(coefficients.data[0]) * state[0] + f64::from(coefficients.data[1]) * e;
    if let Some(clip) = coefficients.clip {
        x0 = x0.clamp(-f64::from(clip), f64::from(clip));
    }
    let combine = |(slots, rest): &(Vec<f32>, [f32; 3])| {
        let memory: f64 = slots.iter().zip(state).map(|(factor, value)| f64::from(*factor) * value).sum();
        memory + f64::from(rest[0]) * e + f64::from(rest[1]) * x0 + f64::from(rest[2]) * noise
    };
    let next: Vec<f64> = coefficients.rows.iter().map(combine).collect();
    let input = f64::from(coefficients.input_scale) * next[0];
    (next, input)
}
