//! DeepFloyd IF against diffusers: tiny random stages (`tests/goldens/imagen/`, made by `tools/goldens/imagen.py`), drawn one after
//! the other; T5 against transformers, layer by layer; its published keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::models::config::T5Config;
use scumble::models::text::t5;
use scumble::pipelines::{Drawing, Event, Imagen, Request, System, Variation};
use scumble::tensor::{DType, HostTensor};
use scumble::text::{T5Files, T5Tokenizer};
use scumble::weights::file_source::{Change, FileSource};
use scumble::weights::imagen::ImagenStage;
use scumble::weights::shapes::parse_manifest;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, ShapesSource, Source, Weights, pack};

/// Some dozens of layers in f32, whose sums have another order than PyTorch's, over a few steps that pass errors on.
const TOLERANCE: f32 = 5e-4;
/// Three layers in f32.
const ENCODER: f32 = 2e-5;

type Tensors = BTreeMap<String, HostTensor>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/imagen").join(name)
}

fn gpu() -> Arc<Gpu> {
    Arc::new(Gpu::open(&GpuOptions::default()).unwrap())
}

fn read(name: &str) -> Tensors {
    let bytes = std::fs::read(folder(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        let words = view.data().as_chunks().0.iter();
        let data = match view.dtype() {
            Dtype::F32 => words.map(|four| f32::from_le_bytes(*four)).collect(),
            Dtype::I32 => words.map(|four| i32::from_le_bytes(*four) as f32).collect(),
            other => panic!("{key} is stored as {other:?}"),
        };
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn cases() -> Vec<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(folder("cases.json")).unwrap()).unwrap()
}

fn stage(name: &str) -> ImagenStage {
    ImagenStage::open(&folder(name)).unwrap()
}

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.data.len(), want.data.len(), "{place}: {:?} instead of {:?}", got.shape, want.shape);
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        let difference = (got - want).abs();
        assert!(difference <= tolerance * largest, "{place}: value {i} is {got}, wanted {want}");
    }
}

fn finish(drawing: &mut dyn Drawing) -> Tensors {
    let mut pictures = 0;
    for event in &mut *drawing {
        pictures += usize::from(matches!(event.unwrap(), Event::Picture(_)));
    }
    assert_eq!(pictures, 1);
    drawing.take_dump().into_iter().collect()
}

fn request(case: &serde_json::Value) -> Request {
    let number = |key: &str| case[key].as_u64().unwrap() as u32;
    Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative_prompt"].as_str().map(str::to_owned),
        steps: Some(number("steps")),
        guidance_scale: Some(case["guidance"].as_f64().unwrap() as f32),
        seed: case["seed"].as_u64().unwrap(),
        ..Request::default()
    }
}

#[test]
fn the_first_stage_draws_what_diffusers_draws() {
    let golden = read("golden.safetensors");
    let model = Arc::new(Imagen::new(gpu(), vec![stage("I")], DType::F32).unwrap());
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let number = |key: &str| Some(case[key].as_u64().unwrap() as u32);
        let request = Request { width: number("width"), height: number("height"), ..request(&case) };
        let mut drawing = Arc::clone(&model).draw(request, 1, true).unwrap();
        let dump = finish(drawing.as_mut());
        close(&format!("{name}: text"), &dump["text_embeddings"], &golden[&format!("{name}.text")], TOLERANCE);
        if let Some(negative) = dump.get("negative_text_embeddings") {
            close(&format!("{name}: negative"), negative, &golden[&format!("{name}.negative")], TOLERANCE);
        }
        close(name, &dump["image"], &golden[&format!("{name}.I")], TOLERANCE);
        close(name, &drawing.image().unwrap(), &golden[&format!("{name}.I")], TOLERANCE);
    }
}

