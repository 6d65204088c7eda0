//! `scumble info`: the adapters, or what a checkpoint holds and needs. Describing a model needs no adapter.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::cli::args::{InfoArgs, PrecisionArg};
use crate::cli::{about, print_line, tune};
use crate::error::Result;
use crate::gpu::{self, AdapterSummary};
use crate::kernels::Limits;
use crate::models::config::{Activation, Block, ClipConfig, UnetConfig, VaeConfig};
use crate::pipelines::inspect::{self, StageMemory};
use crate::pipelines::{Request, Settings, TileSide, Tiling};
use crate::sampling::PredictionType;
use crate::tensor::DType;
use crate::weights::Source;
use crate::weights::checkpoint::{Checkpoint, TokenizerFiles};

/// Runs the command.
pub fn run(args: &InfoArgs) -> Result<()> {
    let text = match &args.model {
        None => adapters(&gpu::adapters(), tune::state),
        Some(model) => about::describe(args, model)?,
    };
    print_line(text.trim_end())
}

/// Every adapter with what it has and lacks; `state` gives the lines on what runs on the one with an index.
pub fn adapters(found: &[AdapterSummary], state: impl Fn(usize) -> Vec<String>) -> String {
    let mut text = String::new();
    if found.is_empty() {
        return "no GPU adapter. Try installing your GPU's Vulkan driver, or the software one \
                (Debian and Ubuntu: apt-get install mesa-vulkan-drivers)."
            .to_owned();
    }
    for (index, adapter) in found.iter().enumerate() {
        line(&mut text, &format!("{index}  {}", adapter.name));
        line(&mut text, &format!("   backend: {}, kind: {}", adapter.backend, adapter.kind));
        line(&mut text, &format!("   driver: {}", adapter.driver));
        let names = |wanted: bool| -> String {
            let chosen = adapter.features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name);
            let list = chosen.collect::<Vec<_>>().join(", ");
            if list.is_empty() { "none".to_owned() } else { list }
        };
        line(&mut text, &format!("   features: {}; absent: {}", names(true), names(false)));
        if !adapter.cooperative.is_empty() {
            line(&mut text, &format!("   cooperative matrices: {}", adapter.cooperative.join(", ")));
        }
        state(index).iter().for_each(|told| line(&mut text, &format!("   {told}")));
        for (name, value) in &adapter.limits {
            line(&mut text, &format!("   {name}: {}", thousands(*value)));
        }
    }
    text
}

/// All that can be told of a model without an adapter.
///
/// # Errors
/// When its tensors do not fit its configs, its schedule is unknown, or no picture of that size can be made.
pub(super) fn describe(checkpoint: &Checkpoint, request: &Request, run: &Run) -> Result<String> {
    let mut text = String::new();
    let hash = checkpoint.hash();
    line(&mut text, &format!("{} ({}), hash {}", checkpoint.name, checkpoint.class.name(), &hash[..10]));
    parts(&mut text, checkpoint);
    let sized = request.width.is_some() && request.height.is_some();
    if checkpoint.unet.config.sample_size.is_none() && !sized {
        // Everything but the size can still be told.
        let known = Request { width: Some(512), height: Some(512), ..request.clone() };
        schedule(&mut text, &Settings::resolve(&known, checkpoint)?);
        line(&mut text, "default size: none. Try giving -W and -H to see the memory that a picture needs.");
        return Ok(text);
    }
    let settings = Settings::resolve(request, checkpoint)?;
    schedule(&mut text, &settings);
    memory(&mut text, checkpoint, &settings, run)?;
    Ok(text)
}

/// Text encoders, UNet and VAE decoder of Stable Diffusion or the x4 upscaler.
pub(super) fn parts(text: &mut String, checkpoint: &Checkpoint) {
    let mut total = 0;
    for (index, encoder) in checkpoint.text_encoders.iter().enumerate() {
        let name = if index == 0 { "text_encoder".to_owned() } else { format!("text_encoder_{}", index + 1) };
        total += part(text, &name, encoder.weights.as_ref(), &clip(&encoder.config));
        line(text, &format!("  tokenizer: {}", tokenizer(&encoder.tokenizer)));
    }
    total += part(text, "unet", checkpoint.unet.weights.as_ref(), &unet(&checkpoint.unet.config));
    total += part(text, "vae decoder", checkpoint.vae.weights.as_ref(), &vae(&checkpoint.vae.config));
    line(text, &format!("together: {} parameters", thousands(total)));
}

pub(super) fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A part's name, size and config; its number of parameters.
pub(super) fn part(text: &mut String, name: &str, source: &dyn Source, config: &str) -> u64 {
    let mut types: BTreeMap<&str, u64> = BTreeMap::new();
    let mut bytes = 0;
    for info in source.names().iter().filter_map(|name| source.info(name)) {
        let count = info.shape.iter().map(|axis| *axis as u64).product::<u64>();
        *types.entry(info.dtype.name()).or_default() += count;
        bytes += count * info.dtype.bytes() as u64;
    }
    let count: u64 = types.values().sum();
    let types = types.keys().copied().collect::<Vec<_>>().join(" and ");
    line(text, &format!("{name}: {} parameters, {types}, {} on disk", thousands(count), size(bytes)));
    line(text, &format!("  {config}"));
    count
}

