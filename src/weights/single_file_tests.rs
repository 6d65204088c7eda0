use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::tensor::DType;
use crate::weights::shapes::parse_manifest;
use crate::weights::{Source, TensorInfo};

/// A manifest of tests/goldens/keys, every name with a prefix.
fn manifest(prefix: &str, name: &str) -> Shapes {
    let path = format!("{}/tests/goldens/keys/{name}.tsv", env!("CARGO_MANIFEST_DIR"));
    let tensors = parse_manifest(name, &std::fs::read_to_string(path).unwrap()).unwrap();
    tensors.into_iter().map(|(key, TensorInfo { shape, .. })| (format!("{prefix}{key}"), shape)).collect()
}

/// The union of manifests, as one file has them.
fn single(manifests: &[(&str, &str)]) -> Shapes {
    manifests.iter().flat_map(|(prefix, name)| manifest(prefix, name)).collect()
}

fn sd1() -> Shapes {
    single(&[
        ("", "ORIG_SD1.5_unet"),
        ("", "ORIG_SD1_vae"),
        ("cond_stage_model.transformer.text_model.", "CLIP_L_text_SD1_SDXL_1"),
    ])
}

fn sd2() -> Shapes {
    single(&[("", "ORIG_SD2.1_unet"), ("", "ORIG_SD1_vae"), ("cond_stage_model.model.", "ORIG_OpenCLIP_H_text")])
}

fn x4() -> Shapes {
    let schedule =
        ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "log_one_minus_alphas_cumprod"];
    let file =
        single(&[("", "ORIG_SD_x4_unet"), ("", "ORIG_SD_x4_vae"), ("cond_stage_model.model.", "ORIG_OpenCLIP_H_text")]);
    with(file, &schedule.map(|key| format!("{LOW_SCALE}{key}")).each_ref().map(String::as_str), &[1000])
}

fn sdxl() -> Shapes {
    single(&[
        ("", "ORIG_SDXL_unet"),
        ("", "ORIG_SD1_vae"),
        ("conditioner.embedders.0.transformer.text_model.", "CLIP_L_text_SD1_SDXL_1"),
        ("conditioner.embedders.1.model.", "ORIG_OpenCLIP_bigG_text"),
    ])
}

/// Names and shapes that a translation gives; a name twice fails.
fn given(file: &Shapes, part: &Translation) -> Shapes {
    let mut given = Shapes::new();
    for (stored, name, change) in &part.tensors {
        let earlier = given.insert(name.clone(), changed_shape(&file[stored], *change));
        assert!(earlier.is_none(), "{name} twice");
    }
    given
}

#[test]
fn real_manifests_translate_exactly() {
    let (clip, h, bigg) =
        ("CLIP_L_text_SD1_SDXL_1", "OpenCLIP_H_text_23L_SD2_diffusers", "OpenCLIP_bigG_text_32L_proj_SDXL_2");
    type Case<'a> = (Shapes, Version, &'a str, Vec<(&'a str, &'a str)>);
    let cases: [Case<'_>; 4] = [
        (sd1(), Version::Sd1, "SD1.5_UNet_512px_64x64", vec![("text_model.", clip)]),
        (sd2(), Version::Sd2, "SD2.1_UNet_768px_96x96", vec![("text_model.", h)]),
        (x4(), Version::X4, "SD_x4_upscaler_UNet_256_1024_lat_256x256", vec![("text_model.", h)]),
        (sdxl(), Version::Sdxl, "SDXL_base_UNet_1024px", vec![("text_model.", clip), ("", bigg)]),
    ];
    for (file, version, unet, texts) in cases {
        let translated = translate(&file, "test").unwrap();
        assert_eq!(translated.version, version);
        assert_eq!(given(&file, &translated.unet), manifest("", unet));
        assert_eq!(translated.text_encoders.len(), texts.len());
        for ((_, part), (prefix, name)) in translated.text_encoders.iter().zip(texts) {
            assert_eq!(given(&file, part), manifest(prefix, name), "{name}");
        }
        let encoder = VaeConfig::from_json(&translated.vae.config, "vae").unwrap().encoder_names();
        let decoder = given(&file, &translated.vae);
        let vae = manifest("", if version == Version::X4 { "SD_x4_VAE_f4" } else { "VAE_KL_f8_total" });
        for (name, shape) in &decoder {
            assert_eq!(vae.get(name), Some(shape), "{name}");
        }
        let mut both: Vec<String> = encoder.into_iter().chain(decoder.into_keys()).collect();
        both.sort();
        assert_eq!(both, vae.into_keys().collect::<Vec<_>>());
    }
}

