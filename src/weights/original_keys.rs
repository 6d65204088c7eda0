//! The names of single files: CompVis' and Stability's original layouts, translated to diffusers' names.
//!
//! The correspondence is the one of diffusers 0.42.1, `loaders/single_file_utils.py`. Where that counts blocks with a
//! formula, this walks the keys that are there, so that any number of levels and layers is understood.

use std::collections::BTreeMap;

use super::file_source::Change;
use super::keys;

/// Names and shapes of a file.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The UNet of a single file.
pub const UNET: &str = "model.diffusion_model.";
/// The VAE of a single file.
pub const VAE: &str = "first_stage_model.";

/// Where a numbered block of the original UNet belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Resnet `index` of a level, maybe followed by attention; on the way up maybe by an upsampler at a slot.
    Layer {
        /// Level in order of execution.
        level: usize,
        /// Position in the level.
        index: usize,
        /// Transformer blocks of the attention, if there is one.
        attention: Option<usize>,
        /// The slot of the upsampler, if there is one.
        upsampler: Option<usize>,
    },
    /// The downsampler that ends a level.
    Downsampler {
        /// The level that it ends.
        level: usize,
    },
}

/// How the numbered blocks of an original UNet fall into levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnetLayout {
    /// `input_blocks.1` and on (`input_blocks.0` is the first convolution).
    pub input: Vec<Block>,
    /// `output_blocks.0` and on.
    pub output: Vec<Block>,
}

/// More blocks than any UNet has end the walk.
const MOST_BLOCKS: usize = 256;

/// Counts 0, 1, 2, ... as long as `is_there`.
pub(super) fn count(is_there: impl Fn(usize) -> bool) -> usize {
    (0..MOST_BLOCKS).find(|&i| !is_there(i)).unwrap_or(MOST_BLOCKS)
}

impl UnetLayout {
    /// Walks the blocks of the UNet whose keys have been stripped of their prefix.
    pub fn read(unet: &Shapes) -> Self {
        let attention = |block: &str| {
            let depth = count(|k| unet.contains_key(&format!("{block}.1.transformer_blocks.{k}.norm1.weight")));
            unet.contains_key(&format!("{block}.1.norm.weight")).then_some(depth)
        };
        let (mut input, mut level, mut index) = (Vec::new(), 0, 0);
        for number in 1..MOST_BLOCKS {
            let block = format!("input_blocks.{number}");
            if unet.contains_key(&format!("{block}.0.op.weight")) {
                input.push(Block::Downsampler { level });
                (level, index) = (level + 1, 0);
            } else if unet.contains_key(&format!("{block}.0.in_layers.0.weight")) {
                input.push(Block::Layer { level, index, attention: attention(&block), upsampler: None });
                index += 1;
            } else {
                break;
            }
        }
        let (mut output, mut level, mut index) = (Vec::new(), 0, 0);
        for number in 0..MOST_BLOCKS {
            let block = format!("output_blocks.{number}");
            if !unet.contains_key(&format!("{block}.0.in_layers.0.weight")) {
                break;
            }
            let upsampler = [1, 2].into_iter().find(|slot| unet.contains_key(&format!("{block}.{slot}.conv.weight")));
            output.push(Block::Layer { level, index, attention: attention(&block), upsampler });
            (level, index) = if upsampler.is_some() { (level + 1, 0) } else { (level, index + 1) };
        }
        Self { input, output }
    }

