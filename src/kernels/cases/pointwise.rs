//! Cases of `concat`, `elementwise` and `pixels`.

use super::super::elementwise::{self, Activation, Elementwise};
use super::super::{Limits, concat, pixels};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

struct Concat {
    rows: u32,
    channels: [u32; 2],
    dtype: DType,
}

impl Concat {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let count = |channels: u32| (self.rows * channels) as usize;
        let [a, b] = self.channels;
        [numbers("a", count(a), self.dtype, 0.0, 3.0), numbers("b", count(b), self.dtype, 10.0, 3.0)]
    }
}

impl Kernel for Concat {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let ([a, b], [channels_a, channels_b], dtype) = (self.numbers(), self.channels, self.dtype);
        let tensors = vec![
            Tensor::given("a", channels_a, dtype, &a),
            Tensor::given("b", channels_b, dtype, &b),
            Tensor::made("y", self.rows, channels_a + channels_b, dtype),
        ];
        Some(Work::of(concat::call(self.rows, channels_a, channels_b, dtype, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let ([a, b], [channels_a, channels_b]) = (self.numbers(), self.channels.map(|count| count as usize));
        let values = concat::reference(&a, channels_a, &b, channels_b);
        // A copy loses nothing.
        let tolerances = vec![0.0; values.len()];
        vec![Expected { name: "y", packed: false, places: None, values, tolerances }]
    }
}

struct Pointwise {
    config: Elementwise,
    rows: u32,
    channels: u32,
    types: [DType; 3],
    spread: f64,
}

impl Pointwise {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let count = (self.rows * self.channels) as usize;
        let [a, b, _] = self.types;
        [numbers("a", count, a, 0.1, self.spread), numbers("b", count, b, -0.3, self.spread)]
    }
}

impl Kernel for Pointwise {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let (numbers, [type_a, type_b, type_y]) = (self.numbers(), self.types);
        let mut tensors = vec![Tensor::given("a", self.channels, type_a, &numbers[0])];
        let binary = self.config.scale_b.is_some();
        if binary {
            tensors.push(Tensor::given("b", self.channels, type_b, &numbers[1]));
        }
        tensors.push(Tensor::made("y", self.rows, self.channels, type_y));
        let call = elementwise::call(self.config, self.rows, self.channels, self.types, limits)?;
        let mut work = Work::of(call, tensors, 1);
        if !binary {
            work.steps[0].reads = vec![0, 0];
        }
        Some(work)
    }

    fn expected(&self) -> Vec<Expected> {
        let [a, b] = self.numbers();
        let values = elementwise::reference(self.config, &a, &b);
        let Elementwise { scale_a, scale_b, shift, activation } = self.config;
        let tolerance = |i: usize| {
            let [scale_a, scale_b, shift] = [scale_a, scale_b.unwrap_or(0.0), shift].map(f64::from);
            let sum = (scale_a * a[i]).abs() + (scale_b * b[i]).abs() + shift.abs();
            // Two products and two sums, each rounded once, and no activation steeper than 1.2. A GPU's exp(x) is good to
            // 3 + 2 |x| ulps (Vulkan, precision of exp2), the polynomial of erf to 1.5e-7 of x.
            let curve = match activation {
                Activation::None => 0.0,
                Activation::Gelu => 2e-7 * sum + 8.0 * EPS * values[i].abs(),
                Activation::Relu | Activation::LeakyRelu => 2.0 * EPS * values[i].abs(),
                // The cubic in the exponent errs by a few eps of itself, which at most 80 matter of.
                Activation::GeluTanh => (8.0 + 24.0 * sum.min(6.0).powi(3)) * EPS * values[i].abs() + 1e-33,
                Activation::Silu | Activation::QuickGelu => (8.0 + 8.0 * sum) * EPS * values[i].abs() + 1e-37,
            };
            4.0 * 1.2 * EPS * sum + curve
        };
        let tolerances = (0..values.len()).map(tolerance).collect();
        vec![Expected::new("y", self.types[2], values, tolerances)]
    }
}

/// a * b.
struct Product {
    rows: u32,
    channels: u32,
    dtype: DType,
}

impl Product {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let count = (self.rows * self.channels) as usize;
        [numbers("a", count, self.dtype, 0.5, 2.0), numbers("b", count, self.dtype, -1.0, 3.0)]
    }
}