/// The first stage's picture is given, and one generator serves both, as a caller of diffusers does it: what the first drew of
/// it is drawn and thrown away by running it.
#[test]
fn both_stages_draw_what_diffusers_draws() {
    let golden = read("golden.safetensors");
    let model = Arc::new(Imagen::new(gpu(), vec![stage("I"), stage("II")], DType::F32).unwrap());
    // The first stage of a chain has its own size, which one case has.
    let case = cases().into_iter().find(|case| case["name"] == "square").unwrap();
    let number = |key: &str| Some(case[key].as_u64().unwrap() as u32);
    let request = Request {
        width: number("width").map(|width| 2 * width + 8),
        height: number("height").map(|height| 2 * height),
        sr_steps: number("sr_steps"),
        noise_level: number("level"),
        ..request(&case)
    };
    let seed = request.seed;
    let mut drawing = model.draw(request, 2, true).unwrap();
    let dump = finish(drawing.as_mut());
    close("I", &dump["picture"], &golden["square.I"], TOLERANCE);
    close("II", &dump["image"], &golden["square.II"], TOLERANCE);
    // Once more with the stages that are loaded, the first of them again.
    drawing.again(Variation { seed, ..Variation::default() }, true).unwrap();
    let dump = finish(drawing.as_mut());
    close("II again", &dump["image"], &golden["square.II"], TOLERANCE);
}

#[test]
fn the_second_stage_enlarges_a_given_picture() {
    let golden = read("golden.safetensors");
    let case = &cases()[0];
    let mut second = stage("II");
    second.text = stage("I").text;
    let model = Arc::new(Imagen::new(gpu(), vec![second], DType::F32).unwrap());
    let number = |key: &str| Some(case[key].as_u64().unwrap() as u32);
    let request = Request {
        width: number("width").map(|width| 2 * width + 8),
        height: number("height").map(|height| 2 * height),
        steps: number("sr_steps"),
        guidance_scale: Some(4.0),
        noise_level: number("level"),
        image: Some(golden["plain.I"].clone()),
        ..request(case)
    };
    let mut drawing = model.draw(request, 1, true).unwrap();
    close("alone", &finish(drawing.as_mut())["image"], &golden["alone.II"], TOLERANCE);
}

#[test]
fn published_timesteps_are_diffusers() {
    let golden = read("golden.safetensors");
    let model = Arc::new(Imagen::new(gpu(), vec![stage("I")], DType::F32).unwrap());
    let base =
        Request { prompt: "a red apple".to_owned(), seed: 4, width: Some(8), height: Some(8), ..Request::default() };
    let request = Request { schedule: Some("smart27".to_owned()), ..base.clone() };
    let mut drawing = Arc::clone(&model).draw(request, 1, true).unwrap();
    assert_eq!(drawing.summary().steps, Some(27));
    close("smart27", &finish(drawing.as_mut())["image"], &golden["smart27"], TOLERANCE);
    let request = Request { schedule: Some("smart27".to_owned()), steps: Some(5), ..base };
    assert!(model.draw(request, 1, false).is_err());
}

#[test]
fn stages_that_make_no_chain_are_refused() {
    let gpu = gpu();
    let without_text = Imagen::new(Arc::clone(&gpu), vec![stage("II")], DType::F32).err().unwrap();
    assert!(without_text.to_string().contains("text encoder"), "{without_text}");
    assert!(Imagen::new(Arc::clone(&gpu), vec![stage("I"), stage("I")], DType::F32).is_err());
    let first = Arc::new(Imagen::new(gpu, vec![stage("I")], DType::F32).unwrap());
    for wrong in [
        Request { noise_level: Some(3), ..Request::default() },
        Request { width: Some(9), ..Request::default() },
        Request { sampler: Some("none".to_owned()), ..Request::default() },
        Request { latents: Some(HostTensor::new(vec![1], vec![0.0]).unwrap()), ..Request::default() },
    ] {
        assert!(Arc::clone(&first).draw(wrong.clone(), 1, false).is_err(), "{wrong:?}");
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    let golden = read("golden.safetensors");
    let bytes = std::fs::read(folder("I/tokenizer/tokenizer.json")).unwrap();
    let tokenizer = T5Tokenizer::load(&T5Files { place: "I", whole: Some(&bytes), pieces: None }).unwrap();
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let tokens = tokenizer.encode(case["prompt"].as_str().unwrap(), 77).unwrap();
        let ids: Vec<f32> = tokens.ids.iter().map(|id| *id as f32).collect();
        assert_eq!(ids, golden[&format!("{name}.ids")].data, "{name}");
        let count = golden[&format!("{name}.mask")].data.iter().sum::<f32>();
        assert_eq!(tokens.count as f32, count, "{name}");
        assert_eq!(tokens.cut.is_some(), name == "long", "{name}: {:?}", tokens.cut);
    }
}

