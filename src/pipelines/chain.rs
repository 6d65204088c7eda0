//! Systems one after the other: the first draws (or enlarges a picture that is given), each further one enlarges the picture of
//! the one before it for the same prompt.
//!
//! A picture goes on in f32 as diffusers' pipelines hand it over ([`Drawing::handed`]), not through 8 bits. Every system starts
//! its own generator from the request's seed, as separate commands with one seed do; the stages of one Imagen share theirs.
//! A system's memory on the adapter is given back before the next one is loaded, so a chain needs as much as its
//! largest link, and loads every link anew for each picture.

use std::sync::Arc;

use super::request::Request;
use super::system::{Drawing, Event, Picture, Summary, System, Variation};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::HostTensor;
use crate::weights::kind::ModelKind;

/// A system in a chain.
pub struct Link {
    /// The system.
    pub system: Arc<dyn System>,
    /// What it is, which decides about the options that it is given.
    pub kind: ModelKind,
    /// Its stages: above 1 for an Imagen of several.
    pub stages: usize,
}

/// Systems one after the other.
pub struct Chain {
    gpu: Arc<Gpu>,
    links: Vec<Link>,
}

impl Chain {
    /// `links` one after the other on `gpu`.
    ///
    /// # Errors
    /// No link at all, or a later one that takes no picture.
    pub fn new(gpu: Arc<Gpu>, links: Vec<Link>) -> Result<Self> {
        if links.is_empty() {
            return Err(Error::usage("a chain without a system"));
        }
        if let Some(link) = links.iter().skip(1).find(|link| !link.kind.takes_picture()) {
            return Err(no_enlarger("--then", &format!("{}, {}", link.system.name(), link.kind)));
        }
        Ok(Self { gpu, links })
    }
}

/// What each of `links`, a kind and its number of stages, is asked for. Sizes, steps, guidance, sampler, schedule and noise of a
/// request are about the first one; `--sr-steps` and `--noise-level` about all that they mean something to.
pub fn chain_requests(links: &[(ModelKind, usize)], request: &Request) -> Vec<Request> {
    // Whether some stage behind the first of a link enlarges by denoising.
    let enlarges_itself = |(kind, stages): (ModelKind, usize)| stages > 1 || kind == ModelKind::Karlo;
    let (first, rest) = (links[0], &links[1..]);
    let later = rest.iter().any(|(kind, _)| kind.denoises_picture());
    let mut all = vec![Request {
        sr_steps: request.sr_steps.filter(|_| enlarges_itself(first) || !later),
        noise_level: request.noise_level.filter(|_| first.1 > 1 || first.0.denoises_picture() || !later),
        ..request.clone()
    }];
    all.extend(rest.iter().map(|link| {
        let base = Request { seed: request.seed, ..Request::default() };
        if !link.0.denoises_picture() {
            return base;
        }
        Request {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            steps: request.sr_steps,
            sr_steps: request.sr_steps.filter(|_| enlarges_itself(*link)),
            noise_level: request.noise_level,
            ..base
        }
    }));
    all
}

/// The error for a model that takes no picture.
pub fn no_enlarger(option: &str, found: &str) -> Error {
    Error::usage("a model that enlarges nothing")
        .at(option)
        .expected("DeepFloyd IF's stage II, or another upscaler")
        .found(found)
}

impl System for Chain {
    fn name(&self) -> &str {
        self.links[0].system.name()
    }

    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>> {
        let kinds: Vec<_> = self.links.iter().map(|link| (link.kind, link.stages)).collect();
        let requests = chain_requests(&kinds, &request);
        let mut drawing = ChainDrawing {
            requests,
            at: 0,
            current: None,
            summaries: Vec::new(),
            picture: None,
            size: None,
            remaining: count,
            done: false,
            dump: dump.then(Vec::new),
            chain: self,
        };
        drawing.check()?;
        Ok(Box::new(drawing))
    }
}

/// Pictures in the making.
struct ChainDrawing {
    chain: Arc<Chain>,
    requests: Vec<Request>,
    /// The link at work.
    at: usize,
    current: Option<Box<dyn Drawing>>,
    /// What each link settled.
    summaries: Vec<Summary>,
    /// The last link's picture.
    picture: Option<HostTensor>,
    /// The last link's picture's height and width, where it is known before.
    size: Option<[u32; 2]>,
    remaining: u32,
    done: bool,
    dump: Option<Vec<(String, HostTensor)>>,
}

impl ChainDrawing {
    /// Prepares every link on a picture of the size that it will get, as far as that is known, so that what is wrong with a
    /// later one is found before the first has worked.
    fn check(&mut self) -> Result<()> {
        let mut blank = None;
        for (at, link) in self.chain.links.iter().enumerate() {
            let mut request = self.requests[at].clone();
            if at > 0 {
                request.image = blank.take();
            }
            let drawing = Arc::clone(&link.system).draw(request, 1, at == 0 && self.dump.is_some())?;
            self.summaries.push(drawing.summary());
            self.size = drawing.size();
            if at == 0 {
                self.current = Some(drawing);
            }
            let Some([height, width]) = self.size else { break };
            let axes = [1, 3, height as usize, width as usize];
            blank = Some(HostTensor { shape: axes.to_vec(), data: vec![0.0; axes.iter().product()] });
        }
        Ok(())
    }

