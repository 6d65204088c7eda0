//! From lifetimes to buffers: which values share a buffer, how large each buffer must be, and where weights lie in theirs.

use super::{Graph, Operand, Value, WeightSpec};

/// Weights are gathered in buffers of about this size, so that few allocations hold them all.
const WEIGHT_BUFFER_BYTES: u64 = 256 << 20;

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

/// Where every weight of a graph lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPlan {
    /// Per weight its buffer, and its offset and size in bytes.
    pub places: Vec<(usize, u64, u64)>,
    /// Per buffer, its size in bytes.
    pub sizes: Vec<u64>,
}

/// Lays the weights one behind the other into buffers of at most `largest` bytes (a larger weight has one of its own).
pub fn weights(graph: &Graph, largest: u64) -> WeightPlan {
    let align = graph.limits().alignment.max(256);
    let capacity = WEIGHT_BUFFER_BYTES.min(largest);
    let mut plan = WeightPlan { places: Vec::new(), sizes: Vec::new() };
    for size in graph.weights.iter().map(WeightSpec::bytes) {
        let offset = plan.sizes.last().map(|used| used.next_multiple_of(align)).filter(|used| used + size <= capacity);
        match (offset, plan.sizes.last_mut()) {
            (Some(offset), Some(last)) => *last = offset + size,
            _ => plan.sizes.push(size),
        }
        plan.places.push((plan.sizes.len() - 1, offset.unwrap_or(0), size));
    }
    plan
}

/// The steps between which a value's content matters, both included.
type Life = (usize, usize);

/// Assigns whole buffers by lifetime. Inputs and outputs keep a buffer of their own for the graph's life.
///
/// Two greedy ways are tried and the smaller total is taken: values by decreasing size, each into the smallest buffer
/// that nothing else occupies meanwhile; and values in the order of execution, each into a buffer that is free by then.
pub fn plan(graph: &Graph) -> Plan {
    let lives = lives(graph);
    let by_size = by_size(graph, &lives);
    let in_order = in_order(graph, &lives);
    if by_size.bytes() <= in_order.bytes() { by_size } else { in_order }
}

/// Per value its life, from the first step that writes it to the last that reads or writes it.
fn lives(graph: &Graph) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; graph.values.len()];
    for (step, node) in graph.nodes.iter().enumerate() {
        for value in node.inputs.iter().filter_map(Operand::value).chain(node.outputs.iter().copied()) {
            lives[value.0 as usize].get_or_insert((step, step)).1 = step;
        }
    }
    for (_, value) in graph.inputs.iter().chain(&graph.outputs) {
        lives[value.0 as usize] = Some((0, usize::MAX));
    }
    lives
}

fn by_size(graph: &Graph, lives: &[Option<Life>]) -> Plan {
    let mut order: Vec<usize> = (0..lives.len()).filter(|value| lives[*value].is_some()).collect();
    order.sort_by_key(|value| std::cmp::Reverse(bytes(graph, Value(*value as u32))));
    let mut plan = Plan { buffer_of: vec![None; lives.len()], sizes: Vec::new() };
    let mut occupied: Vec<Vec<Life>> = Vec::new();
    for value in order {
        let Some(life) = lives[value] else { continue };
        let apart = |others: &Vec<Life>| others.iter().all(|other| other.1 < life.0 || life.1 < other.0);
        // Sizes fall, so every buffer is large enough and the last that is free is the smallest.
        let buffer = occupied.iter().rposition(apart).unwrap_or_else(|| {
            plan.sizes.push(bytes(graph, Value(value as u32)));
            occupied.push(Vec::new());
            occupied.len() - 1
        });
        occupied[buffer].push(life);
        plan.buffer_of[value] = Some(buffer);
    }
    plan
}

fn in_order(graph: &Graph, lives: &[Option<Life>]) -> Plan {
    let mut pool = Pool { sizes: Vec::new(), free: Vec::new() };
    let mut buffer_of = vec![None; lives.len()];
    for value in 0..lives.len() {
        if lives[value] == Some((0, usize::MAX)) {
            pool.sizes.push(bytes(graph, Value(value as u32)));
            buffer_of[value] = Some(pool.sizes.len() - 1);
        }
    }
    for (step, node) in graph.nodes.iter().enumerate() {
        for output in &node.outputs {
            buffer_of[output.0 as usize].get_or_insert_with(|| pool.take(bytes(graph, *output)));
        }
        let read = node.inputs.iter().filter_map(Operand::value);
        let mut dying: Vec<Value> = read.chain(node.outputs.iter().copied()).collect();
        dying.sort_unstable();
        dying.dedup();
        for value in dying {
            let index = value.0 as usize;
            if lives[index].is_some_and(|life| life.1 == step) {
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
