//! Opening DALL-E mini and mega: dalle-mini's flax directories, min-dalle's files, and safetensors of either.

use std::path::Path;
use std::sync::Arc;

use super::checkpoint::Part;
use super::dalle_keys;
use super::file_source::{Change, FileSource};
use super::files::{Files, listing};
use super::flax::FlaxSource;
use super::tensor_file::TensorFile;
use super::{Source, shown};
use crate::error::{Error, Result};
use crate::models::config::{DalleConfig, VqganConfig};

/// Endings of files of tensors.
const ENDINGS: [&str; 5] = ["safetensors", "pt", "pth", "bin", "ckpt"];
/// Files that hold a whole model.
const WHOLE: [&str; 4] = ["flax_model.msgpack", "flax_model.safetensors", "model.safetensors", "pytorch_model.bin"];

/// The tokenizer's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DalleTokenizer {
    /// Where they are, for errors.
    pub place: String,
    /// `vocab.json`.
    pub vocabulary: Option<Vec<u8>>,
    /// `merges.txt`.
    pub merges: Option<Vec<u8>>,
    /// `tokenizer.json`, which serves where one of the others is missing.
    pub whole: Option<Vec<u8>>,
    /// Whether prompts are prepared as dalle-mini does it, rather than min-dalle.
    pub dalle_mini: bool,
}

/// What a request leaves open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DalleDefaults {
    /// Guidance scale.
    pub guidance_scale: f32,
    /// The number of largest logits that are drawn from; all without.
    pub top_k: Option<u32>,
    /// What logits are divided by.
    pub temperature: f32,
}

/// DALL-E mini or mega: its parts with configs and weights, and its tokenizer.
pub struct DalleCheckpoint {
    /// The directory's name.
    pub name: String,
    /// The file of the decoder's tensors.
    pub file: String,
    /// Encoder and decoder.
    pub config: DalleConfig,
    /// The encoder's tensors, under min-dalle's names.
    pub encoder: Box<dyn Source>,
    /// The decoder's tensors, under min-dalle's names.
    pub decoder: Box<dyn Source>,
    /// The decoder of image tokens.
    pub vqgan: Part<VqganConfig>,
    /// The tokenizer.
    pub tokenizer: DalleTokenizer,
    /// What a request leaves open.
    pub defaults: DalleDefaults,
}

/// Encoder and decoder, as they were found.
struct Bart {
    encoder: Box<dyn Source>,
    decoder: Box<dyn Source>,
    file: String,
    flax: bool,
}

impl DalleCheckpoint {
    /// Opens the directory at `path`; `vqgan` is the directory or file of the image tokens' decoder, where it does not lie
    /// beside the others. Headers are read; tensors are not.
    ///
    /// # Errors
    /// Missing or broken files, a config that scumble does not implement.
    pub fn open(path: &Path, vqgan: Option<&Path>) -> Result<Self> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self::from_files(&Files::Directory(path.to_path_buf()), name, vqgan)
    }

    pub(super) fn from_files(files: &Files, name: String, vqgan: Option<&Path>) -> Result<Self> {
        let bart = open_bart(files)?;
        let config = if files.list("").iter().any(|file| file == "config.json") {
            DalleConfig::from_json(&files.json("config.json")?, &files.place("config.json"))?
        } else {
            DalleConfig::from_shapes(bart.encoder.as_ref(), bart.decoder.as_ref())?
        };
        let vqgan = open_vqgan(files, vqgan)?;
        let most = config.image_rows - 1;
        if config.start_token.is_none() && vqgan.config.codes > most {
            return Err(Error::new("the parts do not belong together")
                .at(files.place(""))
                .expected(format!("a codebook of at most {most} codes"))
                .found(vqgan.config.codes));
        }
        // Those of dalle-mini's notebook and of min-dalle.
        let (guidance_scale, top_k) = if bart.flax { (10.0, None) } else { (16.0, Some(256)) };
        let defaults = DalleDefaults { guidance_scale, top_k, temperature: 1.0 };
        let tokenizer = tokenizer(files, bart.flax)?;
        Ok(Self {
            name,
            file: bart.file,
            config,
            encoder: bart.encoder,
            decoder: bart.decoder,
            vqgan,
            tokenizer,
            defaults,
        })
    }

    /// How many tokens may be drawn: those that the codebook has a code for.
    pub fn drawn(&self) -> u32 {
        self.vqgan.config.codes.min(self.config.image_rows) as u32
    }

    /// What the decoder reads first. Where no config tells, it is the number of codes, as both published models were trained.
    pub fn start_token(&self) -> u32 {
        self.config.start_token.unwrap_or(self.vqgan.config.codes as u32)
    }

    /// Pixels per side of the picture.
    pub fn pixels(&self) -> u32 {
        (self.config.side() * self.vqgan.config.scale()) as u32
    }
}

