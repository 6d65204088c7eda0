//! The config of DALL-E mini (dalle-mini's `DalleBartConfig`), or what a checkpoint's shapes tell of it.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::models::config::Activation;
use crate::weights::Source;

/// The channels of a head in both published models, which their files without a config do not tell.
const HEAD_WIDTH: usize = 64;
/// More tokens than any model has in a text or a picture are a corrupt file.
const MOST_TOKENS: usize = 1 << 14;

/// The encoder's or the decoder's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DalleLayers {
    /// How many.
    pub count: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// A LayerNorm behind the last.
    pub final_norm: bool,
}

/// The text encoder and the generator of image tokens of DALL-E mini and mega.
///
/// Defaults and meanings: `DalleBartConfig.__init__` (borisdayma/dalle-mini at f0be4de,
/// `src/dalle_mini/model/configuration.py`). Every LayerNorm has epsilon 1e-5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DalleConfig {
    /// Rows of the encoder's token table.
    pub text_vocabulary: usize,
    /// Rows of the decoder's token table and of its logits: the image tokens, and one more.
    pub image_rows: usize,
    /// Text tokens, padding included.
    pub text_length: usize,
    /// Image tokens of a picture, a square number.
    pub image_length: usize,
    /// Width of the vectors.
    pub width: usize,
    /// The encoder.
    pub encoder: DalleLayers,
    /// The decoder.
    pub decoder: DalleLayers,
    /// Gates in the feed-forward part.
    pub gated: bool,
    /// Biases in attention and feed-forward layers.
    pub bias: bool,
    /// The activation of the feed-forward part.
    pub activation: Activation,
    /// What the decoder reads first; `None` where the number of codes is it.
    pub start_token: Option<u32>,
    /// Whether prompts go through dalle-mini's text normaliser.
    pub normalize_text: bool,
}

impl DalleConfig {
    /// Reads a `config.json`; `place` names the file in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("model_type", &[json!("dallebart")])?;
        for (name, only) in [
            ("ln_type", json!("layernorm")),
            ("ln_positions", json!("normformer")),
            ("use_absolute_position_embeddings", json!(true)),
            ("sinkhorn_iters", json!(1)),
        ] {
            fields.neutral(name, &[only])?;
        }
        for name in [
            "use_head_scale",
            "use_cosine_attention",
            "use_swin_position_embeddings",
            "use_deepnet_scaling",
            "use_alibi",
            "scale_embedding",
            "tie_word_embeddings",
        ] {
            fields.neutral(name, &[json!(false)])?;
        }
        let activation = match fields.word("activation_function", "gelu")? {
            "gelu" => Activation::Gelu,
            "quick_gelu" => Activation::QuickGelu,
            _ => return Err(fields.unsupported("activation_function", "\"gelu\" or \"quick_gelu\"")),
        };
        let gated = fields.flag("use_glu", true)?;
        if gated && activation != Activation::Gelu {
            return Err(fields.unsupported("activation_function", "\"gelu\", which the gates are made with"));
        }
        let layers = |part: &str| -> Result<DalleLayers> {
            Ok(DalleLayers {
                count: fields.layers(&format!("{part}_layers"), 12)?,
                heads: fields.count(&format!("{part}_attention_heads"), 16)?,
                feed_forward: fields.count(&format!("{part}_ffn_dim"), 4096)?,
                final_norm: fields.flag(&format!("use_final_ln_{part}"), true)?,
            })
        };
        let image_vocabulary = fields.count("image_vocab_size", 16384)?;
        let start = fields.get("decoder_start_token_id").map(|id| {
            let id = id.as_u64().filter(|id| *id <= image_vocabulary as u64);
            id.map(|id| id as u32)
                .ok_or_else(|| fields.unsupported("decoder_start_token_id", "a row of the token table"))
        });
        Self {
            text_vocabulary: fields.count("encoder_vocab_size", 50264)?,
            image_rows: image_vocabulary + 1,
            text_length: fields.count("max_text_length", 64)?,
            image_length: fields.count("image_length", 256)?,
            width: fields.count("d_model", 1024)?,
            encoder: layers("encoder")?,
            decoder: layers("decoder")?,
            gated,
            bias: fields.flag("use_bias", false)?,
            activation,
            start_token: Some(start.transpose()?.unwrap_or(image_vocabulary as u32)),
            normalize_text: fields.flag("normalize_text", false)?,
        }
        .checked(place)
    }

    /// What the shapes of the tensors tell; heads are 64 wide, as in both published models.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing.
    pub fn from_shapes(encoder: &dyn Source, decoder: &dyn Source) -> Result<Self> {
        let shape = |source: &dyn Source, name: &str| match source.info(name).map(|info| info.shape) {
            Some(shape) if shape.len() == 2 => Ok([shape[0], shape[1]]),
            _ => Err(crate::weights::missing_key_error(&source.describe(), name, &source.names())),
        };
        let [text_vocabulary, width] = shape(encoder, "embed_tokens.weight")?;
        let place = encoder.describe();
        if !width.is_multiple_of(HEAD_WIDTH) {
            return Err(Error::new("the number of attention heads is not known")
                .at(place)
                .expected(format!("a config.json, or vectors of a multiple of {HEAD_WIDTH} channels"))
                .found(width));
        }
        let layers = |source: &dyn Source| -> Result<DalleLayers> {
            let names = source.names();
            let numbers = names.iter().filter_map(|name| name.strip_prefix("layers.")?.split('.').next()?.parse().ok());
            Ok(DalleLayers {
                count: numbers.max().map_or(0, |last: usize| last + 1).min(256),
                heads: width / HEAD_WIDTH,
                feed_forward: shape(source, "layers.0.glu.fc0.weight")?[0],
                final_norm: true,
            })
        };
        Self {
            text_vocabulary,
            image_rows: shape(decoder, "embed_tokens.weight")?[0],
            text_length: shape(encoder, "embed_positions.weight")?[0],
            image_length: shape(decoder, "embed_positions.weight")?[0],
            width,
            encoder: layers(encoder)?,
            decoder: layers(decoder)?,
            gated: true,
            bias: false,
            activation: Activation::Gelu,
            start_token: None,
            normalize_text: false,
        }
        .checked(&place)
    }

    /// Image tokens per side of the picture.
    pub fn side(&self) -> usize {
        self.image_length.isqrt()
    }

    fn checked(self, place: &str) -> Result<Self> {
        let fault = |what: String, expected: String, found: usize| {
            Err(Error::new("config").at(format!("{place}: {what}")).expected(expected).found(found))
        };
        if self.side().pow(2) != self.image_length || self.image_length > MOST_TOKENS {
            return fault("`image_length`".into(), format!("a square number up to {MOST_TOKENS}"), self.image_length);
        }
        for (part, layers) in [("encoder", &self.encoder), ("decoder", &self.decoder)] {
            if !self.width.is_multiple_of(layers.heads) {
                let expected = format!("a divisor of `d_model` {}", self.width);
                return fault(format!("`{part}_attention_heads`"), expected, layers.heads);
            }
        }
        if !(3..=MOST_TOKENS).contains(&self.text_length) {
            return fault("`max_text_length`".into(), format!("3 to {MOST_TOKENS} tokens"), self.text_length);
        }
        Ok(self)
    }
}
