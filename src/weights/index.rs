//! `model_index.json` and the parts that it names, each in its folder with a config: what every system in diffusers layout
//! is opened with.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::checkpoint::TokenizerFiles;
use super::file_source::{Change, FileSource};
use super::files::{Files, listing};
use super::{RandomSource, Source};
use crate::error::{Error, Result};

/// The stem of weights that diffusers writes.
pub(super) const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// The stem of weights that transformers writes.
pub(super) const TRANSFORMERS_STEM: &str = "model";

/// `model_index.json` and where it is.
pub(super) struct Index<'a> {
    pub files: &'a Files,
    pub parts: Map<String, Value>,
    pub place: String,
    /// Weights are drawn from this seed instead of being read; tokenizers are not looked for.
    pub seed: Option<u64>,
}

/// Reads `model_index.json`, or says what the directory holds instead.
pub(super) fn read_index(files: &Files) -> Result<Index<'_>> {
    const NAME: &str = "model_index.json";
    let names = files.list("");
    if names.iter().any(|name| name == NAME) {
        let place = files.place(NAME);
        return match files.json(NAME)? {
            Value::Object(parts) => Ok(Index { files, parts, place, seed: None }),
            _ => Err(Error::new("broken file").at(place).expected("a JSON object")),
        };
    }
    let error = Error::new("not a diffusers model").at(files.place("")).expected("a directory with model_index.json");
    let class = files.json("config.json").ok().and_then(|config| {
        let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0))?;
        class.as_str().map(str::to_string)
    });
    if let Some(class) = class {
        let error = error.found(format!("a single part ({class})"));
        return Err(error.hint("the directory above it, which should hold all parts"));
    }
    let single = names.iter().find(|name| name.ends_with(".safetensors"));
    match single {
        Some(file) => Err(error.found(listing(&names)).hint(format!("the file itself: {}", files.place(file)))),
        None => Err(error.found(listing(&names)).hint("the directory that holds unet, vae and text_encoder")),
    }
}

impl Index<'_> {
    /// The error for a `field` of the index.
    pub fn unsupported(&self, field: &str, expected: &str, found: &str) -> Error {
        let place = format!("{}: `{field}`", self.place);
        Error::new("unsupported model").at(place).expected(expected).found(found)
    }

    /// The pipeline's class.
    pub fn class_name(&self) -> &str {
        self.parts.get("_class_name").and_then(Value::as_str).unwrap_or("nothing")
    }

    /// A flag of the pipeline.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.parts.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.unsupported(name, "true or false", &value.to_string())),
        }
    }

    /// Errors for a part that the index names and that is not `known`.
    pub fn refuse_parts_but(&self, known: &[&str]) -> Result<()> {
        for (name, value) in &self.parts {
            let null = value.as_array().is_some_and(|pair| pair.iter().all(Value::is_null));
            if value.is_array() && !null && !known.contains(&name.as_str()) {
                return Err(self.unsupported(name, "no such part", &value.to_string()));
            }
        }
        Ok(())
    }

    /// Whether the index names a part and does not leave it out (`[null, null]`).
    pub fn has_part(&self, part: &str) -> bool {
        self.parts.get(part).and_then(|pair| pair.get(1)).is_some_and(Value::is_string)
    }

    /// The class of a part; an error if the index does not name one.
    pub fn class_of(&self, part: &str) -> Result<&str> {
        let class = self.parts.get(part).and_then(|pair| pair.get(1)).and_then(Value::as_str);
        class.ok_or_else(|| {
            let found = self.parts.get(part).map_or("nothing".to_string(), Value::to_string);
            let error = self.unsupported(part, "a library and a class", &found);
            match part {
                "text_encoder" => error.hint("a base model (a refiner, for instance, has no first text encoder)"),
                _ => error,
            }
        })
    }

    /// Checks a part's class and folder.
    pub fn check_part(&self, part: &str, classes: &[&str]) -> Result<&str> {
        let class = self.class_of(part)?;
        if !classes.contains(&class) {
            return Err(self.unsupported(part, &classes.join(" or "), class));
        }
        if !self.files.has_folder(part) {
            let error = Error::new("missing part").at(self.files.place(part));
            return Err(error
                .expected(format!("a folder with the {class} that model_index.json names"))
                .found("no folder"));
        }
        Ok(class)
    }

    /// A part's config and where it is.
    pub fn config(&self, part: &str, classes: &[&str]) -> Result<(Value, String)> {
        self.check_part(part, classes)?;
        let path = format!("{part}/config.json");
        Ok((self.files.json(&path)?, self.files.place(&path)))
    }

    /// A part's tensors.
    pub fn source(
        &self,
        part: &str,
        stem: &str,
        map: impl Fn(&str) -> Option<(String, Change)>,
    ) -> Result<Box<dyn Source>> {
        if let Some(seed) = self.seed {
            return Ok(Box::new(RandomSource::on_demand(seed)));
        }
        let files = self.files.weights(part, stem)?;
        let place = if files.len() == 1 { files[0].place().to_string() } else { self.files.place(part) };
        let mut source = FileSource::new(place);
        for file in &files {
            source.add_all(file, &map)?;
        }
        Ok(Box::new(source))
    }

    /// The files of a CLIP tokenizer.
    pub fn tokenizer(&self, part: &str) -> Result<TokenizerFiles> {
        if self.seed.is_some() {
            return Ok(TokenizerFiles::Clip { pad_token: "<|endoftext|>" });
        }
        self.check_part(part, &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        tokenizer_files(self.files, part)
    }

    /// The config of the scheduler in the folder `part`, under the class that the index names.
    pub fn scheduler(&self, part: &str) -> Result<Value> {
        let class = self.class_of(part)?;
        let path = format!("{part}/scheduler_config.json");
        let mut config = self.files.json(&path)?;
        match config.as_object_mut() {
            Some(object) => object.insert("_class_name".into(), class.into()),
            None => return Err(Error::new("broken file").at(self.files.place(&path)).expected("a JSON object")),
        };
        Ok(config)
    }
}

/// The files of a CLIP tokenizer in `folder`.
pub(super) fn tokenizer_files(files: &Files, folder: &str) -> Result<TokenizerFiles> {
    const WANTED: [&str; 6] = [
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ];
    let names = files.list(folder);
    let has = |name: &str| names.iter().any(|n| n == name);
    let complete = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
    if !complete {
        let error = Error::new("missing tokenizer").at(files.place(folder)).found(listing(&names));
        return Err(error.expected("tokenizer.json, or vocab.json and merges.txt"));
    }
    let path = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    let mut found = BTreeMap::new();
    for name in WANTED.into_iter().filter(|name| has(name)) {
        found.insert(name.to_string(), files.read(&path(name))?);
    }
    Ok(TokenizerFiles::Folder { place: files.place(folder), files: found })
}