/// Whether a directory with these files is one of DALL-E mini's: min-dalle's pair, or a config that says so.
pub(super) fn is_dalle(files: &Files) -> bool {
    let names = files.list("");
    let pair = ["encoder", "decoder"].iter().all(|part| single(&names, part).is_some());
    let config = || files.json("config.json").ok();
    let class = |config: serde_json::Value| config.get("model_type").and_then(|word| word.as_str().map(str::to_owned));
    pair || (names.iter().any(|name| name == "config.json") && config().and_then(class).as_deref() == Some("dallebart"))
}

/// The file of a part among `names`: `encoder.pt`, `encoder_mini.pt` and other endings.
fn single<'a>(names: &'a [String], part: &str) -> Option<&'a String> {
    let stems = [part.to_owned(), format!("{part}_mini"), format!("{part}_mega")];
    stems
        .iter()
        .flat_map(|stem| ENDINGS.map(|ending| format!("{stem}.{ending}")))
        .find_map(|wanted| names.iter().find(|name| **name == wanted))
}

fn open_bart(files: &Files) -> Result<Bart> {
    let names = files.list("");
    if let (Some(encoder), Some(decoder)) = (single(&names, "encoder"), single(&names, "decoder")) {
        let open = |name: &str| -> Result<Box<dyn Source>> {
            Ok(Box::new(FileSource::whole(Arc::new(files.tensors(name)?))?))
        };
        return Ok(Bart { encoder: open(encoder)?, decoder: open(decoder)?, file: files.place(decoder), flax: false });
    }
    let Some(whole) = WHOLE.iter().find(|whole| names.iter().any(|name| name == *whole)) else {
        return Err(Error::new("missing weights")
            .at(files.place(""))
            .expected(format!("{}, or encoder.pt and decoder.pt", WHOLE.join(", ")))
            .found(listing(&names)));
    };
    let file = Arc::new(files.tensors(whole)?);
    if file.names().any(|name| dalle_keys::bart_from_flax(name).is_some()) {
        return flax_bart(&file);
    }
    let part = |prefix: &str| -> Result<Box<dyn Source>> {
        let mut source = FileSource::new(file.place());
        source.add_all(&file, |name| Some((name.strip_prefix(prefix)?.to_owned(), Change::Keep)))?;
        Ok(Box::new(source))
    };
    match file.names().find(|name| !name.starts_with("encoder.") && !name.starts_with("decoder.")) {
        Some(other) => Err(Error::new("unexpected tensor")
            .at(file.place())
            .expected("names that begin with encoder. or decoder., or those of dalle-mini's flax tree")
            .found(format!("`{}`", shown(other)))),
        None => {
            Ok(Bart { encoder: part("encoder.")?, decoder: part("decoder.")?, file: file.place().into(), flax: false })
        }
    }
}

