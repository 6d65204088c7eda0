//! What the cases of `matmul` and `conv2d` share: numbers for a [`Matrix`] and its tolerances.

use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, PANEL, gated_rows, inputs};
use super::super::tuning::{Class, Product};
use super::super::{Call, Limits, vectors};
use super::{EPS, Expected, Kernel, Step, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// Rounding errors of a sum of n terms grow like a random walk, about sqrt(n) eps sum|terms| / 2 at worst seen; n is
/// below 3000 in every case, and the blocks in which the kernels sum shorten it further.
const K: f64 = 32.0;
/// The polynomial of erf is good to 1.5e-7, exp on a GPU to a few ulps: relative to what the activation multiplies.
const ACTIVATION: f64 = 1e-6;

/// The numbers of a product, as the reference takes them.
struct Numbers {
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    row_bias: Vec<f64>,
    residual: Vec<f64>,
}

impl Numbers {
    fn of(config: &Matrix) -> Self {
        let rows = config.rows() as usize;
        let pixels = (config.batch * config.input[0] * config.input[1]) as usize;
        let columns = (config.outputs << u32::from(config.gated)) as usize;
        let fan = (config.inputs * config.kernel[0] * config.kernel[1]) as usize;
        let [input, weight, output] = config.types;
        let batch = config.batch as usize;
        Self {
            x: numbers("x", pixels * config.inputs as usize, input, 0.25, 1.5),
            weight: numbers("weight", columns * fan, weight, 0.0, 1.7 / (fan as f64).sqrt()),
            bias: numbers("bias", columns, DType::F32, 0.1, 0.5),
            row_bias: numbers("row bias", batch * config.outputs as usize, DType::F32, -0.2, 0.7),
            residual: numbers("residual", rows * config.outputs as usize, output, 0.3, 1.0),
        }
    }

    fn reference(&self, config: &Matrix) -> Vec<f64> {
        config.reference(&self.x, &self.weight, &self.bias, &self.row_bias, &self.residual)
    }

    fn absolute(&self) -> Self {
        Self {
            x: absolute(&self.x),
            weight: absolute(&self.weight),
            bias: absolute(&self.bias),
            row_bias: absolute(&self.row_bias),
            residual: absolute(&self.residual),
        }
    }
}

/// The logical column of every physical one.
fn columns(config: &Matrix) -> Vec<Option<usize>> {
    if config.gated {
        return gated_rows(config.outputs).into_iter().map(|row| row.map(|(_, n)| n as usize)).collect();
    }
    let physical = (config.panels() * PANEL) as usize;
    (0..physical).map(|n| (n < config.outputs as usize).then_some(n)).collect()
}

/// `weight` [N][K][taps] in panels of 32 columns: [panels][taps][K4 * 4][32].
fn pack(config: &Matrix, weight: &[f64]) -> Vec<f64> {
    let (depth, taps) = (config.inputs as usize, (config.kernel[0] * config.kernel[1]) as usize);
    let mut packed = Vec::new();
    for panel in columns(config).chunks(PANEL as usize) {
        for tap in 0..taps {
            for k in 0..vectors(config.inputs) as usize * 4 {
                let value = |n: &Option<usize>| match n {
                    Some(n) if k < depth => weight[(n * depth + k) * taps + tap],
                    _ => 0.0,
                };
                packed.extend(panel.iter().map(value));
            }
        }
    }
    packed
}

/// What a product of `numbers` must give, and how far each may be off in f32.
fn judged(config: &Matrix, numbers: &Numbers) -> (Vec<f64>, Vec<f64>) {
    let values = numbers.reference(config);
    let magnitudes = numbers.absolute().reference(&Matrix { activation: Activation::None, ..*config });
    // A gated result multiplies two sums, each with its error; no activation here is steeper than 1.2.
    let k = if config.gated { 3.0 * K } else { 1.2 * K };
    let curved = config.gated || config.activation != Activation::None;
    let relative = k * EPS + if curved { ACTIVATION } else { 0.0 };
    (values, magnitudes.iter().map(|magnitude| relative * magnitude).collect())
}

/// The class of a product and what may run for it.
fn choices(config: &Matrix, limits: &Limits) -> (Class, Vec<String>) {
    let product = match config {
        _ if config.gated => Product::Gated,
        _ if config.kernel == [1, 1] => Product::Linear,
        _ => Product::Convolution,
    };
    let class = Class::matrix(product, config.rows(), config.types[0]);
    let name = config.call(limits).map_or("matrix", |call| call.variant.stem);
    (class, vec![name.to_owned()])
}

impl Kernel for Matrix {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let numbers = Numbers::of(self);
        let [input, weight, output] = self.types;
        let mut tensors = vec![
            Tensor::given("x", self.inputs, input, &numbers.x),
            Tensor::given("weight", PANEL, weight, &pack(self, &numbers.weight)),
        ];
        let mut operand = |wanted: bool, make: &dyn Fn() -> Tensor| {
            wanted.then(|| {
                tensors.push(make());
                tensors.len() - 1
            })
        };
        let bias = operand(self.bias, &|| {
            let values: Vec<f64> = columns(self).iter().map(|n| n.map_or(0.0, |n| numbers.bias[n])).collect();
            Tensor::given("bias", values.len() as u32, DType::F32, &values)
        });
        let row_bias =
            operand(self.row_bias, &|| Tensor::given("row bias", self.outputs, DType::F32, &numbers.row_bias));
        let residual = operand(self.residual, &|| Tensor::given("residual", self.outputs, output, &numbers.residual));
        let reads = inputs(0, 1, bias, row_bias, residual);
        tensors.push(Tensor::made("out", self.rows() as u32, self.outputs, output));
        let writes = vec![tensors.len() - 1];
        let mut call = self.call(limits)?;
        // The weight stands in for operands that are not there, whole.
        for launch in &mut call.launches {
            launch.ranges.iter_mut().zip(&reads).filter(|(_, index)| **index == 1).for_each(|(range, _)| *range = None);
        }
        Some(Work { tensors, steps: vec![Step { call, reads, writes }] })
    }

    fn expected(&self) -> Vec<Expected> {
        let (values, tolerances) = judged(self, &Numbers::of(self));
        vec![Expected::new("out", self.types[2], values, tolerances)]
    }
    fn choices(&self, limits: &Limits) -> Option<(Class, Vec<String>)> {
        Some(choices(self, limits))
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        self.call(limits).map(|call| vec![call])
    }
}

