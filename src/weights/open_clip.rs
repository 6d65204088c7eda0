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

/// The config of a model whose tensors have these shapes under transformers' names. `stored` are the file's own names; `given` is
/// what an `open_clip_config.json` says, or null. Without one, heads are as wide as in all published models, and the activation
/// is OpenCLIP's, or openai/CLIP's in its own releases.
///
/// # Errors
/// A tensor is missing or has another number of axes; something that scumble does not implement.
pub fn config_of(named: &Shapes, stored: &Shapes, given: &Value, place: &str) -> Result<ClipModelConfig> {
    let axes = |name: &str, count: usize| match named.get(name) {
        Some(shape) if shape.len() == count => Ok(shape),
        found => {
            let found = found.map_or_else(|| "no such tensor".to_owned(), |shape| format!("{shape:?}"));
            let error = Error::new("tensor shape").at(format!("{place}: `{name}`"));
            Err(error.expected(format!("{count} axes")).found(found))
        }
    };
    let openai = OPENAI.iter().any(|key| stored.contains_key(*key));
    let quick = given["model_cfg"]["quick_gelu"].as_bool().unwrap_or(openai);
    let activation = if quick { "quick_gelu" } else { "gelu" };
    let mut text = original_config::text_encoder(true, named, place)?;
    let width = axes("text_model.embeddings.token_embedding.weight", 2)?[1];
    let told = given["model_cfg"]["text_cfg"]["heads"].as_u64();
    text["num_attention_heads"] = heads(width, told, 64, place)?.into();
    text["hidden_act"] = activation.into();
    let patches = axes("vision_model.embeddings.patch_embedding.weight", 4)?;
    let (width, patch) = (patches[0], patches[3]);
    let places = axes("vision_model.embeddings.position_embedding.weight", 2)?[0];
    let inner = axes("vision_model.encoder.layers.0.mlp.fc1.weight", 2)?[0];
    let layer = |n: &usize| named.contains_key(&format!("vision_model.encoder.layers.{n}.mlp.fc1.weight"));
    let own = given["model_cfg"]["vision_cfg"]["head_width"].as_u64().map(|width| width as usize);
    let vision = json!({
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": (0..).take_while(layer).count(),
        "num_attention_heads": heads(width, None, own.unwrap_or_else(|| head_width(width)), place)?,
        "image_size": patch.saturating_mul(places.saturating_sub(1).isqrt()),
        "patch_size": patch,
        "hidden_act": activation,
    });
    let projection = axes("visual_projection.weight", 2)?[0];
    let config = json!({ "projection_dim": projection, "text_config": text, "vision_config": vision });
    ClipModelConfig::from_json(&config, place)
}

/// As many heads as are told, or as many of this width as make up all channels.
fn heads(channels: usize, told: Option<u64>, width: usize, place: &str) -> Result<u64> {
    let fits = width > 0 && channels > 0 && channels.is_multiple_of(width);
    told.or(fits.then(|| (channels / width) as u64)).ok_or_else(|| {
        Error::new("the number of attention heads is not known")
            .at(place)
            .expected(format!("a multiple of {width} channels, or an open_clip_config.json beside the file"))
            .found(channels)
    })
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

/// How an `open_clip_config.json` wants pictures of `side` pixels a side prepared.
///
/// # Errors
/// Something there, of the model too, that scumble does not implement.
pub fn preparation(given: &Value, side: usize, place: &str) -> Result<PicturePreparation> {
    let refused = |field: String, expected: &str, found: &Value| {
        Err(Error::new("unsupported config").at(format!("{place}: `{field}`")).expected(expected).found(found))
    };
    let model = &given["model_cfg"];
    const ABSENT: [&str; 6] =
        ["ls_init_value", "hf_model_name", "timm_model_name", "attentional_pool", "norm_kwargs", "act_kwargs"];
    for part in ["vision_cfg", "text_cfg"] {
        for field in ABSENT {
            let value = &model[part][field];
            if !(value.is_null() || value == &json!(false) || value == &json!({})) {
                return refused(format!("model_cfg.{part}.{field}"), "no such field", value);
            }
        }
    }
    let prepare = &given["preprocess_cfg"];
    let words = [
        ("model_cfg.vision_cfg.pool_type", &model["vision_cfg"]["pool_type"], "tok"),
        ("preprocess_cfg.resize_mode", &prepare["resize_mode"], "shortest"),
    ];
    if let Some((field, found, word)) = words.into_iter().find(|(_, found, word)| !found.is_null() && found != word) {
        return refused(field.to_owned(), &format!("{word:?}"), found);
    }
    let resample = match &prepare["interpolation"] {
        Value::Null => 3,
        word if word == "bicubic" => 3,
        word if word == "bilinear" => 2,
        other => return refused("preprocess_cfg.interpolation".to_owned(), "\"bicubic\" or \"bilinear\"", other),
    };
    let fields = json!({
        "size": side, "crop_size": side, "resample": resample, "image_mean": prepare["mean"], "image_std": prepare["std"],
    });
    PicturePreparation::from_json(&fields, place)
}
