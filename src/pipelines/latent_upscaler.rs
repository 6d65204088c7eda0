//! The spine of Stable Diffusion's x4 upscaler: prompt -> text vectors; a picture with noise and they -> latent -> a larger picture.
//!
//! The UNet denoises a latent of as many pixels as the picture has and reads the picture beside it, mixed with noise of a
//! level that it is told; the autoencoder enlarges four times. One generator of the seed draws all noise in diffusers'
//! order: that on the picture, the first latent, then that of the steps. A side that is no multiple of the autoencoder's factor
//! is first shrunk to the next one, as diffusers' image processor does it with Pillow's bicubic filter.
//!
//! A picture that memory does not suffice for is enlarged in tiles (`tiles.rs`). The noise is drawn for the whole picture and
//! cut as it is, so that tiles agree where they overlap; one tile is the whole and draws the same picture as without.

use std::collections::VecDeque;
use std::sync::Arc;

use super::decode::{DecodeStage, Tiling};
use super::denoise::DenoiseStage;
use super::request::Request;
use super::stages::{Side, TextStage, TextVectors, cut_note};
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use super::tiles::{self, Blend, TileSide};
use super::upscale_stages::{LowStage, UpscaleSettings, shrunk};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Resident;
use crate::sampling::{Program, TorchGenerator};
use crate::tensor::{DType, HostTensor};
use crate::weights::latent_upscaler::LatentUpscalerCheckpoint;

/// A model on a device.
pub struct LatentUpscaler {
    gpu: Arc<Gpu>,
    checkpoint: LatentUpscalerCheckpoint,
    precision: DType,
    tiling: Tiling,
    tile: TileSide,
}

/// The encoded prompts, the negative one first.
type Prompts = Vec<(Side, TextVectors)>;

enum Phase {
    Fresh,
    LoadText,
    Encode(Box<TextStage>),
    LoadDenoiser(Prompts),
    /// A tile, by its number.
    Start(usize),
    Step(usize, usize),
    Finish(usize),
    LoadDecoder(usize, Resident),
    Decode(usize, Resident),
    Done,
}

