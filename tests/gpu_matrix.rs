//! The matrix kernels on this machine's adapter against their f64 reference.

use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Layout, Operand, Shape, WeightSpec};
use scumble::kernels::elementwise::Activation;
use scumble::kernels::matrix::{Matrix, Operands, Run, Slice, gated_rows};
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
        second: 0,
        outputs: 4,
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
        upsample: false,
        activation: Activation::None,
        scale: 1.0,
        bias: true,
        row_bias: None,
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
        Matrix { row_bias: Some(Slice { channels: 48, first: 0 }), ..conv(3, [5, 7], 24, 48, 3) },
        Matrix { row_bias: Some(Slice { channels: 75, first: 20 }), residual: true, ..conv(2, [6, 11], 10, 27, 3) },
        conv(1, [16, 9], 4, 320, 3),
        conv(1, [16, 9], 320, 4, 3),
        conv(2, [6, 5], 9, 17, 1),
        conv(1, [6, 5], 7, 6, 7),
        Matrix { kernel: [1, 7], padding: [0, 3], ..conv(1, [5, 17], 8, 12, 1) },
        Matrix { stride: 2, output: [5, 4], ..down },
        Matrix { stride: 2, output: [4, 3], padding: [0, 0], ..down },
        Matrix { upsample: true, output: [6, 10], residual: true, ..up },
        Matrix { upsample: true, output: [5, 9], ..up },
        Matrix { second: 34, residual: true, ..linear(67, 30, 70) },
        Matrix { second: 64, gated: true, ..linear(20, 96, 40) },
        Matrix { second: 37, scale: 0.2, residual: true, ..conv(2, [6, 11], 30, 70, 3) },
        Matrix { second: 32, activation: Activation::LeakyRelu, ..conv(1, [9, 14], 64, 32, 3) },
        // Tails of the cooperative tiles, and sums long enough to be split in eight.
        Matrix { residual: true, ..linear(129, 36, 161) },
        Matrix { gated: true, ..linear(65, 72, 130) },
        Matrix { activation: Activation::Gelu, ..linear(70, 1300, 40) },
        Matrix { gated: true, ..linear(17, 1030, 33) },
        Matrix { row_bias: Some(Slice { channels: 100, first: 32 }), residual: true, ..conv(2, [5, 5], 130, 66, 3) },
    ]
}

