//! The spine of Stable Diffusion 1.x, 2.x and XL: prompt -> text vectors -> latent -> picture.

use std::collections::VecDeque;
use std::sync::Arc;

use super::decode::{DecodeStage, Tiling};
use super::denoise::DenoiseStage;
use super::inspect;
use super::request::{Request, Settings};
use super::stages::{Side, TextStage, TextVectors};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Shape;
use crate::graph::executor::Resident;
use crate::graph::recording::Submission;
use crate::sampling::{Program, TorchGenerator};
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::{Checkpoint, PipelineClass};

/// A finished picture: red, green and blue of each pixel, rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

/// A model on a device.
pub struct StableDiffusion {
    gpu: Arc<Gpu>,
    checkpoint: Checkpoint,
    precision: DType,
    tiling: Tiling,
}

/// What has just been done.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The text encoders' weights are on the GPU and their kernels compiled.
    TextLoaded,
    /// The prompts are encoded; per prompt that was too long, the part that was left out.
    TextEncoded(Vec<String>),
    /// The UNet's weights are on the GPU and its kernels compiled. Bytes that it takes there.
    DenoiserLoaded(u64),
    /// Step `.0` of `.1`, counted from 1, is done on the adapter. The following one has been submitted meanwhile, unless the
    /// intermediates are kept.
    Step(usize, usize),
    /// The decoder is ready; whether it runs in bands of rows.
    DecoderLoaded(bool),
    /// The picture.
    Decoded(Picture),
}

/// Steps submitted and not waited for: the adapter has the next one at hand when it is done with the present one.
const STEPS_UNDER_WAY: usize = 2;

/// The encoded prompts, the negative one first.
type Prompts = Vec<(Side, TextVectors)>;

enum Phase {
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
    /// The steps that the adapter has not been seen to finish, the oldest first.
    flying: VecDeque<Submission>,
    noise: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
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
        DenoiseStage::build(&self.checkpoint, self.gpu.limits(), self.precision, &settings)?;
        DecodeStage::build(&self.checkpoint, self.gpu.limits(), self.precision, &settings, false)?;
        self.check_budget(&settings, count)?;
        Ok(Generation {
            model: Arc::clone(self),
            noise: TorchGenerator::new(request.seed),
            request,
            settings,
            program,
            phase: Phase::LoadText,
            denoise: None,
            decode: None,
            flying: VecDeque::new(),
            remaining: count,
            dump: dump.then(Vec::new),
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
    /// Makes the next of the announced pictures from this seed or noise, on the stages that are loaded.
    pub fn again(&mut self, seed: u64, latents: Option<HostTensor>, dump: bool) -> Result<()> {
        check_latents(latents.as_ref(), DenoiseStage::latent_shape(&self.model.checkpoint, &self.settings))?;
        if self.denoise.is_none() {
            return Err(Error::new("no further picture was announced").at("Generation::again"));
        }
        (self.request.seed, self.request.latents) = (seed, latents);
        self.dump = dump.then(Vec::new);
        self.phase = Phase::Start;
        Ok(())
    }

    /// The request with every choice made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether nothing has been computed yet.
    pub fn is_fresh(&self) -> bool {
        matches!(self.phase, Phase::LoadText)
    }

    /// The denoising run as a table.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The intermediates kept so far: text vectors, noise, the latent after each evaluation of the model, the decoded picture.
    pub fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }

    /// Does the next piece of work: prompt -> text vectors -> noise -> latent -> picture.
    fn advance(&mut self) -> Result<Option<Event>> {
        let model = Arc::clone(&self.model);
        let StableDiffusion { gpu, checkpoint, precision, tiling } = model.as_ref();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::LoadText => {
                let text = TextStage::new(gpu, checkpoint, *precision, self.settings.clip_skip)?;
                self.phase = Phase::Encode(Box::new(text));
                Ok(Some(Event::TextLoaded))
            }
            Phase::Encode(text) => {
                let (vectors, cut) = self.encode(&text)?;
                // What has been submitted holds the encoders' weights: wait, so that they are gone before the UNet's come.
                drop(text);
                gpu.wait()?;
                self.phase = Phase::LoadDenoiser(vectors);
                Ok(Some(Event::TextEncoded(cut)))
            }
            Phase::LoadDenoiser(vectors) => {
                let bytes = self.load_denoiser(&vectors)?;
                self.phase = Phase::Start;
                Ok(Some(Event::DenoiserLoaded(bytes)))
            }
            Phase::Start => {
                self.start()?;
                self.phase = if self.program.evaluations.is_empty() { Phase::Finish } else { Phase::Step(0) };
                self.advance()
            }
            Phase::Step(index) => {
                self.step(index)?;
                let count = self.program.evaluations.len();
                self.phase = if index + 1 < count { Phase::Step(index + 1) } else { Phase::Finish };
                Ok(Some(Event::Step(index + 1, count)))
            }
            Phase::Finish => {
                let state = self.finish()?;
                self.phase = Phase::LoadDecoder(state);
                self.advance()
            }
            Phase::LoadDecoder(state) => {
                self.phase = Phase::Decode(state);
                if self.decode.is_some() {
                    return self.advance();
                }
                let decode = DecodeStage::new(gpu, checkpoint, *precision, &self.settings, *tiling)?;
                let tiled = decode.tiled();
                self.decode = Some(decode);
                Ok(Some(Event::DecoderLoaded(tiled)))
            }
            Phase::Decode(state) => {
                let picture = self.decode(&state)?;
                self.remaining = self.remaining.saturating_sub(1);
                Ok(Some(Event::Decoded(picture)))
            }
            Phase::Done => Ok(None),
        }
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
        let denoise = DenoiseStage::new(gpu, checkpoint, *precision, &self.settings, &self.program)?;
        for (side, text) in vectors {
            denoise.condition(text, *side)?;
        }
        if let Some(dump) = &mut self.dump {
            dump.extend(denoise.conditioning(checkpoint.class == PipelineClass::StableDiffusionXl)?);
        }
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
        self.flying.clear();
        match &mut self.denoise {
            Some(denoise) => denoise.start(&noise, &self.program),
            None => Ok(()),
        }
    }

