//! The spine of ESRGAN and Real-ESRGAN: a picture -> the same, larger, in one pass over the network. No prompt, no noise.
//!
//! Where memory asks for it the picture is enlarged in windows, which overlap as far as the network looks around.

use std::collections::VecDeque;
use std::sync::Arc;

use super::decode::Tiling;
use super::esrgan_tiles::{Tiles, budget, sides, unshuffled};
use super::request::Request;
use super::stages::execute;
use super::system::{Drawing, Event, Picture, Staged, Summary, System, Variation, Work};
use super::tiles::TileSide;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::Gpu;
use crate::graph::executor::Executor;
use crate::graph::footprint::footprint;
use crate::graph::{Graph, Shape};
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::{Limits, pixels};
use crate::models::config::RrdbConfig;
use crate::models::decoder::rrdb;
use crate::models::nn;
use crate::tensor::{DType, HostTensor};
use crate::weights::esrgan::EsrganCheckpoint;
use crate::weights::{Claims, Weights};

/// Sides and pixels of the largest result, which the host holds in 15 bytes a pixel.
const LARGEST_SIDE: u64 = 65_536;
const MOST_PIXELS: u64 = 1 << 30;

/// An upscaler on a device.
pub struct Esrgan {
    gpu: Arc<Gpu>,
    checkpoint: EsrganCheckpoint,
    precision: DType,
    tile: TileSide,
    tiling: Tiling,
}

impl Esrgan {
    /// `checkpoint` on `gpu`, activations and matrices stored as `precision` (f32 or f16).
    pub fn new(gpu: Arc<Gpu>, checkpoint: EsrganCheckpoint, precision: DType) -> Self {
        Self { gpu, checkpoint, precision, tile: TileSide::default(), tiling: Tiling::default() }
    }

    /// The same in tiles of `tile`; where that is left open, within the bytes that `tiling` has, or 4 GiB.
    #[must_use]
    pub fn with_tiles(self, tile: TileSide, tiling: Tiling) -> Self {
        Self { tile, tiling, ..self }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &EsrganCheckpoint {
        &self.checkpoint
    }

    fn plan(&self, size: [u32; 2], from: usize) -> Result<Plan> {
        let room = budget(self.tile, self.tiling).saturating_sub(self.gpu.memory().current);
        plan(&self.checkpoint, self.gpu.limits(), self.precision, size, (self.tile, room), from)
    }
}

/// What is run for a picture.
pub struct Plan {
    /// For every window; see [`esrgan_graph`].
    pub graph: Graph,
    /// Bytes on the adapter at most, the finished window's way to the host included.
    pub peak: u64,
    tiles: Tiles,
    /// Which of the sizes to try this is.
    choice: usize,
}

impl Plan {
    /// How many windows there are.
    pub fn windows(&self) -> usize {
        self.tiles.count()
    }

