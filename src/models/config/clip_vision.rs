//! The configs of transformers' `CLIPVisionModelWithProjection` and of a whole `CLIPModel`.

use serde_json::{Value, json};

use super::clip::{Activation, ClipConfig};
use super::fields::Fields;
use crate::error::{Error, Result};

/// CLIP's picture encoder.
///
/// Defaults and meanings: `transformers.CLIPVisionConfig` (5.24).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    /// Width of the vectors.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub head_count: usize,
    /// Height and width of the pictures in pixels.
    pub image_size: usize,
    /// Height and width in pixels of the patches that become tokens; what is left at a picture's end is not looked at.
    pub patch_size: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Width of the projected vector.
    pub projection_dim: usize,
}

impl ClipVisionConfig {
    /// Reads a `config.json`, flat or with the fields in `vision_config`; `place` names the file in errors.
    ///
    /// # Errors
    /// A field that scumble does not implement.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let outer = Fields::new(config, place)?;
        let fields = match outer.get("vision_config") {
            Some(inner) => Fields::new(inner, place)?,
            None => outer,
        };
        fields.neutral("model_type", &["clip_vision_model", "clip"].map(|word| json!(word)))?;
        fields.neutral("num_channels", &[json!(3)])?;
        let activation = Activation::read(&fields)?;
        let config = Self {
            hidden_size: fields.count("hidden_size", 768)?,
            intermediate_size: fields.count("intermediate_size", 3072)?,
            num_layers: fields.layers("num_hidden_layers", 12)?,
            head_count: fields.count("num_attention_heads", 12)?,
            image_size: fields.count("image_size", 224)?,
            patch_size: fields.count("patch_size", 32)?,
            activation,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            projection_dim: fields.count("projection_dim", 512)?,
        };
        config.check(place)?;
        Ok(config)
    }

    fn check(&self, place: &str) -> Result<()> {
        let wrong = |field: &str, expected: String, found: usize| {
            Err(Error::new("config").at(format!("{place}: `{field}`")).expected(expected).found(found))
        };
        if !self.hidden_size.is_multiple_of(self.head_count) {
            let expected = format!("a divisor of `hidden_size` {}", self.hidden_size);
            return wrong("num_attention_heads", expected, self.head_count);
        }
        if self.patch_size > self.image_size {
            return wrong("patch_size", format!("at most `image_size` {}", self.image_size), self.patch_size);
        }
        if self.image_size / self.patch_size > MOST_PATCHES {
            let expected = format!("at most {MOST_PATCHES} patches of {} pixels a side", self.patch_size);
            return wrong("image_size", expected, self.image_size);
        }
        Ok(())
    }

    /// Patches along a side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of a picture: one for each patch behind the one that is pooled.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + 1
    }
}

/// More patches along a side than any model's are a corrupt file.
const MOST_PATCHES: usize = 256;

/// A whole CLIP: texts and pictures to vectors of one space.
///
/// Defaults and meanings: `transformers.CLIPConfig` (5.24).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipModelConfig {
    /// The text encoder, with projection.
    pub text: ClipConfig,
    /// The picture encoder.
    pub vision: ClipVisionConfig,
}

impl ClipModelConfig {
    /// Reads a `config.json`; `place` names the file in errors. Where there is a `text_config_dict` (`vision_config_dict`), it
    /// takes the place of `text_config` (`vision_config`), as in transformers. The width of the common space is the outer
    /// `projection_dim`.
    ///
    /// # Errors
    /// A field that scumble does not implement.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let outer = Fields::new(config, place)?;
        outer.neutral("model_type", &[json!("clip")])?;
        let width = outer.count("projection_dim", 512)?;
        let inner = |name: &str| -> Result<Value> {
            let found = outer.get(&format!("{name}_config_dict")).or_else(|| outer.get(&format!("{name}_config")));
            let mut fields = match found {
                None => json!({}),
                Some(found) if found.is_object() => found.clone(),
                Some(_) => return Err(outer.unsupported(&format!("{name}_config"), "a JSON object")),
            };
            fields["projection_dim"] = width.into();
            Ok(fields)
        };
        Ok(Self {
            text: ClipConfig::from_json(&inner("text")?, true, &format!("{place}: text_config"))?,
            vision: ClipVisionConfig::from_json(&inner("vision")?, &format!("{place}: vision_config"))?,
        })
    }
}

#[cfg(test)]
#[path = "clip_vision_tests.rs"]
mod tests;
