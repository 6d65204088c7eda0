//! The stages of DALL-E mini on the GPU: the text encoder, the generator of image tokens, the decoder of a VQGAN.

use std::sync::Arc;

use super::stages::{execute, execute_sharing};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::recording::Submission;
use crate::graph::{Graph, Shape};
use crate::kernels::sample_token::SampleToken;
use crate::kernels::{Limits, pixels};
use crate::models::decoder::vqgan;
use crate::models::generator::image_tokens::{self, Given};
use crate::models::nn;
use crate::models::text::bart;
use crate::tensor::{DType, HostTensor};
use crate::text::{BartFiles, BartTokenizer, BartTokens, TextRule};
use crate::weights::dalle::DalleCheckpoint;
use crate::weights::{Claims, Weights};

/// Sampling with every choice made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DalleSettings {
    /// Guidance scale; 1 runs without the row that guides.
    pub guidance_scale: f32,
    /// How many of the largest logits are drawn from; all without.
    pub top_k: Option<u32>,
    /// What logits are divided by.
    pub temperature: f32,
}

impl DalleSettings {
    /// Rows of everything: without the prompt and with it, or with it alone.
    pub fn batch(&self) -> u32 {
        1 + u32::from((self.guidance_scale - 1.0).abs() > 0.0)
    }
}

/// Every graph of a model by the name of its stage. Together they take every tensor of the checkpoint. Needs no GPU and reads no
/// weights. With `taps` what lies between the layers can be read.
///
/// # Errors
/// A missing or an unexpected tensor.
pub fn dalle_graphs(
    checkpoint: &DalleCheckpoint,
    limits: Limits,
    precision: DType,
    settings: &DalleSettings,
    taps: bool,
) -> Result<Vec<(&'static str, Graph)>> {
    let graph = || if taps { Graph::new(precision, limits).with_taps() } else { Graph::new(precision, limits) };
    let config = &checkpoint.config;
    let batch = settings.batch();
    let tokens = Shape::tokens(batch, config.text_length as u32, 1);
    let words = Shape::tokens(batch, 1, 1);

    let (mut text, claims, source) = (graph(), Claims::default(), checkpoint.encoder.as_ref());
    let ids = text.input("ids", tokens, DType::F32);
    let last = text.input("last", words, DType::F32);
    let states = bart::encoder(&mut text, &Weights::new(0, source, &claims), config, ids, last);
    text.output("states", states);
    claims.finish(source)?;

    let (claims, source) = (Claims::default(), checkpoint.decoder.as_ref());
    let w = Weights::new(0, source, &claims);
    let mut keys = graph();
    let read = keys.input("states", text.shape(states), precision);
    let made = image_tokens::text_keys(&mut keys, &w, config, read);
    made.iter().for_each(|(path, value)| keys.output(path, *value));

    let mut step = graph();
    let cache = image_tokens::cache_shape(config, batch);
    let given = Given {
        state: step.input("state", words, DType::F32),
        last: step.input("last", words, DType::F32),
        text: made.iter().map(|(path, value)| step.input(path, keys.shape(*value), precision)).collect(),
        caches: (0..config.decoder.count)
            .map(|layer| step.input(&format!("cache.{layer}"), cache, precision))
            .collect(),
    };
    let count = checkpoint.drawn();
    let logits = image_tokens::logits(&mut step, &w, config, &given, count);
    step.output("logits", logits);
    let noise = step.input("noise", Shape::tokens(1, 1, count), DType::F32);
    let drawn = step.input("tokens", Shape::tokens(1, config.image_length as u32, 1), DType::F32);
    let DalleSettings { guidance_scale: scale, top_k, temperature } = *settings;
    let draw = SampleToken { batch, width: count, count, scale, temperature, top_k };
    image_tokens::draw(&mut step, &draw, logits, noise, given.state, drawn);
    claims.finish(source)?;

    let (mut decode, claims, source) = (graph(), Claims::default(), checkpoint.vqgan.weights.as_ref());
    let w = Weights::new(0, source, &claims);
    let drawn = decode.input("tokens", Shape::tokens(1, config.image_length as u32, 1), DType::F32);
    let picture = vqgan::decode(&mut decode, &w, &checkpoint.vqgan.config, drawn, config.side() as u32);
    finish_picture(&mut decode, picture);
    claims.finish(source)?;
    Ok(vec![("text", text), ("keys", keys), ("tokens", step), ("vqgan", decode)])
}

