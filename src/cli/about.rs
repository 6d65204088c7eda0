//! What `scumble info` and `--explain` tell of every kind of model: its parts, what would run, and the memory that it takes. Needs no
//! adapter.

use std::path::Path;
use std::str::FromStr;

use crate::cli::args::{GenerateArgs, InfoArgs, PrecisionArg};
use crate::cli::info::{self, Run, line, part, prediction_word, size, thousands};
use crate::cli::systems::{Opened, OpenedChain};
use crate::cli::{dalle_info, unclip_info};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernels::Limits;
use crate::models::config::{RrdbConfig, T5Config, UnetConfig};
use crate::pipelines::inspect::{self, Loaded};
use crate::pipelines::{
    Request, Settings, StageSettings, TileSide, Tiling, UpscaleSettings, chain_requests, esrgan_plan, esrgan_size,
    imagen_graphs, imagen_settings,
};
use crate::sampling::SchedulerConfig;
use crate::tensor::{DType, HostTensor};
use crate::weights::esrgan::EsrganCheckpoint;
use crate::weights::imagen::ImagenStage;
use crate::weights::latent_upscaler::LatentUpscalerCheckpoint;

/// Sides of the pictures that upscalers are told for where nothing else is said: what the x4 upscaler was trained on, and a
/// usual picture.
const LATENT_SIDE: u32 = 128;
const PICTURE_SIDE: u32 = 512;

/// Height and width of a picture.
type Size = [u32; 2];

/// What the model of `scumble info MODEL` is.
///
/// # Errors
/// When it cannot be opened, its tensors do not fit its configs, or no such picture can be made.
pub fn describe(args: &InfoArgs, model: &Path) -> Result<String> {
    let run = Run {
        precision: args.precision,
        pictures: args.batch,
        tiling: Tiling::from_environment(&args.vae_tiling)?,
        tile: TileSide::from_str(&args.tile)?,
    };
    let command = GenerateArgs {
        model: Some(model.to_path_buf()),
        prior: args.prior.clone(),
        vqgan: args.vqgan.clone(),
        vae_tiling: args.vae_tiling.clone(),
        tile: args.tile.clone(),
        ..GenerateArgs::default()
    };
    let (opened, _) = Opened::alone(&command)?;
    let mut request = Request { width: args.width, height: args.height, ..Request::default() };
    if let Some(side) = side_of(&opened) {
        // The size is that of the picture which is enlarged.
        request = Request {
            image: Some(blank([args.height.unwrap_or(side), args.width.unwrap_or(side)])),
            ..Request::default()
        };
    }
    let mut text = String::new();
    match &opened {
        Opened::StableDiffusion(checkpoint) => return info::describe(checkpoint, &request, &run),
        Opened::Dalle(checkpoint) => return dalle_info::describe(checkpoint, &request, args.precision),
        Opened::Imagen(stages) => imagen_parts(&mut text, stages),
        Opened::Karlo(checkpoint) => unclip_info::karlo_parts(&mut text, checkpoint),
        Opened::Kandinsky(checkpoint) => unclip_info::kandinsky_parts(&mut text, checkpoint),
        Opened::LatentUpscaler(checkpoint) => {
            let parts = &checkpoint.model;
            line(&mut text, &format!("{} (Stable Diffusion's x4 upscaler)", parts.name));
            info::parts(&mut text, parts);
            let (factor, classes) = (checkpoint.factor(), checkpoint.most_noise);
            line(&mut text, &format!("enlarges {factor} times, noise level at most {classes}"));
        }
        Opened::Esrgan(checkpoint) => esrgan_parts(&mut text, checkpoint),
    }
    if let Opened::Imagen(stages) = &opened {
        // A stage that enlarges a picture needs one, and -W and -H are about its result.
        request.image = stages[0].enlarges().then(|| blank(small(&stages[0].unet.config)));
    }
    runs(&mut text, &opened, &request, &run)?;
    Ok(text)
}

