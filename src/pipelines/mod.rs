//! The spines: one file for each system, prompt to picture, and what they share.

mod decode;
mod denoise;
pub mod inspect;
pub mod request;
pub mod stable_diffusion;
mod stages;

pub use decode::Tiling;
pub use request::{Precision, Request, Settings};
pub use stable_diffusion::{Event, Generation, Picture, StableDiffusion};
pub use stages::graphs;
