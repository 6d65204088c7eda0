//! One UNet step and one VAE decode, timed as a whole and launch by launch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::statistics::{Sample, Sampling, quantile};
use super::{Family, Roofs, Row, Work, wrong};
use crate::error::Result;
use crate::gpu::{Clock, Gpu};
use crate::graph::executor::Executor;
use crate::graph::timing::Profile;
use crate::graph::{Graph, Node, Operand};
use crate::pipelines::Settings;
use crate::pipelines::inspect::{self, Stage};
use crate::sampling::TorchGenerator;
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::Checkpoint;

/// Seed of the inputs.
const SEED: u64 = 7;
/// The timestep of the step that is timed; any will do.
const TIMESTEP: f32 = 500.0;
/// Samples of a stage at the most.
const MOST_SAMPLES: u32 = 100;
/// Time for the samples of a stage.
const BUDGET: Duration = Duration::from_secs(5);
/// Profiles of a stage at the most.
const MOST_PROFILES: usize = 5;
/// Time for them, verification included.
const PROFILE_BUDGET: Duration = Duration::from_secs(5);

/// A stage's times.
#[derive(Debug, Clone, PartialEq)]
pub struct StageReport {
    /// The stage as a whole, by the device's clock if it has one.
    pub whole: Row,
    /// Seconds of the host's clock for the same: submissions and wait.
    pub wall: f64,
    /// By place in the model (`down_blocks.1`), in order of execution.
    pub scopes: Vec<Row>,
    /// By family of kernels, the longest first.
    pub families: Vec<Row>,
    /// By kernel stem, the longest first.
    pub kernels: Vec<Row>,
    /// Seconds of all launches, each timed by itself: what the rows of the tables add up to.
    pub launched: f64,
    /// Whose seconds those of the launches are.
    pub clock: Clock,
    /// Dispatches of one run.
    pub dispatches: usize,
    /// The most bytes that were held on the adapter at once, loading included.
    pub bytes: u64,
}

impl StageReport {
    /// The seconds of `dispatches` launches that do nothing, each waiting for the one before: what fewer launches could save.
    pub fn launch_floor(&self, roofs: &Roofs) -> f64 {
        self.dispatches as f64 * roofs.launch_gap
    }

    /// All rows, the whole first.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        [std::slice::from_ref(&self.whole), &self.scopes, &self.families, &self.kernels].into_iter().flatten()
    }

    /// As `scumble bench --json` writes it beside the rows.
    pub fn json(&self, roofs: &Roofs) -> Value {
        json!({
            "seconds": self.whole.seconds,
            "wall_seconds": self.wall,
            "launched_seconds": self.launched,
            "launched_clock": self.clock.name(),
            "dispatches": self.dispatches,
            "launch_floor_seconds": self.launch_floor(roofs),
            "ideal_seconds": self.whole.ideal(),
            "bytes": self.bytes,
        })
    }
}

/// The word that a stage's rows begin with.
pub fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Text => "text",
        Stage::Denoise => "step",
        Stage::Decode => "decode",
    }
}

/// Verifies `stage` (finite, not constant, the same bits twice) and times it: at least `runs` runs, of which the median
/// counts. `progress` is told what is being done.
///
/// # Errors
/// When the adapter cannot hold the stage, or the result is wrong.
pub fn stage(
    stage: Stage,
    gpu: &Arc<Gpu>,
    model: (&Checkpoint, &Settings, DType),
    roofs: &Roofs,
    runs: u32,
    progress: &mut dyn FnMut(&str),
) -> Result<StageReport> {
    let (checkpoint, settings, precision) = model;
    let graph = inspect::graph(stage, checkpoint, gpu.limits(), precision, settings)?;
    gpu.reset_peak_memory();
    progress(&format!("{}: loading {} MiB of weights", stage.name(), graph.weight_bytes() >> 20));
    let executor = inspect::executor(stage, gpu, &graph, checkpoint)?;
    fill(&graph, &executor, settings)?;
    progress(&format!("{}: verifying", stage.name()));
    let begin = Instant::now();
    let first = verify(stage, gpu, &graph, &executor)?;
    progress(&format!("{}: timing", stage.name()));
    let profile = profile(gpu, &executor, first, (runs, begin))?;
    let sampling = Sampling { least: runs, most: MOST_SAMPLES, budget: BUDGET };
    let sample = sampling.take(|| executor.time_run(gpu.clock()))?;
    Ok(report(word(stage), &graph, (&profile, &sample), roofs, gpu.memory().peak))
}