impl LatentUpscaler {
    /// A model to be run on `gpu`, its activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: LatentUpscalerCheckpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision, tiling: Tiling::default(), tile: TileSide::default() }
    }

    /// The same model in tiles of `tile`, decoding each as `tiling` says.
    #[must_use]
    pub fn with_tiles(self, tile: TileSide, tiling: Tiling) -> Self {
        Self { tile, tiling, ..self }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &LatentUpscalerCheckpoint {
        &self.checkpoint
    }

    /// The settings for `count` pictures with the largest tiles that fit; where the size is left open, tiles smaller than `below`.
    fn settings(&self, request: &Request, count: u32, below: u32) -> Result<UpscaleSettings> {
        let (limits, precision, tiling) = (self.gpu.limits(), self.precision, self.tiling);
        let checkpoint = &self.checkpoint;
        let base = UpscaleSettings::resolve(checkpoint, request)?;
        let mut outcome = Err(Error::new("no tile is small enough").at(&checkpoint.model.name).of_memory());
        for side in base.sides(self.tile, below) {
            let settings = base.in_tiles(side);
            match settings.check(checkpoint, limits, precision, count, tiling) {
                Ok(()) => return Ok(settings),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

impl System for LatentUpscaler {
    fn name(&self) -> &str {
        &self.checkpoint.model.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let settings = self.settings(&request, count, u32::MAX)?;
        let program = settings.program()?;
        check_latents(request.latents.as_ref(), &settings)?;
        let model = &self.checkpoint.model;
        DenoiseStage::run(model, &settings.tile, &program).check(&model.name)?;
        Ok(Box::new(UpscaleDrawing {
            generator: TorchGenerator::new(request.seed),
            model: self,
            request,
            settings,
            program,
            phase: Phase::Fresh,
            events: VecDeque::new(),
            denoise: None,
            low: None,
            decode: None,
            given: None,
            blend: None,
            picture: None,
            remaining: count,
            total: count,
            dump: dump.then(Vec::new),
        }))
    }
}

/// Initial noise must be as large as the whole picture.
fn check_latents(latents: Option<&HostTensor>, settings: &UpscaleSettings) -> Result<()> {
    let axes = settings.latent_axes();
    match latents.filter(|latents| latents.shape != axes) {
        None => Ok(()),
        Some(latents) => Err(Error::usage("initial latents of another shape")
            .at("--latents")
            .expected(format!("{axes:?}"))
            .found(format!("{:?}", latents.shape))),
    }
}

/// What a picture begins with, each as large as the whole.
struct Given {
    /// The picture [1, 3, H, W].
    picture: HostTensor,
    /// The noise on it [1, 3, H, W].
    added: HostTensor,
    /// The first latent's [1, C, H, W].
    noise: HostTensor,
}

/// Pictures in the making.
struct UpscaleDrawing {
    model: Arc<LatentUpscaler>,
    request: Request,
    settings: UpscaleSettings,
    program: Program,
    phase: Phase,
    events: VecDeque<Event>,
    denoise: Option<DenoiseStage>,
    low: Option<LowStage>,
    decode: Option<DecodeStage>,
    given: Option<Given>,
    /// The tiles so far, where there are several.
    blend: Option<Blend>,
    /// The last finished picture [1, 3, H, W].
    picture: Option<HostTensor>,
    generator: TorchGenerator,
    remaining: u32,
    /// All announced pictures.
    total: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl UpscaleDrawing {
    fn denoise(&mut self) -> &mut DenoiseStage {
        self.denoise.as_mut().unwrap_or_else(|| panic!("the denoiser is loaded before it is used"))
    }

    fn keep(&mut self, name: &str, tensor: impl FnOnce() -> Result<HostTensor>) -> Result<()> {
        if let Some(dump) = &mut self.dump {
            dump.push((name.to_owned(), tensor()?));
        }
        Ok(())
    }

    /// A dumped tensor's name; those of several tiles say which.
    fn named(&self, tile: usize, name: &str) -> String {
        if self.settings.grid.count() == 1 { name.to_owned() } else { format!("tile.{tile}.{name}") }
    }

    /// Prompts -> text vectors, the negative one's first.
    fn encode(&mut self, text: &TextStage) -> Result<Prompts> {
        let negative = self.request.negative_prompt.as_deref().unwrap_or("");
        let sides = [(Side::Negative, negative), (Side::Prompt, self.request.prompt.as_str())];
        let mut vectors = Vec::new();
        for (side, prompt) in sides.into_iter().filter(|(side, _)| self.settings.tile.guided || *side == Side::Prompt) {
            let (encoded, left_out) = text.run(prompt, side)?;
            vectors.push((side, encoded));
            self.events.extend(left_out.iter().map(|part| cut_note(part)));
        }
        Ok(vectors)
    }

    /// The UNet on the GPU with its text vectors in place. Where the adapter has no room after all and the tiles' size is left
    /// open, smaller ones are tried.
    fn load_denoiser(&mut self, vectors: &Prompts) -> Result<()> {
        let model = Arc::clone(&self.model);
        let LatentUpscaler { gpu, checkpoint, precision, tile, .. } = model.as_ref();
        loop {
            let run = (&self.settings.tile, &self.program);
            let loaded = DenoiseStage::new(gpu, &checkpoint.model, *precision, run, vectors, self.dump.as_mut());
            let loaded = loaded.and_then(|mut denoise| {
                self.settings.tell_level(&mut denoise)?;
                Ok((denoise, LowStage::new(gpu, &self.settings, *precision)?))
            });
            match loaded {
                Ok((denoise, low)) => {
                    let bytes = denoise.bytes();
                    self.events.push_back(Event::Note(format!("denoiser: {} MiB on the adapter", bytes >> 20)));
                    (self.denoise, self.low) = (Some(denoise), Some(low));
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Memory && *tile == TileSide::Auto => {
                    gpu.wait()?;
                    let [height, width] = self.settings.grid.tile();
                    let smaller = model.settings(&self.request, self.total, height.max(width));
                    self.settings = smaller.map_err(|_| error)?;
                    self.dump = self.dump.as_ref().map(|_| Vec::new());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The picture in the size that the model takes, and all noise that is drawn before the first step.
    fn begin_picture(&mut self) -> Result<()> {
        self.generator = TorchGenerator::new(self.request.seed);
        let image = self.request.image.as_ref().unwrap_or_else(|| panic!("a picture was checked to be there"));
        let picture = shrunk(&self.model.gpu, image, self.settings.from)?;
        let latent = self.settings.latent_axes();
        let mut draw = |axes: &[usize]| {
            let data = self.generator.randn(axes.iter().product());
            HostTensor { shape: axes.to_vec(), data }
        };
        let added = draw(&picture.shape);
        let noise = self.request.latents.clone().unwrap_or_else(|| draw(&latent));
        self.keep("picture_noise", || Ok(added.clone()))?;
        self.keep("noise", || Ok(noise.clone()))?;
        self.given = Some(Given { picture, added, noise });
        let grid = &self.settings.grid;
        if grid.count() > 1 {
            let [height, width] = grid.tile();
            let note = format!("{} tiles of {width} x {height} pixels", grid.count());
            self.events.push_back(Event::Note(note));
            self.blend = Some(Blend::new(grid.clone(), self.settings.factor));
        }
        Ok(())
    }

    /// The first sample of a tile, and its part of the picture.
    fn start(&mut self, tile: usize) -> Result<()> {
        if tile == 0 {
            self.begin_picture()?;
        }
        let grid = &self.settings.grid;
        let given = self.given.as_ref().unwrap_or_else(|| panic!("the first tile begins the picture"));
        let [picture, added, noise] = [&given.picture, &given.added, &given.noise].map(|whole| grid.cut(whole, tile));
        let (Some(low), Some(denoise)) = (&self.low, &mut self.denoise) else {
            panic!("the denoiser is loaded before the first step")
        };
        low.run(&picture, &added, denoise)?;
        denoise.denoiser().start(&noise)?;
        if self.dump.is_some() {
            let mixed = low.mixed()?;
            self.keep(&self.named(tile, "low"), || Ok(mixed))?;
        }
        Ok(())
    }

    /// Waits for step `index`, while the adapter goes on to the one after it, unless intermediates are kept.
    fn step(&mut self, tile: usize, index: usize) -> Result<()> {
        let (end, alone) = (self.program.evaluations.len(), self.dump.is_some());
        let Some(denoise) = &mut self.denoise else { return Ok(()) };
        denoise.denoiser().step(index, end, alone, &mut self.generator)?;
        if alone {
            let latent = denoise.denoiser().latent()?;
            self.keep(&self.named(tile, &format!("latents.{index}")), || Ok(latent))?;
        }
        Ok(())
    }

    /// A tile's finished latent on the GPU, checked; the UNet is released if nothing more needs it.
    fn finish(&mut self, tile: usize) -> Result<Resident> {
        let denoiser = self.denoise().denoiser();
        denoiser.finished()?;
        let state = denoiser.state()?;
        if self.remaining <= 1 && tile + 1 == self.settings.grid.count() {
            (self.denoise, self.low) = (None, None);
        }
        Ok(state)
    }

    /// A tile's latent -> its part of the picture; the whole picture, if it was the last.
    fn decode(&mut self, tile: usize, state: &Resident) -> Result<Option<Picture>> {
        let decode = self.decode.as_ref().unwrap_or_else(|| panic!("the decoder is loaded before the picture"));
        let rgb = decode.run(state)?;
        let image = decode.image()?;
        let [height, width] = self.settings.size();
        let Some(blend) = &mut self.blend else {
            self.keep("image", || Ok(image.clone()))?;
            self.picture = Some(image);
            return Ok(Some(Picture { width, height, rgb }));
        };
        blend.add(tile, &image);
        let name = self.named(tile, "image");
        self.keep(&name, || Ok(image))?;
        if tile + 1 < self.settings.grid.count() {
            return Ok(None);
        }
        let Some(blend) = self.blend.take() else { return Ok(None) };
        let image = blend.finish();
        let rgb = tiles::bytes(&image);
        self.keep("image", || Ok(image.clone()))?;
        self.picture = Some(image);
        Ok(Some(Picture { width, height, rgb }))
    }

    fn begin_tile(&mut self, tile: usize) {
        self.phase = Phase::Start(tile);
        let what = if self.settings.grid.count() == 1 { "enlarging" } else { "enlarging a tile" };
        self.begin(Work::Generating, what, self.program.evaluations.len());
    }
}

impl Staged for UpscaleDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> latent -> picture, the last two for each tile, and tells what comes
    /// after it.
    fn advance(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let LatentUpscaler { gpu, checkpoint, precision, tiling, .. } = model.as_ref();
        let count = self.program.evaluations.len();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::LoadText;
                self.begin(Work::Loading, "loading the text encoder", 0);
            }
            Phase::LoadText => {
                let text = TextStage::new(gpu, &checkpoint.model, *precision, self.settings.tile.clip_skip)?;
                self.phase = Phase::Encode(Box::new(text));
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode(text) => {
                let vectors = self.encode(&text)?;
                // What has been submitted holds the encoder's weights: wait, so that they are gone before the UNet's come.
                drop(text);
                gpu.wait()?;
                self.phase = Phase::LoadDenoiser(vectors);
                self.begin(Work::Loading, "loading the denoiser", 0);
            }
            Phase::LoadDenoiser(vectors) => {
                self.load_denoiser(&vectors)?;
                self.begin_tile(0);
            }
            Phase::Start(tile) => {
                self.start(tile)?;
                self.phase = if count == 0 { Phase::Finish(tile) } else { Phase::Step(tile, 0) };
            }
            Phase::Step(tile, index) => {
                self.step(tile, index)?;
                self.phase = if index + 1 < count { Phase::Step(tile, index + 1) } else { Phase::Finish(tile) };
                self.events.push_back(Event::Step(index + 1, count));
            }
            Phase::Finish(tile) => {
                self.phase = Phase::LoadDecoder(tile, self.finish(tile)?);
                if self.decode.is_none() {
                    self.begin(Work::Loading, "loading the decoder", 0);
                }
            }
            Phase::LoadDecoder(tile, state) => {
                let decode = match self.decode.take() {
                    Some(decode) => decode,
                    None => DecodeStage::new(gpu, &checkpoint.model, *precision, &self.settings.tile, *tiling)?,
                };
                let what = if decode.tiled() { "decoding in bands of rows" } else { "decoding" };
                self.decode = Some(decode);
                self.phase = Phase::Decode(tile, state);
                self.begin(Work::Decoding, what, 0);
            }
            Phase::Decode(tile, state) => match self.decode(tile, &state)? {
                Some(picture) => {
                    self.remaining = self.remaining.saturating_sub(1);
                    self.events.push_back(Event::Picture(picture));
                }
                None => self.begin_tile(tile + 1),
            },
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for UpscaleDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for UpscaleDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        let Variation { seed, latents, image } = variation;
        check_latents(latents.as_ref(), &self.settings)?;
        if self.denoise.is_none() || self.remaining == 0 {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        let other = |image: &HostTensor| self.request.image.as_ref().is_none_or(|old| old.shape != image.shape);
        if let Some(image) = image.as_ref().filter(|image| other(image)) {
            return Err(Error::usage("a picture of another size").found(format!("{:?}", image.shape)));
        }
        (self.request.seed, self.request.latents) = (seed, latents);
        self.request.image = image.or_else(|| self.request.image.take());
        self.dump = dump.then(Vec::new);
        self.begin_tile(0);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let settings = &self.settings.tile;
        let mut further = vec![("Noise level", self.settings.noise_level.to_string())];
        if self.settings.grid.count() > 1 {
            let [height, width] = self.settings.grid.tile();
            further.push(("Tiles", format!("{width}x{height}")));
        }
        Summary {
            steps: Some(settings.steps),
            guidance_scale: Some(settings.guidance_scale),
            sampler: Some(settings.scheduler.sampler().to_string()),
            schedule: Some(settings.scheduler.schedule().to_string()),
            further,
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        Some(self.settings.size())
    }

    fn image(&self) -> Result<HostTensor> {
        let error = || Error::new("no picture yet").at("Drawing::image");
        self.picture.clone().ok_or_else(error)
    }

    /// Text vectors, the noise on the picture and the latent's, the picture with noise, the latent after each evaluation, the
    /// enlarged picture; where there are several tiles, those of each.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
