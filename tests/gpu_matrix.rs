//! The matrix kernels on this machine's adapter against their f64 reference.

use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Layout, Operand, Shape, WeightSpec};
use scumble::kernels::elementwise::Activation;
use scumble::kernels::matrix::{Matrix, gated_rows, inputs};
use scumble::kernels::{KernelSet, Limits, vectors};
use scumble::tensor::{DType, HostTensor};

/// Rows behind the output that must stay as they were.
const CANARY_ROWS: u32 = 3;

fn base() -> Matrix {
    Matrix {
        batch: 1,
        input: [1, 1],
        output: [1, 1],
        inputs: 4,
        outputs: 4,
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
        upsample: false,
        activation: Activation::None,
        bias: true,
        row_bias: false,
        residual: false,
        gated: false,
        types: [DType::F32; 3],
    }
}

fn linear(rows: u32, inputs: u32, outputs: u32) -> Matrix {
    Matrix { input: [rows, 1], output: [rows, 1], inputs, outputs, ..base() }
}

fn conv(batch: u32, input: [u32; 2], inputs: u32, outputs: u32, kernel: u32) -> Matrix {
    Matrix { batch, input, output: input, inputs, outputs, kernel: [kernel; 2], padding: [kernel / 2; 2], ..base() }
}

fn cases() -> Vec<Matrix> {
    let down = conv(2, [9, 7], 12, 40, 3);
    let up = conv(2, [3, 5], 20, 33, 3);
    vec![
        linear(2, 320, 1280),
        linear(77, 192, 100),
        linear(1, 5, 3),
        linear(154, 64, 160),
        Matrix { activation: Activation::Silu, ..linear(19, 37, 61) },
        Matrix { activation: Activation::Gelu, bias: false, ..linear(33, 66, 130) },
        Matrix { activation: Activation::QuickGelu, residual: true, ..linear(40, 36, 72) },
        Matrix { gated: true, ..linear(50, 40, 96) },
        Matrix { gated: true, ..linear(21, 43, 75) },
        conv(2, [8, 12], 32, 64, 3),
        Matrix { row_bias: true, ..conv(3, [5, 7], 24, 48, 3) },
        Matrix { row_bias: true, residual: true, ..conv(2, [6, 11], 10, 27, 3) },
        conv(1, [16, 9], 4, 320, 3),
        conv(1, [16, 9], 320, 4, 3),
        conv(2, [6, 5], 9, 17, 1),
        conv(1, [6, 5], 7, 6, 7),
        Matrix { kernel: [1, 7], padding: [0, 3], ..conv(1, [5, 17], 8, 12, 1) },
        Matrix { stride: 2, output: [5, 4], ..down },
        Matrix { stride: 2, output: [4, 3], padding: [0, 0], ..down },
        Matrix { upsample: true, output: [6, 10], residual: true, ..up },
        Matrix { upsample: true, output: [5, 9], ..up },
    ]
}

struct Noise(u64);

impl Noise {
    /// Values of mean 1 and spread 2, exactly representable in halves if `dtype` is.
    fn take(&mut self, count: usize, dtype: DType) -> Vec<f32> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 1.0
        };
        let round = |value: f32| if dtype == DType::F32 { value } else { half::f16::from_f32(value).to_f32() };
        (0..count).map(|_| round(next())).collect()
    }
}

