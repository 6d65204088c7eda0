//! The configs that single files lack: everything that shapes tell is read from them, the rest is what the published
//! config of the detected version says.
//!
//! Published configs: `stable-diffusion-v1-5/stable-diffusion-v1-5`, `stabilityai/stable-diffusion-2-1`,
//! `stabilityai/stable-diffusion-xl-base-1.0` and `stabilityai/stable-diffusion-x4-upscaler` on the Hugging Face hub, the ones
//! that diffusers' `from_single_file` takes.

use serde_json::{Value, json};

use super::original_keys::{Block, Shapes, UnetLayout, count};
use crate::error::{Error, Result};

/// What a single file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x; without better knowledge 2.1 (768 px, v_prediction).
    Sd2,
    /// Stable Diffusion XL base.
    Sdxl,
    /// The x4 upscaler.
    X4,
}

/// Attention heads of a width where the published models have heads of 64 (all of them except SD 1.x's UNet).
fn heads_of_64(width: usize) -> usize {
    (width / 64).max(1)
}

/// A shape of the right number of axes; otherwise an error that names the tensor.
fn shape<const AXES: usize>(shapes: &Shapes, key: &str, place: &str) -> Result<[usize; AXES]> {
    let at = || format!("{place}: `{key}`");
    let found =
        shapes.get(key).ok_or_else(|| Error::new("missing tensor").at(at()).expected("a complete checkpoint"))?;
    found.as_slice().try_into().map_err(|_| {
        Error::new("tensor shape").at(at()).expected(format!("{AXES} axes")).found(super::shown(&format!("{found:?}")))
    })
}

/// The config of a UNet whose keys have been stripped of their prefix.
pub fn unet(version: Version, unet: &Shapes, layout: &UnetLayout, place: &str) -> Result<Value> {
    let [_, in_channels, _, _] = shape(unet, "input_blocks.0.0.weight", place)?;
    let [out_channels, _, _, _] = shape(unet, "out.2.weight", place)?;
    let (mut channels, mut layers, mut depths, mut down) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, block) in layout.input.iter().enumerate() {
        let Block::Layer { level, index, attention, .. } = *block else { continue };
        let [width, _, _, _] = shape(unet, &format!("input_blocks.{}.0.out_layers.3.weight", number + 1), place)?;
        while channels.len() <= level {
            channels.push(width);
            layers.push(0);
            depths.push(attention.unwrap_or(1));
            down.push(if attention.is_some() { "CrossAttnDownBlock2D" } else { "DownBlock2D" });
        }
        layers[level] = index + 1;
    }
    let mut up = vec!["UpBlock2D"; channels.len()];
    for block in &layout.output {
        if let Block::Layer { level, attention: Some(_), .. } = *block
            && let Some(kind) = up.get_mut(level)
        {
            *kind = "CrossAttnUpBlock2D";
        }
    }
    if let Some(innermost) = depths.last_mut() {
        let middle = count(|k| unet.contains_key(&format!("middle_block.1.transformer_blocks.{k}.norm1.weight")));
        *innermost = middle.max(1);
    }
    let context = "middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let [_, cross_attention_dim] = shape(unet, context, place)?;
    let linear = unet.get("middle_block.1.proj_in.weight").is_some_and(|shape| shape.len() == 2);
    let heads: Vec<usize> = match version {
        Version::Sd1 | Version::X4 => vec![8; channels.len()],
        Version::Sd2 | Version::Sdxl => channels.iter().map(|c| heads_of_64(*c)).collect(),
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "sample_size": match version { Version::Sd1 => 64, Version::Sd2 => 96, Version::Sdxl | Version::X4 => 128 },
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": depths,
        "attention_head_dim": heads,
        "cross_attention_dim": cross_attention_dim,
        "use_linear_projection": linear,
        "upcast_attention": version == Version::Sd2,
    });
    if version == Version::Sdxl {
        let [_, input_dim] = shape(unet, "label_emb.0.0.weight", place)?;
        config["addition_embed_type"] = "text_time".into();
        config["addition_time_embed_dim"] = 256.into();
        config["projection_class_embeddings_input_dim"] = input_dim.into();
    }
    if version == Version::X4 {
        let [classes, _] = shape(unet, "label_emb.weight", place)?;
        config["num_class_embeds"] = classes.into();
        config["only_cross_attention"] = only_cross_attention(unet, layout, &channels, cross_attention_dim).into();
    }
    Ok(config)
}

