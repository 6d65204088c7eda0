//! What a UNet takes beside the sample and the timestep, from the fields of its config.

use super::fields::Fields;
use crate::error::Result;

/// SDXL's added conditioning (`addition_embed_type` "text_time").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Width of the sinusoid of each of the size numbers.
    pub time_embed_dim: usize,
    /// Width of pooled text and sinusoids together, the input of `add_embedding.linear_1`.
    pub input_dim: usize,
}

/// What a class label becomes before it is added to the time embedding of width E (`class_embed_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// A row of the table `class_embedding.weight` [count, E] (`num_class_embeds`): the label is a whole number below the count.
    Table {
        /// Rows.
        count: usize,
    },
    /// "timestep": the label is a number, embedded as the timestep is, by layers of its own.
    Timestep,
    /// "identity": the label is a vector of E channels itself.
    Identity,
    /// "projection": the label is a vector, which two layers with SiLU between them project.
    Projection {
        /// The vector's width.
        inputs: usize,
    },
    /// "simple_projection": the label is a vector, which one layer projects.
    SimpleProjection {
        /// The vector's width.
        inputs: usize,
    },
}

/// What is added to the time embedding beside the class (`addition_embed_type`, without SDXL's, [`TextTimeConfig`]). It
/// depends on the prompt alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// "text": the text vectors, pooled by attention with this many heads (DeepFloyd IF).
    Text {
        /// Heads, a divisor of the text vectors' width.
        heads: usize,
    },
    /// "image": a picture's embedding (Kandinsky 2.2).
    Image,
    /// "text_image": the pooled text and a picture's embedding (Kandinsky 2.1).
    TextImage,
}

/// What makes the vectors that cross-attention reads (`encoder_hid_dim_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenProjection {
    /// "text_proj": a linear layer of the text vectors.
    Text {
        /// Width of the text vectors.
        width: usize,
    },
    /// "image_proj": 32 vectors of a picture's embedding (Kandinsky 2.2).
    Image {
        /// Width of the picture's embedding.
        width: usize,
    },
    /// "text_image_proj": ten vectors of a picture's embedding, and behind them the projected text vectors
    /// (Kandinsky 2.1).
    TextImage {
        /// Width of the text vectors; the picture's embedding is as wide as cross-attention.
        width: usize,
    },
}

/// How cross-attention of `SimpleCrossAttention` normalises the vectors that it reads (`cross_attention_norm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrossNorm {
    /// LayerNorm.
    Layer,
    /// GroupNorm over 32 groups of channels and all tokens.
    Group,
}

pub(super) fn text_time(fields: &Fields<'_>) -> Result<Option<TextTimeConfig>> {
    if fields.get("addition_embed_type").is_none_or(|kind| kind != "text_time") {
        return Ok(None);
    }
    let time_embed_dim = fields.count("addition_time_embed_dim", None)?;
    if time_embed_dim < 2 {
        return Err(fields.unsupported("addition_time_embed_dim", "2 or more"));
    }
    Ok(Some(TextTimeConfig { time_embed_dim, input_dim: fields.count("projection_class_embeddings_input_dim", None)? }))
}

/// The class embedding, whose kind `num_class_embeds` tells where `class_embed_type` does not.
pub(super) fn class_embedding(fields: &Fields<'_>) -> Result<Option<ClassEmbedding>> {
    const KINDS: &str = "\"timestep\", \"identity\", \"projection\", \"simple_projection\" or null";
    let Some(kind) = fields.get("class_embed_type") else {
        return Ok(fields.optional_count("num_class_embeds")?.map(|count| ClassEmbedding::Table { count }));
    };
    let inputs = || fields.count("projection_class_embeddings_input_dim", None);
    match kind.as_str() {
        Some("timestep") => Ok(Some(ClassEmbedding::Timestep)),
        Some("identity") => Ok(Some(ClassEmbedding::Identity)),
        Some("projection") => Ok(Some(ClassEmbedding::Projection { inputs: inputs()? })),
        Some("simple_projection") => Ok(Some(ClassEmbedding::SimpleProjection { inputs: inputs()? })),
        _ => Err(fields.unsupported("class_embed_type", KINDS)),
    }
}

/// SDXL's "text_time" is read by [`text_time`]. `text` is the width of the text vectors.
pub(super) fn addition(fields: &Fields<'_>, text: Option<usize>) -> Result<Option<Addition>> {
    const NAME: &str = "addition_embed_type";
    let Some(kind) = fields.get(NAME) else { return Ok(None) };
    match kind.as_str() {
        Some("text_time") => Ok(None),
        Some("text") => {
            const HEADS: &str = "addition_embed_type_num_heads";
            let heads = fields.count(HEADS, 64)?;
            match text {
                Some(width) if width.is_multiple_of(heads) => Ok(Some(Addition::Text { heads })),
                Some(width) => Err(fields.unsupported(HEADS, &format!("a divisor of the text vectors' {width}"))),
                None => Err(fields.unsupported(NAME, "\"image\", as there are no text vectors")),
            }
        }
        Some("image") if fields.get("encoder_hid_dim").is_none() => {
            Err(fields.unsupported("encoder_hid_dim", "the width of the picture's embedding"))
        }
        Some("image") => Ok(Some(Addition::Image)),
        Some("text_image") => Ok(Some(Addition::TextImage)),
        _ => Err(fields.unsupported(NAME, "\"text\", \"image\", \"text_image\", \"text_time\" or null")),
    }
}

pub(super) fn hidden_projection(fields: &Fields<'_>) -> Result<Option<HiddenProjection>> {
    const NAME: &str = "encoder_hid_dim_type";
    let kind = fields.get(NAME).map(|kind| kind.as_str().unwrap_or(""));
    let Some(width) = fields.optional_count("encoder_hid_dim")? else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(fields.unsupported("encoder_hid_dim", "a width, as there is an `encoder_hid_dim_type`")),
        };
    };
    match kind {
        None | Some("text_proj") => Ok(Some(HiddenProjection::Text { width })),
        Some("image_proj") => Ok(Some(HiddenProjection::Image { width })),
        Some("text_image_proj") => Ok(Some(HiddenProjection::TextImage { width })),
        _ => Err(fields.unsupported(NAME, "\"text_proj\", \"image_proj\", \"text_image_proj\" or null")),
    }
}

pub(super) fn cross_norm(fields: &Fields<'_>) -> Result<Option<CrossNorm>> {
    const NAME: &str = "cross_attention_norm";
    match fields.get(NAME).map(|kind| kind.as_str().unwrap_or("")) {
        None => Ok(None),
        Some("layer_norm") => Ok(Some(CrossNorm::Layer)),
        Some("group_norm") => Ok(Some(CrossNorm::Group)),
        Some(_) => Err(fields.unsupported(NAME, "\"layer_norm\", \"group_norm\" or null")),
    }
}
