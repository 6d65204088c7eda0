//! The spines: one file for each system, prompt to picture, and what they share.

pub mod chain;
pub mod dalle;
mod dalle_stages;
mod decode;
mod denoise;
mod denoiser;
pub mod esrgan;
mod esrgan_tiles;
pub mod imagen;
mod imagen_stages;
pub mod inspect;
pub mod latent_upscaler;
pub mod request;
pub mod stable_diffusion;
mod stages;
pub mod system;
mod t5_stage;
pub mod tiles;
mod upscale_stages;

pub use chain::{Chain, Link};
pub use dalle::Dalle;
pub use dalle_stages::{DalleSettings, dalle_graphs};
pub use decode::Tiling;
pub use esrgan::{Esrgan, esrgan_graph, esrgan_plan};
pub use imagen::{Imagen, imagen_graphs, imagen_settings};
pub use imagen_stages::StageSettings;
pub use latent_upscaler::LatentUpscaler;
pub use request::{Precision, Request, Settings};
pub use stable_diffusion::{Generation, StableDiffusion};
pub use stages::graphs;
pub use system::{Drawing, Event, Picture, Summary, System, Variation, Work};
pub use tiles::TileSide;
pub use upscale_stages::UpscaleSettings;
