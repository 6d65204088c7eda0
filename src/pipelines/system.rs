//! What every text-to-picture system has in common to its callers: prompt in, events and a picture out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::request::Request;
use crate::error::Result;
use crate::tensor::HostTensor;

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

/// The kinds of work, one after the other: what a time or a progress bar is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Weights go to the GPU and kernels are compiled.
    Loading,
    /// The prompt becomes vectors.
    Encoding,
    /// The generator makes the intermediate product: denoising, or drawing image tokens.
    Generating,
    /// The intermediate product becomes a picture.
    Decoding,
}

/// What a caller learns while a picture is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A stage begins, which ends with the next such event or the picture.
    Stage {
        /// Its kind.
        work: Work,
        /// What is done, in words for people.
        what: &'static str,
        /// How many [`Event::Step`]s follow; 0 for a stage that is not counted.
        steps: usize,
    },
    /// Step `.0` of `.1`, counted from 1, is done on the adapter.
    Step(usize, usize),
    /// Something that people want to know, such as a prompt that was cut.
    Note(String),
    /// The picture, the last event.
    Picture(Picture),
}

/// What distinguishes the pictures of one request.
#[derive(Debug, Clone, Default)]
pub struct Variation {
    /// Seed of torch's CPU generator.
    pub seed: u64,
    /// See [`Request::latents`].
    pub latents: Option<HostTensor>,
    /// See [`Request::image`].
    pub image: Option<HostTensor>,
}

/// What the model's defaults came to, for the text in the picture. What a system does not have is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Guidance scale.
    pub guidance_scale: Option<f32>,
    /// The sampler's word.
    pub sampler: Option<String>,
    /// The schedule's word.
    pub schedule: Option<String>,
    /// Further settings by name, as `Top-k` and `256`.
    pub further: Vec<(&'static str, String)>,
}

/// A model on a device.
pub trait System: Send + Sync {
    /// The model's name, without folders and endings.
    fn name(&self) -> &str;

    /// Prepares `count` pictures that differ in their [`Variation`]. Nothing is computed yet, but everything that can be
    /// wrong with the request is found here. With `dump` the intermediates are kept.
    ///
    /// # Errors
    /// What the request asks for and the model does not have; what cannot run on the device, memory included.
    fn draw(self: Arc<Self>, request: Request, count: u32, dump: bool) -> Result<Box<dyn Drawing>>;
}

/// Pictures in the making: an iterator that does one piece of work a call, so that the caller keeps the clock. It ends
/// after [`Event::Picture`].
pub trait Drawing: Iterator<Item = Result<Event>> {
    /// Makes the next of the announced pictures, on the stages that are loaded.
    ///
    /// # Errors
    /// Latents or a picture of another shape; more pictures than were announced.
    fn again(&mut self, variation: Variation, dump: bool) -> Result<()>;

    /// The request with every choice made.
    fn summary(&self) -> Summary;

    /// Height and width of the picture to come, in pixels, where they are settled before it is drawn.
    fn size(&self) -> Option<[u32; 2]> {
        None
    }

    /// The finished picture before it was rounded to bytes: [1, 3, H, W] in f32, from -1 to 1.
    ///
    /// # Errors
    /// When there is no picture yet; a lost device.
    fn image(&self) -> Result<HostTensor>;

    /// The finished picture as a system that goes on with it takes it: [1, 3, H, W], cut to -1..1, as diffusers' pipelines hand
    /// over what they decode (`output_type="pt"`).
    ///
    /// # Errors
    /// As [`Drawing::image`].
    fn handed(&self) -> Result<HostTensor> {
        let mut picture = self.image()?;
        picture.data.iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
        Ok(picture)
    }

    /// The intermediates kept so far, by name.
    fn take_dump(&mut self) -> Vec<(String, HostTensor)>;
}

/// A drawing that goes through stages: what its iterator is made of.
pub(super) trait Staged {
    /// What is told before the next piece of work is done.
    fn events(&mut self) -> &mut VecDeque<Event>;

    /// Whether no work is left; also so after a failure.
    fn is_done(&self) -> bool;

    /// Does the next piece of work and tells what comes after it.
    fn advance(&mut self) -> Result<()>;

    /// Tells that a stage begins; see [`Event::Stage`].
    fn begin(&mut self, work: Work, what: &'static str, steps: usize) {
        self.events().push_back(Event::Stage { work, what, steps });
    }

    /// The next event, for which as much work is done as it takes.
    fn next_event(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.events().pop_front() {
                return Some(Ok(event));
            }
            if self.is_done() {
                return None;
            }
            if let Err(error) = self.advance() {
                return Some(Err(error));
            }
        }
    }
}
