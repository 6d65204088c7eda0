//! The first and the last stage of a diffusion system on the GPU, text and decoding. Each owns its graph and weights.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::models::nn;
use crate::models::text::clip::{self, Take};
use crate::pipelines::decode::DecodeStage;
use crate::pipelines::denoise::DenoiseStage;
use crate::pipelines::request::Settings;
use crate::pipelines::system::Event;
use crate::tensor::DType;
use crate::text::{ClipTokenizer, pooled_place};
use crate::weights::checkpoint::{Checkpoint, PipelineClass, TokenizerFiles};
use crate::weights::{Claims, Source, Weights, pack};

/// What is told of a prompt whose end, `part`, was left out.
pub(super) fn cut_note(part: &str) -> Event {
    Event::Note(format!("warning: the prompt is too long for the text encoder; left out: {part:?}"))
}

/// Compiles `graph` and fills its weights from the parts in order.
pub(super) fn execute(gpu: &Arc<Gpu>, graph: &Graph, parts: &[&dyn Source]) -> Result<Executor> {
    execute_sharing(gpu, graph, &[], parts)
}

/// The same, with inputs and outputs that lie where values of other graphs do.
pub(super) fn execute_sharing(
    gpu: &Arc<Gpu>,
    graph: &Graph,
    shared: &[(&str, &Resident)],
    parts: &[&dyn Source],
) -> Result<Executor> {
    Executor::sharing(gpu, graph, shared, |spec, sink| pack::pack(spec, parts.get(spec.part).copied(), sink))
}

/// Every graph of a model for pictures of `settings`, by the name of its stage. Needs no GPU and reads no weights.
///
/// # Errors
/// What the model or the settings ask for and scumble does not have; a missing or an unexpected tensor.
pub fn graphs(
    checkpoint: &Checkpoint,
    limits: crate::kernels::Limits,
    precision: DType,
    settings: &Settings,
) -> Result<Vec<(&'static str, Graph)>> {
    let program = settings.scheduler.program(settings.steps as usize, None)?;
    let run = DenoiseStage::run(checkpoint, settings, &program);
    let denoise = DenoiseStage::build(checkpoint, limits, precision, settings)?;
    Ok(vec![
        ("text", TextStage::build(checkpoint, limits, precision, settings.clip_skip)?),
        ("context", denoise.text),
        ("unet", denoise.unet),
        ("scheduler", run.graph(limits, precision)),
        ("vae", DecodeStage::build(checkpoint, limits, precision, settings, false)?),
        ("vae in bands", DecodeStage::build(checkpoint, limits, precision, settings, true)?),
    ])
}

/// The text encoders of a model, one prompt at a time.
pub(super) struct TextStage {
    executor: Executor,
    tokenizers: Vec<(ClipTokenizer, usize)>,
    ends: Vec<Ending>,
    pooled: bool,
}

/// How an encoder finds the row that it pools.
pub(super) struct Ending {
    pub eos: u32,
}

/// What a prompt becomes: vectors of its tokens [1, T, D] and, for SDXL, a pooled one [1, 1, 1, D].
pub(super) struct TextVectors {
    pub context: Resident,
    pub pooled: Option<Resident>,
}

/// Which half of guidance a prompt serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Prompt,
    Negative,
}

impl Side {
    /// Its place in the UNet's batch, whose order is [negative, prompt].
    pub fn row(self, batch: u32) -> u32 {
        if self == Side::Prompt { batch - 1 } else { 0 }
    }

    fn output(self) -> &'static str {
        match self {
            Side::Prompt => "context",
            Side::Negative => "negative_context",
        }
    }
}

