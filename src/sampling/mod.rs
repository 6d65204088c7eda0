//! stub
pub mod noise;
