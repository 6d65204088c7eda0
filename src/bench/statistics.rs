//! How often to time something: until the median is known well enough, or time is up.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::Clock;
use crate::graph::timing::Lap;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// At least so many samples, at least one.
    pub least: u32,
    /// At most so many.
    pub most: u32,
    /// No further sample after this time.
    pub budget: Duration,
}

/// The median counts as known when it is so sure, as a share of itself; see [`Sample::doubt`].
const SURE: f64 = 0.01;

/// Fewer samples say nothing of how far they are apart.
pub const FEWEST: usize = 3;

/// What was timed several times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Median seconds.
    pub median: f64,
    /// Least seconds.
    pub minimum: f64,
    /// Half the width of the median's 95 % interval as a share of the median: 1.57 * interquartile range / sqrt(count)
    /// (McGill, Tukey and Larsen 1978, "Variations of Box Plots"); infinite below [`FEWEST`] samples.
    pub doubt: f64,
    /// How many samples.
    pub count: u32,
    /// Median seconds of the host's clock around the same work, submission and wait included.
    pub wall: f64,
    /// Whose seconds these are. All samples are of one clock.
    pub clock: Clock,
}

impl Sampling {
    /// Takes samples; none is a warm-up. Should the device's timestamps fail in one of them, all are by the wall clock.
    ///
    /// # Errors
    /// When a sample fails.
    pub fn take(&self, mut sample: impl FnMut() -> Result<Lap>) -> Result<Sample> {
        let begin = Instant::now();
        let mut laps: Vec<Lap> = Vec::new();
        loop {
            laps.push(sample()?);
            let summary = summarize(&laps);
            let enough = laps.len() as u32 >= self.least && (summary.doubt <= SURE || begin.elapsed() >= self.budget);
            if enough || laps.len() as u32 >= self.most.max(self.least) {
                return Ok(summary);
            }
        }
    }
}

fn summarize(laps: &[Lap]) -> Sample {
    let wall = sorted(laps.iter().map(|lap| lap.wall));
    let first = laps.first().map_or(Clock::Wall, |lap| lap.clock);
    let clock = if laps.iter().all(|lap| lap.clock == first) { first } else { Clock::Wall };
    let seconds = if clock.on_device() { sorted(laps.iter().map(|lap| lap.seconds)) } else { wall.clone() };
    let median = quantile(&seconds, 0.5);
    let range = quantile(&seconds, 0.75) - quantile(&seconds, 0.25);
    let known = seconds.len() >= FEWEST && median > 0.0;
    let doubt = if known { 1.57 * range / (seconds.len() as f64).sqrt() / median } else { f64::INFINITY };
    Sample {
        median,
        minimum: seconds.first().copied().unwrap_or(0.0),
        doubt,
        count: seconds.len() as u32,
        wall: quantile(&wall, 0.5),
        clock,
    }
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

/// The `share` quantile of sorted numbers, linear between neighbours; 0 of none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lap(seconds: f64, clock: Clock) -> Lap {
        Lap { seconds, clock, wall: 2.0 * seconds }
    }

    fn sampling(least: u32, most: u32) -> Sampling {
        Sampling { least, most, budget: Duration::from_secs(3600) }
    }

    /// The quantiles of numpy's default method.
    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[3.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 10.0], 0.5), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 10.0], 0.25), 1.75);
        assert_eq!(quantile(&[1.0, 2.0, 10.0], 0.5), 2.0);
    }

    #[test]
    fn steady_samples_end_early() {
        let sample = sampling(5, 100).take(|| Ok(lap(0.25, Clock::Dispatches))).unwrap();
        assert_eq!((sample.count, sample.median, sample.minimum, sample.doubt), (5, 0.25, 0.25, 0.0));
        assert_eq!((sample.wall, sample.clock), (0.5, Clock::Dispatches));
    }

    #[test]
    fn unsteady_samples_go_on() {
        let mut turn = 0;
        let unsteady = || {
            turn += 1;
            Ok(lap(if turn % 2 == 0 { 1.0 } else { 2.0 }, Clock::Dispatches))
        };
        let sample = sampling(5, 40).take(unsteady).unwrap();
        assert_eq!((sample.count, sample.median, sample.minimum), (40, 1.5, 1.0));
        assert!((sample.doubt - 1.57 / 40f64.sqrt() / 1.5).abs() < 1e-12, "{}", sample.doubt);
        let few = Sampling { budget: Duration::ZERO, ..sampling(1, 40) }.take(|| Ok(lap(1.0, Clock::Wall))).unwrap();
        assert_eq!((few.count, few.doubt), (1, f64::INFINITY));
        let none = Sampling { budget: Duration::ZERO, ..sampling(3, 40) };
        let mut turn = 0.0;
        let slower = || {
            turn += 1.0;
            Ok(lap(turn, Clock::Dispatches))
        };
        assert_eq!(none.take(slower).unwrap().count, 3);
    }

    #[test]
    fn clocks_are_not_mixed() {
        let mut turn = 0;
        let failing = || {
            turn += 1;
            Ok(if turn == 2 { lap(9.0, Clock::Wall) } else { lap(1.0, Clock::Dispatches) })
        };
        let sample = sampling(3, 3).take(failing).unwrap();
        assert_eq!((sample.clock, sample.median, sample.minimum), (Clock::Wall, 2.0, 2.0));
    }
}
