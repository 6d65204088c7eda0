//! The kernels' cases under criterion: `cargo bench --bench kernels -- conv2d`. Each is compared with its f64 reference
//! before it is timed.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scumble::bench::kernels::{cases, verified};
use scumble::gpu::{Gpu, GpuOptions, adapters};

fn kernels(criterion: &mut Criterion) {
    if adapters().is_empty() {
        eprintln!("skipped: there is no GPU adapter");
        return;
    }
    let gpu = Arc::new(Gpu::open(&GpuOptions::from_environment()).expect("the adapter was found a moment ago"));
    for case in cases(None, None) {
        let mut group = criterion.benchmark_group(case.stem);
        group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
        group.throughput(Throughput::Elements(case.flops()));
        group.bench_function(&case.name, |bencher| {
            let trial = verified(&case, &gpu).unwrap_or_else(|error| panic!("{error}"));
            let Some(trial) = trial else {
                eprintln!("skipped: {} needs larger bindings", case.name);
                return bencher.iter(|| ());
            };
            bencher.iter(|| {
                trial.run();
                gpu.wait().unwrap_or_else(|error| panic!("{error}"));
            });
        });
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
