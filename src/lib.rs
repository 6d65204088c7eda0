//! scumble turns text into pictures with hand-written WGSL compute kernels, on any GPU that wgpu reaches.
//!
//! # The data path
//!
//! ```text
//! prompt -> [text encoder] -> vectors [B, T, C] -+
//!                                                v
//! seed -> noise [1, C, H/8, W/8] ----------> [UNet, solver] x steps -> latent -> [VAE decoder] -> picture [H, W, 3]
//! ```
//!
//! The host tokenizes, computes the schedule's tables, draws the seeded noise and reads and writes files. Every other
//! number is computed by the shaders.
//!
//! # Reading order
//!
//! 1. [`pipelines::stable_diffusion`]: the spine, prompt to picture; [`pipelines::request`]: what can be asked for.
//! 2. [`text`]: prompt to token ids. [`sampling`]: the denoising run as a table of coefficients, and torch's noise.
//! 3. [`weights`]: from files to named tensors under one set of names, and the cursor `w.at("conv1")`.
//! 4. [`models`]: text encoder, UNet and decoder as functions of (graph, weights, value).
//! 5. [`graph`]: values and nodes in execution order, the plan that shares buffers, the executor.
//! 6. [`kernels`]: per operation the dispatch arithmetic and the same formula in f64; the shaders are in `shaders/`.
//! 7. [`gpu`]: the device; [`tune`]: which kernels are right and fastest on it. [`cli`], [`mod@bench`] and [`evaluate`] (FID and
//!    other figures of pictures) stand on top of all.
//!
//! # Shapes
//!
//! Shapes are written in brackets, slowest axis first: B batch, H height, W width, P = H * W positions, C channels
//! (C4 = ceil(C / 4) vectors of four), T tokens, D width of an attention head. Activations are channels-last.
//!
//! # Example
//!
//! ```no_run
//! use std::sync::Arc;
//! use scumble::gpu::{Gpu, GpuOptions};
//! use scumble::pipelines::{Event, Precision, Request, StableDiffusion};
//! use scumble::weights::checkpoint::Checkpoint;
//!
//! # fn main() -> scumble::error::Result<()> {
//! let gpu = Arc::new(Gpu::open(&GpuOptions::default())?);
//! let precision = Precision::Auto.resolve(gpu.is_cpu());
//! let checkpoint = Checkpoint::open("stable-diffusion-v1-5".as_ref())?;
//! let model = Arc::new(StableDiffusion::new(gpu, checkpoint, precision));
//! let request = Request { prompt: "a lighthouse at dawn".into(), seed: 7, ..Request::default() };
//! for event in model.generate(request, 1, false)? {
//!     if let Event::Picture(picture) = event? {
//!         println!("{} x {} pixels, {} bytes", picture.width, picture.height, picture.rgb.len());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod cli;
pub mod error;
pub mod evaluate;
pub mod gpu;
pub mod graph;
pub mod kernels;
pub mod models;
pub mod pipelines;
pub mod sampling;
pub mod tensor;
pub mod text;
pub mod tune;
pub mod weights;