    /// The diffusers name of a stripped key, `None` if no layer has such a key.
    pub fn rename(&self, key: &str) -> Option<String> {
        const FIXED: [(&str, &str); 8] = [
            ("time_embed.0", "time_embedding.linear_1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("label_emb", "class_embedding"),
            ("label_emb.0.0", "add_embedding.linear_1"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"),
            ("out.0", "conv_norm_out"),
            ("out.2", "conv_out"),
        ];
        let (layer, kind) = key.rsplit_once('.')?;
        if !["weight", "bias"].contains(&kind) {
            return None;
        }
        if let Some((_, name)) = FIXED.iter().find(|(original, _)| *original == layer) {
            return Some(format!("{name}.{kind}"));
        }
        let mut words = layer.splitn(4, '.');
        let (half, number) = (words.next()?, words.next()?.parse::<usize>().ok()?);
        if half == "middle_block" {
            let rest = layer.splitn(3, '.').nth(2)?;
            let name = match number {
                0 => format!("resnets.0.{}", resnet(rest)?),
                1 => format!("attentions.0.{rest}"),
                2 => format!("resnets.1.{}", resnet(rest)?),
                _ => return None,
            };
            return Some(format!("mid_block.{name}.{kind}"));
        }
        let (slot, rest) = (words.next()?.parse::<usize>().ok()?, words.next()?);
        let (side, block) = match half {
            "input_blocks" => ("down_blocks", self.input.get(number.checked_sub(1)?)?),
            "output_blocks" => ("up_blocks", self.output.get(number)?),
            _ => return None,
        };
        let name = match *block {
            Block::Downsampler { level } if (slot, rest) == (0, "op") => format!("{level}.downsamplers.0.conv"),
            Block::Layer { level, upsampler, .. } if upsampler == Some(slot) && rest == "conv" => {
                format!("{level}.upsamplers.0.conv")
            }
            Block::Layer { level, index, .. } if slot == 0 => format!("{level}.resnets.{index}.{}", resnet(rest)?),
            Block::Layer { level, index, attention: Some(_), .. } if slot == 1 => {
                format!("{level}.attentions.{index}.{rest}")
            }
            _ => return None,
        };
        Some(format!("{side}.{name}.{kind}"))
    }
}

/// A layer inside a UNet's resnet.
fn resnet(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "in_layers.0" => "norm1",
        "in_layers.2" => "conv1",
        "emb_layers.1" => "time_emb_proj",
        "out_layers.0" => "norm2",
        "out_layers.3" => "conv2",
        "skip_connection" => "conv_shortcut",
        _ => return None,
    })
}

/// The diffusers name of a VAE's key without its prefix, for a decoder of `levels` levels (which the original numbers
/// from the picture inwards, diffusers from the latent outwards).
pub fn vae(key: &str, levels: usize) -> Option<(String, Change)> {
    let (layer, kind) = key.rsplit_once('.')?;
    if !["weight", "bias"].contains(&kind) {
        return None;
    }
    if ["quant_conv", "post_quant_conv"].contains(&layer) {
        return Some((key.to_string(), Change::Keep));
    }
    let (side, rest) = layer.split_once('.')?;
    if !["encoder", "decoder"].contains(&side) {
        return None;
    }
    if let Some(part) = rest.strip_prefix("mid.attn_1.") {
        let (name, change) = match part {
            "norm" => ("group_norm", Change::Keep),
            "q" => ("to_q", Change::Squeeze),
            "k" => ("to_k", Change::Squeeze),
            "v" => ("to_v", Change::Squeeze),
            "proj_out" => ("to_out.0", Change::Squeeze),
            _ => return None,
        };
        let change = if kind == "weight" { change } else { Change::Keep };
        return Some((format!("{side}.mid_block.attentions.0.{name}.{kind}"), change));
    }
    let words: Vec<&str> = rest.split('.').collect();
    let name = match (side, words.as_slice()) {
        (_, ["conv_in" | "conv_out"]) => rest.to_string(),
        (_, ["norm_out"]) => "conv_norm_out".to_string(),
        (_, ["mid", "block_1", part]) => format!("mid_block.resnets.0.{}", vae_resnet(part)?),
        (_, ["mid", "block_2", part]) => format!("mid_block.resnets.1.{}", vae_resnet(part)?),
        ("encoder", ["down", level, "block", index, part]) => {
            format!("down_blocks.{}.resnets.{}.{}", number(level)?, number(index)?, vae_resnet(part)?)
        }
        ("encoder", ["down", level, "downsample", "conv"]) => {
            format!("down_blocks.{}.downsamplers.0.conv", number(level)?)
        }
        ("decoder", ["up", level, "block", index, part]) => {
            let level = levels.checked_sub(1 + number(level)?)?;
            format!("up_blocks.{level}.resnets.{}.{}", number(index)?, vae_resnet(part)?)
        }
        ("decoder", ["up", level, "upsample", "conv"]) => {
            format!("up_blocks.{}.upsamplers.0.conv", levels.checked_sub(1 + number(level)?)?)
        }
        _ => return None,
    };
    Some((format!("{side}.{name}.{kind}"), Change::Keep))
}

/// A small index without leading zeros or signs.
fn number(word: &str) -> Option<usize> {
    let number: usize = word.parse().ok().filter(|n| *n < MOST_BLOCKS)?;
    (word == number.to_string()).then_some(number)
}

/// A layer inside a VAE's resnet.
fn vae_resnet(part: &str) -> Option<&str> {
    match part {
        "norm1" | "conv1" | "norm2" | "conv2" => Some(part),
        "nin_shortcut" => Some("conv_shortcut"),
        _ => None,
    }
}

