//! A pipeline's stages taken apart: their graphs without a device, the memory they need, and single stages to be timed.

use std::sync::Arc;

use super::decode::{DecodeStage, Tiling};
use super::denoise::DenoiseStage;
use super::request::Settings;
use super::stages::{TextStage, execute};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::graph::executor::Executor;
use crate::graph::footprint::{Footprint, footprint};
use crate::kernels::Limits;
use crate::tensor::DType;
use crate::weights::Source;
use crate::weights::checkpoint::Checkpoint;

/// One of the three stages of a diffusion system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The text encoders, one prompt at a time.
    Text,
    /// One call of the UNet, on two latents where guidance is on.
    Denoise,
    /// The VAE's decoder.
    Decode,
}

impl Stage {
    /// All, in order of execution.
    pub const ALL: [Self; 3] = [Self::Text, Self::Denoise, Self::Decode];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        }
    }
}

/// What a stage takes on the adapter, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct StageMemory {
    /// Which.
    pub stage: Stage,
    /// Weights as packed.
    pub weights: u64,
    /// Those of the weights that are released before the others are loaded: what makes the UNet's keys and values of the
    /// text.
    pub passing: u64,
    /// Activations, inputs and outputs.
    pub activations: u64,
    /// What else is there at its peak: parameters and staged operands, or what the weights are loaded through; values that
    /// go from stage to stage; the picture on its way to the host; and the UNet, where it stays while a picture is decoded.
    pub others: u64,
    /// Whether the decoder runs in bands of rows.
    pub tiled: bool,
    /// Why it cannot run within the limits, if it cannot.
    pub fault: Option<Error>,
}

impl StageMemory {
    /// The most bytes at any time of the stage.
    pub fn peak(&self) -> u64 {
        self.weights - self.passing + self.activations + self.others
    }

    fn of(stage: Stage, footprint: Footprint, peak: u64, fault: Option<Error>) -> Self {
        let Footprint { weights, activations, .. } = footprint;
        Self { stage, weights, passing: 0, activations, others: peak - weights - activations, tiled: false, fault }
    }
}

/// A stage's graph (the step's, of the denoising stage) for pictures of `settings`' size. Needs no device and reads no weights.
///
/// # Errors
/// When the checkpoint lacks a tensor, or has one of another shape or one too many.
pub fn graph(
    stage: Stage,
    checkpoint: &Checkpoint,
    limits: Limits,
    precision: DType,
    settings: &Settings,
) -> Result<Graph> {
    match stage {
        Stage::Text => TextStage::build(checkpoint, limits, precision, settings.clip_skip),
        Stage::Denoise => Ok(DenoiseStage::build(checkpoint, limits, precision, settings)?.unet),
        Stage::Decode => DecodeStage::build(checkpoint, limits, precision, settings, false),
    }
}

/// The bytes that every stage of one picture needs; the largest [`StageMemory::peak`] is what the run takes. Uploads between
/// steps (a few latents) are not told.
///
/// # Errors
/// As [`graph`].
pub fn memory(
    checkpoint: &Checkpoint,
    settings: &Settings,
    precision: DType,
    limits: Limits,
) -> Result<Vec<StageMemory>> {
    memory_of(checkpoint, settings, precision, limits, 1, Tiling::default())
}

