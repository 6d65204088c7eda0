//! Kernel Inception distance (arXiv:1801.01401): the unbiased maximum mean discrepancy under k(x, y) = (x . y / C + 1)^3,
//! as the mean over random subsets, in f64.

use faer::Mat;

use super::statistics::{Features, product};
use crate::error::{Error, Result};
use crate::sampling::TorchGenerator;

/// How KID is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsets {
    /// How many.
    pub count: u32,
    /// Pictures of each set in one.
    pub size: usize,
    /// Seed of torch's generator, by whose `randperm` pictures are chosen: first of one set, then of the other, as
    /// torchmetrics does.
    pub seed: u64,
}

/// A distance and how far that of a single subset lies from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kid {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets, not that of the mean.
    pub deviation: f64,
}

/// KID of two sets; `progress` is told how many subsets are done.
///
/// # Errors
/// Features of different lengths or not finite, a subset larger than a set or smaller than 2.
pub fn kid(a: &Features, b: &Features, subsets: Subsets, progress: &mut dyn FnMut(u32)) -> Result<Kid> {
    let least = a.count().min(b.count());
    if a.channels != b.channels {
        return Err(Error::new("features of different lengths").expected(a.channels).found(b.channels));
    }
    if subsets.size < 2 || subsets.size > least {
        return Err(Error::new("size of subsets").expected(format!("2 to {least}")).found(subsets.size));
    }
    if a.values.iter().chain(&b.values).any(|value| !value.is_finite()) {
        return Err(Error::new("a feature is not finite").expected("numbers"));
    }
    let mut generator = TorchGenerator::new(subsets.seed);
    let mut found = Vec::new();
    for done in 0..subsets.count {
        progress(done);
        let [x, y] = [a, b].map(|set| chosen(set, &generator.permutation(set.count() as u32)[..subsets.size]));
        found.push(discrepancy(&x, &y));
    }
    progress(subsets.count);
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let variance = found.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / found.len() as f64;
    Ok(Kid { mean, deviation: variance.sqrt() })
}

/// [C, subset].
fn chosen(set: &Features, pictures: &[u32]) -> Mat<f64> {
    Mat::from_fn(set.channels, pictures.len(), |c, i| f64::from(set.row(pictures[i] as usize)[c]))
}

/// Of as many pictures each: the means of k over different pictures of a set, less twice that over pairs of both.
fn discrepancy(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let (channels, size) = (x.nrows() as f64, x.ncols() as f64);
    let kernel = |x: &Mat<f64>, y: &Mat<f64>, diagonal: bool| {
        let products = product(x.transpose(), y.as_ref());
        let value = |i: usize, j: usize| (products[(i, j)] / channels + 1.0).powi(3);
        let column = |j: usize| (0..x.ncols()).filter(|i| diagonal || *i != j).map(|i| value(i, j)).sum::<f64>();
        (0..y.ncols()).map(column).sum::<f64>()
    };
    (kernel(x, x, false) + kernel(y, y, false)) / (size * (size - 1.0)) - 2.0 * kernel(x, y, true) / (size * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(seed: u64, count: usize, shift: f32) -> Features {
        let values = TorchGenerator::new(seed).randn(count * 8).into_iter().map(|value| value + shift).collect();
        Features { channels: 8, values }
    }

    #[test]
    fn a_small_case_by_hand() {
        let set = |values: [f32; 2]| Features { channels: 1, values: values.to_vec() };
        let subsets = Subsets { count: 1, size: 2, seed: 0 };
        let found = kid(&set([0.0, 1.0]), &set([1.0, 2.0]), subsets, &mut |_| {}).unwrap();
        // k(0, 1) = 1, k(1, 2) = 27; across: k(0, 1) + k(0, 2) + k(1, 1) + k(1, 2) = 1 + 1 + 8 + 27.
        assert_eq!((found.mean, found.deviation), (1.0 + 27.0 - 2.0 * 37.0 / 4.0, 0.0));
    }

    #[test]
    fn the_seed_chooses_and_whole_sets_leave_no_choice() {
        let (a, b) = (features(1, 60, 0.0), features(2, 50, 0.5));
        let run = |size: usize, seed: u64| kid(&a, &b, Subsets { count: 7, size, seed }, &mut |_| {}).unwrap();
        assert_eq!(run(20, 3), run(20, 3));
        assert_ne!(run(20, 3), run(20, 4));
        assert!(run(20, 3).deviation > 0.0);
        let same = features(1, 50, 0.0);
        let whole = kid(&same, &b, Subsets { count: 7, size: 50, seed: 3 }, &mut |_| {}).unwrap();
        assert!(whole.deviation <= 1e-12 * whole.mean.abs(), "{whole:?}");
    }

    #[test]
    fn what_cannot_be_estimated_is_refused() {
        let (a, b) = (features(1, 9, 0.0), features(2, 7, 0.0));
        for size in [0, 1, 8] {
            let fault = kid(&a, &b, Subsets { count: 1, size, seed: 0 }, &mut |_| {}).unwrap_err().to_string();
            assert!(fault.contains("2 to 7"), "{fault}");
        }
        let mut broken = b.clone();
        broken.values[3] = f32::INFINITY;
        assert!(kid(&a, &broken, Subsets { count: 1, size: 7, seed: 0 }, &mut |_| {}).is_err());
    }
}
