//! scumble turns text into pictures with hand-written WGSL compute kernels.
pub mod error;
pub mod sampling;
pub mod tensor;
