//! Denoising by any model: a graph of the model that its system builds, and the solver's update around it.
//!
//! The two graphs share buffers, so that a step copies nothing: the update reads the prediction where the model leaves it and
//! writes the model's next input where the model reads it. What else a model takes (text, noise levels, a picture beside
//! the noise, which its graph joins to `sample`) the system writes once, before the first step, into inputs of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident, WeightSink};
use crate::graph::recording::Submission;
use crate::graph::{Graph, Shape, WeightSpec};
use crate::kernels::{Limits, dynamic_threshold, guidance_rescale, scheduler_step};
use crate::pipelines::stages::execute_sharing;
use crate::sampling::{Bound, Deviation, Evaluation, Program, TorchGenerator};
use crate::tensor::{DType, HostTensor};
use crate::weights::{Source, pack};

/// Steps submitted and not waited for: the adapter has the next one at hand when it is done with the present one.
const STEPS_UNDER_WAY: usize = 2;

/// A denoising run: what is solved, over which samples, and how predictions are combined.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// The solver's table.
    pub program: Program,
    /// The sample [1, H, W, C]; a vector is [1, 1, 1, C].
    pub sample: Shape,
    /// Channels of the model's prediction: C, or 2 C with a variance behind it (with guidance the prompt's is taken).
    pub predicted: u32,
    /// Whether the model predicts twice, in the batch order [negative, prompt].
    pub guided: bool,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Guidance rescale (arXiv:2305.08891), 0 for none; not where the prediction has 2 C channels.
    pub guidance_rescale: f32,
}

impl Run {
    /// Samples that the model gets at once.
    pub fn batch(&self) -> u32 {
        1 + u32::from(self.guided)
    }

    /// Checks that model and scheduler fit each other; `place` names the model in the error.
    pub fn check(&self, place: &str) -> Result<()> {
        let channels = self.sample.channels;
        let expected = match (self.program.learned_variance, self.predicted == channels) {
            (true, _) if self.predicted != 2 * channels => format!("{} (a variance is expected)", 2 * channels),
            (false, false) if self.predicted != 2 * channels => format!("{channels} or {}", 2 * channels),
            _ => return Ok(()),
        };
        Err(Error::new("scheduler and model do not fit each other")
            .at(format!("{place}: output channels"))
            .expected(expected)
            .found(self.predicted))
    }

    /// Noise of unit variance [1, C, H, W], the generator's next.
    pub fn draw(&self, generator: &mut TorchGenerator) -> HostTensor {
        let axes = self.axes();
        HostTensor { data: generator.randn(axes.iter().product()), shape: axes }
    }

    /// [1, C, H, W].
    pub fn axes(&self) -> Vec<usize> {
        let Shape { height, width, channels, .. } = self.sample;
        vec![1, channels as usize, height as usize, width as usize]
    }

    fn update(&self, precision: DType) -> scheduler_step::SchedulerStep {
        let mut deviations = self.program.evaluations.iter().filter_map(|step| step.deviation);
        let deviation = deviations.next_back().map_or(scheduler_step::Deviation::Given, |deviation| match deviation {
            Deviation::Range { .. } => scheduler_step::Deviation::Range,
            Deviation::Root => scheduler_step::Deviation::Root,
        });
        scheduler_step::SchedulerStep {
            positions: self.sample.positions(),
            channels: self.sample.channels,
            slots: self.program.slots as u32,
            guided: self.guided,
            split: self.predicted != self.sample.channels,
            deviation,
            threshold: self.threshold().is_some(),
            batch: self.batch(),
            output: precision,
            input: precision,
        }
    }

    /// Ratio and largest bound of dynamic thresholding, the same in every step.
    fn threshold(&self) -> Option<(f32, f32)> {
        match self.program.evaluations.first()?.prediction.bound {
            Some(Bound::Dynamic { ratio, most }) => Some((ratio, most)),
            Some(Bound::Fixed(_)) | None => None,
        }
    }