impl Kernel for Product {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let [a, b] = self.numbers();
        let tensors = vec![
            Tensor::given("a", self.channels, self.dtype, &a),
            Tensor::given("b", self.channels, self.dtype, &b),
            Tensor::made("y", self.rows, self.channels, self.dtype),
        ];
        Some(Work::of(elementwise::product(self.rows, self.channels, [self.dtype; 3], limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let [a, b] = self.numbers();
        let values: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
        // Multiplied by 1 and added to 0 before, which loses nothing, and once rounded.
        let tolerances = values.iter().map(|value| 2.0 * EPS * value.abs()).collect();
        vec![Expected::new("y", self.dtype, values, tolerances)]
    }
}

struct Picture {
    pixels: u32,
    dtype: DType,
    /// A number that is not finite, in the second pixel.
    fault: Option<f64>,
}

impl Picture {
    fn numbers(&self) -> Vec<f64> {
        let mut x = numbers("x", self.pixels as usize * 3, self.dtype, 0.0, 1.3);
        if let Some(fault) = self.fault {
            x[4] = fault;
        }
        x
    }
}

impl Kernel for Picture {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let tensors = vec![
            Tensor::given("x", 3, self.dtype, &self.numbers()),
            Tensor::made("rgba", self.pixels.div_ceil(4), 4, DType::F32),
        ];
        Some(Work::of(pixels::call(self.pixels, self.dtype, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let (mut values, mut tolerances) = (Vec::new(), Vec::new());
        for rgb in self.numbers().chunks_exact(3) {
            values.extend(pixels::reference([rgb[0], rgb[1], rgb[2]]).map(f64::from));
            // Three roundings in f32 of up to 255 move what lies that near a tie to the other side. Which colour stands
            // for NaN is nobody's business, alpha is.
            let tolerance = |v: &f64| {
                let scaled = (v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
                let tie = (scaled.fract() - 0.5).abs() <= 4.0 * EPS * 255.0;
                if v.is_finite() { f64::from(u8::from(tie)) } else { 255.0 }
            };
            tolerances.extend(rgb.iter().map(tolerance).chain([0.0]));
        }
        // The last vector of four pixels is filled with nothing.
        let full = values.len().next_multiple_of(16);
        values.resize(full, 0.0);
        tolerances.resize(full, 0.0);
        vec![Expected { name: "rgba", packed: true, places: None, values, tolerances }]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let joined = [
        ("skip of SD", 96, [320, 640]),
        ("first part not a multiple of four", 65, [5, 9]),
        ("both parts below four", 7, [1, 2]),
        ("second part not a multiple of four", 33, [12, 3]),
    ];
    let joined = joined
        .into_iter()
        .map(|(what, rows, channels)| Case::new("concat", what, dtype, Concat { rows, channels, dtype }));
    let plain = Elementwise { scale_a: 1.0, scale_b: Some(1.0), shift: 0.0, activation: Activation::None };
    let pointwise = |config: Elementwise, rows: u32, channels: u32| Pointwise {
        config,
        rows,
        channels,
        types: [dtype; 3],
        spread: 2.0,
    };
    let one = |activation: Activation| Elementwise { scale_b: None, activation, ..plain };
    let other = if dtype == DType::F32 { DType::F16 } else { DType::F32 };
    let pointwise = [
        ("residual of SD", pointwise(plain, 96, 320)),
        ("time embedding, summed and SiLU", pointwise(Elementwise { activation: Activation::Silu, ..plain }, 2, 1280)),
        (
            "latent scaled and shifted",
            pointwise(Elementwise { scale_a: 5.489, shift: 0.11, ..one(Activation::None) }, 63, 4),
        ),
        ("shift must not reach the padding", pointwise(Elementwise { shift: 2.0, ..one(Activation::None) }, 65, 3)),
        ("GELU", pointwise(one(Activation::Gelu), 19, 37)),
        (
            "quick GELU",
            pointwise(Elementwise { scale_b: Some(-0.5), activation: Activation::QuickGelu, ..plain }, 7, 130),
        ),
        ("GELU by tanh", pointwise(one(Activation::GeluTanh), 19, 37)),
        ("GELU by tanh far out", Pointwise { spread: 200.0, ..pointwise(one(Activation::GeluTanh), 33, 6) }),
        ("ReLU", pointwise(Elementwise { activation: Activation::Relu, ..plain }, 7, 130)),
        ("leaky ReLU", pointwise(Elementwise { activation: Activation::LeakyRelu, ..plain }, 9, 131)),
        ("residual of ESRGAN", pointwise(Elementwise { scale_a: 0.2, ..plain }, 35, 64)),
        ("SiLU far out", Pointwise { spread: 200.0, ..pointwise(one(Activation::Silu), 33, 6) }),
        ("stored as another type", Pointwise { types: [other, dtype, other], ..pointwise(plain, 31, 18) }),
        ("one number", pointwise(plain, 1, 1)),
    ];
    let pointwise = pointwise.into_iter().map(|(what, config)| Case::new("elementwise", what, dtype, config));
    let products = [("embedding by its deviation", 1, 768), ("product must not reach the padding", 9, 7)];
    let products = products
        .into_iter()
        .map(|(what, rows, channels)| Case::new("elementwise", what, dtype, Product { rows, channels, dtype }));
    let pictures = [
        ("a picture", 48 * 32, None),
        ("pixels not a multiple of four", 131, None),
        ("one pixel", 1, None),
        ("NaN", 9, Some(f64::NAN)),
        ("infinity", 9, Some(f64::INFINITY)),
    ];
    let pictures = pictures
        .into_iter()
        .map(|(what, pixels, fault)| Case::new("pixels", what, dtype, Picture { pixels, dtype, fault }));
    joined.chain(pointwise).chain(products).chain(pictures).collect()
}
