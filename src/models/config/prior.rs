//! The configs of diffusers' `PriorTransformer` and `UnCLIPTextProjModel`.

use serde_json::Value;

use super::fields::Fields;
use crate::error::Result;
use crate::kernels::elementwise::Activation;

/// The transformer of unCLIP that makes a picture's embedding of a text's: that of Karlo and that of Kandinsky 2.
///
/// Defaults and meanings: `diffusers.PriorTransformer.__init__` (0.42.1).
#[derive(Debug, Clone, PartialEq)]
pub struct PriorConfig {
    /// Attention heads.
    pub head_count: usize,
    /// Channels of a head.
    pub head_width: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the picture's embedding, and of the text's vectors where they are projected.
    pub embedding_dim: usize,
    /// Text vectors.
    pub text_tokens: usize,
    /// Width of the text's embedding.
    pub text_embedding_dim: usize,
    /// Width of the predicted embedding.
    pub predicted_dim: usize,
    /// Width between the two layers of the time embedding.
    pub time_embed_dim: usize,
    /// Between the two layers of the time embedding.
    pub time_act: Activation,
    /// A LayerNorm on all tokens ahead of the blocks.
    pub norm_in: bool,
    /// A LayerNorm on the text's embedding ahead of its projection.
    pub norm_text_embedding: bool,
    /// Text vectors are projected; else they have the width of the tokens.
    pub project_text: bool,
    /// The prediction is read off a token of its own (`prd`), else off that of the noisy embedding.
    pub own_token: bool,
}

impl PriorConfig {
    /// Reads a `config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// Values that diffusers refuses, or that make token counts which its mask does not fit.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &["PriorTransformer".into()])?;
        let embedding_dim = fields.count("embedding_dim", 768)?;
        let (head_count, head_width) =
            (fields.count("num_attention_heads", 32)?, fields.count("attention_head_dim", 64)?);
        // diffusers distinguishes an explicit null from what is absent.
        let project_text = match fields.word("encoder_hid_proj_type", "linear")? {
            _ if fields.is_null("encoder_hid_proj_type") => false,
            "linear" => true,
            _ => return Err(fields.unsupported("encoder_hid_proj_type", "\"linear\" or null")),
        };
        let own_token = match fields.word("added_emb_type", "prd")? {
            _ if fields.is_null("added_emb_type") => false,
            "prd" => true,
            _ => return Err(fields.unsupported("added_emb_type", "\"prd\" or null")),
        };
        let additional = 3 + usize::from(own_token);
        if fields.count("additional_embeddings", 4)? != additional {
            let reason = format!("{additional}, as many as there are tokens beside the text's vectors");
            return Err(fields.unsupported("additional_embeddings", &reason));
        }
        let time_act = match fields.word("time_embed_act_fn", "silu")?.to_lowercase().as_str() {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            _ => return Err(fields.unsupported("time_embed_act_fn", "\"silu\", \"swish\", \"gelu\" or \"relu\"")),
        };
        Ok(Self {
            head_count,
            head_width,
            layers: fields.layers("num_layers", 20)?,
            embedding_dim,
            text_tokens: fields.count("num_embeddings", 77)?,
            text_embedding_dim: fields.count("embedding_proj_dim", embedding_dim)?,
            predicted_dim: fields.count("clip_embed_dim", embedding_dim)?,
            time_embed_dim: fields.count("time_embed_dim", head_count * head_width)?,
            time_act,
            norm_in: layer_norm(&fields, "norm_in_type")?,
            norm_text_embedding: layer_norm(&fields, "embedding_proj_norm_type")?,
            project_text,
            own_token,
        })
    }

    /// Channels of a token.
    pub fn width(&self) -> usize {
        self.head_count * self.head_width
    }

    /// All tokens: text vectors, text embedding, timestep, noisy embedding, and perhaps the prediction's own.
    pub fn tokens(&self) -> usize {
        self.text_tokens + 3 + usize::from(self.own_token)
    }

    /// Width of the text vectors that are given.
    pub fn text_width(&self) -> usize {
        if self.project_text { self.embedding_dim } else { self.width() }
    }
}

/// Whether a norm is there.
fn layer_norm(fields: &Fields<'_>, name: &str) -> Result<bool> {
    match fields.get(name).map(|kind| kind.as_str().unwrap_or("")) {
        None => Ok(false),
        Some("layer") => Ok(true),
        Some(_) => Err(fields.unsupported(name, "\"layer\" or null")),
    }
}

/// What makes of a text's and a picture's embedding what Karlo's decoder reads.
///
/// Defaults and meanings: `diffusers.pipelines.deprecated.unclip.text_proj.UnCLIPTextProjModel.__init__` (0.42.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextProjConfig {
    /// Vectors made of the picture's embedding, ahead of the text's.
    pub extra_tokens: usize,
    /// Width of embeddings and text vectors.
    pub clip_dim: usize,
    /// Width of the decoder's time embedding.
    pub time_embed_dim: usize,
    /// Width of the vectors that the decoder's attention reads.
    pub cross_attention_dim: usize,
}

impl TextProjConfig {
    /// Reads a `config.json`; `place` names it in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &["UnCLIPTextProjModel".into()])?;
        Ok(Self {
            extra_tokens: fields.count("clip_extra_context_tokens", 4)?,
            clip_dim: fields.count("clip_embeddings_dim", 768)?,
            time_embed_dim: fields.count("time_embed_dim", None)?,
            cross_attention_dim: fields.count("cross_attention_dim", None)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<PriorConfig> {
        PriorConfig::from_json(value, "prior/config.json")
    }

    #[test]
    fn defaults_are_diffusers() {
        let config = read(&json!({})).unwrap();
        assert_eq!((config.width(), config.tokens(), config.text_width(), config.layers), (2048, 81, 768, 20));
        assert_eq!((config.time_embed_dim, config.text_embedding_dim, config.predicted_dim), (2048, 768, 768));
        assert!(config.project_text && config.own_token && !config.norm_in && !config.norm_text_embedding);
    }

    #[test]
    fn null_is_not_absent() {
        let config = json!({"encoder_hid_proj_type": null, "added_emb_type": null, "additional_embeddings": 3});
        let config = read(&config).unwrap();
        assert!(!config.project_text && !config.own_token);
        assert_eq!((config.text_width(), config.tokens()), (2048, 80));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (name, value) in [
            ("added_emb_type", json!("other")),
            ("additional_embeddings", json!(3)),
            ("embedding_proj_norm_type", json!("rms")),
            ("encoder_hid_proj_type", json!("mlp")),
            ("norm_in_type", json!("batch")),
            ("num_attention_heads", json!(0)),
            ("time_embed_act_fn", json!("mish")),
            ("num_layers", json!(100_000)),
        ] {
            let error = read(&json!({ name: value })).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let error = TextProjConfig::from_json(&json!({"time_embed_dim": 8}), "text_proj").unwrap_err().to_string();
        assert!(error.contains("cross_attention_dim"), "{error}");
    }
}