fn report(name: &str, graph: &Graph, times: (&Profile, &Sample), roofs: &Roofs, bytes: u64) -> StageReport {
    let (profile, sample) = times;
    let by = |name: &dyn Fn(&Node) -> (String, Option<Family>)| grouped(graph, profile, roofs, name);
    let longest = |mut rows: Vec<Row>| {
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        rows
    };
    let stem = |node: &Node| node.call.variant.stem;
    let whole = by(&|_| (name.to_owned(), None)).pop().unwrap_or_else(|| Row::empty(name, profile.clock));
    let families = by(&|node| {
        let family = Family::of(stem(node));
        (format!("{name}: family {}", family.name()), Some(family))
    });
    let kernels = by(&|node| (format!("{name}: kernel {}", stem(node)), Some(Family::of(stem(node)))));
    StageReport {
        launched: whole.seconds,
        whole: whole.timed(sample),
        wall: sample.wall,
        scopes: by(&|node| (format!("{name}: scope {}", scope(&node.label)), None)),
        families: longest(families),
        kernels: longest(kernels),
        clock: profile.clock,
        dispatches: profile.dispatches,
        bytes,
    }
}

/// The median of every node's time over profiles, as many as there is time for since `begin`. The `first`, which may hold
/// what a driver compiles late, counts only if there is no time for another.
fn profile(gpu: &Gpu, executor: &Executor, first: Profile, (runs, begin): (u32, Instant)) -> Result<Profile> {
    let mut profiles: Vec<Profile> = Vec::new();
    while profiles.len() < (runs as usize).min(MOST_PROFILES) && begin.elapsed() < PROFILE_BUDGET {
        let next = executor.profile(gpu.clock())?;
        // Times of different clocks are not mixed.
        profiles.retain(|earlier| earlier.clock == next.clock);
        profiles.push(next);
    }
    Ok(if profiles.is_empty() { first } else { median(&profiles) })
}

fn median(profiles: &[Profile]) -> Profile {
    let mut middle = profiles[0].clone();
    for (node, seconds) in middle.seconds.iter_mut().enumerate() {
        let mut all: Vec<f64> = profiles.iter().map(|profile| profile.seconds[node]).collect();
        all.sort_by(f64::total_cmp);
        *seconds = quantile(&all, 0.5);
    }
    middle
}

/// Random inputs of the right kinds.
fn fill(graph: &Graph, executor: &Executor, settings: &Settings) -> Result<()> {
    let mut noise = TorchGenerator::new(SEED);
    for (name, value) in &graph.inputs {
        let shape = graph.shape(*value);
        let (rows, channels) = (shape.rows() as usize, shape.channels as usize);
        let size = [settings.height as f32, settings.width as f32];
        let data = match name.as_str() {
            "timestep" => vec![TIMESTEP; rows],
            "guidance" => vec![settings.guidance_scale - 1.0; rows],
            "sizes" => [size[0], size[1], 0.0, 0.0, size[0], size[1]].repeat(rows),
            _ => noise.randn(rows * channels),
        };
        executor.write(name, &HostTensor { shape: vec![rows, channels], data })?;
    }
    Ok(())
}

/// The stage's main result.
fn output(stage: Stage) -> &'static str {
    match stage {
        Stage::Text => "context",
        Stage::Denoise => "prediction",
        Stage::Decode => "image",
    }
}

