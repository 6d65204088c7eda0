//! The f64 references of the kernels against PyTorch's numbers (`tests/goldens/kernels.safetensors`, see tools/README.md).

use std::collections::BTreeSet;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use scumble::kernels::attention::Attention;
use scumble::kernels::cases::compare;
use scumble::kernels::conv2d::Conv2d;
use scumble::kernels::elementwise::{self, Activation, Elementwise};
use scumble::kernels::group_norm::{self, GroupNorm};
use scumble::kernels::layer_norm::{self, LayerNorm};
use scumble::kernels::matmul::Matmul;
use scumble::kernels::scheduler_step::{self, Coefficients, Place};
use scumble::kernels::sinusoid::{self, Sinusoid};
use scumble::kernels::{embed, guidance_rescale, pixels};
use scumble::tensor::{DType, HostTensor};

/// One operation: its settings and tensors.
struct Golden<'a> {
    file: &'a SafeTensors<'a>,
    name: &'a str,
    settings: &'a Value,
}

impl Golden<'_> {
    fn host(&self, part: &str) -> HostTensor {
        let name = format!("{}.{part}", self.name);
        let view = self.file.tensor(&name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        HostTensor::new(view.shape().to_vec(), data).unwrap()
    }

    fn has(&self, part: &str) -> bool {
        self.file.tensor(&format!("{}.{part}", self.name)).is_ok()
    }

    /// The numbers in PyTorch's order; nothing when there is no such tensor.
    fn get(&self, part: &str) -> Vec<f64> {
        if self.has(part) { wide(&self.host(part).data) } else { Vec::new() }
    }

    /// A picture's numbers, channels last.
    fn picture(&self, part: &str) -> Vec<f64> {
        wide(&self.host(part).channels_last().data)
    }

    fn axes(&self, part: &str) -> Vec<u32> {
        self.host(part).shape.iter().map(|axis| *axis as u32).collect()
    }

    fn number(&self, setting: &str) -> f64 {
        self.settings[setting].as_f64().unwrap()
    }

    fn flag(&self, setting: &str) -> bool {
        self.settings[setting].as_bool().unwrap()
    }

    fn activation(&self) -> Activation {
        match self.settings["activation"].as_str() {
            None | Some("none") => Activation::None,
            Some("silu") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("quick_gelu") => Activation::QuickGelu,
            Some("gelu_tanh") => Activation::GeluTanh,
            Some(other) => panic!("{}: {other}", self.name),
        }
    }

    /// PyTorch's numbers were computed in f64 and rounded once to f32, so half an ulp is all that may be between; the
    /// rest is for what f64 loses where terms cancel.
    fn expect(&self, got: &[f64], expected: &[f64]) {
        let tolerances: Vec<f64> = expected.iter().map(|y| f64::from(f32::EPSILON) / 2.0 * y.abs() + 1e-9).collect();
        compare(self.name, got, expected, &tolerances).unwrap();
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn linear(golden: &Golden<'_>, gated: bool) {
    let [x, weight] = ["x", "weight"].map(|part| golden.axes(part));
    let config = Matmul {
        rows: x[0],
        inputs: x[1],
        outputs: weight[0] >> u32::from(gated),
        activation: golden.activation(),
        bias: golden.has("bias"),
        residual: golden.has("residual"),
        gated,
        input: DType::F32,
        weight: DType::F32,
        output: DType::F32,
    };
    let [x, weight, bias, residual] = ["x", "weight", "bias", "residual"].map(|part| golden.get(part));
    golden.expect(&config.matrix().reference(&x, &weight, &bias, &[], &residual), &golden.get("y"));
}

fn picture_config(input: &[u32], output: &[u32]) -> Conv2d {
    Conv2d {
        batch: input[0],
        input: [input[2], input[3]],
        output: [output[2], output[3]],
        inputs: input[1],
        outputs: output[1],
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
        upsample: false,
        row_bias: false,
        residual: false,
        dtype: DType::F32,
    }
}

fn convolution(golden: &Golden<'_>) {
    let padding: Vec<u32> = serde_json::from_value(golden.settings["pad_left_right_top_bottom"].clone()).unwrap();
    let config = Conv2d {
        kernel: [golden.number("kernel") as u32; 2],
        stride: golden.number("stride") as u32,
        padding: [padding[2], padding[0]],
        upsample: golden.flag("upsample_nearest_2x"),
        ..picture_config(&golden.axes("x"), &golden.axes("y"))
    };
    let got = config.matrix().reference(&golden.picture("x"), &golden.get("weight"), &golden.get("bias"), &[], &[]);
    golden.expect(&got, &golden.picture("y"));
}

/// A convolution of one tap with the identity only enlarges.
fn resize(golden: &Golden<'_>) {
    let config = Conv2d { upsample: true, ..picture_config(&golden.axes("x"), &golden.axes("y")) };
    let count = config.inputs as usize;
    let identity: Vec<f64> = (0..count * count).map(|i| f64::from(u8::from(i / count == i % count))).collect();
    let got = config.matrix().reference(&golden.picture("x"), &identity, &vec![0.0; count], &[], &[]);
    golden.expect(&got, &golden.picture("y"));
}

fn group(golden: &Golden<'_>) {
    let axes = golden.axes("x");
    let config = GroupNorm {
        batch: axes[0],
        positions: axes[2] * axes[3],
        channels: axes[1],
        second: 0,
        groups: golden.number("groups") as u32,
        eps: golden.number("eps") as f32,
        modulation: None,
        activation: if golden.flag("silu") { Activation::Silu } else { Activation::None },
        dtype: DType::F32,
    };
    let got = group_norm::reference(&config, &golden.picture("x"), &golden.get("weight"), &golden.get("bias"), &[]);
    golden.expect(&got, &golden.picture("y"));
}

fn layer(golden: &Golden<'_>) {
    let axes = golden.axes("x");
    let eps = golden.number("eps") as f32;
    let config = LayerNorm { rows: axes[0], channels: axes[1], eps, dtype: DType::F32 };
    golden.expect(
        &layer_norm::reference(&config, &golden.get("x"), &golden.get("weight"), &golden.get("bias")),
        &golden.get("y"),
    );
}

/// Rows of `[k | v]`.
fn joined(k: &[f64], v: &[f64], channels: usize) -> Vec<f64> {
    k.chunks_exact(channels).zip(v.chunks_exact(channels)).flat_map(|(k, v)| [k, v].concat()).collect()
}

fn heads(batch: u32, queries: u32, keys: u32, heads: u32, inner: u32) -> Attention {
    Attention {
        batch,
        queries,
        keys,
        heads,
        width: inner / heads,
        scale: 1.0,
        causal: false,
        query_channels: inner,
        key_channels: 2 * inner,
        offsets: [0, 0, inner],
        dtype: DType::F32,
        bias: None,
    }
}

fn attention(golden: &Golden<'_>) {
    let [q, k] = ["q", "k"].map(|part| golden.axes(part));
    let config = heads(q[0], q[1], k[1], golden.number("heads") as u32, q[2]);
    let config = Attention { scale: golden.number("scale") as f32, causal: golden.flag("causal"), ..config };
    let kv = joined(&golden.get("k"), &golden.get("v"), q[2] as usize);
    let got = config.reference(&golden.get("q"), &kv);
    // The config holds the scale in f32, so a score s is off by up to eps / 2 |s|, and each weight by as much relatively.
    let largest = golden.get("q").iter().fold(0f64, |most, q| most.max(q.abs())) * 4.0 * f64::from(config.width).sqrt();
    let y = golden.get("y");
    let tolerances: Vec<f64> = y.iter().map(|y| f64::from(f32::EPSILON) * (y.abs() + 4.0 * largest)).collect();
    compare(golden.name, &got, &y, &tolerances).unwrap();
}

/// Attention with one query, the scores as keys and unit vectors as values gives the softmax itself.
fn softmax(golden: &Golden<'_>) {
    let axes = golden.axes("x");
    let (rows, count) = (axes[0] as usize, axes[1] as usize);
    let unit = |at: usize, value: f64| (0..count).map(move |i| if i == at { value } else { 0.0 });
    let k: Vec<f64> = golden.get("x").iter().flat_map(|x| unit(0, *x)).collect();
    let v: Vec<f64> = (0..rows * count).flat_map(|i| unit(i % count, 1.0)).collect();
    let q: Vec<f64> = (0..rows).flat_map(|_| unit(0, 1.0)).collect();
    let config = heads(axes[0], 1, axes[1], 1, axes[1]);
    golden.expect(&config.reference(&q, &joined(&k, &v, count)), &golden.get("y"));
}

fn waves(golden: &Golden<'_>, part: &str, flip: bool, shift: f32, scale: f32) {
    let x = golden.host(part).data;
    let dim = golden.number("dim") as u32;
    let config = Sinusoid { batch: x.len() as u32, inputs: 1, dim, flip, shift, scale };
    let got = sinusoid::reference(&config, &x);
    // Angles are f32: the logarithm of a frequency is off by about 2 eps of itself, the frequency so by that much
    // relatively, and the rounding of product and exponential adds 3 eps.
    let half = dim as usize / 2;
    let frequencies = config.frequencies();
    let tolerance = |i: usize| {
        let (row, column) = (i / dim as usize, i % dim as usize);
        if column >= 2 * half {
            return 0.0;
        }
        let frequency = f64::from(frequencies[column % half]);
        let angle = f64::from(scale * x[row]).abs() * frequency;
        f64::from(f32::EPSILON) * ((2.0 * frequency.ln().abs() + 3.0) * angle + 1.0)
    };
    let tolerances: Vec<f64> = (0..got.len()).map(tolerance).collect();
    compare(golden.name, &got, &golden.get("y"), &tolerances).unwrap();
}

fn embedding(golden: &Golden<'_>) {
    let ids = golden.file.tensor(&format!("{}.ids", golden.name)).unwrap();
    assert_eq!(ids.dtype(), Dtype::I32);
    let ids: Vec<u32> = ids.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let channels = golden.axes("table")[1] as usize;
    golden.expect(&embed::reference(&ids, &golden.get("table"), &golden.get("positions"), channels), &golden.get("y"));
}

/// A solver step that does nothing but hand on the model's guided output.
fn guidance(golden: &Golden<'_>) {
    let (without, with) = (golden.get("uncond"), golden.get("cond"));
    let (scale, phi) = (golden.number("scale"), golden.number("rescale"));
    let factor = if phi > 0.0 { guidance_rescale::reference(&without, &with, scale, phi) } else { 1.0 };
    let coefficients = Coefficients {
        data: [0.0, 1.0],
        clip: None,
        input_scale: 1.0,
        guidance: scale as f32,
        deviation: [0.0; 2],
        rows: vec![(vec![0.0], [1.0, 0.0, 0.0])],
    };
    let step = |(u, c): (&f64, &f64)| {
        let place = Place { state: vec![0.5], outputs: vec![*u, *c], noise: 0.0, deviation: 1.0, threshold: None };
        scheduler_step::reference(&coefficients, &place, factor).0[0]
    };
    let got: Vec<f64> = without.iter().zip(&with).map(step).collect();
    golden.expect(&got, &golden.get("y"));
}

fn picture(golden: &Golden<'_>) {
    let pixels = golden.picture("x");
    let got: Vec<f64> = pixels
        .chunks_exact(3)
        .flat_map(|rgb| pixels::reference([rgb[0], rgb[1], rgb[2]])[..3].to_vec())
        .map(f64::from)
        .collect();
    compare(golden.name, &got, &golden.picture("y"), &vec![0.0; got.len()]).unwrap();
}

fn check(golden: &Golden<'_>) {
    let kind = golden.name.split('.').next().unwrap();
    match kind {
        "linear" | "linear_residual" => linear(golden, false),
        "geglu" => linear(golden, true),
        "activation" => {
            let config = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: golden.activation() };
            golden.expect(&elementwise::reference(config, &golden.get("x"), &[]), &golden.get("y"));
        }
        "conv2d" => convolution(golden),
        "resize_nearest" => resize(golden),
        "group_norm" => group(golden),
        "layer_norm" => layer(golden),
        "attention" => attention(golden),
        "softmax" => softmax(golden),
        "timestep_embedding" => {
            waves(golden, "t", golden.flag("flip_sin_to_cos"), golden.number("freq_shift") as f32, 1.0);
        }
        "guidance_embedding" => waves(golden, "w", false, 1.0, 1000.0),
        "embedding" => embedding(golden),
        "guidance" => guidance(golden),
        "picture" => picture(golden),
        _ => panic!("{}: no reference is compared with it", golden.name),
    }
}

#[test]
fn references_agree_with_pytorch() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/kernels.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let cases = cases.as_object().unwrap();
    let mut kinds = BTreeSet::new();
    for (name, settings) in cases {
        check(&Golden { file: &file, name, settings });
        kinds.insert(name.split('.').next().unwrap());
    }
    assert!(cases.len() >= 40 && kinds.len() == 15, "{} operations of the kinds {kinds:?}", cases.len());
}
