//! The config of diffusers' `AutoencoderKL`.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};

/// The latent's decoder (and encoder, which drawing from text does not need). Lists go from the outermost level inwards.
///
/// Defaults and meanings: `diffusers.AutoencoderKL.__init__` (0.42.1). Every GroupNorm has epsilon 1e-6.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the picture.
    pub out_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Resnets of each of the encoder's levels; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// The decoder wants the latent divided by this.
    pub scaling_factor: f64,
    /// ... and this added afterwards.
    pub shift_factor: f64,
    /// f16 is not enough for this decoder.
    pub force_upcast: bool,
    /// A 1x1 convolution after the encoder.
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle block.
    pub mid_block_add_attention: bool,
}

impl VaeConfig {
    /// Reads a `config.json`; `place` names it in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &[json!("AutoencoderKL")])?;
        fields.neutral("act_fn", &[json!("silu"), json!("swish")])?;
        fields.neutral("latents_mean", &[])?;
        fields.neutral("latents_std", &[])?;
        let block_out_channels = fields.counts("block_out_channels", &[64])?;
        for (name, only) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let read = |word: &str| (word == only).then_some(());
            let expected = format!("\"{only}\" for each of the {} `block_out_channels`", block_out_channels.len());
            if fields.words(name, &[only], read, &expected)?.len() != block_out_channels.len() {
                return Err(fields.unsupported(name, &expected));
            }
        }
        if fields.is_null("norm_num_groups") {
            return Err(fields.unsupported("norm_num_groups", "a positive integer"));
        }
        let config = Self {
            out_channels: fields.count("out_channels", 3)?,
            latent_channels: fields.count("latent_channels", 4)?,
            layers_per_block: fields.layers("layers_per_block", 1)?,
            norm_num_groups: fields.count("norm_num_groups", 32)?,
            scaling_factor: fields.positive("scaling_factor", 0.18215)?,
            shift_factor: fields.number("shift_factor", 0.0)?,
            force_upcast: fields.flag("force_upcast", true)?,
            use_quant_conv: fields.flag("use_quant_conv", true)?,
            use_post_quant_conv: fields.flag("use_post_quant_conv", true)?,
            mid_block_add_attention: fields.flag("mid_block_add_attention", true)?,
            block_out_channels,
        };
        if config.out_channels != 3 {
            return Err(fields.unsupported("out_channels", "3"));
        }
        let odd = config.block_out_channels.iter().find(|c| !c.is_multiple_of(config.norm_num_groups));
        match odd {
            Some(channels) => Err(Error::new("config")
                .at(format!("{place}: `norm_num_groups`"))
                .expected(format!("a divisor of a level's {channels} channels"))
                .found(config.norm_num_groups)),
            None => Ok(config),
        }
    }

    /// Pixels per side of a latent pixel: 2 to the number of upsamplings.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The names of everything that turns pictures into latents (the encoder and `quant_conv`), which drawing from text
    /// leaves alone.
    pub fn encoder_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut layer = |path: &str| names.extend(["weight", "bias"].map(|kind| format!("encoder.{path}.{kind}")));
        let last = self.block_out_channels.len() - 1;
        layer("conv_in");
        let mut channels = self.block_out_channels[0];
        for (level, &out) in self.block_out_channels.iter().enumerate() {
            for index in 0..self.layers_per_block {
                let shortcut = channels != out;
                channels = out;
                resnet(&mut layer, &format!("down_blocks.{level}.resnets.{index}"), shortcut);
            }
            if level != last {
                layer(&format!("down_blocks.{level}.downsamplers.0.conv"));
            }
        }
        resnet(&mut layer, "mid_block.resnets.0", false);
        resnet(&mut layer, "mid_block.resnets.1", false);
        if self.mid_block_add_attention {
            for part in ["group_norm", "to_q", "to_k", "to_v", "to_out.0"] {
                layer(&format!("mid_block.attentions.0.{part}"));
            }
        }
        layer("conv_norm_out");
        layer("conv_out");
        if self.use_quant_conv {
            names.extend(["quant_conv.weight".to_string(), "quant_conv.bias".to_string()]);
        }
        names
    }
}

/// The layers of a resnet block.
pub(super) fn resnet(layer: &mut impl FnMut(&str), path: &str, shortcut: bool) {
    for part in ["norm1", "conv1", "norm2", "conv2"] {
        layer(&format!("{path}.{part}"));
    }
    if shortcut {
        layer(&format!("{path}.conv_shortcut"));
    }
}

#[cfg(test)]
#[path = "vae_tests.rs"]
mod tests;
