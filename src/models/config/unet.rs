//! The config of diffusers' `UNet2DConditionModel`.

use serde_json::{Value, json};

use super::fields::{Fields, count};
use crate::error::{Error, Result};

/// A latent UNet with cross-attention. Lists go from the outermost (largest) level inwards.
///
/// Defaults and meanings: `diffusers.UNet2DConditionModel.__init__` (0.42.1).
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Latent height and width the model was trained for; pipelines take the default picture size from it.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Time embedding as [cos | sin] instead of [sin | cos].
    pub flip_sin_to_cos: bool,
    /// Subtracted from the half width in the time embedding's frequencies.
    pub freq_shift: f64,
    /// Width of the time embedding after its MLP.
    pub time_embed_dim: usize,
    /// Width of the guidance embedding that is added before the time MLP (LCM's `time_embedding.cond_proj`).
    pub time_cond_proj_dim: Option<usize>,
    /// The class embedding that is added to the time embedding.
    pub class: Option<ClassEmbedding>,
    /// SDXL's added conditioning by pooled text and picture sizes.
    pub text_time: Option<TextTimeConfig>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Whether each level on the way down has attention (`CrossAttnDownBlock2D`).
    pub down_attention: Vec<bool>,
    /// Whether there is a middle block (resnet, attention, resnet).
    pub mid_block: bool,
    /// Whether each level on the way up has attention (`CrossAttnUpBlock2D`), in order of execution: innermost first.
    pub up_attention: Vec<bool>,
    /// Resnets of each level on the way down; on the way up there is one more.
    pub layers_per_block: Vec<usize>,
    /// Transformer blocks of each attention on the way down: `[level][layer]`.
    pub down_transformer_layers: Vec<Vec<usize>>,
    /// Transformer blocks of the middle block's attention.
    pub mid_transformer_layers: usize,
    /// Transformer blocks of each attention on the way up, in order of execution: `[level][layer]`.
    pub up_transformer_layers: Vec<Vec<usize>>,
    /// Attention heads of each level (diffusers calls it `attention_head_dim`).
    pub head_count: Vec<usize>,
    /// Whether the transformers of each level have cross-attention in the place of self-attention, too.
    pub only_cross_attention: Vec<bool>,
    /// Width of the text vectors.
    pub cross_attention_dim: usize,
    /// Projections around the transformer blocks are linear layers (after flattening) instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Attention scores need f32.
    pub upcast_attention: bool,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Epsilon of the resnets' and the last GroupNorm (those before attention use 1e-6).
    pub norm_eps: f64,
}

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
    /// "identity": the label is a vector [E] itself.
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

