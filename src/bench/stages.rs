//! One UNet step and one VAE decode, timed as a whole and layer by layer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Roofs, Row, time, wrong};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::graph::executor::Executor;
use crate::pipelines::Settings;
use crate::pipelines::inspect::{self, Stage};
use crate::sampling::TorchGenerator;
use crate::tensor::{DType, HostTensor};
use crate::weights::checkpoint::Checkpoint;

/// Seed of the inputs.
const SEED: u64 = 7;
/// The timestep of the step that is timed; any will do.
const TIMESTEP: f32 = 500.0;

/// A stage's times.
#[derive(Debug, Clone, PartialEq)]
pub struct StageReport {
    /// The stage as a whole.
    pub whole: Row,
    /// By place in the model (`down_blocks.1`), in order of execution. Each layer was waited for by itself.
    pub scopes: Vec<Row>,
    /// By kernel stem, the longest first. Each layer was waited for by itself.
    pub kernels: Vec<Row>,
    /// Bytes on the adapter: weights and activations.
    pub bytes: u64,
}

/// Verifies `stage` (finite, not constant, the same bits twice) and times it: `runs` runs, of which the median counts.
/// `progress` is told what is being done.
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
    progress(&format!("{}: loading {} MiB of weights", stage.name(), graph.weight_bytes() >> 20));
    let executor = inspect::executor(stage, gpu, &graph, checkpoint)?;
    fill(&graph, &executor, settings)?;
    progress(&format!("{}: verifying", stage.name()));
    let profile = verify(stage, gpu, &graph, &executor)?;
    progress(&format!("{}: timing {runs} runs", stage.name()));
    let seconds = time(gpu, &executor, runs)?;
    let totals = graph.nodes().iter().fold((0, 0, 0.0), |(flops, bytes, ideal), node| {
        (flops + node.call.flops, bytes + node.call.bytes, ideal + roofs.ideal(node.call.flops, node.call.bytes))
    });
    let name = match stage {
        Stage::Text => "text",
        Stage::Denoise => "step",
        Stage::Decode => "decode",
    };
    let whole = Row { name: name.into(), seconds, flops: totals.0, bytes: totals.1, ideal: totals.2, verified: true };
    let scopes = grouped(&graph, &profile, roofs, |label| format!("{name}: scope {}", scope(label)));
    let mut kernels = grouped(&graph, &profile, roofs, |label| format!("{name}: kernel {}", stem(label)));
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(StageReport { whole, scopes, kernels, bytes: executor.bytes() })
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

/// Runs twice, the second time layer by layer, which gives the profile: the results must be finite, not constant and
/// bit for bit the same.
fn verify(stage: Stage, gpu: &Gpu, graph: &Graph, executor: &Executor) -> Result<Vec<f64>> {
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
    let profile = executor.profile()?.into_iter().map(|(_, seconds, _)| seconds).collect();
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

fn stem(label: &str) -> &str {
    label.rsplit(':').next().unwrap_or(label)
}

/// Sums nodes of the same name; in order of their first appearance.
fn grouped(graph: &Graph, seconds: &[f64], roofs: &Roofs, name: impl Fn(&str) -> String) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut places = BTreeMap::new();
    for (node, seconds) in graph.nodes().iter().zip(seconds) {
        let name = name(&node.label);
        let place = *places.entry(name.clone()).or_insert(rows.len());
        if place == rows.len() {
            rows.push(Row { name, seconds: 0.0, flops: 0, bytes: 0, ideal: 0.0, verified: true });
        }
        let row = &mut rows[place];
        row.seconds += seconds;
        row.flops += node.call.flops;
        row.bytes += node.call.bytes;
        row.ideal += roofs.ideal(node.call.flops, node.call.bytes);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_blocks() {
        assert_eq!(scope("down_blocks.1.resnets.0.conv1:matrix_lanes"), "down_blocks.1");
        assert_eq!(scope("mid_block.resnets.0.norm1:group_norm"), "mid_block");
        assert_eq!(scope("decoder.up_blocks.3.resnets.2.conv2:matrix_lanes"), "up_blocks.3");
        assert_eq!(scope("conv_in:matrix_lanes"), "conv_in");
        assert_eq!(scope("time_embedding.linear_1:matrix_lanes"), "time_embedding");
        assert_eq!(stem("down_blocks.1.resnets.0.conv1:matrix_lanes"), "matrix_lanes");
    }
}
