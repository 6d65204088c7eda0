//! The reference of the `resample` kernel and its tables against PyTorch's and Pillow's pictures
//! (`tests/goldens/resample.safetensors`, see `tools/goldens/resample.py`).

use std::sync::Arc;

use safetensors::SafeTensors;
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::cases::compare;
use scumble::kernels::resample;
use scumble::kernels::resampling::{Filter, Resampling, Resize};
use scumble::models::nn;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::pack;
use serde_json::Value;

fn filter(name: &str) -> Filter {
    match name {
        "box" => Filter::Box,
        "bilinear" => Filter::Bilinear,
        "bicubic" => Filter::Bicubic,
        "lanczos" => Filter::Lanczos,
        other => panic!("{other}"),
    }
}

fn method(case: &Value) -> Resize {
    let mode = case["mode"].as_str().unwrap();
    let align_corners = case["align_corners"].as_bool().unwrap_or(false);
    match (case["library"].as_str().unwrap(), mode) {
        ("torch", _) if case["antialias"] == true => Resize::Antialias(filter(mode)),
        ("torch", "nearest") => Resize::Nearest,
        ("torch", "nearest-exact") => Resize::NearestExact,
        ("torch", "area") => Resize::Area,
        ("torch", "bilinear") => Resize::Bilinear { align_corners },
        ("torch", "bicubic") => Resize::Bicubic { align_corners },
        ("pillow", _) => Resize::Pillow(filter(mode)),
        ("torch 8-bit", _) => Resize::Torch8(filter(mode)),
        _ => Resize::Pillow8(filter(mode)),
    }
}

fn picture(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    (view.shape().to_vec(), values.collect())
}

#[test]
fn tables_agree_with_pytorch_and_pillow() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/resample.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(cases.len() >= 140);
    for (name, case) in cases {
        let (from, x) = picture(&file, &format!("{name}.x"));
        let (to, y) = picture(&file, &format!("{name}.y"));
        let sizes = |shape: &[usize]| [shape[1] as u32, shape[2] as u32];
        let tables = Resampling::new(method(case), sizes(&from), sizes(&to));
        let quantize = tables.quantize;
        let between = resample::reference(&tables.columns, from[0] * from[1], from[3], quantize, &x);
        let got = resample::reference(&tables.rows, from[0], to[2] * from[3], quantize, &between);
        // The libraries' sums are in f32: up to 36 terms a place, of up to 7 (PyTorch) or 255 (Pillow), and their weights
        // carry about as many roundings. 8-bit pictures are the same to the bit.
        let largest = x.iter().fold(0f64, |most, value| most.max(value.abs()));
        let tolerance = if quantize { 0.0 } else { 8.0 * f64::from(f32::EPSILON) * largest };
        compare(&format!("{name} {case}"), &got, &y, &vec![tolerance; y.len()]).unwrap();
    }
}

/// The kernel's two passes on the adapter, as layers record them.
#[test]
fn two_passes_on_the_adapter() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let x: Vec<f32> = (0..2 * 9 * 7 * 3).map(|i| (i * i % 97) as f32 / 48.0 - 1.0).collect();
    for (method, to) in [
        (Resize::Antialias(Filter::Bicubic), [4, 11]),
        (Resize::Bilinear { align_corners: true }, [20, 7]),
        (Resize::Pillow(Filter::Bicubic), [9, 7]),
    ] {
        let tables = Resampling::new(method, [9, 7], to);
        let mut g = Graph::new(DType::F32, gpu.limits());
        let input = g.input("x", Shape::new(2, 9, 7, 3), DType::F32);
        let y = nn::resample(&mut g, "resized", input, &tables, DType::F16);
        let y = nn::resample(&mut g, "again", y, &Resampling::new(method, to, to), DType::F32);
        g.output("y", y);
        assert!(g.fault().is_none());
        let executor = Executor::new(&gpu, &g, |spec, sink| pack::pack(spec, None, sink)).unwrap();
        executor.write("x", &HostTensor::new(vec![2, 9, 7, 3], x.clone()).unwrap()).unwrap();
        executor.run().wait().unwrap();
        let got = executor.read("y").unwrap();
        assert_eq!(got.shape, [2, to[0] as usize, to[1] as usize, 3]);
        let wide: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
        let between = resample::reference(&tables.columns, 2 * 9, 3, false, &wide);
        let want = resample::reference(&tables.rows, 2, to[1] as usize * 3, false, &between);
        let got: Vec<f64> = got.data.iter().map(|value| f64::from(*value)).collect();
        // One rounding to halves, whose numbers lie below 2.
        compare(&format!("{method:?}"), &got, &want, &vec![1.01 / 1024.0; want.len()]).unwrap();
    }
}
