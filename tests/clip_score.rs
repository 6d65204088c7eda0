//! `scumble evaluate clip-score` against transformers and torchmetrics' formula, and the preparation of pictures against
//! `CLIPImageProcessor` (`tests/goldens/clip/`, made by `tools/goldens/clip.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use scumble::evaluate::clip::{Resizer, prepare};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::models::config::PicturePreparation;
use scumble::tensor::HostTensor;
use scumble::weights::clip::ClipCheckpoint;
use serde_json::{Value, json};

/// Cosines of some layers in f32, the sums in another order than PyTorch's; a byte of a large picture may be rounded the other way.
const SINGLE: f64 = 1e-5;
/// The same with every state rounded to halves (5e-4), over few channels.
const HALF: f64 = 1e-2;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/clip").join(name)
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Runs the command: exit code, stdout, stderr.
fn evaluate(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(["evaluate", "clip-score"]).args(words).env_remove("SCUMBLE_CLIP").env("SCUMBLE_CACHE_DIR", "");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn measured(words: &[&str]) -> Value {
    let (code, out, error) = evaluate(words);
    assert_eq!(code, Some(0), "{words:?}: {error}");
    serde_json::from_str(&out).unwrap_or_else(|fault| panic!("{fault}: {out}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Measures one model with `prompts` and compares every cosine and the figure.
fn compare(model: &str, clip: &Path, prompts: &Path, resize: &str, more: &[&str], tolerance: f64) -> Value {
    let pictures = folder("score/pictures");
    let [pictures, clip, prompts] = [&pictures, clip, prompts].map(|path| path.to_str().unwrap());
    let want = &json_file(&folder("score/scores.json"))[model][resize];
    let mut words = vec![pictures, prompts, "--clip", clip, "--json", "--each", "--resize", resize];
    words.extend(more);
    let found = measured(&words);
    let cosines: Vec<f64> =
        found["each"].as_array().unwrap().iter().map(|pair| pair["cosine"].as_f64().unwrap()).collect();
    let wanted = numbers(&want["cosines"]);
    assert_eq!(cosines.len(), wanted.len());
    for (index, (got, want)) in cosines.iter().zip(&wanted).enumerate() {
        assert!((got - want).abs() <= tolerance, "{model} {resize} {more:?}: picture {index}: {got}, wanted {want}");
    }
    let [got, want] = [&found["value"], &want["score"]].map(|value| value.as_f64().unwrap());
    assert!((got - want).abs() <= 100.0 * tolerance, "{model} {resize}: {got}, wanted {want}");
    found
}

/// The model's prompts as a file with one a line.
fn prompts(model: &str, folder_: &Path) -> PathBuf {
    let scores = json_file(&folder("score/scores.json"));
    let texts = scores[model]["prompts"].as_array().unwrap();
    let lines: Vec<&str> = texts.iter().map(|text| text.as_str().unwrap()).collect();
    let path = folder_.join(format!("{model}.txt"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn scores_agree_with_torchmetrics_formula() {
    let place = tempfile::tempdir().unwrap();
    for model in ["transformers", "older"] {
        let (clip, file) = (folder("score").join(model), prompts(model, place.path()));
        let found = compare(model, &clip, &file, "torchvision", &[], SINGLE);
        // The older one has room for 18 tokens, and a vocabulary without merges.
        assert_eq!(found["pictures"].as_u64(), Some(7));
        assert!(found["cut_prompts"].as_u64() >= Some(1), "{found}");
        compare(model, &clip, &file, "pillow", &["--batch", "3"], SINGLE);
        compare(model, &clip, &file, "torchvision", &["--precision", "f16", "--batch", "1"], HALF);
    }
}

/// The transformers model under OpenCLIP's names, as its releases and openai/CLIP's have them.
fn renamed(place: &Path) -> (PathBuf, PathBuf) {
    let file = std::fs::read(folder("score/transformers/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut out: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (key, view) in file.tensors() {
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        let (visual, rest) = match key.strip_prefix("vision_model.") {
            Some(rest) => ("visual.", rest.to_owned()),
            None => ("", key.strip_prefix("text_model.").unwrap_or(&key).to_owned()),
        };
        let block = rest.strip_prefix("encoder.layers.").map(|rest| {
            let names = [
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
                ("self_attn.", "attn."),
                ("q_proj.", "in_proj_"),
                ("k_proj.", "in_proj_"),
                ("v_proj.", "in_proj_"),
            ];
            names
                .iter()
                .fold(format!("{visual}transformer.resblocks.{rest}"), |name, (from, to)| name.replace(from, to))
        });
        let name = block.unwrap_or_else(|| match (visual, rest.as_str()) {
            ("", "embeddings.token_embedding.weight") => "token_embedding.weight".to_owned(),
            (_, "embeddings.position_embedding.weight") => format!("{visual}positional_embedding"),
            (_, "embeddings.class_embedding") => "visual.class_embedding".to_owned(),
            (_, "embeddings.patch_embedding.weight") => "visual.conv1.weight".to_owned(),
            ("", "text_projection.weight") => "text_projection".to_owned(),
            ("", "visual_projection.weight") => "visual.proj".to_owned(),
            (_, rest) => {
                let names =
                    [("final_layer_norm", "ln_final"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")];
                visual.to_owned() + &names.iter().fold(rest.to_owned(), |name, (from, to)| name.replace(from, to))
            }
        });
        let turned = ["text_projection", "visual.proj"].contains(&name.as_str());
        let part = ["q_proj", "k_proj", "v_proj"].iter().position(|part| key.contains(part));
        if let Some(part) = part {
            let mut whole = shape.clone();
            whole[0] *= 3;
            let entry = out.entry(name).or_insert_with(|| (whole, vec![0; 3 * data.len()]));
            entry.1[part * data.len()..][..data.len()].copy_from_slice(&data);
        } else if turned {
            let halves: Vec<[u8; 2]> = data.as_chunks().0.to_vec();
            let at = |i: usize| halves[i % shape[0] * shape[1] + i / shape[0]];
            let data = (0..halves.len()).flat_map(at).collect();
            out.insert(name, (vec![shape[1], shape[0]], data));
        } else {
            out.insert(name, (shape, data));
        }
    }
    let tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> = out
        .iter()
        .map(|(name, (shape, data))| {
            (name.clone(), safetensors::tensor::TensorView::new(Dtype::F16, shape.clone(), data).unwrap())
        })
        .collect();
    let folder = place.join("open_clip");
    std::fs::create_dir(&folder).unwrap();
    safetensors::serialize_to_file(tensors, None, &folder.join("open_clip_model.safetensors")).unwrap();
    let file = folder.join("open_clip_model.safetensors");
    (folder, file)
}

/// The config tells heads and activation; the shapes tell all the rest.
#[test]
fn open_clips_layout_gives_the_same_encoders() {
    let place = tempfile::tempdir().unwrap();
    let (folder_, file) = renamed(place.path());
    let fault = ClipCheckpoint::open(&file).map(|_| ()).unwrap_err().to_string();
    // Widths like these belong to no published model.
    assert!(fault.contains("attention heads") && fault.contains("open_clip_config.json"), "{fault}");
    let model = ClipCheckpoint::open(&folder("score/transformers")).unwrap();
    let (text, vision) = (&model.config.text, &model.config.vision);
    let config = json!({
        "model_cfg": {
            "quick_gelu": true, "vision_cfg": { "head_width": vision.hidden_size / vision.head_count }, "text_cfg": { "heads": text.head_count },
        },
        "preprocess_cfg": { "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest" },
    });
    std::fs::write(folder_.join("open_clip_config.json"), config.to_string()).unwrap();
    let found = ClipCheckpoint::open(&folder_).unwrap();
    let mut wanted = model.config.clone();
    wanted.text.eos_token_id = 2;
    (wanted.text.bos_token_id, wanted.text.pad_token_id) =
        (found.config.text.bos_token_id, found.config.text.pad_token_id);
    assert_eq!(found.config, wanted);
    assert_eq!((found.preparation.factors[0], found.preparation.shifts[2]), ((4.0 / 255.0) as f32, -2.0));
    assert_eq!(found.weights.names(), model.weights.names());
    for name in model.weights.names() {
        let [got, want] = [&found, &model].map(|model| model.weights.tensor(&name).unwrap());
        assert_eq!(got, want, "{name}");
        assert_eq!(found.weights.info(&name), model.weights.info(&name), "{name}");
    }
}

#[test]
fn pictures_are_prepared_as_in_transformers() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let bytes = std::fs::read(folder("prepared.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let view = file.tensor(name).unwrap();
        let words = view.data().as_chunks().0.iter();
        let data: Vec<f32> = match view.dtype() {
            Dtype::I32 => words.map(|four| i32::from_le_bytes(*four) as f32).collect(),
            _ => words.map(|four| f32::from_le_bytes(*four)).collect(),
        };
        let shape = view.shape().to_vec();
        let shape = if shape.len() == 3 { [vec![1], shape].concat() } else { shape };
        HostTensor::new(shape, data).unwrap()
    };
    let options = json_file(&folder("preparations.json"));
    let options = options.as_array().unwrap();
    for picture in 0..3 {
        let x = read(&format!("{picture}.picture")).channels_last();
        let size = [x.shape[1] as u32, x.shape[2] as u32];
        for (number, options) in options.iter().enumerate() {
            let preparation = PicturePreparation::from_json(options, "case").unwrap();
            let want = read(&format!("{picture}.{number}")).channels_last();
            let executor = prepare(&gpu, &preparation, Resizer::Torchvision, size).unwrap();
            executor.poison();
            executor.write("picture", &x).unwrap();
            executor.run();
            let got = executor.read("pixels").unwrap();
            assert_eq!(got.shape, want.shape, "{picture} {options}");
            let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (index, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
                // Bytes are the same; x / d - m and (x - m d) / d round differently.
                let near = (got - want).abs() <= 1e-6 * largest.max(1.0);
                assert!(near, "{picture} {options}: value {index} is {got}, wanted {want}");
            }
        }
    }
}

#[test]
fn options_and_faults() {
    let place = tempfile::tempdir().unwrap();
    let pictures = folder("score/pictures");
    let clip = folder("score/transformers");
    let [pictures, clip] = [&pictures, &clip].map(|path| path.to_str().unwrap());
    let one = place.path().join("one.txt");
    std::fs::write(&one, "red apple\n").unwrap();
    let one = one.to_str().unwrap();
    for (words, code, parts) in [
        (vec![pictures, one, "--clip", clip], 2, ["which are 7", "1 prompts"]),
        (vec![pictures, "--prompt", "x"], 2, ["--clip", "SCUMBLE_CLIP"]),
        (vec![pictures, one, "--prompt", "x", "--clip", clip], 2, ["--prompt", "cannot be used"]),
        (vec![pictures, "--clip", clip], 2, ["PROMPTS", "required"]),
        (vec![pictures, "-", "--clip", clip], 1, ["0.png", "parameters"]),
        (vec![pictures, "--prompt", "x", "--clip", one], 1, ["one.txt", "expected"]),
        (vec![pictures, "--prompt", "x", "--clip", pictures], 1, ["not a CLIP", "config.json"]),
        (vec![place.path().to_str().unwrap(), "--prompt", "x", "--clip", clip], 1, ["no pictures", ".png"]),
    ] {
        let (found, _, error) = evaluate(&words);
        assert_eq!(found, Some(code), "{words:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{words:?}: {error}");
    }
    let (code, out, error) = evaluate(&[pictures, "-p", "red apple", "--clip", clip, "--each", "--retrieval"]);
    assert_eq!(code, Some(0), "{error}");
    let parts =
        ["CLIP score (transformers", "7 pictures", "0.png\tred apple", "Comparable only", "2.5 times", "100.00 %"];
    assert!(parts.iter().all(|part| out.contains(part)), "{out}");
    let file = format!("{pictures}/2.png");
    let single = measured(&[&file, "-p", "red apple", "--clip", clip, "--json"]);
    assert_eq!(
        (single["pictures"].as_u64(), single["cosine"]["standard_error"].is_null()),
        (Some(1), true),
        "{single}"
    );
    assert!(single.get("each").is_none() && single.get("retrieval").is_none());
}
