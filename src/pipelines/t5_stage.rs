//! T5's text encoder on the GPU, its layers one group after another, so that a card with less memory than they take runs it.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::models::text::t5;
use crate::pipelines::stages::execute_sharing;
use crate::tensor::{DType, HostTensor};
use crate::text::{T5Files, T5Tokenizer, T5Tokens};
use crate::weights::t5::T5Part;
use crate::weights::{Claims, Source, Weights};

/// Bytes of the weights that are on the GPU at a time, but for a layer that is larger.
const BUDGET: u64 = 1 << 30;

/// A text as vectors.
pub(super) struct Encoded {
    /// [1, T, C].
    pub vectors: Resident,
    /// What of the text was left out, if anything.
    pub cut: Option<String>,
}

/// The encoder of one model.
pub(super) struct TextStage<'a> {
    part: &'a T5Part,
    tokenizer: T5Tokenizer,
    precision: DType,
    tokens: u32,
}

impl<'a> TextStage<'a> {
    /// For texts of `tokens` tokens, padding included.
    pub fn new(part: &'a T5Part, precision: DType, tokens: u32) -> Result<Self> {
        let files = &part.tokenizer;
        let files = T5Files { place: &files.place, whole: files.whole.as_deref(), pieces: files.pieces.as_deref() };
        Ok(Self { part, tokenizer: T5Tokenizer::load(&files)?, precision, tokens })
    }

    /// The graphs in their order, for `batch` texts: the token table with the bias of positions, then groups of layers. They
    /// take every tensor of the encoder.
    pub fn graphs(
        part: &T5Part,
        limits: Limits,
        precision: DType,
        batch: u32,
        tokens: u32,
    ) -> Result<Vec<(String, Graph)>> {
        let config = &part.config;
        let source = part.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let mut g = Graph::new(precision, limits);
        let ids = g.input("ids", Shape::tokens(batch, tokens, 1), DType::F32);
        let mask = g.input("mask", Shape::new(batch, 1, 1, tokens), DType::F32);
        let x = t5::embedding(&mut g, &w, config, ids);
        let bias = t5::bias(&mut g, &w, config, mask);
        let shape = g.shape(bias);
        g.output("x", x);
        g.output("bias", bias);
        let mut all = vec![("text 0".to_owned(), g)];
        // What one layer takes tells how many make a group; the first of each group is tried alone.
        let build = |range: std::ops::Range<usize>| {
            let mut g = Graph::new(precision, limits);
            let from = g.input("from", t5::stream(config, batch, tokens), DType::F32);
            let bias = g.input("bias", shape, DType::F32);
            let last = range.end == config.layers;
            let mut x = t5::layers(&mut g, &w, config, range, from, bias);
            if last {
                x = t5::final_norm(&mut g, &w, config, x);
            }
            g.output("x", x);
            g
        };
        let one = build(0..1).weight_bytes().max(1);
        let group = ((BUDGET / one) as usize).clamp(1, config.layers);
        for first in (0..config.layers).step_by(group) {
            let range = first..(first + group).min(config.layers);
            all.push((format!("text {}", all.len()), build(range)));
        }
        claims.finish(source)?;
        Ok(all)
    }

    /// texts -> their vectors.
    pub fn run(&self, gpu: &Arc<Gpu>, texts: &[&str]) -> Result<Vec<Encoded>> {
        let count = self.tokens as usize;
        let tokens: Vec<T5Tokens> =
            texts.iter().map(|text| self.tokenizer.encode(text, count)).collect::<Result<_>>()?;
        let vocabulary = self.part.config.vocabulary;
        if let Some(id) = tokens.iter().flat_map(|tokens| &tokens.ids).find(|id| **id as usize >= vocabulary) {
            return Err(Error::new("a token lies outside the text encoder's vocabulary")
                .at("text encoder")
                .expected(format!("ids below {vocabulary}"))
                .found(id)
                .hint("the tokenizer that belongs to this model"));
        }
        let batch = texts.len() as u32;
        let graphs = Self::graphs(self.part, gpu.limits(), self.precision, batch, self.tokens)?;
        let source: [&dyn Source; 1] = [self.part.weights.as_ref()];
        let mut shared: Vec<(&str, Resident)> = Vec::new();
        for (position, (_, graph)) in graphs.iter().enumerate() {
            let given: Vec<(&str, &Resident)> = shared.iter().map(|(name, value)| (*name, value)).collect();
            let executor = execute_sharing(gpu, graph, &given, &source)?;
            if position == 0 {
                write(&executor, &tokens)?;
            }
            executor.run().wait()?;
            if position == 0 {
                shared.push(("bias", executor.resident("bias")?));
            }
            shared.retain(|(name, _)| *name == "bias");
            shared.push(("from", executor.resident("x")?));
            // The adapter takes memory back when it is next waited for.
            drop(executor);
            gpu.wait()?;
        }
        let Some((_, vectors)) = shared.pop() else { return Ok(Vec::new()) };
        let each = vectors.rows(gpu)?;
        Ok(each.into_iter().zip(tokens).map(|(vectors, tokens)| Encoded { vectors, cut: tokens.cut }).collect())
    }

    /// A text's vectors [1, T, C] on the host. Blocks.
    pub fn read(&self, gpu: &Gpu, vectors: &Resident) -> Result<HostTensor> {
        let tensor = vectors.read(gpu)?;
        let axes = [1, self.tokens as usize, self.part.config.width];
        Ok(HostTensor { shape: axes.to_vec(), data: tensor.data })
    }
}

fn write(executor: &Executor, tokens: &[T5Tokens]) -> Result<()> {
    let words: Vec<u32> = tokens.iter().flat_map(|tokens| &tokens.ids).flat_map(|id| [*id, 0, 0, 0]).collect();
    executor.write_bytes("ids", bytemuck::cast_slice(&words))?;
    let hidden = |tokens: &T5Tokens| -> Vec<f32> {
        (0..tokens.ids.len()).map(|place| if place < tokens.count { 0.0 } else { f32::MIN }).collect()
    };
    let data: Vec<f32> = tokens.iter().flat_map(hidden).collect();
    executor.write("mask", &HostTensor { shape: vec![tokens.len(), data.len() / tokens.len()], data })
}
