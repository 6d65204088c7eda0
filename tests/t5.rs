//! T5 against transformers (`tests/goldens/t5/`, made by `tools/goldens/t5.py`): encoders of several shapes layer by layer, the embedded
//! one, SentencePiece models, buckets of positions, and the f64 reference of RMSNorm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::kernels::cases::compare;
use scumble::kernels::position_bias::PositionBias;
use scumble::kernels::rms_norm::{self, RmsNorm};
use scumble::models::config::T5Config;
use scumble::models::text::t5;
use scumble::tensor::{DType, HostTensor};
use scumble::text::{T5Files, T5Tokenizer};
use scumble::weights::file_source::{Change, FileSource};
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, Weights, pack};

/// A few layers in f32, whose sums have another order than PyTorch's.
const FLOATS: f32 = 2e-5;
/// The same with halves in every product, each 5e-4 off.
const HALVES: f32 = 1e-2;

type Tensors = BTreeMap<String, HostTensor>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn golden(name: &str) -> PathBuf {
    folder("tests/goldens/t5").join(name)
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
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

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.data.len(), want.data.len(), "{place}: {:?} instead of {:?}", got.shape, want.shape);
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        assert!((got - want).abs() <= tolerance * largest, "{place}: value {i} is {got}, wanted {want}");
    }
}

/// The encoder in `model` on the ids and the mask of `golden`, compared with its states.
/// Buffers are bound by at most `binding` bytes, where it is given.
fn encoder(place: &str, model: &Path, golden: &Tensors, (dtype, tolerance): (DType, f32), binding: Option<u64>) {
    let text = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config = T5Config::from_json(&serde_json::from_str(&text).unwrap(), place).unwrap();
    let mut source = FileSource::new(place.to_owned());
    let file = Arc::new(TensorFile::open(&model.join("model.safetensors")).unwrap());
    let name = |key: &str| (key != "encoder.embed_tokens.weight").then(|| (key.to_owned(), Change::Keep));
    source.add_all(&file, name).unwrap();
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let claims = Claims::default();
    let w = Weights::new(0, &source, &claims);
    let limits = gpu.limits();
    let limits = Limits { binding: binding.unwrap_or(limits.binding), ..limits };
    let mut g = Graph::new(dtype, limits).with_taps();
    let [batch, tokens] = [0, 1].map(|axis| golden["ids"].shape[axis] as u32);
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
    executor.write("mask", &HostTensor::new(golden["mask"].shape.clone(), hidden).unwrap()).unwrap();
    executor.run();
    for (name, want) in golden.iter().filter(|(name, _)| name.starts_with("hidden.")) {
        let layer: usize = name["hidden.".len()..].parse().unwrap();
        let tap = layer.checked_sub(1).map_or("shared".to_owned(), |layer| format!("encoder.block.{layer}"));
        close(&format!("{place} {dtype:?}: {tap}"), &executor.read(&tap).unwrap(), want, tolerance);
    }
    close(&format!("{place} {dtype:?}: last"), &executor.read("last").unwrap(), &golden["last"], tolerance);
}

#[test]
fn encoders_of_every_kind_agree_with_transformers() {
    for name in ["gated_gelu", "gated_silu", "relu", "gelu", "gelu_new"] {
        let states = read(&golden(name).join("golden.safetensors"));
        assert!(states.contains_key("hidden.0"));
        encoder(name, &golden(name), &states, (DType::F32, FLOATS), None);
        encoder(name, &golden(name), &states, (DType::F16, HALVES), None);
    }
}

/// As T5-XXL does under bindings of 128 MiB.
#[test]
fn feed_forward_parts_that_exceed_a_binding_are_cut() {
    // 12 KiB hold the keys and values, but only 32 of the 50 pairs of inner channels.
    let states = read(&golden("gated_gelu/short.safetensors"));
    encoder("gated_gelu", &golden("gated_gelu"), &states, (DType::F32, FLOATS), Some(12 << 10));
}

#[test]
fn the_embedded_encoder_agrees_with_transformers() {
    let states = read(&golden("emoji.safetensors"));
    let part = folder("assets/emoji-imagen/I");
    let bytes = std::fs::read(part.join("tokenizer/tokenizer.json")).unwrap();
    let tokenizer = T5Tokenizer::load(&T5Files { place: "emoji", whole: Some(&bytes), pieces: None }).unwrap();
    let texts = ["red apple", "grinning cat face with smiling eyes"];
    let ids: Vec<f32> =
        texts.iter().flat_map(|text| tokenizer.encode(text, 77).unwrap().ids).map(|id| id as f32).collect();
    assert_eq!(ids, states["ids"].data);
    encoder("emoji", &part.join("text_encoder"), &states, (DType::F32, FLOATS), None);
}

/// A model of SentencePiece's own trainer, with its table of normal forms.
#[test]
fn sentencepiece_models_give_the_ids_of_transformers() {
    let bytes = std::fs::read(golden("spiece/spiece.model")).unwrap();
    let tokenizer = T5Tokenizer::load(&T5Files { place: "spiece", whole: None, pieces: Some(&bytes) }).unwrap();
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(golden("spiece/ids.json")).unwrap()).unwrap();
    assert!(cases.len() >= 7);
    for case in cases {
        let tokens = tokenizer.encode(case["text"].as_str().unwrap(), 77).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokens.ids[..tokens.count], ids, "{}", case["text"]);
    }
}

#[test]
fn buckets_of_all_distances_are_those_of_transformers() {
    let cases: BTreeMap<String, Vec<[u32; 2]>> =
        serde_json::from_slice(&std::fs::read(golden("buckets.json")).unwrap()).unwrap();
    assert!(cases.len() > 90);
    for (name, runs) in cases {
        let (buckets, most) = name.split_once(',').unwrap();
        let [buckets, max_distance] = [buckets, most].map(|number| number.parse().unwrap());
        let table = PositionBias { batch: 1, heads: 1, tokens: 521, buckets, max_distance }.table();
        let want: Vec<f32> = runs.iter().flat_map(|[bucket, count]| vec![*bucket as f32; *count as usize]).collect();
        let off: Vec<_> =
            (0..1041).filter(|i| table[*i] != want[*i]).map(|i| (i as i32 - 520, table[i], want[i])).collect();
        assert!(off.is_empty(), "{name}: distance, found, expected: {off:?}");
    }
}

#[test]
fn rms_norms_reference_agrees_with_transformers() {
    let file = read(&golden("rms_norm.safetensors"));
    for case in 0..3 {
        let [x, weight, y, eps] = ["x", "weight", "y", "eps"].map(|part| &file[&format!("{case}.{part}")]);
        let [rows, channels] = [0, 1].map(|axis| x.shape[axis] as u32);
        let config = RmsNorm { rows, channels, eps: eps.data[0], types: [DType::F32; 2] };
        let [x, weight, y] =
            [x, weight, y].map(|part| part.data.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
        // transformers works in f32: a sum of squares, a root and two products.
        let tolerances: Vec<f64> = y.iter().map(|y| 16.0 * f64::from(f32::EPSILON) * y.abs()).collect();
        compare("rms_norm", &rms_norm::reference(&config, &x, &weight), &y, &tolerances).unwrap();
    }
}
