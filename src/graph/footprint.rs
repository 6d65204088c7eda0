//! What a graph will take on the device, told without one.

use super::executor::PARAMS_STRIDE;
use super::staging::Scratch;
use super::{Graph, Operand, plan};

/// Uploads wait for each other after about this many bytes, so that their staging memory stays bounded.
pub(super) const UPLOAD_BYTES: u64 = 32 << 20;
/// The last piece of an upload may be this much more (`weights/pack.rs` hands out pieces of that size).
const PIECE_BYTES: u64 = 4 << 20;

/// Bytes on the device that a graph's executor takes, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Weights as packed, and their alignment.
    pub weights: u64,
    /// Activations, inputs and outputs.
    pub activations: u64,
    /// Parameters of every dispatch.
    pub parameters: u64,
    /// Textures that operands are copied into on software drivers; 0 elsewhere.
    pub textures: u64,
    /// Memory that the host writes the weights through while they are loaded, at most.
    pub staging: u64,
}

impl Footprint {
    /// Once everything is loaded.
    pub fn loaded(&self) -> u64 {
        self.weights + self.activations + self.parameters + self.textures
    }

    /// The most at any time: staging is gone before parameters and textures are made.
    pub fn peak(&self) -> u64 {
        self.loaded().max(self.weights + self.activations + self.staging)
    }
}

/// What `graph` will take.
pub fn footprint(graph: &Graph) -> Footprint {
    let mut scratch = Scratch::default();
    let mut launches = 0;
    for node in graph.nodes() {
        launches += node.call.launches.len() as u64;
        for launch in &node.call.launches {
            for position in node.call.variant.staged() {
                let (whole, dtype) = match node.inputs[*position] {
                    Operand::Value(value) => (graph.shape(value).bytes(graph.dtype(value)), graph.dtype(value)),
                    Operand::Weight(weight) => {
                        let spec = &graph.weights[weight.0 as usize];
                        (spec.bytes(), spec.layout.dtype())
                    }
                };
                let range = launch.ranges[*position].filter(|_| matches!(node.inputs[*position], Operand::Value(_)));
                scratch.reserve(*position, range.map_or(whole, |(_, size)| size), dtype);
            }
        }
    }
    Footprint {
        weights: plan::weights(graph, u64::MAX).sizes.iter().map(|size| size.next_multiple_of(4).max(16)).sum(),
        activations: plan::plan(graph).bytes(),
        parameters: launches * PARAMS_STRIDE,
        textures: scratch.bytes(),
        staging: graph.weight_bytes().min(UPLOAD_BYTES + PIECE_BYTES),
    }
}
