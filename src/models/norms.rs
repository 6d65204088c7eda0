//! Group and layer norms, with what is fused into them. Part of [`super::nn`].

use super::nn::{push, vector};
use crate::error::Error;
use crate::graph::{Graph, Operand, Shape, Value};
use crate::kernels::elementwise::Activation;
use crate::kernels::group_norm::{self, Grid, GroupNorm, Modulation};
use crate::kernels::layer_norm::{self, LayerNorm};
use crate::tensor::DType;
use crate::weights::Weights;

/// A GroupNorm's options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// More input channels, behind those of x: [B, H, W, J].
    pub second: Option<Value>,
    /// Groups.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Scales and shifts n * (1 + scale) + shift: the channels from the given ones on of [B, 1, 1, ..] in f32.
    pub modulation: Option<(Value, [u32; 2])>,
    /// Whether they come from a grid [B, h, w, ..], H = k h and W = k w, for every place those of the cell it lies in
    /// (`nearest`), and are n * scale + shift.
    pub spatial: bool,
    /// Applied last: none, SiLU or GELU.
    pub activation: Activation,
}

impl Norm {
    /// Of one source, and nothing else.
    pub fn new(groups: u32, eps: f32) -> Self {
        Self { second: None, groups, eps, modulation: None, spatial: false, activation: Activation::None }
    }
}

/// x [B, H, W, C] -> the same, normalised over positions and the channels of each group, then SiLU where asked.
pub fn group_norm(g: &mut Graph, w: &Weights<'_>, x: Value, groups: u32, eps: f32, silu: bool) -> Value {
    group_norm_of(g, w, x, None, groups, eps, silu)
}

/// The same over [x | second] along the channels, of which no copy is made: groups may straddle the seam.
pub fn group_norm_of(
    g: &mut Graph,
    w: &Weights<'_>,
    x: Value,
    second: Option<Value>,
    groups: u32,
    eps: f32,
    silu: bool,
) -> Value {
    let activation = if silu { Activation::Silu } else { Activation::None };
    group_norm_with(g, w, x, Norm { second, activation, ..Norm::new(groups, eps) })
}

/// The same with all options.
pub fn group_norm_with(g: &mut Graph, w: &Weights<'_>, x: Value, options: Norm) -> Value {
    let Norm { second, groups, eps, modulation, spatial, activation } = options;
    let from = g.shape(x);
    let more = second.map_or(0, |second| {
        let other = g.shape(second);
        assert!(other == from.with_channels(other.channels), "{}: {from} and {other} differ in rows", w.path());
        assert!(g.dtype(second) == g.dtype(x), "{}: two sources of different types", w.path());
        other.channels
    });
    let shape = from.with_channels(from.channels + more);
    let (batch, positions, channels) = (shape.batch, shape.positions(), shape.channels);
    assert!(channels.is_multiple_of(groups), "{}: {groups} groups do not divide {channels} channels", w.path());
    let dtype = g.dtype(x);
    let parts = modulation.map(|(row, [scale, shift])| {
        let own = g.shape(row);
        let factor = if spatial { from.height / own.height } else { 1 };
        let fits = !spatial || own.with_channels(from.channels) == divided(from, factor);
        assert!(fits, "{}: a modulation {own} of {from}", w.path());
        let grid = spatial.then_some(Grid { width: from.width, factor });
        Modulation { channels: own.channels, scale, shift, grid }
    });
    let config =
        GroupNorm { batch, positions, channels, second: more, groups, eps, modulation: parts, activation, dtype };
    if config.too_wide() {
        g.fail(
            Error::new("a group of a GroupNorm is too wide")
                .at(w.path())
                .expected("at most 1024 channels, or 256 of an odd number")
                .found(channels / groups)
                .hint("a model with more norm_num_groups"),
        );
    }
    let weight = vector(g, &w.at("weight"), channels);
    let bias = vector(g, &w.at("bias"), channels);
    let [a, b] = [x, second.unwrap_or(x)].map(Operand::from);
    let call = group_norm::stats(&config, g.limits());
    let partials = Shape::new(batch, groups, config.chunks(g.limits()), 4);
    let partials = push(g, w.path(), call, vec![a, b], partials, DType::F32);
    let call = group_norm::apply(&config, g.limits());
    let mut inputs = vec![a, b, partials.into(), weight.into(), bias.into()];
    inputs.extend(modulation.map(|(row, _)| Operand::from(row)));
    push(g, w.path(), call, inputs, shape, dtype)
}

/// The grid of cells of `factor` by `factor` places, of which the shape must be whole.
fn divided(shape: Shape, factor: u32) -> Shape {
    assert!(shape.height.is_multiple_of(factor) && shape.width.is_multiple_of(factor), "{shape} in cells of {factor}");
    Shape { height: shape.height / factor, width: shape.width / factor, ..shape }
}

/// x [.., C] -> the same, normalised over the channels.
pub fn layer_norm(g: &mut Graph, w: &Weights<'_>, x: Value, eps: f32) -> Value {
    let shape = g.shape(x);
    let dtype = g.dtype(x);
    let weight = vector(g, &w.at("weight"), shape.channels);
    let bias = vector(g, &w.at("bias"), shape.channels);
    let config = LayerNorm { rows: shape.rows(), channels: shape.channels, eps, dtype };
    let call = layer_norm::call(&config, g.limits());
    push(g, w.path(), call, vec![x.into(), weight.into(), bias.into()], shape, dtype)
}