/// The same for `pictures` pictures, decoded as `tiling` says. The stages are loaded one after the other; the UNet stays
/// while a picture is decoded if there are further pictures to draw.
///
/// # Errors
/// As [`graph`].
pub fn memory_of(
    checkpoint: &Checkpoint,
    settings: &Settings,
    precision: DType,
    limits: Limits,
    pictures: u32,
    tiling: Tiling,
) -> Result<Vec<StageMemory>> {
    let text = graph(Stage::Text, checkpoint, limits, precision, settings)?;
    let denoise = DenoiseStage::build(checkpoint, limits, precision, settings)?;
    let program = settings.scheduler.program(settings.steps as usize, None)?;
    let batch = 1 + u32::from(settings.guided);
    let step = DenoiseStage::run(checkpoint, settings, &program).graph(limits, precision);
    let named = |graph: &Graph, names: &[&str]| -> u64 {
        let all = graph.inputs.iter().chain(&graph.outputs).filter(|(name, _)| names.contains(&name.as_str()));
        all.map(|(_, value)| graph.shape(*value).bytes(graph.dtype(*value))).sum()
    };
    let text_footprint = footprint(&text);
    let prompt = named(&text, &["context", "pooled"]);
    let vectors = prompt * u64::from(batch);
    let text_peak = text_footprint.peak().max(text_footprint.loaded() + vectors);

    let (unet_footprint, step_footprint) = (footprint(&denoise.unet), footprint(&step));
    let keys_footprint = footprint(&denoise.text);
    // The update is compiled twice; both share the UNet's ends, and the second all the buffers of the first.
    let update = step_footprint.loaded() - named(&step, &["model_output", "model_input"]);
    let updates = update + step_footprint.weights + step_footprint.parameters;
    let state = named(&step, &["state"]);
    let running = unet_footprint.loaded() + updates;
    let loading = keys_footprint.peak().max(unet_footprint.peak()).max(running);
    let unet_peak = (vectors + loading).max(running + state);

    let beside = if pictures > 1 { running } else { state };
    let decoder = DecodeStage::choose(checkpoint, limits, precision, settings, tiling, beside)?;
    let decode_peak = beside + decoder.peak(settings);
    let fault = |graph: &Graph| graph.fault().cloned();
    let decode = StageMemory::of(Stage::Decode, decoder.footprint, decode_peak, fault(&decoder.graph));
    Ok(vec![
        StageMemory::of(Stage::Text, text_footprint, text_peak, fault(&text)),
        StageMemory {
            weights: keys_footprint.weights + unet_footprint.weights,
            passing: keys_footprint.weights,
            ..StageMemory::of(Stage::Denoise, unet_footprint, unet_peak, fault(&denoise.text).or(fault(&denoise.unet)))
        },
        StageMemory { tiled: decoder.tiled, ..decode },
    ])
}

/// What graphs that are on the adapter at the same time take there, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The first graph's name.
    pub name: String,
    /// Weights as packed.
    pub weights: u64,
    /// The most at any time, what they are loaded through included. Values that graphs share are counted in each, and what is
    /// handed from stage to stage is left out.
    pub peak: u64,
    /// Why one of them cannot run within the limits, if it cannot.
    pub fault: Option<Error>,
}

/// Sums up a system's `graphs`, in their order: those that `together` names are there at the same time, every other one is alone.
/// A solver's update, which is called `.. scheduler`, is compiled twice.
pub fn loaded<N: AsRef<str>>(graphs: &[(N, Graph)], together: &[Vec<String>]) -> Vec<Loaded> {
    let all: Vec<(&str, &Graph)> = graphs.iter().map(|(name, graph)| (name.as_ref(), graph)).collect();
    let mut found = Vec::new();
    for (name, graph) in &all {
        let group = together.iter().find(|group| group.iter().any(|member| member == name));
        let members: Vec<(&str, &Graph)> = match group {
            None => vec![(*name, *graph)],
            Some(group) if group.first().is_some_and(|first| first == name) => {
                all.iter().filter(|(member, _)| group.iter().any(|known| known == member)).copied().collect()
            }
            Some(_) => continue,
        };
        let (mut weights, mut held, mut loading, mut fault) = (0, 0, 0, None);
        for (member, graph) in members {
            let each = footprint(graph);
            let copies = if member == "scheduler" || member.ends_with(" scheduler") { 2 } else { 1 };
            weights += copies * each.weights;
            held += copies * each.loaded();
            loading = loading.max(each.peak() - each.loaded());
            fault = fault.or_else(|| graph.fault().cloned());
        }
        found.push(Loaded { name: (*name).to_owned(), weights, peak: held + loading, fault });
    }
    found
}

/// A stage's `graph`, compiled and its weights uploaded.
///
/// # Errors
/// When the adapter's limits or memory do not suffice, a shader does not compile or a weight cannot be read.
pub fn executor(stage: Stage, gpu: &Arc<Gpu>, graph: &Graph, checkpoint: &Checkpoint) -> Result<Executor> {
    let parts: Vec<&dyn Source> = match stage {
        Stage::Text => checkpoint.text_encoders.iter().map(|part| part.weights.as_ref()).collect(),
        Stage::Denoise => vec![checkpoint.unet.weights.as_ref()],
        Stage::Decode => vec![checkpoint.vae.weights.as_ref()],
    };
    execute(gpu, graph, &parts)
}
