//! A pipeline's stages taken apart: their graphs without a device, the memory they need, and single stages to be timed.

use std::sync::Arc;

use super::denoise::DenoiseStage;
use super::request::Settings;
use super::stages::{DecodeStage, TextStage, execute};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, plan};
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

/// What a stage takes on the adapter while it is loaded, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct StageMemory {
    /// Which.
    pub stage: Stage,
    /// Weights as packed.
    pub weights: u64,
    /// Activations, inputs and outputs.
    pub activations: u64,
    /// Why it cannot run within the limits, if it cannot.
    pub fault: Option<Error>,
}

/// A stage's graph for pictures of `settings`' size. Needs no device and reads no weights.
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
        Stage::Denoise => DenoiseStage::build(checkpoint, limits, precision, settings),
        Stage::Decode => DecodeStage::build(checkpoint, limits, precision, settings),
    }
}

/// The bytes that every stage needs. The stages are loaded one after the other; the UNet stays while the picture is
/// decoded if there are further pictures to draw.
///
/// # Errors
/// As [`graph`].
pub fn memory(
    checkpoint: &Checkpoint,
    settings: &Settings,
    precision: DType,
    limits: Limits,
) -> Result<Vec<StageMemory>> {
    let measure = |stage| {
        let graph = graph(stage, checkpoint, limits, precision, settings)?;
        let activations = plan::plan(&graph).bytes();
        Ok(StageMemory { stage, weights: graph.weight_bytes(), activations, fault: graph.fault().cloned() })
    };
    Stage::ALL.into_iter().map(measure).collect()
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