    /// Height and width of each.
    pub fn window(&self) -> [u32; 2] {
        self.tiles.window()
    }
}

/// The graph and the windows for a picture of `size` [height, width]; see [`Esrgan::with_tiles`]. Needs no GPU and reads no
/// weights.
///
/// # Errors
/// A missing or an unexpected tensor, or one of another shape; what no size of tiles fits.
pub fn esrgan_plan(
    checkpoint: &EsrganCheckpoint,
    limits: Limits,
    precision: DType,
    size: [u32; 2],
    tile: TileSide,
    tiling: Tiling,
) -> Result<Plan> {
    plan(checkpoint, limits, precision, size, (tile, budget(tile, tiling)), 0)
}

/// The first of the sizes to try that fits into `room` bytes, from number `from` on; the last one where its bytes alone are in
/// the way, on which the adapter then has a word.
fn plan(
    checkpoint: &EsrganCheckpoint,
    limits: Limits,
    precision: DType,
    size: [u32; 2],
    (tile, room): (TileSide, u64),
    from: usize,
) -> Result<Plan> {
    let config = &checkpoint.network.config;
    let (reach, unit) = (config.reach() as u32, config.unshuffle as u32);
    let sides = sides(tile, size);
    let count = sides.len();
    for (choice, side) in sides.into_iter().enumerate().skip(from) {
        let tiles = Tiles::new(size, side, reach, unit);
        if vectors(config, tiles.window()) > u64::from(u32::MAX) {
            continue;
        }
        let graph = esrgan_graph(checkpoint, limits, precision, tiles.window())?;
        let footprint = footprint(&graph);
        let [height, width] = tiles.window().map(|length| u64::from(length) * config.scale() as u64);
        // The picture as it is read, four numbers a pixel, in a buffer of its own.
        let peak = footprint.peak().max(footprint.loaded() + height * width * 16);
        let fits = graph.fault().is_none() && peak <= room;
        if fits || choice + 1 == count {
            return match graph.fault() {
                Some(fault) => Err(fault.clone()),
                None => Ok(Plan { graph, peak, tiles, choice }),
            };
        }
    }
    let [height, width] = size;
    Err(Error::usage("the picture is too large for one window")
        .at(&checkpoint.name)
        .found(format!("{width} x {height} pixels"))
        .hint("--tile auto"))
}

/// Vectors of four numbers in the largest tensor for a window, which kernels count in 32 bits.
fn vectors(config: &RrdbConfig, window: [u32; 2]) -> u64 {
    let pixels = window.iter().map(|length| u64::from(*length)).product::<u64>();
    let channels = config.width.max(3 * config.growth).max(config.width + config.growth);
    let [small, large] =
        [pixels / (config.unshuffle * config.unshuffle) as u64, pixels * (config.scale() * config.scale()) as u64];
    (small * channels.div_ceil(4) as u64).max(large * config.width.div_ceil(4) as u64)
}

/// `picture` [1, h / u, w / u, 3 u u] from -1 to 1 -> `image` [1, s h, s w, 3] in f32, around -1..1, and its `pixels`, for a window
/// of [h, w]. Takes every tensor.
///
/// # Errors
/// A missing or an unexpected tensor, or one of another shape.
pub fn esrgan_graph(
    checkpoint: &EsrganCheckpoint,
    limits: Limits,
    precision: DType,
    window: [u32; 2],
) -> Result<Graph> {
    let config = &checkpoint.network.config;
    let source = checkpoint.network.weights.as_ref();
    let claims = Claims::default();
    let w = Weights::new(0, source, &claims);
    let mut g = Graph::new(precision, limits);
    let unit = config.unshuffle as u32;
    let [height, width] = window.map(|length| length / unit);
    let picture = g.input("picture", Shape::new(1, height, width, 3 * unit * unit), DType::F32);
    let x = nn::scale(&mut g, "picture", picture, 0.5, 0.5);
    let y = rrdb::enlarge(&mut g, &w, config, x);
    let widen = Elementwise { scale_a: 2.0, scale_b: None, shift: -1.0, activation: Activation::None };
    let shape = g.shape(y);
    let call = elementwise::call(widen, shape.rows(), shape.channels, [DType::F32; 3], g.limits());
    let image = nn::push(&mut g, "image", call, vec![y.into(), y.into()], shape, DType::F32);
    let quads = Shape::new(1, shape.positions().div_ceil(4), 1, 4);
    let call = pixels::call(shape.positions(), DType::F32, g.limits());
    let packed = nn::push(&mut g, "pixels", call, vec![image.into()], quads, DType::F32);
    g.output("image", image);
    g.output("pixels", packed);
    claims.finish(source)?;
    Ok(g)
}

/// Height and width of the picture that a request gives. It must ask for nothing else.
///
/// # Errors
/// No picture or one of another shape; one whose enlargement is too large; options that upscalers of this family do not have.
pub fn esrgan_size(checkpoint: &EsrganCheckpoint, request: &Request) -> Result<[u32; 2]> {
    let (name, scale) = (&checkpoint.name, checkpoint.network.config.scale() as u64);
    Request::refuse(
        "this model",
        &[
            ("a prompt", !request.prompt.is_empty(), "it reads no text"),
            ("--negative-prompt", request.negative_prompt.is_some(), "it reads no text"),
            ("-W/--width", request.width.is_some(), "its picture has the given one's size times its scale"),
            ("-H/--height", request.height.is_some(), "its picture has the given one's size times its scale"),
            ("--steps", request.steps.is_some(), "it takes one pass"),
            ("--cfg-scale", request.guidance_scale.is_some(), "it reads no text"),
            ("--guidance-rescale", request.guidance_rescale != 0.0, "it reads no text"),
            ("--sampler", request.sampler.is_some(), "it takes one pass"),
            ("--schedule", request.schedule.is_some(), "it takes one pass"),
            ("--clip-skip", request.clip_skip.is_some(), "it reads no text"),
            ("--latents", request.latents.is_some(), "it takes no noise"),
            ("--noise-level", request.noise_level.is_some(), "it takes no noise"),
            ("--top-k", request.top_k.is_some(), "no tokens are drawn"),
            ("--temperature", request.temperature.is_some(), "no tokens are drawn"),
            ("--prior-steps", request.prior_steps.is_some(), "it has no prior"),
            ("--prior-cfg-scale", request.prior_guidance_scale.is_some(), "it has no prior"),
            ("--sr-steps", request.sr_steps.is_some(), "it takes one pass"),
        ],
    )?;
    let Some(image) = &request.image else {
        return Err(Error::usage("no picture to enlarge")
            .at(name)
            .hint("scumble upscale IN.png -m MODEL, or --then MODEL"));
    };
    let size = size_of(image)?;
    let [height, width] = size.map(|length| u64::from(length) * scale);
    if height.max(width) > LARGEST_SIDE || height * width > MOST_PIXELS {
        return Err(Error::usage("picture size")
            .at(name)
            .expected(format!("a result of at most {LARGEST_SIDE} pixels a side and {MOST_PIXELS} in all"))
            .found(format!("{width} x {height}")));
    }
    Ok(size)
}

/// Height and width of a picture.
fn size_of(image: &HostTensor) -> Result<[u32; 2]> {
    match image.shape[..] {
        [1, 3, height, width] if height > 0 && width > 0 => {
            let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            Ok([side(height), side(width)])
        }
        _ => Err(Error::usage("picture").expected("[1, 3, H, W]").found(format!("{:?}", image.shape))),
    }
}

impl System for Esrgan {
    fn name(&self) -> &str {
        &self.checkpoint.name
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let size = esrgan_size(&self.checkpoint, &request)?;
        let plan = self.plan(size, 0)?;
        Ok(Box::new(EsrganDrawing {
            model: self,
            source: request.image.unwrap_or(HostTensor { shape: Vec::new(), data: Vec::new() }),
            size,
            phase: Phase::Fresh,
            events: VecDeque::new(),
            plan,
            loaded: None,
            picture: None,
            remaining: count,
            dump: dump.then(Vec::new),
        }))
    }
}

enum Phase {
    Fresh,
    Load,
    /// The window of this number.
    Window(usize),
    Done,
}

/// A picture in the making: bytes, and numbers from -1 to 1.
struct Canvas {
    rgb: Vec<u8>,
    image: HostTensor,
}

/// Pictures in the making.
struct EsrganDrawing {
    model: Arc<Esrgan>,
    /// The picture that is enlarged [1, 3, H, W].
    source: HostTensor,
    /// Its height and width.
    size: [u32; 2],
    phase: Phase,
    events: VecDeque<Event>,
    plan: Plan,
    loaded: Option<Executor>,
    picture: Option<Canvas>,
    remaining: u32,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl EsrganDrawing {
    /// Loads what was planned, or smaller windows where the adapter has no room for it.
    fn load(&mut self) -> Result<Executor> {
        let model = Arc::clone(&self.model);
        loop {
            let parts = [model.checkpoint.network.weights.as_ref()];
            match execute(&model.gpu, &self.plan.graph, &parts) {
                Err(error) if error.kind() == ErrorKind::Memory && model.tile == TileSide::Auto => {
                    model.gpu.wait()?;
                    let next = model.plan(self.size, self.plan.choice + 1);
                    self.plan = next.map_err(|_| error)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn start(&mut self) {
        let scale = self.scale() as usize;
        let [height, width] = self.size.map(|length| length as usize * scale);
        let image = HostTensor { shape: vec![1, 3, height, width], data: vec![0.0; 3 * height * width] };
        self.picture = Some(Canvas { rgb: vec![0; 3 * height * width], image });
        self.phase = Phase::Window(0);
        self.begin(Work::Decoding, "enlarging", self.plan.windows());
    }

    fn scale(&self) -> u32 {
        self.model.checkpoint.network.config.scale() as u32
    }

    /// Enlarges one window and puts what is kept of it into the picture.
    fn window(&mut self, index: usize) -> Result<()> {
        let (scale, unit) = (self.scale(), self.model.checkpoint.network.config.unshuffle as u32);
        let (Some(executor), Some(canvas)) = (&self.loaded, &mut self.picture) else { return Ok(()) };
        let [rows, columns] = self.plan.tiles.part(index);
        let window = self.plan.tiles.window();
        executor.write("picture", &unshuffled(&self.source, [rows.0, columns.0], window, unit))?;
        executor.run();
        let across = (window[1] * scale) as usize;
        let packed = executor.read_bytes("pixels", u64::from(window[0] * scale) * across as u64 * 4)?;
        let image = executor.read("image")?;
        let [height, width] = [canvas.image.shape[2], canvas.image.shape[3]];
        let span = |part: &(u32, std::ops::Range<u32>), end: usize| {
            let [start, from, to] = [part.0, part.1.start, part.1.end].map(|place| (place * scale) as usize);
            (start, from, to.min(end))
        };
        let ((top, from, to), (left, first, last)) = (span(rows, height), span(columns, width));
        for y in from..to {
            let at = (y - top) * across + first - left;
            for x in 0..last.saturating_sub(first) {
                let (pixel, place) = ((at + x) * 4, y * width + first + x);
                if packed[pixel + 3] != 255 {
                    return Err(Error::new("the upscaler made numbers that are not finite")
                        .at(&self.model.checkpoint.name)
                        .expected("a picture")
                        .found("NaN or infinity")
                        .hint("--precision f32"));
                }
                canvas.rgb[place * 3..][..3].copy_from_slice(&packed[pixel..][..3]);
                for (plane, value) in image.data[(at + x) * 3..][..3].iter().enumerate() {
                    canvas.image.data[plane * height * width + place] = *value;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        let Some(canvas) = &self.picture else { return };
        let [height, width] = [canvas.image.shape[2] as u32, canvas.image.shape[3] as u32];
        if let Some(dump) = &mut self.dump {
            dump.push(("image".to_owned(), canvas.image.clone()));
        }
        self.remaining = self.remaining.saturating_sub(1);
        self.events.push_back(Event::Picture(Picture { width, height, rgb: canvas.rgb.clone() }));
    }
}

impl Staged for EsrganDrawing {
    fn events(&mut self) -> &mut VecDeque<Event> {
        &mut self.events
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does the next piece of work, picture -> larger picture, and tells what comes after it.
    fn advance(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Fresh => {
                self.phase = Phase::Load;
                self.begin(Work::Loading, "loading the upscaler", 0);
            }
            Phase::Load => {
                let executor = self.load()?;
                let bytes = executor.bytes() >> 20;
                self.events.push_back(Event::Note(format!("upscaler: {bytes} MiB on the adapter")));
                self.loaded = Some(executor);
                self.start();
            }
            Phase::Window(index) => {
                let count = self.plan.windows();
                self.window(index)?;
                self.events.push_back(Event::Step(index + 1, count));
                if index + 1 < count {
                    self.phase = Phase::Window(index + 1);
                } else {
                    self.finish();
                }
            }
            Phase::Done => {}
        }
        Ok(())
    }
}

impl Iterator for EsrganDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event()
    }
}

impl Drawing for EsrganDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        if self.remaining == 0 || self.loaded.is_none() {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        if variation.latents.is_some() {
            return Err(Error::usage("not an option of this model").at("--latents").found("it takes no noise"));
        }
        if let Some(image) = variation.image {
            if size_of(&image)? != self.size {
                return Err(Error::usage("a picture of another size").found(format!("{:?}", image.shape)));
            }
            self.source = image;
        }
        self.dump = dump.then(Vec::new);
        self.start();
        Ok(())
    }

    fn summary(&self) -> Summary {
        Summary { further: vec![("Upscale by", self.scale().to_string())], ..Summary::default() }
    }

    fn size(&self) -> Option<[u32; 2]> {
        Some(self.size.map(|length| length * self.scale()))
    }

    fn image(&self) -> Result<HostTensor> {
        let done = matches!(self.phase, Phase::Done);
        let canvas = self.picture.as_ref().filter(|_| done);
        canvas.map(|canvas| canvas.image.clone()).ok_or_else(|| Error::new("no picture yet").at("Drawing::image"))
    }

    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}
