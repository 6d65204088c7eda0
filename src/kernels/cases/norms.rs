//! Cases of `group_norm` and `layer_norm`.

use super::super::Limits;
use super::super::elementwise::Activation;
use super::super::group_norm::{self, Grid, GroupNorm, Modulation};
use super::super::layer_norm::{self, LayerNorm};
use super::{Case, EPS, Expected, Kernel, Step, Tensor, Work, numbers};
use crate::tensor::DType;

/// Means and squares are summed in short runs about a number near the mean (GroupNorm) or the mean itself (LayerNorm),
/// then in a tree: a few eps of (|x| + |mean|) over the deviation, which is what a large mean costs even when stored.
const K: f64 = 16.0;

/// A norm over numbers of this mean and spread.
struct Normed<C> {
    config: C,
    mean: f64,
    spread: f64,
}

impl<C> Normed<C> {
    /// x, weight around 1 and bias around 0, of no symmetry.
    fn numbers(&self, rows: u32, channels: u32, dtype: DType) -> [Vec<f64>; 3] {
        let width = channels as usize;
        [
            numbers("x", rows as usize * width, dtype, self.mean, self.spread),
            numbers("weight", width, DType::F32, 1.1, 0.6),
            numbers("bias", width, DType::F32, -0.2, 0.5),
        ]
    }
}

impl Normed<GroupNorm> {
    /// Rows of scales and shifts, one a picture or a cell; the pad channels of either are zero, as a projection leaves them.
    fn modulation(&self) -> Vec<f64> {
        let Some(part) = self.config.modulation else { return Vec::new() };
        let width = part.channels as usize;
        let mut rows = numbers("modulation", self.config.modulation_rows() as usize * width, DType::F32, 0.1, 0.8);
        for row in rows.chunks_exact_mut(width) {
            for pad in self.config.channels..self.config.channels.next_multiple_of(4) {
                row[(part.scale + pad) as usize] = 0.0;
                row[(part.shift + pad) as usize] = 0.0;
            }
        }
        rows
    }
}

fn tensors([x, weight, bias]: &[Vec<f64>; 3], channels: u32, dtype: DType) -> Vec<Tensor> {
    vec![
        Tensor::given("x", channels, dtype, x),
        Tensor::given("weight", channels, DType::F32, weight),
        Tensor::given("bias", channels, DType::F32, bias),
    ]
}

/// K eps of (|x| + |mean|) / deviation * |weight| + |bias|, given the reference's result as a function of x.
pub(super) fn tolerances(x: &[f64], y: &[f64], weight: &[f64], bias: &[f64], statistics: &[(f64, f64)]) -> Vec<f64> {
    let channels = weight.len();
    let terms = |i: usize| {
        let (mean, scale) = statistics[i];
        (x[i].abs() + mean.abs()) * scale * weight[i % channels].abs() + bias[i % channels].abs() + y[i].abs()
    };
    (0..x.len()).map(|i| K * EPS * terms(i)).collect()
}

