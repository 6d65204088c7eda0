use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::checkpoint::TokenizerFiles;
use super::*;
use crate::models::config::{Activation, Block};

fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji")
}

/// A copy of the emoji model's small files and links to its weights, to be spoiled by a test.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        std::fs::create_dir_all(copy.path().join(part)).unwrap();
        for entry in std::fs::read_dir(emoji().join(part)).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_file() {
                let to = copy.path().join(part).join(entry.file_name().unwrap());
                std::fs::hard_link(&entry, &to).or_else(|_| std::fs::copy(&entry, &to).map(|_| ())).unwrap();
            }
        }
    }
    copy
}

/// Replaces a file of the copy (never the linked original).
fn write(copy: &tempfile::TempDir, path: &str, content: &[u8]) {
    let path = copy.path().join(path);
    let _ = std::fs::remove_file(&path);
    std::fs::write(path, content).unwrap();
}

/// Sets a field of a JSON file of the copy.
fn set(copy: &tempfile::TempDir, path: &str, field: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(copy.path().join(path)).unwrap()).unwrap();
    json[field] = value;
    write(copy, path, json.to_string().as_bytes());
}

fn open_error(copy: &tempfile::TempDir) -> String {
    Checkpoint::open(copy.path()).err().expect("the spoiled copy opens").to_string()
}

#[test]
fn opens_the_emoji_model() {
    let model = Checkpoint::open(&emoji()).unwrap();
    assert_eq!((model.name.as_str(), model.class), ("emoji", PipelineClass::StableDiffusion));
    assert_eq!(model.scheduler["prediction_type"], "v_prediction");
    assert_eq!(model.scheduler["_class_name"], "DDIMScheduler");
    let unet = &model.unet.config;
    assert_eq!(unet.block_out_channels, [64, 96, 96]);
    let reads = |blocks: &[Block]| blocks.iter().map(|block| block.kind.reads_text()).collect::<Vec<_>>();
    assert_eq!((reads(&unet.down), reads(&unet.up)), (vec![false, true, true], vec![true, true, false]));
    assert_eq!((unet.time_embed_dim, unet.down[2].head_count, unet.norm_num_groups), (256, 4, 16));
    assert_eq!(model.unet.weights.info("conv_in.weight").unwrap().shape, [64, 4, 3, 3]);
    let vae = &model.vae.config;
    assert_eq!((vae.scale(), vae.norm_num_groups, vae.force_upcast), (8, 8, true));
    assert!(
        model.vae.weights.names().iter().all(|name| name.starts_with("decoder.") || name.starts_with("post_quant"))
    );
    let text = &model.text_encoders[0];
    assert_eq!((text.config.num_layers, text.config.activation), (2, Activation::QuickGelu));
    assert_eq!(text.weights.info("text_model.embeddings.token_embedding.weight").unwrap().shape, [3072, 128]);
    assert!(matches!(&text.tokenizer, TokenizerFiles::Folder { files, .. } if files.contains_key("merges.txt")));
}

#[test]
fn spoiled_directories_are_named() {
    for (path, field, value, expected) in [
        ("model_index.json", "_class_name", Value::from("StableDiffusion3Pipeline"), "StableDiffusion3Pipeline"),
        ("model_index.json", "controlnet", serde_json::json!(["diffusers", "ControlNetModel"]), "ControlNetModel"),
        ("model_index.json", "vae", serde_json::json!(["diffusers", "AutoencoderTiny"]), "AutoencoderTiny"),
        ("model_index.json", "text_encoder", serde_json::json!([null, null]), "`text_encoder`"),
        ("model_index.json", "text_encoder", serde_json::json!(["transformers", "T5EncoderModel"]), "T5EncoderModel"),
        ("model_index.json", "requires_aesthetics_score", Value::from(true), "refiner"),
        ("unet/config.json", "in_channels", Value::from(9), "inpainting"),
        ("unet/config.json", "cross_attention_dim", Value::from(64), "128"),
        ("unet/config.json", "act_fn", Value::from("mish"), "`act_fn`"),
        ("unet/config.json", "norm_num_groups", Value::from(20), "`norm_num_groups`"),
        ("vae/config.json", "latents_mean", serde_json::json!([0.0]), "`latents_mean`"),
        ("text_encoder/config.json", "hidden_act", Value::from("relu"), "`hidden_act`"),
    ] {
        let copy = copy();
        set(&copy, path, field, value);
        let error = open_error(&copy);
        assert!(error.contains(expected), "{field}: {error}");
    }
}

