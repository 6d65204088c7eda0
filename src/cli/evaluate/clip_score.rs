//! `scumble evaluate clip-score`.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::args::PrecisionArg;
use crate::cli::progress::{Reporter, Unit};
use crate::cli::{painter, print_line, tune};
use crate::error::{Error, Result};
use crate::evaluate::clip::{self, Resizer};
use crate::evaluate::clip_score::{Summary, cosine, retrieved};
use crate::evaluate::inception::even_batch;
use crate::evaluate::pictures;
use crate::evaluate::prompts::Prompts;
use crate::pipelines::Precision;
use crate::weights::clip::ClipCheckpoint;

/// The variable that names the model.
const VARIABLE: &str = "SCUMBLE_CLIP";
/// Pictures, or texts, that run together unless it is said: on a GPU, and on a software driver.
const BATCH: [u32; 2] = [32, 8];

/// `scumble evaluate clip-score`
#[derive(Debug, Args)]
pub struct ClipScoreArgs {
    /// A folder of pictures, or one picture
    pub images: PathBuf,

    /// Their prompts: a text file with one a line, in the order of the pictures' names; .json, .jsonl, .csv or .tsv with names and
    /// prompts; a folder of .txt files named as the pictures; or - for those that the PNGs themselves tell
    #[arg(required_unless_present = "prompt", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,

    /// One prompt for all pictures
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// The CLIP: a directory of transformers' CLIPModel (openai/clip-vit-base-patch32, -patch16, -large-patch14,
    /// laion/CLIP-ViT-H-14-laion2B-s32B-b79K), or OpenCLIP's or openai/CLIP's single file [default: SCUMBLE_CLIP]
    #[arg(long, value_name = "MODEL")]
    pub clip: Option<PathBuf>,

    /// Whose arithmetic resizes pictures
    #[arg(long, value_enum, default_value = "torchvision")]
    pub resize: ResizeArg,

    /// Number format on the GPU; published figures have f32
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: PrecisionArg,

    /// Pictures that run together on the adapter at most [default: 32, on a software driver 8]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Option<u32>,

    /// Tell every picture's cosine and prompt, too
    #[arg(long)]
    pub each: bool,

    /// Tell, too, for how many pictures no other of the prompts fits better than their own
    #[arg(long)]
    pub retrieval: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,

    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// On an adapter that is new, only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,
}

/// The words for `--resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResizeArg {
    /// torchvision's of 8-bit tensors: torchmetrics' CLIPScore with transformers from version 5 on
    Torchvision,
    /// Pillow's of 8-bit pictures: transformers up to version 4, OpenCLIP, openai/CLIP
    Pillow,
}

/// What was measured.
struct Measured<'a> {
    args: &'a ClipScoreArgs,
    checkpoint: &'a ClipCheckpoint,
    files: &'a [PathBuf],
    prompts: &'a [String],
    cosines: Vec<f64>,
    summary: Summary,
    /// Texts whose end was left out.
    cut: usize,
    /// Different texts, and the share of pictures that fit none of them better than their own.
    retrieval: Option<(usize, f64)>,
}

/// Runs the command.
pub fn run(args: &ClipScoreArgs) -> Result<()> {
    let mut reporter = Reporter::stderr();
    let model = model(args)?;
    let files = if args.images.is_file() { vec![args.images.clone()] } else { pictures::list(&args.images, false)? };
    let prompts = source(args).read(&files)?;
    reporter.begin("opening the model", 0, Unit::Pieces);
    let checkpoint = ClipCheckpoint::open(&model)?;
    reporter.begin("opening the adapter", 0, Unit::Pieces);
    let gpu = painter::open_gpu(args.adapter.as_deref())?;
    reporter.end();
    let precision = Precision::from(args.precision).resolve(gpu.is_cpu());
    tune::settle(&gpu, precision, args.no_tune, &mut reporter)?;
    reporter.line(&format!("adapter: {}, {}", gpu.describe(), precision.name()));
    let most = args.batch.unwrap_or(BATCH[usize::from(gpu.is_cpu())]);
    let (texts, own) = distinct(&prompts);
    reporter.begin("prompts", texts.len() as u64, Unit::Pieces);
    let set = |reporter: &mut Reporter, done: usize| reporter.set(done as u64);
    let encoded =
        clip::encode_texts(&gpu, &checkpoint, precision, even_batch(most, &[texts.len()]), &texts, &mut |done| {
            set(&mut reporter, done);
        })?;
    reporter.begin("pictures", files.len() as u64, Unit::Pieces);
    let resizer = match args.resize {
        ResizeArg::Torchvision => Resizer::Torchvision,
        ResizeArg::Pillow => Resizer::Pillow,
    };
    let batch = (even_batch(most, &[files.len()]), resizer);
    let found =
        clip::encode_pictures(&gpu, &checkpoint, precision, batch, &files, &mut |done| set(&mut reporter, done))?;
    reporter.end();
    let pairs = own.iter().enumerate().map(|(picture, text)| (found.row(picture), encoded.vectors.row(*text)));
    let cosines: Vec<f64> = pairs.map(|(picture, text)| cosine(picture, text)).collect();
    let summary = Summary::of(&cosines)?;
    let retrieval = args.retrieval.then(|| (texts.len(), retrieved(&found, &encoded.vectors, &own)));
    let cut = encoded.cut;
    let measured =
        Measured { args, checkpoint: &checkpoint, files: &files, prompts: &prompts, cosines, summary, cut, retrieval };
    print_line(&if args.json { measured.told().to_string() } else { measured.words() })
}

