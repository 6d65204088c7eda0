//! Features of pictures under Inception v3, with the preparation of each of the usual evaluators.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::pictures::{self, Pixels};
use super::statistics::Features;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape, Value};
use crate::kernels::Limits;
use crate::kernels::elementwise::Activation;
use crate::kernels::resampling::{Filter, Resampling, Resize};
use crate::models::nn;
use crate::models::vision::inception::{self, Depth, SIDE};
use crate::tensor::{DType, HostTensor};
use crate::weights::{Claims, Source, Weights, pack};

/// Whose preparation a picture gets; the network is the same. Figures of different ones must not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// pytorch-fid: bilinear without antialiasing, scaled by 2 x / 255 - 1.
    PytorchFid,
    /// clean-fid's mode "clean": Pillow's antialiased bicubic in floating point, cut to 0..255, (x - 128) / 128.
    CleanFid,
    /// torchmetrics: PyTorch's antialiased bilinear, (x - 128) / 128.
    Torchmetrics,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PytorchFid, Self::CleanFid, Self::Torchmetrics];

    /// The program that prepares pictures this way.
    pub fn name(self) -> &'static str {
        match self {
            Self::PytorchFid => "pytorch-fid",
            Self::CleanFid => "clean-fid",
            Self::Torchmetrics => "torchmetrics",
        }
    }

    /// How pictures are resized, in words.
    pub fn resize_words(self) -> &'static str {
        match self {
            Self::PytorchFid => "bilinear without antialiasing",
            Self::CleanFid => "antialiased bicubic (Pillow's, in floating point)",
            Self::Torchmetrics => "antialiased bilinear (PyTorch's)",
        }
    }

    /// Whether folders within a folder are searched, too.
    pub fn deep(self) -> bool {
        self == Self::CleanFid
    }

    fn resize(self) -> Resize {
        match self {
            Self::PytorchFid => Resize::Bilinear { align_corners: false },
            Self::CleanFid => Resize::Pillow(Filter::Bicubic),
            Self::Torchmetrics => Resize::Antialias(Filter::Bilinear),
        }
    }

    /// picture [1, H, W, 3] in 0..255 -> [1, 299, 299, 3] as the network takes it.
    pub fn prepare(self, g: &mut Graph, picture: Value) -> Value {
        let from = g.shape(picture);
        let tables = Resampling::new(self.resize(), [from.height, from.width], [SIDE, SIDE]);
        let x = nn::resample(g, "resize", picture, &tables, DType::F32);
        match self {
            Self::PytorchFid => nn::scale(g, "normalise", x, 2.0 / 255.0, -1.0),
            Self::CleanFid => {
                // min(x, 255) = 255 - max(255 - x, 0).
                let above = nn::activate(g, "cut below", x, Activation::Relu);
                let headroom = nn::scale(g, "headroom", above, -1.0, 255.0);
                let headroom = nn::activate(g, "cut above", headroom, Activation::Relu);
                nn::scale(g, "normalise", headroom, -1.0 / 128.0, 127.0 / 128.0)
            }
            Self::Torchmetrics => nn::scale(g, "normalise", x, 1.0 / 128.0, -1.0),
        }
    }
}

/// The graph for `batch` pictures: input `pixels` [B, 299, 299, 3], output `features` [B, 1, 1, C].
///
/// # Errors
/// A tensor that is missing, unexpected or of another shape, also one behind `depth`.
pub fn graph(source: &dyn Source, limits: Limits, batch: u32, depth: Depth) -> Result<Graph> {
    let build = |depth: Depth, claims: &Claims| {
        let w = Weights::new(0, source, claims);
        let mut g = Graph::new(DType::F32, limits);
        let x = g.input("pixels", Shape::new(batch, SIDE, SIDE, 3), DType::F32);
        let features = inception::inception(&mut g, &w, x, depth);
        g.output("features", features);
        g
    };
    let all = Claims::default();
    let whole = build(Depth::Final, &all);
    all.finish(source)?;
    Ok(if depth == Depth::Final { whole } else { build(depth, &Claims::default()) })
}

/// Sizes of pictures whose resizing stays compiled at a time.
const SIZES: usize = 8;

