//! Names of tensors: which are skipped by rule, and how older and original layouts call what the models ask for.

use super::file_source::Change;

/// Buffers and by-products that checkpoints carry along and no computation reads. Everything else that no layer
/// consumes is an error.
///
/// * `*.position_ids`: 0, 1, 2, ... as a buffer of older transformers versions.
/// * `model_ema.*`: a second, averaged copy of the UNet; diffusers' loader takes the first copy too.
/// * DDPM buffers, which follow from the schedule.
/// * `logit_scale`, vision towers (`visual.`, `vision_model.`): the other half of CLIP; `attn_mask`: its causal mask.
/// * `loss.*`, `safety_checker.*`, `optimizer_states.*`, `callbacks.*`, `global_step`: training and publishing.
/// * `v_pred`, `ztsnr`: empty marks that tell the prediction type (see [`super::single_file`]).
///
/// In a single file the rules hold for keys with and without the prefix of their part.
pub fn is_skipped(key: &str) -> bool {
    const BUFFERS: [&str; 11] = [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "lvlb_weights",
        "logvar",
        "global_step",
        "scale_factor",
        "denoiser.sigmas",
        "v_pred",
        "ztsnr",
        "attn_mask",
    ];
    const PREFIXES: [&str; 11] = [
        "model_ema.",
        "sqrt_",
        "log_one_minus_",
        "posterior_",
        "loss.",
        "visual.",
        "vision_model.",
        "visual_projection.",
        "safety_checker.",
        "optimizer_states.",
        "callbacks.",
    ];
    let last = key.rsplit('.').next().unwrap_or(key);
    last == "position_ids"
        || last == "logit_scale"
        || BUFFERS.contains(&key)
        || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// A text encoder's tensor: transformers writes `CLIPTextModel` with the prefix `text_model.` before version 5.6 and
/// without it since; here it always has it. A projection in a file for an encoder without one is left out, as
/// transformers leaves it out.
pub fn text_encoder(stored: &str, with_projection: bool) -> Option<(String, Change)> {
    if is_skipped(stored) || (stored == "text_projection.weight" && !with_projection) {
        return None;
    }
    let bare = ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|prefix| stored.starts_with(prefix));
    let name = if bare { format!("text_model.{stored}") } else { stored.to_string() };
    Some((name, Change::Keep))
}

/// A UNet's tensor in a diffusers file.
pub fn unet(stored: &str) -> Option<(String, Change)> {
    (!is_skipped(stored)).then(|| (stored.to_string(), Change::Keep))
}

/// A tensor of unCLIP's prior in a diffusers file: the tables of places and of the last token lie in a batch of one.
pub fn prior(stored: &str) -> Option<(String, Change)> {
    let tables = ["positional_embedding", "prd_embedding"];
    Some((stored.to_string(), if tables.contains(&stored) { Change::SqueezeFront } else { Change::Keep }))
}

/// A VAE's or a MoVQ's tensor in a diffusers file: older versions called the attention's layers query, key, value and proj_attn and
/// kept some of them as 1x1 convolutions.
pub fn vae(stored: &str) -> Option<(String, Change)> {
    if is_skipped(stored) {
        return None;
    }
    let attention = stored.split_once(".attentions.").and_then(|(block, rest)| Some((block, rest.split_once('.')?)));
    let Some((block, (index, rest))) = attention else {
        return Some((stored.to_string(), Change::Keep));
    };
    let (layer, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let layer = match layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        other => other,
    };
    let change = if kind == "weight" && layer.starts_with("to_") { Change::Squeeze } else { Change::Keep };
    Some((format!("{block}.attentions.{index}.{layer}.{kind}"), change))
}
