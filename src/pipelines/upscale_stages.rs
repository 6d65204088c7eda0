//! What the x4 upscaler has beside Stable Diffusion's stages: its settings, the picture's size and the noise on it.

use std::sync::Arc;

use super::decode::Tiling;
use super::denoise::DenoiseStage;
use super::imagen_stages::mixed;
use super::inspect;
use super::request::{Request, Settings, clip_skip, defaults, scheduler};
use super::stages::execute;
use super::tiles::{Grid, TileSide};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::{Graph, Shape};
use crate::kernels::Limits;
use crate::kernels::resampling::{Filter, Resampling, Resize};
use crate::models::nn;
use crate::sampling::{Program, SchedulerConfig};
use crate::tensor::{DType, HostTensor};
use crate::weights::latent_upscaler::LatentUpscalerCheckpoint;

/// The sides of tiles that are tried where memory does not suffice for the whole picture. The published model was trained on
/// squares of 128 pixels.
const SIDES: [u32; 8] = [512, 384, 256, 192, 128, 96, 64, 32];

/// A request with every choice made.
#[derive(Debug, Clone)]
pub struct UpscaleSettings {
    /// Of one tile: the size of its enlarged picture, steps, guidance, solver.
    pub tile: Settings,
    /// Height and width of the picture as the model takes it.
    pub from: [u32; 2],
    /// Pixels of the enlarged picture per pixel of that.
    pub factor: u32,
    /// Noise added to the picture, in steps of its schedule.
    pub noise_level: u32,
    /// Factors of the picture and of the noise.
    pub noising: [f32; 2],
    /// Where tiles lie in the picture; one where there are none.
    pub grid: Grid,
    /// Channels of the latent.
    channels: u32,
}

