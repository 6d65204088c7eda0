//! The configs of diffusers' `UNet2DConditionModel` and `UNet2DModel`.

use serde_json::{Value, json};

use super::fields::Fields;
pub use super::unet_blocks::{Block, BlockKind, MidBlock, MidKind};
use super::unet_blocks::{Blocks, blocks};
pub use super::unet_conditioning::{Addition, ClassEmbedding, CrossNorm, HiddenProjection, TextTimeConfig};
use super::unet_conditioning::{addition, class_embedding, cross_norm, hidden_projection, text_time};
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;

/// A UNet over latents or pictures: those of Stable Diffusion, DeepFloyd IF, Karlo, Kandinsky and the x4 upscaler.
///
/// Defaults and meanings: `diffusers.UNet2DConditionModel.__init__` and `diffusers.UNet2DModel.__init__` (0.42.1).
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Height and width of the sample the model was trained for; pipelines take the default picture size from it.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the sample.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Time embedding as [cos | sin] instead of [sin | cos].
    pub flip_sin_to_cos: bool,
    /// Subtracted from the half width in the time embedding's frequencies.
    pub freq_shift: f64,
    /// Width of the time embedding after its MLP.
    pub time_embed_dim: usize,
    /// Between the two layers of the time embedding, and of a class embedding of a timestep.
    pub embed_act: Activation,
    /// Behind the time embedding's layers (`timestep_post_act`).
    pub time_post_act: Activation,
    /// On the sum of all embeddings (`time_embedding_act_fn`).
    pub time_act: Activation,
    /// Width of the guidance embedding that is added before the time MLP (LCM's `time_embedding.cond_proj`).
    pub time_cond_proj_dim: Option<usize>,
    /// The class embedding that is added to the time embedding.
    pub class: Option<ClassEmbedding>,
    /// SDXL's added conditioning by pooled text and picture sizes.
    pub text_time: Option<TextTimeConfig>,
    /// Added conditioning by the text's or a picture's vectors.
    pub addition: Option<Addition>,
    /// What makes the vectors for cross-attention of those that are given.
    pub hidden: Option<HiddenProjection>,
    /// Channels of each level, from the outermost (largest) inwards.
    pub block_out_channels: Vec<usize>,
    /// The blocks on the way down, outermost first.
    pub down: Vec<Block>,
    /// The block in the middle.
    pub mid: Option<MidBlock>,
    /// The blocks on the way up, innermost first.
    pub up: Vec<Block>,
    /// Width of the vectors that cross-attention reads; 0 where there is no cross-attention.
    pub cross_attention_dim: usize,
    /// How `SimpleCrossAttention` normalises these vectors.
    pub cross_norm: Option<CrossNorm>,
    /// Projections around the transformer blocks are linear layers (after flattening) instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Attention scores need f32.
    pub upcast_attention: bool,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Epsilon of the resnets' and the last GroupNorm (those before attention use 1e-6 or 1e-5).
    pub norm_eps: f64,
    /// Within the resnets, and on the time embedding in front of their projections.
    pub act: Activation,
    /// Behind the last GroupNorm.
    pub out_act: Activation,
    /// The time embedding scales and shifts within a resnet, instead of being added.
    pub scale_shift: bool,
    /// The resnets of `Resnet` and `SimpleCrossAttention` blocks take the time embedding without an activation.
    pub skip_time_act: bool,
    /// What the results of the resnets of `Resnet` and `SimpleCrossAttention` blocks are divided by.
    pub resnet_scale: f64,
    /// What the results of the middle block's resnets are divided by.
    pub mid_scale: f64,
}

