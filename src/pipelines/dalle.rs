//! The spine of DALL-E mini and mega: prompt -> text vectors -> image tokens, one after the other -> picture.
//!
//! Tokens are drawn as `torch.multinomial` on the CPU draws them from one generator of the picture's seed: for every token an
//! exponential for each of the codebook's codes, `-log1p(-u)` of a uniform of 53 bits, and of the quotients of probabilities and
//! exponentials the largest.

use std::collections::VecDeque;
use std::sync::Arc;

use super::dalle_stages::{DalleSettings, PictureStage, TextStage, TokenStage, dalle_graphs, tokenize};
use super::request::Request;
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Resident;
use crate::graph::recording::Submission;
use crate::sampling::TorchGenerator;
use crate::tensor::{DType, HostTensor};
use crate::text::BartTokens;
use crate::weights::dalle::DalleCheckpoint;

/// Steps submitted and not waited for.
const STEPS_UNDER_WAY: usize = 2;

/// A model on a device.
pub struct Dalle {
    gpu: Arc<Gpu>,
    checkpoint: DalleCheckpoint,
    precision: DType,
}

impl Dalle {
    /// A model to be run on `gpu`, its activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: DalleCheckpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &DalleCheckpoint {
        &self.checkpoint
    }

    /// A request with every choice made.
    ///
    /// # Errors
    /// What this kind of model does not have, and numbers that make no sense.
    pub fn settings(checkpoint: &DalleCheckpoint, request: &Request) -> Result<DalleSettings> {
        let pixels = checkpoint.pixels();
        let refused = [
            ("--sampler", request.sampler.is_some(), "tokens are drawn, nothing is denoised"),
            ("--schedule", request.schedule.is_some(), "tokens are drawn, nothing is denoised"),
            ("--steps", request.steps.is_some(), "every image token is one step"),
            ("-W/--width", request.width.is_some_and(|width| width != pixels), "the number of image tokens is fixed"),
            (
                "-H/--height",
                request.height.is_some_and(|height| height != pixels),
                "the number of image tokens is fixed",
            ),
            ("--clip-skip", request.clip_skip.is_some(), "its text encoder is not CLIP's"),
            ("--guidance-rescale", request.guidance_rescale != 0.0, "guidance works on logits"),
            ("--noise-level", request.noise_level.is_some(), "it takes no picture"),
            ("--prior-steps", request.prior_steps.is_some(), "it has no prior"),
            ("--prior-cfg-scale", request.prior_guidance_scale.is_some(), "it has no prior"),
            ("--sr-steps", request.sr_steps.is_some(), "it has no super-resolution stage"),
            ("a picture", request.image.is_some(), "it draws from text alone"),
        ];
        Request::refuse("a DALL-E model", &refused)?;
        let defaults = checkpoint.defaults;
        let settings = DalleSettings {
            guidance_scale: request.guidance_scale.unwrap_or(defaults.guidance_scale),
            top_k: request.top_k.or(defaults.top_k).filter(|k| *k > 0),
            temperature: request.temperature.unwrap_or(defaults.temperature),
        };
        let sound = settings.temperature.is_finite() && settings.temperature > 0.0;
        if !(settings.guidance_scale.is_finite() && sound) {
            let option = if settings.guidance_scale.is_finite() { "--temperature" } else { "--cfg-scale" };
            return Err(Error::usage("number")
                .at(option)
                .expected("a finite, positive one")
                .hint("--top-k 1 for the likeliest tokens"));
        }
        check_exponentials(request.latents.as_ref(), checkpoint)?;
        Ok(settings)
    }
}

/// Exponentials that are given instead of drawn: [tokens, codes], axes of one in front allowed.
fn check_exponentials(given: Option<&HostTensor>, checkpoint: &DalleCheckpoint) -> Result<()> {
    let axes = [checkpoint.config.image_length, checkpoint.drawn() as usize];
    let Some(given) = given else { return Ok(()) };
    let split = given.shape.len().saturating_sub(2);
    let (ones, rest) = given.shape.split_at(split);
    if rest == axes && ones.iter().all(|axis| *axis == 1) && given.data.iter().all(|value| *value > 0.0) {
        return Ok(());
    }
    Err(Error::usage("numbers to draw tokens with")
        .at("--latents")
        .expected(format!("positive exponentials {axes:?}: for every token one for each code"))
        .found(format!("{:?}", given.shape)))
}

