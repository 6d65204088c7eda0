//! UNets of every kind against diffusers, block by block: tiny random models with diffusers' own inputs, and the kernels that
//! only they use against PyTorch. The numbers come from `tools/goldens/unets.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use safetensors::{Dtype, SafeTensors};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape, Value};
use scumble::kernels::elementwise::Activation;
use scumble::kernels::group_norm::{self, GroupNorm, Modulation};
use scumble::kernels::pool::{self, Mode, Pool};
use scumble::kernels::{KernelSet, Limits};
use scumble::models::config::UnetConfig;
use scumble::models::generator::context::{PromptVectors, text_keys};
use scumble::models::generator::unet::{self, Conditioning};
use scumble::models::nn::{self, Conv, Linear};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::file_source::FileSource;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, RandomSource, Weights, pack};

const CASES: [&str; 11] = [
    "if_1",
    "if_2",
    "karlo",
    "karlo_sr",
    "kandinsky",
    "kandinsky_2_1",
    "x4",
    "cross_scale_shift",
    "mid_resnet",
    "unconditional",
    "unconditional_resnets",
];
/// Sums in another order than PyTorch's: some twenty layers, each near 1e-6 of its largest value.
const SINGLE: f32 = 5e-5;
/// Twenty layers whose results are rounded to halves (5e-4 each). As much noise in diffusers' own layers moves these narrow
/// models' results by 3e-3 to 1.2e-2, norms over a dozen channels amplifying it; twice that.
const HALF: f32 = 2.5e-2;

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/unets")
}

fn read(path: &Path) -> BTreeMap<String, HostTensor> {
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

fn config(name: &str) -> UnetConfig {
    let text = std::fs::read_to_string(folder().join(name).join("config.json")).unwrap();
    UnetConfig::from_json(&serde_json::from_str(&text).unwrap(), name).unwrap()
}

fn source(name: &str) -> FileSource {
    let path = folder().join(name).join("diffusion_pytorch_model.safetensors");
    FileSource::whole(Arc::new(TensorFile::open(&path).unwrap())).unwrap()
}

/// Declares the golden's inputs and builds text graph and UNet as one.
fn build(g: &mut Graph, source: &FileSource, config: &UnetConfig, golden: &BTreeMap<String, HostTensor>) {
    let stored = g.precision();
    let [batch, channels, height, width] =
        <[usize; 4]>::try_from(golden["sample"].shape.clone()).unwrap().map(|axis| axis as u32);
    let sample = g.input("sample", Shape::new(batch, height, width, channels), stored);
    let number = |g: &mut Graph, key: &str| g.input(key, Shape::new(batch, 1, 1, 1), DType::F32);
    let row = |g: &mut Graph, key: &str| {
        golden.get(key).map(|value| g.input(key, Shape::new(batch, 1, 1, value.shape[1] as u32), stored))
    };
    let tokens = |g: &mut Graph, key: &str| {
        golden
            .get(key)
            .map(|value| g.input(key, Shape::tokens(batch, value.shape[1] as u32, value.shape[2] as u32), stored))
    };
    let timestep = number(g, "timestep");
    let class: Option<Value> = match ["number", "row"].into_iter().find(|key| golden.contains_key(*key)) {
        Some(key) => Some(number(g, key)),
        None => row(g, "vector"),
    };
    let prompt = PromptVectors { text: tokens(g, "text"), image: row(g, "image"), pooled: row(g, "pooled") };
    let claims = Claims::default();
    let w = Weights::new(0, source, &claims);
    let keys = text_keys(g, &w, config, prompt);
    let mask =
        golden.get("mask").map(|mask| g.input("mask", Shape::new(batch, 1, 1, mask.shape[1] as u32), DType::F32));
    let given = Conditioning { class, mask, ..Conditioning::new(timestep) };
    let y = unet::unet(g, &w, config, sample, given, &keys);
    assert_eq!(g.shape(y), Shape::new(batch, height, width, config.out_channels as u32));
    claims.finish(source).unwrap();
}

fn execute(graph: &Graph, source: &FileSource, golden: &BTreeMap<String, HostTensor>) -> Executor {
    let executor = Executor::new(&gpu(), graph, |spec, sink| pack::pack(spec, Some(source), sink)).unwrap();
    for (key, value) in golden.iter().filter(|(key, _)| !key.starts_with("unet")) {
        match key.as_str() {
            "sample" => executor.write(key, &value.channels_last()).unwrap(),
            "mask" => {
                let data = value.data.iter().map(|seen| (1.0 - seen) * -10000.0).collect();
                executor.write(key, &HostTensor { shape: value.shape.clone(), data }).unwrap();
            }
            "row" => {
                let words: Vec<u32> = value.data.iter().flat_map(|row| [*row as u32, 0, 0, 0]).collect();
                executor.write_bytes(key, bytemuck::cast_slice(&words)).unwrap();
            }
            _ => executor.write(key, value).unwrap(),
        }
    }
    executor.run();
    executor
}

/// What is off by more than `tolerance` of the largest value. NaN is.
fn fault(place: &str, got: &[f32], want: &[f32], tolerance: f32) -> Option<String> {
    assert_eq!(got.len(), want.len(), "{place}: another number of values");
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let worst =
        got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f32, |worst, d| if d <= worst { worst } else { d });
    println!("{place}: {:.1e} of the largest", worst / largest);
    (!got.iter().zip(want).all(|(a, b)| (a - b).abs() <= tolerance * largest))
        .then(|| format!("{place}: {:.1e} of the largest, at most {tolerance:.1e}", worst / largest))
}