/// The cases stored as `types`, without those whose results no half can hold.
fn stored(types: [DType; 3]) -> Vec<Matrix> {
    let holds = |case: &Matrix| types[2] == DType::F32 || !case.gated || case.inputs < 200;
    cases().into_iter().filter(holds).map(|case| Matrix { types, ..case }).collect()
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

/// The source channel of every physical k: both inputs, each padded to a multiple of four.
fn channels(case: &Matrix) -> Vec<Option<u32>> {
    let part = |first: u32, count: u32| (0..vectors(count) * 4).map(move |k| (k < count).then_some(first + k));
    part(0, case.inputs).chain(part(case.inputs, case.second)).collect()
}

/// `w` [N][K][taps] in panels of 32 columns, as `Layout::Matrix` documents it.
fn pack(case: &Matrix, w: &[f32], rows: &[Option<(u8, u32)>]) -> Vec<u8> {
    let (inputs, taps) = ((case.inputs + case.second) as usize, (case.kernel[0] * case.kernel[1]) as usize);
    let columns = channels(case);
    let mut bytes = Vec::new();
    for panel in 0..rows.len().div_ceil(32) {
        for tap in 0..taps {
            for k in &columns {
                for column in 0..32 {
                    let source = rows.get(panel * 32 + column).copied().flatten().zip(*k);
                    let value = source.map_or(0.0, |((_, n), k)| w[(n as usize * inputs + k as usize) * taps + tap]);
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

/// The nodes of a product, the last one's output with rows behind it.
fn push(g: &mut Graph, run: Run, operands: Operands<Operand>, shape: Shape, dtype: DType) {
    let (mut call, inputs) = match run.reduce {
        None => (run.call, operands.inputs()),
        Some((partials, reduce)) => {
            let sums = Shape::tokens(partials.splits, partials.rows, partials.columns);
            let sums = g.push("case", run.call, operands.partial_inputs(), sums, DType::F32);
            (reduce, operands.reduce_inputs(sums.into()))
        }
    };
    if let [launch] = call.launches.as_mut_slice() {
        // Bound whole, so that writing behind the rows is seen.
        *launch.ranges.last_mut().unwrap() = None;
    }
    let out = g.push("case", call, inputs, shape, dtype);
    g.output("out", out);
}

/// The case with what [`Matrix::call`] chooses.
fn check(gpu: &Arc<Gpu>, case: &Matrix, limits: Limits) {
    check_run(gpu, case, case.call(&limits).expect("the case fits the limits"), limits);
}

fn check_run(gpu: &Arc<Gpu>, case: &Matrix, run: Run, limits: Limits) {
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let physical = if case.gated { 2 * case.outputs } else { case.outputs } as usize;
    let shape = |channels: u32| Shape::new(case.batch, case.input[0], case.input[1], channels);
    let width = case.inputs + case.second;
    let out_shape = Shape::new(case.batch, case.output[0], case.output[1], case.outputs);
    let row_shape = Shape::new(case.batch, 1, 1, case.row_bias.map_or(4, |slice| slice.channels));
    let a = noise.take((shape(1).rows() * width) as usize, case.types[0]);
    let w = noise.take(physical * (width * case.kernel[0] * case.kernel[1]) as usize, case.types[1]);
    let bias = noise.take(physical, DType::F32);
    let row_bias = noise.take((case.batch * row_shape.channels) as usize, DType::F32);
    let residual = noise.take((out_shape.rows() * case.outputs) as usize, case.types[2]);

    let mut g = Graph::new(case.types[2], limits);
    let x = g.input("x", shape(case.inputs), case.types[0]);
    let second = (case.second > 0).then(|| g.input("second", shape(case.second), case.types[0]));
    let row = g.input("row", row_shape, DType::F32);
    let rest = g.input("residual", out_shape, case.types[2]);
    let rows = if case.gated { gated_rows(case.outputs) } else { (0..case.outputs).map(|n| Some((0, n))).collect() };
    let taps = case.kernel[0] * case.kernel[1];
    let layout = Layout::Matrix { rows: rows.clone(), columns: channels(case), taps, dtype: case.types[1] };
    let weight = g.weight(WeightSpec { part: 0, keys: vec!["w".to_owned()], layout });
    let vector = Layout::Vector { rows: rows.clone() };
    let shift = g.weight(WeightSpec { part: 0, keys: vec!["bias".to_owned()], layout: vector });
    let operands = Operands {
        x: x.into(),
        second: second.map(Operand::from),
        weight: weight.into(),
        bias: case.bias.then(|| shift.into()),
        row_bias: case.row_bias.map(|_| row.into()),
        residual: case.residual.then(|| rest.into()),
    };
    let with_canary = Shape::tokens(1, out_shape.rows() + CANARY_ROWS, case.outputs);
    let variant = run.call.variant.constants.clone();
    push(&mut g, run, operands, with_canary, case.types[2]);

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
    executor.poison();
    let part = |from: u32, to: u32| -> Vec<f32> {
        a.chunks_exact(width as usize).flat_map(|row| row[from as usize..to as usize].iter().copied()).collect()
    };
    executor.write("x", &tensor(shape(case.inputs), &part(0, case.inputs))).unwrap();
    if case.second > 0 {
        executor.write("second", &tensor(shape(case.second), &part(case.inputs, width))).unwrap();
    }
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
    judge(&format!("{case:?}: {variant:?}"), case, &got, &expected, &scale);
}

/// `scale`: per element the sum of the magnitudes of its terms.
fn judge(what: &str, case: &Matrix, got: &[f32], expected: &[f64], scale: &[f64]) {
    // A sum of n terms in f32 rounds n times, each by at most eps / 2 of what is summed so far. The errors add up like a
    // random walk of spread 0.2 sqrt(n) eps, of which the worst of 1e5 elements is five times off: sqrt(n) eps of the sum
    // of magnitudes, 8 more for short sums, and 2e-6 for erf and exp. Halves round once at the end.
    let terms = f64::from((case.inputs + case.second) * case.kernel[0] * case.kernel[1]);
    let rounding = (8.0 + terms.sqrt()) * f64::from(f32::EPSILON);
    let half = if case.types[2] == DType::F32 { 0.0 } else { 1.0 / 2048.0 };
    for (i, (value, magnitude)) in expected.iter().zip(scale).enumerate() {
        let tolerance = rounding * magnitude + 2e-6 + half * 1.01 * value.abs();
        let difference = (f64::from(got[i]) - value).abs();
        assert!(
            difference <= tolerance,
            "{what}: element {i}: expected {value}, found {}, tolerance {tolerance}",
            got[i]
        );
    }
    assert!(got[expected.len()..].iter().all(|value| value.is_nan()), "{what}: wrote behind the output");
}

fn all(kernels: KernelSet, types: [DType; 3]) {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    for case in stored(types) {
        check(&gpu, &case, Limits { kernels, ..gpu.limits() });
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
    assert!(case.call(&limits).unwrap().call.launches.len() > 1);
    let loose = Limits { binding: 64 << 10, ..gpu.limits() };
    for limits in [limits, loose] {
        let narrow = case.call(&limits).unwrap().call;
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
    let slice = Some(Slice { channels: 320, first: 0 });
    let wide = Matrix { row_bias: slice, residual: true, ..conv(2, [10, 11], 230, 320, 3) };
    let tall = Matrix { types: [DType::F16; 3], ..linear(523, 610, 830) };
    let cases = [(small, 8), (medium, 16), (gated, 32), (wide, 32), (Matrix { batch: 4, ..wide }, 32), (tall, 32)];
    for (case, rows) in cases {
        for (subgroup, rows) in [(8, rows), (0, if rows == 32 { 16 } else { 8 })] {
            if subgroup > gpu.limits().subgroup {
                continue;
            }
            let limits = Limits { subgroup, ..lanes };
            let constants = case.call(&limits).unwrap().call.variant.constants;
            let named = |name: &str| constants.iter().find(|(known, _)| *known == name).map_or(0, |found| found.1);
            assert!(named("ROWS") == rows || subgroup == 0 && named("ROWS") <= rows, "{case:?}: {constants:?}");
            check(&gpu, &case, limits);
        }
    }
}

/// Every tile of the shader for any GPU, halves read as such where the adapter can and as packed words.
#[test]
fn tiles_of_every_size() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let limits = Limits { kernels: KernelSet::Tile, ..gpu.limits() };
    let mut seen = std::collections::HashSet::new();
    for (shift, case) in cases().into_iter().enumerate() {
        let single = if shift % 2 == 0 && !case.gated { DType::F16 } else { DType::F32 };
        let types = [DType::F16, DType::F16, single];
        let limits = Limits { f16: limits.f16 && shift % 4 == 0, ..limits };
        let case = Matrix { types, ..case };
        for (index, tile) in case.candidates(&limits).into_iter().enumerate() {
            seen.insert(tile.to_string());
            check_run(&gpu, &case, case.call_with(index, &limits).unwrap(), limits);
        }
    }
    assert!(seen.len() >= 2 && seen.contains("tile 64x64"), "{seen:?}");
}

/// The adapter's cooperative matrices, or a loud word that there are none.
fn with_matrices() -> Option<(Arc<Gpu>, Limits)> {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let limits = Limits { kernels: KernelSet::Cooperative, ..gpu.limits() };
    if limits.cooperative == 0 {
        eprintln!("NOT TESTED: {} has no cooperative matrices; naga alone has seen their shaders", gpu.describe());
        return None;
    }
    Some((gpu, limits))
}

/// Every case with every `share`-th candidate, shifted from case to case so that all get their turn: software drivers take
/// seconds to compile one.
fn shared_candidates(types: [DType; 3], share: usize) {
    let Some((gpu, limits)) = with_matrices() else { return };
    let mut seen = std::collections::HashSet::new();
    for (shift, case) in stored(types).into_iter().enumerate() {
        let candidates = case.candidates(&limits).into_iter().enumerate();
        for (index, tile) in candidates.filter(|(index, _)| (index + shift) % share == 0) {
            seen.insert(tile);
            check_run(&gpu, &case, case.call_with(index, &limits).unwrap(), limits);
        }
    }
    assert!(seen.len() > 6, "{seen:?}");
}

#[test]
fn cooperative_f16() {
    shared_candidates([DType::F16; 3], 6);
}

#[test]
fn cooperative_mixed() {
    shared_candidates([DType::F16, DType::F16, DType::F32], 12);
}
