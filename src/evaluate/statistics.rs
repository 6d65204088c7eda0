//! Means and covariances of features, and the Frechet distance of two normal distributions that have them, in f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Side, get_global_parallelism};

use crate::error::{Error, Result};

/// Features of a set of pictures: [count, channels], row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Numbers of a feature.
    pub channels: usize,
    /// `count * channels` numbers.
    pub values: Vec<f32>,
}

impl Features {
    /// Number of pictures.
    pub fn count(&self) -> usize {
        self.values.len() / self.channels.max(1)
    }

    /// Those of one picture.
    pub fn row(&self, picture: usize) -> &[f32] {
        &self.values[picture * self.channels..][..self.channels]
    }
}

/// What Frechet's distance looks at.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// `[C]`.
    pub mean: Vec<f64>,
    /// [C, C], divided by one less than the number of pictures (`numpy.cov`).
    pub covariance: Mat<f64>,
    /// F [C, count] with F F' = covariance, where there are fewer pictures than channels.
    factor: Option<Mat<f64>>,
}

impl Statistics {
    /// Of the features of two pictures or more.
    ///
    /// # Errors
    /// Fewer pictures; a feature that is not finite.
    pub fn of(features: &Features) -> Result<Self> {
        let (count, channels) = (features.count(), features.channels);
        if count < 2 {
            return Err(Error::new("too few pictures for a covariance").expected("2 or more").found(count));
        }
        if let Some(at) = features.values.iter().position(|value| !value.is_finite()) {
            let place = format!("picture {}, channel {}", at / channels, at % channels);
            return Err(Error::new("a feature is not finite")
                .at(place)
                .expected("a number")
                .found(features.values[at]));
        }
        let mut mean = vec![0f64; channels];
        for picture in 0..count {
            mean.iter_mut().zip(features.row(picture)).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        mean.iter_mut().for_each(|sum| *sum /= count as f64);
        /// Pictures that are taken together; a bound for the copies in f64.
        const TOGETHER: usize = 2048;
        let root = ((count - 1) as f64).sqrt();
        let centred = |first: usize, end: usize| {
            Mat::from_fn(channels, end - first, |c, i| (f64::from(features.row(first + i)[c]) - mean[c]) / root)
        };
        let mut covariance = Mat::zeros(channels, channels);
        for first in (0..count).step_by(TOGETHER) {
            let part = centred(first, (first + TOGETHER).min(count));
            let accumulate = if first == 0 { Accum::Replace } else { Accum::Add };
            matmul(&mut covariance, accumulate, &part, part.transpose(), 1.0, get_global_parallelism());
        }
        let factor = (count <= channels).then(|| centred(0, count));
        Ok(Self { mean, covariance, factor })
    }

    /// As given, for instance read from a file.
    ///
    /// # Errors
    /// Shapes that do not fit each other, numbers that are not finite, a matrix that is not symmetric.
    pub fn given(mean: Vec<f64>, covariance: Mat<f64>) -> Result<Self> {
        let channels = mean.len();
        let (rows, columns) = (covariance.nrows(), covariance.ncols());
        if channels == 0 || rows != channels || columns != channels {
            return Err(Error::new("mean and covariance do not fit each other")
                .expected(format!("shapes [{channels}] and [{channels}, {channels}]"))
                .found(format!("[{channels}] and [{rows}, {columns}]")));
        }
        let matrix = || (0..channels).flat_map(|i| (0..channels).map(move |j| (i, j)));
        if !mean.iter().all(|value| value.is_finite()) || !matrix().all(|(i, j)| covariance[(i, j)].is_finite()) {
            return Err(Error::new("mean or covariance").expected("finite numbers"));
        }
        let largest = (0..channels).map(|i| covariance[(i, i)]).fold(0f64, f64::max);
        let skew = matrix().map(|(i, j)| (covariance[(i, j)] - covariance[(j, i)]).abs()).fold(0f64, f64::max);
        // Statistics that were stored in single precision are symmetric to about 1e-7.
        if skew > 1e-5 * largest {
            return Err(Error::new("covariance").expected("a symmetric matrix").found(format!("one off by {skew:e}")));
        }
        Ok(Self { mean, covariance, factor: None })
    }

    /// Numbers of a feature.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// F with F F' = covariance: Cholesky's, or, where the covariance is singular, by its eigenvalues, of which those that
    /// rounding has left below zero are zero.
    fn factor(&self) -> Result<Mat<f64>> {
        if let Some(factor) = &self.factor {
            return Ok(factor.clone());
        }
        let channels = self.channels();
        let symmetric =
            Mat::from_fn(channels, channels, |i, j| 0.5 * (self.covariance[(i, j)] + self.covariance[(j, i)]));
        if let Ok(found) = symmetric.llt(Side::Lower) {
            return Ok(found.L().to_owned());
        }
        let found = symmetric.self_adjoint_eigen(Side::Lower).map_err(|_| no_convergence("eigenvalues"))?;
        let (vectors, values) = (found.U(), found.S().column_vector());
        Ok(Mat::from_fn(channels, channels, |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt()))
    }
}

fn no_convergence(what: &str) -> Error {
    Error::new(format!("the {what} of a covariance were not found")).expected("convergence")
}

/// Frechet's distance squared of the two normal distributions (arXiv:1706.08500):
/// |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).
///
/// With S = F F' the trace of the root of S1 S2 is the sum of the singular values of F1' F2: the square roots of the eigenvalues of the
/// symmetric S1^(1/2) S2 S1^(1/2), without squaring them first. So nothing is lost where the covariances are singular.
///
/// # Errors
/// Features of different lengths; a decomposition that does not converge.
pub fn frechet(a: &Statistics, b: &Statistics) -> Result<f64> {
    if a.channels() != b.channels() {
        return Err(Error::new("features of different lengths").expected(a.channels()).found(b.channels()));
    }
    let apart: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b) * (a - b)).sum();
    let product = product(a.factor()?.transpose(), b.factor()?.as_ref());
    let singular = product.singular_values().map_err(|_| no_convergence("singular values"))?;
    let trace = |of: &Statistics| (0..of.channels()).map(|i| of.covariance[(i, i)]).sum::<f64>();
    let distance = apart + trace(a) + trace(b) - 2.0 * singular.iter().sum::<f64>();
    if !distance.is_finite() {
        return Err(Error::new("the distance is not finite").expected("a number").found(distance));
    }
    // Equal sets come to zero but for rounding.
    Ok(distance.max(0.0))
}

