//! A [`Source`] of seeded random values, for timing a model whose checkpoint is not at hand.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::{Source, TensorInfo, missing_key_error, rows_error};
use crate::error::Result;
use crate::tensor::DType;

/// Random weights of given names and shapes; every row depends only on (seed, name, row).
///
/// Matrices and convolutions are normal with deviation `1/sqrt(fan_in)`, so that activations keep their scale; a 1-D
/// `weight` (a norm's) lies around 1, every other 1-D tensor around 0.
pub struct RandomSource {
    tensors: RwLock<BTreeMap<String, TensorInfo>>,
    seed: u64,
    open: bool,
}

impl RandomSource {
    /// Joins names and their types and shapes with a seed.
    pub fn new(seed: u64, tensors: impl IntoIterator<Item = (String, TensorInfo)>) -> Self {
        Self { tensors: RwLock::new(tensors.into_iter().collect()), seed, open: false }
    }

    /// A source that has whatever a model asks for, in the first shape that the model takes.
    pub fn on_demand(seed: u64) -> Self {
        Self { open: true, ..Self::new(seed, []) }
    }

    fn tensors(&self) -> RwLockReadGuard<'_, BTreeMap<String, TensorInfo>> {
        self.tensors.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for RandomSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors().get(name).cloned()
    }

    fn info_among(&self, name: &str, shapes: &[&[u32]]) -> Option<TensorInfo> {
        if self.open
            && let Some(shape) = shapes.first()
        {
            let info = TensorInfo { dtype: DType::F32, shape: shape.iter().map(|axis| *axis as usize).collect() };
            let mut tensors = self.tensors.write().unwrap_or_else(PoisonError::into_inner);
            return Some(tensors.entry(name.to_owned()).or_insert(info).clone());
        }
        self.info(name)
    }

    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let info = self.info(name).ok_or_else(|| missing_key_error(&self.describe(), name, &self.names()))?;
        let [count, length] = info.matrix();
        if rows.start > rows.end || rows.end > count {
            return Err(rows_error(&self.describe(), name, &rows, count));
        }
        let (mean, deviation) = match info.shape.len() {
            0 | 1 if name.ends_with("weight") => (1.0, 0.1),
            0 | 1 => (0.0, 0.02),
            _ => (0.0, 1.0 / (length as f32).sqrt()),
        };
        out.reserve(rows.len() * length);
        let stream = fnv1a(name.as_bytes()) ^ self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for row in rows {
            let mut state = mix(stream ^ mix(row as u64));
            out.extend((0..length).map(|_| mean + deviation * normal(&mut state)));
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.tensors().keys().cloned().collect()
    }

    fn describe(&self) -> String {
        format!("random weights (seed {})", self.seed)
    }
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014, <https://doi.org/10.1145/2714064.2660195>).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A nearly normal value of variance 1: the sum of four uniform 16-bit numbers (Irwin-Hall), enough for timing.
fn normal(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = mix(*state);
    let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
    // Four uniforms on [0, 1] have mean 2 and variance 4/12.
    (sum as f32 / 65535.0 - 2.0) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(seed: u64) -> RandomSource {
        let tensor =
            |name: &str, shape: &[usize]| (name.to_string(), TensorInfo { dtype: DType::F32, shape: shape.to_vec() });
        RandomSource::new(
            seed,
            [tensor("conv.weight", &[64, 32, 3, 3]), tensor("norm.weight", &[4000]), tensor("norm.bias", &[40])],
        )
    }

    fn rows(source: &RandomSource, name: &str, rows: Range<usize>) -> Vec<f32> {
        let mut out = vec![7.0; 3];
        source.rows(name, rows, &mut out).unwrap();
        out
    }

    #[test]
    fn rows_do_not_depend_on_how_they_are_asked_for() {
        let all = rows(&source(5), "conv.weight", 0..64);
        let part = rows(&source(5), "conv.weight", 17..19);
        assert_eq!(part, all[17 * 288..19 * 288]);
        assert_ne!(all, rows(&source(6), "conv.weight", 0..64));
        assert_ne!(all[..288], all[288..576]);
    }

    #[test]
    fn on_demand_gives_what_is_asked_for() {
        let source = RandomSource::on_demand(5);
        assert!(source.info("conv.weight").is_none());
        assert_eq!(source.info_among("conv.weight", &[&[64, 32, 3, 3], &[64, 288]]).unwrap().shape, [64, 32, 3, 3]);
        assert_eq!(source.names(), ["conv.weight"]);
        assert_eq!(rows(&source, "conv.weight", 3..5), rows(&self::source(5), "conv.weight", 3..5));
    }

    #[test]
    fn deviations_are_as_documented() {
        let all = rows(&source(1), "conv.weight", 0..64);
        let mean_square = all.iter().map(|x| x * x).sum::<f32>() / all.len() as f32;
        // 18432 samples: the mean square's own deviation is about 1 %.
        assert!((mean_square * 288.0 - 1.0).abs() <= 0.05, "{mean_square}");
        let norm = rows(&source(1), "norm.weight", 0..4000);
        let mean = norm.iter().sum::<f32>() / 4000.0;
        assert!((mean - 1.0).abs() <= 0.01, "{mean}");
        assert!(rows(&source(1), "norm.bias", 0..40).iter().all(|x| x.abs() <= 0.08));
        assert!(source(1).rows("norm.bias", 0..41, &mut Vec::new()).is_err());
        assert!(source(1).rows("nrm.bias", 0..1, &mut Vec::new()).is_err());
    }
}
