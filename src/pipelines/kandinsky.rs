//! The spine of Kandinsky 2.2 (diffusers `KandinskyV22PriorPipeline`, then `KandinskyV22Pipeline`): prompt -> CLIP's text vectors -> a
//! picture's embedding, by the prior -> a latent, by the UNet -> the picture, by MoVQ's decoder.
//!
//! One generator of the seed draws all noise, as a caller of diffusers hands it from pipeline to pipeline: of each its first
//! sample, then that of its steps. The UNet's guidance leads away from what the prior makes of the negative prompt, or without one
//! from the embedding of a black picture. A stage is gone from the device before the next one comes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clip_stage::{ClipStage, ClipText};
use super::denoiser::Denoiser;
use super::kandinsky_stages::{KandinskySettings, MovqStage, UnetGraphs, black, image_graph, load_unet, movq_graph};
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
use crate::weights::kandinsky::KandinskyCheckpoint;

/// Kandinsky 2.2 on a device.
pub struct Kandinsky {
    gpu: Arc<Gpu>,
    checkpoint: KandinskyCheckpoint,
    precision: DType,
}

impl Kandinsky {
    /// `checkpoint` on `gpu`, activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: KandinskyCheckpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision }
    }

    /// The model.
    pub fn checkpoint(&self) -> &KandinskyCheckpoint {
        &self.checkpoint
    }
}

/// Every graph for a picture of `settings`, by name. Needs no GPU and reads no weights.
///
/// # Errors
/// A missing or an unexpected tensor.
pub fn kandinsky_graphs(
    checkpoint: &KandinskyCheckpoint,
    limits: Limits,
    precision: DType,
    settings: &KandinskySettings,
) -> Result<Vec<(&'static str, Graph)>> {
    let mut all = vec![("text", ClipStage::graph(&checkpoint.prior.text, limits, precision)?)];
    all.extend(PriorGraphs::build(&checkpoint.prior, &settings.prior, limits, precision)?.named());
    all.push(("prior scheduler", settings.prior.run().graph(limits, precision)));
    if settings.black() {
        all.push(("black picture", image_graph(checkpoint, limits, precision)?));
    }
    let unet = UnetGraphs::build(checkpoint, settings, limits, precision)?;
    all.extend([("embedding", unet.image), ("unet", unet.unet)]);
    all.push(("scheduler", settings.run().graph(limits, precision)));
    all.push(("movq", movq_graph(checkpoint, settings, limits, precision)?));
    Ok(all)
}

impl System for Kandinsky {
    fn name(&self) -> &str {
        &self.checkpoint.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let settings = KandinskySettings::resolve(&self.checkpoint, &request)?;
        for (_, graph) in kandinsky_graphs(&self.checkpoint, self.gpu.limits(), self.precision, &settings)? {
            if let Some(fault) = graph.fault() {
                return Err(fault.clone());
            }
        }
        let mut events = VecDeque::new();
        let [height, width] = settings.size;
        if [request.height, request.width]
            .into_iter()
            .zip([height, width])
            .any(|(asked, made)| asked.is_some_and(|asked| asked != made))
        {
            events.push_back(Event::Note(format!(
                "the picture grows to {width} x {height} pixels, which the model can draw"
            )));
        }
        Ok(Box::new(KandinskyDrawing {
            model: self,
            generator: TorchGenerator::new(request.seed),
            request,
            settings,
            phase: Phase::Fresh,
            events,
            texts: Vec::new(),
            away: None,
            embeddings: Vec::new(),
            loaded: Loaded::Nothing,
            movq: None,
            remaining: count,
            dump: dump.then(Vec::new),
        }))
    }
}

/// The stages that denoise, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prior,
    Picture,
}

impl Stage {
    /// What loading it and running it are called.
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Prior => ["loading the prior", "making the picture's embedding"],
            Self::Picture => ["loading the denoiser", "denoising"],
        }
    }

    /// Its name among dumped tensors.
    fn name(self) -> &'static str {
        match self {
            Self::Prior => "prior.",
            Self::Picture => "",
        }
    }
}

enum Phase {
    Fresh,
    Encode,
    /// The black picture's embedding is made.
    Black,
    Load(Stage),
    Start(Stage),
    Step(Stage, usize),
    Finish,
    LoadDecoder(Resident),
    Decode(Resident),
    Done,
}

/// The stage on the GPU.
enum Loaded {
    Nothing,
    Prior(Box<PriorStage>),
    Picture(Box<Denoiser>),
}

