//! A directory in diffusers' layout as a single file in the original key names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::super::checkpoint::{Checkpoint, PipelineClass, TokenizerFiles};
use super::super::file_source::Change;
use super::super::files::Files;
use super::super::index::{DIFFUSERS_STEM, TRANSFORMERS_STEM};
use super::super::original_config::{self, Version};
use super::super::original_keys::{SD1_TEXT, SD2_TEXT, SDXL_TEXT, SDXL_TEXT_2, Shapes, TextLayout, UNET, VAE};
use super::super::single_file::{Translated, translate};
use super::super::stored::FileType;
use super::super::tensor_file::TensorFile;
use super::super::{keys, shown};
use super::original_names::{OpenClip, UnetNames, open_clip, vae};
use super::{Plan, Planned, whole_part};
use crate::error::{Error, Result};
use crate::models::config::{ClipConfig, UnetConfig, VaeConfig};

/// Tensors of a part under diffusers' names: the file, the stored name, the change.
type Stored = BTreeMap<String, (Arc<TensorFile>, String, Change)>;

/// The file's plan, and what of the directory the file cannot tell, one sentence each.
///
/// # Errors
/// When the directory is no Stable Diffusion 1.x, 2.x or XL, or has a part that the original layout lacks.
pub fn plan(path: &Path) -> Result<(Plan, Vec<String>)> {
    let checkpoint = Checkpoint::open(path)?;
    let files = Files::Directory(path.to_path_buf());
    if checkpoint.class == PipelineClass::LatentConsistency {
        let error = Error::new("no single-file layout").at(path.display()).found(checkpoint.class.name());
        return Err(error.expected("Stable Diffusion 1.x, 2.x or XL"));
    }
    let gelu = files.json("text_encoder/config.json")?["hidden_act"] == "gelu";
    let layouts: &[TextLayout] = match (checkpoint.class, gelu) {
        (PipelineClass::StableDiffusionXl, _) => &[SDXL_TEXT, SDXL_TEXT_2],
        (_, true) => &[SD2_TEXT],
        (_, false) => &[SD1_TEXT],
    };
    let mut plan = Plan::new();
    let unet = stored(&files, "unet", DIFFUSERS_STEM, keys::unet)?;
    let names = UnetNames::new(&unet.keys().cloned().collect::<BTreeSet<_>>());
    for (name, source) in &unet {
        let original = names.original(name).ok_or_else(|| no_name(&files.place("unet"), name))?;
        push(&mut plan, format!("{UNET}{original}"), source, false)?;
    }
    let decoder = stored(&files, "vae", DIFFUSERS_STEM, keys::vae)?;
    let levels = checkpoint.vae.config.block_out_channels.len();
    for (name, source) in &decoder {
        let (original, convolution) = vae(name, levels).ok_or_else(|| no_name(&files.place("vae"), name))?;
        push(&mut plan, format!("{VAE}{original}"), source, convolution)?;
    }
    let mut texts = Vec::new();
    for (layout, folder) in layouts.iter().zip(["text_encoder", "text_encoder_2"]) {
        let text = stored(&files, folder, TRANSFORMERS_STEM, |key| keys::text_encoder(key, layout.with_projection))?;
        add_text(&mut plan, layout, &text, &files.place(folder))?;
        texts.push(text);
    }
    let marks = marks(&checkpoint, layouts);
    for mark in &marks {
        plan.tensors.push(Planned {
            name: (*mark).into(),
            file_type: FileType::Float(crate::tensor::DType::F32),
            shape: vec![0],
            parts: Vec::new(),
        });
    }
    let place = path.display().to_string();
    let back = translate(&shapes(&plan), &place)?;
    check_way_back(&back, &[&unet, &decoder], &texts, &place)?;
    let notes = notes(&checkpoint, &back, &marks, &place)?;
    Ok((plan, notes))
}

/// The tensors of a part, under the names that the models use.
fn stored(files: &Files, folder: &str, stem: &str, map: impl Fn(&str) -> Option<(String, Change)>) -> Result<Stored> {
    let mut found = Stored::new();
    for file in files.weights(folder, stem)? {
        for key in file.names() {
            if let Some((name, change)) = map(key) {
                found.insert(name, (Arc::clone(&file), key.to_string(), change));
            }
        }
    }
    Ok(found)
}

fn no_name(place: &str, name: &str) -> Error {
    let error = Error::new("no original name").at(format!("{place}: `{}`", shown(name)));
    error.expected("tensors that single files have")
}

/// Adds a tensor; `convolution`: with two axes of length 1 more.
fn push(plan: &mut Plan, name: String, source: &(Arc<TensorFile>, String, Change), convolution: bool) -> Result<()> {
    let (file, stored, change) = source;
    plan.add(&name, file, stored, *change)?;
    if let (true, Some(added)) = (convolution, plan.tensors.last_mut()) {
        added.shape.extend([1, 1]);
    }
    Ok(())
}