/// What would run for `request`, as text for a terminal: sizes, schedule and memory.
///
/// # Errors
/// As [`describe`].
pub fn explain(args: &GenerateArgs, request: &Request) -> Result<String> {
    let (chain, _) = OpenedChain::open(args)?;
    let run = Run {
        precision: args.precision,
        pictures: args.batch,
        tiling: Tiling::from_environment(&args.vae_tiling)?,
        tile: TileSide::from_str(&args.tile)?,
    };
    let links = chain.links();
    let kinds: Vec<_> = links.iter().map(|(opened, kind)| (*kind, opened.stages())).collect();
    let mut text = String::new();
    let mut made: Option<Size> = None;
    for ((opened, kind), mut request) in links.iter().zip(chain_requests(&kinds, request)) {
        if let Some(size) = made {
            text.push_str("then ");
            request.image = Some(blank(size));
        }
        match opened {
            Opened::StableDiffusion(checkpoint) => {
                line(&mut text, &format!("model: {} ({})", checkpoint.name, checkpoint.class.name()));
            }
            Opened::Dalle(checkpoint) => line(&mut text, &format!("model: {} (DALL-E mini)", checkpoint.name)),
            Opened::Imagen(_)
            | Opened::Karlo(_)
            | Opened::Kandinsky(_)
            | Opened::LatentUpscaler(_)
            | Opened::Esrgan(_) => {
                line(&mut text, &format!("model: {} ({kind})", opened.name()));
            }
        }
        made = Some(runs(&mut text, opened, &request, &run)?);
    }
    Ok(text)
}

/// What would run for a request, and the size of the picture.
fn runs(text: &mut String, opened: &Opened, request: &Request, run: &Run) -> Result<Size> {
    match opened {
        Opened::StableDiffusion(checkpoint) => {
            let settings = Settings::resolve(request, checkpoint)?;
            denoising(text, &settings);
            info::memory(text, checkpoint, &settings, run)?;
            text.push_str(&settings.scheduler.program(settings.steps as usize, None)?.to_string());
            Ok([settings.height, settings.width])
        }
        Opened::Dalle(checkpoint) => {
            dalle_info::explain(text, checkpoint, request, run.precision)?;
            Ok([checkpoint.pixels(); 2])
        }
        Opened::Imagen(stages) => imagen_runs(text, stages, request, run.precision),
        Opened::Karlo(checkpoint) => unclip_info::karlo_runs(text, checkpoint, request, run.precision),
        Opened::Kandinsky(checkpoint) => unclip_info::kandinsky_runs(text, checkpoint, request, run.precision),
        Opened::LatentUpscaler(checkpoint) => latent_upscaler_runs(text, checkpoint, request, run),
        Opened::Esrgan(checkpoint) => esrgan_runs(text, checkpoint, request, run),
    }
}

/// The side of the picture that a model is told for which enlarges any.
fn side_of(opened: &Opened) -> Option<u32> {
    match opened {
        Opened::LatentUpscaler(_) => Some(LATENT_SIDE),
        Opened::Esrgan(_) => Some(PICTURE_SIDE),
        Opened::StableDiffusion(_) | Opened::Dalle(_) | Opened::Imagen(_) | Opened::Karlo(_) | Opened::Kandinsky(_) => {
            None
        }
    }
}

/// The picture that a stage of DeepFloyd IF enlarges, a quarter as high and wide as its own.
fn small(config: &UnetConfig) -> Size {
    config.sample_size.map_or([64; 2], |size| size.map(|axis| (axis as u32 / 4).max(1)))
}

/// A picture of which nothing but the size matters.
fn blank([height, width]: Size) -> HostTensor {
    let shape = vec![1, 3, height as usize, width as usize];
    HostTensor { data: vec![0.0; shape.iter().product()], shape }
}

/// Size, solver and guidance of Stable Diffusion, the x4 upscaler included.
fn denoising(text: &mut String, settings: &Settings) {
    let Settings { width, height, steps, guidance_scale, guidance_rescale, clip_skip, scheduler, guided } = settings;
    let calls = if *guided { "two predictions a step" } else { "off" };
    line(text, &format!("picture: {width} x {height} pixels, steps: {steps}"));
    line(text, &format!("sampler: {}, schedule: {}", scheduler.sampler(), scheduler.schedule()));
    line(text, &format!("prediction: {}", prediction_word(scheduler.prediction_type())));
    line(text, &format!("guidance: {guidance_scale} ({calls}), rescale {guidance_rescale}"));
    line(text, &format!("text encoder layers left out at the end: {clip_skip}"));
}

