//! The spine of Imagen, as DeepFloyd IF has it: prompt -> T5's text vectors -> a small picture -> the same, enlarged.
//!
//! Every stage is a UNet over pixels; those behind the first read the picture of the one before them, with noise. All of them
//! read the same text vectors, and one generator of the seed draws all noise in diffusers' order: of each stage its
//! first sample, then the noise on the picture that it enlarges, then that of its steps.

use std::collections::VecDeque;
use std::sync::Arc;

use super::imagen_stages::{Graphs, PixelStage, StageSettings, TOKENS};
use super::request::Request;
use super::stages::{Side, cut_note};
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use super::t5_stage::TextStage;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::graph::executor::Resident;
use crate::kernels::Limits;
use crate::sampling::TorchGenerator;
use crate::tensor::{DType, HostTensor};
use crate::weights::imagen::{ImagenStage, check_widths};

/// Stages on a device, of which the first draws from text, or enlarges a picture that is given.
pub struct Imagen {
    gpu: Arc<Gpu>,
    stages: Vec<ImagenStage>,
    precision: DType,
}

impl Imagen {
    /// `stages` one after the other on `gpu`, activations and matrices stored as `precision` (f32 or f16).
    ///
    /// # Errors
    /// No stage has a text encoder, or one that does not fit; a later stage enlarges nothing.
    pub fn new(gpu: Arc<Gpu>, stages: Vec<ImagenStage>, precision: DType) -> Result<Self> {
        check_stages(&stages)?;
        Ok(Self { gpu, stages, precision })
    }

    /// The stages.
    pub fn stages(&self) -> &[ImagenStage] {
        &self.stages
    }
}

/// The stages must make a chain.
fn check_stages(stages: &[ImagenStage]) -> Result<()> {
    let Some(text) = stages.iter().find_map(|stage| stage.text.as_ref()) else {
        let name = stages.first().map_or("", |stage| stage.name.as_str());
        return Err(Error::new("no text encoder")
            .at(name)
            .expected("a stage with a text encoder")
            .hint("drawing with -m STAGE-I --then STAGE-II, which takes that of the first"));
    };
    for (position, stage) in stages.iter().enumerate() {
        check_widths(&stage.unet.config, text.config.width, &stage.name)?;
        if position > 0 && !stage.enlarges() {
            return Err(Error::usage("a stage that enlarges nothing")
                .at("--then")
                .expected("an IFSuperResolutionPipeline")
                .found(&stage.name));
        }
    }
    Ok(())
}

/// Every stage's settings for a request.
///
/// # Errors
/// What these models do not have, and what a stage refuses.
pub fn imagen_settings(stages: &[ImagenStage], request: &Request) -> Result<Vec<StageSettings>> {
    let enlarges = stages.first().is_some_and(ImagenStage::enlarges);
    let refused = [
        ("--clip-skip", request.clip_skip.is_some(), "its text encoder is T5"),
        ("--guidance-rescale", request.guidance_rescale != 0.0, "its predictions have a variance"),
        ("--top-k", request.top_k.is_some(), "pictures are denoised"),
        ("--temperature", request.temperature.is_some(), "pictures are denoised"),
        ("--prior-steps", request.prior_steps.is_some(), "it has no prior"),
        ("--prior-cfg-scale", request.prior_guidance_scale.is_some(), "it has no prior"),
        ("--sr-steps", request.sr_steps.is_some() && stages.len() < 2, "it is a stage alone"),
        (
            "--noise-level",
            request.noise_level.is_some() && !stages.iter().any(ImagenStage::enlarges),
            "it takes no picture",
        ),
        ("a picture", request.image.is_some() && !enlarges, "its first stage draws from text alone"),
    ];
    Request::refuse("this model", &refused)?;
    if enlarges && request.image.is_none() {
        return Err(Error::usage("no picture to enlarge").at(&stages[0].name).hint("-m STAGE-I --then STAGE-II"));
    }
    let count = stages.len();
    stages.iter().enumerate().map(|(at, stage)| StageSettings::resolve(stage, request, at, count)).collect()
}

