//! Timing: what runs is verified first, then timed by the wall clock around submission and wait, and set against what
//! this adapter can do at best (the roofline model of Williams, Waterman and Patterson 2009).

pub mod kernels;
pub mod roofs;
pub mod stages;

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;

pub use roofs::Roofs;

/// One timed thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What ran.
    pub name: String,
    /// The median of the runs.
    pub seconds: f64,
    /// Floating-point operations, 2 per multiply-add.
    pub flops: u64,
    /// Bytes that must be moved at the least.
    pub bytes: u64,
    /// Seconds that it would take at the roofs.
    pub ideal: f64,
    /// Whether the result was right before it was timed.
    pub verified: bool,
}

impl Row {
    /// Thousand millions of floating-point operations a second.
    pub fn gflops(&self) -> f64 {
        per_second(self.flops, self.seconds)
    }

    /// Thousand millions of bytes a second, of those that must be moved.
    pub fn gbps(&self) -> f64 {
        per_second(self.bytes, self.seconds)
    }

    /// The share of the roof: 1 where nothing could be faster on this adapter.
    pub fn share(&self) -> f64 {
        if self.seconds > 0.0 { self.ideal / self.seconds } else { 0.0 }
    }

    /// As `scumble bench --json` writes it.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "seconds": self.seconds,
            "gflops": self.gflops(),
            "gbps": self.gbps(),
            "share": self.share(),
            "verified": self.verified,
        })
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds / 1e9 } else { 0.0 }
}

/// Seconds of one run of `executor`, its submission and the wait for its end.
pub fn once(gpu: &Gpu, executor: &Executor) -> Result<f64> {
    gpu.wait()?;
    let start = Instant::now();
    executor.run();
    gpu.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The median seconds of `runs` runs (at least one), of which none is a warm-up.
pub fn time(gpu: &Arc<Gpu>, executor: &Executor, runs: u32) -> Result<f64> {
    let mut seconds = (0..runs.max(1)).map(|_| once(gpu, executor)).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(median(&seconds))
}

/// The median of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The error of a result that is not what it must be.
fn wrong(what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::new("a wrong result, so nothing is timed")
        .at(what)
        .expected(expected)
        .found(found)
        .hint("SCUMBLE_CHECKED=1, or another --adapter, to find out whether the driver is at fault")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0, 10.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 10.0]), 3.0);
    }

    #[test]
    fn rates_and_shares() {
        let row = Row {
            name: "x".into(),
            seconds: 0.5,
            flops: 4_000_000_000,
            bytes: 1_000_000_000,
            ideal: 0.25,
            verified: true,
        };
        assert_eq!((row.gflops(), row.gbps(), row.share()), (8.0, 2.0, 0.5));
        assert_eq!(row.json()["verified"], true);
    }
}
