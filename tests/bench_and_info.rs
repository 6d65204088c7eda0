//! `scumble info` and `scumble bench` as their users meet them, and the published configs behind `bench --model`.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use scumble::gpu::adapters;
use scumble::kernels::Limits;
use scumble::pipelines::inspect::{self, Stage};
use scumble::pipelines::{Request, Settings};
use scumble::tensor::DType;
use scumble::weights::checkpoint::Checkpoint;
use scumble::weights::shapes::parse_manifest;
use scumble::weights::{Source, published};

fn scumble(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).env("SCUMBLE_CACHE_DIR", "").stdin(Stdio::null()).output().unwrap()
}

fn told(words: &[&str]) -> String {
    let output = scumble(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn golden(name: &str) -> String {
    format!("{}/tests/goldens/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn info_lists_the_adapters() {
    let text = told(&["info"]);
    match adapters().first() {
        None => assert!(text.contains("no GPU adapter"), "{text}"),
        Some(first) => {
            for part in [&format!("0  {}", first.name), "features: ", "max storage binding", "workgroup memory"] {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
    }
}

/// The counts of `assets/emoji/README.md`; the autoencoder's 1,718,807 include its encoder.
#[test]
fn info_tells_the_embedded_models_parts() {
    let text = told(&["info", "emoji"]);
    for part in [
        "emoji (StableDiffusionPipeline)",
        "text_encoder: 799,872 parameters, f16",
        "unet: 4,115,876 parameters, f16",
        "channels 64/96/96",
        "cross-attention to 128",
        "tokenizer: tokenizer.json",
        "vae decoder: 1,070,359 parameters",
        "sampler ddim, schedule trailing, prediction v_prediction",
        "default steps: 20, guidance: 3",
        "128 x 128 pixels, 2 latents a step",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn info_describes_other_models_and_sizes() {
    let text = told(&["info", &golden("pipelines/sdxl"), "-W", "64", "-H", "32"]);
    for part in ["StableDiffusionXLPipeline", "text_encoder_2: ", "projection to ", "64 x 32 pixels"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn info_foretells_the_memory_of_a_run() {
    let whole = told(&["info", "emoji", "-W", "512", "-H", "512", "--precision", "f16"]);
    let bands = told(&["info", "emoji", "-W", "512", "-H", "512", "--precision", "f16", "--vae-tiling", "on"]);
    for (text, banded) in [(&whole, false), (&bands, true)] {
        assert!(text.contains("in all") && text.contains("others") && !text.contains("  f32"), "{text}");
        assert_eq!(text.contains("in bands of rows"), banded, "{text}");
    }
}

#[test]
fn bad_models_are_refused() {
    for (words, code, part) in [
        (&["bench", "step", "--model", "sd99"][..], 2, "expected emoji, sd15, sd21, sdxl or a path, found sd99"),
        (&["bench", "nonsense"], 2, "nonsense"),
        (&["bench", "step", "-W", "100"], 2, "Try 96 or 104"),
        (&["info", "-W", "64"], 2, "MODEL"),
        (&["info", "no-such-model"], 1, "no such model: no-such-model"),
        (&["info", &golden("weights")], 1, "model_index.json"),
        (&["bench", "step", "--json", "/no-such-folder/x.json"], 1, "no such folder"),
    ] {
        let output = scumble(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
    }
}

fn read_json(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn check_row(row: &serde_json::Value) {
    assert!(row["verified"] == true && number(&row["seconds"]) > 0.0 && number(&row["share"]) >= 0.0, "{row}");
    assert!(number(&row["gflops"]) >= 0.0 && number(&row["gbps"]) >= 0.0, "{row}");
    assert!(number(&row["minimum"]) <= number(&row["seconds"]) && row["clock"].is_string(), "{row}");
}

#[test]
fn bench_writes_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("figures.json");
    let text = told(&[
        "bench",
        "step",
        "--model",
        "emoji",
        "--size",
        "64x128",
        "--runs",
        "1",
        "--json",
        path.to_str().unwrap(),
    ]);
    for part in
        ["by place", "by family", "by kernel", "dispatches; empty ones would take", "at the roofs it would take"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let report = read_json(&path);
    assert!(report["adapter"].as_str().is_some_and(|name| !name.is_empty()));
    for roof in ["copy_gbps", "cache_copy_gbps", "fma_gflops", "launch_gap_seconds"] {
        assert!(number(&report["roofs"][roof]) > 0.0, "{roof}");
    }
    assert!(number(&report["step_seconds"]) > 0.0 && number(&report["decode_seconds"]) > 0.0);
    // Weights alone: 4,115,876 numbers of two bytes at the least.
    assert!(number(&report["peak_bytes"]) > 2.0 * 4_115_876.0);
    assert_eq!(report["size"], serde_json::json!([64, 128]));
    let rows = report["rows"].as_array().unwrap();
    let find = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"));
    for name in [
        "step",
        "decode",
        "step: scope mid_block",
        "step: family attention",
        "step: kernel layer_norm",
        "decode: kernel group_norm",
    ] {
        check_row(find(name));
    }
    let sum = |part: &str| -> f64 {
        let rows = rows.iter().filter(|row| row["name"].as_str().unwrap().starts_with(part));
        rows.map(|row| number(&row["seconds"])).sum()
    };
    let launched = number(&report["step"]["launched_seconds"]);
    for part in ["step: scope", "step: family", "step: kernel"] {
        assert!((sum(part) - launched).abs() <= 1e-6 * launched, "{part}: {} of {launched}", sum(part));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn bench_draws_whole_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("figures.json");
    let words = ["bench", "image", "--size", "32x32", "--steps", "2", "--runs", "2", "--json", path.to_str().unwrap()];
    let text = told(&words);
    assert!(text.contains("first picture: loading") && text.contains("steps/s"), "{text}");
    let report = read_json(&path);
    let image = &report["image"];
    assert_eq!((&image["steps"], &image["pictures"], &report["weights"]), (&2.into(), &2.into(), &"random".into()));
    let warm = &image["warm"];
    let parts = ["encoding_seconds", "denoising_seconds", "decoding_seconds"].map(|part| number(&warm[part]));
    assert!(parts.iter().all(|seconds| *seconds > 0.0) && number(&warm["loading_seconds"]) > 0.0, "{image}");
    assert!((number(&report["image_seconds"]) - parts.iter().sum::<f64>()).abs() <= 1e-9);
    assert!(number(&warm["to_first_step_seconds"]) > parts[0] && number(&report["peak_bytes"]) > 0.0);
}

#[test]
fn bench_times_kernels_compares_and_draws() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let words = ["bench", "kernels", "--filter", "layer_norm", "--precision", "f32", "--runs", "1"];
    let text = told(&[&words[..], &["--json", &file("a.json"), "--plot", &file("a.svg")]].concat());
    assert!(text.contains("roofs: copy") && text.contains("layer_norm: SD 1.5, level 1, 1024 x 320, f32"), "{text}");
    assert!(text.contains("times: ") && !text.contains("matmul") && !text.contains(", f16 "), "{text}");
    let mut report = read_json(file("a.json").as_ref());
    report["rows"].as_array().unwrap().iter().for_each(check_row);
    let picture = std::fs::read_to_string(file("a.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n") && picture.contains("layer_norm: CLIP"));

    let rows = report["rows"].as_array_mut().unwrap();
    let seconds = number(&rows[0]["seconds"]);
    rows[0]["seconds"] = (seconds * 1000.0).into();
    rows[1]["name"] = "a row that is gone".into();
    report["adapter"] = "another card".into();
    std::fs::write(file("b.json"), report.to_string()).unwrap();
    let text = told(&[&words[..], &["--compare", &file("b.json")]].concat());
    for part in ["warning: another adapter: then \"another card\"", "geometric mean", "only in this run: layer_norm"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(text.contains("only in earlier run: a row that is gone"), "{text}");
}

#[test]
fn bench_refuses_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.json");
    std::fs::write(&file, "{}").unwrap();
    let file = file.to_str().unwrap();
    for (words, code, part) in [
        (&["bench", "kernels", "--filter", "nonsense"][..], 2, "layer_norm, matmul"),
        (&["bench", "--filter", "nonsense"], 2, "layer_norm, matmul"),
        (&["bench", "step", "--size", "64"], 2, "for instance 512x768"),
        (&["bench", "step", "--size", "64x100"], 2, "Try 96 or 104"),
        (&["bench", "step", "--size", "64x64", "-W", "64"], 2, "cannot be used with"),
        (&["bench", "kernels", "--compare", "no-such-file"], 1, "no-such-file"),
        (&["bench", "kernels", "--compare", file], 1, "no list called rows"),
        (&["bench", "kernels", "--plot", "/no-such-folder/x.svg"], 1, "no such folder"),
    ] {
        let output = scumble(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
    }
    let help = told(&["bench", "--help"]);
    assert!(help.contains("To compare two cards") && help.contains("--plot"), "{help}");
}

/// Names and shapes, without the axes of length 1 at the end: a 1x1 convolution is a linear layer to the models.
fn shapes(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> BTreeMap<String, Vec<usize>> {
    let trimmed = tensors.into_iter().map(|(name, mut shape)| {
        while shape.len() > 2 && shape.last() == Some(&1) {
            shape.pop();
        }
        (name, shape)
    });
    trimmed.collect()
}

fn manifest(name: &str, prefix: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(golden(&format!("keys/{name}.tsv"))).unwrap();
    let tensors = parse_manifest(name, &text).unwrap();
    shapes(tensors.into_iter().map(|(key, info)| (format!("{prefix}{key}"), info.shape)))
}

fn asked_for(source: &dyn Source) -> BTreeMap<String, Vec<usize>> {
    shapes(source.names().into_iter().map(|name| (name.clone(), source.info(&name).unwrap().shape)))
}

/// The configs in `assets/configs` make models that ask for exactly the tensors of the published checkpoints.
#[test]
fn published_configs_ask_for_the_published_tensors() {
    let clip = ("CLIP_L_text_SD1_SDXL_1", "text_model.");
    let models = [
        ("sd15", "SD1.5_UNet_512px_64x64", vec![clip], 512),
        ("sd21", "SD2.1_UNet_768px_96x96", vec![("OpenCLIP_H_text_23L_SD2_diffusers", "text_model.")], 768),
        ("sdxl", "SDXL_base_UNet_1024px", vec![clip, ("OpenCLIP_bigG_text_32L_proj_SDXL_2", "")], 1024),
    ];
    for (name, unet, texts, side) in models {
        let checkpoint = published::random(name, 1).unwrap().unwrap();
        let settings = Settings::resolve(&Request::default(), &checkpoint).unwrap();
        assert_eq!((settings.width, settings.height), (side, side), "{name}");
        let memory = inspect::memory(&checkpoint, &settings, DType::F16, Limits::default()).unwrap();
        assert_eq!(asked_for(checkpoint.unet.weights.as_ref()), manifest(unet, ""), "{name}");
        for (part, (text, prefix)) in checkpoint.text_encoders.iter().zip(texts) {
            assert_eq!(asked_for(part.weights.as_ref()), manifest(text, prefix), "{name}");
        }
        let mut vae = manifest("VAE_KL_f8_total", "");
        checkpoint.vae.config.encoder_names().iter().for_each(|name| drop(vae.remove(name)));
        assert_eq!(asked_for(checkpoint.vae.weights.as_ref()), vae, "{name}");
        // Matrices in halves, vectors in singles and the padding of panels: a little over two bytes a parameter.
        let parameters: usize = manifest(unet, "").values().map(|shape| shape.iter().product::<usize>()).sum();
        let denoise = memory.iter().find(|stage| stage.stage == Stage::Denoise).unwrap();
        // Keys and values of the text take two matrices of every cross-attention, which are not there during a step.
        let text: usize = manifest(unet, "")
            .iter()
            .filter(|(name, _)| name.contains("attn2.to_k") || name.contains("attn2.to_v"))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(denoise.passing, 2 * text as u64, "{name}");
        assert!(denoise.peak() >= denoise.weights - denoise.passing + denoise.activations);
        let bytes = denoise.weights as f64;
        let each = bytes / parameters as f64;
        assert!((2.0..2.05).contains(&each), "{name}: {each} bytes a parameter");
        assert!(memory.iter().all(|stage| stage.activations > 0));
    }
    assert!(published::random("sd99", 1).unwrap().is_none());
}

#[test]
fn a_directory_of_configs_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let from = golden("pipelines/sd1");
    for part in ["unet", "vae", "text_encoder", "scheduler"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        let file =
            if part == "scheduler" { "scheduler/scheduler_config.json".into() } else { format!("{part}/config.json") };
        std::fs::copy(format!("{from}/{file}"), folder.path().join(&file)).unwrap();
    }
    std::fs::copy(format!("{from}/model_index.json"), folder.path().join("model_index.json")).unwrap();
    let random = published::random_like(folder.path(), 3).unwrap();
    let real = Checkpoint::open(from.as_ref()).unwrap();
    let settings =
        Settings::resolve(&Request { width: Some(64), height: Some(64), ..Request::default() }, &real).unwrap();
    for precision in [DType::F32, DType::F16] {
        let memory = |checkpoint| inspect::memory(checkpoint, &settings, precision, Limits::default()).unwrap();
        assert_eq!(memory(&random), memory(&real));
    }
    assert!(published::random_like("no-such-folder".as_ref(), 3).is_err());
}
