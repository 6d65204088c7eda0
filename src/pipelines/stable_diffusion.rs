//! The spine of Stable Diffusion 1.x, 2.x and XL: prompt -> text vectors -> latent -> picture.

use std::collections::VecDeque;
use std::sync::Arc;

use super::decode::{DecodeStage, Tiling};
use super::denoise::DenoiseStage;
use super::inspect;
use super::request::{Request, Settings};
use super::stages::{Side, TextStage, TextVectors};
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Shape;
use crate::graph::executor::Resident;
use crate::sampling::{Program, TorchGenerator};
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};

/// A model on a device.
pub struct StableDiffusion {
    gpu: Arc<Gpu>,
    checkpoint: Checkpoint,
    precision: DType,
    tiling: Tiling,
}

/// The encoded prompts, the negative one first.
type Prompts = Vec<(Side, TextVectors)>;

enum Phase {
    Fresh,
    LoadText,
    Encode(Box<TextStage>),
    LoadDenoiser(Prompts),
    Start,
    Step(usize),
    Finish,
    LoadDecoder(Resident),
    Decode(Resident),
    Done,
}

/// Pictures in the making: an iterator that does one piece of work a call, so that the caller keeps the clock.
pub struct Generation {
    model: Arc<StableDiffusion>,
    request: Request,
    settings: Settings,
    program: Program,
    phase: Phase,
    denoise: Option<DenoiseStage>,
    decode: Option<DecodeStage>,
    noise: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
    /// Told before the next piece of work is done.
    events: VecDeque<Event>,
}

