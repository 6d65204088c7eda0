//! `scumble evaluate`: figures of pictures, each with what it means and what it may not be compared with.

mod clip_score;
mod features;
mod fid;
mod kid;
mod stats;

use clap::{Args, Subcommand};

use crate::error::Result;

/// `scumble evaluate`
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// What to measure.
    #[command(subcommand)]
    pub measure: Measure,
}

/// The figures.
#[derive(Debug, Subcommand)]
pub enum Measure {
    /// Frechet Inception distance of two sets of pictures
    Fid(fid::FidArgs),
    /// Kernel Inception distance of two sets of pictures, which suits small sets better
    Kid(kid::KidArgs),
    /// Save the mean and covariance of a set's features, for `fid` and other programs
    Stats(stats::StatsArgs),
    /// How well pictures fit their prompts: 100 times the mean cosine under a CLIP
    ClipScore(clip_score::ClipScoreArgs),
}

/// Runs the command.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    match &args.measure {
        Measure::Fid(args) => fid::run(args),
        Measure::Kid(args) => kid::run(args),
        Measure::Stats(args) => stats::run(args),
        Measure::ClipScore(args) => clip_score::run(args),
    }
}
