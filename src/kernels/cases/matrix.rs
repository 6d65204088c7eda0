//! What the cases of `matmul` and `conv2d` share: numbers for a [`Matrix`] and its tolerances.

use super::super::elementwise::Activation;
use super::super::matrix::{Matrix, Operands, PANEL, Run, Slice, gated_rows};
use super::super::matrix_reduce::{self, Partials};
use super::super::tuning::Class;
use super::super::{Call, Limits, vectors};
use super::{Case, EPS, Expected, Kernel, Step, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// Rounding errors of a sum of n terms grow like a random walk, about sqrt(n) eps sum|terms| / 2 at worst seen; n is
/// below 3000 in every case, and the blocks in which the kernels sum shorten it further.
const K: f64 = 32.0;
/// The polynomial of erf is good to 1.5e-7, exp on a GPU to a few ulps: relative to what the activation multiplies.
const ACTIVATION: f64 = 1e-6;

/// The numbers of a product, as the reference takes them.
pub(super) struct Numbers {
    pub(super) x: Vec<f64>,
    pub(super) weight: Vec<f64>,
    pub(super) bias: Vec<f64>,
    pub(super) row_bias: Vec<f64>,
    pub(super) residual: Vec<f64>,
}

impl Numbers {
    pub(super) fn of(config: &Matrix) -> Self {
        let rows = config.rows() as usize;
        let pixels = (config.batch * config.input[0] * config.input[1]) as usize;
        let columns = (config.outputs << u32::from(config.gated)) as usize;
        let channels = (config.inputs + config.second) as usize;
        let row_channels = config.row_bias.map_or(0, |slice| slice.channels) as usize;
        let fan = ((config.inputs + config.second) * config.kernel[0] * config.kernel[1]) as usize;
        let [input, weight, output] = config.types;
        let batch = config.batch as usize;
        Self {
            x: numbers("x", pixels * channels, input, 0.25, 1.5),
            weight: numbers("weight", columns * fan, weight, 0.0, 1.7 / (fan as f64).sqrt()),
            bias: numbers("bias", columns, DType::F32, 0.1, 0.5),
            row_bias: numbers("row bias", batch * row_channels, DType::F32, -0.2, 0.7),
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

/// The logical channel of every physical k.
fn channels(config: &Matrix) -> Vec<Option<usize>> {
    let part = |first: u32, count: u32| {
        let stored = vectors(count) * 4;
        (0..stored).map(move |k| (k < count).then_some((first + k) as usize))
    };
    part(0, config.inputs).chain(part(config.inputs, config.second)).collect()
}

/// `weight` [N][K][taps] in panels of 32 columns: [panels][taps][K4 * 4][32].
fn pack(config: &Matrix, weight: &[f64]) -> Vec<f64> {
    let depth = (config.inputs + config.second) as usize;
    let taps = (config.kernel[0] * config.kernel[1]) as usize;
    let mut packed = Vec::new();
    for panel in columns(config).chunks(PANEL as usize) {
        for tap in 0..taps {
            for k in channels(config) {
                let value = |n: &Option<usize>| match (n, k) {
                    (Some(n), Some(k)) => weight[(n * depth + k) * taps + tap],
                    _ => 0.0,
                };
                packed.extend(panel.iter().map(value));
            }
        }
    }
    packed
}

/// The calls of a product over operands that are indices into `tensors`.
fn steps(run: Run, operands: Operands<usize>, tensors: &mut Vec<Tensor>, config: &Matrix) -> Vec<Step> {
    let rows = config.rows() as u32;
    let mut made = |name, rows, channels, dtype| {
        tensors.push(Tensor::made(name, rows, channels, dtype));
        tensors.len() - 1
    };
    let mut steps = match run.reduce {
        None => vec![Step { call: run.call, reads: operands.inputs(), writes: Vec::new() }],
        Some((partials, reduce)) => {
            let sums = made("partial sums", partials.splits * partials.rows, partials.columns, DType::F32);
            let first = Step { call: run.call, reads: operands.partial_inputs(), writes: vec![sums] };
            vec![first, Step { call: reduce, reads: operands.reduce_inputs(sums), writes: Vec::new() }]
        }
    };
    let out = made("out", rows, config.outputs, config.types[2]);
    steps.iter_mut().filter(|step| step.writes.is_empty()).for_each(|step| step.writes = vec![out]);
    // The weight stands in for operands that are not there, whole.
    for step in &mut steps {
        for launch in &mut step.call.launches {
            let ranges = launch.ranges.iter_mut().zip(&step.reads);
            ranges.filter(|(_, index)| **index == operands.weight).for_each(|(range, _)| *range = None);
        }
    }
    steps
}

/// The sum of a product's terms as they are, when all numbers are positive.
fn plain(config: &Matrix) -> Matrix {
    Matrix { activation: Activation::None, scale: config.scale.abs(), ..*config }
}

/// What a product of `numbers` must give, and how far each may be off in f32.
pub(super) fn judged(config: &Matrix, numbers: &Numbers) -> (Vec<f64>, Vec<f64>) {
    let values = numbers.reference(config);
    let magnitudes = numbers.absolute().reference(&plain(config));
    // A gated result multiplies two sums, each with its error; no activation here is steeper than 1.2.
    let k = if config.gated { 3.0 * K } else { 1.2 * K };
    let curved = config.gated || config.activation != Activation::None;
    let relative = k * EPS + if curved { ACTIVATION } else { 0.0 };
    (values, magnitudes.iter().map(|magnitude| relative * magnitude).collect())
}

/// The tensors of a product that are given, and which is which.
pub(super) fn given(config: &Matrix) -> (Vec<Tensor>, Operands<usize>) {
    let numbers = Numbers::of(config);
    let [input, weight, output] = config.types;
    let width = (config.inputs + config.second) as usize;
    let part = |from: usize, to: usize| -> Vec<f64> {
        numbers.x.chunks_exact(width).flat_map(|row| row[from..to].iter().copied()).collect()
    };
    let inputs = config.inputs as usize;
    let mut tensors = vec![
        Tensor::given("x", config.inputs, input, &part(0, inputs)),
        Tensor::given("weight", PANEL, weight, &pack(config, &numbers.weight)),
    ];
    let mut operand = |wanted: bool, make: &dyn Fn() -> Tensor| {
        wanted.then(|| {
            tensors.push(make());
            tensors.len() - 1
        })
    };
    let second = operand(config.second > 0, &|| Tensor::given("second", config.second, input, &part(inputs, width)));
    let bias = operand(config.bias, &|| {
        let values: Vec<f64> = columns(config).iter().map(|n| n.map_or(0.0, |n| numbers.bias[n])).collect();
        Tensor::given("bias", values.len() as u32, DType::F32, &values)
    });
    let slice = config.row_bias.map_or(0, |slice| slice.channels);
    let row_bias = operand(slice > 0, &|| Tensor::given("row bias", slice, DType::F32, &numbers.row_bias));
    let residual = operand(config.residual, &|| Tensor::given("residual", config.outputs, output, &numbers.residual));
    let operands = Operands { x: 0, second, weight: 1, bias, row_bias, residual };
    (tensors, operands)
}

/// A product's work over what is given.
pub(super) fn work(
    (mut tensors, operands): (Vec<Tensor>, Operands<usize>),
    config: &Matrix,
    limits: &Limits,
) -> Option<Work> {
    let steps = steps(config.call(limits)?, operands, &mut tensors, config);
    Some(Work { tensors, steps })
}

impl Kernel for Matrix {
    fn work(&self, limits: &Limits) -> Option<Work> {
        work(given(self), self, limits)
    }

    fn expected(&self) -> Vec<Expected> {
        let (values, tolerances) = judged(self, &Numbers::of(self));
        vec![Expected::new("out", self.types[2], values, tolerances)]
    }

    fn choices(&self, limits: &Limits) -> Option<(Class, Vec<String>)> {
        Some((self.class(), self.candidates(limits).iter().map(ToString::to_string).collect()))
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        let Run { call, reduce } = self.call(limits)?;
        Some([call].into_iter().chain(reduce.map(|(_, call)| call)).collect())
    }
}

/// The second half of a split product by itself, over partial sums that are given.
struct Reduce {
    config: Matrix,
    partials: Partials,
}

impl Reduce {
    fn sums(&self) -> Vec<f64> {
        let Partials { splits, rows, columns } = self.partials;
        numbers("partial sums", (splits * rows * columns) as usize, DType::F32, 0.1, 1.3)
    }

    fn bias(&self, numbers: &Numbers) -> Vec<f64> {
        let physical = columns(&self.config).into_iter().map(|n| n.map_or(0.0, |n| numbers.bias[n]));
        physical.chain(std::iter::repeat(0.0)).take(self.partials.columns as usize).collect()
    }
}

impl Kernel for Reduce {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let config = &self.config;
        let numbers = Numbers::of(config);
        let mut tensors = vec![
            Tensor::given("partial sums", self.partials.columns, DType::F32, &self.sums()),
            Tensor::given("bias", self.partials.columns, DType::F32, &self.bias(&numbers)),
        ];
        let row_bias = config.row_bias.map(|slice| {
            tensors.push(Tensor::given("row bias", slice.channels, DType::F32, &numbers.row_bias));
            tensors.len() - 1
        });
        let residual = config.residual.then(|| {
            tensors.push(Tensor::given("residual", config.outputs, config.types[2], &numbers.residual));
            tensors.len() - 1
        });
        let largest = tensors.iter().map(Tensor::size).max().unwrap_or(0) as u64;
        tensors.push(Tensor::made("out", config.rows() as u32, config.outputs, config.types[2]));
        let reads = matrix_reduce::inputs(0, Some(1), row_bias, residual, 0);
        let call = matrix_reduce::call(config, self.partials, limits);
        let steps = vec![Step { call, reads, writes: vec![tensors.len() - 1] }];
        (largest <= limits.binding).then_some(Work { tensors, steps })
    }

    fn expected(&self) -> Vec<Expected> {
        let numbers = Numbers::of(&self.config);
        let (sums, bias) = (self.sums(), self.bias(&numbers));
        let values = |config: &Matrix, numbers: &Numbers, sums: &[f64], bias: &[f64]| {
            matrix_reduce::reference(config, self.partials, sums, bias, &numbers.row_bias, &numbers.residual)
        };
        let magnitudes = values(&plain(&self.config), &numbers.absolute(), &absolute(&sums), &absolute(&bias));
        // At most 8 parts, two biases, a residual and an activation no steeper than 1.2, or a gate: 3 times that.
        let relative = 3.0 * 12.0 * EPS + ACTIVATION;
        let tolerances = magnitudes.iter().map(|magnitude| relative * magnitude).collect();
        vec![Expected::new("out", self.config.types[2], values(&self.config, &numbers, &sums, &bias), tolerances)]
    }
}

/// Cases of `matrix_reduce`: epilogues over given partial sums, rows and columns behind the product's included.
pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let plain = Matrix {
        batch: 2,
        input: [5, 7],
        output: [5, 7],
        inputs: 64,
        second: 0,
        outputs: 76,
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
        upsample: false,
        activation: Activation::None,
        scale: 1.0,
        bias: true,
        row_bias: Some(Slice { channels: 76, first: 0 }),
        residual: true,
        gated: false,
        types: [dtype; 3],
    };
    let all = [
        ("biases and residual", plain, [2, 96, 128]),
        (
            "slice of a wider row bias",
            Matrix { row_bias: Some(Slice { channels: 163, first: 44 }), ..plain },
            [4, 70, 96],
        ),
        ("gated", Matrix { gated: true, row_bias: None, residual: false, ..plain }, [8, 128, 192]),
        ("SiLU", Matrix { activation: Activation::Silu, row_bias: None, ..plain }, [3, 70, 160]),
        ("leaky ReLU, scaled", Matrix { activation: Activation::LeakyRelu, scale: 0.2, ..plain }, [2, 71, 96]),
    ];
    let case = |(what, config, [splits, rows, columns]): (&str, Matrix, [u32; 3])| {
        let partials = Partials { splits, rows, columns };
        Case::new("matrix_reduce", what, dtype, Reduce { config, partials })
    };
    all.into_iter().map(case).collect()
}
