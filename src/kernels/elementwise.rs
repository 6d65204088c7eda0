//! `act(scale_a * a + scale_b * b + shift)`: sums, activations, scaling and conversion; and products `a * b`.

use bytemuck::{Pod, Zeroable};

use super::{BATCH, Call, Launch, Limits, Variant, bands, fold, vector_bytes, vectors};
use crate::tensor::DType;

/// A pointwise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x.
    None,
    /// x * sigmoid(x).
    Silu,
    /// x * Phi(x), with the exact Gaussian distribution function.
    Gelu,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// GELU with tanh in place of the error function (transformers' `gelu_new`).
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0.2 x), the slope that ESRGAN takes (arXiv:1809.00219; PyTorch's `LeakyReLU(0.2)`).
    LeakyRelu,
}

impl Activation {
    /// The number that shaders know it by.
    pub fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Silu => 1,
            Activation::Gelu => 2,
            Activation::QuickGelu => 3,
            Activation::GeluTanh => 4,
            Activation::Relu => 5,
            Activation::LeakyRelu => 6,
        }
    }

    /// The same in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + statrs::function::erf::erf(x / std::f64::consts::SQRT_2)),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::LeakyRelu => x.max(0.2 * x),
        }
    }
}

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elementwise {
    /// Factor of a.
    pub scale_a: f32,
    /// Factor of b; `None` when there is no b.
    pub scale_b: Option<f32>,
    /// Added before the activation.
    pub shift: f32,
    /// Applied last.
    pub activation: Activation,
}

/// The uniform of `shaders/elementwise.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    width: u32,
    tail: u32,
    a_base: u32,
    b_base: u32,
    y_base: u32,
    pad: u32,
    scale_a: f32,
    scale_b: f32,
    shift: f32,
    pad1: f32,
}

/// Over [rows, channels]; `types` are those of a, b and y. `None` when one row is too large for a binding.
pub fn call(config: Elementwise, rows: u32, channels: u32, types: [DType; 3], limits: &Limits) -> Option<Call> {
    let width = vectors(channels);
    let sizes = types.map(|dtype| (u64::from(width) * vector_bytes(dtype), vector_bytes(dtype)));
    let launches =
        bands::rows(u64::from(rows), &sizes, u64::from(width), limits)?.into_iter().map(|(begin, end, parts)| {
            let params = Params {
                begin: begin as u32 * width,
                end: end as u32 * width,
                width,
                tail: channels - (width - 1) * 4,
                a_base: parts[0].base,
                b_base: parts[1].base,
                y_base: parts[2].base,
                pad: 0,
                scale_a: config.scale_a,
                scale_b: config.scale_b.unwrap_or(0.0),
                shift: config.shift,
                pad1: 0.0,
            };
            Launch {
                params: bytemuck::bytes_of(&params).to_vec(),
                workgroups: fold(((end - begin) * u64::from(width)).div_ceil(BATCH), limits),
                ranges: parts.iter().map(|part| Some((part.offset, part.size))).collect(),
            }
        });
    let binary = u32::from(config.scale_b.is_some());
    let variant = Variant {
        stem: "elementwise",
        enables: vec![],
        constants: vec![("BINARY", binary), ("ACTIVATION", config.activation.code())],
        types: vec![("A", types[0]), ("B", types[1]), ("Y", types[2])],
    };
    let bytes = sizes.iter().map(|(row, _)| row * u64::from(rows)).sum();
    Some(Call { variant, launches: launches.collect(), flops: 3 * u64::from(rows) * u64::from(channels), bytes })
}

/// a * b, as [`call`].
pub fn product(rows: u32, channels: u32, types: [DType; 3], limits: &Limits) -> Option<Call> {
    let config = Elementwise { scale_a: 1.0, scale_b: Some(1.0), shift: 0.0, activation: Activation::None };
    let mut call = call(config, rows, channels, types, limits)?;
    call.variant.constants[0] = ("BINARY", 2);
    Some(call)
}

/// The same in f64.
pub fn reference(config: Elementwise, a: &[f64], b: &[f64]) -> Vec<f64> {
    let scale_b = config.scale_b.map(f64::from);
    let other = |i: usize| scale_b.map_or(0.0, |scale| scale * b[i]);
    let sum = |i: usize| f64::from(config.scale_a) * a[i] + other(i) + f64::from(config.shift);
    (0..a.len()).map(|i| config.activation.apply(sum(i))).collect()
}
