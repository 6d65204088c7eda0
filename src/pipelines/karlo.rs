//! The spine of DALL-E 2 as Karlo has it (Ramesh et al. 2022, arXiv:2204.06125; diffusers `UnCLIPPipeline`): prompt -> CLIP's text
//! vectors -> a picture's embedding, by the prior -> a small picture, by the decoder -> the same, enlarged.
//!
//! One generator of the seed draws all noise in diffusers' order: of each stage its first sample, then that of its steps. The last
//! step of the enlargement is another UNet's. A stage is gone from the device before the next one comes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clip_stage::{ClipStage, ClipText};
use super::denoiser::{Denoiser, Standing};
use super::karlo_stages::{
    DecoderGraphs, KarloSettings, enlarge, enlarge_graph, load_decoder, load_super_resolution, super_resolution_graph,
};
use super::pixels::{self, PixelsStage};
use super::prior::{PriorGraphs, PriorStage};
use super::request::Request;
use super::stages::cut_note;
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::graph::executor::Resident;
use crate::kernels::Limits;
use crate::sampling::TorchGenerator;
use crate::tensor::{DType, HostTensor};
use crate::weights::karlo::KarloCheckpoint;

/// Karlo on a device.
pub struct Karlo {
    gpu: Arc<Gpu>,
    checkpoint: KarloCheckpoint,
    precision: DType,
}

impl Karlo {
    /// `checkpoint` on `gpu`, activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: KarloCheckpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision }
    }

    /// The model.
    pub fn checkpoint(&self) -> &KarloCheckpoint {
        &self.checkpoint
    }
}

/// Every graph for pictures of `settings`, by name. Needs no GPU and reads no weights.
///
/// # Errors
/// A missing or an unexpected tensor.
pub fn karlo_graphs(
    checkpoint: &KarloCheckpoint,
    limits: Limits,
    precision: DType,
    settings: &KarloSettings,
) -> Result<Vec<(&'static str, Graph)>> {
    let mut all = vec![("text", ClipStage::graph(&checkpoint.prior.text, limits, precision)?)];
    all.extend(PriorGraphs::build(&checkpoint.prior, &settings.prior, limits, precision)?.named());
    all.push(("prior scheduler", settings.prior.run().graph(limits, precision)));
    let decoder = DecoderGraphs::build(checkpoint, settings, limits, precision)?;
    all.extend([("decoder text", decoder.text), ("decoder", decoder.unet)]);
    all.push(("decoder scheduler", settings.decoder_run().graph(limits, precision)));
    let large = &settings.super_resolution;
    all.push(("enlarged picture", enlarge_graph(settings.decoder.size, large.size, limits, precision)));
    let [first, last] = &checkpoint.super_resolution;
    for (name, part) in [("super resolution", first), ("super resolution's last step", last)] {
        all.push((name, super_resolution_graph(part, large, limits, precision)?));
    }
    all.push(("super resolution scheduler", settings.super_resolution_run().graph(limits, precision)));
    all.push(("pixels", pixels::graph(large.size, limits)));
    Ok(all)
}

impl System for Karlo {
    fn name(&self) -> &str {
        &self.checkpoint.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let settings = KarloSettings::resolve(&self.checkpoint, &request)?;
        for (_, graph) in karlo_graphs(&self.checkpoint, self.gpu.limits(), self.precision, &settings)? {
            if let Some(fault) = graph.fault() {
                return Err(fault.clone());
            }
        }
        Ok(Box::new(KarloDrawing {
            model: self,
            generator: TorchGenerator::new(request.seed),
            request,
            settings,
            phase: Phase::Fresh,
            events: VecDeque::new(),
            texts: Vec::new(),
            embedding: None,
            low: None,
            standing: None,
            loaded: Loaded::Nothing,
            picture: None,
            remaining: count,
            dump: dump.then(Vec::new),
        }))
    }
}

