//! Timing: what runs is verified first, then timed, by the device's own timestamps where it has them, and set against what
//! this adapter can do at best (the roofline model of Williams, Waterman and Patterson 2009).

pub mod compare;
pub mod image;
pub mod kernels;
pub mod plot;
pub mod roofs;
pub mod stages;
pub mod statistics;

use serde_json::{Value, json};

use crate::error::Error;
use crate::gpu::Clock;
use crate::tensor::DType;

pub use roofs::{Bound, Roofs};
pub use statistics::{Sample, Sampling};

/// Kinds of kernels that a report sums up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Linear layers and convolutions.
    Matrix,
    /// Attention.
    Attention,
    /// GroupNorm and LayerNorm.
    Norms,
    /// Everything that computes little: elementwise, concatenation, embedding, solver update, the roofs.
    Small,
}

impl Family {
    /// All, in the order of a report.
    pub const ALL: [Self; 4] = [Self::Matrix, Self::Attention, Self::Norms, Self::Small];

    /// The family of a kernel's or a shader's stem.
    pub fn of(stem: &str) -> Self {
        let begins = |words: &[&str]| words.iter().any(|word| stem.starts_with(word));
        if begins(&["matrix", "matmul", "matvec", "conv2d"]) {
            Self::Matrix
        } else if begins(&["attention"]) {
            Self::Attention
        } else if begins(&["group_norm", "layer_norm", "rms_norm"]) {
            Self::Norms
        } else {
            Self::Small
        }
    }

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matrix => "matrix",
            Self::Attention => "attention",
            Self::Norms => "norms",
            Self::Small => "small",
        }
    }
}

/// What must be done at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations, 2 per multiply-add.
    pub flops: u64,
    /// Bytes to be moved.
    pub bytes: u64,
    /// Whether matrices of f16 are multiplied, so that cooperative matrices could do it where the adapter has them.
    pub half_matrices: bool,
}

impl Work {
    /// The work of a kernel that stores its activations as `dtype`.
    pub fn new(stem: &str, dtype: DType, flops: u64, bytes: u64) -> Self {
        let products = matches!(Family::of(stem), Family::Matrix | Family::Attention);
        Self { flops, bytes, half_matrices: products && dtype != DType::F32 }
    }
}

/// One timed thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What ran.
    pub name: String,
    /// Its kernels' family, where they are of one.
    pub family: Option<Family>,
    /// The median of the runs.
    pub seconds: f64,
    /// The fastest run.
    pub minimum: f64,
    /// How sure the median is, as [`Sample::doubt`] tells; infinite, and null in JSON, where that is not known.
    pub doubt: f64,
    /// How often it was timed.
    pub samples: u32,
    /// Whose seconds these are.
    pub clock: Clock,
    /// Floating-point operations, 2 per multiply-add.
    pub flops: u64,
    /// Bytes that must be moved at the least.
    pub bytes: u64,
    /// Seconds that it would take at the roofs: of the parts that wait for each of [`Bound::ALL`].
    pub ideals: [f64; 3],
    /// Whether the result was right before it was timed.
    pub verified: bool,
}

impl Row {
    /// A row of no work and no time yet, to which others can be added.
    pub fn empty(name: impl Into<String>, clock: Clock) -> Self {
        Self {
            name: name.into(),
            family: None,
            seconds: 0.0,
            minimum: 0.0,
            doubt: f64::INFINITY,
            samples: 0,
            clock,
            flops: 0,
            bytes: 0,
            ideals: [0.0; 3],
            verified: true,
        }
    }

    /// The row of something whose result was wrong, and that was therefore not timed.
    pub fn wrong(name: impl Into<String>) -> Self {
        Self { verified: false, ..Self::empty(name, Clock::Wall) }
    }

    /// Sets the times.
    #[must_use]
    pub fn timed(self, sample: &Sample) -> Self {
        let Sample { median, minimum, doubt, count, clock, .. } = *sample;
        Self { seconds: median, minimum, doubt, samples: count, clock, ..self }
    }

    /// Adds work that took `seconds`.
    pub fn add(&mut self, work: Work, seconds: f64, roofs: &Roofs) {
        let (ideal, bound) = roofs.ideal(work);
        self.ideals[bound as usize] += ideal;
        self.seconds += seconds;
        self.minimum += seconds;
        self.flops += work.flops;
        self.bytes += work.bytes;
    }

    /// Seconds that it would take at the roofs.
    pub fn ideal(&self) -> f64 {
        self.ideals.iter().sum()
    }

    /// The roof that most of it waits for.
    pub fn bound(&self) -> Option<Bound> {
        let most = Bound::ALL.into_iter().max_by(|a, b| self.ideals[*a as usize].total_cmp(&self.ideals[*b as usize]));
        most.filter(|_| self.ideal() > 0.0)
    }

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
        if self.seconds > 0.0 { self.ideal() / self.seconds } else { 0.0 }
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
            "minimum": self.minimum,
            "doubt": self.doubt,
            "samples": self.samples,
            "clock": self.clock.name(),
            "flops": self.flops,
            "bytes": self.bytes,
            "ideal_seconds": self.ideal(),
            "bound": self.bound().map(Bound::name),
            "family": self.family.map(Family::name),
        })
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds / 1e9 } else { 0.0 }
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
    fn families() {
        for (stem, family) in [
            ("matrix_lanes", Family::Matrix),
            ("conv2d", Family::Matrix),
            ("attention_tile", Family::Attention),
            ("group_norm_stats", Family::Norms),
            ("scheduler_step", Family::Small),
        ] {
            assert_eq!(Family::of(stem), family, "{stem}");
        }
    }

    #[test]
    fn rates_and_shares() {
        let row = Row {
            seconds: 0.5,
            flops: 4_000_000_000,
            bytes: 1_000_000_000,
            ideals: [0.0, 0.25, 0.0],
            ..Row::empty("x", Clock::Dispatches)
        };
        assert_eq!((row.gflops(), row.gbps(), row.share()), (8.0, 2.0, 0.5));
        assert_eq!(row.bound(), Some(Bound::Fma));
        assert_eq!(Row::empty("y", Clock::Wall).bound(), None);
        assert_eq!(row.json()["verified"], true);
        assert_eq!(Row::wrong("x").json()["verified"], false);
        assert_eq!(Row::wrong("x").json()["share"], 0.0);
    }
}
