//! Opening Kandinsky 2.2: diffusers directories of `KandinskyV22Pipeline`, and of `KandinskyV22PriorPipeline` beside it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::Part;
use super::clip;
use super::files::Files;
use super::index::{DIFFUSERS_STEM, Index, TRANSFORMERS_STEM, read_index};
use super::keys;
use super::prior::{PriorPart, prior_part};
use crate::error::{Error, Result};
use crate::models::config::{Addition, ClipVisionConfig, HiddenProjection, MovqConfig, UnetConfig};

/// The class of a directory with the prior.
pub const PRIOR_CLASS: &str = "KandinskyV22PriorPipeline";
const DECODER_CLASS: &str = "KandinskyV22Pipeline";

/// Kandinsky 2.2, opened: configs read and checked, weights mapped but not touched.
pub struct KandinskyCheckpoint {
    /// The directory's name.
    pub name: String,
    /// Text -> a picture's embedding.
    pub prior: PriorPart,
    /// A picture -> its embedding: what guidance leads away from is that of a black one.
    pub image_encoder: Part<ClipVisionConfig>,
    /// A picture's embedding -> the latent.
    pub unet: Part<UnetConfig>,
    /// The latent's decoder. Its source leaves out the encoder, whose names were checked.
    pub movq: Part<MovqConfig>,
    /// The UNet's scheduler.
    pub scheduler: Value,
    /// The files of the UNet's tensors, by which the model is identified.
    pub files: Vec<PathBuf>,
}

impl KandinskyCheckpoint {
    /// Opens the directory at `path` with the prior at `prior`. Headers are read; tensors are not.
    ///
    /// # Errors
    /// No prior; missing or broken files, a config that scumble does not implement, parts that do not fit each other.
    pub fn open(path: &Path, prior: Option<&Path>) -> Result<Self> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let Some(prior) = prior else {
            return Err(Error::usage("Kandinsky 2.2 without a prior")
                .at("--prior")
                .expected(format!("the directory of a {PRIOR_CLASS}"))
                .found("nothing")
                .hint(format!("-m {} --prior DIR", path.display())));
        };
        let [decoder, prior] = [path, prior].map(|path| Files::Directory(path.to_path_buf()));
        Self::from_indices(&read_index(&decoder)?, &read_prior(&prior)?, name)
    }

    fn from_indices(index: &Index<'_>, prior: &Index<'_>, name: String) -> Result<Self> {
        if index.class_name() != DECODER_CLASS {
            return Err(index.unsupported("_class_name", DECODER_CLASS, index.class_name()));
        }
        index.refuse_parts_but(&["unet", "movq", "scheduler"])?;
        // The processor prepares given pictures.
        prior.refuse_parts_but(&[
            "prior",
            "image_encoder",
            "text_encoder",
            "tokenizer",
            "scheduler",
            "image_processor",
        ])?;
        let part = prior_part(prior, "scheduler")?;
        let (config, place) = prior.config("image_encoder", &["CLIPVisionModelWithProjection"])?;
        let image_encoder = Part {
            config: ClipVisionConfig::from_json(&config, &place)?,
            weights: prior.source("image_encoder", TRANSFORMERS_STEM, clip::name)?,
        };
        let width = part.prior.config.embedding_dim;
        if image_encoder.config.projection_dim != width {
            let expected = format!("{width}, the width of the prior's embeddings");
            return Err(wrong(&place, "projection_dim", expected, image_encoder.config.projection_dim));
        }
        let (config, place) = index.config("unet", &["UNet2DConditionModel"])?;
        let unet = Part {
            config: UnetConfig::from_json(&config, &place)?,
            weights: index.source("unet", DIFFUSERS_STEM, keys::unet)?,
        };
        let (config, movq_place) = index.config("movq", &["VQModel"])?;
        let config = MovqConfig::from_json(&config, &movq_place)?;
        check_unet(&unet.config, &config, width, &place)?;
        let encoder = config.encoder_names();
        let decoder = |stored: &str| keys::vae(stored).filter(|(name, _)| !encoder.contains(name));
        let movq = Part { weights: index.source("movq", DIFFUSERS_STEM, decoder)?, config };
        Ok(Self {
            name,
            prior: part,
            image_encoder,
            unet,
            movq,
            scheduler: index.scheduler("scheduler")?,
            files: index.files.weights("unet", DIFFUSERS_STEM)?.iter().map(|file| file.place().into()).collect(),
        })
    }
}

/// The index of the directory that `--prior` names.
fn read_prior(files: &Files) -> Result<Index<'_>> {
    let index = read_index(files).map_err(|error| error.hint("--prior with the directory of a prior"))?;
    match index.class_name() {
        PRIOR_CLASS => Ok(index),
        other => Err(Error::usage("not a prior of Kandinsky 2.2")
            .at(format!("--prior: {}: `_class_name`", index.place))
            .expected(PRIOR_CLASS)
            .found(other)
            .hint("the directory beside the decoder's, kandinsky-2-2-prior or the like")),
    }
}

fn wrong(place: &str, field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::new("unsupported config").at(format!("{place}: `{field}`")).expected(expected).found(found)
}

/// What the pipeline gives the UNet: a latent and a picture's embedding; and what it takes of it: a latent and a variance.
fn check_unet(config: &UnetConfig, movq: &MovqConfig, width: usize, place: &str) -> Result<()> {
    let channels = movq.latent_channels;
    if config.in_channels != channels {
        return Err(wrong(place, "in_channels", format!("{channels}, MoVQ's latent channels"), config.in_channels));
    }
    if config.out_channels != 2 * channels {
        return Err(wrong(
            place,
            "out_channels",
            format!("{}, a latent and its variance", 2 * channels),
            config.out_channels,
        ));
    }
    match config.hidden {
        Some(HiddenProjection::Image { width: found }) if found == width => {}
        Some(HiddenProjection::Image { width: found }) => {
            return Err(wrong(
                place,
                "encoder_hid_dim",
                format!("{width}, the width of the prior's embeddings"),
                found,
            ));
        }
        other => return Err(wrong(place, "encoder_hid_dim_type", "image_proj", format!("{other:?}"))),
    }
    match config.addition {
        None | Some(Addition::Image) => {}
        Some(other) => return Err(wrong(place, "addition_embed_type", "image", format!("{other:?}"))),
    }
    let other = [("class_embed_type", config.class.is_some()), ("addition_embed_type", config.text_time.is_some())];
    match other.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => Err(wrong(place, field, "a UNet that reads a picture's embedding alone", "another input")),
    }
}