fn model(args: &ClipScoreArgs) -> Result<PathBuf> {
    let named =
        args.clip.clone().or_else(|| std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
    named.ok_or_else(|| {
        Error::usage("no CLIP")
            .at("--clip")
            .expected("a CLIP's directory or file")
            .found(format!("none, nor {VARIABLE}"))
            .hint("downloading openai/clip-vit-base-patch32 from Hugging Face, which scumble does not do by itself")
    })
}

fn source(args: &ClipScoreArgs) -> Prompts {
    match (&args.prompt, &args.prompts) {
        (Some(text), _) => Prompts::One(text.clone()),
        (None, Some(path)) if path.as_os_str() != "-" => Prompts::Path(path.clone()),
        (None, _) => Prompts::Embedded,
    }
}

/// The different prompts in the order of their first use, and the number of each picture's.
fn distinct(prompts: &[String]) -> (Vec<&str>, Vec<usize>) {
    let (mut texts, mut known) = (Vec::new(), HashMap::new());
    let own = prompts.iter().map(|prompt| {
        *known.entry(prompt.as_str()).or_insert_with(|| {
            texts.push(prompt.as_str());
            texts.len() - 1
        })
    });
    let own = own.collect();
    (texts, own)
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

impl Measured<'_> {
    fn resize(&self) -> &'static str {
        match self.args.resize {
            ResizeArg::Torchvision => Resizer::Torchvision.name(),
            ResizeArg::Pillow => Resizer::Pillow.name(),
        }
    }

    /// What the figure means and what it may not be compared with.
    fn notes(&self) -> Vec<String> {
        let kind = self.checkpoint.architecture();
        let mut notes = vec![
            "100 times the mean cosine between a picture and its prompt, as torchmetrics' CLIPScore has it; more is better. Only \
             differences tell something: unrelated pictures and prompts do not come out at 0."
                .to_owned(),
            format!(
                "Comparable only with figures of the same CLIP ({kind}, these weights) over the same prompts: every other CLIP has \
                 another scale. Published figures are mostly of openai's ViT-L/14 or ViT-B/32."
            ),
            "The CLIPScore of arXiv:2104.08718 is another figure: 2.5 times the cosine of ViT-B/32, \"A photo depicts\" before each text."
                .to_owned(),
        ];
        if self.cut > 0 {
            let room = self.checkpoint.config.text.max_positions;
            notes.push(format!(
                "warning: {} of the prompts are longer than {room} tokens; their ends were left out, and the end token kept (torchmetrics \
                 loses it there).",
                self.cut
            ));
        }
        notes
    }

    fn words(&self) -> String {
        let Summary { score, mean, standard_error, least, greatest, .. } = self.summary;
        let mut text = String::new();
        // Writing to a string cannot fail.
        if self.args.each {
            let _ = writeln!(text, "cosine    picture\tprompt");
            for ((file, prompt), cosine) in self.files.iter().zip(self.prompts).zip(&self.cosines) {
                let _ = writeln!(text, "{cosine:+.6} {}\t{}", shown(file), prompt.escape_debug());
            }
        }
        let (name, kind) = (&self.checkpoint.name, self.checkpoint.architecture());
        let _ = writeln!(text, "CLIP score ({name}, {kind}, resized as {}): {score:.4}", self.resize());
        let error = standard_error.map_or_else(String::new, |error| format!(", standard error {error:.6}"));
        let _ = writeln!(text, "cosine: mean {mean:.6}{error}, from {least:.6} to {greatest:.6}");
        if let Some((texts, share)) = self.retrieval {
            let _ = writeln!(text, "pictures that no other of the {texts} prompts fits better: {:.2} %", 100.0 * share);
        }
        let _ = writeln!(text, "{}: {} pictures", self.args.images.display(), self.files.len());
        text + &self.notes().join("\n")
    }

    fn told(&self) -> Value {
        let Summary { score, mean, deviation, standard_error, least, greatest } = self.summary;
        let each = |((file, prompt), cosine): ((&PathBuf, &String), &f64)| json!({ "picture": shown(file), "prompt": prompt, "cosine": cosine });
        let pairs = self.files.iter().zip(self.prompts).zip(&self.cosines);
        let mut told = json!({
            "measure": "clip-score",
            "value": score,
            "cosine": {
                "mean": mean, "deviation": deviation, "standard_error": standard_error, "least": least, "greatest": greatest,
            },
            "model": {
                "name": self.checkpoint.name,
                "architecture": self.checkpoint.architecture(),
                "image_size": self.checkpoint.config.vision.image_size,
                "projection_dim": self.checkpoint.config.vision.projection_dim,
            },
            "resize": self.resize(),
            "pictures": self.files.len(),
            "cut_prompts": self.cut,
            "notes": self.notes(),
        });
        if let Some((texts, share)) = self.retrieval {
            told["retrieval"] = json!({ "prompts": texts, "top_1": share });
        }
        if self.args.each {
            told["each"] = pairs.map(each).collect();
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prompts_are_encoded_once() {
        let prompts = ["a", "b", "a", "c", "b"].map(str::to_owned);
        assert_eq!(distinct(&prompts), (vec!["a", "b", "c"], vec![0, 1, 0, 2, 1]));
    }
}
