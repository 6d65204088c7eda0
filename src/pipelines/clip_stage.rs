//! CLIP's text encoder with its projection on the GPU, as unCLIP's systems read it: the last layer's vectors, the text's embedding,
//! and which tokens are padding.

use std::ops::Range;
use std::sync::Arc;

use super::stages::{Ending, execute, tokenizer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::models::text::clip::{self, Take};
use crate::tensor::DType;
use crate::text::ClipTokenizer;
use crate::weights::checkpoint::TextEncoderPart;
use crate::weights::{Claims, Source, Weights};

/// What diffusers adds to the scores of padding.
const HIDDEN: f32 = -10_000.0;

/// A text as CLIP tells it.
pub(super) struct ClipText {
    /// The last layer's vectors behind the final norm [1, T, D].
    pub vectors: Resident,
    /// The end token's, projected [1, 1, 1, E].
    pub embedding: Resident,
    /// Which of the T tokens are no padding.
    pub seen: Range<usize>,
    /// T.
    pub tokens: usize,
    /// What of the text was left out, if anything.
    pub cut: Option<String>,
}

impl ClipText {
    /// What is added to the scores of `before` tokens, all T, and `after` tokens more: a large negative number for padding.
    pub fn mask(&self, before: usize, after: usize) -> Vec<f32> {
        let shown = |token: usize| if self.seen.contains(&token) { 0.0 } else { HIDDEN };
        let zeros = |count: usize| std::iter::repeat_n(0.0, count);
        zeros(before).chain((0..self.tokens).map(shown)).chain(zeros(after)).collect()
    }
}

/// The encoder, one text at a time.
pub(super) struct ClipStage {
    executor: Executor,
    tokenizer: ClipTokenizer,
    ending: Ending,
    vocabulary: usize,
}

impl ClipStage {
    /// ids [1, T], ends [1] -> `vectors`, `embedding`. Takes every tensor of the encoder.
    ///
    /// # Errors
    /// A missing or an unexpected tensor.
    pub fn graph(part: &TextEncoderPart, limits: Limits, precision: DType) -> Result<Graph> {
        let mut g = Graph::new(precision, limits);
        let source = part.weights.as_ref();
        let claims = Claims::default();
        let ids = g.input("ids", Shape::tokens(1, part.config.max_positions as u32, 1), DType::F32);
        let ends = g.input("ends", Shape::new(1, 1, 1, 1), DType::F32);
        let takes = [Take { skip: 0, final_norm: true }; 2];
        let made = clip::clip(&mut g, &Weights::new(0, source, &claims), &part.config, ids, Some(ends), takes);
        g.output("vectors", made.contexts[0]);
        match made.pooled {
            Some(pooled) => g.output("embedding", pooled),
            None => return Err(Error::new("a text encoder without a projection").at(source.describe())),
        }
        claims.finish(source)?;
        Ok(g)
    }

    /// Loads the encoder.
    pub fn new(gpu: &Arc<Gpu>, part: &TextEncoderPart, precision: DType) -> Result<Self> {
        let graph = Self::graph(part, gpu.limits(), precision)?;
        let sources: [&dyn Source; 1] = [part.weights.as_ref()];
        let executor = execute(gpu, &graph, &sources)?;
        let eos = part.config.eos_token_id;
        let ending = Ending { eos };
        let vocabulary = part.config.vocab_size;
        Ok(Self { executor, tokenizer: tokenizer(&part.tokenizer)?, ending, vocabulary })
    }

    /// Encodes one text.
    pub fn run(&self, text: &str) -> Result<ClipText> {
        let tokens = self.executor.shape("ids")?.height as usize;
        let encoded = self.tokenizer.encode(text, tokens)?;
        if let Some(id) = encoded.ids.iter().find(|id| **id as usize >= self.vocabulary) {
            return Err(Error::new("a token lies outside the text encoder's vocabulary")
                .at("text encoder")
                .expected(format!("ids below {}", self.vocabulary))
                .found(id)
                .hint("the tokenizer that belongs to this model"));
        }
        let words: Vec<u32> = encoded.ids.iter().flat_map(|id| [*id, 0, 0, 0]).collect();
        self.executor.write_bytes("ids", bytemuck::cast_slice(&words))?;
        self.executor.write_bytes("ends", bytemuck::cast_slice(&[self.ending.row(&encoded.ids), 0, 0, 0]))?;
        self.executor.run();
        let [vectors, embedding] = ["vectors", "embedding"].map(|name| self.executor.snapshot(name));
        let (vectors, embedding) = (vectors?, embedding?);
        Ok(ClipText { vectors, embedding, seen: encoded.seen, tokens, cut: encoded.truncated })
    }
}