    /// The next link on the picture of the one before, whose memory is given back first.
    fn start(&mut self) -> Result<()> {
        self.chain.gpu.wait()?;
        let mut request = self.requests[self.at].clone();
        if self.at > 0 {
            request.image = self.picture.take();
        }
        let drawing = Arc::clone(&self.chain.links[self.at].system).draw(request, 1, self.dump.is_some())?;
        let summary = drawing.summary();
        match self.summaries.get_mut(self.at) {
            Some(known) => *known = summary,
            None => self.summaries.push(summary),
        }
        self.current = Some(drawing);
        Ok(())
    }

    /// Takes the picture of the link at work and lets the link go; the picture's event, if it was the last.
    fn finish(&mut self, picture: Picture) -> Result<Option<Picture>> {
        let Some(mut drawing) = self.current.take() else { return Ok(None) };
        let last = self.at + 1 == self.chain.links.len();
        self.picture = Some(if last { drawing.image()? } else { drawing.handed()? });
        if let Some(dump) = &mut self.dump {
            let before = self.chain.links[..self.at].iter().map(|link| link.stages).sum::<usize>();
            let named = drawing.take_dump().into_iter();
            dump.extend(named.map(|(name, tensor)| (numbered(&name, before, last), tensor)));
        }
        if last {
            self.remaining = self.remaining.saturating_sub(1);
            self.done = true;
            return Ok(Some(picture));
        }
        self.at += 1;
        Ok(None)
    }

    /// The next event of the link at work.
    fn advance(&mut self) -> Result<Option<Event>> {
        if self.current.is_none() {
            self.start()?;
        }
        let event = self.current.as_mut().and_then(|drawing| drawing.next());
        match event.transpose()? {
            Some(Event::Picture(picture)) => Ok(self.finish(picture)?.map(Event::Picture)),
            Some(event) => Ok(Some(event)),
            None => Err(Error::new("the drawing ended without a picture").at(self.chain.links[self.at].system.name())),
        }
    }
}

/// A dumped tensor's name in a chain whose links before have `before` stages: with the stage's number from the second on, and
/// only the last picture is called `image`.
fn numbered(name: &str, before: usize, last: bool) -> String {
    let (stage, rest) = match name.split_once('.').map(|(stage, rest)| (stage.parse::<usize>(), rest)) {
        Some((Ok(stage), rest)) => (stage, rest),
        _ => (1, name),
    };
    match (rest, before + stage) {
        ("image", _) if last => "image".to_owned(),
        ("image", 1) => "picture".to_owned(),
        ("image", stage) => format!("{stage}.picture"),
        (rest, 1) => rest.to_owned(),
        (rest, stage) => format!("{stage}.{rest}"),
    }
}

impl Iterator for ChainDrawing {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.advance() {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(error) => {
                    self.done = true;
                    self.current = None;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Drawing for ChainDrawing {
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()> {
        if self.remaining == 0 {
            return Err(Error::new("no further picture was announced").at("Drawing::again"));
        }
        let Variation { seed, latents, image } = variation;
        self.requests.iter_mut().for_each(|request| request.seed = seed);
        self.requests[0].latents = latents;
        if image.is_some() {
            self.requests[0].image = image;
        }
        (self.at, self.current, self.picture, self.done) = (0, None, None, false);
        self.dump = dump.then(Vec::new);
        Ok(())
    }

    /// The first link's, and of the others what is theirs.
    fn summary(&self) -> Summary {
        let mut all = self.summaries.iter().cloned();
        let mut summary = all.next().unwrap_or_default();
        for later in all {
            summary.further.extend(later.steps.map(|steps| ("SR steps", steps.to_string())));
            summary.further.extend(later.further);
        }
        summary
    }

    fn size(&self) -> Option<[u32; 2]> {
        self.size.filter(|_| self.summaries.len() == self.chain.links.len())
    }

    fn image(&self) -> Result<HostTensor> {
        let error = || Error::new("no picture yet").at("Drawing::image");
        self.picture.clone().filter(|_| self.done).ok_or_else(error)
    }

    fn take_dump(&mut self) -> Vec<(String, HostTensor)> {
        self.dump.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumped_names_count_stages_on() {
        assert_eq!(numbered("noise", 0, false), "noise");
        assert_eq!(numbered("2.latents.3", 0, false), "2.latents.3");
        assert_eq!(numbered("latents.3", 0, true), "latents.3");
        assert_eq!(numbered("latents.3", 2, true), "3.latents.3");
        assert_eq!(numbered("2.noise", 1, true), "3.noise");
        assert_eq!((numbered("image", 0, false), numbered("image", 1, false)), ("picture".into(), "2.picture".into()));
        assert_eq!(numbered("image", 1, true), "image");
    }
}
