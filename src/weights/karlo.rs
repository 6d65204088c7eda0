//! Opening Karlo: a diffusers directory of `UnCLIPPipeline`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::Part;
use super::files::Files;
use super::index::{DIFFUSERS_STEM, Index, read_index};
use super::keys;
use super::prior::{PriorPart, prior_part};
use crate::error::{Error, Result};
use crate::models::config::{ClassEmbedding, TextProjConfig, UnetConfig};

/// Karlo, opened: configs read and checked, weights mapped but not touched.
pub struct KarloCheckpoint {
    /// The directory's name.
    pub name: String,
    /// Text -> a picture's embedding.
    pub prior: PriorPart,
    /// Embeddings and text -> what the decoder reads.
    pub text_proj: Part<TextProjConfig>,
    /// The UNet that draws the small picture.
    pub decoder: Part<UnetConfig>,
    /// The decoder's scheduler.
    pub decoder_scheduler: Value,
    /// The UNets that enlarge it: of all steps but the last, and of the last.
    pub super_resolution: [Part<UnetConfig>; 2],
    /// Their scheduler.
    pub super_resolution_scheduler: Value,
    /// The files of the decoder's tensors, by which the model is identified.
    pub files: Vec<PathBuf>,
}

const SUPER_RESOLUTION: [&str; 2] = ["super_res_first", "super_res_last"];

impl KarloCheckpoint {
    /// Opens the directory at `path`. Headers are read; tensors are not.
    ///
    /// # Errors
    /// Missing or broken files, a config that scumble does not implement, parts that do not fit each other.
    pub fn open(path: &Path) -> Result<Self> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self::from_index(&read_index(&Files::Directory(path.to_path_buf()))?, name)
    }

    /// The same with random weights of this seed and CLIP's vocabulary: only configs are read.
    ///
    /// # Errors
    /// As [`KarloCheckpoint::open`].
    pub fn open_random(path: &Path, seed: u64) -> Result<Self> {
        let files = Files::Directory(path.to_path_buf());
        Self::from_index(&Index { seed: Some(seed), ..read_index(&files)? }, "random".to_owned())
    }

    fn from_index(index: &Index<'_>, name: String) -> Result<Self> {
        if index.class_name() != "UnCLIPPipeline" {
            return Err(index.unsupported("_class_name", "UnCLIPPipeline", index.class_name()));
        }
        let mut known = vec!["prior", "text_encoder", "tokenizer", "text_proj", "decoder"];
        known.extend(SUPER_RESOLUTION);
        known.extend(["prior_scheduler", "decoder_scheduler", "super_res_scheduler"]);
        index.refuse_parts_but(&known)?;
        let prior = prior_part(index, "prior_scheduler")?;
        let (config, place) = index.config("text_proj", &["UnCLIPTextProjModel"])?;
        let text_proj = Part {
            config: TextProjConfig::from_json(&config, &place)?,
            weights: index.source("text_proj", DIFFUSERS_STEM, keys::unet)?,
        };
        check_text_proj(&text_proj.config, &prior, &place)?;
        let (config, place) = index.config("decoder", &["UNet2DConditionModel"])?;
        let decoder = Part {
            config: UnetConfig::from_json(&config, &place)?,
            weights: index.source("decoder", DIFFUSERS_STEM, keys::unet)?,
        };
        check_decoder(&decoder.config, &text_proj.config, &place)?;
        let [first, last] = SUPER_RESOLUTION.map(|part| super_resolution(index, part));
        let super_resolution = [first?, last?];
        check_alike(&super_resolution, &index.place)?;
        Ok(Self {
            name,
            prior,
            text_proj,
            decoder,
            decoder_scheduler: index.scheduler("decoder_scheduler")?,
            super_resolution,
            super_resolution_scheduler: index.scheduler("super_res_scheduler")?,
            files: paths(index)?,
        })
    }
}

fn paths(index: &Index<'_>) -> Result<Vec<PathBuf>> {
    if index.seed.is_some() {
        return Ok(Vec::new());
    }
    Ok(index.files.weights("decoder", DIFFUSERS_STEM)?.iter().map(|file| file.place().into()).collect())
}

fn super_resolution(index: &Index<'_>, part: &str) -> Result<Part<UnetConfig>> {
    let (config, place) = index.config(part, &["UNet2DModel"])?;
    let config = UnetConfig::from_json(&config, &place)?;
    let fits =
        [("in_channels", 6, config.in_channels == 6), ("out_channels", 3, [3, 6].contains(&config.out_channels))];
    for (field, expected, fits) in fits {
        if !fits {
            let found = if field == "in_channels" { config.in_channels } else { config.out_channels };
            return Err(wrong(&place, field, expected, found));
        }
    }
    if config.class.is_some() {
        return Err(wrong(&place, "class_embed_type", "null, as nothing is told beside the timestep", "another"));
    }
    Ok(Part { config, weights: index.source(part, DIFFUSERS_STEM, keys::unet)? })
}

fn wrong(place: &str, field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::new("unsupported config").at(format!("{place}: `{field}`")).expected(expected).found(found)
}

/// One sample goes through both.
fn check_alike([first, last]: &[Part<UnetConfig>; 2], place: &str) -> Result<()> {
    let [wanted, found] = [first, last].map(|part| part.config.out_channels);
    if wanted == found {
        return Ok(());
    }
    Err(wrong(place, "super_res_last", format!("{wanted} output channels, as super_res_first has"), found))
}

/// Embeddings and text vectors have one width here.
fn check_text_proj(config: &TextProjConfig, prior: &PriorPart, place: &str) -> Result<()> {
    let made = [prior.prior.config.embedding_dim, prior.text.config.hidden_size];
    let made = made.into_iter().chain(prior.text.config.projection_dim).find(|width| *width != config.clip_dim);
    match made {
        None => Ok(()),
        Some(width) => {
            let expected = format!("{width}, the width of the text's and the picture's vectors");
            Err(wrong(place, "clip_embeddings_dim", expected, config.clip_dim))
        }
    }
}

/// What the pipeline gives the decoder: a picture, text vectors, and a vector for its time embedding.
fn check_decoder(config: &UnetConfig, given: &TextProjConfig, place: &str) -> Result<()> {
    if config.in_channels != 3 {
        return Err(wrong(place, "in_channels", 3, config.in_channels));
    }
    if config.out_channels != 6 {
        return Err(wrong(place, "out_channels", "6, colours and a variance of each", config.out_channels));
    }
    if !matches!(config.class, Some(ClassEmbedding::Identity)) {
        return Err(wrong(place, "class_embed_type", "identity", format!("{:?}", config.class)));
    }
    if config.time_embed_dim != given.time_embed_dim {
        return Err(wrong(place, "time_embedding_dim", given.time_embed_dim, config.time_embed_dim));
    }
    if config.image_width().is_some() || config.text_time.is_some() || config.addition.is_some() {
        return Err(wrong(place, "addition_embed_type", "null", "another"));
    }
    match config.text_width() {
        Some(width) if width == given.cross_attention_dim => Ok(()),
        found => Err(wrong(place, "cross_attention_dim", given.cross_attention_dim, found.unwrap_or(0))),
    }
}
