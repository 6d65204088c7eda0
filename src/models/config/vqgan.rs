//! The config of a VQGAN (vqgan-jax's `VQGANConfig`, taming-transformers), or what a decoder's shapes tell of it.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::weights::{Source, missing_key_error};

/// Groups of every GroupNorm.
pub const GROUPS: usize = 32;
/// Deeper or wider decoders than any model's are a corrupt file.
const MOST_LEVELS: usize = 8;
const MOST_CHANNELS: usize = 1 << 14;

/// The decoder of image tokens. Lists go from the outermost level inwards.
///
/// Defaults and meanings: `VQGANConfig.__init__` (patil-suraj/vqgan-jax at 10ef240, `vqgan_jax/configuration_vqgan.py`).
/// Every GroupNorm has 32 groups and epsilon 1e-6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VqganConfig {
    /// Codes of the codebook.
    pub codes: usize,
    /// Channels of a code.
    pub code_channels: usize,
    /// Channels between the codes and the decoder.
    pub latent_channels: usize,
    /// Channels of each level.
    pub channels: Vec<usize>,
    /// Resnets of each of the decoder's levels.
    pub blocks: usize,
    /// Whether a level's resnets are each followed by attention.
    pub attention: Vec<bool>,
}

impl VqganConfig {
    /// Reads a `config.json`; `place` names the file in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        for (name, only) in [("out_ch", json!(3)), ("resamp_with_conv", json!(true)), ("give_pre_end", json!(false))] {
            fields.neutral(name, &[only])?;
        }
        let multipliers = fields.counts("ch_mult", &[1, 1, 2, 2, 4])?;
        let levels = multipliers.len();
        let base = fields.count("ch", 128)?;
        let blocks = match fields.get("num_res_blocks").map(Value::as_u64) {
            None => 2,
            Some(Some(blocks)) if blocks < 64 => blocks as usize,
            Some(_) => return Err(fields.unsupported("num_res_blocks", "a count of blocks")),
        };
        let resolution = fields.count("resolution", 256)?;
        let sides = match fields.get("attn_resolutions") {
            None => vec![16],
            Some(Value::Array(list)) if list.is_empty() => vec![],
            Some(_) => fields.counts("attn_resolutions", &[])?,
        };
        Self {
            codes: fields.count("n_embed", 1024)?,
            code_channels: fields.count("embed_dim", 256)?,
            latent_channels: fields.count("z_channels", 256)?,
            channels: multipliers.iter().map(|factor| base * factor).collect(),
            blocks: blocks + 1,
            attention: (0..levels).map(|level| sides.contains(&(resolution >> level))).collect(),
        }
        .checked(place)
    }

    /// What the shapes of the tensors tell.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing.
    pub fn from_shapes(source: &dyn Source) -> Result<Self> {
        let shape = |name: &str| match source.info(name).map(|info| info.shape) {
            Some(shape) if shape.len() >= 2 => Ok([shape[0], shape[1]]),
            _ => Err(missing_key_error(&source.describe(), name, &source.names())),
        };
        let count =
            |start: &str| (0..16).take_while(|n| source.info(&format!("{start}{n}.conv1.weight")).is_some()).count();
        let levels =
            (0..16).take_while(|n| source.info(&format!("decoder.up.{n}.block.0.conv1.weight")).is_some()).count();
        let [codes, code_channels] = shape("embedding.weight")?;
        let [latent_channels, _] = shape("post_quant_conv.weight")?;
        let channels = (0..levels).map(|level| Ok(shape(&format!("decoder.up.{level}.block.0.conv1.weight"))?[0]));
        let attention = |level: usize| source.info(&format!("decoder.up.{level}.attn.0.to_q.weight")).is_some();
        Self {
            codes,
            code_channels,
            latent_channels,
            channels: channels.collect::<Result<_>>()?,
            blocks: count("decoder.up.0.block."),
            attention: (0..levels).map(attention).collect(),
        }
        .checked(&source.describe())
    }

    /// Pixels per side of a code: 2 to the number of upsamplings.
    pub fn scale(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    fn checked(self, place: &str) -> Result<Self> {
        let fault = |what: &str, expected: String, found: String| {
            Err(Error::new("config").at(format!("{place}: {what}")).expected(expected).found(found))
        };
        if self.channels.is_empty() || self.blocks == 0 {
            return fault("levels", "at least one, of at least one block".into(), "none".into());
        }
        if self.channels.len() > MOST_LEVELS {
            return fault("levels", format!("at most {MOST_LEVELS}"), self.channels.len().to_string());
        }
        let sound = |channels: &usize| channels.is_multiple_of(GROUPS) && (1..=MOST_CHANNELS).contains(channels);
        match self.channels.iter().find(|channels| !sound(channels)) {
            Some(channels) => {
                let expected = format!("a multiple of {GROUPS} up to {MOST_CHANNELS}");
                fault("channels of a level", expected, channels.to_string())
            }
            None => Ok(self),
        }
    }
}
