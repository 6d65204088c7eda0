//! The blocks of a UNet: which layers stand on each level, from the lists of a config.

use serde_json::{Value, json};

use super::fields::{Fields, count};
use crate::error::Result;

/// What a block has behind its resnets, and how it changes the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `DownBlock2D`, `UpBlock2D`: nothing; a convolution changes the size.
    Plain,
    /// `CrossAttnDownBlock2D`, `CrossAttnUpBlock2D`: transformers; a convolution changes the size.
    CrossAttention,
    /// `ResnetDownsampleBlock2D`, `ResnetUpsampleBlock2D`: nothing; a resnet changes the size.
    Resnet,
    /// `SimpleCrossAttnDownBlock2D`, `SimpleCrossAttnUpBlock2D`: attention to the text and the picture at once; a resnet
    /// changes the size.
    SimpleCrossAttention,
    /// `AttnDownBlock2D`, `AttnUpBlock2D`: attention to the picture; a convolution or a resnet changes the size.
    SelfAttention {
        /// Whether it is a resnet.
        by_resnet: bool,
    },
}

impl BlockKind {
    /// Whether a resnet, rather than a convolution, halves or doubles the size.
    pub fn resizes_by_resnet(self) -> bool {
        matches!(self, Self::Resnet | Self::SimpleCrossAttention | Self::SelfAttention { by_resnet: true })
    }

    /// Whether its resnets follow `resnet_out_scale_factor` and `resnet_skip_time_act`.
    pub fn takes_resnet_options(self) -> bool {
        matches!(self, Self::Resnet | Self::SimpleCrossAttention)
    }

    /// Whether it reads the text.
    pub fn reads_text(self) -> bool {
        matches!(self, Self::CrossAttention | Self::SimpleCrossAttention)
    }
}

/// A block on the way down or up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What it is made of.
    pub kind: BlockKind,
    /// Channels of its output.
    pub channels: usize,
    /// Resnets, and attentions where it has any.
    pub layers: usize,
    /// Heads of its attentions.
    pub head_count: usize,
    /// Transformer blocks of each attention of a `CrossAttention` block.
    pub transformer_layers: Vec<usize>,
    /// Whether there is cross-attention in the place of self-attention, too (`CrossAttention`), or none to the picture
    /// itself (`SimpleCrossAttention`).
    pub only_cross_attention: bool,
}

/// What the middle block is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidKind {
    /// `UNetMidBlock2DCrossAttn`: resnet, transformer, resnet.
    CrossAttention,
    /// `UNetMidBlock2DSimpleCrossAttn`: resnet, attention to the text and the picture at once, resnet.
    SimpleCrossAttention,
    /// `UNetMidBlock2D` of a `UNet2DModel`: resnet, attention to the picture, resnet.
    SelfAttention {
        /// Groups of the attention's GroupNorm; `None` where it has none.
        groups: Option<usize>,
    },
    /// `UNetMidBlock2D` without attention: this many resnets.
    Resnets(usize),
}

/// The middle block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MidBlock {
    /// What it is made of.
    pub kind: MidKind,
    /// Heads of its attention.
    pub head_count: usize,
    /// Transformer blocks of its attention (`CrossAttention`).
    pub transformer_layers: usize,
    /// Whether its attention sees the text alone (`SimpleCrossAttention`).
    pub only_cross_attention: bool,
}

/// All blocks, in order of execution.
pub(super) struct Blocks {
    pub down: Vec<Block>,
    pub mid: Option<MidBlock>,
    pub up: Vec<Block>,
}

/// The two halves of the U.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Down,
    Up,
}