    /// Noise of unit variance [1, C, H, W], the generator's next.
    fn draw(&mut self) -> HostTensor {
        let shape = DenoiseStage::latent_shape(&self.model.checkpoint, &self.settings);
        let axes = vec![1, shape.channels as usize, shape.height as usize, shape.width as usize];
        HostTensor { data: self.noise.randn(axes.iter().product()), shape: axes }
    }

    /// Waits for step `index`. The adapter is given the step after it first, so that it never waits for the host: while one
    /// step runs, the next is encoded and its noise drawn. Two are under way at most, as each holds memory of the driver.
    fn step(&mut self, index: usize) -> Result<()> {
        let ahead = if self.dump.is_some() { 1 } else { STEPS_UNDER_WAY };
        while self.flying.len() < ahead && index + self.flying.len() < self.program.evaluations.len() {
            let submission = self.submit(index + self.flying.len())?;
            self.flying.push_back(submission);
        }
        if let Some(submission) = self.flying.pop_front() {
            submission.wait()?;
        }
        if let (Some(dump), Some(denoise)) = (&mut self.dump, &self.denoise) {
            dump.push((format!("latents.{index}"), denoise.latent()?));
        }
        Ok(())
    }

    /// One evaluation of the model and the solver's update.
    fn submit(&mut self, index: usize) -> Result<Submission> {
        let noise = self.program.evaluations[index].draws_noise.then(|| self.draw());
        let evaluation = &self.program.evaluations[index];
        let next = self.program.evaluations.get(index + 1).map_or(1.0, |next| next.input_scale);
        let denoise = self.denoise.as_mut().unwrap_or_else(|| panic!("the denoiser is loaded before the first step"));
        denoise.evaluate(evaluation, self.settings.guidance_scale, next, noise.as_ref())
    }

    /// The finished latent on the GPU, checked; the UNet is released if no further picture needs it.
    fn finish(&mut self) -> Result<Resident> {
        let denoise = self.denoise.as_ref().unwrap_or_else(|| panic!("the denoiser is loaded before the last step"));
        if !denoise.latent()?.data.iter().all(|value| value.is_finite()) {
            return Err(Error::new("the denoiser made numbers that are not finite")
                .at("latent")
                .expected("finite values")
                .found("NaN or infinity")
                .hint("--precision f32, or another sampler"));
        }
        let state = denoise.state()?;
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

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