    /// Guidance and the solver's update: model_output, state, noise, table -> next, model_input.
    pub fn graph(&self, limits: Limits, precision: DType) -> Graph {
        let mut g = Graph::new(precision, limits);
        let (config, shape, batch) = (self.update(precision), self.sample, self.batch());
        let output = g.input("model_output", Shape { batch, ..shape.with_channels(self.predicted) }, precision);
        let noise = g.input("noise", shape, DType::F32);
        let state = Shape { batch: config.slots, ..shape };
        let memory = g.input("state", state, DType::F32);
        let table = g.input("table", Shape::new(1, config.table_vectors(), 1, 4), DType::F32);
        let mut factor = if self.guided && self.guidance_rescale > 0.0 && !config.split {
            let (scale, phi) = (self.guidance_scale, self.guidance_rescale);
            let call = guidance_rescale::call(shape.positions(), shape.channels, scale, phi, precision);
            g.push("guidance", call, vec![output.into()], Shape::new(1, 1, 1, 4), DType::F32).into()
        } else {
            g.constant(vec![1.0; 4]).into()
        };
        if let Some((ratio, most)) = self.threshold() {
            let call = dynamic_threshold::call(&dynamic_threshold::DynamicThreshold { step: config, ratio, most });
            let inputs = vec![output.into(), factor, memory.into(), table.into()];
            factor = g.push("threshold", call, inputs, Shape::new(1, 1, 1, 4), DType::F32).into();
        }
        let call = scheduler_step::call(&config, g.limits());
        let inputs = vec![output.into(), factor, noise.into(), memory.into(), table.into()];
        let outputs = [(state, DType::F32), (Shape { batch, ..shape }, precision)];
        let made = g.push_many("scheduler", call, inputs, &outputs);
        g.output("next", made[0]);
        g.output("model_input", made[1]);
        g
    }
}

/// Where a run stands between two models.
pub(super) struct Standing {
    state: Resident,
    sample: Resident,
}

/// A model on the GPU, and the solver that asks it.
pub(super) struct Denoiser {
    model: Executor,
    /// The update, from one copy of the solver's state into the other, and back.
    updates: [Executor; 2],
    /// Which update is next; its `state` is the present one.
    turn: usize,
    run: Run,
    /// The steps that the adapter has not been seen to finish, the oldest first.
    flying: VecDeque<Submission>,
}

impl Denoiser {
    /// Loads `graph`, which has the inputs `sample` [B, H, W, C] and `timestep` [B, 1, 1, 1] (f32) and the output `prediction`
    /// [B, H, W, O], from the tensors of `parts`. Inputs and outputs named in `shared` lie where values of other graphs do.
    ///
    /// # Errors
    /// As [`Executor::sharing`].
    pub fn new(
        gpu: &Arc<Gpu>,
        graph: &Graph,
        shared: &[(&str, &Resident)],
        parts: &[&dyn Source],
        run: Run,
    ) -> Result<Self> {
        let model = execute_sharing(gpu, graph, shared, parts)?;
        let updates = updates(gpu, &model, &run.graph(gpu.limits(), graph.precision()))?;
        Ok(Self { model, updates, turn: 0, run, flying: VecDeque::new() })
    }

    /// The model, whose further inputs the system fills.
    pub fn model(&self) -> &Executor {
        &self.model
    }

    /// Begins with noise of unit variance [1, C, H, W].
    pub fn start(&mut self, noise: &HostTensor) -> Result<()> {
        let program = &self.run.program;
        let Some(first) = program.evaluations.first() else { return Ok(()) };
        let mut state = noise.channels_last().data;
        state.iter_mut().for_each(|value| *value *= program.init_noise_sigma);
        let input: Vec<f32> = state.iter().map(|value| value * first.input_scale).collect();
        state.resize(state.len() * program.slots, 0.0);
        let batch = self.run.batch() as usize;
        self.turn = 0;
        self.flying.clear();
        self.updates[0].write("state", &HostTensor { shape: vec![program.slots], data: state })?;
        self.model.write("sample", &HostTensor { shape: vec![batch], data: input.repeat(batch) })
    }

    /// Where the run stands, which outlives this model.
    pub fn standing(&self) -> Result<Standing> {
        Ok(Standing { state: self.state()?, sample: self.model.resident("sample")? })
    }

    /// Goes on where another model left the same run.
    pub fn take_over(&mut self, other: &Standing) -> Result<()> {
        self.turn = 0;
        self.flying.clear();
        self.updates[0].copy_from("state", &other.state)?;
        self.model.copy_from("sample", &other.sample)
    }

    /// Waits for evaluation `index` of the program. The adapter is given the one after it first, up to `end`, so that it never
    /// waits for the host: while one step runs, the next is encoded and its noise drawn. Two are under way at most, as each
    /// holds memory of the driver; with `alone` only this one, so that [`Denoiser::latent`] is what it left.
    pub fn step(&mut self, index: usize, end: usize, alone: bool, generator: &mut TorchGenerator) -> Result<()> {
        let ahead = if alone { 1 } else { STEPS_UNDER_WAY };
        while self.flying.len() < ahead && index + self.flying.len() < end {
            let submission = self.submit(index + self.flying.len(), generator)?;
            self.flying.push_back(submission);
        }
        match self.flying.pop_front() {
            Some(submission) => submission.wait(),
            None => Ok(()),
        }
    }