pub(super) fn clip(config: &ClipConfig) -> String {
    let activation = match config.activation {
        Activation::QuickGelu => "quick GELU",
        Activation::Gelu => "GELU",
    };
    let mut text = format!(
        "{} layers, width {}, {} heads, MLP {}, {activation}, {} tokens, vocabulary {}",
        config.num_layers,
        config.hidden_size,
        config.head_count,
        config.intermediate_size,
        config.max_positions,
        thousands(config.vocab_size as u64)
    );
    if let Some(width) = config.projection_dim {
        let _ = write!(text, ", projection to {width}");
    }
    text
}

fn unet(config: &UnetConfig) -> String {
    let of = |number: fn(&Block) -> usize| -> Vec<usize> { config.down.iter().map(number).collect() };
    let mut text = format!(
        "channels {}, {} resnets a level, heads {}, transformer blocks {}, cross-attention to {}, latent channels {}",
        list(&config.block_out_channels),
        list(&of(|block| block.layers)),
        list(&of(|block| block.head_count)),
        config.down.iter().map(|block| list(&block.transformer_layers)).collect::<Vec<_>>().join("; "),
        config.cross_attention_dim,
        config.out_channels
    );
    if let Some(added) = &config.text_time {
        let _ = write!(text, ", added conditioning of width {}", added.input_dim);
    }
    if let Some(width) = config.time_cond_proj_dim {
        let _ = write!(text, ", guidance as an input of width {width}");
    }
    text
}

fn vae(config: &VaeConfig) -> String {
    format!(
        "channels {}, factor {}, latent channels {}, scaling {}{}",
        list(&config.block_out_channels),
        config.scale(),
        config.latent_channels,
        config.scaling_factor,
        if config.force_upcast { ", made for f32" } else { "" }
    )
}

pub(super) fn tokenizer(files: &TokenizerFiles) -> String {
    match files {
        TokenizerFiles::Folder { files, .. } if files.contains_key("tokenizer.json") => "tokenizer.json".to_owned(),
        TokenizerFiles::Folder { .. } => "vocab.json and merges.txt".to_owned(),
        TokenizerFiles::Clip { pad_token } => format!("CLIP's, which comes with scumble, padding with {pad_token}"),
    }
}

fn schedule(text: &mut String, settings: &Settings) {
    let scheduler = &settings.scheduler;
    let kinds = format!("sampler {}, schedule {}", scheduler.sampler(), scheduler.schedule());
    let prediction = prediction_word(scheduler.prediction_type());
    line(text, &format!("default schedule: {kinds}, prediction {prediction}"));
    line(text, &format!("default steps: {}, guidance: {}", settings.steps, settings.guidance_scale));
}

/// The word of a prediction type in configs and on the command line.
pub(super) fn prediction_word(kind: PredictionType) -> &'static str {
    match kind {
        PredictionType::Epsilon => "epsilon",
        PredictionType::Velocity => "v_prediction",
        PredictionType::Sample => "sample",
    }
}

/// What a table of memory is about.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// f32, f16 or, where it depends on the adapter, both.
    pub precision: PrecisionArg,
    /// Pictures drawn one after the other.
    pub pictures: u32,
    /// How they are decoded.
    pub tiling: Tiling,
    /// In which tiles a picture is enlarged.
    pub tile: TileSide,
}

/// The number formats that a table is about.
pub(super) fn precisions(asked: PrecisionArg) -> &'static [DType] {
    match asked {
        PrecisionArg::Auto => &[DType::F32, DType::F16],
        PrecisionArg::F32 => &[DType::F32],
        PrecisionArg::F16 => &[DType::F16],
    }
}

/// A table of what each stage takes on the adapter.
pub(super) fn memory(text: &mut String, checkpoint: &Checkpoint, settings: &Settings, run: &Run) -> Result<()> {
    let latents = if settings.guided { 2 } else { 1 };
    let (width, height) = (settings.width, settings.height);
    line(text, &format!("memory on the adapter for {width} x {height} pixels, {latents} latents a step:"));
    let limits = Limits::default();
    for precision in precisions(run.precision) {
        let name = precision.name();
        line(text, &format!("  {name:<8}{:>12}{:>14}{:>12}{:>12}", "weights", "activations", "others", "at most"));
        let stages = inspect::memory_of(checkpoint, settings, *precision, limits, run.pictures, run.tiling)?;
        for stage in &stages {
            let [weights, activations, others, peak] =
                [stage.weights, stage.activations, stage.others, stage.peak()].map(size);
            let how = if stage.tiled { "  in bands of rows" } else { "" };
            let stage = stage.stage.name();
            line(text, &format!("  {stage:<8}{weights:>12}{activations:>14}{others:>12}{peak:>12}{how}"));
        }
        let most = stages.iter().map(StageMemory::peak).max().unwrap_or(0);
        line(text, &format!("  {:<8}{:>50}", "in all", size(most)));
        for stage in &stages {
            if let Some(fault) = &stage.fault {
                let stage = stage.stage.name();
                line(text, &format!("  {stage} in {name} needs more than WebGPU's default limits: {fault}"));
            }
        }
    }
    Ok(())
}

pub(super) fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join("/")
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// 1234567 as 1,234,567.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!((thousands(7), thousands(799_872)), ("7".to_owned(), "799,872".to_owned()));
        assert_eq!(thousands(1_000_000), "1,000,000");
        assert_eq!((size(512), size(3 << 20), size(5 << 29)), ("0.5 KiB".into(), "3.0 MiB".into(), "2.50 GiB".into()));
    }

    #[test]
    fn no_adapter_is_told_with_advice() {
        assert!(adapters(&[], |_| vec![]).contains("mesa-vulkan-drivers"));
    }
}