/// picture [1, H, W, 3] around 0..1 -> the outputs `image` around -1..1 and `pixels`.
fn finish_picture(g: &mut Graph, picture: crate::graph::Value) {
    let image = nn::scale(g, "image", picture, 2.0, -1.0);
    g.output("image", image);
    let (shape, dtype) = (g.shape(image), g.dtype(image));
    let quads = Shape::new(1, shape.positions().div_ceil(4), 1, 4);
    match pixels::call(shape.positions(), dtype, g.limits()) {
        Some(call) => {
            let packed = g.push("pixels", call, vec![image.into()], quads, DType::F32);
            g.output("pixels", packed);
        }
        None => g.fail(Error::new("the picture does not fit the adapter").at("pixels").found(shape)),
    }
}

/// The graph of a stage.
fn take(graphs: &mut Vec<(&'static str, Graph)>, stage: &str) -> Graph {
    let at = graphs.iter().position(|(name, _)| *name == stage);
    let at = at.unwrap_or_else(|| panic!("no stage {stage}"));
    graphs.swap_remove(at).1
}

/// Rows of four words as the kernels read them.
fn words(rows: impl IntoIterator<Item = [u32; 4]>) -> Vec<u8> {
    rows.into_iter().flatten().flat_map(u32::to_le_bytes).collect()
}

/// The prompts' tokens, in the order of the rows.
pub(super) fn tokenize(checkpoint: &DalleCheckpoint, prompts: &[&str]) -> Result<Vec<BartTokens>> {
    let files = &checkpoint.tokenizer;
    let rule = match files.dalle_mini {
        true => TextRule::DalleMini { normalize: checkpoint.config.normalize_text },
        false => TextRule::MinDalle,
    };
    let given = BartFiles {
        place: &files.place,
        vocabulary: files.vocabulary.as_deref(),
        merges: files.merges.as_deref(),
        whole: files.whole.as_deref(),
    };
    let tokenizer = BartTokenizer::load(&given, rule)?;
    let vocabulary = checkpoint.config.text_vocabulary;
    let encode = |prompt: &&str| {
        let tokens = tokenizer.encode(prompt, checkpoint.config.text_length)?;
        match tokens.ids.iter().find(|id| **id as usize >= vocabulary) {
            None => Ok(tokens),
            Some(id) => Err(Error::new("a token lies outside the text encoder's vocabulary")
                .at(&files.place)
                .expected(format!("ids below {vocabulary}"))
                .found(id)
                .hint("the tokenizer that belongs to this model")),
        }
    };
    prompts.iter().map(encode).collect()
}

/// The text encoder.
pub(super) struct TextStage {
    executor: Executor,
}

impl TextStage {
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &DalleCheckpoint,
        precision: DType,
        settings: &DalleSettings,
    ) -> Result<Self> {
        let graph = take(&mut dalle_graphs(checkpoint, gpu.limits(), precision, settings, false)?, "text");
        Ok(Self { executor: execute(gpu, &graph, &[checkpoint.encoder.as_ref()])? })
    }

    /// Token ids of all rows -> vectors of the tokens [B, T, C].
    pub fn run(&self, tokens: &[BartTokens]) -> Result<Resident> {
        let ids = tokens.iter().flat_map(|tokens| &tokens.ids).map(|id| [*id, 0, 0, 0]);
        self.executor.write_bytes("ids", &words(ids))?;
        self.executor.write_bytes("last", &words(tokens.iter().map(last)))?;
        self.executor.run();
        self.executor.snapshot("states")
    }

    /// What the last run gave [B, T, C]. Blocks.
    pub fn states(&self) -> Result<HostTensor> {
        let read = self.executor.read("states")?;
        let axes: Vec<usize> = read.shape.iter().enumerate().filter(|(axis, _)| *axis != 2).map(|(_, n)| *n).collect();
        Ok(HostTensor { shape: axes, data: read.data })
    }
}

/// How many tokens a text has, and the index of the last.
fn last(tokens: &BartTokens) -> [u32; 4] {
    [tokens.count as u32, tokens.count as u32 - 1, 0, 0]
}

/// The generator of image tokens with its text in place.
pub(super) struct TokenStage {
    executor: Executor,
    batch: u32,
    count: usize,
    start: u32,
    keys: u64,
}

