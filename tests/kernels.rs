//! Every kernel's every case on this machine's adapter against its f64 reference: output poisoned, rows behind it watched.

use std::sync::{Arc, OnceLock};

use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::trial::Trial;
use scumble::kernels::cases::{Case, cases};
use scumble::kernels::{KernelSet, Limits};

fn all() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(cases)
}

/// The device of a mode. Without any adapter the tests fail: passing unseen would tell nothing.
fn open(options: &GpuOptions) -> Arc<Gpu> {
    Arc::new(Gpu::open(options).unwrap())
}

/// Runs all cases that are `wanted` and collects what is wrong, so that one failure does not hide the others.
fn judge(gpu: &Arc<Gpu>, limits: &Limits, wanted: impl Fn(&Case) -> bool) {
    let mut faults = Vec::new();
    let mut count = 0;
    for case in all().iter().filter(|case| wanted(case)) {
        count += 1;
        let trial = Trial::new(gpu, case, limits).unwrap();
        let trial = trial.unwrap_or_else(|| panic!("{}: does not fit the limits", case.name));
        trial.prepare().unwrap();
        trial.run();
        if let Err(error) = trial.judge() {
            faults.push(error.to_string());
        }
    }
    assert!(count > 0 && faults.is_empty(), "{} of {count} cases:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn as_the_adapter_is() {
    let gpu = open(&GpuOptions::default());
    judge(&gpu, &gpu.limits(), |_| true);
}

#[test]
fn with_webgpu_defaults() {
    let gpu = open(&GpuOptions { webgpu_defaults: true, ..GpuOptions::default() });
    judge(&gpu, &gpu.limits(), |_| true);
}

#[test]
fn with_run_time_checks() {
    let gpu = open(&GpuOptions { checked: true, ..GpuOptions::default() });
    // Also without subgroups, which lavapipe has.
    judge(&gpu, &Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu.limits() }, |_| true);
    // Checks inside the unrolled loops for CPU adapters take Mesa's compiler minutes for wide heads, so only cases that
    // read in odd places run there.
    let odd = ["every axis", "tails", "to 2n - 1", "padded below", "few tokens", "two tiles and three"];
    judge(&gpu, &Limits { kernels: KernelSet::Lanes, ..gpu.limits() }, |case| {
        odd.iter().any(|part| case.name.contains(part))
    });
}

#[test]
fn with_the_shaders_of_the_other_kind_of_adapter() {
    let gpu = open(&GpuOptions::default());
    judge(&gpu, &Limits { kernels: KernelSet::Tile, ..gpu.limits() }, |_| true);
}

/// Kernels that cut their work into dispatches over bound parts of their tensors.
const BANDED: [&str; 11] = [
    "attention",
    "concat",
    "conv2d",
    "elementwise",
    "embed",
    "group_norm",
    "layer_norm",
    "matmul",
    "pixels",
    "pool",
    "resample",
];

#[test]
fn in_bands_the_same_to_the_bit() {
    let gpu = open(&GpuOptions::default());
    let run = |case: &Case, limits: &Limits| {
        let trial = Trial::new(&gpu, case, limits).unwrap()?;
        trial.prepare().unwrap();
        trial.run();
        Some((trial.dispatches(), trial.results().unwrap()))
    };
    let mut most = BANDED.map(|stem| (stem, 0));
    for case in all().iter().filter(|case| BANDED.contains(&case.stem)) {
        let whole = run(case, &gpu.limits());
        for binding in [2048, 4096, 20480, 65536] {
            let limits = Limits { binding, ..gpu.limits() };
            let Some((dispatches, bytes)) = run(case, &limits) else { continue };
            let (one, expected) = whole.as_ref().unwrap();
            let extra = dispatches - one;
            most.iter_mut().filter(|(stem, _)| *stem == case.stem).for_each(|(_, n)| *n = extra.max(*n));
            assert!(bytes == *expected, "{}: {dispatches} dispatches differ from {one}", case.name);
        }
    }
    assert!(most.iter().all(|(_, extra)| *extra > 1), "some kernel was never cut: {most:?}");
}
