//! The command line. Sampler and schedule names are parsed where they are used; what has a plain range is checked here.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// The words for `--sampler`.
pub const SAMPLERS: &str = "ddim, ddpm, pndm, euler, euler_a, heun, dpmpp_2m, dpmpp_2m_sde, unipc, lcm, unclip";
/// The words for `--schedule`.
pub const SCHEDULES: &str = "leading, trailing, linspace (spacings), karras, exponential, beta, sgm_uniform, ays";
/// Above this a picture's numbers no longer fit the arithmetic on sizes (the VAE's largest tensor in bytes in 64 bits, axes
/// in 32); memory ends long before.
const LARGEST_SIDE: u32 = 65_536;

/// Text to pictures with hand-written WGSL kernels on any GPU that wgpu reaches.
#[derive(Debug, Parser)]
#[command(name = "scumble", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Logging, for every command.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Tell more on stderr: -v what is done, -vv details, -vvv everything
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 900)]
    pub verbose: u8,
    /// Log filter, for instance `scumble=debug,wgpu=warn` [default: warn]
    #[arg(long, value_name = "FILTER", global = true, conflicts_with = "verbose", display_order = 900)]
    pub log: Option<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw pictures from a prompt
    Generate(Box<GenerateArgs>),
    /// Enlarge a picture with an upscaler
    Upscale(Box<super::upscale::UpscaleArgs>),
    /// Show the GPU adapters, or what a checkpoint holds and needs
    Info(InfoArgs),
    /// Time the kernels, a UNet step and a whole picture, each verified first, and what this adapter could do at best
    Bench(BenchArgs),
    /// Rewrite a checkpoint as safetensors, or between a single file and diffusers' layout
    Convert(super::convert::ConvertArgs),
    /// Measure pictures: FID and KID of two sets of them
    Evaluate(super::evaluate::EvaluateArgs),
    /// Find the kernels that are right and fastest on an adapter, and keep the choice for later runs
    Tune(TuneArgs),
}

/// Arithmetic and storage on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PrecisionArg {
    /// f16 on a GPU, f32 on a software driver
    #[default]
    Auto,
    /// Single precision all through
    F32,
    /// Half-precision storage with single-precision sums
    F16,
}

/// `scumble generate`
#[derive(Debug, Default, Args)]
pub struct GenerateArgs {
    /// What to draw, as plain text
    pub prompt: String,

    /// Checkpoint: a diffusers directory or a single .safetensors or .ckpt file [default: the small emoji model inside scumble]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// What to keep out of the picture, as plain text [default: nothing]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative_prompt: Option<String>,

    /// Width in pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'W', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub width: Option<u32>,

    /// Height in pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'H', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub height: Option<u32>,

    /// Denoising steps, 1 or more [default: 50; the built-in model 20]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub steps: Option<u32>,

    /// Guidance scale, how strongly to follow the prompt: 0 to 1 turns guidance off and halves the work
    /// [default: 7.5; SDXL 5, the built-in model 3]
    #[arg(long, value_name = "G", value_parser = scale, allow_negative_numbers = true)]
    pub cfg_scale: Option<f32>,

    /// Guidance rescale, 0 (off) to 1: tames the contrast that strong guidance adds to v-prediction models
    #[arg(long, value_name = "R", default_value = "0", value_parser = fraction, allow_negative_numbers = true)]
    pub guidance_rescale: f32,

    #[arg(long, value_name = "NAME", help = format!("Sampler: {SAMPLERS} [default: the model's own]"))]
    #[allow(missing_docs, reason = "the help text is the documentation")]
    pub sampler: Option<String>,

    #[arg(long, value_name = "NAME", help = format!("Noise schedule: {SCHEDULES} [default: the model's own]"))]
    #[allow(missing_docs, reason = "the help text is the documentation")]
    pub schedule: Option<String>,

    /// What the model predicts, where the checkpoint does not say or is wrong [default: the model's own]
    #[arg(long, value_name = "P", value_parser = ["epsilon", "v_prediction", "sample"])]
    pub prediction_type: Option<String>,

    /// A further model, which enlarges the picture of the one before it for the same prompt; may be given several times
    #[arg(long, value_name = "MODEL")]
    pub then: Vec<PathBuf>,

    /// Kandinsky 2.2: the directory of the prior, which lies beside that of MODEL
    #[arg(long, value_name = "DIR")]
    pub prior: Option<PathBuf>,

    /// Karlo and Kandinsky: denoising steps of the prior, which makes the picture's embedding [default: 25]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub prior_steps: Option<u32>,

