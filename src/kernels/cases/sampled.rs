//! Products too large for a reference in whole.

use std::sync::OnceLock;

use super::super::matrix::{Matrix, Operands};
use super::super::tuning::Class;
use super::super::{Call, Limits};
use super::matrix::{self, Numbers, judged};
use super::{Expected, Kernel, Tensor, Work};

/// A product too large to be compared whole: some of its rows and columns are, each dot product in full.
pub(super) struct Sampled {
    config: Matrix,
    /// Many candidates run over the same numbers.
    given: OnceLock<(Vec<Tensor>, Operands<usize>)>,
}

/// Rows and columns of a sample.
const SAMPLE: [usize; 2] = [24, 40];

/// `count` of the places below `end`, ends included, spread without a common period.
pub(super) fn sample(count: usize, end: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).map(|i| (i * (end - 1) / (count - 1).max(1) + i * i) % end).collect();
    places.extend([0, end - 1]);
    places.sort_unstable();
    places.dedup();
    places
}

impl Sampled {
    /// A sample of a product of one input with strides of 1.
    pub(super) fn new(config: Matrix) -> Self {
        Self { config, given: OnceLock::new() }
    }

    /// The sampled rows as a linear layer over what the taps read, [rows][K][taps].
    fn windows(&self, x: &[f64], rows: &[usize]) -> Vec<f64> {
        let Matrix { input: [height, width], output: [lines, columns], inputs, kernel, padding, .. } = self.config;
        let mut windows = Vec::new();
        for row in rows.iter().map(|row| *row as u32) {
            let (picture, y, x0) = (row / (lines * columns), row / columns % lines, row % columns);
            for k in 0..inputs {
                for tap in 0..kernel[0] * kernel[1] {
                    let iy = (y + tap / kernel[1]).wrapping_sub(padding[0]);
                    let ix = (x0 + tap % kernel[1]).wrapping_sub(padding[1]);
                    let inside = iy < height && ix < width;
                    let at = |pixel: u32| x[(pixel * inputs + k) as usize];
                    windows.push(if inside { at((picture * height + iy) * width + ix) } else { 0.0 });
                }
            }
        }
        windows
    }
}

impl Kernel for Sampled {
    fn work(&self, limits: &Limits) -> Option<Work> {
        matrix::work(self.given.get_or_init(|| matrix::given(&self.config)).clone(), &self.config, limits)
    }

    fn expected(&self) -> Vec<Expected> {
        let config = &self.config;
        let whole = Numbers::of(config);
        let outputs = config.outputs as usize;
        let fan = (config.inputs * config.kernel[0] * config.kernel[1]) as usize;
        let (rows, columns) = (sample(SAMPLE[0], config.rows() as usize), sample(SAMPLE[1], outputs));
        let gates = columns.iter().filter(|_| config.gated).map(|column| outputs + column);
        let physical: Vec<usize> = columns.iter().copied().chain(gates).collect();
        let cells = || rows.iter().flat_map(|row| columns.iter().map(move |column| row * outputs + column));
        let part = Numbers {
            x: self.windows(&whole.x, &rows),
            weight: physical.iter().flat_map(|n| &whole.weight[n * fan..][..fan]).copied().collect(),
            bias: physical.iter().map(|n| whole.bias[*n]).collect(),
            row_bias: vec![],
            residual: cells().map(|cell| whole.residual[cell]).collect(),
        };
        let linear = Matrix {
            batch: 1,
            input: [rows.len() as u32, 1],
            output: [rows.len() as u32, 1],
            inputs: fan as u32,
            outputs: columns.len() as u32,
            kernel: [1, 1],
            padding: [0, 0],
            ..*config
        };
        let (values, tolerances) = judged(&linear, &part);
        let expected = Expected::new("out", config.types[2], values, tolerances);
        vec![Expected { places: Some(cells().collect()), ..expected }]
    }

    fn choices(&self, limits: &Limits) -> Option<(Class, Vec<String>)> {
        self.config.choices(limits)
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        self.config.calls(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    /// A sample is the same as those places of the whole reference.
    #[test]
    fn samples_agree_with_the_whole() {
        let base = super::super::tuning::product(DType::F16, 2, [9, 7], 12, 50);
        for config in [
            Matrix { kernel: [3; 2], padding: [1; 2], ..base },
            Matrix { batch: 1, input: [90, 1], output: [90, 1], gated: true, residual: true, ..base },
        ] {
            let (whole, part) = (&config.expected()[0], &Sampled::new(config).expected()[0]);
            let places = part.places.as_ref().unwrap();
            assert!(places.len() > 500 && places.contains(&0) && places.contains(&(whole.values.len() - 1)));
            for (place, (value, tolerance)) in places.iter().zip(part.values.iter().zip(&part.tolerances)) {
                assert!((value - whole.values[*place]).abs() <= 1e-12, "{place}");
                assert!((tolerance - whole.tolerances[*place]).abs() <= 1e-12, "{place}");
            }
        }
    }
}