/// Runs twice, the second time launch by launch, which gives the profile: the results must be finite, not constant and
/// bit for bit the same.
fn verify(stage: Stage, gpu: &Gpu, graph: &Graph, executor: &Executor) -> Result<Profile> {
    let name = output(stage);
    let value = graph.outputs.iter().find(|(output, _)| output == name).map(|(_, value)| *value);
    let value = value.unwrap_or_else(|| panic!("the graph of {} has no output {name}", stage.name()));
    let size = graph.shape(value).bytes(graph.dtype(value));
    executor.run();
    gpu.wait()?;
    let first = executor.read_bytes(name, size)?;
    let numbers = executor.read(name)?.data;
    if let Some(bad) = numbers.iter().find(|number| !number.is_finite()) {
        return Err(wrong(name, "finite numbers", bad));
    }
    let differs = numbers.iter().any(|number| *number != numbers[0]);
    if !differs {
        return Err(wrong(name, "numbers that differ", format!("{} everywhere", numbers[0])));
    }
    let profile = executor.profile(gpu.clock())?;
    if executor.read_bytes(name, size)? != first {
        return Err(wrong(name, "the same bits in a second run", "other bits"));
    }
    Ok(profile)
}

/// The first two components of a path (below the decoder), of which the second only where it is a number.
fn scope(label: &str) -> &str {
    let path = label.split(':').next().unwrap_or(label);
    let path = path.strip_prefix("decoder.").unwrap_or(path);
    let mut ends = path.match_indices('.').map(|(index, _)| index);
    let Some(first) = ends.next() else { return path };
    let second = ends.next().unwrap_or(path.len());
    let numbered = path[first + 1..second].bytes().all(|byte| byte.is_ascii_digit());
    &path[..if numbered { second } else { first }]
}

/// What a node must do at the least. Its first operand tells how it stores its activations.
fn work(graph: &Graph, node: &Node) -> Work {
    let dtype = node.inputs.iter().find_map(|operand| match operand {
        Operand::Value(value) => Some(graph.dtype(*value)),
        Operand::Weight(_) => None,
    });
    Work::new(node.call.variant.stem, dtype.unwrap_or(DType::F32), node.call.flops, node.call.bytes)
}

/// Sums nodes of the same name; in order of their first appearance.
fn grouped(
    graph: &Graph,
    profile: &Profile,
    roofs: &Roofs,
    name: &dyn Fn(&Node) -> (String, Option<Family>),
) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut places = BTreeMap::new();
    for (node, seconds) in graph.nodes().iter().zip(&profile.seconds) {
        let (name, family) = name(node);
        let place = *places.entry(name.clone()).or_insert(rows.len());
        if place == rows.len() {
            rows.push(Row { family, samples: 1, ..Row::empty(name, profile.clock) });
        }
        rows[place].add(work(graph, node), *seconds, roofs);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_joined_node_by_node() {
        let profile = |seconds: [f64; 2]| Profile { clock: Clock::Dispatches, seconds: seconds.into(), dispatches: 2 };
        let all = [profile([1.0, 9.0]), profile([2.0, 7.0]), profile([9.0, 8.0])];
        assert_eq!(median(&all), profile([2.0, 8.0]));
    }

    #[test]
    fn scopes_are_blocks() {
        assert_eq!(scope("down_blocks.1.resnets.0.conv1:matrix_lanes"), "down_blocks.1");
        assert_eq!(scope("mid_block.resnets.0.norm1:group_norm"), "mid_block");
        assert_eq!(scope("decoder.up_blocks.3.resnets.2.conv2:matrix_lanes"), "up_blocks.3");
        assert_eq!(scope("conv_in:matrix_lanes"), "conv_in");
        assert_eq!(scope("time_embedding.linear_1:matrix_lanes"), "time_embedding");
    }
}
