//! Texts and pictures as vectors under a CLIP, with the preparation of transformers' `CLIPProcessor`.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::clip_score::Vectors;
use super::pictures::{self, Pixels};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::kernels::resampling::{Filter, Resampling, Resize, Table};
use crate::models::config::{PicturePreparation, ResizeFilter};
use crate::models::nn::{self, Linear};
use crate::models::text::clip::{self, Take};
use crate::models::vision::clip_image::clip_image;
use crate::tensor::{DType, HostTensor};
use crate::text::{ClipTokenizer, TokenizerFiles, pooled_place};
use crate::weights::clip::ClipCheckpoint;
use crate::weights::{Claims, Source, TensorInfo, Weights, checkpoint, pack};

/// Whose arithmetic resizes a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resizer {
    /// torchvision's of 8-bit tensors, as torchmetrics' `CLIPScore` has it with transformers from version 5 on.
    Torchvision,
    /// Pillow's of 8-bit pictures, as transformers up to version 4, OpenCLIP and openai/CLIP have it.
    Pillow,
}

impl Resizer {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torchvision => "torchvision",
            Self::Pillow => "Pillow",
        }
    }

    fn method(self, filter: ResizeFilter) -> Resize {
        let filter = match filter {
            ResizeFilter::Lanczos => Filter::Lanczos,
            ResizeFilter::Bilinear => Filter::Bilinear,
            ResizeFilter::Bicubic => Filter::Bicubic,
        };
        match self {
            Self::Torchvision => Resize::Torch8(filter),
            Self::Pillow => Resize::Pillow8(filter),
        }
    }
}

/// The tables that resize a picture of `size` [height, width] and cut out its middle, or surround it with zeros.
pub fn tables(preparation: &PicturePreparation, resizer: Resizer, size: [u32; 2]) -> Resampling {
    let resized = preparation.resized(size);
    let method = preparation.size.map_or(Resize::Nearest, |(_, filter)| resizer.method(filter));
    let [rows, columns] = [0, 1].map(|axis| {
        let table = Table::new(method, size[axis], resized[axis]);
        match preparation.crop {
            None => table,
            // The odd place is lost below where something is cut off, and gained there where something is added.
            Some(crop) => table.window((i64::from(resized[axis]) - i64::from(crop[axis])) / 2, crop[axis]),
        }
    });
    Resampling { rows, columns, quantize: true }
}

/// Multiplication and addition channel by channel, as the weights of a linear layer.
struct Colours<'a>(&'a PicturePreparation);

impl Source for Colours<'_> {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let shape = match name {
            "normalise.weight" => vec![3, 3],
            "normalise.bias" => vec![3],
            _ => return None,
        };
        Some(TensorInfo { dtype: DType::F32, shape })
    }

    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let Self(preparation) = self;
        for row in rows {
            match name {
                "normalise.weight" => out.extend((0..3).map(|k| if k == row { preparation.factors[k] } else { 0.0 })),
                _ => out.push(preparation.shifts[row]),
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        vec!["normalise.bias".to_owned(), "normalise.weight".to_owned()]
    }

    fn describe(&self) -> String {
        "the preparation of pictures".to_owned()
    }
}

/// The graph that prepares a picture of `size` [height, width]: input `picture` [1, H, W, 3] in 0..255, output `pixels`.
fn preparing(preparation: &PicturePreparation, resizer: Resizer, size: [u32; 2], limits: Limits) -> Graph {
    let mut g = Graph::new(DType::F32, limits);
    // Halves hold whole numbers up to 2048.
    let picture = g.input("picture", Shape::new(1, size[0], size[1], 3), DType::F16);
    let x = nn::resample(&mut g, "resize", picture, &tables(preparation, resizer, size), DType::F32);
    let (source, claims) = (Colours(preparation), Claims::default());
    let w = Weights::new(0, &source, &claims);
    let pixels = nn::linear(&mut g, &w.at("normalise"), x, Linear::new(3));
    g.output("pixels", pixels);
    g
}

/// The same on the adapter.
///
/// # Errors
/// No room for it.
pub fn prepare(gpu: &Arc<Gpu>, preparation: &PicturePreparation, resizer: Resizer, size: [u32; 2]) -> Result<Executor> {
    let graph = preparing(preparation, resizer, size, gpu.limits());
    let source = Colours(preparation);
    Executor::new(gpu, &graph, |spec, sink| pack::pack(spec, Some(&source), sink))
}