#[test]
fn missing_and_wrong_files_are_named() {
    type Spoil = fn(&tempfile::TempDir);
    let cases: [(Spoil, &str); 7] = [
        (|c| std::fs::remove_dir_all(c.path().join("vae")).unwrap(), "missing part"),
        (|c| std::fs::remove_file(c.path().join("model_index.json")).unwrap(), "model_index.json"),
        (|c| std::fs::remove_file(c.path().join("unet/config.json")).unwrap(), "config.json"),
        (|c| std::fs::remove_file(c.path().join("tokenizer/tokenizer.json")).unwrap(), ""),
        (|c| write(c, "unet/diffusion_pytorch_model.safetensors", b""), "empty safetensors file"),
        (|c| write(c, "vae/config.json", b"{\"act_fn\": "), "JSON"),
        (|c| write(c, "model_index.json", b"[]"), "JSON object"),
    ];
    for (spoil, expected) in cases {
        let copy = copy();
        spoil(&copy);
        match Checkpoint::open(copy.path()) {
            Ok(_) => assert_eq!(expected, "", "opens without a file it needs"),
            Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
        }
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(open_error(&empty).contains("no files"));
    let part = Checkpoint::open(&emoji().join("unet")).err().unwrap().to_string();
    assert!(part.contains("UNet2DConditionModel"), "{part}");
    assert!(Checkpoint::open(&emoji().join("nothing")).err().unwrap().to_string().contains("no such model"));
}

#[test]
fn numbers_that_only_python_writes_are_read() {
    let copy = copy();
    let config = br#"{"lambda_min_clipped": -Infinity, "b": [Infinity, NaN, -3.5], "note": "-Infinity"}"#;
    write(&copy, "scheduler/scheduler_config.json", config);
    let scheduler = Checkpoint::open(copy.path()).unwrap().scheduler;
    assert_eq!((&scheduler["lambda_min_clipped"], &scheduler["note"]), (&"-Infinity".into(), &"-Infinity".into()));
    assert_eq!(scheduler["b"], serde_json::json!(["Infinity", "NaN", -3.5]));
    write(&copy, "scheduler/scheduler_config.json", br#"{"a": Infinite}"#);
    assert!(open_error(&copy).contains("JSON"));
}

#[test]
fn variants_and_pickles() {
    let copy = copy();
    let stem = copy.path().join("unet/diffusion_pytorch_model");
    let (plain, half) = (stem.with_extension("safetensors"), stem.with_extension("fp16.safetensors"));
    std::fs::rename(&plain, &half).unwrap();
    let model = Checkpoint::open(copy.path()).unwrap();
    assert!(model.unet.weights.describe().ends_with("diffusion_pytorch_model.fp16.safetensors"));
    // What a file is follows from its bytes, not from its name.
    std::fs::rename(&half, stem.with_extension("bin")).unwrap();
    let model = Checkpoint::open(copy.path()).unwrap();
    assert!(model.unet.weights.describe().ends_with("diffusion_pytorch_model.bin"));
    std::fs::rename(stem.with_extension("bin"), copy.path().join("unet/diffusion_flax_model.msgpack")).unwrap();
    let error = open_error(&copy);
    assert!(error.contains("diffusion_flax_model.msgpack") && error.contains("PyTorch release"), "{error}");
}

#[test]
fn shards_are_joined_and_checked() {
    let copy = copy();
    let whole = copy.path().join("vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut map = Map::new();
    for (index, (name, view)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), Value::from(format!("part-{}.safetensors", index % 2)));
        if index % 2 == 0 { &mut first } else { &mut second }.push((name, view));
    }
    let before = Checkpoint::open(copy.path()).unwrap().vae.weights;
    std::fs::remove_file(&whole).unwrap();
    for (name, tensors) in [("part-0", first), ("part-1", second)] {
        write(&copy, &format!("vae/{name}.safetensors"), &safetensors::serialize(tensors, None).unwrap());
    }
    let index = "vae/diffusion_pytorch_model.safetensors.index.json";
    write(&copy, index, serde_json::json!({ "weight_map": map }).to_string().as_bytes());
    let joined = Checkpoint::open(copy.path()).unwrap().vae.weights;
    assert_eq!(joined.names(), before.names());
    for name in before.names() {
        assert_eq!(joined.tensor(&name).unwrap(), before.tensor(&name).unwrap(), "{name}");
    }
    map.insert("decoder.more.weight".into(), "part-0.safetensors".into());
    write(&copy, index, serde_json::json!({ "weight_map": map }).to_string().as_bytes());
    assert!(open_error(&copy).contains("`decoder.more.weight`"));
    std::fs::remove_file(copy.path().join("vae/part-1.safetensors")).unwrap();
    assert!(open_error(&copy).contains("missing shard"));
    write(&copy, index, br#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    assert!(open_error(&copy).contains("same folder"));
}

mod spoiled {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

        /// A JSON file of the emoji model, spoiled at one place, either opens or is an error.
        #[test]
        fn directories_are_survived(
            path in prop::sample::select(vec![
                "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
                "scheduler/scheduler_config.json",
            ]),
            at in any::<prop::sample::Index>(),
            cut in 0usize..12,
            new in "[\\[\\]{}\":,0-9a-z.-]{0,8}",
        ) {
            thread_local!(static COPY: tempfile::TempDir = copy());
            COPY.with(|copy| {
                let mut bytes = std::fs::read(emoji().join(path)).unwrap();
                let start = at.index(bytes.len());
                let end = bytes.len().min(start + cut);
                bytes.splice(start..end, new.bytes());
                write(copy, path, &bytes);
                let opened = Checkpoint::open(copy.path());
                write(copy, path, &std::fs::read(emoji().join(path)).unwrap());
                if let Err(error) = opened {
                    assert!(error.to_string().len() < 2000);
                }
            });
        }
    }
}
