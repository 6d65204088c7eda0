//! The residual block of autoencoders and UNets. Part of [`super::nn`].

use super::nn::{self, Conv, Linear, Norm};
use crate::graph::{Graph, Value};
use crate::kernels::elementwise::Activation;
use crate::weights::Weights;

/// What a residual block does besides its convolutions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resnet {
    /// Output channels.
    pub out: u32,
    /// More input channels, behind those of x: [B, H, W, J], the skip connection of a UNet.
    pub second: Option<Value>,
    /// Added between the convolutions: the channels from the given one on of [B, 1, 1, ..] in f32.
    pub time: Option<(Value, u32)>,
    /// Groups of both norms.
    pub groups: u32,
    /// Epsilon of both norms.
    pub eps: f32,
}

/// Whether a residual block changes the size, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The means of two by two places.
    Halve,
    /// Nearest neighbour.
    Double,
}

/// A residual block with all that UNets ask of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResnetBlock {
    /// What every residual block has.
    pub base: Resnet,
    /// Behind both norms.
    pub activation: Activation,
    /// Instead of an addition of `base.time`, which then holds scales: the second norm times 1 + scale plus shift, the
    /// shifts being the channels from this one on of the same value.
    pub shift: Option<u32>,
    /// Changes the size of both branches in front of the first convolution.
    pub resize: Option<Resize>,
    /// What the sum of both branches is divided by.
    pub divisor: f32,
}

impl From<Resnet> for ResnetBlock {
    fn from(base: Resnet) -> Self {
        Self { base, activation: Activation::Silu, shift: None, resize: None, divisor: 1.0 }
    }
}

/// x [B, H, W, I], with the second source [B, H, W, I + J] -> [B, H, W, out] (diffusers `ResnetBlock2D`).
pub fn resnet(g: &mut Graph, w: &Weights<'_>, x: Value, options: Resnet) -> Value {
    resnet_block(g, w, x, options.into())
}

/// x [B, H, W, I], with the second source [B, H, W, I + J] -> [B, H', W', out] (diffusers `ResnetBlock2D`). A block that
/// changes the size has no second source.
pub fn resnet_block(g: &mut Graph, w: &Weights<'_>, x: Value, options: ResnetBlock) -> Value {
    let Resnet { out, second, time, groups, eps } = options.base;
    let norm = Norm { activation: options.activation, ..Norm::new(groups, eps) };
    let from = g.shape(x);
    let mut h = nn::group_norm_with(g, &w.at("norm1"), x, Norm { second, ..norm });
    let mut x = x;
    let mut upsample = None;
    match options.resize {
        None => {}
        Some(Resize::Halve) => {
            h = nn::halve(g, w.path(), h);
            x = nn::halve(g, w.path(), x);
        }
        Some(Resize::Double) => {
            upsample = Some((2 * from.height, 2 * from.width));
            x = nn::double(g, w.path(), x);
        }
    }
    let modulation = options.shift.and_then(|shift| time.map(|(row, scale)| (row, [scale, shift])));
    let row_bias = if modulation.is_some() { None } else { time };
    let h = nn::conv(g, &w.at("conv1"), h, Conv { row_bias, upsample, ..Conv::new(out, 3) });
    let h = nn::group_norm_with(g, &w.at("norm2"), h, Norm { modulation, ..norm });
    let inputs = from.channels + second.map_or(0, |second| g.shape(second).channels);
    let skip = match second {
        _ if inputs != out => nn::linear(g, &w.at("conv_shortcut"), x, Linear { second, ..Linear::new(out) }),
        // No published model has a block that keeps the channels of both sources.
        Some(second) => nn::concat(g, w.path(), x, second),
        None => x,
    };
    let y = nn::conv(g, &w.at("conv2"), h, Conv { residual: Some(skip), ..Conv::new(out, 3) });
    if options.divisor == 1.0 { y } else { nn::scale(g, w.path(), y, 1.0 / options.divisor, 0.0) }
}
