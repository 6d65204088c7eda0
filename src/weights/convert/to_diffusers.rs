//! A single file as a directory in diffusers' layout.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::file_source::Change;
use super::super::original_config::Version;
use super::super::single_file::{scheduler, translate};
use super::super::tensor_file::TensorFile;
use super::Plan;
use crate::error::Result;

/// A file of the directory.
pub enum Content {
    /// A config.
    Json(Value),
    /// Weights.
    Tensors(Plan),
    /// Not one file but the files of CLIP's tokenizer with this padding token.
    Tokenizer(&'static str),
}

/// Every file of the directory: its path relative to the root (of a tokenizer, its folder) and what goes into it.
///
/// `prediction_type` replaces what the file's version implies. The configs are those of the published model of the same
/// version, with what the tensors' shapes tell.
///
/// # Errors
/// When the file is no Stable Diffusion 1.x, 2.x or XL (base), or has tensors that no layer has.
pub fn files(file: &Arc<TensorFile>, prediction_type: Option<&str>) -> Result<Vec<(String, Content)>> {
    let shapes = file.names().map(|key| (key.to_string(), file.shape(key).unwrap_or_default().to_vec())).collect();
    let translated = translate(&shapes, file.place())?;
    let version = translated.version;
    let plan = |tensors: &[(String, String, Change)]| {
        let mut plan = Plan::new();
        for (stored, name, change) in tensors {
            plan.add(name, file, stored, *change)?;
        }
        Ok(Content::Tensors(plan))
    };
    let mut scheduler = scheduler(version, &shapes);
    if let Some(kind) = prediction_type {
        scheduler["prediction_type"] = kind.into();
    }
    let mut files = vec![("model_index.json".to_string(), Content::Json(index(version, &scheduler)))];
    files.push(("scheduler/scheduler_config.json".into(), Content::Json(scheduler)));
    if version == Version::X4 {
        let content = Content::Json(super::super::original_config::low_res_scheduler());
        files.push(("low_res_scheduler/scheduler_config.json".into(), content));
    }
    for (number, (layout, part)) in translated.text_encoders.iter().enumerate() {
        let suffix = if number == 0 { "" } else { "_2" };
        let mut config = part.config.clone();
        config["architectures"] = json!([text_class(layout.with_projection)]);
        config["model_type"] = "clip_text_model".into();
        config["layer_norm_eps"] = 1e-5.into();
        files.push((format!("text_encoder{suffix}/config.json"), Content::Json(config)));
        files.push((format!("text_encoder{suffix}/model.safetensors"), plan(&part.tensors)?));
        files.push((format!("tokenizer{suffix}"), Content::Tokenizer(layout.pad_token())));
    }
    files.push(("unet/config.json".into(), Content::Json(translated.unet.config.clone())));
    files.push(("unet/diffusion_pytorch_model.safetensors".into(), plan(&translated.unet.tensors)?));
    let vae = [&translated.vae.tensors[..], &translated.vae_encoder].concat();
    files.push(("vae/config.json".into(), Content::Json(translated.vae.config.clone())));
    files.push(("vae/diffusion_pytorch_model.safetensors".into(), plan(&vae)?));
    Ok(files)
}

fn text_class(with_projection: bool) -> &'static str {
    if with_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }
}

/// `model_index.json`.
fn index(version: Version, scheduler: &Value) -> Value {
    let none = json!([null, null]);
    let tokenizer = json!(["transformers", "CLIPTokenizer"]);
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": none,
        "image_encoder": none,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", text_class(false)],
        "tokenizer": tokenizer,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    if version == Version::Sdxl {
        index["_class_name"] = "StableDiffusionXLPipeline".into();
        index["force_zeros_for_empty_prompt"] = true.into();
        index["text_encoder_2"] = json!(["transformers", text_class(true)]);
        index["tokenizer_2"] = tokenizer;
    } else if version == Version::X4 {
        index["_class_name"] = "StableDiffusionUpscalePipeline".into();
        index["low_res_scheduler"] = json!(["diffusers", "DDPMScheduler"]);
        index["max_noise_level"] = 350.into();
        index["safety_checker"] = none.clone();
        index["watermarker"] = none;
        index.as_object_mut().map(|parts| parts.remove("image_encoder"));
    } else {
        index["requires_safety_checker"] = false.into();
        index["safety_checker"] = none;
    }
    index
}
