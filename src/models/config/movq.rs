//! The config of a MoVQ (arXiv:2209.09002): diffusers' `VQModel` with spatial norms.

use serde_json::{Value, json};

use super::fields::Fields;
use super::vae;
use crate::error::{Error, Result};

/// Groups of every norm of the decoder, whatever `norm_num_groups` says, which is about the encoder (diffusers `SpatialNorm`).
pub const MOVQ_GROUPS: usize = 32;

/// The latent's decoder, and what names the encoder's tensors have.
///
/// Defaults and meanings: `diffusers.VQModel.__init__` (0.42.1). Every norm has epsilon 1e-6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovqConfig {
    /// Channels of the latent, and of a code.
    pub latent_channels: usize,
    /// Channels of each level, from the outermost inwards.
    pub block_out_channels: Vec<usize>,
    /// Resnets of each of the encoder's levels; the decoder has one more.
    pub layers_per_block: usize,
    /// Whether the resnets of a decoder's block are each followed by attention, from the innermost outwards.
    pub attention: Vec<bool>,
    /// The same of the encoder's blocks, from the outermost inwards.
    pub encoder_attention: Vec<bool>,
    /// Attention in the middle block, of either.
    pub mid_block_add_attention: bool,
}

impl MovqConfig {
    /// Reads a `config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// A model without spatial norms; blocks and channels that scumble or diffusers cannot run.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &[json!("VQModel")])?;
        fields.neutral("act_fn", &[json!("silu"), json!("swish")])?;
        fields.neutral("lookup_from_codebook", &[json!(false)])?;
        fields.neutral("out_channels", &[json!(3)])?;
        if fields.word("norm_type", "group")? != "spatial" {
            return Err(fields.unsupported("norm_type", "\"spatial\""));
        }
        let block_out_channels = fields.counts("block_out_channels", &[64])?;
        let levels = block_out_channels.len();
        let blocks = |name: &str, plain: &str, attending: &str| {
            let read = |word: &str| match word {
                _ if word == plain => Some(false),
                _ if word == attending => Some(true),
                _ => None,
            };
            let expected = format!("\"{plain}\" or \"{attending}\" for each of the {levels} `block_out_channels`");
            let found = fields.words(name, &[plain], read, &expected)?;
            if found.len() == levels { Ok(found) } else { Err(fields.unsupported(name, &expected)) }
        };
        let latent_channels = fields.count("latent_channels", 3)?;
        let code_channels = fields.optional_count("vq_embed_dim")?.unwrap_or(latent_channels);
        let config = Self {
            latent_channels,
            layers_per_block: fields.layers("layers_per_block", 1)?,
            attention: blocks("up_block_types", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")?,
            encoder_attention: blocks("down_block_types", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")?,
            mid_block_add_attention: fields.flag("mid_block_add_attention", true)?,
            block_out_channels,
        };
        if code_channels != latent_channels {
            // The norms read a code and are made for a latent (diffusers `Decoder`).
            return Err(fields.unsupported("vq_embed_dim", &format!("{latent_channels}, as `latent_channels`")));
        }
        let odd = config.block_out_channels.iter().find(|channels| !channels.is_multiple_of(MOVQ_GROUPS));
        match odd {
            Some(channels) => Err(Error::new("config")
                .at(format!("{place}: `block_out_channels`"))
                .expected(format!("multiples of {MOVQ_GROUPS}, the groups of a spatial norm"))
                .found(channels)),
            None => Ok(config),
        }
    }

    /// Pixels per side of a latent pixel: 2 to the number of upsamplings.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The names of everything that turns pictures into latents, which drawing from text leaves alone: the encoder,
    /// `quant_conv` and the codebook.
    pub fn encoder_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            ["quantize.embedding.weight", "quant_conv.weight", "quant_conv.bias"].map(str::to_owned).into();
        let mut layer = |path: &str| names.extend(["weight", "bias"].map(|kind| format!("encoder.{path}.{kind}")));
        layer("conv_in");
        let mut channels = self.block_out_channels[0];
        let last = self.block_out_channels.len() - 1;
        for (level, (&out, &attends)) in self.block_out_channels.iter().zip(&self.encoder_attention).enumerate() {
            let block = format!("down_blocks.{level}");
            for index in 0..self.layers_per_block {
                vae::resnet(&mut layer, &format!("{block}.resnets.{index}"), channels != out);
                channels = out;
                if attends {
                    attention(&mut layer, &format!("{block}.attentions.{index}"));
                }
            }
            if level != last {
                layer(&format!("{block}.downsamplers.0.conv"));
            }
        }
        vae::resnet(&mut layer, "mid_block.resnets.0", false);
        vae::resnet(&mut layer, "mid_block.resnets.1", false);
        if self.mid_block_add_attention {
            attention(&mut layer, "mid_block.attentions.0");
        }
        layer("conv_norm_out");
        layer("conv_out");
        names
    }
}

/// The layers of an attention.
fn attention(layer: &mut impl FnMut(&str), path: &str) {
    for part in ["group_norm", "to_q", "to_k", "to_v", "to_out.0"] {
        layer(&format!("{path}.{part}"));
    }
}