impl UnetConfig {
    /// Reads a `config.json`; `place` names it in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &[json!("UNet2DConditionModel"), json!("UNet2DModel")])?;
        let conditional = fields.get("_class_name").is_none_or(|name| name != "UNet2DModel");
        refuse_unimplemented(&fields, conditional)?;
        let default: [usize; 4] = if conditional { [320, 640, 1280, 1280] } else { [224, 448, 672, 896] };
        let block_out_channels = fields.counts("block_out_channels", &default)?;
        let levels = block_out_channels.len();
        let Blocks { down, mid, up } = blocks(&fields, &block_out_channels, conditional)?;
        let channels = if conditional { 4 } else { 3 };
        let act = activation(&fields, "act_fn")?.unwrap_or(Activation::Silu);
        let always = |act: Activation| if conditional { act } else { Activation::Silu };
        let cross_attention_dim = if conditional { cross_attention_dim(&fields, levels)? } else { 0 };
        let hidden = if conditional { hidden_projection(&fields)? } else { None };
        let text = match hidden {
            None => Some(cross_attention_dim),
            Some(HiddenProjection::Text { width } | HiddenProjection::TextImage { width }) => Some(width),
            Some(HiddenProjection::Image { .. }) => None,
        };
        let config = Self {
            sample_size: sample_size(&fields)?,
            in_channels: fields.count("in_channels", channels)?,
            out_channels: fields.count("out_channels", channels)?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            freq_shift: fields.number("freq_shift", 0.0)?,
            time_embed_dim: fields.count("time_embedding_dim", 4 * block_out_channels[0])?,
            embed_act: always(act),
            time_post_act: activation(&fields, "timestep_post_act")?.unwrap_or(Activation::None),
            time_act: activation(&fields, "time_embedding_act_fn")?.unwrap_or(Activation::None),
            time_cond_proj_dim: fields.optional_count("time_cond_proj_dim")?,
            class: class_embedding(&fields)?,
            text_time: text_time(&fields)?,
            addition: addition(&fields, text)?,
            hidden,
            down,
            mid,
            up,
            cross_attention_dim,
            cross_norm: cross_norm(&fields)?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            upcast_attention: fields.flag("upcast_attention", false)?,
            norm_num_groups: norm_num_groups(&fields)?,
            norm_eps: fields.positive("norm_eps", 1e-5)?,
            act,
            out_act: always(act),
            scale_shift: scale_shift(&fields)?,
            skip_time_act: conditional && fields.flag("resnet_skip_time_act", false)?,
            resnet_scale: if conditional { fields.positive("resnet_out_scale_factor", 1.0)? } else { 1.0 },
            mid_scale: fields.positive("mid_block_scale_factor", 1.0)?,
            block_out_channels,
        };
        config.check_divisibility(&fields, place)?;
        Ok(config)
    }

    /// Width of the text vectors that the UNet takes, if it takes any.
    pub fn text_width(&self) -> Option<usize> {
        let reads = self.reads_text().then_some(self.cross_attention_dim);
        match self.hidden {
            None => reads.or(matches!(self.addition, Some(Addition::Text { .. })).then_some(self.cross_attention_dim)),
            Some(HiddenProjection::Text { width } | HiddenProjection::TextImage { width }) => Some(width),
            Some(HiddenProjection::Image { .. }) => None,
        }
    }

    /// Width of a picture's embedding that the UNet takes, if it takes one.
    pub fn image_width(&self) -> Option<usize> {
        match (self.hidden, self.addition) {
            (Some(HiddenProjection::Image { width }), _) => Some(width),
            (Some(HiddenProjection::TextImage { .. }), _) | (_, Some(Addition::TextImage)) => {
                Some(self.cross_attention_dim)
            }
            // diffusers calls the width of the picture's embedding that of the encoder's vectors.
            (Some(HiddenProjection::Text { width }), Some(Addition::Image)) => Some(width),
            _ => None,
        }
    }

    /// Heads of every block on the way down.
    pub fn head_counts(&self) -> Vec<usize> {
        self.down.iter().map(|block| block.head_count).collect()
    }

    /// The same with the heads of another UNet of as many blocks.
    #[must_use]
    pub fn with_heads_of(&self, other: &Self) -> Self {
        let mut same = self.clone();
        let heads = other.down.iter().chain(&other.up).map(|block| block.head_count);
        same.down.iter_mut().chain(&mut same.up).zip(heads).for_each(|(block, count)| block.head_count = count);
        if let (Some(mine), Some(theirs)) = (&mut same.mid, other.mid) {
            mine.head_count = theirs.head_count;
        }
        same
    }

    /// Whether some block reads the text.
    pub fn reads_text(&self) -> bool {
        let mid =
            self.mid.is_some_and(|mid| matches!(mid.kind, MidKind::CrossAttention | MidKind::SimpleCrossAttention));
        mid || self.down.iter().chain(&self.up).any(|block| block.kind.reads_text())
    }

    /// Groups must divide the channels of every level, and what cross-attention normalises.
    fn check_divisibility(&self, fields: &Fields<'_>, place: &str) -> Result<()> {
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if !channels.is_multiple_of(self.norm_num_groups) {
                let error = Error::new("config").at(format!("{place}: `norm_num_groups`")).found(self.norm_num_groups);
                return Err(error.expected(format!("a divisor of level {level}'s {channels} channels")));
            }
        }
        let simple = |block: &&Block| block.kind == BlockKind::SimpleCrossAttention;
        let mut widths: Vec<usize> = self.down.iter().chain(&self.up).filter(simple).map(|b| b.channels).collect();
        if self.mid.is_some_and(|mid| mid.kind == MidKind::SimpleCrossAttention) {
            widths.extend(self.block_out_channels.last());
        }
        let dim = self.cross_attention_dim;
        match self.cross_norm {
            Some(CrossNorm::Group) if !widths.is_empty() && !dim.is_multiple_of(32) => {
                Err(fields.unsupported("cross_attention_norm", &format!("32 groups to divide the {dim} channels")))
            }
            // diffusers makes this norm as wide as the block.
            Some(CrossNorm::Layer) if widths.iter().any(|width| *width != dim) => Err(fields.unsupported(
                "cross_attention_norm",
                &format!("\"group_norm\", as not all blocks have the text vectors' {dim} channels"),
            )),
            _ if self.block_out_channels[0] < 2 => {
                let error = Error::new("config").at(format!("{place}: `block_out_channels`"));
                Err(error.expected("a first entry of 2 or more").found(self.block_out_channels[0]))
            }
            _ => Ok(()),
        }
    }
}