impl Kernel for Normed<GroupNorm> {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let GroupNorm { batch, positions, channels, second, groups, dtype, .. } = self.config;
        let [x, weight, bias] = self.numbers(batch * positions, channels, dtype);
        let (first, width) = ((channels - second) as usize, channels as usize);
        let part = |columns: std::ops::Range<usize>| -> Vec<f64> {
            x.chunks_exact(width).flat_map(|row| row[columns.clone()].iter().copied()).collect()
        };
        let mut tensors = vec![
            Tensor::given("a", channels - second, dtype, &part(0..first)),
            Tensor::given("weight", channels, DType::F32, &weight),
            Tensor::given("bias", channels, DType::F32, &bias),
            Tensor::made("partials", batch * groups * self.config.chunks(limits), 4, DType::F32),
            Tensor::made("y", batch * positions, channels, dtype),
        ];
        if second > 0 {
            tensors.push(Tensor::given("b", second, dtype, &part(first..width)));
        }
        let b = if second > 0 { 5 } else { 0 };
        let mut reads = vec![0, b, 3, 1, 2];
        if let Some(part) = self.config.modulation {
            reads.push(tensors.len());
            tensors.push(Tensor::given("modulation", part.channels, DType::F32, &self.modulation()));
        }
        let steps = vec![
            Step { call: group_norm::stats(&self.config, limits)?, reads: vec![0, b], writes: vec![3] },
            Step { call: group_norm::apply(&self.config, limits)?, reads, writes: vec![4] },
        ];
        Some(Work { tensors, steps })
    }

    fn expected(&self) -> Vec<Expected> {
        let GroupNorm { batch, positions, channels, groups, eps, dtype, .. } = self.config;
        let [x, weight, bias] = self.numbers(batch * positions, channels, dtype);
        let modulation = self.modulation();
        let y = group_norm::reference(&self.config, &x, &weight, &bias, &modulation);
        let (plane, width) = ((positions * channels) as usize, channels as usize);
        let group_of = |i: usize| i / plane * groups as usize + i % width / (width / groups as usize);
        let mut parts = vec![Vec::new(); (batch * groups) as usize];
        x.iter().enumerate().for_each(|(i, value)| parts[group_of(i)].push(*value));
        let statistics: Vec<_> = parts.iter().map(|part| mean_and_scale(part, eps)).collect();
        let statistics: Vec<_> = (0..x.len()).map(|i| statistics[group_of(i)]).collect();
        let mut tolerances = tolerances(&x, &y, &weight, &bias, &statistics);
        if let Some(part) = self.config.modulation {
            // The norm's error is scaled with the norm, and two more roundings are those of the scale and the shift.
            for (i, tolerance) in tolerances.iter_mut().enumerate() {
                let row = &modulation[self.config.modulation_row(i / width) * part.channels as usize..];
                let one = if part.grid.is_some() { 0.0 } else { 1.0 };
                let scale = (one + row[part.scale as usize + i % width]).abs();
                *tolerance = *tolerance * (1.0 + scale) + K * EPS * row[part.shift as usize + i % width].abs();
            }
        }
        if self.config.activation == Activation::Gelu {
            // GELU is no steeper than 1.13, and its erf is 1.5e-7 off, times |x| / 2; y is smaller than x where x < 0.
            for (i, tolerance) in tolerances.iter_mut().enumerate() {
                let (mean, scale) = statistics[i];
                let norm = (x[i] - mean) * scale * weight[i % width].abs();
                *tolerance = *tolerance * 1.2 + 2e-7 * (norm.abs() * 2.0 + bias[i % width].abs() + 1.0);
            }
        }
        vec![Expected::new("y", dtype, y, tolerances)]
    }
}