/// The graphs of both encoders: `ids` [B, T, 1] and `ends` [B, 1, 1, 1] -> `embeds` for `texts` texts of `tokens` tokens, and
/// `pixels` [B, S, S, 3] -> `embeds` for `pictures` pictures.
///
/// # Errors
/// A tensor that is missing, unexpected or of another shape.
pub fn graphs(
    checkpoint: &ClipCheckpoint,
    limits: Limits,
    precision: DType,
    [texts, tokens, pictures]: [u32; 3],
) -> Result<[Graph; 2]> {
    let (source, claims) = (checkpoint.weights.as_ref(), Claims::default());
    let w = Weights::new(0, source, &claims);
    let mut text = Graph::new(precision, limits);
    let ids = text.input("ids", Shape::tokens(texts, tokens, 1), DType::F32);
    let ends = text.input("ends", Shape::new(texts, 1, 1, 1), DType::F32);
    let take = Take { skip: 0, final_norm: true };
    let vectors = clip::clip(&mut text, &w, &checkpoint.config.text, ids, Some(ends), [take; 2]);
    if let Some(pooled) = vectors.pooled {
        text.output("embeds", pooled);
    }
    let mut image = Graph::new(precision, limits);
    let side = checkpoint.config.vision.image_size as u32;
    let pixels = image.input("pixels", Shape::new(pictures, side, side, 3), DType::F32);
    let embeds = clip_image(&mut image, &w, &checkpoint.config.vision, pixels);
    image.output("embeds", embeds);
    claims.finish(source)?;
    Ok([text, image])
}

/// A text as the encoder reads it.
struct Tokens {
    /// Ids up to the end token, which alone is pooled; what follows it changes nothing before it.
    ids: Vec<u32>,
    cut: bool,
}

/// Texts' vectors, and how many of the texts were too long.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// One for each text.
    pub vectors: Vectors,
    /// Texts whose end was left out.
    pub cut: usize,
}

/// Texts' vectors [N, E], not normalised; `batch` texts run together. `progress` is told how many are done. Blocks.
///
/// # Errors
/// A tokenizer of another model; a vector that is not finite; no room on the adapter.
pub fn encode_texts(
    gpu: &Arc<Gpu>,
    checkpoint: &ClipCheckpoint,
    precision: DType,
    batch: u32,
    texts: &[&str],
    progress: &mut dyn FnMut(usize),
) -> Result<Encoded> {
    let found = tokens(checkpoint, texts)?;
    let longest = found.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(1);
    let batch = batch.min(texts.len() as u32).max(1);
    let [graph, _] = graphs(checkpoint, gpu.limits(), precision, [batch, longest as u32, 1])?;
    let source = checkpoint.weights.as_ref();
    let executor = Executor::new(gpu, &graph, |spec, sink| pack::pack(spec, Some(source), sink))?;
    let width = checkpoint.config.vision.projection_dim;
    let mut values = Vec::with_capacity(texts.len() * width);
    for (number, chunk) in found.chunks(batch as usize).enumerate() {
        progress(number * batch as usize);
        let mut words = vec![0u32; batch as usize * longest * 4];
        let mut ends = vec![0u32; batch as usize * 4];
        for (row, tokens) in chunk.iter().enumerate() {
            tokens.ids.iter().enumerate().for_each(|(place, id)| words[(row * longest + place) * 4] = *id);
            ends[row * 4] = (row * longest + tokens.ids.len() - 1) as u32;
        }
        executor.write_bytes("ids", bytemuck::cast_slice(&words))?;
        executor.write_bytes("ends", bytemuck::cast_slice(&ends))?;
        executor.run().wait()?;
        values.extend_from_slice(&executor.read("embeds")?.data[..chunk.len() * width]);
    }
    progress(texts.len());
    let at = |index: usize| format!("the text {:?}", texts[index].chars().take(60).collect::<String>());
    let vectors = finite(Vectors { width, values }, at)?;
    Ok(Encoded { vectors, cut: found.iter().filter(|tokens| tokens.cut).count() })
}

