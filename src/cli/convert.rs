//! `scumble convert`: checkpoints rewritten as safetensors, and Stable Diffusion between its two layouts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::files::{self, cannot_write};
use super::info::size;
use super::print_line;
use super::progress::{Reporter, Unit};
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::text::clip_folder;
use crate::weights::TensorFile;
use crate::weights::convert::to_diffusers::{self, Content};
use crate::weights::convert::{Plan, WriteError, to_single};

/// What `scumble convert --help` ends with.
const HELP: &str = "\
What becomes of what:
  scumble convert model.ckpt model.safetensors       a file as it is: .ckpt, .pt, .pth, .bin, .msgpack or safetensors
  scumble convert model.safetensors model            a Stable Diffusion file -> a directory in diffusers' layout
  scumble convert model model.safetensors            a diffusers directory -> one file in the original key names

Nothing in a file is executed: a pickle that asks for more than tensors and plain data is refused by name.
Tensors keep their types and every bit unless --dtype says otherwise.";

/// `scumble convert`
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct ConvertArgs {
    /// Checkpoint: a file of weights, or a diffusers directory of Stable Diffusion
    #[arg(value_name = "IN")]
    pub input: PathBuf,

    /// What to write: a name that ends in .safetensors, or a directory for diffusers' layout
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Store floating-point tensors in this format [default: each as it is]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<DtypeArg>,

    /// For a diffusers directory: what the model predicts, where the file does not say or is wrong
    #[arg(long, value_name = "P", value_parser = ["epsilon", "v_prediction", "sample"])]
    pub prediction_type: Option<String>,

    /// Replace what is there
    #[arg(long)]
    pub force: bool,
}

/// An element type of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// Half precision
    F16,
    /// Single precision
    F32,
    /// The upper half of single precision
    Bf16,
}

impl From<DtypeArg> for DType {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F16 => Self::F16,
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::BF16,
        }
    }
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let is = |endings: &[&str]| {
        args.output.extension().is_some_and(|end| endings.iter().any(|other| end.eq_ignore_ascii_case(other)))
    };
    if is(&["ckpt", "pt", "pth", "bin", "msgpack"]) {
        let hint = args.output.with_extension("safetensors");
        let error = Error::usage("unsupported format").at(args.output.display()).expected("safetensors or a directory");
        return Err(error.hint(hint.display()));
    }
    if args.output.exists() && !args.force {
        let error = Error::new("already there").at(args.output.display()).expected("a new name");
        return Err(error.hint("--force to replace it"));
    }
    let to_file = is(&["safetensors"]);
    if to_file && args.prediction_type.is_some() {
        let error = Error::usage("--prediction-type").expected("a directory to write its config into");
        return Err(error.found(args.output.display()));
    }
    match (args.input.is_dir(), to_file) {
        (true, true) => directory_to_file(args),
        (false, true) => file_to_file(args),
        (false, false) => file_to_directory(args),
        (true, false) => Err(Error::usage("a directory cannot become a directory")
            .at(args.output.display())
            .expected("a file")
            .hint(format!("{}.safetensors", args.output.display()))),
    }
}

fn open(args: &ConvertArgs) -> Result<Arc<TensorFile>> {
    let file = Arc::new(TensorFile::open(&args.input)?);
    print_line(&format!("{}: {}, {} tensors", file.place(), file.format().name(), file.names().count()))?;
    if !file.left_out().is_empty() {
        const MOST: usize = 12;
        let names = file.left_out().iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
        let more = if file.left_out().len() > MOST { ", ..." } else { "" };
        print_line(&format!("left out, being no weights: {names}{more}"))?;
    }
    Ok(file)
}

fn file_to_file(args: &ConvertArgs) -> Result<()> {
    let plan = Plan::whole(&open(args)?)?.with_type(args.dtype.map(DType::from));
    write_plan(&plan, &args.output, "convert")?;
    report(&args.output, plan.count(), plan.bytes())
}

fn directory_to_file(args: &ConvertArgs) -> Result<()> {
    let (plan, notes) = to_single::plan(&args.input)?;
    let plan = plan.with_type(args.dtype.map(DType::from));
    write_plan(&plan, &args.output, "convert")?;
    for note in notes {
        print_line(&format!("note: {note}"))?;
    }
    report(&args.output, plan.count(), plan.bytes())
}

fn report(path: &Path, tensors: usize, bytes: u64) -> Result<()> {
    print_line(&format!("wrote {}: {tensors} tensors, {}", path.display(), size(bytes)))
}

/// Writes one safetensors file, whole or not at all.
fn write_plan(plan: &Plan, path: &Path, stage: &str) -> Result<()> {
    files::check_writable(path)?;
    // What takes no time needs no progress.
    const TOLD: u64 = 64 << 20;
    let mut reporter = Reporter::stderr();
    if plan.bytes() >= TOLD {
        reporter.begin(stage, plan.bytes(), Unit::Bytes);
    }
    let mut source = None;
    let result = files::replace_file(path, |out| {
        plan.write(out, &mut |bytes| reporter.set(bytes)).map_err(|fault| match fault {
            WriteError::Target(fault) => fault,
            WriteError::Source(fault) => {
                source = Some(fault);
                std::io::ErrorKind::InvalidData.into()
            }
        })
    });
    reporter.end();
    source.map_or(result, Err)
}

fn file_to_directory(args: &ConvertArgs) -> Result<()> {
    let target = &args.output;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if target.exists() && !target.join("model_index.json").is_file() {
        let error = Error::new("cannot replace").at(target.display()).expected("a directory in diffusers' layout");
        return Err(error.hint("another name"));
    }
    let contents = to_diffusers::files(&open(args)?, args.prediction_type.as_deref())?;
    files::check_folder(parent)?;
    let fault = |fault: std::io::Error| cannot_write(target, &fault);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scumble-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let staging = builder.tempdir_in(parent).map_err(fault)?;
    let (mut tensors, mut bytes) = (0, 0);
    for (path, content) in contents {
        let place = staging.path().join(&path);
        let folder = if matches!(content, Content::Tokenizer(_)) { Some(&*place) } else { place.parent() };
        std::fs::create_dir_all(folder.unwrap_or(parent)).map_err(fault)?;
        match content {
            Content::Json(value) => std::fs::write(&place, format!("{value:#}\n")).map_err(fault)?,
            Content::Tokenizer(pad_token) => {
                for (name, contents) in clip_folder(pad_token)? {
                    std::fs::write(place.join(name), contents).map_err(fault)?;
                }
            }
            Content::Tensors(plan) => {
                let plan = plan.with_type(args.dtype.map(DType::from));
                write_plan(&plan, &place, &path)?;
                tensors += plan.count();
                bytes += plan.bytes();
            }
        }
    }
    put_in_place(staging, target)?;
    report(target, tensors, bytes)
}

/// Renames the finished directory to `target`; what was there goes only then.
fn put_in_place(staging: tempfile::TempDir, target: &Path) -> Result<()> {
    let fault = |fault: std::io::Error| cannot_write(target, &fault);
    let old = staging.path().with_extension("old");
    let replaces = target.exists();
    if replaces {
        std::fs::rename(target, &old).map_err(fault)?;
    }
    if let Err(failed) = std::fs::rename(staging.path(), target) {
        if replaces {
            std::fs::rename(&old, target).map_err(fault)?;
        }
        return Err(fault(failed));
    }
    // Its name is another now, so there is nothing left to remove.
    let _ = staging.keep();
    if replaces {
        std::fs::remove_dir_all(&old).map_err(fault)?;
    }
    Ok(())
}
