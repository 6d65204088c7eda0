//! Stable Diffusion's denoising stage on the GPU: the UNet's graph, what it reads of the prompt, and the solver's run.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::executor::Resident;
use crate::graph::{Graph, Shape};
use crate::models::generator::context::{self, TextKeys};
use crate::models::generator::unet::{self, Conditioning};
use crate::models::nn;
use crate::pipelines::denoiser::{Denoiser, Run};
use crate::pipelines::request::Settings;
use crate::pipelines::stages::{Side, TextVectors, execute};
use crate::sampling::Program;
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};
use crate::weights::{Claims, Source, Weights};

/// The graphs of the UNet: first what its cross-attentions read of the prompt, run once a picture, then a step.
pub(super) struct Graphs {
    /// `context` [B, T, D] -> the keys and values of every cross-attention, named by the layer's path.
    pub text: Graph,
    /// `sample`, `timestep` and those -> `prediction`; of the x4 upscaler also `low`, the picture with noise, and `level`, the
    /// noise's level, written as token ids are.
    pub unet: Graph,
}

/// Stable Diffusion's UNet with its solver, and the keys and values that it reads of the prompt.
pub(super) struct DenoiseStage {
    denoiser: Denoiser,
    /// Bytes of the text's keys and values.
    keys: u64,
}

impl DenoiseStage {
    /// The graphs for pictures of `settings`' size. Together they take every tensor of the checkpoint's UNet.
    pub fn build(
        checkpoint: &Checkpoint,
        limits: crate::kernels::Limits,
        precision: DType,
        settings: &Settings,
    ) -> Result<Graphs> {
        let (config, batch) = (&checkpoint.unet.config, Self::batch(settings));
        let source = checkpoint.unet.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let mut text = Graph::new(precision, limits);
        let tokens = checkpoint.text_encoders.iter().map(|part| part.config.max_positions).max().unwrap_or(77) as u32;
        let vectors = text.input("context", Shape::tokens(batch, tokens, config.cross_attention_dim as u32), precision);
        let made = context::text_keys(&mut text, &w, config, vectors);
        made.iter().for_each(|(path, value)| text.output(path, value));
        let mut g = Graph::new(precision, limits);
        let latent = Shape { batch, ..Self::latent_shape(checkpoint, settings) };
        let sample = g.input("sample", latent, precision);
        let upscales = checkpoint.class == PipelineClass::LatentUpscaler;
        let low = upscales.then(|| g.input("low", latent.with_channels(3), precision));
        let row = |channels: u32| Shape::new(batch, 1, 1, channels);
        let given = Conditioning {
            timestep: g.input("timestep", row(1), DType::F32),
            pooled: config.text_time.as_ref().map(|added| {
                let width = (added.input_dim - 6 * added.time_embed_dim) as u32;
                g.input("pooled", row(width), precision)
            }),
            sizes: config.text_time.as_ref().map(|_| g.input("sizes", row(6), DType::F32)),
            guidance: config.time_cond_proj_dim.map(|_| g.input("guidance", row(1), DType::F32)),
            class: upscales.then(|| g.input("level", row(1), DType::F32)),
            mask: None,
        };
        let read = made.iter().map(|(path, value)| (path.to_owned(), g.input(path, text.shape(value), precision)));
        let read: TextKeys = read.collect();
        let x = low.map_or(sample, |low| nn::concat(&mut g, "low", sample, low));
        let prediction = unet::unet(&mut g, &w, config, x, given, &read);
        g.output("prediction", prediction);
        claims.finish(source)?;
        Ok(Graphs { text, unet: g })
    }

    /// The denoising run of `program`.
    pub fn run(checkpoint: &Checkpoint, settings: &Settings, program: &Program) -> Run {
        Run {
            program: program.clone(),
            sample: Self::latent_shape(checkpoint, settings),
            predicted: checkpoint.unet.config.out_channels as u32,
            guided: settings.guided,
            guidance_scale: settings.guidance_scale,
            guidance_rescale: settings.guidance_rescale,
        }
    }