fn add_text(plan: &mut Plan, layout: &TextLayout, text: &Stored, place: &str) -> Result<()> {
    let mut joined: BTreeMap<String, [Option<&str>; 3]> = BTreeMap::new();
    for (name, source) in text {
        if !layout.open_clip {
            push(plan, format!("{}{name}", layout.prefix), source, false)?;
            continue;
        }
        match open_clip(name).ok_or_else(|| no_name(place, name))? {
            OpenClip::Named(original) => push(plan, format!("{}{original}", layout.prefix), source, false)?,
            OpenClip::Transposed(original) => {
                let (file, stored, _) = source;
                plan.add(&format!("{}{original}", layout.prefix), file, stored, Change::Transpose)?;
            }
            OpenClip::Third(original, part) => joined.entry(original).or_default()[part] = Some(name),
        }
    }
    for (original, thirds) in joined {
        let mut whole: Option<Planned> = None;
        for name in thirds {
            let (file, stored, _) = name.and_then(|name| text.get(name)).ok_or_else(|| no_name(place, &original))?;
            let shape = file.shape(stored).unwrap_or_default();
            let kind = file.file_type(stored).ok_or_else(|| no_name(place, &original))?;
            let (shape, part) = whole_part(file, stored, shape, Change::Keep)?;
            match &mut whole {
                None => {
                    let name = format!("{}{original}", layout.prefix);
                    whole = Some(Planned { name, file_type: kind, shape, parts: vec![part] });
                }
                Some(whole) if whole.file_type == kind && whole.shape.get(1..) == shape.get(1..) => {
                    whole.shape[0] += shape[0];
                    whole.parts.push(part);
                }
                Some(_) => {
                    let error = Error::new("tensors that cannot be joined").at(format!("{place}: `{original}`"));
                    return Err(error.expected("query, key and value of one type and shape"));
                }
            }
        }
        plan.tensors.extend(whole);
    }
    Ok(())
}

/// Empty tensors that tell the prediction type where it is not the one of the layout.
fn marks(checkpoint: &Checkpoint, layouts: &[TextLayout]) -> Vec<&'static str> {
    let mut marks = Vec::new();
    let predicts_velocity = checkpoint.scheduler.get("prediction_type").is_some_and(|kind| kind == "v_prediction");
    if predicts_velocity && layouts[0] != SD2_TEXT {
        marks.push("v_pred");
    }
    if checkpoint.scheduler.get("rescale_betas_zero_snr").is_some_and(|flag| *flag == Value::Bool(true)) {
        marks.push("ztsnr");
    }
    marks
}

fn shapes(plan: &Plan) -> Shapes {
    plan.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect()
}

/// The file, read as scumble reads single files, must give every tensor of the directory in its shape.
fn check_way_back(back: &Translated, parts: &[&Stored; 2], texts: &[Stored], place: &str) -> Result<()> {
    let vae: Vec<_> = back.vae.tensors.iter().chain(&back.vae_encoder).map(|(_, name, _)| name).collect();
    let unet = back.unet.tensors.iter().map(|(_, name, _)| name).collect();
    let mut pairs = vec![(unet, parts[0]), (vae, parts[1])];
    for ((_, part), text) in back.text_encoders.iter().zip(texts) {
        pairs.push((part.tensors.iter().map(|(_, name, _)| name).collect(), text));
    }
    for (found, expected) in pairs {
        let found: BTreeSet<&String> = found.into_iter().collect();
        let expected: BTreeSet<&String> = expected.keys().collect();
        if let Some(name) = found.symmetric_difference(&expected).next() {
            return Err(no_name(place, name));
        }
    }
    Ok(())
}

/// What a reader of the file will assume that the directory says otherwise.
fn notes(checkpoint: &Checkpoint, back: &Translated, marks: &[&str], place: &str) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut note = |differs: bool, what: &str| {
        if differs {
            notes.push(format!("the single file cannot tell {what}: readers will take the published model's"));
        }
    };
    let ours = &checkpoint.unet.config;
    match UnetConfig::from_json(&back.unet.config, place) {
        Ok(theirs) => {
            note(ours.head_counts() != theirs.head_counts(), "the UNet's attention heads");
            note(ours.sample_size != theirs.sample_size, "the default picture size");
            note(ours.norm_num_groups != theirs.norm_num_groups, "the UNet's normalisation groups");
            let same = UnetConfig {
                sample_size: theirs.sample_size,
                norm_num_groups: theirs.norm_num_groups,
                upcast_attention: theirs.upcast_attention,
                ..ours.with_heads_of(&theirs)
            };
            note(same != theirs, "all of the UNet's config");
        }
        Err(_) => note(true, "the UNet's normalisation groups"),
    }
    let vae = VaeConfig::from_json(&back.vae.config, place);
    note(!vae.is_ok_and(|vae| vae == checkpoint.vae.config), "all of the VAE's config");
    for (part, (layout, text)) in checkpoint.text_encoders.iter().zip(&back.text_encoders) {
        let theirs = ClipConfig::from_json(&text.config, layout.with_projection, place)?;
        note(part.config.head_count != theirs.head_count, "a text encoder's attention heads");
        let clip = matches!(&part.tokenizer, TokenizerFiles::Clip { .. }) || part.config.vocab_size == 49_408;
        note(!clip, "a tokenizer other than CLIP's");
    }
    let mut assumed = original_config::scheduler(back.version);
    if marks.contains(&"v_pred") {
        assumed["prediction_type"] = "v_prediction".into();
    }
    let value = |config: &Value, field: &str, default: &Value| config.get(field).unwrap_or(default).clone();
    for (field, default) in [
        ("prediction_type", Value::from("epsilon")),
        ("beta_start", 0.0001.into()),
        ("beta_end", 0.02.into()),
        ("beta_schedule", "linear".into()),
        ("_class_name", Value::Null),
    ] {
        let differs = value(&checkpoint.scheduler, field, &default) != value(&assumed, field, &default);
        note(differs, &format!("the scheduler's `{}`", if field == "_class_name" { "class" } else { field }));
    }
    if back.version == Version::Sd2 && value(&checkpoint.scheduler, "prediction_type", &"epsilon".into()) == "epsilon" {
        notes.push("draw with `--prediction-type epsilon`".into());
    }
    Ok(notes)
}
