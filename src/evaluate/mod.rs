//! Figures of how pictures look to other networks: Frechet and kernel Inception distance of two sets of pictures.
//!
//! The networks run on the adapter; what is statistics (means, covariances, distances) the host computes in f64.

pub mod clip;
pub mod clip_score;
pub mod inception;
pub mod kid;
pub mod pictures;
pub mod prompts;
pub mod saved;
pub mod statistics;