fn tokens(checkpoint: &ClipCheckpoint, texts: &[&str]) -> Result<Vec<Tokens>> {
    let files = match &checkpoint.tokenizer {
        checkpoint::TokenizerFiles::Folder { place, files } => {
            TokenizerFiles::find(place, |name| Ok(files.get(name).cloned()))?
        }
        checkpoint::TokenizerFiles::Clip { pad_token } => {
            TokenizerFiles::Bundled { pad: if *pad_token == "!" { 0 } else { 49407 } }
        }
    };
    let tokenizer = ClipTokenizer::load(&files)?;
    let config = &checkpoint.config.text;
    let encode = |text: &&str| {
        let encoded = tokenizer.encode(text, config.max_positions)?;
        let mut ids = encoded.ids;
        ids.truncate(pooled_place(&ids, config.eos_token_id) + 1);
        match ids.iter().find(|id| **id as usize >= config.vocab_size) {
            None => Ok(Tokens { ids, cut: encoded.truncated.is_some() }),
            Some(id) => Err(Error::new("a token lies outside the text encoder's vocabulary")
                .at(&checkpoint.name)
                .expected(format!("ids below {}", config.vocab_size))
                .found(id)
                .hint("the tokenizer that belongs to this model")),
        }
    };
    texts.par_iter().map(encode).collect()
}

/// Sizes of pictures whose preparation stays compiled at a time.
const SIZES: usize = 8;

/// Pictures' vectors [N, E], not normalised, of the files in their order; `batch` pictures run together. `progress` is told how many
/// are done. Blocks.
///
/// # Errors
/// A file that is no picture; a vector that is not finite; no room on the adapter.
pub fn encode_pictures(
    gpu: &Arc<Gpu>,
    checkpoint: &ClipCheckpoint,
    precision: DType,
    (batch, resizer): (u32, Resizer),
    files: &[PathBuf],
    progress: &mut dyn FnMut(usize),
) -> Result<Vectors> {
    let [_, graph] = graphs(checkpoint, gpu.limits(), precision, [1, 1, batch])?;
    let source = checkpoint.weights.as_ref();
    let network = Executor::new(gpu, &graph, |spec, sink| pack::pack(spec, Some(source), sink))?;
    let (width, batch) = (checkpoint.config.vision.projection_dim, batch as usize);
    let mut prepared: Vec<([u32; 2], Executor)> = Vec::new();
    let mut values = Vec::with_capacity(files.len() * width);
    let mut waiting = decode(files.chunks(batch).next().unwrap_or_default());
    for (number, chunk) in files.chunks(batch).enumerate() {
        progress(number * batch);
        for ((row, picture), file) in waiting?.iter().enumerate().zip(chunk) {
            let size = [picture.height, picture.width];
            let known = prepared.iter().position(|(known, _)| *known == size);
            let (_, executor) = match known {
                Some(index) => prepared.remove(index),
                None => {
                    check_size(checkpoint, size, file)?;
                    (size, prepare(gpu, &checkpoint.preparation, resizer, size)?)
                }
            };
            place(&network, &executor, row as u32, picture)?;
            if prepared.len() >= SIZES {
                prepared.remove(0);
            }
            prepared.push((size, executor));
        }
        let _ = network.run();
        // The next files are read while the adapter works.
        waiting = decode(files.chunks(batch).nth(number + 1).unwrap_or_default());
        values.extend_from_slice(&network.read("embeds")?.data[..chunk.len() * width]);
    }
    progress(files.len());
    finite(Vectors { width, values }, |index| files[index].display().to_string())
}

/// Prepares a picture into its place in the batch, on the adapter.
fn place(network: &Executor, executor: &Executor, row: u32, picture: &Pixels) -> Result<()> {
    let data = picture.rgb.iter().map(|byte| f32::from(*byte)).collect();
    let shape = vec![1, picture.height as usize, picture.width as usize, 3];
    executor.write("picture", &HostTensor { shape, data })?;
    let _ = executor.run();
    network.copy_row("pixels", row, &executor.resident("pixels")?)
}

fn check_size(checkpoint: &ClipCheckpoint, size: [u32; 2], file: &std::path::Path) -> Result<()> {
    let side = checkpoint.config.vision.image_size as u32;
    let found = checkpoint.preparation.prepared(size);
    if found == [side; 2] {
        return Ok(());
    }
    Err(Error::new("a picture is not of the picture encoder's size after its preparation")
        .at(file.display())
        .expected(format!("{side} x {side} pixels"))
        .found(format!("{} x {}", found[1], found[0]))
        .hint("a preprocessor_config.json that resizes and crops"))
}

fn decode(files: &[PathBuf]) -> Result<Vec<Pixels>> {
    files.par_iter().map(|file| pictures::read(file)).collect()
}

fn finite(vectors: Vectors, name: impl Fn(usize) -> String) -> Result<Vectors> {
    match vectors.values.iter().position(|value| !value.is_finite()) {
        None => Ok(vectors),
        Some(at) => Err(Error::new("a vector is not finite")
            .at(name(at / vectors.width))
            .expected("numbers")
            .hint("--precision f32, or another file of the model")),
    }
}
