//! `scumble upscale`: a picture from a file, enlarged; otherwise as `scumble generate`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{GenerateArgs, PrecisionArg, positive, scale, side};
use crate::cli::{generate, picture};
use crate::error::Result;

/// `scumble upscale`
#[derive(Debug, Args)]
pub struct UpscaleArgs {
    /// The picture: a PNG, JPEG or WebP file
    #[arg(value_name = "IN.png")]
    pub picture: PathBuf,

    /// Checkpoint that enlarges it: a directory of DeepFloyd IF's stage II or of the x4 upscaler, the latter
    /// also as a single file, a .pth or .safetensors file of ESRGAN, Real-ESRGAN or BSRGAN, or `emoji-imagen`, the stage II
    /// inside scumble
    #[arg(short, long, value_name = "MODEL")]
    pub model: PathBuf,

    /// What the picture shows, as plain text [default: nothing]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// What to keep out of the picture, as plain text [default: nothing]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative_prompt: Option<String>,

    /// Width in pixels of the enlarged picture, for DeepFloyd IF [default: the model's own]
    #[arg(short = 'W', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub width: Option<u32>,

    /// Height in pixels of the enlarged picture, for DeepFloyd IF [default: the model's own]
    #[arg(short = 'H', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub height: Option<u32>,

    /// Denoising steps, 1 or more [default: the model's own]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub steps: Option<u32>,

    /// Guidance scale, how strongly to follow the prompt: 0 to 1 turns guidance off and halves the work
    /// [default: the model's own]
    #[arg(long, value_name = "G", value_parser = scale, allow_negative_numbers = true)]
    pub cfg_scale: Option<f32>,

    /// Noise added to the picture before it is enlarged, in steps of the model's schedule [default: the model's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub noise_level: Option<u32>,

    #[arg(long, value_name = "NAME", help = format!("Sampler: {} [default: the model's own]", super::args::SAMPLERS))]
    #[allow(missing_docs, reason = "the help text is the documentation")]
    pub sampler: Option<String>,

    #[arg(long, value_name = "NAME", help = format!("Noise schedule: {} [default: the model's own]", super::args::SCHEDULES))]
    #[allow(missing_docs, reason = "the help text is the documentation")]
    pub schedule: Option<String>,

    /// A further model, which enlarges the picture once more for the same prompt; may be given several times
    #[arg(long, value_name = "MODEL")]
    pub then: Vec<PathBuf>,

    /// Denoising steps of the further models [default: the models' own]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub sr_steps: Option<u32>,

    /// Seed of the noise, the same as torch's CPU generator's; pictures of a batch take N, N+1, ... [default: random]
    #[arg(short, long, value_name = "SEED", allow_negative_numbers = true)]
    pub seed: Option<u64>,

    /// How many pictures to draw, one seed each
    #[arg(short, long = "batch", value_name = "COUNT", default_value = "1", value_parser = positive,
          allow_negative_numbers = true)]
    pub batch: u32,

    /// Where to write the PNG; with -b above 1 the seed is added to the name, out-SEED.png
    /// [default: scumble-SEED.png, or -1, -2, ... where that exists]
    #[arg(short, long, value_name = "OUT.png")]
    pub output: Option<PathBuf>,

    /// Number format on the GPU
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: PrecisionArg,

    /// Decode in bands of rows, which takes less memory and more time and changes nothing in the picture: auto where it
    /// would not fit otherwise (SCUMBLE_MEMORY_BUDGET=BYTES says what there is), on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "on", "off"])]
    pub vae_tiling: String,

    /// The x4 upscaler: enlarge in overlapping square tiles of so many pixels of the given picture, blended into each other; auto
    /// only where memory does not suffice for the whole, off never
    #[arg(long, value_name = "PX|auto|off", default_value = "auto")]
    pub tile: String,

    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// Initial noise of variance 1 instead of the seed's: tensor `latents` [COUNT, channels, height, width]
    #[arg(long, value_name = "FILE.safetensors")]
    pub latents: Option<PathBuf>,

    /// Write every named intermediate (text embeddings, noise, low, latents.0, ..., image) as f32 tensors
    #[arg(long, value_name = "FILE.safetensors")]
    pub dump: Option<PathBuf>,

    /// Print what would run (parts, schedule, memory) and draw nothing
    #[arg(long)]
    pub explain: bool,

    /// On an adapter that is new, only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,
}

/// Runs the command.
pub fn run(args: &UpscaleArgs) -> Result<()> {
    generate::run(&as_generate(args)?)
}

/// The same as a command to draw, from a picture beside the prompt.
fn as_generate(args: &UpscaleArgs) -> Result<GenerateArgs> {
    Ok(GenerateArgs {
        image: Some(picture::read(&args.picture)?),
        prompt: args.prompt.clone().unwrap_or_default(),
        model: Some(args.model.clone()),
        negative_prompt: args.negative_prompt.clone(),
        width: args.width,
        height: args.height,
        steps: args.steps,
        cfg_scale: args.cfg_scale,
        noise_level: args.noise_level,
        sampler: args.sampler.clone(),
        schedule: args.schedule.clone(),
        then: args.then.clone(),
        sr_steps: args.sr_steps,
        seed: args.seed,
        batch: args.batch,
        output: args.output.clone(),
        precision: args.precision,
        vae_tiling: args.vae_tiling.clone(),
        tile: args.tile.clone(),
        adapter: args.adapter.clone(),
        latents: args.latents.clone(),
        dump: args.dump.clone(),
        explain: args.explain,
        no_tune: args.no_tune,
        ..GenerateArgs::default()
    })
}