/// Sampler, schedule and prediction in one line.
pub(super) fn solver(scheduler: &SchedulerConfig) -> String {
    let prediction = prediction_word(scheduler.prediction_type());
    format!("sampler {}, schedule {}, prediction {prediction}", scheduler.sampler(), scheduler.schedule())
}

/// A table of what graphs take on the adapter, one row for those that are there at the same time; see [`inspect::loaded`].
pub(super) fn memory<N: AsRef<str>>(
    text: &mut String,
    precision: PrecisionArg,
    together: &[Vec<String>],
    graphs: impl Fn(DType) -> Result<Vec<(N, Graph)>>,
) -> Result<()> {
    line(text, "memory on the adapter:");
    for precision in info::precisions(precision) {
        line(text, &format!("  {:<28}{:>12}{:>14}", precision.name(), "weights", "at most"));
        let loaded = inspect::loaded(&graphs(*precision)?, together);
        for Loaded { name, weights, peak, fault } in &loaded {
            line(text, &format!("  {name:<28}{:>12}{:>14}", size(*weights), size(*peak)));
            if let Some(fault) = fault {
                line(text, &format!("  {name} needs more than WebGPU's default limits: {fault}"));
            }
        }
        let most = loaded.iter().map(|stage| stage.peak).max().unwrap_or(0);
        line(text, &format!("  {:<28}{:>26}", "in all", size(most)));
    }
    Ok(())
}

/// A UNet over pictures or latents that is no Stable Diffusion's.
pub(super) fn picture_unet(config: &UnetConfig) -> String {
    let UnetConfig { in_channels, out_channels, sample_size, cross_attention_dim, .. } = config;
    let layers: Vec<usize> = config.down.iter().map(|block| block.layers).collect();
    let heads: Vec<usize> = config.down.iter().map(|block| block.head_count).collect();
    let mut told = format!(
        "channels {}, {} resnets a level, {in_channels} channels in, {out_channels} out",
        info::list(&config.block_out_channels),
        info::list(&layers)
    );
    if *cross_attention_dim > 0 {
        told += &format!(", heads {}, attention to vectors of {cross_attention_dim}", info::list(&heads));
    }
    told += &config.text_width().map_or_else(String::new, |width| format!(", text vectors of {width}"));
    told += &config.image_width().map_or_else(String::new, |width| format!(", picture embeddings of {width}"));
    told + &sample_size.map_or_else(String::new, |[height, width]| format!(", sample {width} x {height}"))
}

fn t5(config: &T5Config) -> String {
    let T5Config { layers, width, heads, head_width, feed_forward, gated, vocabulary, .. } = config;
    let gates = if *gated { "gated " } else { "" };
    let vocabulary = thousands(*vocabulary as u64);
    format!(
        "T5, {layers} layers, width {width}, {heads} heads of {head_width}, {gates}feed-forward {feed_forward}, vocabulary {vocabulary}"
    )
}

fn imagen_parts(text: &mut String, stages: &[ImagenStage]) {
    let first = &stages[0];
    let number = match (stages.len(), first.enlarges()) {
        (1, false) => "stage I",
        (1, true) => "stage II",
        _ => "stages I and II",
    };
    line(text, &format!("{} (DeepFloyd IF, {number}: text encoder, UNet over pixels)", first.name));
    let mut total = 0;
    for (position, stage) in stages.iter().enumerate() {
        if let Some(encoder) = &stage.text {
            total += part(text, "text_encoder", encoder.weights.as_ref(), &t5(&encoder.config));
            let file = if encoder.tokenizer.whole.is_some() { "tokenizer.json" } else { "spiece.model" };
            line(text, &format!("  tokenizer: {file}"));
        }
        let name = if stages.len() > 1 { format!("unet {}", position + 1) } else { "unet".to_owned() };
        total += part(text, &name, stage.unet.weights.as_ref(), &picture_unet(&stage.unet.config));
    }
    line(text, &format!("together: {} parameters", thousands(total)));
    if stages.iter().all(|stage| stage.text.is_none()) {
        line(text, "no text encoder: it takes the text vectors of the stage before it");
    }
}