/// Which of the two text encoder layouts, and where in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLayout {
    /// The prefix of its keys.
    pub prefix: &'static str,
    /// OpenCLIP's names instead of transformers'.
    pub open_clip: bool,
    /// Whether the pooled vector is used.
    pub with_projection: bool,
    /// Whether SD 2.x's rule holds: the vectors come from the layer before the last (see [`TextLayout::dropped_layer`]).
    pub penultimate: bool,
}

/// SD 1.x: OpenAI's CLIP ViT-L/14.
pub const SD1_TEXT: TextLayout = TextLayout {
    prefix: "cond_stage_model.transformer.",
    open_clip: false,
    with_projection: false,
    penultimate: false,
};
/// SD 2.x: OpenCLIP ViT-H/14 without its last layer.
pub const SD2_TEXT: TextLayout =
    TextLayout { prefix: "cond_stage_model.model.", open_clip: true, with_projection: false, penultimate: true };
/// SDXL's first text encoder, the one of SD 1.x.
pub const SDXL_TEXT: TextLayout = TextLayout { prefix: "conditioner.embedders.0.transformer.", ..SD1_TEXT };
/// SDXL's second text encoder: OpenCLIP ViT-bigG/14.
pub const SDXL_TEXT_2: TextLayout =
    TextLayout { prefix: "conditioner.embedders.1.model.", open_clip: true, with_projection: true, penultimate: false };

impl TextLayout {
    /// The token that fills up a prompt.
    pub fn pad_token(&self) -> &'static str {
        if self.open_clip { "!" } else { "<|endoftext|>" }
    }

    /// The layer that is stored and not used, given all keys of a file. SD 2.x takes the output of the layer before the
    /// last of OpenCLIP's 24. A whole OpenCLIP has a `text_projection`; a file written from a diffusers model has neither
    /// that nor the last layer.
    pub fn dropped_layer(&self, file: &Shapes) -> Option<usize> {
        let prefix = self.prefix;
        let layers = count(|n| file.contains_key(&format!("{prefix}transformer.resblocks.{n}.ln_1.weight")));
        let whole = layers == 24 || (layers != 23 && file.contains_key(&format!("{prefix}text_projection")));
        (self.penultimate && whole && layers > 1).then(|| layers - 1)
    }

    /// The transformers names that a key without its prefix gives: three for OpenCLIP's fused projections, none for what
    /// is left out; `None` if no layer has such a key.
    pub fn rename(&self, key: &str, dropped_layer: Option<usize>) -> Option<Vec<(String, Change)>> {
        if !self.open_clip {
            return Some(keys::text_encoder(key, self.with_projection).into_iter().collect());
        }
        let one = |name: &str, change: Change| Some(vec![(name.to_string(), change)]);
        match key {
            "positional_embedding" => return one("text_model.embeddings.position_embedding.weight", Change::Keep),
            "token_embedding.weight" => return one("text_model.embeddings.token_embedding.weight", Change::Keep),
            "ln_final.weight" => return one("text_model.final_layer_norm.weight", Change::Keep),
            "ln_final.bias" => return one("text_model.final_layer_norm.bias", Change::Keep),
            "text_projection" if self.with_projection => return one("text_projection.weight", Change::Transpose),
            "text_projection" => return Some(Vec::new()),
            _ => {}
        }
        let (layer, rest) = key.strip_prefix("transformer.resblocks.")?.split_once('.')?;
        let layer = number(layer)?;
        if dropped_layer == Some(layer) {
            return Some(Vec::new());
        }
        let name = |part: &str| format!("text_model.encoder.layers.{layer}.{part}");
        let (part, kind) = rest.rsplit_once(['.', '_'])?;
        if !["weight", "bias"].contains(&kind) {
            return None;
        }
        let part = match part {
            "ln_1" => "layer_norm1",
            "ln_2" => "layer_norm2",
            "mlp.c_fc" => "mlp.fc1",
            "mlp.c_proj" => "mlp.fc2",
            "attn.out_proj" => "self_attn.out_proj",
            "attn.in_proj" => {
                let third =
                    |(i, q): (usize, &str)| (name(&format!("self_attn.{q}_proj.{kind}")), Change::RowPart(i, 3));
                return Some(["q", "k", "v"].into_iter().enumerate().map(third).collect());
            }
            _ => return None,
        };
        one(&name(&format!("{part}.{kind}")), Change::Keep)
    }
}