/// A product too large to be compared whole: some of its rows and columns are, each dot product in full.
pub(super) struct Sampled(pub(super) Matrix);

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
    /// The sampled rows as a linear layer over what the taps read, [rows][K][taps]. For strides of 1.
    fn windows(&self, x: &[f64], rows: &[usize]) -> Vec<f64> {
        let Matrix { input: [height, width], output: [lines, columns], inputs, kernel, padding, .. } = self.0;
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
        self.0.work(limits)
    }

    fn expected(&self) -> Vec<Expected> {
        let config = &self.0;
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
        self.0.choices(limits)
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        self.0.calls(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample is the same as those places of the whole reference.
    #[test]
    fn samples_agree_with_the_whole() {
        let base = super::super::tuning::product(DType::F16, 2, [9, 7], 12, 50);
        for config in [
            Matrix { kernel: [3; 2], padding: [1; 2], ..base },
            Matrix { batch: 1, input: [90, 1], output: [90, 1], gated: true, residual: true, ..base },
        ] {
            let (whole, part) = (&config.expected()[0], &Sampled(config).expected()[0]);
            let places = part.places.as_ref().unwrap();
            assert!(places.len() > 500 && places.contains(&0) && places.contains(&(whole.values.len() - 1)));
            for (place, (value, tolerance)) in places.iter().zip(part.values.iter().zip(&part.tolerances)) {
                assert!((value - whole.values[*place]).abs() <= 1e-12, "{place}");
                assert!((tolerance - whole.tolerances[*place]).abs() <= 1e-12, "{place}");
            }
        }
    }
}
