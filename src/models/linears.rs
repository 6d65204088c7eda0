//! Linear layers whose outputs are laid out in chunks, each padded to whole vectors. Part of [`super::nn`].

use super::nn::{Linear, padded, product};
use crate::graph::{Graph, RowSource, Value};
use crate::weights::Weights;

/// Several linear layers, or 1x1 convolutions, `parts` (with bias) of the same x [.., K] as one product -> [.., sum of N] in f32, and where each
/// one's channels begin. The N outputs of a layer are `chunks` equal chunks, each padded to a multiple of four.
pub fn linears(g: &mut Graph, label: &str, parts: &[(Weights<'_>, u32)], chunks: u32, x: Value) -> (Value, Vec<u32>) {
    let [(w, _), ..] = parts else { panic!("{label}: no layers to join") };
    let depth = g.shape(x).channels;
    let mut rows: Vec<RowSource> = Vec::new();
    let mut begins = Vec::new();
    for (key, (_, out)) in parts.iter().enumerate() {
        begins.push(rows.len() as u32);
        let length = out / chunks;
        for chunk in 0..chunks {
            rows.extend(padded(length).into_iter().map(|row| row.map(|row| (key as u8, chunk * length + row))));
        }
    }
    let keys = parts.iter().map(|(w, out)| w.at("weight").claim(&[&[*out, depth], &[*out, depth, 1, 1]])).collect();
    let weight = w.matrix(g, keys, rows.clone(), padded(depth), 1);
    let keys = parts.iter().map(|(w, out)| w.at("bias").claim(&[&[*out]])).collect();
    let bias = w.vector(g, keys, rows.clone());
    let options = Linear { single: true, ..Linear::new(rows.len() as u32) };
    (product(g, label, x, weight, Some(bias), options), begins)
}

/// x [.., K] -> [.., rows] by a linear layer of `out` outputs with bias, of which `rows` are taken in this order.
pub(super) fn projected(g: &mut Graph, w: &Weights<'_>, x: Value, out: u32, rows: Vec<RowSource>) -> Value {
    let depth = g.shape(x).channels;
    let key = w.at("weight").claim(&[&[out, depth]]);
    let weight = w.matrix(g, vec![key], rows.clone(), padded(depth), 1);
    let key = w.at("bias").claim(&[&[out]]);
    let bias = w.vector(g, vec![key], rows.clone());
    product(g, w.path(), x, weight, Some(bias), Linear::new(rows.len() as u32))
}