impl UnetConfig {
    /// Reads a `config.json`; `place` names it in errors.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        fields.neutral("_class_name", &[json!("UNet2DConditionModel")])?;
        refuse_unimplemented(&fields)?;
        let block_out_channels = fields.counts("block_out_channels", &[320, 640, 1280, 1280])?;
        let levels = block_out_channels.len();
        let down_attention = block_types(&fields, Direction::Down, levels)?;
        let up_attention = block_types(&fields, Direction::Up, levels)?;
        let layers_per_block = fields.per_level("layers_per_block", 2, levels)?;
        fields.few_layers("layers_per_block", &layers_per_block)?;
        let depth = transformer_layers(&fields, &layers_per_block)?;
        let mid_block = match fields.get("mid_block_type") {
            None => !fields.is_null("mid_block_type"),
            Some(value) if value == "UNetMidBlock2DCrossAttn" => true,
            Some(_) => return Err(fields.unsupported("mid_block_type", "\"UNetMidBlock2DCrossAttn\" or null")),
        };
        let time_embed_dim = fields.count("time_embedding_dim", 4 * block_out_channels[0])?;
        let config = Self {
            sample_size: sample_size(&fields)?,
            in_channels: fields.count("in_channels", 4)?,
            out_channels: fields.count("out_channels", 4)?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            freq_shift: fields.number("freq_shift", 0.0)?,
            time_embed_dim,
            time_cond_proj_dim: fields.optional_count("time_cond_proj_dim")?,
            class: class_embedding(&fields)?,
            text_time: text_time(&fields)?,
            down_attention,
            mid_block,
            up_attention,
            layers_per_block,
            down_transformer_layers: depth.down,
            mid_transformer_layers: depth.mid,
            up_transformer_layers: depth.up,
            head_count: fields.per_level("attention_head_dim", 8, levels)?,
            only_cross_attention: only_cross_attention(&fields, levels)?,
            cross_attention_dim: cross_attention_dim(&fields, levels)?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            upcast_attention: fields.flag("upcast_attention", false)?,
            norm_num_groups: norm_num_groups(&fields)?,
            norm_eps: fields.positive("norm_eps", 1e-5)?,
            block_out_channels,
        };
        config.check_divisibility(place)?;
        Ok(config)
    }

    /// Groups and heads must divide the channels of every level where they are used.
    fn check_divisibility(&self, place: &str) -> Result<()> {
        let levels = self.block_out_channels.len();
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let fault = |field: &str, divisor: usize| {
                let error = Error::new("config").at(format!("{place}: `{field}`")).found(divisor);
                error.expected(format!("a divisor of level {level}'s {channels} channels"))
            };
            if !channels.is_multiple_of(self.norm_num_groups) {
                return Err(fault("norm_num_groups", self.norm_num_groups));
            }
            let innermost = level + 1 == levels && self.mid_block;
            let attends = self.down_attention[level] || self.up_attention[levels - 1 - level] || innermost;
            if attends && !channels.is_multiple_of(self.head_count[level]) {
                return Err(fault("attention_head_dim", self.head_count[level]));
            }
        }
        if self.block_out_channels[0] < 2 {
            let error = Error::new("config").at(format!("{place}: `block_out_channels`"));
            return Err(error.expected("a first entry of 2 or more").found(self.block_out_channels[0]));
        }
        Ok(())
    }
}

/// Errors for every field with a value that changes the computation in a way that is not implemented.
fn refuse_unimplemented(fields: &Fields<'_>) -> Result<()> {
    for (name, accepted) in [
        ("act_fn", json!(["silu", "swish"])),
        ("addition_embed_type", json!(["text_time"])),
        ("attention_type", json!(["default"])),
        ("center_input_sample", json!([false])),
        ("class_embeddings_concat", json!([false])),
        ("conv_in_kernel", json!([3])),
        ("conv_out_kernel", json!([3])),
        ("cross_attention_norm", json!([])),
        ("downsample_padding", json!([1])),
        ("dual_cross_attention", json!([false])),
        ("encoder_hid_dim", json!([])),
        ("encoder_hid_dim_type", json!([])),
        ("mid_block_only_cross_attention", json!([false])),
        ("mid_block_scale_factor", json!([1])),
        ("num_attention_heads", json!([])),
        ("resnet_out_scale_factor", json!([1])),
        ("resnet_skip_time_act", json!([false])),
        ("resnet_time_scale_shift", json!(["default"])),
        ("time_embedding_act_fn", json!([])),
        ("time_embedding_type", json!(["positional"])),
        ("timestep_post_act", json!([])),
    ] {
        fields.neutral(name, accepted.as_array().map_or(&[], Vec::as_slice))?;
    }
    Ok(())
}

/// A flag for all levels, or one for each.
fn only_cross_attention(fields: &Fields<'_>, levels: usize) -> Result<Vec<bool>> {
    const NAME: &str = "only_cross_attention";
    match fields.get(NAME) {
        Some(Value::Array(list)) if list.len() == levels && list.iter().all(Value::is_boolean) => {
            Ok(list.iter().map(|value| value == true).collect())
        }
        Some(Value::Array(_)) => {
            Err(fields.unsupported(NAME, &format!("true or false, or a list of them for each of the {levels} levels")))
        }
        _ => Ok(vec![fields.flag(NAME, false)?; levels]),
    }
}