/// `w` [N][K][taps] in panels of 32 columns, as `Layout::Matrix` documents it.
fn pack(case: &Matrix, w: &[f32], rows: &[Option<(u8, u32)>]) -> Vec<u8> {
    let (inputs, taps) = (case.inputs as usize, (case.kernel[0] * case.kernel[1]) as usize);
    let padded = vectors(case.inputs) as usize * 4;
    let mut bytes = Vec::new();
    for panel in 0..rows.len().div_ceil(32) {
        for tap in 0..taps {
            for k in 0..padded {
                for column in 0..32 {
                    let source = rows.get(panel * 32 + column).copied().flatten().filter(|_| k < inputs);
                    let value = source.map_or(0.0, |(_, n)| w[(n as usize * inputs + k) * taps + tap]);
                    match case.types[1] {
                        DType::F32 => bytes.extend(value.to_le_bytes()),
                        _ => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    }
                }
            }
        }
    }
    bytes
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn check(gpu: &Arc<Gpu>, case: &Matrix, limits: Limits) {
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let physical = if case.gated { 2 * case.outputs } else { case.outputs } as usize;
    let a_shape = Shape::new(case.batch, case.input[0], case.input[1], case.inputs);
    let out_shape = Shape::new(case.batch, case.output[0], case.output[1], case.outputs);
    let row_shape = Shape::new(case.batch, 1, 1, case.outputs);
    let a = noise.take((a_shape.rows() * case.inputs) as usize, case.types[0]);
    let w = noise.take(physical * (case.inputs * case.kernel[0] * case.kernel[1]) as usize, case.types[1]);
    let bias = noise.take(physical, DType::F32);
    let row_bias = noise.take((case.batch * case.outputs) as usize, DType::F32);
    let residual = noise.take((out_shape.rows() * case.outputs) as usize, case.types[2]);

    let mut g = Graph::new(case.types[2], limits);
    let x = g.input("x", a_shape, case.types[0]);
    let row = g.input("row", row_shape, DType::F32);
    let rest = g.input("residual", out_shape, case.types[2]);
    let rows = if case.gated { gated_rows(case.outputs) } else { (0..case.outputs).map(|n| Some((0, n))).collect() };
    let columns: Vec<_> = (0..vectors(case.inputs) * 4).map(|k| (k < case.inputs).then_some(k)).collect();
    let layout =
        Layout::Matrix { rows: rows.clone(), columns, taps: case.kernel[0] * case.kernel[1], dtype: case.types[1] };
    let weight = g.weight(WeightSpec { part: 0, keys: vec!["w".to_owned()], layout });
    let vector = Layout::Vector { rows: rows.clone() };
    let shift = g.weight(WeightSpec { part: 0, keys: vec!["bias".to_owned()], layout: vector });
    let operands: Vec<Operand> = inputs(
        x.into(),
        weight.into(),
        case.bias.then(|| shift.into()),
        case.row_bias.then(|| row.into()),
        case.residual.then(|| rest.into()),
    );
    let mut call = case.call(&limits).expect("the case fits the limits");
    if call.launches.len() == 1 {
        call.launches[0].ranges[5] = None;
    }
    let with_canary = Shape::tokens(1, out_shape.rows() + CANARY_ROWS, case.outputs);
    let out = g.push("case", call, operands, with_canary, case.types[2]);
    g.output("out", out);

    let executor = Executor::new(gpu, &g, |spec, sink| {
        if spec.keys[0] == "w" {
            return sink(&pack(case, &w, &rows));
        }
        let values = rows.iter().map(|source| source.map_or(0.0, |(_, n)| bias[n as usize]));
        let mut values: Vec<f32> = values.collect();
        values.resize(rows.len().next_multiple_of(32), 0.0);
        sink(bytemuck::cast_slice(&values))
    })
    .unwrap();
    let tensor = |shape: Shape, data: &[f32]| HostTensor {
        shape: vec![shape.rows() as usize, shape.channels as usize],
        data: data.to_vec(),
    };
    executor.write("x", &tensor(a_shape, &a)).unwrap();
    executor.write("row", &tensor(row_shape, &row_bias)).unwrap();
    executor.write("residual", &tensor(out_shape, &residual)).unwrap();
    executor.write("out", &tensor(with_canary, &vec![f32::NAN; (with_canary.rows() * case.outputs) as usize])).unwrap();
    executor.run();
    let got = executor.read("out").unwrap().data;

    let absolute = |values: &[f32]| values.iter().map(|value| f64::from(value.abs())).collect::<Vec<_>>();
    let expected = case.reference(&wide(&a), &wide(&w), &wide(&bias), &wide(&row_bias), &wide(&residual));
    let linear = Matrix { activation: Activation::None, ..*case };
    let scale =
        linear.reference(&absolute(&a), &absolute(&w), &absolute(&bias), &absolute(&row_bias), &absolute(&residual));
    judge(case, &got, &expected, &scale);
}

/// `scale`: per element the sum of the magnitudes of its terms.
fn judge(case: &Matrix, got: &[f32], expected: &[f64], scale: &[f64]) {
    // A sum of n terms in f32 rounds n times, each by at most eps / 2 of what is summed so far. The errors add up like a
    // random walk of spread 0.2 sqrt(n) eps, of which the worst of 1e5 elements is five times off: sqrt(n) eps of the sum
    // of magnitudes, 8 more for short sums, and 2e-6 for erf and exp. Halves round once at the end.
    let terms = f64::from(case.inputs * case.kernel[0] * case.kernel[1]);
    let rounding = (8.0 + terms.sqrt()) * f64::from(f32::EPSILON);
    let half = if case.types[2] == DType::F32 { 0.0 } else { 1.0 / 2048.0 };
    for (i, (value, magnitude)) in expected.iter().zip(scale).enumerate() {
        let tolerance = rounding * magnitude + 2e-6 + half * 1.01 * value.abs();
        let difference = (f64::from(got[i]) - value).abs();
        assert!(
            difference <= tolerance,
            "{case:?}: element {i}: expected {value}, found {}, tolerance {tolerance}",
            got[i]
        );
    }
    assert!(got[expected.len()..].iter().all(|value| value.is_nan()), "{case:?}: wrote behind the output");
}

fn all(kernels: KernelSet, types: [DType; 3]) {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    for case in cases() {
        check(&gpu, &Matrix { types, ..case }, Limits { kernels, ..gpu.limits() });
    }
}

#[test]
fn lanes_f32() {
    all(KernelSet::Lanes, [DType::F32; 3]);
}

#[test]
fn tile_f32() {
    all(KernelSet::Tile, [DType::F32; 3]);
}

#[test]
fn lanes_f16() {
    all(KernelSet::Lanes, [DType::F16; 3]);
}

#[test]
fn tile_f16() {
    all(KernelSet::Tile, [DType::F16; 3]);
}

#[test]
fn lanes_mixed() {
    all(KernelSet::Lanes, [DType::F16, DType::F16, DType::F32]);
}

#[test]
fn tile_mixed() {
    all(KernelSet::Tile, [DType::F16, DType::F16, DType::F32]);
}

#[test]
fn bands_equal_the_whole() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let limits = Limits { binding: 4096, ..gpu.limits() };
    let case = Matrix { residual: true, ..conv(2, [9, 10], 8, 12, 3) };
    assert!(case.call(&limits).unwrap().launches.len() > 1);
    let loose = Limits { binding: 64 << 10, ..gpu.limits() };
    for limits in [limits, loose] {
        let narrow = case.call(&limits).unwrap();
        assert!(
            narrow.launches.iter().all(|launch| launch
                .ranges
                .iter()
                .flatten()
                .all(|(_, size)| *size <= limits.binding))
        );
    }
    check(&gpu, &case, Limits { binding: 4096 * 5, ..gpu.limits() });
}

