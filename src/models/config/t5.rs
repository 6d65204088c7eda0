//! The config of transformers' `T5EncoderModel`.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;

/// T5's text encoder.
///
/// Defaults and meanings: `transformers.T5Config` (5.23).
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Width of the vectors.
    pub width: usize,
    /// Channels of an attention head.
    pub head_width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// Layers.
    pub layers: usize,
    /// Buckets of relative positions.
    pub buckets: usize,
    /// The distance from which on all fall into the last bucket.
    pub max_distance: usize,
    /// Added to the mean of squares of every RMSNorm.
    pub eps: f64,
    /// Of the feed-forward part, or of its gates.
    pub activation: Activation,
    /// Whether the feed-forward part has gates.
    pub gated: bool,
}

impl T5Config {
    /// Reads a `config.json`; `place` names the file in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("model_type", &[json!("t5")])?;
        let word = fields.word("feed_forward_proj", "relu")?;
        let (gated, name) = match word.strip_prefix("gated-") {
            Some(name) => (true, name),
            None => (false, word),
        };
        // transformers takes gated-gelu as the GELU by tanh.
        let activation = match (gated, name) {
            (true, "gelu") | (_, "gelu_new") => Activation::GeluTanh,
            (_, "relu") => Activation::Relu,
            (_, "silu" | "swish") => Activation::Silu,
            (false, "gelu") => Activation::Gelu,
            _ => return Err(fields.unsupported("feed_forward_proj", "relu, gelu, gelu_new or silu, perhaps gated-")),
        };
        let config = Self {
            vocabulary: fields.count("vocab_size", 32128)?,
            width: fields.count("d_model", 512)?,
            head_width: fields.count("d_kv", 64)?,
            heads: fields.count("num_heads", 8)?,
            feed_forward: fields.count("d_ff", 2048)?,
            layers: fields.layers("num_layers", 6)?,
            buckets: fields.count("relative_attention_num_buckets", 32)?,
            max_distance: fields.count("relative_attention_max_distance", 128)?,
            eps: fields.positive("layer_norm_epsilon", 1e-6)?,
            activation,
            gated,
        };
        let exact = config.buckets / 4;
        if exact == 0 || config.max_distance <= exact {
            return Err(Error::new("config")
                .at(format!("{place}: `relative_attention_num_buckets`"))
                .expected("at least 4 buckets, a quarter of them below the largest distance")
                .found(format!("{} buckets, distance {}", config.buckets, config.max_distance)));
        }
        Ok(config)
    }
}