/// Errors for every field with a value that changes the computation in a way that is not implemented.
fn refuse_unimplemented(fields: &Fields<'_>, conditional: bool) -> Result<()> {
    for (name, accepted) in [
        ("center_input_sample", json!([false])),
        ("downsample_padding", json!([1])),
        ("time_embedding_type", json!(["positional"])),
    ] {
        fields.neutral(name, accepted.as_array().map_or(&[], Vec::as_slice))?;
    }
    if !conditional {
        return Ok(());
    }
    for (name, accepted) in [
        ("attention_type", json!(["default"])),
        ("class_embeddings_concat", json!([false])),
        ("conv_in_kernel", json!([3])),
        ("conv_out_kernel", json!([3])),
        ("dual_cross_attention", json!([false])),
        ("num_attention_heads", json!([])),
    ] {
        fields.neutral(name, accepted.as_array().map_or(&[], Vec::as_slice))?;
    }
    Ok(())
}

/// An activation by diffusers' word for it.
fn activation(fields: &Fields<'_>, name: &str) -> Result<Option<Activation>> {
    match fields.get(name).map(|word| word.as_str().unwrap_or("").to_lowercase()).as_deref() {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu") => Ok(Some(Activation::Gelu)),
        Some(_) => Err(fields.unsupported(name, "\"silu\", \"swish\" or \"gelu\"")),
    }
}

fn scale_shift(fields: &Fields<'_>) -> Result<bool> {
    const NAME: &str = "resnet_time_scale_shift";
    match fields.word(NAME, "default")? {
        "default" => Ok(false),
        "scale_shift" => Ok(true),
        _ => Err(fields.unsupported(NAME, "\"default\" or \"scale_shift\"")),
    }
}

/// A side of a square or [height, width].
fn sample_size(fields: &Fields<'_>) -> Result<Option<[usize; 2]>> {
    match fields.get("sample_size") {
        None => Ok(None),
        Some(Value::Array(_)) => match fields.counts("sample_size", &[])?[..] {
            [height, width] => Ok(Some([height, width])),
            _ => Err(fields.unsupported("sample_size", "a side, or height and width")),
        },
        Some(_) => fields.count("sample_size", None).map(|side| Some([side, side])),
    }
}

/// One width for all levels.
fn cross_attention_dim(fields: &Fields<'_>, levels: usize) -> Result<usize> {
    let widths = fields.per_level("cross_attention_dim", 1280, levels)?;
    if widths.iter().all(|width| *width == widths[0]) {
        Ok(widths[0])
    } else {
        Err(fields.unsupported("cross_attention_dim", "the same width for every level"))
    }
}

fn norm_num_groups(fields: &Fields<'_>) -> Result<usize> {
    if fields.is_null("norm_num_groups") {
        return Err(fields.unsupported("norm_num_groups", "a positive integer"));
    }
    fields.count("norm_num_groups", 32)
}

#[cfg(test)]
#[path = "unet_tests.rs"]
mod tests;
