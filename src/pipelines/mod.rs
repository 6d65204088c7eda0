//! The spines: one file for each system, prompt to picture, and what they share.

mod clip_stage;
pub mod dalle;
mod dalle_stages;
mod decode;
mod denoise;
mod denoiser;
pub mod imagen;
mod imagen_stages;
pub mod inspect;
pub mod kandinsky;
mod kandinsky_stages;
pub mod karlo;
mod karlo_stages;
mod pixels;
mod prior;
pub mod request;
pub mod stable_diffusion;
mod stages;
pub mod system;
mod t5_stage;

pub use dalle::Dalle;
pub use dalle_stages::{DalleSettings, dalle_graphs};
pub use decode::Tiling;
pub use imagen::{Imagen, imagen_graphs, imagen_settings};
pub use imagen_stages::StageSettings;
pub use kandinsky::{Kandinsky, kandinsky_graphs};
pub use kandinsky_stages::KandinskySettings;
pub use karlo::{Karlo, karlo_graphs};
pub use karlo_stages::KarloSettings;
pub use prior::PriorSettings;
pub use request::{Precision, Request, Settings};
pub use stable_diffusion::{Generation, StableDiffusion};
pub use stages::graphs;
pub use system::{Drawing, Event, Picture, Summary, System, Variation, Work};
