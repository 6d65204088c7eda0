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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::Shape;
    use crate::kernels::{Limits, Variant, whole};
    use crate::tensor::DType;

    /// A random node: which earlier values it reads, and per value that it makes, rows, channels and whether it is named.
    type Step = (Vec<prop::sample::Index>, Vec<(u32, u32, bool)>);

    fn build(inputs: &[(u32, u32)], steps: &[Step]) -> Graph {
        let mut g = Graph::new(DType::F32, Limits::default());
        let mut values: Vec<Value> = Vec::new();
        for (index, (rows, channels)) in inputs.iter().enumerate() {
            values.push(g.input(&format!("input {index}"), Shape::tokens(1, *rows, *channels), DType::F32));
        }
        for (reads, makes) in steps {
            let reads: Vec<Operand> = reads.iter().map(|index| (*index.get(&values)).into()).collect();
            let variant = Variant { stem: "concat", enables: vec![], constants: vec![], types: vec![] };
            let call = whole(variant, &[0u32; 4], [1, 1, 1], reads.len() + makes.len());
            let shapes: Vec<_> =
                makes.iter().map(|(rows, channels, _)| (Shape::tokens(1, *rows, *channels), DType::F16)).collect();
            let made = g.push_many("step", call, reads, &shapes);
            for (value, _) in made.iter().zip(makes).filter(|(_, (_, _, named))| *named) {
                g.output(&format!("output {}", value.0), *value);
            }
            values.extend(made);
        }
        g
    }

    /// The first and the last step during which a value's content matters; named values matter always.
    fn life(g: &Graph, value: Value) -> (usize, usize) {
        if g.inputs.iter().chain(&g.outputs).any(|(_, named)| *named == value) {
            return (0, usize::MAX);
        }
        let made = g.nodes.iter().position(|node| node.outputs.contains(&value)).unwrap();
        let read = g.nodes.iter().rposition(|node| node.inputs.contains(&Operand::Value(value)));
        (made, read.unwrap_or(made))
    }

    proptest! {
        #[test]
        fn values_that_live_at_the_same_time_never_share_a_buffer(
            inputs in prop::collection::vec((1u32..40, 1u32..20), 1..4),
            steps in prop::collection::vec(
                (
                    prop::collection::vec(any::<prop::sample::Index>(), 1..4),
                    prop::collection::vec((1u32..40, 1u32..20, prop::bool::weighted(0.1)), 1..3),
                ),
                1..30,
            ),
        ) {
            let g = build(&inputs, &steps);
            let plan = plan(&g);
            let places: Vec<_> = (0..g.values.len() as u32)
                .map(|index| (life(&g, Value(index)), plan.buffer_of[index as usize].unwrap()))
                .collect();
            for (index, (one, buffer)) in places.iter().enumerate() {
                let info = &g.values[index];
                prop_assert!(plan.sizes[*buffer] >= info.shape.bytes(info.dtype));
                for (other, shared) in &places[index + 1..] {
                    let together = one.0 <= other.1 && other.0 <= one.1;
                    prop_assert!(!together || buffer != shared, "{one:?} and {other:?} share buffer {buffer}");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers_between_its_ends() {
        let mut g = Graph::new(DType::F32, Limits::default());
        let mut value = g.input("first", Shape::tokens(1, 8, 4), DType::F32);
        for _ in 0..6 {
            let variant = Variant { stem: "concat", enables: vec![], constants: vec![], types: vec![] };
            let call = whole(variant, &[0u32; 4], [1, 1, 1], 2);
            value = g.push("step", call, vec![value.into()], Shape::tokens(1, 8, 4), DType::F32);
        }
        g.output("last", value);
        let plan = plan(&g);
        assert_eq!(plan.sizes.len(), 4);
        assert_eq!(plan.bytes(), 4 * 8 * 16);
    }
}
