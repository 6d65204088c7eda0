//! Element types and host tensors.

use crate::error::{Error, Result};

/// An element type of a checkpoint's tensors or of a GPU value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single (files only; converted on loading).
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The usual short name.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }
}

/// A tensor in host memory: row-major f32, the last axis fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Axis lengths, slowest first.
    pub shape: Vec<usize>,
    /// `shape`'s product many values.
    pub data: Vec<f32>,
}

impl HostTensor {
    /// Joins a shape and its values; an error if their lengths disagree.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let expected: usize = shape.iter().product();
        if expected != data.len() {
            return Err(Error::new("tensor length")
                .at(format!("shape {shape:?}"))
                .expected(expected)
                .found(data.len()));
        }
        Ok(Self { shape, data })
    }

    /// The same values with every axis of a [B, C, H, W] tensor moved to [B, H, W, C].
    pub fn channels_last(&self) -> Self {
        let [b, c, h, w] = self.shape4();
        let mut data = Vec::with_capacity(self.data.len());
        for n in 0..b {
            for p in 0..h * w {
                data.extend((0..c).map(|k| self.data[(n * c + k) * h * w + p]));
            }
        }
        Self { shape: vec![b, h, w, c], data }
    }

    /// The same values with every axis of a [B, H, W, C] tensor moved to [B, C, H, W].
    pub fn channels_first(&self) -> Self {
        let [b, h, w, c] = self.shape4();
        let mut data = Vec::with_capacity(self.data.len());
        for n in 0..b {
            for k in 0..c {
                data.extend((0..h * w).map(|p| self.data[(n * h * w + p) * c + k]));
            }
        }
        Self { shape: vec![b, c, h, w], data }
    }

    fn shape4(&self) -> [usize; 4] {
        self.shape.clone().try_into().unwrap_or_else(|_| panic!("a picture has four axes, not {:?}", self.shape))
    }
}