/// a b.
pub(super) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut product, Accum::Replace, a, b, 1.0, get_global_parallelism());
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::TorchGenerator;

    fn features(seed: u64, count: usize, channels: usize) -> Features {
        Features { channels, values: TorchGenerator::new(seed).randn(count * channels) }
    }

    #[test]
    fn moments_are_numpys() {
        let values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
        let found = Statistics::of(&Features { channels: 2, values }).unwrap();
        assert_eq!(found.mean, [3.0, 5.0]);
        let want = [[4.0, 7.0], [7.0, 13.0]];
        assert!((0..2).all(|i| (0..2).all(|j| (found.covariance[(i, j)] - want[i][j]).abs() < 1e-14)));
    }

    #[test]
    fn known_distances() {
        let normal = |mean: [f64; 2], s: [f64; 2]| {
            let covariance = Mat::from_fn(2, 2, |i, j| if i == j { s[i] } else { 0.0 });
            Statistics::given(mean.to_vec(), covariance).unwrap()
        };
        let (a, b) = (normal([0.0, 1.0], [4.0, 9.0]), normal([2.0, 1.0], [1.0, 16.0]));
        // Of diagonal covariances: the differences of the deviations squared.
        assert!((frechet(&a, &b).unwrap() - (4.0 + 1.0 + 1.0)).abs() < 1e-12);
        assert!(frechet(&a, &a).unwrap() < 1e-12);
        // One that has no extent in a direction.
        let flat = normal([0.0, 1.0], [4.0, 0.0]);
        assert!((frechet(&a, &flat).unwrap() - 9.0).abs() < 1e-12);
    }

    #[test]
    fn both_ways_to_a_factor_agree_where_covariances_are_singular() {
        let (a, b) = (features(1, 20, 48), features(2, 33, 48));
        let (a, b) = (Statistics::of(&a).unwrap(), Statistics::of(&b).unwrap());
        assert!(a.factor.is_some() && b.factor.is_some());
        let given = |of: &Statistics| Statistics::given(of.mean.clone(), of.covariance.clone()).unwrap();
        let (direct, stored) = (frechet(&a, &b).unwrap(), frechet(&given(&a), &given(&b)).unwrap());
        // Eigenvalues that should be zero are off by 1e-15, their roots by 3e-8, for some 30 of them.
        assert!((direct - stored).abs() <= 1e-5 * direct, "{direct} {stored}");
        assert!(frechet(&a, &a).unwrap() < 1e-9);
    }

    #[test]
    fn what_is_no_statistics_is_refused() {
        let mut broken = features(3, 5, 4);
        broken.values[9] = f32::NAN;
        assert!(Statistics::of(&broken).unwrap_err().to_string().contains("picture 2, channel 1"));
        assert!(Statistics::of(&features(3, 1, 4)).unwrap_err().to_string().contains("2 or more"));
        let eye = |n: usize| Mat::<f64>::identity(n, n);
        assert!(Statistics::given(vec![0.0; 3], eye(2)).is_err());
        assert!(Statistics::given(vec![f64::NAN, 0.0], eye(2)).is_err());
        let mut skew = eye(2);
        skew[(0, 1)] = 0.1;
        assert!(Statistics::given(vec![0.0; 2], skew).unwrap_err().to_string().contains("symmetric"));
        let (two, three) = (eye(2), eye(3));
        let of = |eye: Mat<f64>| Statistics::given(vec![0.0; eye.nrows()], eye).unwrap();
        assert!(frechet(&of(two), &of(three)).is_err());
    }
}
