//! What this adapter can do at best, measured: moving memory, and multiplying and adding.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{median, once, time, wrong};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape};
use crate::kernels::roof_copy::{self, RoofCopy};
use crate::kernels::roof_fma::{self, RoofFma};
use crate::kernels::{Call, Limits};
use crate::tensor::{DType, HostTensor};

/// Vectors of the copy: 64 MiB each way, more than caches hold.
const COPY_VECTORS: u32 = 4 << 20;
/// ... and 16 MiB each way on a CPU, which would be long at it.
const COPY_VECTORS_CPU: u32 = 1 << 20;
/// Vectors of the multiply-adds, enough for every lane of a large GPU.
const FMA_VECTORS: u32 = 1 << 18;
/// ... and of a CPU.
const FMA_VECTORS_CPU: u32 = 1 << 13;
/// Runs take at least this long, so that submitting them does not count.
const LEAST_SECONDS: f64 = 0.05;
/// Timed runs of each roof.
const RUNS: u32 = 5;

/// The roofs of an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofs {
    /// Bytes a second of the faster of two ways to copy, read and written ones counted: a kernel, and the driver's own
    /// copy of buffers.
    pub copy: f64,
    /// Bytes a second of the copying kernel. A software driver reads storage buffers lane by lane and is slow at it;
    /// kernels that read textures go beyond.
    pub kernel_copy: f64,
    /// Floating-point operations a second of f32 multiply-adds in registers.
    pub fma: f64,
}

impl Roofs {
    /// Measures both; each result is checked before it is timed.
    ///
    /// # Errors
    /// When a result is wrong or the device fails.
    pub fn measure(gpu: &Arc<Gpu>) -> Result<Self> {
        let (kernel_copy, buffer_copy) = copies(gpu)?;
        Ok(Self { copy: kernel_copy.max(buffer_copy), kernel_copy, fma: fma(gpu)? })
    }

    /// Seconds that so much work takes at the roofs, memory and arithmetic at once.
    pub fn ideal(&self, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.fma).max(bytes as f64 / self.copy)
    }

    /// As `scumble bench --json` writes them.
    pub fn json(&self) -> Value {
        json!({
            "copy_gbps": self.copy / 1e9,
            "kernel_copy_gbps": self.kernel_copy / 1e9,
            "fma_gflops": self.fma / 1e9,
        })
    }
}

/// Vectors of four through one call of one input.
fn executor(gpu: &Arc<Gpu>, count: u32, call: Call) -> Result<Executor> {
    let mut g = Graph::new(DType::F32, gpu.limits());
    let shape = Shape::tokens(1, count, 4);
    let x = g.input("x", shape, DType::F32);
    let y = g.push("roof", call, vec![x.into()], shape, DType::F32);
    g.output("y", y);
    let executor = Executor::new(gpu, &g, |_, _| Ok(()))?;
    let data = (0..count * 4).map(|i| (i % 257) as f32 / 257.0).collect();
    executor.write("x", &HostTensor { shape: vec![count as usize, 4], data })?;
    Ok(executor)
}

/// Runs once and compares with the reference.
fn verify(gpu: &Gpu, executor: &Executor, what: &str, tolerance: f64, reference: fn(f64) -> f64) -> Result<()> {
    executor.run();
    gpu.wait()?;
    let (x, y) = (executor.read("x")?.data, executor.read("y")?.data);
    for (x, y) in x.iter().zip(&y) {
        let expected = reference(f64::from(*x));
        let close = (f64::from(*y) - expected).abs() <= tolerance;
        if !close {
            return Err(wrong(what, expected, y));
        }
    }
    Ok(())
}

/// Bytes a second of the copying kernel and of the driver's copy.
fn copies(gpu: &Arc<Gpu>) -> Result<(f64, f64)> {
    let limits: Limits = gpu.limits();
    let count = if gpu.is_cpu() { COPY_VECTORS_CPU } else { COPY_VECTORS };
    let call = roof_copy::call(RoofCopy { count }, &limits);
    let bytes = call.bytes;
    let executor = executor(gpu, count, call)?;
    verify(gpu, &executor, "roof_copy", 0.0, |x| roof_copy::reference(&[x])[0])?;
    let kernel = bytes as f64 / time(gpu, &executor, RUNS)?;
    let x = executor.resident("x")?;
    let copy = |_| {
        gpu.wait()?;
        let start = Instant::now();
        executor.copy_from("y", &x)?;
        gpu.wait()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let mut seconds = (0..=RUNS).map(copy).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok((kernel, bytes as f64 / median(&seconds)))
}

fn fma(gpu: &Arc<Gpu>) -> Result<f64> {
    let count = if gpu.is_cpu() { FMA_VECTORS_CPU } else { FMA_VECTORS };
    let chains = if gpu.is_cpu() { 2 } else { 8 };
    let mut rounds = 16;
    loop {
        let config = RoofFma { count, rounds, chains };
        let call = roof_fma::call(config, &gpu.limits());
        let flops = call.flops;
        let executor = executor(gpu, count, call)?;
        // After 16 rounds of 16 multiply-adds the chains have reached f's fixed point but for a rounding or two of numbers below 2.
        verify(gpu, &executor, "roof_fma", 4.0 * f64::from(f32::EPSILON), |_| 1.0)?;
        if once(gpu, &executor)? >= LEAST_SECONDS || rounds >= 1 << 20 {
            return Ok(flops as f64 / time(gpu, &executor, RUNS)?);
        }
        rounds *= 4;
    }
}
