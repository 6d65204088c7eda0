//! CLIP's picture encoder against transformers, state by state (`tests/goldens/clip/`, made by `tools/goldens/clip.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use safetensors::SafeTensors;
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::{KernelSet, Limits};
use scumble::models::config::ClipVisionConfig;
use scumble::models::vision::clip_image::clip_image;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::file_source::FileSource;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, Weights, pack};

const CASES: [&str; 7] = ["b32", "l14", "h14", "b16", "p7", "p3", "one"];
/// A few layers in f32, whose sums (of up to 3,072 terms) have another order than PyTorch's.
const SINGLE: f32 = 2e-5;
/// The same with every state rounded to halves, each 5e-4 off.
const HALF: f32 = 1e-2;

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/clip").join(name)
}

fn read(path: &Path) -> BTreeMap<String, HostTensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        let data = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn compare(name: &str, limits: Limits, precision: DType, tolerance: f32) {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    let config = ClipVisionConfig::from_json(&serde_json::from_str(&text).unwrap(), name).unwrap();
    let file = TensorFile::open(&folder(name).join("model.safetensors")).unwrap();
    let source = FileSource::whole(Arc::new(file)).unwrap();
    let golden = read(&folder(name).join("golden.safetensors"));
    let mut g = Graph::new(precision, limits).with_taps();
    let [batch, _, height, width] = <[usize; 4]>::try_from(golden["pixels"].shape.clone()).unwrap();
    let pixels = g.input("pixels", Shape::new(batch as u32, height as u32, width as u32, 3), DType::F32);
    let claims = Claims::default();
    let embeds = clip_image(&mut g, &Weights::new(0, &source, &claims), &config, pixels);
    g.output("image_embeds", embeds);
    claims.finish(&source).unwrap();
    assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
    let executor = Executor::new(&gpu(), &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
    executor.poison();
    executor.write("pixels", &golden["pixels"].channels_last()).unwrap();
    executor.run();
    assert_eq!(golden.len(), config.num_layers + 4);
    for (key, want) in golden.iter().filter(|(key, _)| *key != "pixels") {
        let got = executor.read(key).unwrap();
        assert_eq!(got.data.len(), want.data.len(), "{name}: {key}: {:?} instead of {:?}", got.shape, want.shape);
        let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (index, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
            let near = (got - want).abs() <= tolerance * largest;
            assert!(near, "{name} {precision:?}: {key}: value {index} is {got}, wanted {want} (largest {largest})");
        }
    }
}

#[test]
fn every_shape_in_f32() {
    CASES.into_iter().for_each(|name| compare(name, gpu().limits(), DType::F32, SINGLE));
}

#[test]
fn every_shape_in_f16() {
    CASES.into_iter().for_each(|name| compare(name, gpu().limits(), DType::F16, HALF));
}

#[test]
fn with_the_shaders_for_graphics_cards() {
    let limits = Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu().limits() };
    ["b32", "h14", "one"].into_iter().for_each(|name| compare(name, limits, DType::F32, SINGLE));
}
