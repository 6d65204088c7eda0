//! CLIP in OpenCLIP's layout, which is that of openai/CLIP's own releases: `visual.` and `transformer.resblocks.` in one file.

use serde_json::{Value, json};

use super::file_source::Change;
use super::original_config;
use super::original_keys::{Shapes, TextLayout};
use super::unexpected_key_error;
use crate::error::{Error, Result};
use crate::models::config::{ClipModelConfig, PicturePreparation};

/// Buffers of openai/CLIP's TorchScript files.
const OPENAI: [&str; 3] = ["context_length", "input_resolution", "vocab_size"];

const TEXT: TextLayout = TextLayout { prefix: "", open_clip: true, with_projection: true, penultimate: false };

/// Whether a file has these names.
pub fn is_open_clip(names: &mut dyn Iterator<Item = &str>) -> bool {
    let mut names = names.filter(|name| name.starts_with("visual.") || name.starts_with("transformer.resblocks."));
    names.next().is_some()
}

/// The transformers names that a key gives: three for fused projections, none for what no computation reads; `None` for a key
/// that a CLIP with a vision transformer does not have.
pub fn rename(key: &str) -> Option<Vec<(String, Change)>> {
    if ["logit_scale", "attn_mask"].contains(&key) || OPENAI.contains(&key) {
        return Some(Vec::new());
    }
    let Some(key) = key.strip_prefix("visual.") else { return TEXT.rename(key, None) };
    let one = |name: &str, change: Change| Some(vec![(name.to_owned(), change)]);
    match key {
        "class_embedding" => one("vision_model.embeddings.class_embedding", Change::Keep),
        "positional_embedding" => one("vision_model.embeddings.position_embedding.weight", Change::Keep),
        "conv1.weight" => one("vision_model.embeddings.patch_embedding.weight", Change::Keep),
        "ln_pre.weight" => one("vision_model.pre_layrnorm.weight", Change::Keep),
        "ln_pre.bias" => one("vision_model.pre_layrnorm.bias", Change::Keep),
        "ln_post.weight" => one("vision_model.post_layernorm.weight", Change::Keep),
        "ln_post.bias" => one("vision_model.post_layernorm.bias", Change::Keep),
        "proj" => one("visual_projection.weight", Change::Transpose),
        // The blocks have the names of the text's.
        block if block.starts_with("transformer.resblocks.") => {
            let names = TEXT.rename(block, None)?.into_iter();
            Some(names.map(|(name, change)| (name.replacen("text_model", "vision_model", 1), change)).collect())
        }
        _ => None,
    }
}

/// The tensors that a model reads: stored key, name, change.
///
/// # Errors
/// A key that is not one of such a model's, with the kind of model that has it where that is known.
pub fn tensors(shapes: &Shapes, place: &str) -> Result<Vec<(String, String, Change)>> {
    const OTHERS: [(&str, &str); 5] = [
        ("visual.layer1.", "a CLIP with a ResNet"),
        ("visual.trunk.", "a CLIP with a picture encoder of timm"),
        ("text.", "a CLIP with a text encoder of another kind"),
        ("text_decoder.", "CoCa"),
        ("logit_bias", "SigLIP"),
    ];
    let other = OTHERS.iter().find(|(prefix, _)| shapes.keys().any(|key| key.starts_with(prefix)));
    if let Some((_, kind)) = other {
        let error = Error::new("unsupported model").at(place).expected("a CLIP with a vision transformer");
        return Err(error.found(kind));
    }
    let mut found = Vec::new();
    for key in shapes.keys() {
        match rename(key) {
            Some(names) => found.extend(names.into_iter().map(|(name, change)| (key.clone(), name, change))),
            None => {
                let known: Vec<String> = found.into_iter().map(|(stored, ..)| stored).collect();
                return Err(unexpected_key_error(place, key, &known));
            }
        }
    }
    Ok(found)
}