impl TextStage {
    pub fn build(
        checkpoint: &Checkpoint,
        gpu_limits: crate::kernels::Limits,
        precision: DType,
        clip_skip: u32,
    ) -> Result<Graph> {
        let xl = checkpoint.class == PipelineClass::StableDiffusionXl;
        let mut g = Graph::new(precision, gpu_limits);
        let take = |skip: u32| Take { skip: skip as usize + usize::from(xl), final_norm: !xl };
        let mut contexts = Vec::new();
        let mut pooled = None;
        for (index, part) in checkpoint.text_encoders.iter().enumerate() {
            let source = part.weights.as_ref();
            let claims = Claims::default();
            let w = Weights::new(index, source, &claims);
            let tokens = part.config.max_positions as u32;
            let ids = g.input(&format!("ids.{index}"), Shape::tokens(1, tokens, 1), DType::F32);
            let last = index + 1 == checkpoint.text_encoders.len();
            let ends = (xl && last).then(|| g.input("ends", Shape::new(1, 1, 1, 1), DType::F32));
            let takes = [take(clip_skip), take(0)];
            let vectors = clip::clip(&mut g, &w, &part.config, ids, ends, takes);
            pooled = vectors.pooled.or(pooled);
            contexts.push(vectors.contexts);
            claims.finish(source)?;
        }
        for (choice, name) in ["context", "negative_context"].into_iter().enumerate() {
            let mut joined = contexts[0][choice];
            for other in &contexts[1..] {
                joined = nn::concat(&mut g, name, joined, other[choice]);
            }
            g.output(name, joined);
        }
        if let Some(pooled) = pooled {
            g.output("pooled", pooled);
        }
        Ok(g)
    }

    pub fn new(gpu: &Arc<Gpu>, checkpoint: &Checkpoint, precision: DType, clip_skip: u32) -> Result<Self> {
        let graph = Self::build(checkpoint, gpu.limits(), precision, clip_skip)?;
        let parts: Vec<&dyn Source> = checkpoint.text_encoders.iter().map(|part| part.weights.as_ref()).collect();
        let executor = execute(gpu, &graph, &parts)?;
        let mut tokenizers = Vec::new();
        let mut ends = Vec::new();
        for part in &checkpoint.text_encoders {
            let tokenizer = tokenizer(&part.tokenizer)?;
            tokenizers.push((tokenizer, part.config.vocab_size));
            let eos = part.config.eos_token_id;
            ends.push(Ending { eos });
        }
        let pooled = checkpoint.class == PipelineClass::StableDiffusionXl;
        Ok(Self { executor, tokenizers, ends, pooled })
    }

    /// Encodes one prompt; also returns what of it was cut off, if anything.
    pub fn run(&self, prompt: &str, side: Side) -> Result<(TextVectors, Option<String>)> {
        let mut cut = None;
        for (index, (tokenizer, vocabulary)) in self.tokenizers.iter().enumerate() {
            let name = format!("ids.{index}");
            let length = self.executor.shape(&name)?.height as usize;
            let encoded = tokenizer.encode(prompt, length)?;
            if let Some(id) = encoded.ids.iter().find(|id| **id as usize >= *vocabulary) {
                return Err(Error::new("a token lies outside the text encoder's vocabulary")
                    .at(format!("text encoder {}", index + 1))
                    .expected(format!("ids below {vocabulary}"))
                    .found(id)
                    .hint("the tokenizer that belongs to this model"));
            }
            let words: Vec<u32> = encoded.ids.iter().flat_map(|id| [*id, 0, 0, 0]).collect();
            self.executor.write_bytes(&name, bytemuck::cast_slice(&words))?;
            if self.pooled && index + 1 == self.tokenizers.len() {
                let end = self.ends[index].row(&encoded.ids);
                self.executor.write_bytes("ends", bytemuck::cast_slice(&[end, 0, 0, 0]))?;
            }
            cut = cut.or(encoded.truncated);
        }
        self.executor.run();
        let pooled = self.pooled.then(|| self.executor.snapshot("pooled")).transpose()?;
        Ok((TextVectors { context: self.executor.snapshot(side.output())?, pooled }, cut))
    }
}

/// The tokenizer of these files.
pub(super) fn tokenizer(files: &TokenizerFiles) -> Result<ClipTokenizer> {
    let files = match files {
        TokenizerFiles::Folder { place, files } => {
            crate::text::TokenizerFiles::find(place, |name| Ok(files.get(name).cloned()))?
        }
        // OpenCLIP pads with "!", which is token 0; CLIP with the end token.
        TokenizerFiles::Clip { pad_token } => {
            crate::text::TokenizerFiles::Bundled { pad: if *pad_token == "!" { 0 } else { 49407 } }
        }
    };
    ClipTokenizer::load(&files)
}

impl Ending {
    /// The place of the end token among `ids`.
    pub fn row(&self, ids: &[u32]) -> u32 {
        pooled_place(ids, self.eos) as u32
    }
}
