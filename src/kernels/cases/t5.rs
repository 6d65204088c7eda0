//! Cases of `rms_norm` and `position_bias`.

use super::super::Limits;
use super::super::position_bias::{self, PositionBias};
use super::super::rms_norm::{self, RmsNorm};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

/// A sum of squares in a tree, a root and two products.
const K: f64 = 16.0;

impl RmsNorm {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let width = self.channels as usize;
        [
            numbers("x", self.rows as usize * width, self.types[0], 0.4, 2.0),
            numbers("weight", width, DType::F32, 1.1, 0.6),
        ]
    }
}

impl Kernel for RmsNorm {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let [x, weight] = self.numbers();
        let tensors = vec![
            Tensor::given("x", self.channels, self.types[0], &x),
            Tensor::given("weight", self.channels, DType::F32, &weight),
            Tensor::made("y", self.rows, self.channels, self.types[1]),
        ];
        Some(Work::of(rms_norm::call(self, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let [x, weight] = self.numbers();
        let y = rms_norm::reference(self, &x, &weight);
        let tolerances = y.iter().map(|y| K * EPS * y.abs()).collect();
        vec![Expected::new("y", self.types[1], y, tolerances)]
    }
}

impl PositionBias {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let table = numbers("table", (self.buckets * self.heads) as usize, DType::F32, 0.2, 3.0);
        let mut mask = vec![0.0; (self.batch * self.tokens) as usize];
        mask.iter_mut().skip(2).step_by(3).for_each(|hidden| *hidden = f64::from(f32::MIN));
        [table, mask]
    }
}

impl Kernel for PositionBias {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let [table, mask] = self.numbers();
        let buckets: Vec<f64> = self.table().into_iter().map(f64::from).collect();
        let tensors = vec![
            Tensor::given("buckets", buckets.len() as u32, DType::F32, &buckets),
            Tensor::given("table", self.heads, DType::F32, &table),
            Tensor::given("mask", self.tokens, DType::F32, &mask),
            Tensor::made("y", self.batch * self.heads * self.tokens, self.tokens, DType::F32),
        ];
        Some(Work::of(position_bias::call(self, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let [table, mask] = self.numbers();
        let y = position_bias::reference(self, &table, &mask);
        // One sum, rounded once.
        let tolerances = y.iter().map(|y| EPS * y.abs()).collect();
        vec![Expected::new("y", DType::F32, y, tolerances)]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let norm = |rows: u32, channels: u32, types: [DType; 2]| RmsNorm { rows, channels, eps: 1e-6, types };
    let norms = [
        ("T5-XXL", norm(77, 4096, [dtype; 2])),
        ("of a stream in f32", norm(9, 512, [DType::F32, dtype])),
        ("into f32", norm(9, 200, [dtype, DType::F32])),
        ("longer than registers", norm(3, 2309, [dtype; 2])),
        ("many rows", norm(1021, 12, [dtype; 2])),
        ("channels not a multiple of four", norm(7, 131, [dtype; 2])),
        ("one channel", norm(3, 1, [dtype; 2])),
    ];
    let mut all: Vec<Case> =
        norms.into_iter().map(|(what, config)| Case::new("rms_norm", what, dtype, config)).collect();
    // In f32 whatever activations are stored as.
    if dtype == DType::F32 {
        let bias =
            |batch, heads, tokens, buckets, max_distance| PositionBias { batch, heads, tokens, buckets, max_distance };
        let biases = [
            ("T5", bias(2, 6, 77, 32, 128)),
            ("few buckets", bias(1, 3, 41, 8, 20)),
            ("one token", bias(3, 5, 1, 32, 128)),
        ];
        all.extend(biases.into_iter().map(|(what, config)| Case::new("position_bias", what, dtype, config)));
    }
    all
}
