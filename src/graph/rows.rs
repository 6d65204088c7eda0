//! Tensors as the host has them and as they are stored on the GPU.

use super::Shape;
use crate::tensor::{DType, HostTensor};

/// Rows of C values as stored: padded with zeros to a multiple of four, in `dtype`.
pub(super) fn encode_rows(data: &[f32], shape: Shape, dtype: DType) -> Vec<u8> {
    let channels = shape.channels as usize;
    let padded = channels.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(shape.rows() as usize * padded * dtype.bytes());
    for row in data.chunks_exact(channels) {
        let values = row.iter().copied().chain(std::iter::repeat_n(0.0, padded - channels));
        match dtype {
            DType::F32 => values.for_each(|value| bytes.extend(value.to_le_bytes())),
            DType::F16 | DType::BF16 => values.for_each(|value| bytes.extend(half::f16::from_f32(value).to_le_bytes())),
        }
    }
    bytes
}

/// The same back: [B, H, W, C] in f32.
pub(super) fn decode_rows(bytes: &[u8], shape: Shape, dtype: DType) -> HostTensor {
    let channels = shape.channels as usize;
    let padded = channels.next_multiple_of(4);
    let mut data = Vec::with_capacity(shape.rows() as usize * channels);
    for row in bytes.chunks_exact(padded * dtype.bytes()) {
        match dtype {
            DType::F32 => {
                data.extend(row.chunks_exact(4).take(channels).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            DType::F16 | DType::BF16 => {
                data.extend(
                    row.chunks_exact(2).take(channels).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
                );
            }
        }
    }
    let axes = [shape.batch, shape.height, shape.width, shape.channels];
    HostTensor { shape: axes.iter().map(|axis| *axis as usize).collect(), data }
}