fn imagen_runs(text: &mut String, stages: &[ImagenStage], request: &Request, precision: PrecisionArg) -> Result<Size> {
    let settings = imagen_settings(stages, request)?;
    let from = request.image.as_ref().map(|image| [image.shape[2] as u32, image.shape[3] as u32]);
    let mut together = Vec::new();
    for (position, (stage, settings)) in stages.iter().zip(&settings).enumerate() {
        let StageSettings { height, width, guidance_scale, noise_level, scheduler, program, list, .. } = settings;
        let (steps, number) = (program.evaluations.len(), position + 1);
        let noise = if stage.enlarges() { format!(", noise level {noise_level}") } else { String::new() };
        line(
            text,
            &format!("picture {number}: {width} x {height} pixels, steps {steps}, guidance {guidance_scale}{noise}"),
        );
        let list = list.as_ref().map_or_else(String::new, |list| format!(", timesteps {list}"));
        line(text, &format!("  {}{list}", solver(scheduler)));
        together.push(["unet", "scheduler", "picture", "pixels"].map(|name| format!("{number} {name}")).to_vec());
    }
    memory(text, precision, &together, |dtype| imagen_graphs(stages, Limits::default(), dtype, &settings, from))?;
    let last = &settings[settings.len() - 1];
    Ok([last.height, last.width])
}

fn latent_upscaler_runs(
    text: &mut String,
    checkpoint: &LatentUpscalerCheckpoint,
    request: &Request,
    run: &Run,
) -> Result<Size> {
    let mut settings = UpscaleSettings::resolve(checkpoint, request)?;
    if let TileSide::Px(side) = run.tile {
        settings = settings.in_tiles(side);
    }
    let ([height, width], [made_height, made_width]) = (settings.from, settings.size());
    line(text, &format!("given picture: {width} x {height} pixels, enlarged: {made_width} x {made_height} pixels"));
    line(text, &format!("noise level: {}, tiles: {}", settings.noise_level, settings.grid.count()));
    denoising(text, &settings.tile);
    let pictures = run.pictures.saturating_mul(settings.grid.count() as u32);
    info::memory(text, &checkpoint.model, &settings.tile, &Run { pictures, ..*run })?;
    text.push_str(&settings.program()?.to_string());
    Ok(settings.size())
}

fn esrgan_parts(text: &mut String, checkpoint: &EsrganCheckpoint) {
    let config = &checkpoint.network.config;
    let RrdbConfig { width, growth, blocks, unshuffle, plus, .. } = config;
    line(text, &format!("{} (ESRGAN's family, enlarges {} times)", checkpoint.name, config.scale()));
    let mut told = format!("{blocks} residual-in-residual dense blocks, {width} channels, each layer adding {growth}");
    if *unshuffle > 1 {
        told += &format!(", squares of {unshuffle} x {unshuffle} pixels as channels");
    }
    if *plus {
        told += ", residuals within dense blocks (ESRGAN+)";
    }
    part(text, "network", checkpoint.network.weights.as_ref(), &told);
}

fn esrgan_runs(text: &mut String, checkpoint: &EsrganCheckpoint, request: &Request, run: &Run) -> Result<Size> {
    let scale = checkpoint.network.config.scale() as u32;
    let [height, width] = esrgan_size(checkpoint, request)?;
    line(
        text,
        &format!("given picture: {width} x {height} pixels, enlarged: {} x {} pixels", scale * width, scale * height),
    );
    line(text, "memory on the adapter:");
    line(text, &format!("  {:<8}{:>12}{:>14}{:>10}", "", "weights", "at most", "windows"));
    for precision in info::precisions(run.precision) {
        let name = precision.name();
        match esrgan_plan(checkpoint, Limits::default(), *precision, [height, width], run.tile, run.tiling) {
            Ok(plan) => {
                let [weights, peak] = [plan.graph.weight_bytes(), plan.peak].map(size);
                let [tall, wide] = plan.window();
                line(text, &format!("  {name:<8}{weights:>12}{peak:>14}{:>10} of {wide} x {tall}", plan.windows()));
            }
            Err(fault) => line(text, &format!("  {name} needs more than WebGPU's default limits: {fault}")),
        }
    }
    Ok([scale * height, scale * width])
}
