//! Models, requests and outputs that cannot work: one error line that says what, where and what was found, the right exit
//! code, and no file left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use half::f16;
use safetensors::SafeTensors;

fn scumble(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).env("SCUMBLE_CACHE_DIR", "").stdin(Stdio::null()).output().unwrap()
}

/// A folder with a copy of a small working model, `model`, and an empty folder for pictures, `out`.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipelines/sd1");
        copy(&model, &folder.path().join("model"));
        std::fs::create_dir(folder.path().join("out")).unwrap();
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.at(name), content).unwrap();
        self.at(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap()
    }

    /// Sets a field of a JSON file.
    fn set(&self, name: &str, field: &str, value: serde_json::Value) {
        let mut json: serde_json::Value = serde_json::from_slice(&self.read(name)).unwrap();
        json[field] = value;
        self.write(name, json.to_string());
    }

    /// Draws 16 x 16 pixels in two steps into the empty folder.
    fn generate(&self, model: &Path, words: &[&str]) -> Output {
        let out = self.at("out/picture.png");
        let mut all =
            vec!["generate", "x", "-W", "16", "-H", "16", "--steps", "2", "-s", "1", "-m", model.to_str().unwrap()];
        if !words.contains(&"-o") {
            all.extend(["-o", out.to_str().unwrap()]);
        }
        scumble(&[&all[..], words].concat())
    }

    /// The run fails with `code` and one error line that has these parts, and leaves nothing in `out`.
    fn fails(&self, model: &Path, words: &[&str], code: i32, parts: &[&str]) {
        let output = self.generate(model, words);
        let text = String::from_utf8(output.stderr).unwrap();
        let told = format!("{}, {words:?}: {text}", model.display());
        assert_eq!(output.status.code(), Some(code), "{told}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{told}");
        assert!(text.ends_with(&format!("{}\n", errors[0])), "{told}");
        assert!(!text.contains("panicked") && output.stdout.is_empty(), "{told}");
        for part in parts {
            assert!(errors[0].contains(part), "{part:?} is not in {told}");
        }
        assert_eq!(std::fs::read_dir(self.at("out")).unwrap().count(), 0, "{told}: a file was left");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A safetensors file: the header and as many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn files_that_are_no_checkpoints() {
    let place = Workplace::new();
    let whole = place.read("model/unet/diffusion_pytorch_model.safetensors");
    let tensor =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
    let files: [(&str, Vec<u8>); 15] = [
        ("empty", Vec::new()),
        ("seven-bytes", vec![0; 7]),
        ("no-header", vec![0; 8]),
        ("header-of-2^64-1", vec![255; 64]),
        ("header-beyond-the-end", [&100u64.to_le_bytes()[..], b"{}"].concat()),
        ("text", b"<html>404 Not Found</html>".to_vec()),
        ("no-json", safetensors("not json", 0)),
        ("no-object", safetensors("[1, 2]", 0)),
        ("offsets-beyond-the-end", safetensors(&tensor("[4]", "[0,16]"), 8)),
        ("offsets-reversed", safetensors(&tensor("[1]", "[4,0]"), 8)),
        ("overlap", safetensors(overlap, 6)),
        ("overflow", safetensors(&tensor("[4294967296,4294967296,4294967296]", "[0,4]"), 4)),
        ("size-and-shape-differ", safetensors(&tensor("[3]", "[0,4]"), 4)),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("cut-in-the-header", whole[..200].to_vec()),
    ];
    for (name, bytes) in files {
        let file = place.write(&format!("{name}.safetensors"), bytes);
        place.fails(&file, &[], 1, &[name]);
    }
    let other = place.write("other.safetensors", safetensors(&tensor("[1]", "[0,4]"), 4));
    place.fails(&other, &[], 1, &["other.safetensors", "expected"]);
    let part = place.write("part.safetensors", &whole);
    place.fails(&part, &[], 1, &["part.safetensors", "expected"]);
}

#[test]
fn folders_that_are_no_checkpoints() {
    let place = Workplace::new();
    place.fails(&place.at("nowhere"), &[], 1, &["no such model", "nowhere", "Try a diffusers directory"]);
    place.fails(&place.at("out"), &[], 1, &["out", "model_index.json"]);
    place.fails(&place.at("model/unet"), &[], 1, &["unet", "model_index.json"]);
    std::fs::create_dir(place.at("alone")).unwrap();
    copy(&place.at("model/unet"), &place.at("alone/unet"));
    place.fails(&place.at("alone"), &[], 1, &["alone", "model_index.json"]);
    std::fs::copy(place.at("model/model_index.json"), place.at("alone/model_index.json")).unwrap();
    place.fails(&place.at("alone"), &[], 1, &["alone"]);
}

#[test]
fn models_with_a_broken_part() {
    let place = Workplace::new();
    let weights = "model/unet/diffusion_pytorch_model.safetensors";
    let (whole, config) = (place.read(weights), place.read("model/unet/config.json"));
    let model = place.at("model");
    place.write(weights, &whole[..whole.len() - 1]);
    place.fails(&model, &[], 1, &["diffusion_pytorch_model.safetensors"]);
    place.write(weights, []);
    place.fails(&model, &[], 1, &["diffusion_pytorch_model.safetensors"]);
    let renamed = String::from_utf8_lossy(&whole[8..]).find("conv_out.weight").unwrap() + 8;
    let mut other = whole.clone();
    other[renamed..renamed + 8].copy_from_slice(b"conv_uot");
    place.write(weights, &other);
    place.fails(&model, &[], 1, &["missing tensor", "`conv_out.weight`", "`conv_uot.weight`"]);
    place.write(weights, &whole);
    place.set("model/unet/config.json", "class_embed_type", "timestep".into());
    place.fails(&model, &[], 1, &["unet/config.json: `class_embed_type`", "timestep"]);
    place.write("model/unet/config.json", "{");
    place.fails(&model, &[], 1, &["unet/config.json", "JSON"]);
    place.write("model/unet/config.json", &config);
    place.set("model/unet/config.json", "cross_attention_dim", 20.into());
    place.fails(&model, &[], 1, &["cross_attention_dim", "21", "20"]);
    place.write("model/unet/config.json", &config);
    place.set("model/vae/config.json", "scaling_factor", "much".into());
    place.fails(&model, &[], 1, &["vae/config.json: `scaling_factor`", "much"]);
    place.set("model/model_index.json", "_class_name", "FluxPipeline".into());
    place.fails(&model, &[], 1, &["model_index.json", "FluxPipeline"]);
}

#[test]
fn requests_that_cannot_be_met() {
    let place = Workplace::new();
    let model = place.at("model");
    place.fails(&model, &["-o", "/nowhere/at/all.png"], 1, &["/nowhere/at", "no such folder"]);
    place.fails(&model, &["--adapter", "no such card"], 2, &["adapter", "no such card"]);
    place.fails(&model, &["--adapter", "99"], 2, &["adapter", "99"]);
    place.fails(&model, &["--sampler", "eulre"], 2, &["sampler", "eulre", "euler"]);
    place.fails(&model, &["--schedule", "kerras"], 2, &["schedule", "kerras", "karras"]);
    place.fails(&model, &["--clip-skip", "9"], 2, &["--clip-skip", "9"]);
    for option in ["--top-k", "--temperature", "--noise-level", "--sr-steps"] {
        place.fails(&model, &[option, "3"], 2, &["not an option of Stable Diffusion", option]);
    }
    place.fails(&model, &["--vqgan", "folder"], 2, &["an option of other models", "--vqgan", "Stable Diffusion"]);
    place.fails(&model, &["--then", "folder"], 1, &["no such model", "folder"]);
    let name = model.to_str().unwrap();
    place.fails(&model, &["--then", name], 2, &["enlarges nothing", "--then", "Stable Diffusion"]);
    let latents = |shape: &str, count: usize| {
        let header = format!(r#"{{"latents":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{}]}}}}"#, count * 4);
        place.write("latents.safetensors", safetensors(&header, count * 4)).to_str().unwrap().to_owned()
    };
    place.fails(&model, &["--latents", &latents("[1,4,2,2]", 16)], 2, &["latents", "[1, 4, 4, 4]", "[1, 4, 2, 2]"]);
    place.fails(&model, &["--latents", &latents("[4,4]", 16)], 1, &["latents.safetensors", "[4, 4]"]);
    place.set("model/scheduler/scheduler_config.json", "_class_name", "MagicScheduler".into());
    place.set("model/model_index.json", "scheduler", serde_json::json!(["diffusers", "MagicScheduler"]));
    place.fails(&model, &[], 1, &["MagicScheduler"]);
}

#[test]
fn numbers_that_are_not_finite_make_no_picture() {
    for (part, tensor, named) in [("unet", "conv_out.bias", "denoiser"), ("vae", "decoder.conv_out.bias", "decoder")] {
        let place = Workplace::new();
        let weights = format!("model/{part}/diffusion_pytorch_model.safetensors");
        let mut bytes = place.read(&weights);
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let begin = 8 + header + metadata.info(tensor).unwrap().data_offsets.0;
        bytes[begin..begin + 2].copy_from_slice(&f16::NAN.to_le_bytes());
        place.write(&weights, bytes);
        place.fails(&place.at("model"), &[], 1, &["not finite", named]);
    }
}

#[test]
fn a_long_prompt_is_a_warning() {
    let place = Workplace::new();
    let prompt = "apple ".repeat(100);
    let output = place.generate(&place.at("model"), &["-n", &prompt]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.matches("warning: ").count(), 1, "{text}");
    assert!(text.contains("too long") && place.at("out/picture.png").exists(), "{text}");
}