    /// One call of the model and the update after it, submitted; the caller may go on to the next before it is done.
    ///
    /// The writes here do not disturb a step that is still running: wgpu puts them into the queue in front of the next
    /// submission, behind all earlier ones, and what they change is read by this step's commands alone. All of them come
    /// before the step's first submission, however many slices it takes.
    fn submit(&mut self, index: usize, generator: &mut TorchGenerator) -> Result<Submission> {
        let evaluation = &self.run.program.evaluations[index];
        let next_scale = self.run.program.evaluations.get(index + 1).map_or(1.0, |next| next.input_scale);
        let batch = self.run.batch() as usize;
        let update = &self.updates[self.turn];
        self.model.write("timestep", &HostTensor { shape: vec![batch], data: vec![evaluation.timestep; batch] })?;
        update.write_bytes("table", &coefficients(evaluation, self.run.guidance_scale, next_scale).bytes())?;
        if evaluation.draws_noise {
            update.write("noise", &self.run.draw(generator).channels_last())?;
        }
        let mut recording = self.model.begin();
        self.model.record(&mut recording);
        update.record(&mut recording);
        self.turn = 1 - self.turn;
        Ok(recording.submit())
    }

    /// The solver's memory on the GPU, the sample first.
    pub fn state(&self) -> Result<Resident> {
        self.updates[self.turn].resident("state")
    }

    /// The sample [1, C, H, W] as it stands. Blocks.
    pub fn latent(&self) -> Result<HostTensor> {
        let rows = self.updates[self.turn].read("state")?;
        let Shape { height, width, channels, .. } = self.run.sample;
        let count = (self.run.sample.rows() * channels) as usize;
        let axes = [1, height as usize, width as usize, channels as usize];
        Ok(HostTensor { shape: axes.to_vec(), data: rows.data[..count].to_vec() }.channels_first())
    }

    /// The finished sample [1, C, H, W]. Blocks.
    ///
    /// # Errors
    /// When it is not finite.
    pub fn finished(&self) -> Result<HostTensor> {
        let latent = self.latent()?;
        if latent.data.iter().all(|value| value.is_finite()) {
            return Ok(latent);
        }
        Err(Error::new("the denoiser made numbers that are not finite")
            .at("latent")
            .expected("finite values")
            .found("NaN or infinity")
            .hint("--precision f32, or another sampler"))
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.model.bytes() + self.updates.iter().map(Executor::bytes).sum::<u64>()
    }
}

fn coefficients(evaluation: &Evaluation, guidance: f32, next_scale: f32) -> scheduler_step::Coefficients {
    scheduler_step::Coefficients {
        data: [evaluation.prediction.slot0, evaluation.prediction.model_output],
        clip: match evaluation.prediction.bound {
            Some(Bound::Fixed(clip)) => Some(clip),
            Some(Bound::Dynamic { .. }) | None => None,
        },
        input_scale: next_scale,
        guidance,
        deviation: match evaluation.deviation {
            Some(Deviation::Range { constant, slope }) => [constant, slope],
            Some(Deviation::Root) | None => [0.0; 2],
        },
        rows: evaluation.rows.iter().map(|row| (row.slots.clone(), [row.model_output, row.x0, row.noise])).collect(),
    }
}

/// Compiles the update twice: the second reads the state that the first writes, and the other way round.
fn updates(gpu: &Arc<Gpu>, model: &Executor, graph: &Graph) -> Result<[Executor; 2]> {
    let (prediction, sample) = (model.resident("prediction")?, model.resident("sample")?);
    let nothing = |spec: &WeightSpec, sink: &mut WeightSink<'_>| pack::pack(spec, None, sink);
    let ends = [("model_output", &prediction), ("model_input", &sample)];
    let first = Executor::sharing(gpu, graph, &ends, nothing)?;
    let names = ["state", "next", "noise", "table"];
    let [state, next, noise, table] = names.map(|name| first.resident(name));
    let (state, next, noise, table) = (state?, next?, noise?, table?);
    let between = [("state", &next), ("next", &state), ("noise", &noise), ("table", &table)];
    let second = Executor::sharing(gpu, graph, &[&ends[..], &between].concat(), nothing)?;
    Ok([first, second])
}