    /// Latents that the UNet gets at once.
    fn batch(settings: &Settings) -> u32 {
        1 + u32::from(settings.guided)
    }

    /// [1, H/8, W/8, C]; of the x4 upscaler [1, H/4, W/4, C].
    pub fn latent_shape(checkpoint: &Checkpoint, settings: &Settings) -> Shape {
        let scale = checkpoint.vae.config.scale() as u32;
        Shape::new(1, settings.height / scale, settings.width / scale, checkpoint.vae.config.latent_channels as u32)
    }

    /// Loads the stage for these prompts. What comes of the text vectors is computed first, so that the weights which make
    /// it are gone before the UNet's are there. The vectors as the model gets them join `dump`, named.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        precision: DType,
        (settings, program): (&Settings, &Program),
        prompts: &[(Side, TextVectors)],
        dump: Option<&mut Vec<(String, HostTensor)>>,
    ) -> Result<Self> {
        let batch = Self::batch(settings);
        let weights: [&dyn Source; 1] = [checkpoint.unet.weights.as_ref()];
        let graphs = Self::build(checkpoint, gpu.limits(), precision, settings)?;
        let text = execute(gpu, &graphs.text, &weights)?;
        for (side, vectors) in prompts {
            text.copy_row("context", side.row(batch), &vectors.context)?;
        }
        text.run().wait()?;
        let keys = graphs.text.outputs.iter().map(|(path, _)| Ok((path.as_str(), text.resident(path)?)));
        let keys: Vec<(&str, Resident)> = keys.collect::<Result<_>>()?;
        let mut named = if dump.is_some() { rows("text_embeddings", &text.read("context")?) } else { Vec::new() };
        drop(text);
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let shared: Vec<(&str, &Resident)> = keys.iter().map(|(path, resident)| (*path, resident)).collect();
        let denoiser = Denoiser::new(gpu, &graphs.unet, &shared, &weights, Self::run(checkpoint, settings, program))?;
        let unet = denoiser.model();
        for (side, vectors) in prompts {
            if let Some(pooled) = &vectors.pooled {
                unet.copy_row("pooled", side.row(batch), pooled)?;
            }
        }
        if let Some(dump) = dump {
            if checkpoint.class == PipelineClass::StableDiffusionXl {
                named.extend(rows("pooled_text_embeddings", &unet.read("pooled")?));
            }
            dump.append(&mut named);
        }
        let scale = |value: f32| HostTensor { shape: vec![batch as usize], data: vec![value; batch as usize] };
        if checkpoint.unet.config.time_cond_proj_dim.is_some() {
            unet.write("guidance", &scale(settings.guidance_scale - 1.0))?;
        }
        if checkpoint.unet.config.text_time.is_some() {
            let size = [settings.height as f32, settings.width as f32];
            let ids = [size[0], size[1], 0.0, 0.0, size[0], size[1]];
            let data: Vec<f32> = (0..batch).flat_map(|_| ids).collect();
            unet.write("sizes", &HostTensor { shape: vec![batch as usize, 6], data })?;
        }
        let keys = graphs.text.outputs.iter().map(|(_, value)| graphs.text.shape(*value).bytes(precision)).sum();
        Ok(Self { denoiser, keys })
    }

    /// The UNet and its solver.
    pub fn denoiser(&mut self) -> &mut Denoiser {
        &mut self.denoiser
    }

    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.keys + self.denoiser.bytes()
    }
}

/// The batch elements of a tensor [B, .., C], the prompt's as `name` and the negative one's; without axes of length 1.
fn rows(name: &str, tensor: &HostTensor) -> Vec<(String, HostTensor)> {
    let axes = tensor.shape[1..].iter().copied().filter(|axis| *axis != 1);
    let axes: Vec<usize> = [1].into_iter().chain(axes).collect();
    let elements = tensor.data.chunks_exact(tensor.data.len() / tensor.shape[0]).rev();
    let named = elements.zip(["", "negative_"]);
    named.map(|(row, side)| (format!("{side}{name}"), HostTensor { shape: axes.clone(), data: row.to_vec() })).collect()
}