/// T5 with plain ReLU, masked, in a graph of its own: the states behind every layer.
fn relu(dtype: DType, factor: f32) -> (Tensors, Tensors) {
    let golden = read("t5_relu/golden.safetensors");
    let text = std::fs::read_to_string(folder("t5_relu/config.json")).unwrap();
    let config = T5Config::from_json(&serde_json::from_str(&text).unwrap(), "t5_relu").unwrap();
    let mut source = FileSource::new("t5_relu".to_owned());
    let file = Arc::new(TensorFile::open(&folder("t5_relu/model.safetensors")).unwrap());
    source.add_all(&file, |key: &str| Some((key.to_owned(), Change::Keep))).unwrap();
    let source = Louder { source, factor };
    let gpu = gpu();
    let claims = Claims::default();
    let w = Weights::new(0, &source, &claims);
    let mut g = Graph::new(dtype, gpu.limits()).with_taps();
    let (batch, tokens) = (2, 33);
    let ids = g.input("ids", Shape::tokens(batch, tokens, 1), DType::F32);
    let mask = g.input("mask", Shape::new(batch, 1, 1, tokens), DType::F32);
    let x = t5::embedding(&mut g, &w, &config, ids);
    g.tap("shared", x);
    let bias = t5::bias(&mut g, &w, &config, mask);
    let x = t5::layers(&mut g, &w, &config, 0..config.layers, x, bias);
    let last = t5::final_norm(&mut g, &w, &config, x);
    g.output("last", last);
    claims.finish(&source).unwrap();
    let executor = Executor::new(&gpu, &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
    executor.poison();
    let words: Vec<u32> = golden["ids"].data.iter().flat_map(|id| [*id as u32, 0, 0, 0]).collect();
    executor.write_bytes("ids", bytemuck::cast_slice(&words)).unwrap();
    let hidden = golden["mask"].data.iter().map(|seen| if *seen > 0.0 { 0.0 } else { f32::MIN }).collect();
    executor.write("mask", &HostTensor::new(vec![2, 33], hidden).unwrap()).unwrap();
    executor.run();
    let names = ["shared", "encoder.block.0", "encoder.block.1", "encoder.block.2", "last"];
    let got = names.into_iter().map(|name| (name.to_owned(), executor.read(name).unwrap())).collect();
    (got, golden)
}

/// The same weights, the token table and all products into the stream so much larger.
struct Louder {
    source: FileSource,
    factor: f32,
}

impl Source for Louder {
    fn info(&self, name: &str) -> Option<scumble::weights::TensorInfo> {
        self.source.info(name)
    }

    fn rows(&self, name: &str, rows: std::ops::Range<usize>, out: &mut Vec<f32>) -> scumble::error::Result<()> {
        self.source.rows(name, rows, out)?;
        if ["shared.weight", ".o.weight", ".wo.weight"].iter().any(|end| name.ends_with(end)) {
            out.iter_mut().for_each(|value| *value *= self.factor);
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }
}

#[test]
fn t5_agrees_with_transformers_layer_by_layer() {
    let (got, golden) = relu(DType::F32, 1.0);
    let pairs =
        [("shared", "hidden.0"), ("encoder.block.0", "hidden.1"), ("encoder.block.1", "hidden.2"), ("last", "last")];
    for (name, wanted) in pairs {
        close(name, &got[name], &golden[wanted], ENCODER);
    }
}

/// What runs through the layers passes f16's range, and nothing is lost: the norms take the factor out again.
#[test]
fn halves_do_not_overflow() {
    let (quiet, _) = relu(DType::F32, 1.0);
    let (got, _) = relu(DType::F16, 30_000.0);
    let largest = got["encoder.block.2"].data.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(largest > 65504.0, "only {largest}");
    // Halves in every product of three layers, each 5e-4 off.
    close("last", &got["last"], &quiet["last"], 1e-2);
}

#[test]
fn t5_takes_every_published_tensor() {
    let text = include_str!("goldens/keys/T5_v1.1_XXL_encoder.tsv");
    let tensors = parse_manifest("T5", text).unwrap();
    let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| !name.starts_with("encoder.embed_tokens")).collect();
    let source = ShapesSource::new("manifest", tensors);
    let config = serde_json::json!({
        "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu"
    });
    let config = T5Config::from_json(&config, "manifest").unwrap();
    let claims = Claims::default();
    let w = Weights::new(0, &source, &claims);
    // In halves as in floats within WebGPU's bindings: the token table in ranges, wide products in parts.
    for dtype in [DType::F16, DType::F32] {
        let mut g = Graph::new(dtype, Limits::default());
        let ids = g.input("ids", Shape::tokens(2, 77, 1), DType::F32);
        let mask = g.input("mask", Shape::new(2, 1, 1, 77), DType::F32);
        let x = t5::embedding(&mut g, &w, &config, ids);
        let bias = t5::bias(&mut g, &w, &config, mask);
        let x = t5::layers(&mut g, &w, &config, 0..config.layers, x, bias);
        t5::final_norm(&mut g, &w, &config, x);
        assert!(g.fault().is_none(), "{:?}", g.fault());
    }
    claims.finish(&source).unwrap();
}

fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    let length = [(bytes.len() & 127) as u8 | 128, (bytes.len() >> 7) as u8];
    [&[field << 3 | 2], &length[..], bytes].concat()
}

