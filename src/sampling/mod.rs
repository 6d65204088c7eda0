//! Everything that the host computes for a denoising run: schedules, solvers as tables of coefficients, seeded noise.
//!
//! A [`SchedulerConfig`] is read from a model's `scheduler_config.json`; its [`Program`] lists what the model is asked and
//! which linear combination of latent, memory, model output and noise follows. The GPU runs that table, so every solver is
//! one kernel. The reference is diffusers 0.42.1 (`diffusers/schedulers/scheduling_*.py`), whose precision and quirks are
//! kept wherever they can be seen in a picture.

mod arrays;
mod config;
mod kinds;
mod noise;
mod program;
pub mod published;
mod schedule;
mod settings;
mod solvers;

pub use config::{PredictionType, SchedulerConfig, supported_schedules};
pub use kinds::{AysList, SamplerKind, ScheduleKind};
pub use noise::TorchGenerator;
pub use program::{Bound, Deviation, Evaluation, MAX_SLOTS, Prediction, Program, Row};