/// The stages that denoise, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prior,
    Decoder,
    /// All steps of the enlargement but the last.
    First,
    Last,
}

impl Stage {
    /// What loading it and running it are called, and what it is.
    fn words(self) -> [&'static str; 3] {
        match self {
            Self::Prior => ["loading the prior", "making the picture's embedding", "prior"],
            Self::Decoder => ["loading the decoder", "denoising", "decoder"],
            Self::First => ["loading the denoiser that enlarges", "enlarging", "denoiser that enlarges"],
            Self::Last => {
                ["loading the denoiser of the last step", "enlarging, last step", "denoiser of the last step"]
            }
        }
    }

    /// Its name among dumped tensors.
    fn name(self) -> &'static str {
        match self {
            Self::Prior => "prior.",
            Self::Decoder => "",
            Self::First | Self::Last => "sr.",
        }
    }
}

enum Phase {
    Fresh,
    Encode,
    Load(Stage),
    Start(Stage),
    Step(Stage, usize),
    Finish(Stage),
    Done,
}

/// The stage on the GPU.
enum Loaded {
    Nothing,
    Prior(Box<PriorStage>),
    Picture(Box<Denoiser>),
}

/// Pictures in the making.
struct KarloDrawing {
    model: Arc<Karlo>,
    request: Request,
    settings: KarloSettings,
    phase: Phase,
    events: VecDeque<Event>,
    /// With guidance the empty text and the prompt, else the prompt.
    texts: Vec<ClipText>,
    /// The picture's, from the prior.
    embedding: Option<Resident>,
    /// The enlarged small picture.
    low: Option<Resident>,
    /// Where the enlargement stands between its two UNets.
    standing: Option<Standing>,
    loaded: Loaded,
    /// [1, 3, H, W], the small one and then the last.
    picture: Option<HostTensor>,
    generator: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl KarloDrawing {
    fn load_next(&mut self, stage: Stage) {
        self.phase = Phase::Load(stage);
        self.begin(Work::Loading, stage.words()[0], 0);
    }

    /// The steps of a stage, as places in its program.
    fn steps(&self, stage: Stage) -> std::ops::Range<usize> {
        let large = self.settings.super_resolution.program.evaluations.len();
        match stage {
            Stage::Prior => 0..self.settings.prior.program.evaluations.len(),
            Stage::Decoder => 0..self.settings.decoder.program.evaluations.len(),
            Stage::First => 0..large - 1,
            Stage::Last => large - 1..large,
        }
    }

    fn keep(&mut self, stage: Stage, name: &str, make: impl FnOnce() -> Result<HostTensor>) -> Result<()> {
        if let Some(dump) = &mut self.dump {
            dump.push((format!("{}{name}", stage.name()), make()?));
        }
        Ok(())
    }

    /// The prompt, and with guidance the empty one before it -> their vectors.
    fn encode(&mut self) -> Result<()> {
        let Karlo { gpu, checkpoint, precision } = self.model.as_ref();
        let encoder = ClipStage::new(gpu, &checkpoint.prior.text, *precision)?;
        let mut texts = if self.settings.guided { vec![encoder.run("")?] } else { Vec::new() };
        texts.push(encoder.run(&self.request.prompt)?);
        self.events.extend(texts.iter().filter_map(|text| text.cut.as_deref()).map(cut_note));
        if let Some(dump) = &mut self.dump {
            let names: &[&str] = if texts.len() > 1 { &["negative_", ""] } else { &[""] };
            for (text, name) in texts.iter().zip(names) {
                let (vectors, embedding) = (text.vectors.read(gpu)?, text.embedding.read(gpu)?);
                let shape = vec![1, vectors.shape[1], vectors.shape[3]];
                dump.push((format!("{name}text_embeddings"), HostTensor { shape, ..vectors }));
                let shape = vec![1, embedding.data.len()];
                dump.push((format!("{name}text_embedding"), HostTensor { shape, ..embedding }));
            }
        }
        self.texts = texts;
        Ok(())
    }

    /// Puts a stage on the device, the one before being gone.
    fn load(&mut self, stage: Stage) -> Result<()> {
        let model = Arc::clone(&self.model);
        let Karlo { gpu, checkpoint, precision } = model.as_ref();
        self.loaded = Loaded::Nothing;
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let texts: Vec<&ClipText> = self.texts.iter().collect();
        let missing = || Error::new("a stage without the one before it").at(stage.words()[0]);
        let settings = &self.settings;
        self.loaded = match stage {
            Stage::Prior => {
                Loaded::Prior(Box::new(PriorStage::new(gpu, &checkpoint.prior, &settings.prior, *precision, &texts)?))
            }
            Stage::Decoder => {
                let image = self.embedding.as_ref().ok_or_else(missing)?;
                Loaded::Picture(Box::new(load_decoder(gpu, checkpoint, settings, *precision, (&texts, image))?))
            }
            Stage::First | Stage::Last => {
                if stage == Stage::First {
                    let picture = self.picture.as_ref().ok_or_else(missing)?;
                    self.low = Some(enlarge(gpu, picture, &settings.super_resolution, *precision)?);
                }
                let part = &checkpoint.super_resolution[usize::from(stage == Stage::Last)];
                let standing = self.standing.take();
                let given = (self.low.as_ref().ok_or_else(missing)?, standing.as_ref());
                Loaded::Picture(Box::new(load_super_resolution(gpu, part, settings, *precision, given)?))
            }
        };
        let bytes = match &self.loaded {
            Loaded::Prior(prior) => prior.bytes(),
            Loaded::Picture(denoiser) => denoiser.bytes(),
            Loaded::Nothing => 0,
        };
        self.events.push_back(Event::Note(format!("{}: {} MiB on the adapter", stage.words()[2], bytes >> 20)));
        Ok(())
    }

    /// The first sample of a stage, the generator's next noise.
    fn start(&mut self, stage: Stage) -> Result<()> {
        let run = match stage {
            Stage::Prior => {
                self.generator = TorchGenerator::new(self.request.seed);
                self.settings.prior.run()
            }
            Stage::Decoder => self.settings.decoder_run(),
            Stage::First => self.settings.super_resolution_run(),
            Stage::Last => return Ok(()),
        };
        let noise = match &mut self.loaded {
            Loaded::Prior(prior) => prior.start(&mut self.generator)?,
            Loaded::Picture(denoiser) => {
                let noise = run.draw(&mut self.generator);
                denoiser.start(&noise)?;
                noise
            }
            Loaded::Nothing => return Ok(()),
        };
        self.keep(stage, "noise", || Ok(noise))?;
        if let (Stage::First, Some(low), true) = (stage, self.low.clone(), self.dump.is_some()) {
            let low = low.read(&self.model.gpu)?.channels_first();
            self.keep(stage, "low", || Ok(low))?;
        }
        Ok(())
    }

    /// Waits for step `index`, while the adapter goes on to the one after it, unless intermediates are kept.
    fn step(&mut self, stage: Stage, index: usize, end: usize) -> Result<()> {
        let alone = self.dump.is_some();
        let denoiser = match &mut self.loaded {
            Loaded::Prior(prior) => &mut prior.denoiser,
            Loaded::Picture(denoiser) => denoiser,
            Loaded::Nothing => return Ok(()),
        };
        denoiser.step(index, end, alone, &mut self.generator)?;
        if let Some(dump) = &mut self.dump {
            let latents = match &self.loaded {
                Loaded::Prior(prior) => prior.latents()?,
                Loaded::Picture(denoiser) => denoiser.latent()?,
                Loaded::Nothing => return Ok(()),
            };
            dump.push((format!("{}latents.{index}", stage.name()), latents));
        }
        Ok(())
    }

    /// What the stage made goes to the next one, or is the picture.
    fn finish(&mut self, stage: Stage) -> Result<()> {
        let gpu = Arc::clone(&self.model.gpu);
        let next = match (&self.loaded, stage) {
            (Loaded::Prior(prior), _) => {
                let (mut embeddings, read) = prior.finished(&gpu)?;
                self.embedding = embeddings.pop();
                self.keep(stage, "embedding", || Ok(read))?;
                Stage::Decoder
            }
            (Loaded::Picture(denoiser), Stage::First) => {
                self.standing = Some(denoiser.standing()?);
                Stage::Last
            }
            (Loaded::Picture(denoiser), _) => {
                let picture = denoiser.finished()?;
                self.picture = Some(picture.clone());
                if stage == Stage::Last {
                    return self.paint(&gpu, &picture);
                }
                self.keep(stage, "picture", || Ok(picture))?;
                Stage::First
            }
            (Loaded::Nothing, _) => return Ok(()),
        };
        self.load_next(next);
        Ok(())
    }

    fn paint(&mut self, gpu: &Arc<Gpu>, picture: &HostTensor) -> Result<()> {
        let size = [picture.shape[2], picture.shape[3]].map(|axis| axis as u32);
        let rgb = PixelsStage::new(gpu, size)?.run(picture)?;
        self.keep(Stage::Decoder, "image", || Ok(picture.clone()))?;
        self.remaining = self.remaining.saturating_sub(1);
        let [height, width] = size;
        self.events.push_back(Event::Picture(Picture { width, height, rgb }));
        Ok(())
    }
}

impl Staged for KarloDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> embedding -> small picture -> picture, and tells what comes
    /// after it.
    fn advance(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::Encode;
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode => {
                self.encode()?;
                self.load_next(Stage::Prior);
            }
            Phase::Load(stage) => {
                self.load(stage)?;
                self.phase = Phase::Start(stage);
                let work = if matches!(stage, Stage::First | Stage::Last) { Work::Decoding } else { Work::Generating };
                self.begin(work, stage.words()[1], self.steps(stage).len());
            }
            Phase::Start(stage) => {
                self.start(stage)?;
                self.phase = Phase::Step(stage, self.steps(stage).start);
            }
            Phase::Step(stage, index) => {
                let steps = self.steps(stage);
                self.step(stage, index, steps.end)?;
                self.events.push_back(Event::Step(index + 1 - steps.start, steps.len()));
                self.phase = if index + 1 < steps.end { Phase::Step(stage, index + 1) } else { Phase::Finish(stage) };
            }
            Phase::Finish(stage) => self.finish(stage)?,
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for KarloDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for KarloDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        let Variation { seed, latents, image } = variation;
        if self.remaining == 0 || self.texts.is_empty() {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        self.request = Request { seed, latents, image, ..self.request.clone() };
        KarloSettings::resolve(&self.model.checkpoint, &self.request)?;
        self.dump = dump.then(Vec::new);
        self.load_next(Stage::Prior);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let KarloSettings { prior, decoder, guidance_scale, super_resolution, .. } = &self.settings;
        let steps = |program: &crate::sampling::Program| program.evaluations.len();
        Summary {
            steps: Some(steps(&decoder.program) as u32),
            guidance_scale: Some(*guidance_scale),
            sampler: Some(decoder.program.sampler.to_string()),
            schedule: None,
            further: vec![
                ("Prior steps", steps(&prior.program).to_string()),
                ("Prior CFG scale", prior.guidance_scale.to_string()),
                ("SR steps", steps(&super_resolution.program).to_string()),
            ],
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        Some(self.settings.super_resolution.size)
    }

    fn image(&self) -> Result<HostTensor> {
        let error = || Error::new("no picture yet").at("Drawing::image");
        self.picture.clone().ok_or_else(error)
    }

    /// Text vectors and embeddings; of the prior (`prior.`), the decoder and the enlargement (`sr.`) the noise and the sample
    /// after each step; `prior.embedding`, `picture`, `sr.low`; `image`.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