/// Every graph of these stages, by name. Needs no GPU and reads no weights.
///
/// # Errors
/// A missing or an unexpected tensor.
pub fn imagen_graphs(
    stages: &[ImagenStage],
    limits: Limits,
    precision: DType,
    settings: &[StageSettings],
    picture: Option<[u32; 2]>,
) -> Result<Vec<(String, Graph)>> {
    let mut all = Vec::new();
    if let Some(text) = stages.iter().find_map(|stage| stage.text.as_ref()) {
        for (name, graph) in TextStage::graphs(text, limits, precision, 2, TOKENS)? {
            all.push((name, graph));
        }
    }
    let mut from = picture;
    for (position, (stage, settings)) in stages.iter().zip(settings).enumerate() {
        let graphs = Graphs::build(stage, settings, limits, precision, from.filter(|_| stage.enlarges()))?;
        all.extend(graphs.named().into_iter().map(|(name, graph)| (format!("{} {name}", position + 1), graph)));
        all.push((format!("{} scheduler", position + 1), settings.run(3).graph(limits, precision)));
        from = Some([settings.height, settings.width]);
    }
    Ok(all)
}

impl System for Imagen {
    fn name(&self) -> &str {
        &self.stages[0].name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let settings = imagen_settings(&self.stages, &request)?;
        check_given(&request, &settings)?;
        let from = request.image.as_ref().map(size_of);
        for (_, graph) in imagen_graphs(&self.stages, self.gpu.limits(), self.precision, &settings, from)? {
            if let Some(fault) = graph.fault() {
                return Err(fault.clone());
            }
        }
        Ok(Box::new(ImagenDrawing {
            generator: TorchGenerator::new(request.seed),
            model: self,
            request,
            settings,
            phase: Phase::Fresh,
            events: VecDeque::new(),
            prompts: Vec::new(),
            loaded: None,
            picture: None,
            remaining: count,
            dump: dump.then(Vec::new),
        }))
    }
}

/// Noise and picture that are given must have their shapes.
fn check_given(request: &Request, settings: &[StageSettings]) -> Result<()> {
    let StageSettings { height, width, .. } = settings[0];
    let axes = [1, 3, height as usize, width as usize];
    if let Some(latents) = request.latents.as_ref().filter(|latents| latents.shape != axes) {
        return Err(Error::usage("initial noise of another shape")
            .at("--latents")
            .expected(format!("{axes:?}"))
            .found(format!("{:?}", latents.shape)));
    }
    let picture = request.image.as_ref();
    match picture.filter(|image| image.shape.len() != 4 || image.shape[..2] != [1, 3] || image.data.is_empty()) {
        None => Ok(()),
        Some(image) => Err(Error::usage("picture").expected("[1, 3, H, W]").found(format!("{:?}", image.shape))),
    }
}

/// Height and width of [1, 3, H, W].
fn size_of(picture: &HostTensor) -> [u32; 2] {
    [picture.shape[2] as u32, picture.shape[3] as u32]
}

enum Phase {
    Fresh,
    Encode,
    /// The stage of this position.
    Load(usize),
    Start(usize),
    Step(usize, usize),
    Finish(usize),
    Done,
}