/// The network on an adapter.
pub struct Extractor {
    gpu: Arc<Gpu>,
    network: Executor,
    /// By height and width; the last used one last.
    resizers: Vec<([u32; 2], Executor)>,
    variant: Variant,
    depth: Depth,
    batch: usize,
}

impl Extractor {
    /// Loads the network; `batch` pictures run together.
    ///
    /// # Errors
    /// As [`graph`]; no room on the adapter.
    pub fn new(gpu: &Arc<Gpu>, source: &dyn Source, variant: Variant, depth: Depth, batch: u32) -> Result<Self> {
        let graph = graph(source, gpu.limits(), batch, depth)?;
        let network = Executor::new(gpu, &graph, |spec, sink| pack::pack(spec, Some(source), sink))?;
        let (gpu, batch) = (Arc::clone(gpu), batch as usize);
        Ok(Self { gpu, network, resizers: Vec::new(), variant, depth, batch })
    }

    /// Features of the pictures in `files`, in their order; `progress` is told how many are done. Blocks.
    ///
    /// # Errors
    /// A file that is no picture; a feature that is not finite.
    pub fn features(&mut self, files: &[PathBuf], progress: &mut dyn FnMut(usize)) -> Result<Features> {
        let channels = self.depth.channels() as usize;
        let mut values = Vec::with_capacity(files.len() * channels);
        let mut waiting = decode(files.chunks(self.batch).next().unwrap_or_default());
        for (number, chunk) in files.chunks(self.batch).enumerate() {
            progress(number * self.batch);
            for (row, picture) in waiting?.iter().enumerate() {
                self.place(row as u32, picture)?;
            }
            let _ = self.network.run();
            // The next files are read while the adapter works.
            waiting = decode(files.chunks(self.batch).nth(number + 1).unwrap_or_default());
            let made = self.network.read("features")?;
            let made = &made.data[..chunk.len() * channels];
            if let Some(at) = made.iter().position(|value| !value.is_finite()) {
                let file = chunk[at / channels].display();
                return Err(Error::new("the features of a picture are not finite").at(file).expected("numbers"));
            }
            values.extend_from_slice(made);
        }
        progress(files.len());
        Ok(Features { channels, values })
    }

    /// Resizes a picture into its place in the batch, on the adapter.
    fn place(&mut self, row: u32, picture: &Pixels) -> Result<()> {
        let size = [picture.height, picture.width];
        let known = self.resizers.iter().position(|(known, _)| *known == size);
        let resizer = match known {
            Some(index) => self.resizers.remove(index).1,
            None => self.resizer(size)?,
        };
        let data = picture.rgb.iter().map(|byte| f32::from(*byte)).collect();
        let shape = vec![1, picture.height as usize, picture.width as usize, 3];
        resizer.write("picture", &HostTensor { shape, data })?;
        let _ = resizer.run();
        self.network.copy_row("pixels", row, &resizer.resident("pixels")?)?;
        if self.resizers.len() >= SIZES {
            self.resizers.remove(0);
        }
        self.resizers.push((size, resizer));
        Ok(())
    }

    fn resizer(&self, [height, width]: [u32; 2]) -> Result<Executor> {
        let mut g = Graph::new(DType::F32, self.gpu.limits());
        // Halves hold whole numbers up to 2048.
        let picture = g.input("picture", Shape::new(1, height, width, 3), DType::F16);
        let pixels = self.variant.prepare(&mut g, picture);
        g.output("pixels", pixels);
        Executor::new(&self.gpu, &g, |spec, sink| pack::pack(spec, None, sink))
    }
}

fn decode(files: &[PathBuf]) -> Result<Vec<Pixels>> {
    files.par_iter().map(|file| pictures::read(file)).collect()
}

/// How many pictures to run together so that few places of the last batch stay empty: at most `most`, for sets of these sizes.
pub fn even_batch(most: u32, sets: &[usize]) -> u32 {
    let largest = sets.iter().copied().max().unwrap_or(0).max(1);
    let batches = largest.div_ceil(most.max(1) as usize);
    largest.div_ceil(batches) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_even() {
        for (most, sets, want) in
            [(32, vec![40], 20), (32, vec![10, 33], 17), (4, vec![3, 2], 3), (1, vec![9], 1), (8, vec![], 1)]
        {
            assert_eq!(even_batch(most, &sets), want, "{most} {sets:?}");
        }
    }
}
