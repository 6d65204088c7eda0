//! unCLIP's prior with the text encoder that it reads, as Karlo and Kandinsky 2.2 keep them.

use serde_json::Value;

use super::checkpoint::{Part, TextEncoderPart};
use super::index::{DIFFUSERS_STEM, Index, TRANSFORMERS_STEM};
use super::keys;
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, PriorConfig};

/// A prior, and what it is asked with.
pub struct PriorPart {
    /// The transformer.
    pub prior: Part<PriorConfig>,
    /// CLIP's text encoder with its projection, and the tokenizer.
    pub text: TextEncoderPart,
    /// The scheduler's config.
    pub scheduler: Value,
}

/// Opens the parts `prior`, `text_encoder` and `tokenizer`, and the scheduler in the folder `scheduler`.
pub(super) fn prior_part(index: &Index<'_>, scheduler: &str) -> Result<PriorPart> {
    let (config, text_place) = index.config("text_encoder", &["CLIPTextModelWithProjection"])?;
    let text = TextEncoderPart {
        config: ClipConfig::from_json(&config, true, &text_place)?,
        weights: index.source("text_encoder", TRANSFORMERS_STEM, |stored| keys::text_encoder(stored, true))?,
        tokenizer: index.tokenizer("tokenizer")?,
    };
    let (config, place) = index.config("prior", &["PriorTransformer"])?;
    let prior = Part {
        config: PriorConfig::from_json(&config, &place)?,
        weights: index.source("prior", DIFFUSERS_STEM, keys::prior)?,
    };
    check_fit(&prior.config, &text.config, &place)?;
    Ok(PriorPart { prior, text, scheduler: index.scheduler(scheduler)? })
}

/// The prior must take what the text encoder makes, and predict what it is asked with.
fn check_fit(prior: &PriorConfig, text: &ClipConfig, place: &str) -> Result<()> {
    let projection = text.projection_dim.unwrap_or(text.hidden_size);
    let pairs = [
        ("embedding_dim", "the width of the text encoder's vectors", prior.text_width(), text.hidden_size),
        ("embedding_proj_dim", "the width of the text encoder's projection", prior.text_embedding_dim, projection),
        ("num_embeddings", "the text encoder's places", prior.text_tokens, text.max_positions),
        ("clip_embed_dim", "the width of the noisy embedding", prior.predicted_dim, prior.embedding_dim),
    ];
    match pairs.into_iter().find(|(_, _, has, wanted)| has != wanted) {
        None => Ok(()),
        Some((field, what, has, wanted)) => Err(Error::new("prior and text encoder do not fit each other")
            .at(format!("{place}: `{field}`"))
            .expected(format!("{wanted}, {what}"))
            .found(has)),
    }
}