fn flax_bart(file: &Arc<TensorFile>) -> Result<Bart> {
    let mut parts = ["encoder", "decoder"].map(|part| (part, FlaxSource::new(format!("{}: {part}", file.place()))));
    for stored in file.names() {
        let Some((part, name, stacked)) = dalle_keys::bart_from_flax(stored) else {
            return Err(Error::new("unexpected tensor")
                .at(file.place())
                .expected("the names of dalle-mini's flax tree")
                .found(format!("`{}`", shown(stored))));
        };
        let Some((_, source)) = parts.iter_mut().find(|(known, _)| *known == part) else { continue };
        if !stacked {
            source.add(&name, file, stored, None)?;
            continue;
        }
        let layers = file.shape(stored).and_then(|shape| shape.first().copied()).unwrap_or(0).min(256);
        for layer in 0..layers {
            source.add(&format!("layers.{layer}.{name}"), file, stored, Some(layer))?;
        }
    }
    let [(_, encoder), (_, decoder)] = parts;
    Ok(Bart { encoder: Box::new(encoder), decoder: Box::new(decoder), file: file.place().into(), flax: true })
}

/// The image tokens' decoder: at `given`, in the folder `vqgan`, or as min-dalle's `detoker.pt`.
fn open_vqgan(files: &Files, given: Option<&Path>) -> Result<Part<VqganConfig>> {
    if let Some(path) = given {
        if !path.is_dir() {
            return vqgan_part(&Arc::new(TensorFile::open(path)?), None);
        }
        return vqgan_in(&Files::Directory(path.to_path_buf()), "");
    }
    let names = files.list("");
    if files.has_folder("vqgan") {
        return vqgan_in(files, "vqgan/");
    }
    match single(&names, "detoker") {
        Some(name) => vqgan_part(&Arc::new(files.tensors(name)?), None),
        None => Err(Error::new("missing decoder of the image tokens")
            .at(files.place(""))
            .expected("detoker.pt or a folder vqgan")
            .found(listing(&names))
            .hint("--vqgan DIR")),
    }
}

/// A folder, whose path ends with a slash unless it is the root.
fn vqgan_in(files: &Files, folder: &str) -> Result<Part<VqganConfig>> {
    let names = files.list(folder.trim_end_matches('/'));
    let whole = WHOLE.iter().find_map(|whole| names.iter().find(|name| name == whole));
    let Some(name) = whole.or_else(|| single(&names, "detoker")).or_else(|| single(&names, "diffusion_pytorch_model"))
    else {
        return Err(Error::new("missing weights")
            .at(files.place(folder))
            .expected(format!("{} or detoker.pt", WHOLE.join(", ")))
            .found(listing(&names)));
    };
    let file = Arc::new(files.tensors(&format!("{folder}{name}"))?);
    let config = format!("{folder}config.json");
    let config = match names.iter().any(|name| name == "config.json") {
        true => Some(VqganConfig::from_json(&files.json(&config)?, &files.place(&config))?),
        false => None,
    };
    vqgan_part(&file, config)
}

fn vqgan_part(file: &Arc<TensorFile>, config: Option<VqganConfig>) -> Result<Part<VqganConfig>> {
    let mut source = FlaxSource::new(file.place());
    for stored in file.names() {
        if let Some(name) = dalle_keys::vqgan(stored) {
            source.add(&name, file, stored, None)?;
        }
    }
    let config = config.map_or_else(|| VqganConfig::from_shapes(&source), Ok)?;
    Ok(Part { config, weights: Box::new(source) })
}

fn tokenizer(files: &Files, dalle_mini: bool) -> Result<DalleTokenizer> {
    let names = files.list("");
    let read = |stem: &str, ending: &str| -> Result<Option<Vec<u8>>> {
        let wanted = [format!("{stem}.{ending}"), format!("{stem}_mini.{ending}")];
        let found = wanted.iter().find(|wanted| names.contains(wanted));
        found.map(|name| files.read(name)).transpose()
    };
    let found = DalleTokenizer {
        place: files.place(""),
        vocabulary: read("vocab", "json")?,
        merges: read("merges", "txt")?,
        whole: read("tokenizer", "json")?,
        dalle_mini,
    };
    if found.whole.is_none() && (found.vocabulary.is_none() || found.merges.is_none()) {
        return Err(Error::new("missing tokenizer")
            .at(found.place)
            .expected("vocab.json and merges.txt, or tokenizer.json")
            .found(listing(&names)));
    }
    Ok(found)
}
