//! The decoding stage on the GPU: the VAE's decoder and the rounding to pixels, whole or in bands of rows.

use std::str::FromStr;
use std::sync::Arc;

use super::denoise::DenoiseStage;
use super::request::Settings;
use super::stages::execute;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::Gpu;
use crate::graph::executor::{Executor, Resident};
use crate::graph::footprint::{Footprint, footprint};
use crate::graph::{Graph, Shape};
use crate::kernels::{Limits, pixels};
use crate::models::decoder::vae;
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};
use crate::weights::{Claims, Weights};

/// The least and the most rows of a band: few cost work at the borders twice, many cost memory.
const BAND_ROWS: [u32; 2] = [32, 64];

/// Whether the decoder's blocks run in bands of rows, which takes less than half the memory, about a third more
/// arithmetic, and changes nothing in the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiling {
    /// Where the decoder would not fit otherwise: for the adapter's limits, beside what else is loaded within this many
    /// bytes, or when the adapter has no room for a buffer.
    Auto(Option<u64>),
    /// Always.
    On,
    /// Never.
    Off,
}

impl Default for Tiling {
    fn default() -> Self {
        Self::Auto(None)
    }
}

impl Tiling {
    /// As the word of `--vae-tiling` says, with the budget that the environment's `SCUMBLE_MEMORY_BUDGET=BYTES` sets.
    ///
    /// # Errors
    /// For another word than auto, on or off, and for a budget that is no number.
    pub fn from_environment(word: &str) -> Result<Self> {
        let budget = match std::env::var("SCUMBLE_MEMORY_BUDGET") {
            Err(_) => None,
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some(bytes.parse().map_err(|_| {
                Error::usage("memory budget")
                    .at("SCUMBLE_MEMORY_BUDGET")
                    .expected("a number of bytes")
                    .found(format!("{bytes:?}"))
            })?),
        };
        Ok(match Self::from_str(word)? {
            Self::Auto(_) => Self::Auto(budget),
            fixed => fixed,
        })
    }
}

impl FromStr for Tiling {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "auto" => Ok(Self::Auto(None)),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(Error::usage("unknown tiling").at("--vae-tiling").expected("auto, on or off").found(word)),
        }
    }
}

/// The VAE's decoder.
pub(super) struct DecodeStage {
    executor: Executor,
    picture: Shape,
    tiled: bool,
}

/// A decoder's graph, what it takes, and whether it runs in bands.
pub(super) struct Decoder {
    pub graph: Graph,
    pub footprint: Footprint,
    pub tiled: bool,
}

impl Decoder {
    /// The most bytes at any time, the finished picture's way to the host included.
    pub fn peak(&self, settings: &Settings) -> u64 {
        self.footprint.peak().max(self.footprint.loaded() + DecodeStage::readback(settings))
    }

    fn fits(&self) -> bool {
        self.graph.fault().is_none()
    }
}

impl DecodeStage {
    /// SDXL's and the x4 upscaler's autoencoders overflow f16 (their configs say `force_upcast`): they run in f32.
    fn precision(checkpoint: &Checkpoint, precision: DType) -> DType {
        let wide = matches!(checkpoint.class, PipelineClass::StableDiffusionXl | PipelineClass::LatentUpscaler);
        let upcast = wide && checkpoint.vae.config.force_upcast;
        if upcast { DType::F32 } else { precision }
    }

    /// Rows of a band: a thirty-second of the picture.
    fn band_rows(settings: &Settings) -> u32 {
        (settings.height / 32).clamp(BAND_ROWS[0], BAND_ROWS[1]) / 2 * 2
    }

    /// Bytes of the packed picture on its way to the host.
    pub fn readback(settings: &Settings) -> u64 {
        u64::from(settings.width) * u64::from(settings.height) * 4
    }