/// Pictures in the making.
struct ImagenDrawing {
    model: Arc<Imagen>,
    request: Request,
    settings: Vec<StageSettings>,
    phase: Phase,
    events: VecDeque<Event>,
    /// The encoded prompts, the negative one first.
    prompts: Vec<(Side, Resident)>,
    /// The stage on the GPU, and its position.
    loaded: Option<(usize, PixelStage)>,
    /// The last stage's picture [1, 3, H, W].
    picture: Option<HostTensor>,
    generator: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl ImagenDrawing {
    /// Goes on with a stage, which may be loaded already.
    fn load_next(&mut self, position: usize) {
        if self.loaded.as_ref().is_some_and(|(loaded, _)| *loaded == position) {
            return self.start_next(position);
        }
        self.phase = Phase::Load(position);
        self.begin(Work::Loading, "loading the denoiser", 0);
    }

    fn start_next(&mut self, position: usize) {
        self.phase = Phase::Start(position);
        let what = if self.model.stages[position].enlarges() { "enlarging" } else { "denoising" };
        self.begin(Work::Generating, what, self.settings[position].program.evaluations.len());
    }

    /// The picture that a stage enlarges.
    fn source(&self, position: usize) -> Option<&HostTensor> {
        let enlarges = self.model.stages[position].enlarges();
        let picture = if position == 0 { self.request.image.as_ref() } else { self.picture.as_ref() };
        picture.filter(|_| enlarges)
    }

    fn stage(&mut self) -> &mut PixelStage {
        let loaded = self.loaded.as_mut().map(|(_, stage)| stage);
        loaded.unwrap_or_else(|| panic!("a stage is loaded before it is used"))
    }

    fn keep(&mut self, name: String, make: impl FnOnce() -> Result<HostTensor>) -> Result<()> {
        if let Some(dump) = &mut self.dump {
            dump.push((name, make()?));
        }
        Ok(())
    }

    /// Prompts -> text vectors, the negative one's first.
    fn encode(&mut self, gpu: &Arc<Gpu>, text: &TextStage<'_>) -> Result<()> {
        let guided = self.settings.iter().any(StageSettings::guided);
        let negative = self.request.negative_prompt.clone().unwrap_or_default();
        let sides = [(Side::Negative, negative), (Side::Prompt, self.request.prompt.clone())];
        let wanted: Vec<(Side, String)> =
            sides.into_iter().filter(|(side, _)| guided || *side == Side::Prompt).collect();
        let texts: Vec<&str> = wanted.iter().map(|(_, text)| text.as_str()).collect();
        let encoded = text.run(gpu, &texts)?;
        for ((side, _), encoded) in wanted.iter().zip(encoded) {
            self.events.extend(encoded.cut.iter().map(|part| cut_note(part)));
            let name = if *side == Side::Prompt { "text_embeddings" } else { "negative_text_embeddings" };
            let vectors = encoded.vectors;
            self.keep(name.to_owned(), || text.read(gpu, &vectors))?;
            self.prompts.push((*side, vectors));
        }
        Ok(())
    }

    /// The name of a dumped tensor; those of later stages say which.
    fn name(position: usize, what: &str) -> String {
        if position == 0 { what.to_owned() } else { format!("{}.{what}", position + 1) }
    }

    /// The first sample of a stage, and the picture that it enlarges.
    fn start(&mut self, position: usize) -> Result<()> {
        if position == 0 {
            self.generator = TorchGenerator::new(self.request.seed);
        }
        let run = self.settings[position].run(3);
        let noise = match self.request.latents.clone().filter(|_| position == 0) {
            Some(noise) => noise,
            None => run.draw(&mut self.generator),
        };
        self.keep(Self::name(position, "noise"), || Ok(noise.clone()))?;
        if let Some(picture) = self.source(position).cloned() {
            let added = run.draw(&mut self.generator);
            let level = self.settings[position].noise_level;
            let low = self.stage().enlarge(&picture, &added, level)?;
            self.keep(Self::name(position, "picture_noise"), || Ok(added))?;
            if let Some(low) = low {
                self.keep(Self::name(position, "low"), || Ok(low))?;
            }
        }
        self.stage().denoiser.start(&noise)
    }

    /// Waits for step `index`, while the adapter goes on to the one after it, unless intermediates are kept.
    fn step(&mut self, index: usize, end: usize) -> Result<()> {
        let alone = self.dump.is_some();
        let Some((position, stage)) = &mut self.loaded else { return Ok(()) };
        stage.denoiser.step(index, end, alone, &mut self.generator)?;
        if let Some(dump) = &mut self.dump {
            dump.push((Self::name(*position, &format!("latents.{index}")), stage.denoiser.latent()?));
        }
        Ok(())
    }

    /// The stage's picture, which the next one enlarges or which is the last.
    fn finish(&mut self, position: usize) -> Result<()> {
        let picture = self.stage().denoiser.finished()?;
        if position + 1 < self.model.stages.len() {
            self.keep(Self::name(position, "picture"), || Ok(picture.clone()))?;
            self.picture = Some(picture);
            self.load_next(position + 1);
            return Ok(());
        }
        let rgb = self.stage().pixels(&picture)?;
        self.keep("image".to_owned(), || Ok(picture.clone()))?;
        let [height, width] = size_of(&picture);
        self.picture = Some(picture);
        self.remaining = self.remaining.saturating_sub(1);
        self.events.push_back(Event::Picture(Picture { width, height, rgb }));
        Ok(())
    }
}

impl Staged for ImagenDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> picture -> larger picture, and tells what comes after it.
    fn advance(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let Imagen { gpu, stages, precision } = model.as_ref();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                // Its layers are loaded one group after another, each when the one before has run.
                self.phase = Phase::Encode;
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode => {
                if let Some(part) = stages.iter().find_map(|stage| stage.text.as_ref()) {
                    self.encode(gpu, &TextStage::new(part, *precision, TOKENS)?)?;
                }
                self.load_next(0);
            }
            Phase::Load(position) => {
                let from = self.source(position).map(size_of);
                let parts = (&stages[position], &self.settings[position]);
                // The stage before is gone before the next one comes.
                self.loaded = None;
                gpu.wait()?;
                let stage = PixelStage::new(gpu, parts, *precision, from, &self.prompts)?;
                self.events.push_back(Event::Note(format!("denoiser: {} MiB on the adapter", stage.bytes() >> 20)));
                self.loaded = Some((position, stage));
                self.start_next(position);
            }
            Phase::Start(position) => {
                self.start(position)?;
                self.phase = Phase::Step(position, 0);
            }
            Phase::Step(position, index) => {
                let count = self.settings[position].program.evaluations.len();
                self.step(index, count)?;
                self.events.push_back(Event::Step(index + 1, count));
                self.phase = if index + 1 < count { Phase::Step(position, index + 1) } else { Phase::Finish(position) };
            }
            Phase::Finish(position) => self.finish(position)?,
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for ImagenDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for ImagenDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        let Variation { seed, latents, image } = variation;
        if self.remaining == 0 || self.prompts.is_empty() {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        let other = |image: &HostTensor| self.request.image.as_ref().is_none_or(|old| old.shape != image.shape);
        if let Some(image) = image.as_ref().filter(|image| other(image)) {
            return Err(Error::usage("a picture of another size").found(format!("{:?}", image.shape)));
        }
        (self.request.seed, self.request.latents) = (seed, latents);
        self.request.image = image.or_else(|| self.request.image.take());
        check_given(&self.request, &self.settings)?;
        self.dump = dump.then(Vec::new);
        self.load_next(0);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let StageSettings { guidance_scale, scheduler, list, program, .. } = &self.settings[0];
        let schedule = list.clone().unwrap_or_else(|| scheduler.schedule().to_string());
        let mut further = Vec::new();
        for (stage, settings) in self.model.stages.iter().zip(&self.settings) {
            if stage.enlarges() {
                further.push(("Noise level", settings.noise_level.to_string()));
            }
        }
        further
            .extend(self.settings.iter().skip(1).map(|next| ("SR steps", next.program.evaluations.len().to_string())));
        Summary {
            steps: Some(program.evaluations.len() as u32),
            guidance_scale: Some(*guidance_scale),
            sampler: Some(scheduler.sampler().to_string()),
            schedule: Some(schedule),
            further,
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        self.settings.last().map(|last| [last.height, last.width])
    }

    fn image(&self) -> Result<HostTensor> {
        let error = || Error::new("no picture yet").at("Drawing::image");
        self.picture.clone().ok_or_else(error)
    }

    /// The sample as it is, which diffusers' pipelines of pixels do not cut.
    fn handed(&self) -> Result<HostTensor> {
        self.image()
    }

    /// Text vectors, noise, the sample after each evaluation, the picture; with the stage's number from the second on.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