/// The published configs (facts of the three repositories' `config.json`).
#[test]
fn real_manifests_give_the_published_configs() {
    let sd1_unet = json!({ "sample_size": 64, "cross_attention_dim": 768 });
    let sd2_unet = json!({
        "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": true, "upcast_attention": true,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    let sdxl_unet = json!({
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": true, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    });
    let x4_unet = json!({
        "sample_size": 128, "in_channels": 7, "cross_attention_dim": 1024, "attention_head_dim": 8, "num_class_embeds": 1000,
        "block_out_channels": [256, 512, 512, 1024], "use_linear_projection": true,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "only_cross_attention": [true, true, true, false],
    });
    let clip_l = json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "projection_dim": 768, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1,
    });
    let h = json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
        "hidden_act": "gelu", "projection_dim": 512, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1,
    });
    let bigg = json!({
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 1280, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1,
    });
    for (file, unet, scaling, texts) in [
        (sd1(), sd1_unet, 0.18215, vec![(&clip_l, false)]),
        (sd2(), sd2_unet, 0.18215, vec![(&h, false)]),
        (x4(), x4_unet, 0.08333, vec![(&h, false)]),
        (sdxl(), sdxl_unet, 0.13025, vec![(&clip_l, false), (&bigg, true)]),
    ] {
        let translated = translate(&file, "test").unwrap();
        let found = UnetConfig::from_json(&translated.unet.config, "derived").unwrap();
        assert_eq!(found, UnetConfig::from_json(&unet, "published").unwrap());
        let levels = &[128, 256, 512, 512][..if translated.version == Version::X4 { 3 } else { 4 }];
        let vae = json!({
            "block_out_channels": levels, "layers_per_block": 2, "scaling_factor": scaling,
            "down_block_types": vec!["DownEncoderBlock2D"; levels.len()],
            "up_block_types": vec!["UpDecoderBlock2D"; levels.len()],
        });
        let found = VaeConfig::from_json(&translated.vae.config, "derived").unwrap();
        assert_eq!(found, VaeConfig::from_json(&vae, "published").unwrap());
        for ((_, part), (published, projects)) in translated.text_encoders.iter().zip(texts) {
            let found = ClipConfig::from_json(&part.config, projects, "derived").unwrap();
            assert_eq!(found, ClipConfig::from_json(published, projects, "published").unwrap());
        }
    }
}

/// CRC-32 as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

/// The values that tools/goldens/weights.py gives a stored tensor.
fn fill(name: &str, count: usize) -> Vec<f32> {
    let start = u64::from(crc32(name.as_bytes()));
    (0..count as u64).map(|i| ((i * 7919 + start) % 2048) as f32 / 64.0 - 16.0).collect()
}

/// Checksum of a tensor, as in tools/goldens/weights.py.
fn checksum(values: &[f32]) -> f64 {
    values.iter().enumerate().map(|(i, v)| f64::from(*v) * ((i * 31 + 7) % 1009) as f64).sum()
}

