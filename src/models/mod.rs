//! The networks, and the configs that describe them.

pub mod config;
