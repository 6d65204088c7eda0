//! Kandinsky 2.2 against diffusers: MoVQ decoders block by block, tiny random directories drawn end to end. The numbers come from
//! `tools/goldens/kandinsky.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use safetensors::{Dtype, SafeTensors};
use scumble::error::{Error, Result};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::{KernelSet, Limits};
use scumble::models::config::MovqConfig;
use scumble::models::decoder::movq;
use scumble::sampling::TorchGenerator;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::{Claims, Source, TensorInfo, Weights, pack};

/// Sums in another order than PyTorch's: some twenty layers, each near 1e-6 of its largest value.
const SINGLE: f32 = 5e-5;
/// Twenty layers whose results are rounded to halves (5e-4 each), which norms over few channels amplify.
const HALF: f32 = 2.5e-2;

type Tensors = BTreeMap<String, HostTensor>;

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/kandinsky")
}

fn read(name: &str) -> Tensors {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        let data = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.data.len(), want.data.len(), "{place}: {:?} instead of {:?}", got.shape, want.shape);
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0f32, |worst, difference| if difference <= worst { worst } else { difference });
    println!("{place}: {:.1e} of the largest", worst / largest);
    assert!(worst <= tolerance * largest, "{place}: {:.1e} of the largest", worst / largest);
}

/// CRC-32 (ISO 3309), as Python's `zlib.crc32`.
fn crc32(text: &str) -> u64 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    u64::from(!text.bytes().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step)))
}

/// Weights that the golden's maker drew in the same way, each from a generator that its name seeds.
struct Drawn(BTreeMap<String, Vec<usize>>);

impl Source for Drawn {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|shape| TensorInfo { dtype: DType::F32, shape: shape.clone() })
    }

    fn rows(&self, name: &str, rows: std::ops::Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let info = self.info(name).ok_or_else(|| Error::new("missing tensor").at(name))?;
        let [count, length] = info.matrix();
        let drawn = TorchGenerator::new(crc32(name)).randn(count * length);
        let value = |n: f32| match (info.shape.len(), name.ends_with("weight")) {
            (1, true) => 1.0 + 0.2 * n,
            (1, false) => 0.2 * n,
            _ => n / (length as f32).sqrt(),
        };
        out.clear();
        out.extend(drawn[rows.start * length..rows.end * length].iter().map(|n| value(*n)));
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        "drawn".to_owned()
    }
}

/// The decoder of `movq.json` and its weights, without those of the encoder.
fn drawn(case: &serde_json::Value) -> (MovqConfig, Drawn) {
    let config = MovqConfig::from_json(case, "movq.json").unwrap();
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_value(case["tensors"].clone()).unwrap();
    let encoder = config.encoder_names();
    assert!(encoder.iter().all(|name| tensors.contains_key(name)), "names that the encoder does not have");
    (config, Drawn(tensors.into_iter().filter(|(name, _)| !encoder.contains(name)).collect()))
}

/// Runs every decoder and compares every tap of diffusers.
fn decoders(limits: Limits, precision: DType, tolerance: f32) {
    let golden = read("movq.safetensors");
    for (name, case) in json("movq.json").as_object().unwrap() {
        let (config, source) = drawn(case);
        let latent = &golden[&format!("{name}.latent")];
        let [batch, channels, height, width] =
            <[usize; 4]>::try_from(latent.shape.clone()).unwrap().map(|axis| axis as u32);
        let claims = Claims::default();
        let w = Weights::new(0, &source, &claims);
        let mut g = Graph::new(precision, limits).with_taps();
        let x = g.input("latent", Shape::new(batch, height, width, channels), DType::F32);
        let scale = config.scale() as u32;
        let picture = movq::decode(&mut g, &w, &config, x);
        assert_eq!(g.shape(picture), Shape::new(batch, height * scale, width * scale, 3));
        claims.finish(&source).unwrap();
        assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
        let executor = Executor::new(&gpu(), &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
        executor.poison();
        executor.write("latent", &latent.channels_last()).unwrap();
        executor.run();
        let taps = golden.iter().filter_map(|(key, want)| Some((key.strip_prefix(&format!("{name}.movq"))?, want)));
        let mut compared = 0;
        for (tap, want) in taps {
            let got = executor.read(&format!("movq{tap}")).unwrap().channels_first();
            close(&format!("{name}: movq{tap}"), &got, want, tolerance);
            compared += 1;
        }
        assert_eq!(compared, 4, "{name}");
    }
}

#[test]
fn movq_decodes_as_diffusers_does() {
    decoders(gpu().limits(), DType::F32, SINGLE);
}

#[test]
fn movq_decodes_in_halves() {
    decoders(gpu().limits(), DType::F16, HALF);
}

#[test]
fn movq_decodes_with_the_shaders_for_graphics_cards() {
    decoders(Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu().limits() }, DType::F32, SINGLE);
}

/// Bindings so small that every tensor of the upper levels is cut, the norms' modulation too.
#[test]
fn movq_decodes_within_small_bindings() {
    decoders(Limits { binding: 16 << 10, ..gpu().limits() }, DType::F32, SINGLE);
}

#[test]
fn what_a_movq_cannot_be_is_told() {
    let told = |key: &str, value: serde_json::Value| {
        let mut case = json("movq.json")["as_published"].clone();
        case[key] = value;
        MovqConfig::from_json(&case, "movq").unwrap_err().to_string()
    };
    for (key, value) in [
        ("norm_type", serde_json::json!("group")),
        ("vq_embed_dim", serde_json::json!(5)),
        ("block_out_channels", serde_json::json!([32, 48, 64])),
        ("lookup_from_codebook", serde_json::json!(true)),
        ("up_block_types", serde_json::json!(["UpDecoderBlock2D"])),
        ("act_fn", serde_json::json!("relu")),
    ] {
        let error = told(key, value);
        assert!(error.contains(key), "{key}: {error}");
    }
}