/// Of each level, whether both attentions of a transformer block read the text: the first one's keys are then as wide as the
/// text vectors. Where the level itself is as wide nothing tells, and the published model has it on all but the last level.
fn only_cross_attention(unet: &Shapes, layout: &UnetLayout, channels: &[usize], text: usize) -> Vec<bool> {
    let level_of = |block: &Block| if let Block::Layer { level, .. } = *block { Some(level) } else { None };
    let read = |level: usize| {
        let number = layout.input.iter().position(|block| level_of(block) == Some(level))? + 1;
        let keys = unet.get(&format!("input_blocks.{number}.1.transformer_blocks.0.attn1.to_k.weight"))?;
        keys.get(1).copied()
    };
    let last = channels.len().saturating_sub(1);
    let each = channels.iter().enumerate();
    each.map(|(level, width)| if *width == text { level < last } else { read(level).is_none_or(|keys| keys != *width) })
        .collect()
}

/// The config of a VAE whose keys have been stripped of their prefix.
pub fn vae(version: Version, vae: &Shapes, place: &str) -> Result<Value> {
    let levels = vae_levels(vae);
    let mut channels = Vec::new();
    for level in 0..levels {
        let [width, _, _, _] = shape(vae, &format!("decoder.up.{level}.block.0.conv1.weight"), place)?;
        channels.push(width);
    }
    let [_, latent_channels, _, _] = shape(vae, "decoder.conv_in.weight", place)?;
    let [out_channels, _, _, _] = shape(vae, "decoder.conv_out.weight", place)?;
    let layers = count(|j| vae.contains_key(&format!("decoder.up.0.block.{j}.conv1.weight"))).saturating_sub(1);
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "out_channels": out_channels,
        "latent_channels": latent_channels,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "scaling_factor": match version { Version::Sd1 | Version::Sd2 => 0.18215, Version::Sdxl => 0.13025, Version::X4 => 0.08333 },
        "use_quant_conv": vae.contains_key("quant_conv.weight"),
        "use_post_quant_conv": vae.contains_key("post_quant_conv.weight"),
        "mid_block_add_attention": vae.contains_key("decoder.mid.attn_1.norm.weight"),
    }))
}

/// Levels of an original VAE's decoder.
pub fn vae_levels(vae: &Shapes) -> usize {
    count(|level| vae.contains_key(&format!("decoder.up.{level}.block.0.norm1.weight")))
}

/// The config of a text encoder from the shapes under transformers' names.
pub fn text_encoder(open_clip: bool, text: &Shapes, place: &str) -> Result<Value> {
    let [vocab_size, hidden_size] = shape(text, "text_model.embeddings.token_embedding.weight", place)?;
    let [positions, _] = shape(text, "text_model.embeddings.position_embedding.weight", place)?;
    let [intermediate_size, _] = shape(text, "text_model.encoder.layers.0.mlp.fc1.weight", place)?;
    let layers = count(|n| text.contains_key(&format!("text_model.encoder.layers.{n}.mlp.fc1.weight")));
    let projection_dim = match text.get("text_projection.weight") {
        Some(_) => shape::<2>(text, "text_projection.weight", place)?[0],
        None => hidden_size,
    };
    // The published configs have these ids; 2 stands for "the largest id of the prompt".
    Ok(json!({
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_of_64(hidden_size),
        "max_position_embeddings": positions,
        "hidden_act": if open_clip { "gelu" } else { "quick_gelu" },
        "projection_dim": projection_dim,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }))
}

/// The published `scheduler_config.json`.
pub fn scheduler(version: Version) -> Value {
    let mut config = json!({
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    let more = match version {
        Version::Sd1 => json!({ "_class_name": "PNDMScheduler" }),
        Version::Sd2 => json!({ "_class_name": "DDIMScheduler", "prediction_type": "v_prediction" }),
        Version::X4 => json!({
            "_class_name": "DDIMScheduler",
            "beta_end": 0.02,
            "beta_start": 0.0001,
            "prediction_type": "v_prediction",
        }),
        Version::Sdxl => json!({
            "_class_name": "EulerDiscreteScheduler",
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": false,
        }),
    };
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

/// The published config of the x4 upscaler's `low_res_scheduler`, by which noise is added to the picture.
pub fn low_res_scheduler() -> Value {
    json!({
        "_class_name": "DDPMScheduler",
        "beta_end": 0.02,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0001,
        "clip_sample": true,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "trained_betas": null,
        "variance_type": "fixed_small",
    })
}
