//! The latent UNet of Stable Diffusion 1.x, 2.x and XL (diffusers `UNet2DConditionModel`).

use std::collections::HashMap;

use crate::graph::{Graph, Shape, Value};
use crate::kernels::vector_bytes;
use crate::models::config::UnetConfig;
pub use crate::models::generator::conditioning::Conditioning;
use crate::models::generator::conditioning::time_embedding;
use crate::models::generator::context::TextKeys;
use crate::models::nn::{self, Conv, Heads, Linear, Resnet};
use crate::weights::Weights;

/// Epsilon of the GroupNorm before a transformer (diffusers `Transformer2DModel`).
const TRANSFORMER_NORM_EPS: f32 = 1e-6;
/// Epsilon of a transformer block's LayerNorms (diffusers `BasicTransformerBlock`).
const BLOCK_NORM_EPS: f32 = 1e-5;

/// sample [B, H, W, C] -> prediction [B, H, W, C], where H and W need not be even. `text` holds what the cross-attentions
/// read of the prompt.
pub fn unet(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    sample: Value,
    given: Conditioning,
    text: &TextKeys,
) -> Value {
    let time = time_embedding(g, w, config, given); // [B, E], activated
    g.tap("unet.time", time);
    let times = time_projections(g, w, config, time);
    let mut unet = Unet { g, w, config, times, text };
    let x = nn::conv3x3(unet.g, &w.at("conv_in"), sample, config.block_out_channels[0] as u32);
    unet.g.tap("unet.conv_in", x);
    let (x, mut skips) = unet.down(x);
    let x = unet.middle(x);
    let x = unet.up(x, &mut skips);
    let Unet { g, .. } = unet;
    let x = nn::group_norm(g, &w.at("conv_norm_out"), x, config.norm_num_groups as u32, config.norm_eps as f32, true);
    let x = nn::conv3x3(g, &w.at("conv_out"), x, config.out_channels as u32);
    g.tap("unet", x);
    x
}

/// The paths and output channels of all resnets.
fn resnets(config: &UnetConfig) -> Vec<(String, u32)> {
    let levels = config.block_out_channels.len();
    let channels = |level: usize| config.block_out_channels[level] as u32;
    let mut all = Vec::new();
    for level in 0..levels {
        let layers = 0..config.layers_per_block[level];
        all.extend(layers.map(|layer| (format!("down_blocks.{level}.resnets.{layer}"), channels(level))));
    }
    if config.mid_block {
        all.extend([0, 1].map(|layer| (format!("mid_block.resnets.{layer}"), channels(levels - 1))));
    }
    for block in 0..levels {
        let level = levels - 1 - block;
        let layers = 0..config.layers_per_block[level] + 1;
        all.extend(layers.map(|layer| (format!("up_blocks.{block}.resnets.{layer}"), channels(level))));
    }
    all
}

/// Where a resnet's channels of the projected timestep lie, by the resnet's path.
type Times = HashMap<String, (Value, u32)>;

/// The layers `time_emb_proj` of all resnets read the same two rows, so they are one product, or as few as the largest
/// binding allows for their weights.
fn time_projections(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, time: Value) -> Times {
    let row_bytes = u64::from(g.shape(time).vectors()) * vector_bytes(g.precision());
    let most = (g.limits().binding / row_bytes) as u32;
    let mut groups: Vec<Vec<(String, u32)>> = Vec::new();
    let mut rows = 0;
    for (path, channels) in resnets(config) {
        // A packed weight is whole panels, and the keys of one weight are counted in a byte.
        rows += channels.next_multiple_of(32);
        match groups.last_mut() {
            Some(group) if rows <= most && group.len() < 256 => group.push((path, channels)),
            _ => {
                rows = channels.next_multiple_of(32);
                groups.push(vec![(path, channels)]);
            }
        }
    }
    let mut times = Times::new();
    for group in groups {
        let layer = |(path, channels): &(String, u32)| (w.at(path).at("time_emb_proj"), *channels);
        let layers: Vec<_> = group.iter().map(layer).collect();
        let (value, begins) = nn::linears(g, "time_emb_proj", &layers, time);
        times.extend(group.into_iter().zip(begins).map(|((path, _), begin)| (path, (value, begin))));
    }
    times
}

/// What every block needs.
struct Unet<'a, 'g> {
    g: &'g mut Graph,
    w: &'a Weights<'a>,
    config: &'a UnetConfig,
    times: Times,
    text: &'a TextKeys,
}

impl Unet<'_, '_> {
    fn down(&mut self, mut x: Value) -> (Value, Vec<Value>) {
        let config = self.config;
        let mut skips = vec![x];
        let levels = config.block_out_channels.len();
        for level in 0..levels {
            let w = self.w.at("down_blocks").at(level);
            let channels = config.block_out_channels[level] as u32;
            for layer in 0..config.layers_per_block[level] {
                x = self.resnet(&w.at("resnets").at(layer), x, None, channels);
                if config.down_attention[level] {
                    let depth = config.down_transformer_layers[level][layer];
                    x = self.transformer(&w.at("attentions").at(layer), x, config.head_count[level] as u32, depth);
                }
                skips.push(x);
            }
            if level + 1 < levels {
                let half = Conv { stride: 2, ..Conv::new(channels, 3) };
                x = nn::conv(self.g, &w.at("downsamplers.0.conv"), x, half);
                skips.push(x);
            }
            self.g.tap(&format!("unet.down_blocks.{level}"), x);
        }
        (x, skips)
    }

