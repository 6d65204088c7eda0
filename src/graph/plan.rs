//! From lifetimes to buffers: which values share a buffer, and how large each buffer must be.

use super::{Graph, Operand, Value};

/// Where every value of a graph lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Per value, the index of its buffer; `None` for a value that nothing writes or reads.
    pub buffer_of: Vec<Option<usize>>,
    /// Per buffer, its size in bytes.
    pub sizes: Vec<u64>,
}

impl Plan {
    /// Bytes of all buffers together.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }
}

/// Assigns whole buffers by lifetime. Inputs and outputs keep a buffer of their own for the graph's life.
pub fn plan(graph: &Graph) -> Plan {
    let count = graph.values.len();
    let mut last_use = vec![None; count];
    for (step, node) in graph.nodes.iter().enumerate() {
        for operand in &node.inputs {
            if let Operand::Value(value) = operand {
                last_use[value.0 as usize] = Some(step);
            }
        }
        for output in &node.outputs {
            last_use[output.0 as usize].get_or_insert(step);
        }
    }
    let kept: Vec<Value> = graph.inputs.iter().chain(&graph.outputs).map(|(_, value)| *value).collect();
    let mut pool = Pool { sizes: Vec::new(), free: Vec::new() };
    let mut buffer_of = vec![None; count];
    for value in &kept {
        let index = value.0 as usize;
        if buffer_of[index].is_none() {
            pool.sizes.push(bytes(graph, *value));
            buffer_of[index] = Some(pool.sizes.len() - 1);
        }
    }
    for (step, node) in graph.nodes.iter().enumerate() {
        for output in &node.outputs {
            let index = output.0 as usize;
            if buffer_of[index].is_none() {
                buffer_of[index] = Some(pool.take(bytes(graph, *output)));
            }
        }
        let read = node.inputs.iter().filter_map(|operand| match operand {
            Operand::Value(value) => Some(*value),
            Operand::Weight(_) => None,
        });
        let mut dying: Vec<Value> = read.chain(node.outputs.iter().copied()).collect();
        dying.sort_unstable();
        dying.dedup();
        for value in dying {
            let index = value.0 as usize;
            if last_use[index] == Some(step) && !kept.contains(&value) {
                pool.free.extend(buffer_of[index]);
            }
        }
    }
    Plan { buffer_of, sizes: pool.sizes }
}

fn bytes(graph: &Graph, value: Value) -> u64 {
    let info = graph.info(value);
    info.shape.bytes(info.dtype).max(16)
}

struct Pool {
    sizes: Vec<u64>,
    free: Vec<usize>,
}

impl Pool {
    /// The smallest free buffer that is large enough, else the largest free one, grown, else a new one.
    fn take(&mut self, size: u64) -> usize {
        let fitting = self.free.iter().enumerate().filter(|(_, buffer)| self.sizes[**buffer] >= size);
        let slot = fitting.min_by_key(|(_, buffer)| self.sizes[**buffer]).map(|(slot, _)| slot);
        let slot = slot.or_else(|| {
            let largest = self.free.iter().enumerate().max_by_key(|(_, buffer)| self.sizes[**buffer]);
            largest.map(|(slot, _)| slot)
        });
        let Some(slot) = slot else {
            self.sizes.push(size);
            return self.sizes.len() - 1;
        };
        let buffer = self.free.swap_remove(slot);
        self.sizes[buffer] = self.sizes[buffer].max(size);
        buffer
    }
}