    /// Karlo and Kandinsky: guidance scale of the prior [default: 4]
    #[arg(long, value_name = "G", value_parser = scale, allow_negative_numbers = true)]
    pub prior_cfg_scale: Option<f32>,

    /// Denoising steps of the models that enlarge the first one's picture [default: the models' own]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub sr_steps: Option<u32>,

    /// Noise added to a picture before it is enlarged, in steps of the model's schedule [default: the model's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub noise_level: Option<u32>,

    /// DALL-E: the directory or file of the image tokens' decoder, where it does not lie in MODEL
    #[arg(long, value_name = "DIR")]
    pub vqgan: Option<PathBuf>,

    /// DALL-E: draw every image token from the K likeliest ones, 0 from all [default: the model's own]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<u32>,

    /// DALL-E: what logits are divided by; below 1 likely image tokens become likelier [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,

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

    /// The x4 upscaler and ESRGAN: enlarge in overlapping square tiles of so many pixels of the given picture; auto only where
    /// memory does not suffice for the whole, off never
    #[arg(long, value_name = "PX|auto|off", default_value = "auto")]
    pub tile: String,

    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// Initial noise of variance 1 instead of the seed's: tensor `latents` [COUNT, channels, height/8, width/8]
    #[arg(long, value_name = "FILE.safetensors")]
    pub latents: Option<PathBuf>,

    /// Write every named intermediate (text embeddings, latents.0, latents.1, ..., image) as f32 tensors
    #[arg(long, value_name = "FILE.safetensors")]
    pub dump: Option<PathBuf>,

    /// Text encoder layer to take, counted from the end as A1111 does: 1 is the usual one, 2 the one before
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub clip_skip: Option<u32>,

    /// Print what would run (parts, schedule, memory) and draw nothing
    #[arg(long)]
    pub explain: bool,

    /// On an adapter that is new, only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,

    /// The picture that the first model enlarges, [1, 3, H, W] from -1 to 1: that of `scumble upscale`.
    #[arg(skip)]
    pub image: Option<crate::tensor::HostTensor>,
}

/// `scumble info`
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Checkpoint to describe: a directory or a file as `generate` and `upscale` take it, or the name of a built-in model
    /// [default: none, the adapters are shown]
    pub model: Option<PathBuf>,

    /// Width in pixels of the picture whose memory is told, a multiple of 8; of an upscaler that of the given one [default: the
    /// model's own]
    #[arg(short = 'W', long, value_name = "PX", value_parser = side, allow_negative_numbers = true, requires = "model")]
    pub width: Option<u32>,

    /// Height in pixels of the picture whose memory is told, a multiple of 8; of an upscaler that of the given one [default: the
    /// model's own]
    #[arg(short = 'H', long, value_name = "PX", value_parser = side, allow_negative_numbers = true, requires = "model")]
    pub height: Option<u32>,

    /// Number format of the memory that is told; auto tells both, as the choice is the adapter's
    #[arg(long, value_enum, default_value = "auto", requires = "model")]
    pub precision: PrecisionArg,

    /// How many pictures to draw one after the other: the denoiser stays loaded while all but the last are decoded
    #[arg(short, long = "batch", value_name = "COUNT", default_value = "1", value_parser = positive,
          allow_negative_numbers = true, requires = "model")]
    pub batch: u32,

    /// How pictures are decoded, as for `generate`
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "on", "off"], requires = "model")]
    pub vae_tiling: String,

    /// Upscalers: in which tiles a picture is enlarged, as for `upscale`
    #[arg(long, value_name = "PX|auto|off", default_value = "auto", requires = "model")]
    pub tile: String,

    /// Kandinsky 2.2: the directory of the prior, which lies beside that of MODEL
    #[arg(long, value_name = "DIR", requires = "model")]
    pub prior: Option<PathBuf>,

    /// DALL-E: the directory or file of the image tokens' decoder, where it does not lie in MODEL
    #[arg(long, value_name = "DIR", requires = "model")]
    pub vqgan: Option<PathBuf>,
}

/// What `scumble bench` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchWhat {
    /// The kernels' cases, each compared with its f64 reference first
    Kernels,
    /// One UNet step and one VAE decode: as a whole, by place, by family and by kernel
    Step,
    /// A whole picture: loading, text, all steps, decoding
    Image,
}

/// What `scumble bench --help` ends with.
const BENCH_HELP: &str = "\
To compare two cards, or one card before and after a change:
  scumble bench step --model sd15 --json here.json
  scumble bench step --model sd15 --json there.json --compare here.json
then over now is above 1 where the second run is faster.

To see which kernels hold a card back:
  scumble bench --model sd15 --precision f16 --plot roofline.svg
