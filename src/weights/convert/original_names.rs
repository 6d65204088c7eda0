//! diffusers' names translated to those of single files: the way back of [`super::super::original_keys`], whose tables
//! `to_single` holds the result against.

use std::collections::{BTreeMap, BTreeSet};

/// The original name of every UNet tensor, without the prefix of its part; `None` for one that the original lacks.
pub struct UnetNames {
    /// diffusers' module to the original's.
    modules: BTreeMap<String, String>,
}

impl UnetNames {
    /// Counts the blocks that `names` show.
    pub fn new(names: &BTreeSet<String>) -> Self {
        let fixed = [
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
            ("mid_block.resnets.0", "middle_block.0"),
            ("mid_block.attentions.0", "middle_block.1"),
            ("mid_block.resnets.1", "middle_block.2"),
        ];
        let mut modules: BTreeMap<String, String> =
            fixed.into_iter().map(|(name, original)| (name.into(), original.into())).collect();
        let has = |module: &str| {
            let prefix = format!("{module}.");
            names.range(prefix.clone()..).next().is_some_and(|name| name.starts_with(&prefix))
        };
        let mut number = 1;
        for level in 0.. {
            let block = format!("down_blocks.{level}");
            if !has(&block) {
                break;
            }
            for index in (0..).take_while(|index| has(&format!("{block}.resnets.{index}"))) {
                modules.insert(format!("{block}.resnets.{index}"), format!("input_blocks.{number}.0"));
                modules.insert(format!("{block}.attentions.{index}"), format!("input_blocks.{number}.1"));
                number += 1;
            }
            if has(&format!("{block}.downsamplers.0")) {
                modules.insert(format!("{block}.downsamplers.0.conv"), format!("input_blocks.{number}.0.op"));
                number += 1;
            }
        }
        let mut number = 0;
        for level in 0.. {
            let block = format!("up_blocks.{level}");
            if !has(&block) {
                break;
            }
            for index in (0..).take_while(|index| has(&format!("{block}.resnets.{index}"))) {
                modules.insert(format!("{block}.resnets.{index}"), format!("output_blocks.{number}.0"));
                modules.insert(format!("{block}.attentions.{index}"), format!("output_blocks.{number}.1"));
                number += 1;
            }
            let slot = if has(&format!("{block}.attentions.0")) { 2 } else { 1 };
            let last = usize::saturating_sub(number, 1);
            modules.insert(format!("{block}.upsamplers.0.conv"), format!("output_blocks.{last}.{slot}.conv"));
        }
        Self { modules }
    }

    /// The original name of a tensor.
    pub fn original(&self, name: &str) -> Option<String> {
        let (module, original, rest) = name.rmatch_indices('.').find_map(|(at, _)| {
            let module = &name[..at];
            self.modules.get(module).map(|original| (module, original, &name[at + 1..]))
        })?;
        let in_resnet = module.rsplit_once('.').is_some_and(|(list, _)| list.ends_with(".resnets"));
        if !in_resnet {
            return Some(format!("{original}.{rest}"));
        }
        let (layer, kind) = rest.rsplit_once('.')?;
        let layer = match layer {
            "norm1" => "in_layers.0",
            "conv1" => "in_layers.2",
            "time_emb_proj" => "emb_layers.1",
            "norm2" => "out_layers.0",
            "conv2" => "out_layers.3",
            "conv_shortcut" => "skip_connection",
            _ => return None,
        };
        Some(format!("{original}.{layer}.{kind}"))
    }
}

/// The original name of a VAE's tensor, and whether it is a linear layer that the original has as a 1x1 convolution.
/// `levels`: how many levels the decoder has, which the original numbers the other way round.
pub fn vae(name: &str, levels: usize) -> Option<(String, bool)> {
    let (layer, kind) = name.rsplit_once('.')?;
    let Some((side, rest)) = layer.split_once('.') else { return Some((name.to_string(), false)) };
    let words: Vec<&str> = rest.split('.').collect();
    let shortcut = |part: &str| if part == "conv_shortcut" { "nin_shortcut".to_string() } else { part.to_string() };
    let mut is_convolution = false;
    let layer = match words.as_slice() {
        ["conv_norm_out"] => "norm_out".to_string(),
        ["conv_in" | "conv_out"] => rest.to_string(),
        ["mid_block", "resnets", index, part] => {
            format!("mid.block_{}.{}", index.parse::<usize>().ok()?.checked_add(1)?, shortcut(part))
        }
        ["mid_block", "attentions", "0", part @ ..] => {
            let part = match part {
                ["group_norm"] => "norm",
                ["to_q"] => "q",
                ["to_k"] => "k",
                ["to_v"] => "v",
                ["to_out", "0"] => "proj_out",
                _ => return None,
            };
            is_convolution = part != "norm" && kind == "weight";
            format!("mid.attn_1.{part}")
        }
        [way @ ("down_blocks" | "up_blocks"), level, rest @ ..] => {
            let level: usize = level.parse().ok()?;
            let (way, level) = match *way {
                "down_blocks" => ("down", level),
                _ => ("up", levels.checked_sub(level.checked_add(1)?)?),
            };
            match rest {
                ["resnets", index, part] => format!("{way}.{level}.block.{index}.{}", shortcut(part)),
                ["downsamplers" | "upsamplers", "0", "conv"] => format!("{way}.{level}.{way}sample.conv"),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((format!("{side}.{layer}.{kind}"), is_convolution))
}

/// A tensor of transformers' CLIP in OpenCLIP's layout.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenClip {
    /// The same tensor under another name.
    Named(String),
    /// Part so much of three of the tensor of that name: query, key, value.
    Third(String, usize),
    /// The same matrix, transposed, under another name.
    Transposed(String),
}

/// OpenCLIP's name of a text encoder's tensor (with the prefix `text_model.`).
pub fn open_clip(name: &str) -> Option<OpenClip> {
    let named = |name: &str| Some(OpenClip::Named(name.to_string()));
    match name {
        "text_model.embeddings.position_embedding.weight" => return named("positional_embedding"),
        "text_model.embeddings.token_embedding.weight" => return named("token_embedding.weight"),
        "text_model.final_layer_norm.weight" => return named("ln_final.weight"),
        "text_model.final_layer_norm.bias" => return named("ln_final.bias"),
        "text_projection.weight" => return Some(OpenClip::Transposed("text_projection".into())),
        _ => {}
    }
    let (index, rest) = name.strip_prefix("text_model.encoder.layers.")?.split_once('.')?;
    let (layer, kind) = rest.rsplit_once('.')?;
    let block = format!("transformer.resblocks.{index}");
    let third = |part| Some(OpenClip::Third(format!("{block}.attn.in_proj_{kind}"), part));
    let layer = match layer {
        "self_attn.q_proj" => return third(0),
        "self_attn.k_proj" => return third(1),
        "self_attn.v_proj" => return third(2),
        "self_attn.out_proj" => "attn.out_proj",
        "layer_norm1" => "ln_1",
        "layer_norm2" => "ln_2",
        "mlp.fc1" => "mlp.c_fc",
        "mlp.fc2" => "mlp.c_proj",
        _ => return None,
    };
    named(&format!("{block}.{layer}.{kind}"))
}
