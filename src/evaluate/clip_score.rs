//! How well pictures fit texts: the cosine between their vectors under a CLIP (arXiv:2103.00020, arXiv:2104.08718).

use crate::error::{Error, Result};

/// Vectors of one length, one behind the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Numbers of a vector.
    pub width: usize,
    /// `width` numbers for each.
    pub values: Vec<f32>,
}

impl Vectors {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Vector number `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }
}

/// The cosine of the angle between two vectors, in f64; 0 where one of them is 0.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let product = (dot(a, a) * dot(b, b)).sqrt();
    if product > 0.0 { dot(a, b) / product } else { 0.0 }
}

/// What the cosines of pictures with their texts come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// 100 times the mean cosine, 0 where that is below 0 (torchmetrics' `CLIPScore`).
    pub score: f64,
    /// The mean cosine.
    pub mean: f64,
    /// The cosines' standard deviation; none of a single picture.
    pub deviation: Option<f64>,
    /// The mean's standard error; none of a single picture.
    pub standard_error: Option<f64>,
    /// The smallest cosine.
    pub least: f64,
    /// The largest.
    pub greatest: f64,
}

impl Summary {
    /// Of at least one cosine.
    ///
    /// # Errors
    /// No cosine, or one that is not finite.
    pub fn of(cosines: &[f64]) -> Result<Self> {
        if cosines.is_empty() || !cosines.iter().all(|cosine| cosine.is_finite()) {
            let error = Error::new("cosines").expected("at least one, all finite");
            return Err(error.found(format!("{} cosines", cosines.len())));
        }
        let count = cosines.len() as f64;
        let mean = cosines.iter().sum::<f64>() / count;
        let squares = cosines.iter().map(|cosine| (cosine - mean).powi(2)).sum::<f64>();
        let deviation = (cosines.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        Ok(Self {
            score: (100.0 * mean).max(0.0),
            mean,
            deviation,
            standard_error: deviation.map(|deviation| deviation / count.sqrt()),
            least: cosines.iter().copied().fold(f64::INFINITY, f64::min),
            greatest: cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// The share of pictures of which no other of the `texts` is nearer than their own, whose numbers are in `own`.
pub fn retrieved(pictures: &Vectors, texts: &Vectors, own: &[usize]) -> f64 {
    use rayon::prelude::*;
    let right = |(picture, own): (usize, &usize)| {
        let picture = pictures.row(picture);
        let best = cosine(picture, texts.row(*own));
        usize::from((0..texts.count()).all(|text| text == *own || cosine(picture, texts.row(text)) <= best))
    };
    own.par_iter().enumerate().map(|(picture, own)| right((picture, own))).sum::<usize>() as f64
        / own.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        assert!((cosine(&[3.0, 4.0], &[30.0, 40.0]) - 1.0).abs() < 1e-15);
        assert!((cosine(&[1.0, 0.0], &[-1e-18, 0.0]) + 1.0).abs() < 1e-15);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1e20]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
        assert!((cosine(&[1.0, 1.0], &[1.0, 0.0]) - 0.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_score_is_cut_as_a_whole() {
        let found = Summary::of(&[0.5, -0.25, 0.05]).unwrap();
        assert!((found.score - 10.0).abs() < 1e-12 && (found.mean - 0.1).abs() < 1e-15);
        let deviation = ((0.16 + 0.1225 + 0.0025) / 2.0f64).sqrt();
        assert!((found.deviation.unwrap() - deviation).abs() < 1e-12);
        assert!((found.standard_error.unwrap() - deviation / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!((found.least, found.greatest), (-0.25, 0.5));
        assert_eq!(Summary::of(&[-0.5, 0.1]).unwrap().score, 0.0);
        assert_eq!(Summary::of(&[0.5]).unwrap().standard_error, None);
        assert!(Summary::of(&[]).is_err() && Summary::of(&[f64::NAN]).is_err());
    }

    #[test]
    fn nearest_texts_are_counted() {
        let texts = Vectors { width: 2, values: vec![1.0, 0.0, 0.0, 1.0] };
        let pictures = Vectors { width: 2, values: vec![2.0, 1.0, 1.0, 5.0, 1.0, 2.0] };
        assert_eq!(retrieved(&pictures, &texts, &[0, 1, 0]), 2.0 / 3.0);
        assert_eq!(retrieved(&pictures, &texts, &[1, 0, 1]), 1.0 / 3.0);
    }
}