fn golden(version: &str) -> Value {
    let path = format!("{}/tests/goldens/weights/{version}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn shape_of(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The tiny single file of a golden, in an element type that holds its values exactly.
fn tiny_file(golden: &Value, dtype: DType) -> Vec<u8> {
    let tensors = golden["original"].as_object().unwrap().iter().map(|(name, shape)| {
        let shape = shape_of(shape);
        let values = fill(name, shape.iter().product());
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        (name.clone(), shape, bytes)
    });
    let kind = if dtype == DType::F16 { safetensors::Dtype::F16 } else { safetensors::Dtype::F32 };
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(kind, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn open_bytes(bytes: Vec<u8>) -> Result<Checkpoint> {
    from_file(&Arc::new(TensorFile::from_bytes(bytes, "tiny.safetensors")?), "tiny".into())
}

/// Compares a part's names, shapes and values with those that diffusers' conversion gave.
fn compare(weights: &dyn Source, golden: &Value, skip: &[String]) {
    let expected: BTreeMap<String, (Vec<usize>, f64)> = serde_json::from_value(golden.clone()).unwrap();
    let names: Vec<String> = expected.keys().filter(|name| !skip.contains(name)).cloned().collect();
    assert_eq!(weights.names(), names);
    for name in names {
        let (shape, sum) = &expected[&name];
        assert_eq!(&weights.info(&name).unwrap().shape, shape, "{name}");
        // The values are multiples of 1/64, so every sum is exact.
        assert_eq!(checksum(&weights.tensor(&name).unwrap()), *sum, "{name}");
    }
}

#[test]
fn tiny_models_translate_as_diffusers_translates_them() {
    for (version, dtype) in [("sd1", DType::F16), ("sd2", DType::F32), ("sdxl", DType::F16)] {
        let golden = golden(version);
        let model = open_bytes(tiny_file(&golden, dtype)).unwrap();
        let (parts, configs) = (&golden["parts"], &golden["configs"]);
        assert_eq!(model.unet.config, UnetConfig::from_json(&configs["unet"], "unet").unwrap());
        assert_eq!(model.vae.config, VaeConfig::from_json(&configs["vae"], "vae").unwrap());
        compare(&*model.unet.weights, &parts["unet"], &[]);
        compare(&*model.vae.weights, &parts["vae"], &model.vae.config.encoder_names());
        for (part, name) in model.text_encoders.iter().zip(["text_encoder", "text_encoder_2"]) {
            let projects = part.config.projection_dim.is_some();
            assert_eq!(part.config, ClipConfig::from_json(&configs[name], projects, name).unwrap());
            compare(&*part.weights, &parts[name], &[]);
        }
        let xl = version == "sdxl";
        assert_eq!((model.class == PipelineClass::StableDiffusionXl, model.force_zeros_for_empty_prompt), (xl, xl));
        assert_eq!(model.text_encoders.len(), if xl { 2 } else { 1 });
    }
}

/// Adds tensors of shape `shape` to a file's shapes.
fn with(mut shapes: Shapes, keys: &[&str], shape: &[usize]) -> Shapes {
    shapes.extend(keys.iter().map(|key| (key.to_string(), shape.to_vec())));
    shapes
}

#[test]
fn harmless_keys_are_skipped_and_others_are_named() {
    let harmless = [
        "model_ema.diffusion_modelinput_blocks00weight",
        "model_ema.decay",
        "betas",
        "alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "posterior_mean_coef1",
        "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.logit_scale",
    ];
    let file = with(sd1(), &harmless, &[3]);
    let translated = translate(&file, "test").unwrap();
    assert_eq!(given(&file, &translated.unet), manifest("", "SD1.5_UNet_512px_64x64"));
    for (key, near) in [
        ("model.diffusion_model.time_embed.1.weight", "`model.diffusion_model.time_embed.0.weight`"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.3.bias", "in_layers"),
        ("first_stage_model.decoder.mid.attn_1.r.weight", "attn_1"),
        ("first_stage_model.decoder.up.4.block.0.conv1.weight", "decoder.up"),
        ("betaz", "betaz"),
        ("cond_stage_mdel.transformer.text_model.final_layer_norm.weight", "cond_stage_model"),
    ] {
        let error = translate(&with(sd1(), &[key], &[3]), "test").unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains(near), "{error}");
    }
}

#[test]
fn other_models_are_named() {
    let mut inpainting = sd1();
    inpainting.insert(format!("{UNET}input_blocks.0.0.weight"), vec![320, 9, 3, 3]);
    let mut bare = sd1();
    bare.retain(|key, _| !key.starts_with("cond_stage_model."));
    let mut blind = sd1();
    blind.retain(|key, _| !key.starts_with(VAE));
    let refiner = single(&[
        ("", "ORIG_SDXL_unet"),
        ("", "ORIG_SD1_vae"),
        ("conditioner.embedders.0.model.", "ORIG_OpenCLIP_bigG_text"),
    ]);
    let only = |keys: &[&str]| with(Shapes::new(), keys, &[3, 3]);
    for (shapes, kind) in [
        (inpainting, "inpainting"),
        (bare, "without text encoder"),
        (blind, "without VAE"),
        (refiner, "refiner"),
        (only(&["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"]), "Stable Diffusion 3"),
        (only(&["double_blocks.0.img_attn.norm.key_norm.scale"]), "FLUX"),
        (only(&["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"]), "LoRA"),
        (only(&["unet.down_blocks.0.attentions.0.proj_in.lora.up.weight"]), "LoRA"),
        (only(&["emb_params"]), "textual inversion"),
        (only(&["control_model.time_embed.0.weight"]), "ControlNet"),
        (manifest("", "VAE_KL_f8_total"), "VAE"),
        (manifest("", "ORIG_SD1_vae"), "VAE"),
        (manifest("", "SD1.5_UNet_512px_64x64"), "diffusers UNet"),
        (manifest("", "CLIP_L_text_SD1_SDXL_1"), "text encoder"),
        (with(sdxl(), &["edm_mean"], &[1]), "Playground"),
        (only(&["a", "b"]), "(a, b)"),
        (Shapes::new(), "without tensors"),
    ] {
        let error = translate(&shapes, "test").unwrap_err().to_string();
        assert!(error.contains(kind), "{kind}: {error}");
    }
}

/// SD 2.x takes the layer before the last of a whole OpenCLIP; a file written from a diffusers model ends with it.
#[test]
fn the_last_layer_of_a_whole_open_clip_is_dropped() {
    let layers = |keep: usize, projection: bool| {
        let mut file = sd2();
        file.retain(|key, _| {
            let layer = key.split_once(".resblocks.").and_then(|(_, rest)| rest.split_once('.')?.0.parse().ok());
            layer.is_none_or(|n: usize| n < keep) && (projection || !key.ends_with(".text_projection"))
        });
        let part = &translate(&file, "test").unwrap().text_encoders[0].1;
        part.config["num_hidden_layers"].as_u64().unwrap()
    };
    for (stored, projection, used) in
        [(24, true, 23), (24, false, 23), (23, false, 23), (23, true, 23), (3, true, 2), (2, false, 2)]
    {
        assert_eq!(layers(stored, projection), used, "{stored} {projection}");
    }
}

#[test]
fn prediction_type_marks_and_override() {
    let golden = golden("sd1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    std::fs::write(&path, tiny_file(&golden, DType::F16)).unwrap();
    let model = Checkpoint::open(&path).unwrap();
    assert_eq!((model.name.as_str(), model.scheduler.get("prediction_type")), ("tiny", None));
    let options = super::super::checkpoint::CheckpointOptions { prediction_type: Some("v_prediction".into()) };
    assert_eq!(Checkpoint::open_with(&path, &options).unwrap().scheduler["prediction_type"], "v_prediction");
    let marked = scheduler(Version::Sdxl, &with(Shapes::new(), &["v_pred", "ztsnr"], &[0]));
    assert_eq!(marked["prediction_type"], "v_prediction");
    assert_eq!(marked["rescale_betas_zero_snr"], true);
    assert!(Checkpoint::open(&folder.path().join("x.ckpt")).is_err());
    std::fs::write(folder.path().join("x.ckpt"), b"PK").unwrap();
    assert!(Checkpoint::open(&folder.path().join("x.ckpt")).err().unwrap().to_string().contains("truncated"));
}

/// A tiny file's header, spoiled at one place, either opens or is an error: no panic, no endless work.
mod spoiled {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn single_files_are_survived(
            at in any::<prop::sample::Index>(),
            cut in 0usize..40,
            new in prop_oneof![
                "[\\[\\]{}\":,0-9a-z._]{0,20}",
                proptest::collection::vec(any::<char>(), 0..6).prop_map(|c| c.into_iter().collect::<String>()),
            ],
        ) {
            thread_local!(static GOOD: Vec<u8> = tiny_file(&golden("sd1"), DType::F16));
            GOOD.with(|good| {
                let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
                let mut header = good[8..8 + length].to_vec();
                let start = at.index(length);
                header.splice(start..length.min(start + cut), new.bytes());
                let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
                bytes.extend(header);
                bytes.extend(&good[8 + length..]);
                if let Err(error) = open_bytes(bytes) {
                    assert!(error.to_string().len() < 2000);
                }
            });
        }

        #[test]
        fn missing_and_renamed_tensors_are_survived(
            at in any::<prop::sample::Index>(),
            digit in "[0-9]",
            shape in proptest::collection::vec(0usize..100, 0..5),
            remove in any::<bool>(),
        ) {
            thread_local!(static GOOD: Shapes = sd1());
            let mut shapes = GOOD.with(Clone::clone);
            let key = shapes.keys().nth(at.index(shapes.len())).unwrap().clone();
            let old = shapes.remove(&key).unwrap();
            if !remove {
                let renamed = key.replacen(|c: char| c.is_ascii_digit(), &digit, 1);
                shapes.insert(renamed, if shape.is_empty() { old } else { shape });
            }
            if let Ok(translated) = translate(&shapes, "test") {
                let _ = UnetConfig::from_json(&translated.unet.config, "test");
                let _ = VaeConfig::from_json(&translated.vae.config, "test");
            }
        }
    }
}