impl TokenStage {
    /// Loads the stage for a text. What its cross-attentions read is computed first, so that the weights which make it are
    /// gone before the others come.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &DalleCheckpoint,
        precision: DType,
        settings: &DalleSettings,
        tokens: &[BartTokens],
        states: &Resident,
    ) -> Result<Self> {
        let mut graphs = dalle_graphs(checkpoint, gpu.limits(), precision, settings, false)?;
        let source = checkpoint.decoder.as_ref();
        let graph = take(&mut graphs, "keys");
        let text = execute(gpu, &graph, &[source])?;
        text.copy_from("states", states)?;
        text.run().wait()?;
        let made = graph.outputs.iter().map(|(path, _)| Ok((path.as_str(), text.resident(path)?)));
        let made: Vec<(&str, Resident)> = made.collect::<Result<_>>()?;
        drop(text);
        gpu.wait()?;
        let shared: Vec<(&str, &Resident)> = made.iter().map(|(path, resident)| (*path, resident)).collect();
        let executor = execute_sharing(gpu, &take(&mut graphs, "tokens"), &shared, &[source])?;
        executor.write_bytes("last", &words(tokens.iter().map(last)))?;
        let keys = graph.outputs.iter().map(|(_, value)| graph.shape(*value).bytes(precision)).sum();
        let (batch, count) = (settings.batch(), checkpoint.drawn() as usize);
        Ok(Self { executor, batch, count, start: checkpoint.start_token(), keys })
    }

    /// Begins a picture.
    pub fn start(&self) -> Result<()> {
        self.executor.write_bytes("state", &words((0..self.batch).map(|_| [self.start, 0, 0, 0])))
    }

    /// One token, drawn with these exponentials; submitted, so that the caller may go on to the next before it is done. The
    /// write goes through the queue behind the steps before and in front of this one.
    pub fn step(&self, exponentials: &[f32]) -> Result<Submission> {
        self.executor.write("noise", &HostTensor { shape: vec![self.count], data: exponentials.to_vec() })?;
        Ok(self.executor.run())
    }

    /// The logits of the last step, a row without and one with the prompt [B, codes]. Blocks.
    pub fn logits(&self) -> Result<HostTensor> {
        let read = self.executor.read("logits")?;
        Ok(HostTensor { shape: vec![self.batch as usize, self.count], data: read.data })
    }

    /// The tokens drawn since the start, where the decoder can read them.
    pub fn tokens(&self) -> Result<Resident> {
        self.executor.resident("tokens")
    }

    /// The same on the host, checked. Blocks.
    pub fn read_tokens(&self, length: usize) -> Result<Vec<u32>> {
        let bytes = self.executor.read_bytes("tokens", length as u64 * 16)?;
        let word = |row: &[u8], at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let rows = bytes.chunks_exact(16).map(|row| (word(row, 0), word(row, 8)));
        let token = |(token, fault): (u32, u32)| {
            let sound = fault == 0 && (token as usize) < self.count;
            sound.then_some(token).ok_or_else(|| {
                Error::new("the generator made numbers that are not finite")
                    .at("logits")
                    .expected("finite values")
                    .found("NaN or infinity")
                    .hint("--precision f32")
            })
        };
        rows.map(token).collect()
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.keys + self.executor.bytes()
    }
}

/// The VQGAN's decoder.
pub(super) struct PictureStage {
    executor: Executor,
    pixels: usize,
}

impl PictureStage {
    /// Loads the decoder of `tokens`.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &DalleCheckpoint,
        precision: DType,
        settings: &DalleSettings,
        tokens: &Resident,
    ) -> Result<Self> {
        let graph = take(&mut dalle_graphs(checkpoint, gpu.limits(), precision, settings, false)?, "vqgan");
        let source = checkpoint.vqgan.weights.as_ref();
        let executor = execute_sharing(gpu, &graph, &[("tokens", tokens)], &[source])?;
        Ok(Self { executor, pixels: (checkpoint.pixels() * checkpoint.pixels()) as usize })
    }

    /// Red, green and blue of every pixel. Blocks.
    pub fn run(&self) -> Result<Vec<u8>> {
        self.executor.run();
        let packed = self.executor.read_bytes("pixels", self.pixels as u64 * 4)?;
        if packed.chunks_exact(4).any(|pixel| pixel[3] != 255) {
            return Err(Error::new("the decoder made numbers that are not finite")
                .at("vqgan")
                .expected("a picture")
                .found("NaN or infinity")
                .hint("--precision f32"));
        }
        Ok(packed.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
    }

    /// The picture before rounding [1, 3, H, W], around -1..1. Blocks.
    pub fn image(&self) -> Result<HostTensor> {
        Ok(self.executor.read("image")?.channels_first())
    }
}