impl UpscaleSettings {
    /// Fills in the model's defaults and checks what was asked for; in one tile.
    ///
    /// # Errors
    /// Options of other systems; no picture or one that is too small; noise, layers, samplers and schedules that the model
    /// does not have.
    pub fn resolve(checkpoint: &LatentUpscalerCheckpoint, request: &Request) -> Result<Self> {
        let model = &checkpoint.model;
        let factor = checkpoint.factor();
        let refused = [
            ("--top-k", request.top_k.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--temperature", request.temperature.is_some(), "pictures are denoised, no tokens are drawn"),
            ("--prior-steps", request.prior_steps.is_some(), "it has no prior"),
            ("--prior-cfg-scale", request.prior_guidance_scale.is_some(), "it has no prior"),
            ("--sr-steps", request.sr_steps.is_some(), "it is a stage alone; its steps are --steps"),
            ("-W/--width", request.width.is_some(), "the picture's size decides"),
            ("-H/--height", request.height.is_some(), "the picture's size decides"),
        ];
        Request::refuse("the x4 upscaler", &refused)?;
        let from = picture_size(request, factor, &model.name)?;
        let (steps, guidance) = defaults(model);
        let guidance_scale = request.guidance_scale.unwrap_or(guidance);
        let tile = Settings {
            width: from[1] * factor,
            height: from[0] * factor,
            steps: request.steps.unwrap_or(steps),
            guidance_scale,
            guidance_rescale: request.guidance_rescale,
            clip_skip: clip_skip(request, model)?,
            scheduler: scheduler(request, model)?,
            guided: guidance_scale > 1.0,
        };
        let noise_level = request.noise_level.unwrap_or(20);
        let most = checkpoint.most_noise.min(checkpoint.classes().saturating_sub(1));
        if noise_level > most {
            return Err(Error::usage("more noise than the model knows")
                .at("--noise-level")
                .expected(format!("at most {most}"))
                .found(noise_level));
        }
        let place = format!("{}: low_res_scheduler", model.name);
        let noising = SchedulerConfig::from_json(&checkpoint.noising, &place)?.noise_at(noise_level);
        let noising = noising.map_err(|error| error.at("--noise-level"))?;
        let channels = model.vae.config.latent_channels as u32;
        let grid = Grid::new(from, from[0].max(from[1]));
        Ok(Self { tile, from, factor, noise_level, noising, grid, channels })
    }

    /// The sides of tiles to try, the largest first; where they are left open, only those `below` that.
    pub(super) fn sides(&self, tile: TileSide, below: u32) -> Vec<u32> {
        let whole = self.from[0].max(self.from[1]);
        match tile {
            TileSide::Off => vec![whole],
            TileSide::Px(side) => vec![side.min(whole)],
            TileSide::Auto => {
                let smaller = SIDES.into_iter().filter(|side| *side < whole);
                std::iter::once(whole).chain(smaller).filter(|side| *side < below).collect()
            }
        }
    }

    /// The same in tiles of this side.
    #[must_use]
    pub fn in_tiles(&self, side: u32) -> Self {
        let grid = Grid::new(self.from, side);
        let [height, width] = grid.tile().map(|side| side * self.factor);
        Self { tile: Settings { height, width, ..self.tile.clone() }, grid, ..self.clone() }
    }

    /// Height and width of the enlarged picture.
    pub fn size(&self) -> [u32; 2] {
        self.from.map(|side| side * self.factor)
    }

    /// [1, C, H, W] of the whole picture's latent.
    pub fn latent_axes(&self) -> Vec<usize> {
        [1, self.channels, self.from[0], self.from[1]].map(|axis| axis as usize).to_vec()
    }

    /// The denoising run as a table.
    pub fn program(&self) -> Result<Program> {
        self.tile.scheduler.program(self.tile.steps as usize, None)
    }

    /// Errors unless `count` pictures in these tiles can run: within the adapter's limits, and within the budget that `tiling` has.
    pub(super) fn check(
        &self,
        checkpoint: &LatentUpscalerCheckpoint,
        limits: Limits,
        precision: DType,
        count: u32,
        tiling: Tiling,
    ) -> Result<()> {
        let pictures = count.saturating_mul(self.grid.count() as u32);
        let stages = inspect::memory_of(&checkpoint.model, &self.tile, precision, limits, pictures, tiling)?;
        if let Some(fault) = stages.iter().find_map(|stage| stage.fault.clone()) {
            return Err(fault);
        }
        let budget = if let Tiling::Auto(Some(budget)) = tiling { budget } else { u64::MAX };
        match stages.iter().max_by_key(|stage| stage.peak()).filter(|stage| stage.peak() > budget) {
            None => Ok(()),
            Some(most) => Err(Error::new("the picture needs more memory than there is")
                .at(format!("{} of {} x {} pixels", most.stage.name(), self.tile.width, self.tile.height))
                .expected(format!("at most {budget} bytes"))
                .found(format!("{} bytes, of which {} are weights", most.peak(), most.weights))
                .hint("a smaller --tile, --precision f16, or a larger budget")
                .of_memory()),
        }
    }

    /// Tells the UNet how much noise there is on the picture.
    pub(super) fn tell_level(&self, denoise: &mut DenoiseStage) -> Result<()> {
        let rows = 1 + usize::from(self.tile.guided);
        let words: Vec<u32> = [self.noise_level, 0, 0, 0].repeat(rows);
        denoise.denoiser().model().write_bytes("level", bytemuck::cast_slice(&words))
    }
}

/// Height and width of the picture in a request, rounded down to multiples of `factor` as diffusers' image processor does it.
fn picture_size(request: &Request, factor: u32, name: &str) -> Result<[u32; 2]> {
    let Some(image) = &request.image else {
        return Err(Error::usage("no picture to enlarge")
            .at(name)
            .hint("scumble upscale IN.png -m MODEL, or --then MODEL behind another"));
    };
    let &[1, 3, height, width] = image.shape.as_slice() else {
        return Err(Error::usage("picture").expected("[1, 3, H, W]").found(format!("{:?}", image.shape)));
    };
    let found = [height, width].map(|side| side as u32 / factor * factor);
    if found.contains(&0) {
        return Err(Error::usage("the picture is too small")
            .at(name)
            .expected(format!("at least {factor} x {factor} pixels"))
            .found(format!("{width} x {height}")));
    }
    Ok(found)
}

/// The picture [1, 3, H, W] in the size `to`, by Pillow's bicubic filter over 8 bits; as it is where it has that size.
pub(super) fn shrunk(gpu: &Arc<Gpu>, picture: &HostTensor, to: [u32; 2]) -> Result<HostTensor> {
    let from = [picture.shape[2] as u32, picture.shape[3] as u32];
    if from == to {
        return Ok(picture.clone());
    }
    let mut g = Graph::new(DType::F32, gpu.limits());
    let input = g.input("picture", Shape::new(1, from[0], from[1], 3), DType::F32);
    let tables = Resampling::new(Resize::Pillow8(Filter::Bicubic), from, to);
    let small = nn::resample(&mut g, "picture", input, &tables, DType::F32);
    g.output("small", small);
    let executor = execute(gpu, &g, &[])?;
    let byte = |value: &f32| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round_ties_even();
    let bytes = HostTensor { shape: picture.shape.clone(), data: picture.data.iter().map(byte).collect() };
    executor.write("picture", &bytes.channels_last())?;
    executor.run();
    let mut small = executor.read("small")?.channels_first();
    small.data.iter_mut().for_each(|value| *value = *value / 127.5 - 1.0);
    Ok(small)
}

/// Noise on a tile of the picture.
pub(super) struct LowStage {
    executor: Executor,
    rows: u32,
}

impl LowStage {
    pub fn new(gpu: &Arc<Gpu>, settings: &UpscaleSettings, precision: DType) -> Result<Self> {
        let graph = mixed(settings.noising, None, gpu.limits(), precision, settings.grid.tile());
        Ok(Self { executor: execute(gpu, &graph, &[])?, rows: 1 + u32::from(settings.tile.guided) })
    }

    /// Gives the UNet the picture with noise mixed into it, both [1, 3, H, W].
    pub fn run(&self, picture: &HostTensor, noise: &HostTensor, denoise: &mut DenoiseStage) -> Result<()> {
        self.executor.write("picture", &picture.channels_last())?;
        self.executor.write("noise", &noise.channels_last())?;
        self.executor.run();
        let made = self.executor.resident("low")?;
        (0..self.rows).try_for_each(|row| denoise.denoiser().model().copy_row("low", row, &made))
    }

    /// What it gave last [1, 3, H, W]. Blocks.
    pub fn mixed(&self) -> Result<HostTensor> {
        Ok(self.executor.read("low")?.channels_first())
    }
}
