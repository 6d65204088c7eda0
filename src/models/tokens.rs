//! Layers that treat a value's rows as tokens: joining, averaging and making them; and those that change a picture's size
//! without weights. Part of [`super::nn`].

use super::attention::Heads;
use super::nn::{self, push};
use crate::graph::{Graph, Operand, RowSource, Shape, Value, WeightId};
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::kernels::pool::{Mode, Pool};
use crate::kernels::{concat, embed};
use crate::tensor::DType;
use crate::weights::Weights;

/// A window of one place that leaves x as it is.
fn place(from: Shape) -> Pool {
    Pool {
        batch: from.batch,
        input: [from.height, from.width],
        output: [from.height, from.width],
        channels: from.channels,
        mode: Mode::Mean,
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        enlarge: 1,
        dtype: DType::F32,
    }
}

/// x [B, H, W, C] -> means of two by two places [B, floor(H / 2), floor(W / 2), C].
pub fn halve(g: &mut Graph, label: &str, x: Value) -> Value {
    let from = g.shape(x);
    let output = [from.height / 2, from.width / 2].map(|side| side.max(1));
    nn::pool(g, label, x, Pool { output, kernel: [2, 2], stride: [2, 2], ..place(from) })
}

/// x [B, H, W, C] -> every place twice along both axes [B, 2 H, 2 W, C].
pub fn double(g: &mut Graph, label: &str, x: Value) -> Value {
    let from = g.shape(x);
    nn::pool(g, label, x, Pool { output: [2 * from.height, 2 * from.width], enlarge: 2, ..place(from) })
}

/// x [B, H, W, C] -> the mean of all places [B, 1, 1, C].
pub fn mean(g: &mut Graph, label: &str, x: Value) -> Value {
    let from = g.shape(x);
    let all = [from.height, from.width];
    nn::pool(g, label, x, Pool { output: [1, 1], kernel: all, stride: all, ..place(from) })
}

/// a [B, S, C], b [B, T, C] -> [B, S + T, C].
pub fn concat_tokens(g: &mut Graph, label: &str, a: Value, b: Value) -> Value {
    let (from, other) = (g.shape(a), g.shape(b));
    assert!(from.batch == other.batch && from.channels == other.channels, "{label}: {from} and {other} do not join");
    let dtype = g.dtype(a);
    // All tokens of a batch element are one row of the kernel's.
    let [first, second] = [from, other].map(|shape| 4 * shape.positions() * shape.vectors());
    let call = concat::call(from.batch, first, second, dtype, g.limits());
    let shape = Shape::tokens(from.batch, from.positions() + other.positions(), from.channels);
    push(g, label, call, vec![a.into(), b.into()], shape, dtype)
}

/// x [.., C] -> [.., C + count], zeros behind x.
pub fn pad_zeros(g: &mut Graph, label: &str, x: Value, count: u32) -> Value {
    let (from, dtype) = (g.shape(x), g.dtype(x));
    let zeros = g.constant(vec![0.0; (from.rows() * count.next_multiple_of(4)) as usize]);
    let call = concat::call(from.rows(), from.channels, count, dtype, g.limits());
    push(g, label, call, vec![x.into(), zeros.into()], from.with_channels(from.channels + count), dtype)
}

/// x [B, 1, 1, K] -> `count` tokens [B, count, width] by one linear layer of count * width outputs.
pub fn linear_tokens(g: &mut Graph, w: &Weights<'_>, x: Value, count: u32, width: u32) -> Value {
    let from = g.shape(x);
    let rows: Vec<RowSource> =
        Heads { count, width }.channels().into_iter().map(|row| row.map(|row| (0, row))).collect();
    let flat = nn::projected(g, w, x, count * width, rows);
    // A token is padded as a head is.
    reshaped(g, w.path(), flat, Shape::tokens(from.batch, count, width))
}

/// The same where the tokens' channels alternate: output c * count + i is channel c of token i.
pub fn alternating_tokens(g: &mut Graph, w: &Weights<'_>, x: Value, count: u32, width: u32) -> Value {
    let from = g.shape(x);
    let channel = |token: u32, channel: u32| (channel < width).then_some((0, channel * count + token));
    let padded = width.next_multiple_of(4);
    let rows = (0..count).flat_map(|token| (0..padded).map(move |c| channel(token, c))).collect();
    let flat = nn::projected(g, w, x, count * width, rows);
    reshaped(g, w.path(), flat, Shape::tokens(from.batch, count, width))
}

/// The same stored numbers under another shape, which must take as many vectors: a copy.
pub fn reshaped(g: &mut Graph, label: &str, x: Value, shape: Shape) -> Value {
    let dtype = g.dtype(x);
    assert!(g.shape(x).bytes(dtype) == shape.bytes(dtype), "{label}: {} is not {shape}", g.shape(x));
    let copy = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: Activation::None };
    let call = elementwise::call(copy, shape.rows(), shape.channels, [dtype; 3], g.limits());
    push(g, label, call, vec![x.into(), x.into()], shape, dtype)
}

/// Rows `ids` of `tables`, of which each counts as `split` rows, whatever it has -> [B, T, C], plus the row of `places` [T, C] of
/// each token, where there are any. All are stored alike.
pub fn gather(
    g: &mut Graph,
    label: &str,
    (tables, split): (&[Operand], u32),
    ids: &[u32],
    places: Option<WeightId>,
    (shape, dtype): (Shape, DType),
) -> Value {
    assert!(ids.len() == shape.rows() as usize && tables.len() <= embed::RANGES as usize, "{label}: ids for {shape}");
    let rows: Vec<f32> = ids.iter().flat_map(|id| [f32::from_bits(*id), 0.0, 0.0, 0.0]).collect();
    let ids = g.constant(rows);
    let zeros = |g: &mut Graph| g.constant(vec![0.0; shape.channels.next_multiple_of(4) as usize]);
    let tokens = if places.is_some() { shape.positions() } else { 1 };
    let places = places.unwrap_or_else(|| zeros(g));
    let table = |range: usize| tables[range.min(tables.len() - 1)];
    let inputs = [ids.into(), places.into()].into_iter().chain((0..embed::RANGES as usize).map(table)).collect();
    let call = embed::call(shape.rows() / tokens, tokens, shape.channels, split, dtype, g.limits());
    push(g, label, call, inputs, shape, dtype)
}

/// x [B, 1, 1, C] plus the vector [1, C] at `w`.
pub fn add_vector(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    let from = g.shape(x);
    let dtype = g.dtype(x);
    w.claim(&[&[1, from.channels], &[from.channels]]);
    let vector = w.table(g, 0, 1, from.channels, dtype);
    // A table's row and a position's, where the table is x itself.
    let rows: Vec<f32> = (0..from.batch).flat_map(|row| [f32::from_bits(row), 0.0, 0.0, 0.0]).collect();
    let rows = g.constant(rows);
    let call = embed::call(from.batch, 1, from.channels, from.batch, dtype, g.limits());
    let inputs = vec![rows.into(), vector.into(), x.into(), x.into(), x.into(), x.into()];
    push(g, w.path(), call, inputs, from, dtype)
}
