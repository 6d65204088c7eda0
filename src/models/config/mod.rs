//! What a checkpoint's `config.json` files say, checked: plain data for the model builders.
//!
//! A field that a config leaves out has the default of its diffusers (transformers) class; a field that changes the
//! computation in a way that scumble does not implement is an error that names it. Fields that those classes do not
//! know are ignored, as they ignore them.

mod clip;
mod clip_vision;
mod dalle;
mod fields;
mod movq;
mod picture;
mod prior;
mod rrdb;
mod t5;
mod unet;
mod unet_blocks;
mod unet_conditioning;
mod vae;
mod vqgan;

pub use clip::{Activation, ClipConfig};
pub use clip_vision::{ClipModelConfig, ClipVisionConfig};
pub use dalle::{DalleConfig, DalleLayers};
pub use movq::{MOVQ_GROUPS, MovqConfig};
pub use picture::{Edges, PicturePreparation, ResizeFilter};
pub use prior::{PriorConfig, TextProjConfig};
pub use rrdb::RrdbConfig;
pub use t5::T5Config;
pub use unet::{
    Addition, Block, BlockKind, ClassEmbedding, CrossNorm, HiddenProjection, MidBlock, MidKind, TextTimeConfig,
    UnetConfig,
};
pub use vae::VaeConfig;
pub use vqgan::{GROUPS as VQGAN_GROUPS, VqganConfig};
