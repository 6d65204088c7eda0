//! Checkpoints in diffusers layout: `model_index.json` names the parts, each in its folder with a config.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::checkpoint::{Checkpoint, Part, PipelineClass, TextEncoderPart, TokenizerFiles};
use super::file_source::{Change, FileSource};
use super::files::{Files, listing};
use super::{RandomSource, Source, keys};
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, UnetConfig, VaeConfig};

/// The stem of weights that diffusers writes.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// The stem of weights that transformers writes.
const TRANSFORMERS_STEM: &str = "model";

/// `model_index.json` and where it is.
struct Index<'a> {
    files: &'a Files,
    parts: Map<String, Value>,
    place: String,
    /// Weights are drawn from this seed instead of being read; tokenizers are not looked for.
    seed: Option<u64>,
}

/// Opens the checkpoint whose files are `files`.
pub(super) fn open(files: &Files, name: String) -> Result<Checkpoint> {
    open_index(&read_index(files)?, name)
}

/// Opens the configs among `files` with random weights and CLIP's vocabulary.
pub(super) fn open_random(files: &Files, name: String, seed: u64) -> Result<Checkpoint> {
    open_index(&Index { seed: Some(seed), ..read_index(files)? }, name)
}

fn open_index(index: &Index<'_>, name: String) -> Result<Checkpoint> {
    let class = index.pipeline_class()?;
    index.refuse_unknown_parts(class)?;
    if index.flag("requires_aesthetics_score", false)? {
        return Err(Error::new("unsupported model")
            .at(&index.place)
            .expected("a base model")
            .found("a refiner (`requires_aesthetics_score`)"));
    }
    let (unet_config, unet_place) = index.config("unet", &["UNet2DConditionModel"])?;
    let (vae_config, vae_place) = index.config("vae", &["AutoencoderKL"])?;
    let vae_config = VaeConfig::from_json(&vae_config, &vae_place)?;
    let text_encoders = match class {
        PipelineClass::StableDiffusionXl => vec![index.text_encoder("")?, index.text_encoder("_2")?],
        _ => vec![index.text_encoder("")?],
    };
    let unet = Part {
        config: UnetConfig::from_json(&unet_config, &unet_place)?,
        weights: index.source("unet", DIFFUSERS_STEM, keys::unet)?,
    };
    let encoder: HashSet<String> = vae_config.encoder_names().into_iter().collect();
    let decoder = |stored: &str| keys::vae(stored).filter(|(name, _)| !encoder.contains(name));
    let vae = Part { weights: index.source("vae", DIFFUSERS_STEM, decoder)?, config: vae_config };
    let checkpoint = Checkpoint {
        name,
        class,
        text_encoders,
        unet,
        vae,
        scheduler: index.scheduler()?,
        force_zeros_for_empty_prompt: index
            .flag("force_zeros_for_empty_prompt", class == PipelineClass::StableDiffusionXl)?,
        requires_aesthetics_score: false,
        recommended: None,
        files: if index.seed.is_some() { Vec::new() } else { index.files.weights("unet", DIFFUSERS_STEM)? },
    };
    checkpoint.check_fit(&index.place)
}

/// Reads `model_index.json`, or says what the directory holds instead.
fn read_index(files: &Files) -> Result<Index<'_>> {
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
    fn unsupported(&self, field: &str, expected: &str, found: &str) -> Error {
        let place = format!("{}: `{field}`", self.place);
        Error::new("unsupported model").at(place).expected(expected).found(found)
    }

    fn pipeline_class(&self) -> Result<PipelineClass> {
        use PipelineClass::{LatentConsistency, StableDiffusion, StableDiffusionXl};
        let all = [StableDiffusion, StableDiffusionXl, LatentConsistency];
        let found = self.parts.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
        all.into_iter()
            .find(|class| class.name() == found)
            .ok_or_else(|| self.unsupported("_class_name", &all.map(PipelineClass::name).join(", "), found))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.parts.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.unsupported(name, "true or false", &value.to_string())),
        }
    }

    /// Errors for a part that takes part in drawing and that scumble does not know.
    fn refuse_unknown_parts(&self, class: PipelineClass) -> Result<()> {
        const KNOWN: [&str; 9] = [
            "unet",
            "vae",
            "text_encoder",
            "tokenizer",
            "scheduler",
            // Checks and converts pictures, before or after drawing; the last is only used with picture prompts.
            "safety_checker",
            "feature_extractor",
            "image_encoder",
            "watermark",
        ];
        let second = class == PipelineClass::StableDiffusionXl;
        for (name, value) in &self.parts {
            let null = value.as_array().is_some_and(|pair| pair.iter().all(Value::is_null));
            let known =
                KNOWN.contains(&name.as_str()) || (second && ["text_encoder_2", "tokenizer_2"].contains(&&**name));
            if value.is_array() && !null && !known {
                return Err(self.unsupported(name, "no such part", &value.to_string()));
            }
        }
        Ok(())
    }

    /// The class of a part; an error if the index does not name one.
    fn class_of(&self, part: &str) -> Result<&str> {
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
    fn check_part(&self, part: &str, classes: &[&str]) -> Result<&str> {
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
    fn config(&self, part: &str, classes: &[&str]) -> Result<(Value, String)> {
        self.check_part(part, classes)?;
        let path = format!("{part}/config.json");
        Ok((self.files.json(&path)?, self.files.place(&path)))
    }

    /// A part's tensors.
    fn source(
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

    /// The text encoder and tokenizer with this suffix ("" or "_2").
    fn text_encoder(&self, suffix: &str) -> Result<TextEncoderPart> {
        let part = format!("text_encoder{suffix}");
        let projects = suffix == "_2";
        self.check_part(&part, &[if projects { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }])?;
        let path = format!("{part}/config.json");
        Ok(TextEncoderPart {
            config: ClipConfig::from_json(&self.files.json(&path)?, projects, &self.files.place(&path))?,
            weights: self.source(&part, TRANSFORMERS_STEM, |stored| keys::text_encoder(stored, projects))?,
            tokenizer: self.tokenizer(&format!("tokenizer{suffix}"))?,
        })
    }

    fn tokenizer(&self, part: &str) -> Result<TokenizerFiles> {
        const WANTED: [&str; 6] = [
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ];
        if self.seed.is_some() {
            return Ok(TokenizerFiles::Clip { pad_token: "<|endoftext|>" });
        }
        self.check_part(part, &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        let names = self.files.list(part);
        let has = |name: &str| names.iter().any(|n| n == name);
        let complete = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
        if !complete {
            let error = Error::new("missing tokenizer").at(self.files.place(part)).found(listing(&names));
            return Err(error.expected("tokenizer.json, or vocab.json and merges.txt"));
        }
        let mut files = BTreeMap::new();
        for name in WANTED.into_iter().filter(|name| has(name)) {
            files.insert(name.to_string(), self.files.read(&format!("{part}/{name}"))?);
        }
        Ok(TokenizerFiles::Folder { place: self.files.place(part), files })
    }

    /// The scheduler's config under the class that the index names.
    fn scheduler(&self) -> Result<Value> {
        const PART: &str = "scheduler";
        let class = self.class_of(PART)?;
        let path = format!("{PART}/scheduler_config.json");
        let mut config = self.files.json(&path)?;
        match config.as_object_mut() {
            Some(object) => object.insert("_class_name".into(), class.into()),
            None => return Err(Error::new("broken file").at(self.files.place(&path)).expected("a JSON object")),
        };
        Ok(config)
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
