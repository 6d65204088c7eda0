//! Cases of `band_norm`: two bands of different heights, and the rows between them that a convolution would ask for.

use super::super::Limits;
use super::super::band_norm::{self, BandNorm, Rows};
use super::norms::{mean_and_scale, tolerances};
use super::{Case, Expected, Kernel, Step, Tensor, Work, numbers};
use crate::tensor::DType;

/// GroupNorm over two bands, applied to the rows from `first` of the upper one to before `end` of the lower one; and the
/// same rows copied.
struct Two {
    config: BandNorm,
    heights: [u32; 2],
    first: u32,
    end: u32,
    mean: f64,
}

impl Two {
    fn numbers(&self) -> [Vec<f64>; 3] {
        let BandNorm { channels, dtype, .. } = self.config;
        let count = (self.heights[0] + self.heights[1]) as usize * channels as usize;
        [
            numbers("x", count, dtype, self.mean, 1.732),
            numbers("weight", channels as usize, DType::F32, 1.1, 0.6),
            numbers("bias", channels as usize, DType::F32, -0.2, 0.5),
        ]
    }

    /// The rows of each band, and where they go.
    fn parts(&self) -> [Rows; 2] {
        let upper = self.heights[0] - self.first;
        [Rows { from: self.first, to: 0, count: upper }, Rows { from: 0, to: upper, count: self.end }]
    }
}

impl Kernel for Two {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let BandNorm { channels, dtype, .. } = self.config;
        let [x, weight, bias] = self.numbers();
        let (upper, lower) = x.split_at(self.heights[0] as usize * channels as usize);
        let chunks = self.heights.map(band_norm::chunks);
        let height = self.heights[0] - self.first + self.end;
        let tensors = vec![
            Tensor::given("upper", channels, dtype, upper),
            Tensor::given("lower", channels, dtype, lower),
            Tensor::given("weight", channels, DType::F32, &weight),
            Tensor::given("bias", channels, DType::F32, &bias),
            Tensor::made("partials", (chunks[0] + chunks[1]) * 3, channels, DType::F32),
            Tensor::made("norm", 2, channels, DType::F32),
            Tensor::made("y", height, channels, dtype),
            Tensor::made("copy", height, channels, dtype),
        ];
        let mut steps = Vec::new();
        for band in 0..2 {
            let call = band_norm::stats(&self.config, 0, self.heights[band], chunks[0] * band as u32, limits)?;
            steps.push(Step { call, reads: vec![band], writes: vec![4] });
        }
        let rows = self.heights[0] + self.heights[1];
        let call = band_norm::combine(&self.config, rows, chunks[0] + chunks[1]);
        steps.push(Step { call, reads: vec![4, 2], writes: vec![5] });
        for (band, part) in self.parts().into_iter().enumerate() {
            let call = band_norm::rows(true, channels, dtype, part, limits)?;
            steps.push(Step { call, reads: vec![band, 5, 3], writes: vec![6] });
            let call = band_norm::rows(false, channels, dtype, part, limits)?;
            steps.push(Step { call, reads: vec![band; 3], writes: vec![7] });
        }
        Some(Work { tensors, steps })
    }

    fn expected(&self) -> Vec<Expected> {
        let BandNorm { channels, groups, eps, dtype } = self.config;
        let [x, weight, bias] = self.numbers();
        let y = band_norm::reference(&self.config, &x, &weight, &bias);
        let per_group = (channels / groups) as usize;
        let group_of = |index: usize| index % channels as usize / per_group;
        let mut parts = vec![Vec::new(); groups as usize];
        x.iter().enumerate().for_each(|(index, value)| parts[group_of(index)].push(*value));
        let statistics: Vec<_> = parts.iter().map(|part| mean_and_scale(part, eps)).collect();
        let statistics: Vec<_> = (0..x.len()).map(|index| statistics[group_of(index)]).collect();
        let tolerances = tolerances(&x, &y, &weight, &bias, &statistics);
        let at = |row: u32| row as usize * channels as usize;
        let chosen = at(self.first)..at(self.heights[0] + self.end);
        let copy = x[chosen.clone()].to_vec();
        let exact = vec![0.0; copy.len()];
        vec![
            Expected::new("y", dtype, y[chosen.clone()].to_vec(), tolerances[chosen].to_vec()),
            Expected { name: "copy", packed: false, values: copy, tolerances: exact },
        ]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let two = |channels: u32, groups: u32, heights: [u32; 2], first: u32, end: u32| Two {
        config: BandNorm { channels, groups, eps: 1e-6, dtype },
        heights,
        first,
        end,
        mean: 0.2,
    };
    let cases = [
        ("VAE, two bands of 24 rows", two(128, 32, [480, 320], 460, 20)),
        ("channels not a multiple of four", two(18, 3, [130, 77], 9, 64)),
        ("one row each", two(20, 5, [1, 1], 0, 1)),
        ("long chunks", two(4, 2, [20_000, 65], 19_990, 65)),
        ("mean 1000, variance 1", Two { mean: 1000.0, ..two(24, 4, [150, 70], 140, 11) }),
    ];
    cases.into_iter().map(|(what, two)| Case::new("band_norm", what, dtype, two)).collect()
}
