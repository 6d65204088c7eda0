//! scumble turns text into pictures with hand-written WGSL compute kernels.

pub mod bench;
pub mod cli;
pub mod error;
pub mod gpu;
pub mod graph;
pub mod kernels;
pub mod models;
pub mod pipelines;
pub mod sampling;
pub mod tensor;
pub mod text;
pub mod weights;
