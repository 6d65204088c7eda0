//! The config of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};

/// The activation of an encoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * Phi(x)`, by erf.
    Gelu,
}

impl Activation {
    /// The field `hidden_act`.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        match fields.word("hidden_act", "quick_gelu")? {
            "quick_gelu" => Ok(Self::QuickGelu),
            "gelu" => Ok(Self::Gelu),
            _ => Err(fields.unsupported("hidden_act", "\"quick_gelu\" or \"gelu\"")),
        }
    }
}

/// A CLIP or OpenCLIP text encoder.
///
/// Defaults and meanings: `transformers.CLIPTextConfig` (5.23).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Width of the vectors.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub head_count: usize,
    /// Rows of the position table: tokens per chunk.
    pub max_positions: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Width of the pooled, projected vector; `None` for an encoder without projection.
    pub projection_dim: Option<usize>,
    /// The end token of pooling. 2 means "the largest id of the prompt", as in transformers (old published configs).
    pub eos_token_id: u32,
    /// The start token, if given.
    pub bos_token_id: Option<u32>,
    /// The padding token, if given (the tokenizer decides, not this).
    pub pad_token_id: Option<u32>,
}

impl ClipConfig {
    /// Reads a `config.json`, flat or with the fields in `text_config`; `with_projection` is what distinguishes the two
    /// classes, `place` names the file in errors.
    pub fn from_json(config: &Value, with_projection: bool, place: &str) -> Result<Self> {
        let outer = Fields::new(config, place)?;
        let fields = match outer.get("text_config") {
            Some(inner) => Fields::new(inner, place)?,
            None => outer,
        };
        fields.neutral("model_type", &["clip_text_model", "clip"].map(|word| json!(word)))?;
        let activation = Activation::read(&fields)?;
        let token = |name: &str, default: u32| match fields.get(name) {
            None if fields.is_null(name) => Ok(None),
            None => Ok(Some(default)),
            Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(fields.unsupported(name, "a token id")),
            },
        };
        let projection_dim = fields.count("projection_dim", 512)?;
        let config = Self {
            vocab_size: fields.count("vocab_size", 49408)?,
            hidden_size: fields.count("hidden_size", 512)?,
            intermediate_size: fields.count("intermediate_size", 2048)?,
            num_layers: fields.layers("num_hidden_layers", 12)?,
            head_count: fields.count("num_attention_heads", 8)?,
            max_positions: fields.count("max_position_embeddings", 77)?,
            activation,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            projection_dim: with_projection.then_some(projection_dim),
            eos_token_id: token("eos_token_id", 49407)?
                .ok_or_else(|| fields.unsupported("eos_token_id", "a token id"))?,
            bos_token_id: token("bos_token_id", 49406)?,
            pad_token_id: token("pad_token_id", 1)?,
        };
        if !config.hidden_size.is_multiple_of(config.head_count) {
            return Err(Error::new("config")
                .at(format!("{place}: `num_attention_heads`"))
                .expected(format!("a divisor of `hidden_size` {}", config.hidden_size))
                .found(config.head_count));
        }
        Ok(config)
    }
}

#[cfg(test)]
#[path = "clip_tests.rs"]
mod tests;