impl StableDiffusion {
    /// A model to be run on `gpu`, its activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: Checkpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision, tiling: Tiling::default() }
    }

    /// The same model, decoding its pictures as `tiling` says.
    #[must_use]
    pub fn with_tiling(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The stored element type.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// Prepares `count` pictures that differ in seed or initial noise. Nothing is computed yet, but everything that can
    /// be wrong with the request is found here. With `dump` the intermediates are kept.
    pub fn generate(self: &Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Generation> {
        let settings = Settings::resolve(&request, &self.checkpoint)?;
        let program = settings.scheduler.program(settings.steps as usize, None)?;
        let shape = DenoiseStage::latent_shape(&self.checkpoint, &settings);
        check_latents(request.latents.as_ref(), shape)?;
        DenoiseStage::run(&self.checkpoint, &settings, &program).check(&self.checkpoint.name)?;
        DenoiseStage::build(&self.checkpoint, self.gpu.limits(), self.precision, &settings)?;
        DecodeStage::build(&self.checkpoint, self.gpu.limits(), self.precision, &settings, false)?;
        self.check_budget(&settings, count)?;
        Ok(Generation {
            model: Arc::clone(self),
            noise: TorchGenerator::new(request.seed),
            request,
            settings,
            program,
            phase: Phase::Fresh,
            denoise: None,
            decode: None,
            remaining: count,
            dump: dump.then(Vec::new),
            events: VecDeque::new(),
        })
    }

    /// A run that would pass the budget whatever is done is refused before anything is loaded.
    fn check_budget(&self, settings: &Settings, count: u32) -> Result<()> {
        let Tiling::Auto(Some(budget)) = self.tiling else { return Ok(()) };
        let (limits, tiling) = (self.gpu.limits(), self.tiling);
        let stages = inspect::memory_of(&self.checkpoint, settings, self.precision, limits, count, tiling)?;
        let Some(most) = stages.iter().max_by_key(|stage| stage.peak()).filter(|stage| stage.peak() > budget) else {
            return Ok(());
        };
        Err(Error::new("the picture needs more memory than there is")
            .at(format!("{} of {} x {} pixels", most.stage.name(), settings.width, settings.height))
            .expected(format!("at most {budget} bytes"))
            .found(format!("{} bytes, of which {} are weights", most.peak(), most.weights))
            .hint("a smaller picture, --precision f16, or a larger budget")
            .of_memory())
    }
}

/// Initial noise must have the latent's shape.
fn check_latents(latents: Option<&HostTensor>, shape: Shape) -> Result<()> {
    let axes = [1, shape.channels as usize, shape.height as usize, shape.width as usize];
    match latents.filter(|latents| latents.shape != axes) {
        None => Ok(()),
        Some(latents) => Err(Error::usage("initial latents of another shape")
            .at("--latents")
            .expected(format!("{axes:?}"))
            .found(format!("{:?}", latents.shape))),
    }
}

impl Generation {
    /// The request with every choice made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The denoising run as a table.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Prompts -> text vectors, the negative one's first; and what was cut off the prompts.
    fn encode(&mut self, text: &TextStage) -> Result<(Prompts, Vec<String>)> {
        let mut vectors = Vec::new();
        let mut cut = Vec::new();
        let zeros = self.model.checkpoint.class == PipelineClass::StableDiffusionXl
            && self.model.checkpoint.force_zeros_for_empty_prompt
            && self.request.negative_prompt.is_none();
        let negative = self.request.negative_prompt.as_deref().unwrap_or("");
        let sides =
            [(Side::Negative, negative, self.settings.guided && !zeros), (Side::Prompt, &self.request.prompt, true)];
        for (side, prompt, _) in sides.into_iter().filter(|(_, _, wanted)| *wanted) {
            let (encoded, left_out) = text.run(prompt, side)?;
            vectors.push((side, encoded));
            cut.extend(left_out);
        }
        Ok((vectors, cut))
    }

    /// The UNet on the GPU with its text vectors in place; bytes that it takes there.
    fn load_denoiser(&mut self, vectors: &[(Side, TextVectors)]) -> Result<u64> {
        let StableDiffusion { gpu, checkpoint, precision, .. } = self.model.as_ref();
        let run = (&self.settings, &self.program);
        let denoise = DenoiseStage::new(gpu, checkpoint, *precision, run, vectors, self.dump.as_mut())?;
        let bytes = denoise.bytes();
        self.denoise = Some(denoise);
        Ok(bytes)
    }

    /// Seed -> the first latent.
    fn start(&mut self) -> Result<()> {
        self.noise = TorchGenerator::new(self.request.seed);
        let noise = match self.request.latents.clone() {
            Some(latents) => latents,
            None => self.draw(),
        };
        if let Some(dump) = &mut self.dump {
            dump.push(("noise".to_owned(), noise.clone()));
        }
        match &mut self.denoise {
            Some(denoise) => denoise.denoiser().start(&noise),
            None => Ok(()),
        }
    }

    /// Noise of unit variance [1, C, H, W], the generator's next.
    fn draw(&mut self) -> HostTensor {
        DenoiseStage::run(&self.model.checkpoint, &self.settings, &self.program).draw(&mut self.noise)
    }

    /// Waits for step `index`, while the adapter goes on to the one after it, unless intermediates are kept.
    fn step(&mut self, index: usize) -> Result<()> {
        let denoise = self.denoise.as_mut().unwrap_or_else(|| panic!("the denoiser is loaded before the first step"));
        let (end, alone) = (self.program.evaluations.len(), self.dump.is_some());
        denoise.denoiser().step(index, end, alone, &mut self.noise)?;
        if let Some(dump) = &mut self.dump {
            dump.push((format!("latents.{index}"), denoise.denoiser().latent()?));
        }
        Ok(())
    }

    /// The finished latent on the GPU, checked; the UNet is released if no further picture needs it.
    fn finish(&mut self) -> Result<Resident> {
        let denoise = self.denoise.as_mut().unwrap_or_else(|| panic!("the denoiser is loaded before the last step"));
        denoise.denoiser().finished()?;
        let state = denoise.denoiser().state()?;
        if self.remaining <= 1 {
            self.denoise = None;
        }
        Ok(state)
    }

    /// Latent -> picture.
    fn decode(&mut self, state: &Resident) -> Result<Picture> {
        let decode =
            self.decode.as_ref().unwrap_or_else(|| panic!("the decoder is loaded before the picture is decoded"));
        let rgb = decode.run(state)?;
        if let Some(dump) = &mut self.dump {
            dump.push(("image".to_owned(), decode.image()?));
        }
        Ok(Picture { width: self.settings.width, height: self.settings.height, rgb })
    }
}

impl Staged for Generation {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> noise -> latent -> picture, and tells what comes after it.
    fn advance(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let StableDiffusion { gpu, checkpoint, precision, tiling } = model.as_ref();
        let count = self.program.evaluations.len();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::LoadText;
                self.begin(Work::Loading, "loading the text encoder", 0);
            }
            Phase::LoadText => {
                let text = TextStage::new(gpu, checkpoint, *precision, self.settings.clip_skip)?;
                self.phase = Phase::Encode(Box::new(text));
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode(text) => {
                let (vectors, cut) = self.encode(&text)?;
                // What has been submitted holds the encoders' weights: wait, so that they are gone before the UNet's come.
                drop(text);
                gpu.wait()?;
                self.phase = Phase::LoadDenoiser(vectors);
                self.events.extend(cut.iter().map(|part| super::stages::cut_note(part)));
                self.begin(Work::Loading, "loading the denoiser", 0);
            }
            Phase::LoadDenoiser(vectors) => {
                let bytes = self.load_denoiser(&vectors)?;
                self.phase = Phase::Start;
                self.events.push_back(Event::Note(format!("denoiser: {} MiB on the adapter", bytes >> 20)));
                self.begin(Work::Generating, "denoising", count);
            }
            Phase::Start => {
                self.start()?;
                self.phase = if count == 0 { Phase::Finish } else { Phase::Step(0) };
            }
            Phase::Step(index) => {
                self.step(index)?;
                self.phase = if index + 1 < count { Phase::Step(index + 1) } else { Phase::Finish };
                self.events.push_back(Event::Step(index + 1, count));
            }
            Phase::Finish => {
                self.phase = Phase::LoadDecoder(self.finish()?);
                if self.decode.is_none() {
                    self.begin(Work::Loading, "loading the decoder", 0);
                }
            }
            Phase::LoadDecoder(state) => {
                let decode = match self.decode.take() {
                    Some(decode) => decode,
                    None => DecodeStage::new(gpu, checkpoint, *precision, &self.settings, *tiling)?,
                };
                let what = if decode.tiled() { "decoding in bands of rows" } else { "decoding" };
                self.decode = Some(decode);
                self.phase = Phase::Decode(state);
                self.begin(Work::Decoding, what, 0);
            }
            Phase::Decode(state) => {
                let picture = self.decode(&state)?;
                self.remaining = self.remaining.saturating_sub(1);
                self.events.push_back(Event::Picture(picture));
            }
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl System for StableDiffusion {
    fn name(&self) -> &str {
        &self.checkpoint.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        Ok(Box::new(self.generate(request, count, dump)?))
    }
}

impl Drawing for Generation {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        let shape = DenoiseStage::latent_shape(&self.model.checkpoint, &self.settings);
        check_latents(variation.latents.as_ref(), shape)?;
        if self.denoise.is_none() {
            return Err(Error::new("no further picture was announced").at("Generation::again"));
        }
        (self.request.seed, self.request.latents) = (variation.seed, variation.latents);
        self.dump = dump.then(Vec::new);
        self.phase = Phase::Start;
        let count = self.program.evaluations.len();
        self.begin(Work::Generating, "denoising", count);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let Settings { steps, guidance_scale, scheduler, .. } = &self.settings;
        Summary {
            steps: Some(*steps),
            guidance_scale: Some(*guidance_scale),
            sampler: Some(scheduler.sampler().to_string()),
            schedule: Some(scheduler.schedule().to_string()),
            further: Vec::new(),
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        Some([self.settings.height, self.settings.width])
    }

    fn image(&self) -> Result<HostTensor> {
        match &self.decode {
            Some(decode) => decode.image(),
            None => Err(Error::new("no picture yet").at("Drawing::image")),
        }
    }

    /// Text vectors, noise, the latent after each evaluation of the model, the decoded picture.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
