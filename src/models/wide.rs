//! Weights larger than a binding: a product in parts of its outputs. Part of [`super::nn`].

use std::ops::Range;

use super::nn;
use crate::graph::{Graph, Value};
use crate::kernels::Limits;
use crate::kernels::elementwise::Activation;

/// Columns of a panel, in which matrices are stored.
const PANEL: u32 = 32;

/// The outputs of a weight whose one output takes `bytes`, cut into the fewest parts that fit a binding, whole panels each.
/// One part where not even a panel fits, which the graph then refuses.
pub(super) fn parts(outputs: u32, bytes: u64, limits: &Limits) -> Vec<Range<u32>> {
    let panels = outputs.div_ceil(PANEL);
    let most = limits.binding.checked_div(u64::from(PANEL) * bytes).unwrap_or(u64::MAX);
    if most == 0 || most >= u64::from(panels) {
        return vec![0..outputs];
    }
    let step = PANEL * panels.div_ceil(panels.div_ceil(most as u32));
    (0..outputs.div_ceil(step)).map(|part| part * step..((part + 1) * step).min(outputs)).collect()
}

/// Runs `product` for every part, and joins the results along the channels; the residual is added to the whole.
pub(super) fn joined(
    g: &mut Graph,
    label: &str,
    parts: Vec<Range<u32>>,
    residual: Option<Value>,
    mut product: impl FnMut(&mut Graph, Range<u32>, Option<Value>) -> Value,
) -> Value {
    if let [whole] = &parts[..] {
        return product(g, whole.clone(), residual);
    }
    let made: Vec<Value> = parts.into_iter().map(|part| product(g, part, None)).collect();
    let joined = made.into_iter().reduce(|before, part| nn::concat(g, label, before, part));
    match (joined, residual) {
        (Some(y), Some(residual)) => nn::add(g, label, y, residual, Activation::None),
        (Some(y), None) => y,
        (None, _) => product(g, 0..0, residual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn parts_cover_all_outputs_in_whole_panels(
            outputs in 1u32..9000, inputs in 1u64..60_000, binding in (1u64 << 16)..(1 << 28),
        ) {
            let limits = Limits { binding, ..Limits::default() };
            let parts = parts(outputs, 2 * inputs, &limits);
            proptest::prop_assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, outputs));
            proptest::prop_assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            let bytes = |part: &Range<u32>| u64::from((part.end - part.start).next_multiple_of(PANEL)) * 2 * inputs;
            proptest::prop_assert!(
                parts.iter().all(|part| bytes(part) <= binding && part.start % PANEL == 0 && part.end > part.start)
                    || u64::from(PANEL) * 2 * inputs > binding
            );
        }
    }
}
