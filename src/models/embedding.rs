//! Token tables: an id becomes a row, with the vector of its position where there are positions.

use crate::error::Error;
use crate::graph::{Graph, Operand, Shape, Value};
use crate::kernels::embed;
use crate::models::nn;
use crate::weights::Weights;

/// ids [B, T] -> token plus position vectors [B, T, C], from the tables of `table` and `places` with as many rows.
pub(super) fn embedding(
    g: &mut Graph,
    label: &str,
    table: (&Weights<'_>, u32),
    (places, positions): (&Weights<'_>, u32),
    channels: u32,
    ids: Value,
) -> Value {
    let shape = g.shape(ids);
    let (ranges, split) = ranges(g, table, channels);
    places.claim(&[&[positions, channels]]);
    let places = places.table(g, 0, positions, channels, g.precision());
    let inputs = [ids.into(), places.into()].into_iter().chain(ranges).collect();
    let dtype = g.precision();
    let call = embed::call(shape.batch, shape.height, channels, split, dtype, g.limits());
    nn::push(g, label, call, inputs, shape.with_channels(channels), dtype)
}

/// As many ids as `shape` has places -> the rows of a table [rows, C], C being the channels of `shape`.
pub(super) fn lookup(g: &mut Graph, label: &str, table: (&Weights<'_>, u32), ids: Value, shape: Shape) -> Value {
    let (ranges, split) = ranges(g, table, shape.channels);
    let zeros = vec![0.0; shape.channels.next_multiple_of(4) as usize];
    let zeros = g.constant(zeros);
    let dtype = g.precision();
    let inputs = [ids.into(), zeros.into()].into_iter().chain(ranges).collect();
    let call = embed::call(shape.rows(), 1, shape.channels, split, dtype, g.limits());
    nn::push(g, label, call, inputs, shape, dtype)
}

/// A table in the ranges of rows that the kernel takes, and the rows of one.
fn ranges(g: &mut Graph, (table, rows): (&Weights<'_>, u32), channels: u32) -> (Vec<Operand>, u32) {
    let dtype = g.precision();
    table.claim(&[&[rows, channels]]);
    let split = embed::split(rows, channels, dtype, g.limits()).unwrap_or_else(|| {
        g.fail(
            Error::new("the token table is larger than this adapter's bindings")
                .at(table.path())
                .expected(format!("at most {} bindings of {} bytes", embed::RANGES, g.limits().binding))
                .found(format!("[{rows}, {channels}]")),
        );
        rows
    });
    let found: Vec<Operand> = (0..rows.div_ceil(split))
        .map(|range| table.table(g, range * split, split.min(rows - range * split), channels, dtype).into())
        .collect();
    ((0..embed::RANGES as usize).map(|range| found[range.min(found.len() - 1)]).collect(), split)
}
