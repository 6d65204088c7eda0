//! What `fid`, `kid` and `stats` share: whose preparation, which file of weights, and features of a folder's pictures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::cli::progress::{Reporter, Unit};
use crate::cli::{cache, painter, tune};
use crate::error::{Error, Result};
use crate::evaluate::inception::{Extractor, Variant, even_batch};
use crate::evaluate::pictures;
use crate::evaluate::statistics::Features;
use crate::gpu::Gpu;
use crate::models::vision::inception::Depth;
use crate::tensor::DType;
use crate::weights::inception as weights;

/// The variable that names the file of weights.
const VARIABLE: &str = "SCUMBLE_INCEPTION";
/// Names under which the weights are published; looked for in the folder of caches.
const NAMES: [&str; 3] =
    ["pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth", "inception-2015-12-05.pt"];
/// Pictures that run together unless it is said: on a GPU, and on a software driver, where it changes nothing but memory.
const BATCH: [u32; 2] = [32, 4];

/// Options of everything that looks at pictures through Inception.
#[derive(Debug, Args)]
pub struct FeatureArgs {
    /// The network's weights: pt_inception-2015-12-05-6726825d.pth (releases of mseitzer/pytorch-fid), inception-2015-12-05.pt (NVIDIA's
    /// StyleGAN, which clean-fid takes) or the same tensors as safetensors
    /// [default: SCUMBLE_INCEPTION, or a file of such a name in scumble's cache folder]
    #[arg(long, value_name = "FILE")]
    pub inception: Option<PathBuf>,

    /// Whose way of resizing; figures of different ones must not be compared
    #[arg(long, value_enum, default_value = "pytorch-fid")]
    pub variant: VariantArg,

    /// Numbers of a feature: 2048, as published figures have it, or 64, 192 or 768 of earlier layers
    #[arg(long, value_name = "N", default_value = "2048", value_parser = depth)]
    pub dims: Depth,

    /// Pictures that run together on the adapter at most [default: 32, on a software driver 4]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Option<u32>,

    /// GPU adapter: part of its name, or its number in `scumble info` [default: the fastest]
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,

    /// On an adapter that is new, only test the kernels; do not measure which are fastest
    #[arg(long)]
    pub no_tune: bool,
}

/// The words for `--variant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VariantArg {
    /// pytorch-fid: bilinear without antialiasing, as most published figures have it
    #[value(alias = "pytorch")]
    PytorchFid,
    /// clean-fid: Pillow's antialiased bicubic; looks into folders within the folder, too
    #[value(alias = "clean")]
    CleanFid,
    /// torchmetrics: PyTorch's antialiased bilinear
    Torchmetrics,
}

impl From<VariantArg> for Variant {
    fn from(arg: VariantArg) -> Self {
        match arg {
            VariantArg::PytorchFid => Variant::PytorchFid,
            VariantArg::CleanFid => Variant::CleanFid,
            VariantArg::Torchmetrics => Variant::Torchmetrics,
        }
    }
}

fn depth(text: &str) -> std::result::Result<Depth, String> {
    let found = Depth::ALL.into_iter().find(|depth| depth.channels().to_string() == text);
    found.ok_or_else(|| "expected 64, 192, 768 or 2048".to_owned())
}

impl FeatureArgs {
    /// The variant in the library's words.
    pub fn variant(&self) -> Variant {
        self.variant.into()
    }

    /// The file of weights: the option's, the variable's, or one in the folder of caches.
    fn weights(&self) -> Result<PathBuf> {
        let named =
            self.inception.clone().or_else(|| std::env::var_os(VARIABLE).filter(|p| !p.is_empty()).map(PathBuf::from));
        choose(named, cache::directory().as_deref())
    }

    /// The network on the adapter, for sets of these sizes.
    pub fn open(&self, sets: &[usize], reporter: &mut Reporter) -> Result<Extractor> {
        let path = self.weights()?;
        reporter.begin("opening the network", 0, Unit::Pieces);
        let source = weights::open(&path)?;
        let gpu: Arc<Gpu> = painter::open_gpu(self.adapter.as_deref())?;
        reporter.end();
        tune::settle(&gpu, DType::F32, self.no_tune, reporter)?;
        reporter.line(&format!("adapter: {}, weights: {}", gpu.describe(), path.display()));
        let most = self.batch.unwrap_or(BATCH[usize::from(gpu.is_cpu())]);
        Extractor::new(&gpu, &source, self.variant(), self.dims, even_batch(most, sets))
    }

    /// The pictures in `folder`.
    pub fn pictures(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        pictures::list(folder, self.variant().deep())
    }
}

fn choose(named: Option<PathBuf>, folder: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path);
    }
    let kept = folder.and_then(|folder| NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()));
    kept.ok_or_else(|| {
        let place =
            folder.map_or_else(|| "--inception".to_owned(), |folder| format!("--inception, or {}", folder.display()));
        Error::usage("no weights of Inception v3").at(place).expected(NAMES[0]).found("none").hint(
            "downloading it from the releases of mseitzer/pytorch-fid on GitHub, which scumble does not do by itself",
        )
    })
}

/// Features of the pictures in `files`, with progress under `name`.
pub fn features(extractor: &mut Extractor, files: &[PathBuf], name: &str, reporter: &mut Reporter) -> Result<Features> {
    reporter.begin(format!("features of {name}"), files.len() as u64, Unit::Pieces);
    let found = extractor.features(files, &mut |done| reporter.set(done as u64));
    reporter.end();
    found
}

/// Whether a path is meant as a file of statistics.
pub fn is_saved(path: &Path) -> bool {
    !path.is_dir() && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz"))
}

/// An error for a file whose features another variant has made, or of other length.
pub fn check_saved(path: &Path, found: Option<Variant>, channels: usize, args: &FeatureArgs) -> Result<()> {
    let wanted = args.variant();
    if let Some(found) = found.filter(|found| *found != wanted) {
        return Err(Error::usage("features of another variant")
            .at(path.display())
            .expected(wanted.name())
            .found(found.name())
            .hint(format!("--variant {}", found.name())));
    }
    let dims = args.dims.channels() as usize;
    if channels != dims {
        let error = Error::usage("features of another length").at(path.display()).expected(dims).found(channels);
        return Err(error.hint(format!("--dims {channels}, if the other set has as many")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let fault = choose(None, Some(folder.path())).unwrap_err().to_string();
        assert!(fault.contains(NAMES[0]) && fault.contains("mseitzer/pytorch-fid"), "{fault}");
        assert!(choose(None, None).is_err());
        std::fs::write(folder.path().join(NAMES[2]), b"").unwrap();
        assert_eq!(choose(None, Some(folder.path())).unwrap(), folder.path().join(NAMES[2]));
        assert_eq!(choose(Some("x.pth".into()), Some(folder.path())).unwrap(), PathBuf::from("x.pth"));
    }

    #[test]
    fn lengths_of_features_are_words() {
        assert_eq!(depth("768"), Ok(Depth::PreAuxiliary));
        for bad in ["0", "1000", "2048.0", "-64", ""] {
            assert!(depth(bad).is_err(), "{bad}");
        }
    }
}