/// Reads the blocks of a UNet of these channels; `conditional` tells a `UNet2DConditionModel` from a `UNet2DModel`.
pub(super) fn blocks(fields: &Fields<'_>, channels: &[usize], conditional: bool) -> Result<Blocks> {
    let levels = channels.len();
    let layers = if conditional {
        fields.per_level("layers_per_block", 2, levels)?
    } else {
        vec![fields.count("layers_per_block", 2)?; levels]
    };
    fields.few_layers("layers_per_block", &layers)?;
    let depth = transformer_layers(fields, &layers)?;
    let only = only_cross_attention(fields, levels)?;
    let heads = HeadField::read(fields, levels, conditional)?;
    let down = block_types(fields, Direction::Down, levels, conditional)?;
    let up = block_types(fields, Direction::Up, levels, conditional)?;
    let block = |kind: BlockKind, level: usize, place: usize, more: usize, depth: &[usize]| {
        Ok(Block {
            kind,
            channels: channels[level],
            layers: layers[level] + more,
            head_count: match kind {
                BlockKind::Plain | BlockKind::Resnet => 1,
                BlockKind::CrossAttention => heads.count(fields, level, channels[level])?,
                // diffusers mirrors the list of head counts on the way up, but not that of head widths.
                BlockKind::SimpleCrossAttention | BlockKind::SelfAttention { .. } => {
                    heads.count_of_width(fields, place, channels[level])?
                }
            },
            transformer_layers: if kind == BlockKind::CrossAttention { depth.to_vec() } else { Vec::new() },
            only_cross_attention: kind.reads_text() && only[level],
        })
    };
    let down: Result<Vec<Block>> =
        (0..levels).map(|level| block(down[level], level, level, 0, &depth.down[level])).collect();
    let up: Result<Vec<Block>> =
        (0..levels).map(|place| block(up[place], levels - 1 - place, place, 1, &depth.up[place])).collect();
    let mid = mid_block(fields, channels[levels - 1], &heads, depth.mid, conditional)?;
    Ok(Blocks { down: down?, mid, up: up? })
}

/// `attention_head_dim`, which means a number of heads in some blocks and a head's width in others.
struct HeadField(Vec<Option<usize>>);

impl HeadField {
    const NAME: &str = "attention_head_dim";

    fn read(fields: &Fields<'_>, levels: usize, conditional: bool) -> Result<Self> {
        let whole = !conditional && fields.is_null(Self::NAME);
        let list = if conditional {
            fields.per_level(Self::NAME, 8, levels)?
        } else {
            vec![fields.count(Self::NAME, 8)?; levels]
        };
        Ok(Self(list.into_iter().map(|number| (!whole).then_some(number)).collect()))
    }

    /// The entry of a level as a number of heads.
    fn count(&self, fields: &Fields<'_>, level: usize, channels: usize) -> Result<usize> {
        let count = self.0[level].unwrap_or(1);
        divides(fields, count, channels)?;
        Ok(count)
    }

    /// The number of heads if the entry is their width; one head where it is null.
    fn count_of_width(&self, fields: &Fields<'_>, place: usize, channels: usize) -> Result<usize> {
        let width = self.0[place].unwrap_or(channels);
        divides(fields, width, channels)?;
        Ok(channels / width)
    }
}

fn divides(fields: &Fields<'_>, number: usize, channels: usize) -> Result<()> {
    if channels.is_multiple_of(number) {
        return Ok(());
    }
    Err(fields.unsupported(HeadField::NAME, &format!("divisors of the blocks' channels, here of {channels}")))
}