impl System for Dalle {
    fn name(&self) -> &str {
        &self.checkpoint.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let settings = Self::settings(&self.checkpoint, &request)?;
        for (_, graph) in dalle_graphs(&self.checkpoint, self.gpu.limits(), self.precision, &settings, false)? {
            if let Some(fault) = graph.fault() {
                return Err(fault.clone());
            }
        }
        Ok(Box::new(DalleDrawing {
            generator: TorchGenerator::new(request.seed),
            model: self,
            request,
            settings,
            phase: Phase::Fresh,
            events: VecDeque::new(),
            tokens: None,
            decode: None,
            flying: VecDeque::new(),
            remaining: count,
            dump: dump.then(Vec::new),
        }))
    }
}

enum Phase {
    Fresh,
    LoadText,
    Encode(Box<TextStage>),
    LoadGenerator(Vec<BartTokens>, Resident),
    Start,
    Step(usize),
    Finish,
    LoadDecoder(Resident),
    Decode,
    Done,
}

/// Pictures in the making.
struct DalleDrawing {
    model: Arc<Dalle>,
    request: Request,
    settings: DalleSettings,
    phase: Phase,
    events: VecDeque<Event>,
    tokens: Option<TokenStage>,
    decode: Option<PictureStage>,
    /// The steps that the adapter has not been seen to finish, the oldest first.
    flying: VecDeque<Submission>,
    generator: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl DalleDrawing {
    fn stage(&self) -> &TokenStage {
        self.tokens.as_ref().unwrap_or_else(|| panic!("the generator is loaded before it is used"))
    }

    /// Drops the generator if no further picture needs it.
    fn release(&mut self) {
        if self.remaining <= 1 {
            self.tokens = None;
        }
    }

    /// Prompts -> tokens and their vectors, those without the prompt first.
    fn encode(&mut self, text: &TextStage) -> Result<(Vec<BartTokens>, Resident)> {
        let negative = self.request.negative_prompt.as_deref().unwrap_or("");
        let prompts = [negative, &self.request.prompt];
        let rows = &prompts[2 - self.settings.batch() as usize..];
        let tokens = tokenize(&self.model.checkpoint, rows)?;
        for tokens in tokens.iter().filter(|tokens| tokens.left_out > 0) {
            let (most, left_out) = (tokens.ids.len() - 2, tokens.left_out);
            let note = format!("the prompt is longer than {most} tokens; the last {left_out} are left out");
            self.events.push_back(Event::Note(note));
        }
        let states = text.run(&tokens)?;
        if let Some(dump) = &mut self.dump {
            let ids = tokens.iter().flat_map(|tokens| &tokens.ids).map(|id| *id as f32).collect();
            let length = self.model.checkpoint.config.text_length;
            dump.push(("token_ids".to_owned(), HostTensor { shape: vec![tokens.len(), length], data: ids }));
            dump.push(("text_states".to_owned(), text.states()?));
        }
        Ok((tokens, states))
    }

    /// Waits for step `index`; the adapter is given the step after it first, so that it never waits for the host.
    fn step(&mut self, index: usize, count: usize) -> Result<()> {
        let ahead = if self.dump.is_some() { 1 } else { STEPS_UNDER_WAY };
        while self.flying.len() < ahead && index + self.flying.len() < count {
            let step = index + self.flying.len();
            let codes = self.model.checkpoint.drawn() as usize;
            let exponentials = match &self.request.latents {
                Some(given) => given.data[step * codes..(step + 1) * codes].to_vec(),
                None => self.generator.exponential(codes),
            };
            let submission = self.stage().step(&exponentials)?;
            self.flying.push_back(submission);
            if let Some(dump) = &mut self.dump {
                dump.push((format!("exponentials.{step}"), HostTensor { shape: vec![codes], data: exponentials }));
            }
        }
        if let Some(submission) = self.flying.pop_front() {
            submission.wait()?;
        }
        if let (Some(dump), Some(stage)) = (&mut self.dump, &self.tokens) {
            dump.push((format!("logits.{index}"), stage.logits()?));
        }
        Ok(())
    }

    /// The finished tokens, checked.
    fn finish(&mut self, count: usize) -> Result<()> {
        let tokens = self.stage().read_tokens(count)?;
        if let Some(dump) = &mut self.dump {
            let data = tokens.iter().map(|token| *token as f32).collect();
            dump.push(("tokens".to_owned(), HostTensor { shape: vec![1, count], data }));
        }
        Ok(())
    }

    /// Tokens -> picture.
    fn decode(&mut self) -> Result<Picture> {
        let decode =
            self.decode.as_ref().unwrap_or_else(|| panic!("the decoder is loaded before the picture is decoded"));
        let rgb = decode.run()?;
        if let Some(dump) = &mut self.dump {
            dump.push(("image".to_owned(), decode.image()?));
        }
        let pixels = self.model.checkpoint.pixels();
        Ok(Picture { width: pixels, height: pixels, rgb })
    }
}

impl Staged for DalleDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> tokens -> picture, and tells what comes after it.
    fn advance(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let Dalle { gpu, checkpoint, precision } = model.as_ref();
        let count = checkpoint.config.image_length;
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::LoadText;
                self.begin(Work::Loading, "loading the text encoder", 0);
            }
            Phase::LoadText => {
                let text = TextStage::new(gpu, checkpoint, *precision, &self.settings)?;
                self.phase = Phase::Encode(Box::new(text));
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode(text) => {
                let (tokens, states) = self.encode(&text)?;
                // What has been submitted holds the encoder's weights: wait, so that they are gone before the next come.
                drop(text);
                gpu.wait()?;
                self.phase = Phase::LoadGenerator(tokens, states);
                self.begin(Work::Loading, "loading the generator", 0);
            }
            Phase::LoadGenerator(tokens, states) => {
                let stage = TokenStage::new(gpu, checkpoint, *precision, &self.settings, &tokens, &states)?;
                self.events.push_back(Event::Note(format!("generator: {} MiB on the adapter", stage.bytes() >> 20)));
                self.tokens = Some(stage);
                self.phase = Phase::Start;
                self.begin(Work::Generating, "drawing image tokens", count);
            }
            Phase::Start => {
                self.generator = TorchGenerator::new(self.request.seed);
                self.flying.clear();
                self.stage().start()?;
                self.phase = Phase::Step(0);
            }
            Phase::Step(index) => {
                self.step(index, count)?;
                self.events.push_back(Event::Step(index + 1, count));
                self.phase = if index + 1 < count { Phase::Step(index + 1) } else { Phase::Finish };
            }
            Phase::Finish => {
                self.finish(count)?;
                self.phase = Phase::LoadDecoder(self.stage().tokens()?);
                self.release();
                if self.decode.is_none() {
                    self.begin(Work::Loading, "loading the decoder", 0);
                }
            }
            Phase::LoadDecoder(tokens) => {
                if self.decode.is_none() {
                    self.decode = Some(PictureStage::new(gpu, checkpoint, *precision, &self.settings, &tokens)?);
                }
                self.phase = Phase::Decode;
                self.begin(Work::Decoding, "decoding", 0);
            }
            Phase::Decode => {
                let picture = self.decode()?;
                self.remaining = self.remaining.saturating_sub(1);
                self.events.push_back(Event::Picture(picture));
            }
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for DalleDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for DalleDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        check_exponentials(variation.latents.as_ref(), &self.model.checkpoint)?;
        if self.tokens.is_none() || self.remaining == 0 {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        (self.request.seed, self.request.latents) = (variation.seed, variation.latents);
        self.dump = dump.then(Vec::new);
        self.phase = Phase::Start;
        let count = self.model.checkpoint.config.image_length;
        self.begin(Work::Generating, "drawing image tokens", count);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let DalleSettings { guidance_scale, top_k, temperature } = self.settings;
        let top_k = top_k.map_or_else(|| "all".to_owned(), |k| k.to_string());
        Summary {
            guidance_scale: Some(guidance_scale),
            further: vec![("Top-k", top_k), ("Temperature", temperature.to_string())],
            ..Summary::default()
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        Some([self.model.checkpoint.pixels(); 2])
    }

    fn image(&self) -> Result<HostTensor> {
        match &self.decode {
            Some(decode) => decode.image(),
            None => Err(Error::new("there is no picture yet").at("Drawing::image")),
        }
    }

    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