/// Large enough for the larger tiles of CPU adapters, with and without lanes that show each other what they fetched.
#[test]
fn large_tiles() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let lanes = Limits { kernels: KernelSet::Lanes, ..gpu.limits() };
    let small = linear(41, 300, 1001);
    let medium = Matrix { residual: true, ..linear(99, 530, 1001) };
    let gated = Matrix { gated: true, ..linear(205, 642, 1000) };
    let wide = Matrix { row_bias: true, residual: true, ..conv(2, [10, 11], 230, 320, 3) };
    let tall = Matrix { types: [DType::F16; 3], ..linear(523, 610, 830) };
    let cases = [(small, 8), (medium, 16), (gated, 32), (wide, 32), (Matrix { batch: 4, ..wide }, 32), (tall, 32)];
    for (case, rows) in cases {
        for (subgroup, rows) in [(8, rows), (0, if rows == 32 { 16 } else { 8 })] {
            if subgroup > gpu.limits().subgroup {
                continue;
            }
            let limits = Limits { subgroup, ..lanes };
            let constants = case.call(&limits).unwrap().variant.constants;
            let named = |name: &str| constants.iter().find(|(known, _)| *known == name).map_or(0, |found| found.1);
            assert!(named("ROWS") == rows || subgroup == 0 && named("ROWS") <= rows, "{case:?}: {constants:?}");
            check(&gpu, &case, limits);
        }
    }
}
