//! scumble turns text into pictures with hand-written WGSL compute kernels.
pub mod error;
pub mod models;
pub mod tensor;
pub mod weights;
