//! The attention kernels on this machine's adapter against their f64 reference.

use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::attention::{Attention, Plan, call};
use scumble::kernels::attention_coop::Cooperative;
use scumble::kernels::{KernelSet, Limits};
use scumble::tensor::{DType, HostTensor};

/// Rows behind the output that must stay as they were.
const CANARY_ROWS: u32 = 3;

/// Queries, keys and values of one tensor, padded heads of `width`.
fn fused(batch: u32, tokens: u32, heads: u32, width: u32) -> Attention {
    let inner = heads * width;
    Attention {
        batch,
        queries: tokens,
        keys: tokens,
        heads,
        width,
        scale: 1.0 / (width as f32).sqrt(),
        causal: false,
        query_channels: 3 * inner,
        key_channels: 3 * inner,
        offsets: [0, inner, 2 * inner],
        dtype: DType::F32,
        bias: None,
    }
}

fn cross(batch: u32, queries: u32, keys: u32, heads: u32, width: u32) -> Attention {
    let inner = heads * width;
    let offsets = [0, 0, inner];
    Attention {
        queries,
        keys,
        query_channels: inner,
        key_channels: 2 * inner,
        offsets,
        ..fused(batch, queries, heads, width)
    }
}

fn cases() -> Vec<Attention> {
    vec![
        fused(2, 64, 2, 40),
        Attention { causal: true, ..fused(2, 77, 3, 64) },
        Attention { causal: true, ..fused(1, 5, 1, 8) },
        cross(2, 50, 77, 2, 80),
        cross(3, 17, 9, 2, 160),
        cross(1, 1, 1, 1, 4),
        cross(1, 3, 131, 5, 12),
        fused(1, 70, 1, 512),
    ]
}

/// Shapes that hurt: one key, tiles and one more, widths that are padded, keys of one pass, a head in the middle of its
/// row, and scores in the thousands, so that the running maximum moves by far more than halves can hold.
fn hard() -> Vec<Attention> {
    let sharp = |case: Attention| Attention { scale: 30.0, ..case };
    vec![
        cross(1, 33, 1, 2, 40),
        cross(2, 129, 77, 2, 40),
        cross(1, 65, 33, 1, 128),
        cross(1, 16, 97, 1, 148),
        cross(1, 40, 80, 2, 64),
        fused(1, 131, 2, 24),
        Attention { causal: true, ..fused(1, 131, 1, 40) },
        sharp(fused(1, 150, 2, 64)),
        sharp(Attention { causal: true, ..fused(1, 100, 1, 80) }),
        sharp(cross(1, 20, 77, 2, 160)),
        Attention { query_channels: 200, key_channels: 300, offsets: [8, 12, 156], ..cross(1, 37, 70, 2, 40) },
    ]
}

/// Values of spread 4 around `shift`.
fn noise(seed: u64, count: usize, shift: f32, dtype: DType) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0 + shift
    };
    let round = |value: f32| if dtype == DType::F32 { value } else { half::f16::from_f32(value).to_f32() };
    (0..count).map(|_| round(next())).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Runs what `limits` choose.
fn check(gpu: &Arc<Gpu>, case: &Attention, limits: Limits) {
    let plans = case.candidates(&limits);
    check_plan(gpu, case, &plans[limits.tuning.pick(case.class(), plans.len())], limits);
}

fn check_plan(gpu: &Arc<Gpu>, case: &Attention, plan: &Plan, limits: Limits) {
    let to = Shape::tokens(case.batch, case.queries, case.query_channels);
    let from = Shape::tokens(case.batch, case.keys, case.key_channels);
    let q = noise(0x9E37_79B9, (to.rows() * to.channels) as usize, 0.5, case.dtype);
    let kv = noise(0x1234_5678_9ABC, (from.rows() * from.channels) as usize, 1.0, case.dtype);
    let mut g = Graph::new(case.dtype, limits);
    let (a, b) = (g.input("q", to, case.dtype), g.input("kv", from, case.dtype));
    let inner = case.heads * case.width;
    let mut call = case.run_as(plan, &limits).expect("the case fits the limits");
    if call.launches.len() == 1 {
        call.launches[0].ranges[2] = None;
    }
    let with_canary = Shape::tokens(1, to.rows() + CANARY_ROWS, inner);
    let out = g.push("case", call, vec![a.into(), b.into()], with_canary, case.dtype);
    g.output("out", out);
    let executor = Executor::new(gpu, &g, |_, _| Ok(())).unwrap();
    let tensor = |shape: Shape, data: &[f32]| HostTensor {
        shape: vec![shape.rows() as usize, shape.channels as usize],
        data: data.to_vec(),
    };
    executor.write("q", &tensor(to, &q)).unwrap();
    executor.write("kv", &tensor(from, &kv)).unwrap();
    executor.write("out", &tensor(with_canary, &vec![f32::NAN; (with_canary.rows() * inner) as usize])).unwrap();
    executor.run();
    let got = executor.read("out").unwrap().data;
    let expected = case.reference(&wide(&q), &wide(&kv));
    // Outputs are means of values below 3. A score s = scale sum q k errs by about eps sqrt(D) |q||k| scale, and the
    // weights by as much relatively; halves round the result once, and with matrices the weights, whose values are at
    // most 4 apart.
    let sum = f64::from(case.scale) * f64::from(case.width) * 2.5 * 3.0;
    let half = match (case.dtype, plan) {
        (DType::F32, _) => 0.0,
        (_, Plan::Cooperative(_)) => (3.0 + 4.0) / 2048.0,
        _ => 3.0 / 2048.0,
    };
    let tolerance = 8.0 * f64::from(f32::EPSILON) * sum.max(4.0) + half;
    for (i, value) in expected.iter().enumerate() {
        let difference = (f64::from(got[i]) - value).abs();
        assert!(
            difference <= tolerance,
            "{plan}: {case:?}: element {i}: expected {value}, found {}, tolerance {tolerance}",
            got[i]
        );
    }
    assert!(got[expected.len()..].iter().all(|value| value.is_nan()), "{plan}: {case:?}: wrote behind the output");
}

