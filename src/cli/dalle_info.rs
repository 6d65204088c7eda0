//! What `scumble info` and `scumble generate --explain` tell of a DALL-E model.

use crate::cli::args::PrecisionArg;
use crate::cli::info::{line, list, part, size, thousands};
use crate::error::Result;
use crate::graph::footprint::footprint;
use crate::kernels::Limits;
use crate::models::config::{DalleConfig, DalleLayers, VqganConfig};
use crate::pipelines::{Dalle, DalleSettings, Request, dalle_graphs};
use crate::tensor::DType;
use crate::weights::dalle::DalleCheckpoint;

/// All that can be told without an adapter.
///
/// # Errors
/// When the tensors do not fit the configs, or the request asks for what the model does not have.
pub fn describe(checkpoint: &DalleCheckpoint, request: &Request, precision: PrecisionArg) -> Result<String> {
    let mut text = String::new();
    let DalleCheckpoint { name, config, encoder, decoder, vqgan, tokenizer, .. } = checkpoint;
    line(&mut text, &format!("{name} (DALL-E mini: text encoder, generator of image tokens, VQGAN decoder)"));
    let mut total = part(&mut text, "encoder", encoder.as_ref(), &layers(config, &config.encoder));
    let way = if tokenizer.dalle_mini { "dalle-mini" } else { "min-dalle" };
    let (tokens, vocabulary) = (config.text_length, thousands(config.text_vocabulary as u64));
    line(
        &mut text,
        &format!("  tokenizer: BART's byte pairs as {way} asks for them, {tokens} tokens, vocabulary {vocabulary}"),
    );
    total += part(&mut text, "decoder", decoder.as_ref(), &layers(config, &config.decoder));
    let (drawn, start) = (thousands(u64::from(checkpoint.drawn())), checkpoint.start_token());
    line(&mut text, &format!("  {} image tokens of {drawn}, the first after {start}", config.image_length));
    total += part(&mut text, "vqgan decoder", vqgan.weights.as_ref(), &vqgan_line(&vqgan.config));
    line(&mut text, &format!("together: {} parameters", thousands(total)));
    explain(&mut text, checkpoint, request, precision)?;
    Ok(text)
}

/// What would run for a request: size, sampling, memory.
///
/// # Errors
/// As for [`describe`].
pub fn explain(
    text: &mut String,
    checkpoint: &DalleCheckpoint,
    request: &Request,
    precision: PrecisionArg,
) -> Result<()> {
    let settings = Dalle::settings(checkpoint, request)?;
    let DalleSettings { guidance_scale, top_k, temperature } = settings;
    let (pixels, steps) = (checkpoint.pixels(), checkpoint.config.image_length);
    line(text, &format!("picture: {pixels} x {pixels} pixels, image tokens: {steps}, one a step"));
    let calls = if settings.batch() == 2 { "two rows a step" } else { "off" };
    let top_k = top_k.map_or_else(|| "all".to_owned(), |k| k.to_string());
    line(text, &format!("guidance: {guidance_scale} ({calls}), top-k: {top_k}, temperature: {temperature}"));
    line(text, "memory on the adapter:");
    let precisions: &[DType] = match precision {
        PrecisionArg::Auto => &[DType::F32, DType::F16],
        PrecisionArg::F32 => &[DType::F32],
        PrecisionArg::F16 => &[DType::F16],
    };
    for precision in precisions {
        line(text, &format!("  {:<8}{:>12}{:>14}", precision.name(), "weights", "at most"));
        for (stage, graph) in dalle_graphs(checkpoint, Limits::default(), *precision, &settings, false)? {
            let [weights, peak] = [graph.weight_bytes(), footprint(&graph).peak()].map(size);
            line(text, &format!("  {stage:<8}{weights:>12}{peak:>14}"));
            if let Some(fault) = graph.fault() {
                line(text, &format!("  {stage} needs more than WebGPU's default limits: {fault}"));
            }
        }
    }
    Ok(())
}

fn layers(config: &DalleConfig, layers: &DalleLayers) -> String {
    let DalleLayers { count, heads, feed_forward, .. } = layers;
    let gates = if config.gated { "gated " } else { "" };
    format!("{count} layers, width {}, {heads} heads, {gates}feed-forward {feed_forward}", config.width)
}

fn vqgan_line(config: &VqganConfig) -> String {
    format!(
        "{} codes of {} channels, channels {}, {} resnets a level, factor {}",
        thousands(config.codes as u64),
        config.code_channels,
        list(&config.channels),
        config.blocks,
        config.scale()
    )
}