/// Pictures in the making.
struct KandinskyDrawing {
    model: Arc<Kandinsky>,
    request: Request,
    settings: KandinskySettings,
    phase: Phase,
    events: VecDeque<Event>,
    /// The prompt, then the negative one, or with the prior's guidance an empty one.
    texts: Vec<ClipText>,
    /// The black picture's embedding, where guidance leads away from it.
    away: Option<Resident>,
    /// What the prior made, of the prompt and perhaps of the negative one.
    embeddings: Vec<Resident>,
    loaded: Loaded,
    movq: Option<MovqStage>,
    generator: TorchGenerator,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl KandinskyDrawing {
    fn load_next(&mut self, stage: Stage) {
        self.phase = Phase::Load(stage);
        self.begin(Work::Loading, stage.words()[0], 0);
    }

    /// Evaluations of a stage.
    fn steps(&self, stage: Stage) -> usize {
        match stage {
            Stage::Prior => self.settings.prior.program.evaluations.len(),
            Stage::Picture => self.settings.program.evaluations.len(),
        }
    }

    fn keep(&mut self, stage: Stage, name: &str, make: impl FnOnce() -> Result<HostTensor>) -> Result<()> {
        if let Some(dump) = &mut self.dump {
            dump.push((format!("{}{name}", stage.name()), make()?));
        }
        Ok(())
    }

    /// The prompt and its other side -> their vectors.
    fn encode(&mut self) -> Result<()> {
        let Kandinsky { gpu, checkpoint, precision } = self.model.as_ref();
        let encoder = ClipStage::new(gpu, &checkpoint.prior.text, *precision)?;
        let other = match &self.request.negative_prompt {
            None => self.settings.prior.guided.then_some(""),
            Some(negative) => Some(negative.as_str()),
        };
        let texts = [Some(self.request.prompt.as_str()), other].into_iter().flatten();
        let texts: Vec<ClipText> = texts.map(|text| encoder.run(text)).collect::<Result<_>>()?;
        self.events.extend(texts.iter().filter_map(|text| text.cut.as_deref()).map(cut_note));
        if let Some(dump) = &mut self.dump {
            for (text, name) in texts.iter().zip(["", "negative_"]) {
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

    /// The texts of the prior's rows, in diffusers' order: the other side of every embedding, then the embeddings' own. A
    /// negative prompt is the other side of its own embedding, too.
    fn prior_texts(&self) -> Vec<&ClipText> {
        let (prompt, other) = (self.texts.first(), self.texts.last());
        let other_side = [other, other].into_iter().take(self.settings.prior.samples as usize);
        let own = [prompt, other].into_iter().take(self.settings.prior.samples as usize);
        let guided = self.settings.prior.guided;
        other_side.filter(|_| guided).chain(own).flatten().collect()
    }

    /// Puts a stage on the device, the one before being gone.
    fn load(&mut self, stage: Stage) -> Result<()> {
        let model = Arc::clone(&self.model);
        let Kandinsky { gpu, checkpoint, precision } = model.as_ref();
        self.loaded = Loaded::Nothing;
        // The adapter takes memory back when it is next waited for.
        gpu.wait()?;
        let settings = &self.settings;
        let loaded = match stage {
            Stage::Prior => {
                let texts = self.prior_texts();
                Loaded::Prior(Box::new(PriorStage::new(gpu, &checkpoint.prior, &settings.prior, *precision, &texts)?))
            }
            Stage::Picture => {
                let away = self.away.as_ref().or(self.embeddings.get(1));
                let sides = [away.filter(|_| settings.guided()), self.embeddings.first()];
                let sides: Vec<&Resident> = sides.into_iter().flatten().collect();
                Loaded::Picture(Box::new(load_unet(gpu, checkpoint, settings, *precision, &sides)?))
            }
        };
        let bytes = match &loaded {
            Loaded::Prior(prior) => prior.bytes(),
            Loaded::Picture(denoiser) => denoiser.bytes(),
            Loaded::Nothing => 0,
        };
        self.loaded = loaded;
        let what = if stage == Stage::Prior { "prior" } else { "denoiser" };
        self.events.push_back(Event::Note(format!("{what}: {} MiB on the adapter", bytes >> 20)));
        Ok(())
    }

    /// The first sample of a stage, the generator's next noise.
    fn start(&mut self, stage: Stage) -> Result<()> {
        let run = self.settings.run();
        let noise = match &mut self.loaded {
            Loaded::Prior(prior) => {
                self.generator = TorchGenerator::new(self.request.seed);
                prior.start(&mut self.generator)?
            }
            Loaded::Picture(denoiser) => {
                let given = self.request.latents.clone();
                let noise = given.unwrap_or_else(|| run.draw(&mut self.generator));
                denoiser.start(&noise)?;
                noise
            }
            Loaded::Nothing => return Ok(()),
        };
        self.keep(stage, "noise", || Ok(noise))
    }

    /// Waits for step `index`, while the adapter goes on to the one after it, unless intermediates are kept.
    fn step(&mut self, stage: Stage, index: usize) -> Result<()> {
        let (alone, end) = (self.dump.is_some(), self.steps(stage));
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

    /// What the stage made goes to the next one.
    fn finish(&mut self) -> Result<()> {
        let gpu = Arc::clone(&self.model.gpu);
        match std::mem::replace(&mut self.loaded, Loaded::Nothing) {
            Loaded::Prior(prior) => {
                let (embeddings, read) = prior.finished(&gpu)?;
                self.embeddings = embeddings;
                self.keep(Stage::Prior, "embedding", || Ok(read))?;
                self.load_next(Stage::Picture);
            }
            Loaded::Picture(denoiser) => {
                denoiser.finished()?;
                self.phase = Phase::LoadDecoder(denoiser.state()?);
                if self.movq.is_none() {
                    self.begin(Work::Loading, "loading the decoder", 0);
                }
            }
            Loaded::Nothing => {}
        }
        Ok(())
    }

    /// Latent -> picture.
    fn decode(&mut self, state: &Resident) -> Result<()> {
        let movq = self.movq.as_ref().unwrap_or_else(|| panic!("the decoder is loaded before the picture is decoded"));
        let rgb = movq.run(state)?;
        if let Some(dump) = &mut self.dump {
            dump.push(("image".to_owned(), movq.image()?));
        }
        self.remaining = self.remaining.saturating_sub(1);
        let [height, width] = self.settings.size;
        self.events.push_back(Event::Picture(Picture { width, height, rgb }));
        Ok(())
    }
}

impl Staged for KandinskyDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, prompt -> text vectors -> embedding -> latent -> picture, and tells what comes after it.
    fn advance(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let Kandinsky { gpu, checkpoint, precision } = model.as_ref();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::Encode;
                self.begin(Work::Encoding, "encoding the prompt", 0);
            }
            Phase::Encode => {
                self.encode()?;
                if self.settings.black() {
                    self.phase = Phase::Black;
                    self.begin(Work::Encoding, "encoding a black picture", 0);
                } else {
                    self.load_next(Stage::Prior);
                }
            }
            Phase::Black => {
                // The text encoder is gone before the image encoder comes.
                gpu.wait()?;
                let away = black(gpu, checkpoint, *precision)?;
                if let Some(dump) = &mut self.dump {
                    let read = away.read(gpu)?;
                    dump.push(("zero_embedding".to_owned(), HostTensor { shape: vec![1, read.data.len()], ..read }));
                }
                self.away = Some(away);
                self.load_next(Stage::Prior);
            }
            Phase::Load(stage) => {
                self.load(stage)?;
                self.phase = Phase::Start(stage);
                self.begin(Work::Generating, stage.words()[1], self.steps(stage));
            }
            Phase::Start(stage) => {
                self.start(stage)?;
                self.phase = Phase::Step(stage, 0);
            }
            Phase::Step(stage, index) => {
                let count = self.steps(stage);
                self.step(stage, index)?;
                self.events.push_back(Event::Step(index + 1, count));
                self.phase = if index + 1 < count { Phase::Step(stage, index + 1) } else { Phase::Finish };
            }
            Phase::Finish => self.finish()?,
            Phase::LoadDecoder(state) => {
                if self.movq.is_none() {
                    // The UNet is gone before the decoder comes.
                    gpu.wait()?;
                    self.movq = Some(MovqStage::new(gpu, checkpoint, &self.settings, *precision)?);
                }
                self.phase = Phase::Decode(state);
                self.begin(Work::Decoding, "decoding", 0);
            }
            Phase::Decode(state) => self.decode(&state)?,
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for KandinskyDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for KandinskyDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        let Variation { seed, latents, image } = variation;
        if self.remaining == 0 || self.texts.is_empty() {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        let request = Request { seed, latents, image, ..self.request.clone() };
        KandinskySettings::resolve(&self.model.checkpoint, &request)?;
        self.request = request;
        self.dump = dump.then(Vec::new);
        self.load_next(Stage::Prior);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let KandinskySettings { prior, program, guidance_scale, scheduler, .. } = &self.settings;
        Summary {
            steps: Some(program.evaluations.len() as u32),
            guidance_scale: Some(*guidance_scale),
            sampler: Some(scheduler.sampler().to_string()),
            schedule: Some(scheduler.schedule().to_string()),
            further: vec![
                ("Prior steps", prior.program.evaluations.len().to_string()),
                ("Prior CFG scale", prior.guidance_scale.to_string()),
            ],
        }
    }

    fn image(&self) -> Result<HostTensor> {
        match &self.movq {
            Some(movq) => movq.image(),
            None => Err(Error::new("no picture yet").at("Drawing::image")),
        }
    }

    /// Text vectors and embeddings, `zero_embedding`; of the prior (`prior.`) and the UNet the noise and the sample after each
    /// step; `prior.embedding` [N, E], the negative prompt's second; `image`.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
