//! A finished picture as bytes.

use std::sync::Arc;

use super::stages::execute;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape};
use crate::kernels::{Limits, pixels};
use crate::tensor::{DType, HostTensor};

/// `picture` [1, H, W, 3] from -1 to 1 -> `pixels`, four bytes of each.
pub(super) fn graph([height, width]: [u32; 2], limits: Limits) -> Graph {
    let mut g = Graph::new(DType::F32, limits);
    let picture = g.input("picture", Shape::new(1, height, width, 3), DType::F32);
    let positions = g.shape(picture).positions();
    let quads = Shape::new(1, positions.div_ceil(4), 1, 4);
    match pixels::call(positions, DType::F32, g.limits()) {
        Some(call) => {
            let packed = g.push("pixels", call, vec![picture.into()], quads, DType::F32);
            g.output("pixels", packed);
        }
        None => g.fail(Error::new("the picture does not fit the adapter").at("pixels").found(quads)),
    }
    g
}

/// Rounds on the GPU as numpy does.
pub(super) struct PixelsStage(Executor);

impl PixelsStage {
    /// For pictures of [height, width].
    pub fn new(gpu: &Arc<Gpu>, size: [u32; 2]) -> Result<Self> {
        Ok(Self(execute(gpu, &graph(size, gpu.limits()), &[])?))
    }

    /// Red, green and blue of every pixel of [1, 3, H, W]. Blocks.
    pub fn run(&self, picture: &HostTensor) -> Result<Vec<u8>> {
        self.0.write("picture", &picture.channels_last())?;
        self.0.run();
        let packed = self.0.read_bytes("pixels", (picture.data.len() / 3 * 4) as u64)?;
        Ok(packed.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
    }
}