    /// The decoder's graph; in bands where `tiled` and the decoder enlarges anything.
    pub fn build(
        checkpoint: &Checkpoint,
        limits: Limits,
        precision: DType,
        settings: &Settings,
        tiled: bool,
    ) -> Result<Graph> {
        let config = &checkpoint.vae.config;
        let mut g = Graph::new(Self::precision(checkpoint, precision), limits);
        let source = checkpoint.vae.weights.as_ref();
        let claims = Claims::default();
        let w = Weights::new(0, source, &claims);
        let latent = DenoiseStage::latent_shape(checkpoint, settings);
        let latent = g.input("latent", latent, DType::F32);
        let rows = tiled.then(|| Self::band_rows(settings));
        let banded = rows.and_then(|rows| vae::decode_in_bands(&mut g, &w, config, latent, rows));
        let picture = match banded {
            Some(picture) => picture,
            None => vae::decode(&mut g, &w, config, latent),
        };
        g.output("image", picture);
        let shape = g.shape(picture);
        let dtype = g.dtype(picture);
        let quads = Shape::new(1, shape.positions().div_ceil(4), 1, 4);
        match pixels::call(shape.positions(), dtype, g.limits()) {
            Some(call) => {
                let packed = g.push("pixels", call, vec![picture.into()], quads, DType::F32);
                g.output("pixels", packed);
            }
            None => g.fail(Error::new("the picture does not fit the adapter").at("pixels").found(shape)),
        }
        claims.finish(source)?;
        Ok(g)
    }

    /// The graph that `tiling` chooses where `beside` bytes are taken by what else is loaded.
    pub fn choose(
        checkpoint: &Checkpoint,
        limits: Limits,
        precision: DType,
        settings: &Settings,
        tiling: Tiling,
        beside: u64,
    ) -> Result<Decoder> {
        let decoder = |tiled: bool| {
            let graph = Self::build(checkpoint, limits, precision, settings, tiled)?;
            Ok::<_, Error>(Decoder { footprint: footprint(&graph), graph, tiled })
        };
        let budget = match tiling {
            Tiling::On => return decoder(true),
            Tiling::Off => return decoder(false),
            Tiling::Auto(budget) => budget.unwrap_or(u64::MAX),
        };
        let whole = decoder(false)?;
        if whole.fits() && beside.saturating_add(whole.peak(settings)) <= budget {
            return Ok(whole);
        }
        let tiled = decoder(true)?;
        let better = tiled.fits() && (!whole.fits() || tiled.peak(settings) < whole.peak(settings));
        Ok(if better { tiled } else { whole })
    }

    /// Loads what `tiling` chooses; bands also where it leaves the choice and the adapter has no room for the whole.
    pub fn new(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        precision: DType,
        settings: &Settings,
        tiling: Tiling,
    ) -> Result<Self> {
        let beside = gpu.memory().current;
        let load = |decoder: Decoder| -> Result<Self> {
            let executor = execute(gpu, &decoder.graph, &[checkpoint.vae.weights.as_ref()])?;
            let picture = Shape::new(1, settings.height, settings.width, 3);
            Ok(Self { executor, picture, tiled: decoder.tiled })
        };
        let chosen = Self::choose(checkpoint, gpu.limits(), precision, settings, tiling, beside)?;
        let retry = matches!(tiling, Tiling::Auto(_)) && !chosen.tiled;
        match load(chosen) {
            Err(error) if retry && error.kind() == ErrorKind::Memory => {
                gpu.wait()?;
                load(Self::choose(checkpoint, gpu.limits(), precision, settings, Tiling::On, beside)?)
            }
            outcome => outcome,
        }
    }

    /// Whether it runs in bands.
    pub fn tiled(&self) -> bool {
        self.tiled
    }

    /// latent [1, C, H/8, W/8] -> red, green and blue of every pixel. Blocks.
    pub fn run(&self, state: &Resident) -> Result<Vec<u8>> {
        self.executor.copy_row("latent", 0, state)?;
        self.executor.run();
        let count = self.picture.positions() as usize;
        let packed = self.executor.read_bytes("pixels", (count * 4) as u64)?;
        if packed.chunks_exact(4).any(|pixel| pixel[3] != 255) {
            return Err(Error::new("the decoder made numbers that are not finite")
                .at("vae")
                .expected("a picture")
                .found("NaN or infinity")
                .hint("--precision f32"));
        }
        Ok(packed.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
    }

    /// The decoded picture before rounding [1, 3, H, W], around -1..1. Blocks.
    pub fn image(&self) -> Result<HostTensor> {
        Ok(self.executor.read("image")?.channels_first())
    }
}
