//! What `scumble info` and `--explain` tell of the systems with a prior, Karlo and Kandinsky 2.2.

use crate::cli::about::{memory, picture_unet, solver};
use crate::cli::args::PrecisionArg;
use crate::cli::info::{self, line, list, part, thousands};
use crate::error::Result;
use crate::kernels::Limits;
use crate::models::config::{ClipVisionConfig, MovqConfig, PriorConfig};
use crate::pipelines::{KandinskySettings, KarloSettings, PriorSettings, Request, kandinsky_graphs, karlo_graphs};
use crate::weights::kandinsky::KandinskyCheckpoint;
use crate::weights::karlo::KarloCheckpoint;
use crate::weights::prior::PriorPart;

/// Text encoder and prior; their number of parameters.
fn prior_parts(text: &mut String, part_of: &PriorPart) -> u64 {
    let encoder = &part_of.text;
    let mut total = part(text, "text_encoder", encoder.weights.as_ref(), &info::clip(&encoder.config));
    line(text, &format!("  tokenizer: {}", info::tokenizer(&encoder.tokenizer)));
    let PriorConfig { layers, head_count, head_width, embedding_dim, text_tokens, .. } = &part_of.prior.config;
    let told = format!(
        "{layers} layers, {head_count} heads of {head_width}, embeddings of {embedding_dim}, {text_tokens} text vectors"
    );
    total += part(text, "prior", part_of.prior.weights.as_ref(), &told);
    total
}

fn prior_runs(text: &mut String, settings: &PriorSettings) {
    let PriorSettings { guidance_scale, program, samples, .. } = settings;
    let steps = program.evaluations.len();
    line(text, &format!("prior: steps {steps}, guidance {guidance_scale}, embeddings {samples}"));
}

/// Karlo's parts.
pub(super) fn karlo_parts(text: &mut String, checkpoint: &KarloCheckpoint) {
    line(text, &format!("{} (Karlo: text encoder, prior, decoder, super resolution)", checkpoint.name));
    let mut total = prior_parts(text, &checkpoint.prior);
    let projection = &checkpoint.text_proj.config;
    let told = format!(
        "embeddings of {} to {} vectors of {}",
        projection.clip_dim, projection.extra_tokens, projection.cross_attention_dim
    );
    total += part(text, "text_proj", checkpoint.text_proj.weights.as_ref(), &told);
    total += part(text, "decoder", checkpoint.decoder.weights.as_ref(), &picture_unet(&checkpoint.decoder.config));
    for (name, unet) in ["super_res_first", "super_res_last"].iter().zip(&checkpoint.super_resolution) {
        total += part(text, name, unet.weights.as_ref(), &picture_unet(&unet.config));
    }
    line(text, &format!("together: {} parameters", thousands(total)));
}

/// What Karlo would do, and its picture's height and width.
pub(super) fn karlo_runs(
    text: &mut String,
    checkpoint: &KarloCheckpoint,
    request: &Request,
    precision: PrecisionArg,
) -> Result<[u32; 2]> {
    let settings = KarloSettings::resolve(checkpoint, request)?;
    prior_runs(text, &settings.prior);
    let [height, width] = settings.decoder.size;
    let steps = settings.decoder.program.evaluations.len();
    line(text, &format!("picture: {width} x {height} pixels, steps {steps}, guidance {}", settings.guidance_scale));
    let [height, width] = settings.super_resolution.size;
    let steps = settings.super_resolution.program.evaluations.len();
    line(text, &format!("enlarged: {width} x {height} pixels, steps {steps}"));
    let row = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    let together = [
        row(&["prior", "prior scheduler", "prior embedding"]),
        row(&["decoder", "decoder scheduler"]),
        row(&["super resolution", "super resolution scheduler"]),
        row(&["super resolution's last step", "super resolution scheduler"]),
    ];
    memory(text, precision, &together, |dtype| karlo_graphs(checkpoint, Limits::default(), dtype, &settings))?;
    Ok(settings.super_resolution.size)
}

/// Kandinsky's parts.
pub(super) fn kandinsky_parts(text: &mut String, checkpoint: &KandinskyCheckpoint) {
    line(text, &format!("{} (Kandinsky 2.2: text encoder, prior, UNet, MoVQ decoder)", checkpoint.name));
    let mut total = prior_parts(text, &checkpoint.prior);
    let ClipVisionConfig { num_layers, hidden_size, head_count, patch_size, image_size, projection_dim, .. } =
        &checkpoint.image_encoder.config;
    let told = format!(
        "{num_layers} layers, width {hidden_size}, {head_count} heads, patches of {patch_size} in pictures of {image_size}, projection to {projection_dim}"
    );
    total += part(text, "image_encoder", checkpoint.image_encoder.weights.as_ref(), &told);
    total += part(text, "unet", checkpoint.unet.weights.as_ref(), &picture_unet(&checkpoint.unet.config));
    let config = &checkpoint.movq.config;
    let MovqConfig { block_out_channels, latent_channels, .. } = config;
    let told =
        format!("channels {}, factor {}, latent channels {latent_channels}", list(block_out_channels), config.scale());
    total += part(text, "movq decoder", checkpoint.movq.weights.as_ref(), &told);
    line(text, &format!("together: {} parameters", thousands(total)));
}

/// What Kandinsky would do, and its picture's height and width.
pub(super) fn kandinsky_runs(
    text: &mut String,
    checkpoint: &KandinskyCheckpoint,
    request: &Request,
    precision: PrecisionArg,
) -> Result<[u32; 2]> {
    let settings = KandinskySettings::resolve(checkpoint, request)?;
    prior_runs(text, &settings.prior);
    let ([height, width], steps) = (settings.size, settings.program.evaluations.len());
    line(text, &format!("picture: {width} x {height} pixels, steps {steps}, guidance {}", settings.guidance_scale));
    let away = match (settings.guided(), settings.black()) {
        (false, _) => "nothing",
        (true, true) => "a black picture",
        (true, false) => "the negative prompt",
    };
    line(text, &format!("  {}, led away from {away}", solver(&settings.scheduler)));
    let row = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    let together = [row(&["prior", "prior scheduler", "prior embedding"]), row(&["unet", "scheduler"])];
    memory(text, precision, &together, |dtype| kandinsky_graphs(checkpoint, Limits::default(), dtype, &settings))?;
    Ok(settings.size)
}