The share of the roof is the least time that a kernel's operations and bytes need at the rates measured in the same
run, over the time that it took. Low shares with many seconds are where time is lost; `step` sums them up by place,
family and kernel, and tells how much of the step no kernel accounts for.

Times come from the GPU's timestamps where it has them, else from the wall clock; the report says which. The exit code
is 1 when a result was wrong; the others are written all the same.";

/// `scumble bench`
#[derive(Debug, Args)]
#[command(after_long_help = BENCH_HELP)]
pub struct BenchArgs {
    /// What to time [default: kernels and step, and the picture if it takes less than a minute; with --filter only kernels]
    pub what: Option<BenchWhat>,

    /// Whose sizes to take: emoji, sd15, sd21 or sdxl with random weights, or a diffusers directory or .safetensors file with
    /// its own (a directory with configs alone: random ones)
    #[arg(short, long, value_name = "MODEL", default_value = "emoji")]
    pub model: String,

    /// Width and height in pixels, multiples of 8, for instance 512x768 [default: the model's own]
    #[arg(long, value_name = "WxH", value_parser = sides, conflicts_with_all = ["width", "height"])]
    pub size: Option<(u32, u32)>,

    /// Width in pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'W', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub width: Option<u32>,

    /// Height in pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'H', long, value_name = "PX", value_parser = side, allow_negative_numbers = true)]
    pub height: Option<u32>,

    /// Denoising steps of a whole picture [default: the model's own]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub steps: Option<u32>,

    /// Number format on the GPU; auto times kernels in both
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: PrecisionArg,

    /// Only the kernels whose name starts so, for instance conv2d [default: all]
    #[arg(long, value_name = "STEM")]
    pub filter: Option<String>,

    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Print what has changed since the run that wrote this file
    #[arg(long, value_name = "FILE.json")]
    pub compare: Option<PathBuf>,

    /// Draw the measured roofs with the kernels below them
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,

    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// Timed runs at the least; more follow while the median is unsure and there is time (0.5 s a kernel, 5 s a stage).
    /// With 1 a single picture is drawn, else a second one from warm caches
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive, allow_negative_numbers = true)]
    pub runs: u32,

    /// On an adapter that is new, only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,
}

/// `scumble tune`
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// Number format whose kernels are timed
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: PrecisionArg,

    /// Time the kernels of both number formats
    #[arg(long, conflicts_with = "precision")]
    pub all: bool,

    /// Only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,
}

fn sides(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').ok_or("expected two numbers of pixels, for instance 512x768")?;
    Ok((side(width)?, side(height)?))
}

pub(super) fn side(text: &str) -> Result<u32, String> {
    let px: u32 = text.parse().map_err(|_| format!("expected a whole number of pixels from 8 to {LARGEST_SIDE}"))?;
    if !(8..=LARGEST_SIDE).contains(&px) {
        return Err(format!("expected 8 to {LARGEST_SIDE} pixels"));
    }
    if !px.is_multiple_of(8) {
        let below = px / 8 * 8;
        return Err(format!("expected a multiple of 8 pixels. Try {below} or {}", below + 8));
    }
    Ok(px)
}

pub(super) fn positive(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number, 1 or more".into()),
    }
}

pub(super) fn scale(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number, 0 or more".into()),
    }
}

fn fraction(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_sampler_and_schedule() {
        use crate::sampling::{SamplerKind, ScheduleKind};
        assert_eq!(SAMPLERS, SamplerKind::ALL.map(SamplerKind::word).join(", "));
        let listed: Vec<&str> = SCHEDULES.split(", ").map(|word| word.trim_end_matches(" (spacings)")).collect();
        assert_eq!(listed, ScheduleKind::ALL.map(ScheduleKind::word));
    }

    #[test]
    fn ranges_are_kept() {
        assert_eq!(side("8"), Ok(8));
        assert_eq!(side("1000"), Ok(1000));
        assert!(side("100").unwrap_err().contains("Try 96 or 104"));
        for bad in ["0", "4", "-8", "8.0", "", "99999999999", "65544"] {
            assert!(side(bad).is_err(), "{bad}");
        }
        assert_eq!(sides("512x768"), Ok((512, 768)));
        for bad in ["", "512", "x", "512x", "512x100", "512x768x8", "-8x8"] {
            assert!(sides(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "1.5", "", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        for bad in ["-0.1", "nan", "inf", "-inf", "x", "1e99"] {
            assert!(scale(bad).is_err(), "{bad}");
        }
        for bad in ["-0.1", "nan", "1.1"] {
            assert!(fraction(bad).is_err(), "{bad}");
        }
        assert_eq!((scale("0"), fraction("0.7")), (Ok(0.0), Ok(0.7)));
    }
}