impl Kernel for Normed<LayerNorm> {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let LayerNorm { rows, channels, dtype, .. } = self.config;
        let mut tensors = tensors(&self.numbers(rows, channels, dtype), channels, dtype);
        tensors.push(Tensor::made("y", rows, channels, dtype));
        Some(Work::of(layer_norm::call(&self.config, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let LayerNorm { rows, channels, eps, dtype } = self.config;
        let [x, weight, bias] = self.numbers(rows, channels, dtype);
        let y = layer_norm::reference(&self.config, &x, &weight, &bias);
        let width = channels as usize;
        let row = |row: &[f64]| std::iter::repeat_n(mean_and_scale(row, eps), width);
        let statistics: Vec<_> = x.chunks_exact(width).flat_map(row).collect();
        let tolerances = tolerances(&x, &y, &weight, &bias, &statistics);
        vec![Expected::new("y", dtype, y, tolerances)]
    }
}

pub(super) fn mean_and_scale(values: &[f64], eps: f32) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let group = |batch: u32, positions: u32, channels: u32, groups: u32, silu: bool| GroupNorm {
        batch,
        positions,
        channels,
        second: 0,
        groups,
        eps: 1e-5,
        modulation: None,
        activation: if silu { Activation::Silu } else { Activation::None },
        dtype,
    };
    // A uniform spread of sqrt(3) has variance 1.
    let unit = |config: GroupNorm| Normed { config, mean: 0.2, spread: 1.732 };
    let modulated = |config: GroupNorm, activation: Activation, [channels, scale, shift]: [u32; 3]| {
        unit(GroupNorm { modulation: Some(Modulation { channels, scale, shift, grid: None }), activation, ..config })
    };
    let spatial = |config: GroupNorm, activation: Activation, width: u32, factor: u32| {
        let channels = 2 * config.channels.next_multiple_of(4);
        let grid = Some(Grid { width, factor });
        let modulation = Modulation { channels, scale: 0, shift: channels / 2, grid };
        unit(GroupNorm { modulation: Some(modulation), activation, eps: 1e-6, ..config })
    };
    let groups = [
        ("resnet of SD", unit(group(2, 144, 320, 32, true))),
        ("transformer of SD", unit(GroupNorm { eps: 1e-6, ..group(2, 64, 640, 32, false) })),
        ("VAE, many chunks", unit(group(1, 5000, 32, 8, true))),
        ("every axis different", unit(group(3, 65, 20, 5, true))),
        ("channels not a multiple of four", unit(group(2, 130, 18, 3, false))),
        ("one channel a group", unit(group(2, 9, 6, 6, true))),
        ("one group", unit(group(1, 77, 35, 1, false))),
        ("one position", unit(group(2, 1, 12, 3, true))),
        ("mean 1000, variance 1", Normed { mean: 1000.0, ..unit(group(2, 150, 24, 4, false)) }),
        ("all the same", Normed { mean: 3.0, spread: 0.0, ..unit(group(1, 100, 8, 2, false)) }),
        ("long chunks", unit(group(1, 70_000, 4, 2, false))),
        ("several blocks of rows", unit(group(2, 1300, 40, 4, true))),
        ("a group wider than a tile", unit(group(2, 40, 264, 3, true))),
        ("the last tile is narrower", unit(group(2, 33, 108, 9, false))),
        ("odd groups wider than a tile", unit(group(1, 5, 765, 3, false))),
        ("skip of SD", unit(GroupNorm { second: 320, ..group(2, 80, 960, 32, true) })),
        ("a group straddles the seam", unit(GroupNorm { second: 12, ..group(3, 65, 20, 5, true) })),
        ("the seam within a vector", unit(GroupNorm { second: 7, ..group(2, 131, 18, 3, true) })),
        ("both parts below four", unit(GroupNorm { second: 1, ..group(2, 9, 3, 1, false) })),
        ("resnet of IF", modulated(group(2, 96, 192, 32, false), Activation::Gelu, [1200, 400, 592])),
        ("scale and shift, SiLU", modulated(group(3, 65, 20, 5, false), Activation::Silu, [64, 4, 36])),
        ("scale and shift of odd channels", modulated(group(2, 130, 18, 3, false), Activation::None, [44, 20, 0])),
        ("SpatialNorm of MoVQ", spatial(group(1, 16 * 24, 128, 32, false), Activation::Silu, 24, 4)),
        ("SpatialNorm on its own grid", spatial(group(3, 35, 20, 5, false), Activation::None, 5, 1)),
        ("SpatialNorm, a cell a picture", spatial(group(2, 64, 18, 3, false), Activation::Silu, 8, 8)),
        ("SpatialNorm, several blocks", spatial(group(2, 36 * 42, 40, 4, false), Activation::Silu, 42, 2)),
        ("GELU", unit(GroupNorm { activation: Activation::Gelu, ..group(2, 77, 36, 6, false) })),
        (
            "GELU of two parts",
            unit(GroupNorm { second: 7, activation: Activation::Gelu, ..group(2, 31, 18, 3, false) }),
        ),
        ("over tokens, of IF", unit(group(2, 77, 768, 32, false))),
        (
            "two parts, mean 1000, variance 1",
            Normed { mean: 1000.0, ..unit(GroupNorm { second: 8, ..group(2, 600, 24, 4, true) }) },
        ),
    ];
    let layer = |rows: u32, channels: u32| Normed {
        config: LayerNorm { rows, channels, eps: 1e-5, dtype },
        mean: 0.2,
        spread: 1.732,
    };
    let layers = [
        ("transformer of SD", layer(128, 320)),
        ("CLIP", layer(77, 768)),
        ("longer than registers", layer(5, 2309)),
        ("many rows", layer(1021, 12)),
        ("one channel", layer(3, 1)),
        ("channels not a multiple of four", layer(7, 131)),
        ("fewer vectors than lanes", layer(5, 21)),
        ("mean 1000, variance 1", Normed { mean: 1000.0, ..layer(6, 200) }),
    ];
    let groups = groups.into_iter().map(|(what, norm)| Case::new("group_norm", what, dtype, norm));
    groups.chain(layers.into_iter().map(|(what, norm)| Case::new("layer_norm", what, dtype, norm))).collect()
}

/// Shapes of Stable Diffusion 1.5 at 256 x 128 pixels.
pub(super) fn sizes(dtype: DType) -> Vec<Case> {
    let group = |positions: u32, channels: u32, second: u32| {
        let config = GroupNorm {
            batch: 2,
            positions,
            channels,
            second,
            groups: 32,
            eps: 1e-5,
            modulation: None,
            activation: Activation::Silu,
            dtype,
        };
        Normed { config, mean: 0.3, spread: 2.0 }
    };
    let rows = LayerNorm { rows: 1024, channels: 320, eps: 1e-5, dtype };
    let (mean, spread) = (0.3, 2.0);
    vec![
        Case::new("group_norm", "SD 1.5, level 1, 32 x 16, 320", dtype, group(512, 320, 0)),
        Case::new("group_norm", "SD 1.5, level 1, 32 x 16, 640 + 320", dtype, group(512, 960, 320)),
        Case::new("layer_norm", "SD 1.5, level 1, 1024 x 320", dtype, Normed { config: rows, mean, spread }),
    ]
}