    fn middle(&mut self, mut x: Value) -> Value {
        let config = self.config;
        if !config.mid_block {
            return x;
        }
        let w = self.w.at("mid_block");
        let channels = self.g.shape(x).channels;
        let heads = config.head_count[config.head_count.len() - 1] as u32;
        x = self.resnet(&w.at("resnets.0"), x, None, channels);
        x = self.transformer(&w.at("attentions.0"), x, heads, config.mid_transformer_layers);
        x = self.resnet(&w.at("resnets.1"), x, None, channels);
        self.g.tap("unet.mid_block", x);
        x
    }

    fn up(&mut self, mut x: Value, skips: &mut Vec<Value>) -> Value {
        let config = self.config;
        let levels = config.block_out_channels.len();
        for block in 0..levels {
            let w = self.w.at("up_blocks").at(block);
            let level = levels - 1 - block;
            let channels = config.block_out_channels[level] as u32;
            for layer in 0..config.layers_per_block[level] + 1 {
                let skip =
                    skips.pop().unwrap_or_else(|| panic!("{}: the UNet has more resnets up than down", w.path()));
                x = self.resnet(&w.at("resnets").at(layer), x, Some(skip), channels);
                if config.up_attention[block] {
                    let depth = config.up_transformer_layers[block][layer];
                    x = self.transformer(&w.at("attentions").at(layer), x, config.head_count[level] as u32, depth);
                }
            }
            if let (Some(skip), true) = (skips.last(), block + 1 < levels) {
                let to = self.g.shape(*skip);
                let double = Conv { upsample: Some((to.height, to.width)), ..Conv::new(channels, 3) };
                x = nn::conv(self.g, &w.at("upsamplers.0.conv"), x, double);
            }
            self.g.tap(&format!("unet.up_blocks.{block}"), x);
        }
        x
    }

    /// x [B, H, W, I], beside it the skip connection [B, H, W, J] -> [B, H, W, C] (diffusers `ResnetBlock2D`).
    fn resnet(&mut self, w: &Weights<'_>, x: Value, skip: Option<Value>, channels: u32) -> Value {
        let (groups, eps) = (self.config.norm_num_groups as u32, self.config.norm_eps as f32);
        let g = &mut *self.g;
        let time = self.times.get(w.path()).copied();
        assert!(time.is_some(), "{}: a resnet that was not listed", w.path());
        let y = nn::resnet(g, w, x, Resnet { out: channels, second: skip, time, groups, eps });
        g.tap(&format!("unet.{}", w.path()), y);
        y
    }

    /// x [B, H, W, C] -> [B, H, W, C] (diffusers `Transformer2DModel`).
    fn transformer(&mut self, w: &Weights<'_>, x: Value, head_count: u32, depth: usize) -> Value {
        let channels = self.g.shape(x).channels;
        let heads = Heads { count: head_count, width: channels / head_count };
        let h =
            nn::group_norm(self.g, &w.at("norm"), x, self.config.norm_num_groups as u32, TRANSFORMER_NORM_EPS, false);
        let mut h = nn::linear(self.g, &w.at("proj_in"), h, Linear::new(channels));
        for block in 0..depth {
            h = transformer_block(self.g, &w.at("transformer_blocks").at(block), h, self.text, heads);
        }
        let out = Linear { residual: Some(x), ..Linear::new(channels) };
        let y = nn::linear(self.g, &w.at("proj_out"), h, out);
        self.g.tap(&format!("unet.{}", w.path()), y);
        y
    }
}

/// x [B, T, C] -> [B, T, C] (diffusers `BasicTransformerBlock`). The taps are x after each layer's residual
/// addition.
fn transformer_block(g: &mut Graph, w: &Weights<'_>, x: Value, text: &TextKeys, heads: Heads) -> Value {
    let channels = g.shape(x).channels;
    let tap = |g: &mut Graph, name: &str, value| g.tap(&format!("unet.{}.{name}", w.path()), value);
    tap(g, "input", x);
    let h = nn::layer_norm(g, &w.at("norm1"), x, BLOCK_NORM_EPS);
    let first = w.at("attn1");
    let x = nn::attention(g, &first, &nn::DIFFUSERS, h, text.find(first.path()), heads, x);
    tap(g, "attn1", x);
    let h = nn::layer_norm(g, &w.at("norm2"), x, BLOCK_NORM_EPS);
    let cross = w.at("attn2");
    let x = nn::attention(g, &cross, &nn::DIFFUSERS, h, Some(text.at(cross.path())), heads, x);
    tap(g, "attn2", x);
    let h = nn::layer_norm(g, &w.at("norm3"), x, BLOCK_NORM_EPS);
    let h = nn::geglu(g, &w.at("ff.net.0.proj"), h, 4 * channels);
    let x = nn::linear(g, &w.at("ff.net.2"), h, Linear { residual: Some(x), ..Linear::new(channels) });
    tap(g, "ff", x);
    x
}

/// The shape of the UNet's input for a latent of `height` x `width`.
pub fn sample_shape(config: &UnetConfig, batch: u32, height: u32, width: u32) -> Shape {
    Shape::new(batch, height, width, config.in_channels as u32)
}