/// The same pieces as SentencePiece writes them give the same ids; a truncated file is an error.
#[test]
fn pieces_alone_are_a_tokenizer() {
    let golden = read("golden.safetensors");
    let bytes = std::fs::read(folder("I/tokenizer/tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let mut file = Vec::new();
    for (id, entry) in json["model"]["vocab"].as_array().unwrap().iter().enumerate() {
        let (text, score) = (entry[0].as_str().unwrap(), entry[1].as_f64().unwrap() as f32);
        if text.starts_with("<extra_id") {
            continue;
        }
        // Padding and end are control pieces, then comes the unknown one.
        let kind = [3, 3, 2].get(id).copied().unwrap_or(1);
        let parts = [message(1, text.as_bytes()), [&[0x15], &score.to_le_bytes()[..]].concat(), vec![0x18, kind]];
        file.extend(message(1, &parts.concat()));
    }
    // A trainer's settings, which nothing reads, and a normalizer without a table.
    file.extend(message(2, b"\x0a\x03abc"));
    file.extend(message(3, b"\x0a\x04nmt_"));
    let load = |bytes: &[u8]| T5Tokenizer::load(&T5Files { place: "I", whole: None, pieces: Some(bytes) });
    let tokenizer = load(&file).unwrap();
    for case in cases() {
        let tokens = tokenizer.encode(case["prompt"].as_str().unwrap(), 77).unwrap();
        let ids: Vec<f32> = tokens.ids.iter().map(|id| *id as f32).collect();
        assert_eq!(ids, golden[&format!("{}.ids", case["name"].as_str().unwrap())].data);
    }
    assert!(load(&file[..file.len() - 1]).is_err());
    assert!(load(b"no protobuf").is_err());
}