/// The kinds of the blocks of one half.
fn block_types(fields: &Fields<'_>, direction: Direction, levels: usize, conditional: bool) -> Result<Vec<BlockKind>> {
    let (name, way, resize) = match direction {
        Direction::Down => ("down_block_types", "Down", "downsample_type"),
        Direction::Up => ("up_block_types", "Up", "upsample_type"),
    };
    let by_resnet = match fields.word(resize, "conv")? {
        _ if conditional => false,
        "conv" => false,
        "resnet" => true,
        _ => return Err(fields.unsupported(resize, "\"conv\" or \"resnet\"")),
    };
    let mut known = vec![
        (format!("{way}Block2D"), BlockKind::Plain),
        (format!("Resnet{way}sampleBlock2D"), BlockKind::Resnet),
        (format!("Attn{way}Block2D"), BlockKind::SelfAttention { by_resnet }),
    ];
    if conditional {
        known.push((format!("CrossAttn{way}Block2D"), BlockKind::CrossAttention));
        known.push((format!("SimpleCrossAttn{way}Block2D"), BlockKind::SimpleCrossAttention));
    }
    let names: Vec<String> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let [plain, attends] = [0, if conditional { 3 } else { 2 }].map(|index| known[index].0.as_str());
    let default = match (direction, conditional) {
        (Direction::Down, true) => [attends, attends, attends, plain],
        (Direction::Up, true) => [plain, attends, attends, attends],
        (Direction::Down, false) => [plain, attends, attends, attends],
        (Direction::Up, false) => [attends, attends, attends, plain],
    };
    // diffusers drops this prefix, too.
    let read = |word: &str| {
        let word = word.strip_prefix("UNetRes").unwrap_or(word);
        known.iter().find(|(name, _)| name == word).map(|(_, kind)| *kind)
    };
    let types = fields.words(name, &default, read, &format!("a list of {}", names.join(", ")))?;
    if types.len() == levels {
        Ok(types)
    } else {
        Err(fields.unsupported(name, &format!("one entry for each of the {levels} `block_out_channels`")))
    }
}

fn mid_block(
    fields: &Fields<'_>,
    channels: usize,
    heads: &HeadField,
    depth: usize,
    conditional: bool,
) -> Result<Option<MidBlock>> {
    const NAME: &str = "mid_block_type";
    const ONLY: &str = "mid_block_only_cross_attention";
    if fields.is_null(NAME) {
        return Ok(None);
    }
    let kind =
        match (fields.word(NAME, if conditional { "UNetMidBlock2DCrossAttn" } else { "UNetMidBlock2D" })?, conditional)
        {
            ("UNetMidBlock2DCrossAttn", true) => MidKind::CrossAttention,
            ("UNetMidBlock2DSimpleCrossAttn", true) => MidKind::SimpleCrossAttention,
            ("UNetMidBlock2D", true) => MidKind::Resnets(1),
            // A `UNet2DModel` has this one whatever it is called.
            (_, false) if !fields.flag("add_attention", true)? => MidKind::Resnets(2),
            (_, false) => {
                let default = fields.word("resnet_time_scale_shift", "default")? == "default";
                let norm = if default { Some(fields.count("norm_num_groups", 32)?) } else { None };
                let groups = fields.optional_count("attn_norm_num_groups")?.or(norm);
                MidKind::SelfAttention { groups }
            }
            _ => {
                let expected =
                    "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2DSimpleCrossAttn\", \"UNetMidBlock2D\" or null";
                return Err(fields.unsupported(NAME, expected));
            }
        };
    if let MidKind::SelfAttention { groups: Some(groups) } = kind
        && !channels.is_multiple_of(groups)
    {
        return Err(fields.unsupported("attn_norm_num_groups", &format!("a divisor of {channels}")));
    }
    let last = heads.0.len() - 1;
    let head_count = match kind {
        MidKind::Resnets(_) => 1,
        MidKind::CrossAttention => heads.count(fields, last, channels)?,
        MidKind::SimpleCrossAttention | MidKind::SelfAttention { .. } => {
            heads.count_of_width(fields, last, channels)?
        }
    };
    // One flag for all levels means the middle, too.
    let inherited = fields.get("only_cross_attention") == Some(&json!(true));
    let only = if fields.get(ONLY).is_some() { fields.flag(ONLY, false)? } else { inherited };
    let only_cross_attention = only && kind == MidKind::SimpleCrossAttention;
    Ok(Some(MidBlock { kind, head_count, transformer_layers: depth, only_cross_attention }))
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