/// Every candidate of every case.
fn all(kernels: KernelSet, dtype: DType) {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let limits = Limits { kernels, ..gpu.limits() };
    for case in cases().into_iter().chain(hard()).map(|case| Attention { dtype, ..case }) {
        for plan in case.candidates(&limits) {
            check_plan(&gpu, &case, &plan, limits);
        }
    }
}

#[test]
fn lanes_f32() {
    all(KernelSet::Lanes, DType::F32);
}

#[test]
fn tile_f32() {
    all(KernelSet::Tile, DType::F32);
}

#[test]
fn lanes_f16() {
    all(KernelSet::Lanes, DType::F16);
}

#[test]
fn tile_f16() {
    all(KernelSet::Tile, DType::F16);
}

/// The limits under which matrices run; tells on standard error where there are none, as on most software drivers.
fn cooperative(gpu: &Gpu) -> Option<Limits> {
    let limits = Limits { kernels: KernelSet::Cooperative, ..gpu.limits() };
    if limits.cooperative == 0 {
        eprintln!("{} has no cooperative matrices: not tested", gpu.describe());
        return None;
    }
    Some(limits)
}

fn halves() -> impl Iterator<Item = Attention> {
    cases().into_iter().chain(hard()).map(|case| Attention { dtype: DType::F16, ..case })
}

/// What is chosen first, for heads that a software driver compiles in seconds.
#[test]
fn cooperative_first_choice() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let Some(limits) = cooperative(&gpu) else { return };
    for case in halves().filter(|case| case.width <= 64) {
        let plan = case.candidates(&limits)[0];
        assert!(matches!(plan, Plan::Cooperative(_)), "{case:?}: {plan}");
        check_plan(&gpu, &case, &plan, limits);
    }
}

#[test]
fn cooperative_every_candidate() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let Some(limits) = cooperative(&gpu) else { return };
    for case in [fused(2, 70, 2, 24), Attention { scale: 30.0, ..fused(1, 131, 1, 40) }, cross(1, 30, 77, 1, 12)] {
        let case = Attention { dtype: DType::F16, ..case };
        for plan in case.candidates(&limits) {
            check_plan(&gpu, &case, &plan, limits);
        }
    }
}

/// Wide heads with tiles of one matrix, the fewest that a software driver must compile.
#[test]
fn cooperative_wide_heads() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let Some(limits) = cooperative(&gpu) else { return };
    let (size, lanes) = (limits.cooperative, limits.subgroup);
    for case in halves().filter(|case| (65..=160).contains(&case.width)) {
        let (blocks, vectors) = (lanes / size, size == 16);
        let small = Cooperative { size, lanes, subgroups: 2, blocks, keys: size, narrow: false, vectors };
        check_plan(&gpu, &case, &Plan::Cooperative(small), limits);
    }
}

/// The layout of workgroup memory for larger matrices, with matrices of 8 where a driver of Vulkan has only these.
#[test]
fn cooperative_over_vectors() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let Some(limits) = cooperative(&gpu).filter(|_| gpu.describe().contains("Vulkan")) else { return };
    for case in halves().filter(|case| case.width <= 40) {
        if let Plan::Cooperative(plan) = case.candidates(&limits)[0] {
            let plan = Plan::Cooperative(Cooperative { vectors: true, ..plan });
            check_plan(&gpu, &case, &plan, limits);
        }
    }
}

/// Bindings that hold the keys of a batch element and some of its queries.
#[test]
fn split_by_queries() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    for kernels in [KernelSet::Lanes, KernelSet::Tile, KernelSet::Cooperative] {
        let limits = Limits { binding: 40960, kernels, ..gpu.limits() };
        for dtype in [DType::F32, DType::F16] {
            for case in [cross(2, 700, 9, 2, 40), Attention { causal: true, ..cross(1, 600, 50, 1, 64) }] {
                let case = Attention { dtype, ..case };
                let launches = call(&case, &limits).expect("keys fit").launches.len();
                assert!(launches > case.batch as usize, "{case:?}: {launches} launches");
                check(&gpu, &case, limits);
            }
        }
    }
}

#[test]
fn split_by_batch() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let case = cross(3, 17, 9, 2, 20);
    let limits = Limits { binding: 4096, ..gpu.limits() };
    assert!(call(&case, &limits).unwrap().launches.len() > 1);
    check(&gpu, &case, limits);
}

/// Large enough for several queries a lane on CPU adapters.
#[test]
fn large_work() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let limits = Limits { kernels: KernelSet::Lanes, ..gpu.limits() };
    for case in [cross(1, 601, 530, 1, 40), Attention { causal: true, ..fused(2, 401, 1, 80) }] {
        let constants = call(&case, &limits).unwrap().variant.constants;
        assert!(constants.contains(&("QUERIES", 4)), "{case:?}: {constants:?}");
        check(&gpu, &case, limits);
    }
}
