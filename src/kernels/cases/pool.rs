//! Cases of `pool`.

use super::super::Limits;
use super::super::pool::{self, Mode, Pool};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

impl Pool {
    fn numbers(&self) -> Vec<f64> {
        let [height, width] = self.input;
        numbers("x", (self.batch * height * width * self.channels) as usize, self.dtype, 0.3, 2.0)
    }
}

impl Kernel for Pool {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let rows = self.batch * self.output[0] * self.output[1];
        let tensors = vec![
            Tensor::given("x", self.channels, self.dtype, &self.numbers()),
            Tensor::made("y", rows, self.channels, self.dtype),
        ];
        Some(Work::of(pool::call(self, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let x = self.numbers();
        let values = pool::reference(self, &x);
        // As many roundings as there are summands, each of a partial sum of at most 2.3 a place, spread by the mean's
        // division; a maximum is a copy.
        let places = f64::from(self.kernel[0] * self.kernel[1]);
        let tolerance = if self.mode == Mode::Max { 0.0 } else { 2.3 * (places + 2.0) * EPS };
        let tolerances = vec![tolerance; values.len()];
        vec![Expected::new("y", self.dtype, values, tolerances)]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let window =
        |mode: Mode, batch: u32, input: [u32; 2], channels: u32, kernel: u32, stride: u32, padding: u32| Pool {
            batch,
            input,
            output: input.map(|size| Pool::windows(size, kernel, stride, padding)),
            channels,
            mode,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 2],
            enlarge: 1,
            dtype,
        };
    let enlarged = |batch: u32, input: [u32; 2], channels: u32| Pool {
        output: input.map(|size| 2 * size),
        enlarge: 2,
        ..window(Mode::Mean, batch, input, channels, 1, 1, 0)
    };
    let all = |batch: u32, input: [u32; 2], channels: u32| Pool {
        output: [1, 1],
        kernel: input,
        stride: input,
        ..window(Mode::Mean, batch, input, channels, 1, 1, 0)
    };
    [
        ("halved, of IF", window(Mode::Mean, 2, [16, 12], 96, 2, 2, 0)),
        ("halved, odd sides lose their last", window(Mode::Mean, 3, [7, 11], 6, 2, 2, 0)),
        ("means of Inception", window(Mode::PaddedMean, 2, [9, 7], 20, 3, 1, 1)),
        ("means of FID's Inception", window(Mode::Mean, 2, [9, 7], 20, 3, 1, 1)),
        ("maxima of Inception", window(Mode::Max, 1, [17, 12], 13, 3, 2, 0)),
        ("maxima with padding", window(Mode::Max, 2, [8, 5], 9, 3, 1, 1)),
        ("stride longer than the window", window(Mode::Max, 2, [11, 9], 5, 2, 3, 1)),
        ("enlarged, of IF", enlarged(2, [6, 9], 96)),
        ("enlarged, every axis different", enlarged(3, [1, 5], 7)),
        ("enlarged, then padded means", Pool { enlarge: 2, ..window(Mode::Mean, 2, [6, 4], 8, 4, 2, 1) }),
        ("mean of all tokens", all(2, [77, 1], 130)),
        ("mean of a picture", all(3, [8, 8], 35)),
        ("one place", window(Mode::Max, 1, [1, 1], 1, 1, 1, 0)),
    ]
    .into_iter()
    .map(|(what, config)| Case::new("pool", what, dtype, config))
    .collect()
}
