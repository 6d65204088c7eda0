//! Operands that a kernel reads as textures: their bytes are copied into scratch textures before each launch.
//!
//! Kernels for CPU adapters ask for it (`kernels::STAGED`): Mesa's llvmpipe reads texels with vector instructions but
//! storage buffers lane by lane. A tensor's vector `i` is the texel `(i % WIDTH, i / WIDTH)`.

use std::collections::HashMap;

use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Texture};
use crate::tensor::DType;

/// Texels in one row of a scratch texture; `shaders/*_lanes.wgsl` know it too.
pub(crate) const WIDTH: u64 = 2048;

/// A part of a buffer that holds vectors of four.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// The buffer.
    pub buffer: Buffer,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Element type.
    pub dtype: DType,
}

/// A copy to make before a launch.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    part: Part,
    texture: Texture,
}

/// Scratch textures, one for each binding and element type, large enough for every launch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    heights: HashMap<(usize, DType), u64>,
    textures: HashMap<(usize, DType), Texture>,
}

fn texel_bytes(dtype: DType) -> u64 {
    4 * dtype.bytes() as u64
}

impl Scratch {
    /// Notes that binding `position` must hold `size` bytes of vectors of `dtype`.
    pub fn reserve(&mut self, position: usize, size: u64, dtype: DType) {
        let height = size.div_ceil(WIDTH * texel_bytes(dtype));
        let entry = self.heights.entry((position, dtype)).or_insert(1);
        *entry = height.max(*entry);
    }

    /// Bytes of all textures together.
    pub fn bytes(&self) -> u64 {
        self.heights.iter().map(|((_, dtype), height)| height * WIDTH * texel_bytes(*dtype)).sum()
    }

    /// Makes the textures.
    pub fn allocate(&mut self, gpu: &Gpu) -> Result<()> {
        for (&(position, dtype), &height) in &self.heights {
            let descriptor = wgpu::TextureDescriptor {
                label: Some("staged operand"),
                size: wgpu::Extent3d { width: WIDTH as u32, height: height as u32, depth_or_array_layers: 1 },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: match dtype {
                    DType::F32 => wgpu::TextureFormat::Rgba32Float,
                    DType::F16 | DType::BF16 => wgpu::TextureFormat::Rgba16Float,
                },
                usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
                view_formats: &[],
            };
            let texture = gpu.texture(&descriptor, height * WIDTH * texel_bytes(dtype))?;
            self.textures.insert((position, dtype), texture);
        }
        gpu.check()
    }

    /// The texture that binding `position` reads `part` from; the copy into it joins `stages` unless it is there.
    pub fn stage(&self, position: usize, part: &Part, stages: &mut Vec<Stage>) -> wgpu::TextureView {
        let view = wgpu::TextureViewDescriptor::default();
        if let Some(same) = stages.iter().find(|stage| stage.part == *part) {
            return same.texture.create_view(&view);
        }
        let texture = self.textures[&(position, part.dtype)].clone();
        stages.push(Stage { part: part.clone(), texture });
        stages[stages.len() - 1].texture.create_view(&view)
    }
}

impl Stage {
    /// Records the copy: whole rows of texels, then the rest of the last one.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let Part { buffer, offset, size, dtype } = &self.part;
        let row_bytes = WIDTH * texel_bytes(*dtype);
        let (rows, rest) = (size / row_bytes, size % row_bytes / texel_bytes(*dtype));
        let mut copy = |first_row: u64, width: u64, height: u64| {
            let layout = wgpu::TexelCopyBufferLayout {
                offset: offset + first_row * row_bytes,
                bytes_per_row: (height > 1).then_some(row_bytes as u32),
                rows_per_image: None,
            };
            encoder.copy_buffer_to_texture(
                wgpu::TexelCopyBufferInfo { buffer, layout },
                wgpu::TexelCopyTextureInfo {
                    origin: wgpu::Origin3d { x: 0, y: first_row as u32, z: 0 },
                    ..self.texture.as_image_copy()
                },
                wgpu::Extent3d { width: width as u32, height: height as u32, depth_or_array_layers: 1 },
            );
        };
        if rows > 0 {
            copy(0, WIDTH, rows);
        }
        if rest > 0 {
            copy(rows, rest, 1);
        }
    }
}
