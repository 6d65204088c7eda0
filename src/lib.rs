//! scumble turns text into pictures with hand-written WGSL compute kernels.
pub mod cli;
pub mod error;
pub mod tensor;
pub mod text;