/// Runs one model and compares every tap of diffusers.
fn compare(name: &str, limits: Limits, precision: DType, tolerance: f32) {
    let (config, source) = (config(name), source(name));
    let golden = read(&folder().join(name).join("golden.safetensors"));
    let mut g = Graph::new(precision, limits).with_taps();
    build(&mut g, &source, &config, &golden);
    assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
    let executor = execute(&g, &source, &golden);
    let mut faults = Vec::new();
    let taps = golden.iter().filter(|(key, _)| key.starts_with("unet"));
    for (key, want) in taps {
        let got = executor.read(key).unwrap_or_else(|error| panic!("{name}: {error}"));
        let got = if want.shape.len() == 4 { got.channels_first().data } else { got.data };
        faults.extend(fault(&format!("{name}: {key}"), &got, &want.data, tolerance));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_kind_in_f32() {
    CASES.into_iter().for_each(|name| compare(name, gpu().limits(), DType::F32, SINGLE));
}

#[test]
fn every_kind_in_f16() {
    CASES.into_iter().for_each(|name| compare(name, gpu().limits(), DType::F16, HALF));
}

#[test]
fn with_the_shaders_for_graphics_cards() {
    let limits = Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu().limits() };
    ["if_1", "kandinsky_2_1", "mid_resnet"].into_iter().for_each(|name| compare(name, limits, DType::F32, SINGLE));
}

#[test]
fn what_does_not_fit_is_a_fault_that_is_told() {
    let built = |name: &str, spoil: &dyn Fn(&mut BTreeMap<String, HostTensor>)| {
        let mut golden = read(&folder().join(name).join("golden.safetensors"));
        spoil(&mut golden);
        let mut g = Graph::new(DType::F32, Limits::default());
        let (config, source) = (config(name), source(name));
        let [batch, channels, height, width] =
            <[usize; 4]>::try_from(golden["sample"].shape.clone()).unwrap().map(|axis| axis as u32);
        let sample = g.input("sample", Shape::new(batch, height, width, channels), DType::F32);
        let timestep = g.input("timestep", Shape::new(batch, 1, 1, 1), DType::F32);
        let claims = Claims::default();
        let w = Weights::new(0, &source, &claims);
        let text = golden
            .get("text")
            .map(|text| g.input("text", Shape::tokens(batch, text.shape[1] as u32, text.shape[2] as u32), DType::F32));
        let keys = text_keys(&mut g, &w, &config, PromptVectors { text, ..PromptVectors::default() });
        unet::unet(&mut g, &w, &config, sample, Conditioning::new(timestep), &keys);
        g.fault().map(ToString::to_string).unwrap_or_default()
    };
    let odd = built("karlo_sr", &|golden| golden.get_mut("sample").unwrap().shape[2] = 6);
    assert!(odd.contains("cannot halve and double") && odd.contains("multiples of 4"), "{odd}");
    let silent = built("if_1", &|golden| drop(golden.remove("text")));
    assert!(silent.contains("text vectors"), "{silent}");
    let blind = built("kandinsky", &|_| {});
    assert!(blind.contains("a picture's embedding"), "{blind}");
    let unlabelled = built("x4", &|_| {});
    assert!(unlabelled.contains("class label"), "{unlabelled}");
    let unlabelled = built("x4", &|golden| drop(golden.remove("text")));
    assert!(unlabelled.contains("text vectors"), "{unlabelled}");
}

/// A convolution and a linear layer whose weights are larger than a binding give what they give whole.
#[test]
fn weights_larger_than_a_binding() {
    let run = |limits: Limits| {
        let mut g = Graph::new(DType::F32, limits);
        let (source, claims) = (RandomSource::on_demand(3), Claims::default());
        let w = Weights::new(0, &source, &claims);
        let x = g.input("x", Shape::new(2, 5, 6, 9), DType::F32);
        let time = g.input("time", Shape::new(2, 1, 1, 120), DType::F32);
        let first = nn::conv(&mut g, &w.at("first"), x, Conv { row_bias: Some((time, 8)), ..Conv::new(100, 3) });
        let act = Linear { residual: Some(first), activation: Activation::Gelu, ..Linear::new(100) };
        let second = nn::linear(&mut g, &w.at("second"), first, act);
        let third = nn::conv(&mut g, &w.at("third"), x, Conv { residual: Some(second), ..Conv::new(100, 3) });
        g.output("y", third);
        assert!(g.fault().is_none(), "{:?}", g.fault());
        let executor = Executor::new(&gpu(), &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
        let wave = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        executor.write("x", &HostTensor { shape: vec![2, 5, 6, 9], data: wave(540) }).unwrap();
        executor.write("time", &HostTensor { shape: vec![2, 120], data: wave(240) }).unwrap();
        executor.run();
        (executor.read("y").unwrap().data, g.weights().len())
    };
    let (whole, few) = run(gpu().limits());
    let (parts, many) = run(Limits { binding: 28 << 10, ..gpu().limits() });
    assert_eq!((few, many), (6, 12), "two parts: the weights and biases of each part");
    // The same sums, and the residual added after one more rounding.
    assert!(fault("in parts", &parts, &whole, 1e-6).is_none());
}

fn channels_last(tensor: &HostTensor) -> Vec<f64> {
    tensor.channels_last().data.iter().map(|value| f64::from(*value)).collect()
}

/// The f64 references of pooling and of the modulated norm agree with PyTorch.
#[test]
fn references_agree_with_pytorch() {
    let path = folder().join("kernels.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let tensors = read(&path);
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 9);
    for (name, settings) in cases {
        let get = |key: &str| &tensors[&format!("{name}/{key}")];
        let flat = |key: &str| get(key).data.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
        let [x, y] = ["x", "y"].map(|key| <[usize; 4]>::try_from(get(key).shape.clone()).unwrap().map(|n| n as u32));
        let number = |key: &str| settings[key].as_u64().map_or(1, |number| number as u32);
        let got = if name.starts_with("pool") {
            let mode = match settings["mode"].as_str().unwrap() {
                "mean" => Mode::Mean,
                "padded_mean" => Mode::PaddedMean,
                _ => Mode::Max,
            };
            let config = Pool {
                batch: x[0],
                input: [x[2], x[3]],
                output: [y[2], y[3]],
                channels: x[1],
                mode,
                kernel: [number("kernel"); 2],
                stride: [number("stride"); 2],
                padding: [number("padding"); 2],
                enlarge: number("enlarge"),
                dtype: DType::F32,
            };
            pool::reference(&config, &channels_last(get("x")))
        } else {
            let activation = match settings["activation"].as_str().unwrap() {
                "gelu" => Activation::Gelu,
                "silu" => Activation::Silu,
                _ => Activation::None,
            };
            let config = GroupNorm {
                batch: x[0],
                positions: x[2] * x[3],
                channels: x[1],
                second: 0,
                groups: 4,
                eps: 1e-5,
                modulation: Some(Modulation { channels: 2 * x[1], scale: 0, shift: x[1], grid: None }),
                activation,
                dtype: DType::F32,
            };
            group_norm::reference(&config, &channels_last(get("x")), &flat("weight"), &flat("bias"), &flat("time"))
        };
        // The golden was computed in f64 and stored in f32.
        for (got, want) in got.iter().zip(channels_last(get("y"))) {
            assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{name}: {got} and {want}");
        }
    }
}