/// The class embedding, whose kind `num_class_embeds` tells where `class_embed_type` does not.
fn class_embedding(fields: &Fields<'_>) -> Result<Option<ClassEmbedding>> {
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

/// The two halves of the U.
#[derive(Clone, Copy)]
enum Direction {
    Down,
    Up,
}

/// Which blocks of one half have attention.
fn block_types(fields: &Fields<'_>, direction: Direction, levels: usize) -> Result<Vec<bool>> {
    let (name, with, without) = match direction {
        Direction::Down => ("down_block_types", "CrossAttnDownBlock2D", "DownBlock2D"),
        Direction::Up => ("up_block_types", "CrossAttnUpBlock2D", "UpBlock2D"),
    };
    let default = match direction {
        Direction::Down => [with, with, with, without],
        Direction::Up => [without, with, with, with],
    };
    let read = |word: &str| (word == with || word == without).then_some(word == with);
    let types = fields.words(name, &default, read, &format!("a list of \"{with}\" and \"{without}\""))?;
    if types.len() == levels {
        Ok(types)
    } else {
        Err(fields.unsupported(name, &format!("one entry for each of the {levels} `block_out_channels`")))
    }
}

/// Numbers of transformer blocks per attention.
struct TransformerLayers {
    down: Vec<Vec<usize>>,
    mid: usize,
    up: Vec<Vec<usize>>,
}

/// `transformer_layers_per_block` is a count, a list with a count per level, or (asymmetric models) a list of lists with
/// a count per layer, which needs `reverse_transformer_layers_per_block`.
fn transformer_layers(fields: &Fields<'_>, layers: &[usize]) -> Result<TransformerLayers> {
    const NAME: &str = "transformer_layers_per_block";
    const REVERSE: &str = "reverse_transformer_layers_per_block";
    let up_layers: Vec<usize> = layers.iter().rev().map(|n| n + 1).collect();
    let one = json!(1);
    let value = fields.get(NAME).unwrap_or(&one);
    let down = nested(fields, NAME, value, layers)?;
    let up = match fields.get(REVERSE) {
        Some(reverse) => nested(fields, REVERSE, reverse, &up_layers)?,
        None => match value {
            Value::Array(list) if list.iter().any(Value::is_array) => {
                return Err(fields.unsupported(REVERSE, "a list of lists, as `transformer_layers_per_block` is one"));
            }
            Value::Array(list) => {
                nested(fields, NAME, &Value::Array(list.iter().rev().cloned().collect()), &up_layers)?
            }
            value => nested(fields, NAME, value, &up_layers)?,
        },
    };
    fields.few_layers(NAME, &down.concat())?;
    fields.few_layers(REVERSE, &up.concat())?;
    // The middle block has one attention and takes the first entry where the innermost level has a list.
    let mid = down.last().and_then(|level| level.first()).copied().unwrap_or(1);
    Ok(TransformerLayers { down, mid, up })
}

/// One half's counts as `[level][layer]`.
fn nested(fields: &Fields<'_>, name: &str, value: &Value, layers: &[usize]) -> Result<Vec<Vec<usize>>> {
    let fault = || fields.unsupported(name, "a count, or a list with a count or a list of counts for each level");
    let depth = |value: &Value| if value == 0 { Some(0) } else { count(value) };
    let level = |value: &Value, layers: usize| match value {
        Value::Array(list) => list.get(..layers)?.iter().map(depth).collect::<Option<Vec<_>>>(),
        value => depth(value).map(|n| vec![n; layers]),
    };
    match value {
        Value::Array(list) if list.len() == layers.len() => {
            list.iter().zip(layers).map(|(v, &n)| level(v, n).ok_or_else(fault)).collect()
        }
        Value::Array(_) => Err(fault()),
        value => layers.iter().map(|&n| level(value, n).ok_or_else(fault)).collect(),
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

fn text_time(fields: &Fields<'_>) -> Result<Option<TextTimeConfig>> {
    if fields.get("addition_embed_type").is_none() {
        return Ok(None);
    }
    let time_embed_dim = fields.count("addition_time_embed_dim", None)?;
    if time_embed_dim < 2 {
        return Err(fields.unsupported("addition_time_embed_dim", "2 or more"));
    }
    Ok(Some(TextTimeConfig { time_embed_dim, input_dim: fields.count("projection_class_embeddings_input_dim", None)? }))
}

#[cfg(test)]
#[path = "unet_tests.rs"]
mod tests;
