//! Opening a whole CLIP: a directory of transformers' `CLIPModel`, or OpenCLIP's or openai/CLIP's single file.

use std::path::Path;
use std::sync::Arc;

use super::Source;
use super::checkpoint::TokenizerFiles;
use super::file_source::{Change, FileSource, changed_shape};
use super::files::{Files, listing};
use super::index::tokenizer_files;
use super::open_clip;
use super::original_keys::Shapes;
use super::tensor_file::TensorFile;
use crate::error::{Error, Result};
use crate::models::config::{ClipModelConfig, PicturePreparation};

/// Files of OpenCLIP's releases.
const OPEN_CLIP: [&str; 3] =
    ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"];

/// A whole CLIP: texts and pictures to vectors of one space.
pub struct ClipCheckpoint {
    /// The directory's or the file's name.
    pub name: String,
    /// Both encoders' configs.
    pub config: ClipModelConfig,
    /// Both encoders' tensors under transformers' names: `text_model`, `text_projection`, `vision_model`, `visual_projection`.
    pub weights: Box<dyn Source>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// How pictures are prepared.
    pub preparation: PicturePreparation,
}

impl ClipCheckpoint {
    /// Opens the directory or the file at `path`. Headers are read; tensors are not.
    ///
    /// # Errors
    /// Missing or broken files, a config that scumble does not implement, another kind of model.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path)
            .map_err(|e| Error::io("no such model", path, &e).hint("a CLIP's directory, or OpenCLIP's single file"))?;
        let stem = if metadata.is_dir() { path.file_name() } else { path.file_stem() };
        let name = stem.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let checkpoint = if metadata.is_dir() { directory(path, name) } else { file(path, name) }?;
        checkpoint.check()
    }

    /// The usual name of such a picture encoder, for instance ViT-B/32.
    pub fn architecture(&self) -> String {
        let vision = &self.config.vision;
        let size = match (vision.hidden_size, vision.num_layers) {
            (768, 12) => "B",
            (1024, 24) => "L",
            (1280, 32) => "H",
            (1408, 40) => "g",
            (1664, 48) => "bigG",
            (width, layers) => {
                return format!("ViT of {width} channels, {layers} layers, patches of {}", vision.patch_size);
            }
        };
        let side = if vision.image_size == 224 { String::new() } else { format!("-{}", vision.image_size) };
        format!("ViT-{size}/{}{side}", vision.patch_size)
    }

    /// Errors where the parts do not fit each other.
    fn check(self) -> Result<Self> {
        let side = self.config.vision.image_size as u32;
        match self.preparation.crop {
            Some(crop) if crop != [side; 2] => Err(Error::new("the parts do not belong together")
                .at(self.weights.describe())
                .expected(format!("pictures cut to {side} x {side} pixels, which the picture encoder takes"))
                .found(format!("{} x {}", crop[1], crop[0]))
                .hint("the preprocessor_config.json of this model")),
            _ => Ok(self),
        }
    }
}

/// A tensor of a transformers file: `logit_scale`, which scales cosines for training, and `position_ids`, which count, are read by
/// nothing here.
pub fn name(stored: &str) -> Option<(String, Change)> {
    let unread = stored == "logit_scale" || stored.ends_with(".position_ids");
    (!unread).then(|| (stored.to_owned(), Change::Keep))
}

fn directory(path: &Path, name: String) -> Result<ClipCheckpoint> {
    let files = Files::Directory(path.to_path_buf());
    let names = files.list("");
    let has = |name: &str| names.iter().any(|known| known == name);
    let open_clip = OPEN_CLIP.iter().find(|name| has(name));
    if !has("config.json") {
        return match open_clip {
            Some(found) => file(&path.join(found), name),
            None => Err(Error::new("not a CLIP")
                .at(path.display())
                .expected("config.json with model.safetensors or pytorch_model.bin, or OpenCLIP's open_clip_model.safetensors")
                .found(listing(&names))),
        };
    }
    let place = files.place("config.json");
    let config = files.json("config.json")?;
    if config.get("_class_name").is_some() {
        return Err(Error::new("not a CLIP").at(place).expected("a config of CLIPModel").found(&config["_class_name"]));
    }
    let config = ClipModelConfig::from_json(&config, &place)?;
    let stored = match (files.weights(".", "model"), open_clip) {
        (Ok(stored), _) => stored,
        (Err(_), Some(found)) => return file(&path.join(found), name),
        (Err(fault), None) => return Err(fault),
    };
    let mut source = FileSource::new(if stored.len() == 1 { stored[0].place().to_owned() } else { files.place("") });
    for file in &stored {
        source.add_all(file, self::name)?;
    }
    let tokenizer = tokenizer_files(&files, "")?;
    let preparation = preparation(&files, config.vision.image_size as u32)?;
    Ok(ClipCheckpoint { name, config, weights: Box::new(source), tokenizer, preparation })
}

/// What `processor_config.json` says of pictures, or else `preprocessor_config.json`, in transformers' order.
fn preparation(files: &Files, side: u32) -> Result<PicturePreparation> {
    let names = files.list("");
    let has = |name: &str| names.iter().any(|known| known == name);
    if has("processor_config.json") {
        let config = files.json("processor_config.json")?;
        if let Some(pictures) = config.get("image_processor") {
            let place = format!("{}: image_processor", files.place("processor_config.json"));
            return PicturePreparation::from_json(pictures, &place);
        }
    }
    match has("preprocessor_config.json") {
        true => PicturePreparation::from_json(
            &files.json("preprocessor_config.json")?,
            &files.place("preprocessor_config.json"),
        ),
        false => Ok(PicturePreparation::clip(side)),
    }
}

/// A single file, with the configs that stand beside it.
fn file(path: &Path, name: String) -> Result<ClipCheckpoint> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let file = Arc::new(TensorFile::open(path)?);
    let place = file.place().to_owned();
    if !open_clip::is_open_clip(&mut file.names()) {
        let known: Vec<String> = file.names().take(8).map(str::to_owned).collect();
        let error =
            Error::new("not a CLIP in one file").at(place).expected("OpenCLIP's or openai/CLIP's names of tensors");
        return Err(error.found(listing(&known)).hint("the directory that holds the file and its config.json"));
    }
    let stored: Shapes =
        file.names().map(|key| (key.to_owned(), file.shape(key).unwrap_or_default().to_vec())).collect();
    let tensors = open_clip::tensors(&stored, &place)?;
    let shapes = tensors.iter().map(|(key, name, change)| (name.clone(), changed_shape(&stored[key], *change)));
    let files = Files::Directory(folder.to_path_buf());
    const CONFIG: &str = "open_clip_config.json";
    let told = files.list("").iter().any(|name| name == CONFIG);
    let given = if told { files.json(CONFIG)? } else { serde_json::Value::Null };
    let config = open_clip::config_of(&shapes.collect(), &stored, &given, &place)?;
    let preparation = open_clip::preparation(&given, config.vision.image_size, &files.place(CONFIG))?;
    let mut source = FileSource::new(place);
    for (key, name, change) in tensors {
        source.add(&name, &file, &key, change)?;
    }
    // OpenCLIP fills up with token 0; nothing behind the end token is looked at.
    let tokenizer = TokenizerFiles::Clip { pad_token: "!" };
    Ok(ClipCheckpoint { name, config, weights: Box::new(source), tokenizer, preparation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nothing_reads() {
        assert_eq!(name("logit_scale"), None);
        assert_eq!(name("vision_model.embeddings.position_ids"), None);
        assert_eq!(name("visual_projection.weight"), Some(("visual_projection.weight".to_owned(), Change::Keep)));
    }
}