/// The config of a model whose tensors have these shapes under transformers' names. `stored` are the file's own names;
/// openai/CLIP's own releases have another activation than OpenCLIP's. Heads are counted as in all published models.
///
/// # Errors
/// A tensor is missing or has another number of axes.
pub fn config_of(named: &Shapes, stored: &Shapes, place: &str) -> Result<ClipModelConfig> {
    let openai = OPENAI.iter().any(|key| stored.contains_key(*key));
    let mut text = original_config::text_encoder(true, named, place)?;
    text["hidden_act"] = if openai { "quick_gelu" } else { "gelu" }.into();
    let axes = |name: &str, count: usize| match named.get(name) {
        Some(shape) if shape.len() == count => Ok(shape),
        found => {
            let found = found.map_or_else(|| "no such tensor".to_owned(), |shape| format!("{shape:?}"));
            let error = Error::new("tensor shape").at(format!("{place}: `{name}`"));
            Err(error.expected(format!("{count} axes")).found(found))
        }
    };
    let patches = axes("vision_model.embeddings.patch_embedding.weight", 4)?;
    let (width, patch) = (patches[0], patches[3]);
    let places = axes("vision_model.embeddings.position_embedding.weight", 2)?[0];
    let inner = axes("vision_model.encoder.layers.0.mlp.fc1.weight", 2)?[0];
    let layer = |n: &usize| named.contains_key(&format!("vision_model.encoder.layers.{n}.mlp.fc1.weight"));
    let vision = json!({
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": (0..).take_while(layer).count(),
        "num_attention_heads": (width / head_width(width)).max(1),
        "image_size": patch.saturating_mul(places.saturating_sub(1).isqrt()),
        "patch_size": patch,
        "hidden_act": text["hidden_act"],
    });
    let projection = axes("visual_projection.weight", 2)?[0];
    let config = json!({ "projection_dim": projection, "text_config": text, "vision_config": vision });
    ClipModelConfig::from_json(&config, place)
}

/// Channels of a head of the published picture encoders (OpenCLIP, `model_configs/`: ViT-H, g, G, e; all others 64).
fn head_width(width: usize) -> usize {
    match width {
        1280 => 80,
        1408 => 88,
        1664 => 104,
        1792 => 112,
        _ => 64,
    }
}

/// `config`, found from shapes, corrected by an `open_clip_config.json`, and how it wants pictures prepared.
///
/// # Errors
/// Something that scumble does not implement.
pub fn corrected(config: ClipModelConfig, given: &Value, place: &str) -> Result<(ClipModelConfig, PicturePreparation)> {
    let mut config = config;
    let model = &given["model_cfg"];
    let wrong = |field: &str, expected: &str, found: &Value| {
        Error::new("unsupported config").at(format!("{place}: `{field}`")).expected(expected).found(found)
    };
    if let Some(quick) = model["quick_gelu"].as_bool() {
        use crate::models::config::Activation;
        let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
        (config.text.activation, config.vision.activation) = (activation, activation);
    }
    for part in ["vision_cfg", "text_cfg"] {
        for field in
            ["ls_init_value", "hf_model_name", "timm_model_name", "attentional_pool", "norm_kwargs", "act_kwargs"]
        {
            let value = &model[part][field];
            let neutral = value.is_null() || value == &json!(false) || value == &json!({});
            if !neutral {
                return Err(wrong(&format!("{part}.{field}"), "no such field", value));
            }
        }
    }
    let pool = &model["vision_cfg"]["pool_type"];
    if !pool.is_null() && pool != "tok" {
        return Err(wrong("vision_cfg.pool_type", "\"tok\"", pool));
    }
    if let Some(heads) = model["text_cfg"]["heads"].as_u64() {
        config.text.head_count = heads as usize;
    }
    if let Some(width) = model["vision_cfg"]["head_width"].as_u64().filter(|width| *width > 0) {
        config.vision.head_count = config.vision.hidden_size / width as usize;
    }
    for (part, heads, width) in [
        ("text_cfg.heads", config.text.head_count, config.text.hidden_size),
        ("vision_cfg.head_width", config.vision.head_count, config.vision.hidden_size),
    ] {
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(wrong(part, &format!("heads that divide {width} channels"), &json!(heads)));
        }
    }
    let side = config.vision.image_size;
    let prepare = &given["preprocess_cfg"];
    let mode = &prepare["resize_mode"];
    if !mode.is_null() && mode != "shortest" {
        return Err(wrong("preprocess_cfg.resize_mode", "\"shortest\"", mode));
    }
    let resample = match prepare["interpolation"].as_str() {
        None | Some("bicubic") => 3,
        Some("bilinear") => 2,
        Some(_) => {
            return Err(wrong(
                "preprocess_cfg.interpolation",
                "\"bicubic\" or \"bilinear\"",
                &prepare["interpolation"],
            ));
        }
    };
    let fields = json!({
        "size": side, "crop_size": side, "resample": resample, "image_mean": prepare["mean"], "image_std": prepare["std"],
    });
    Ok((config, PicturePreparation::from_json(&fields, place)?))
}
