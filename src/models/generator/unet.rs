//! The latent UNet of Stable Diffusion 1.x, 2.x and XL (diffusers `UNet2DConditionModel`).

use crate::graph::{Graph, Shape, Value};
use crate::kernels::elementwise::Activation;
use crate::kernels::sinusoid::Sinusoid;
use crate::models::config::UnetConfig;
use crate::models::generator::context::TextKeys;
use crate::models::nn::{self, Conv, Heads, Linear, Resnet};
use crate::weights::Weights;

/// Epsilon of the GroupNorm before a transformer (diffusers `Transformer2DModel`).
const TRANSFORMER_NORM_EPS: f32 = 1e-6;
/// Epsilon of a transformer block's LayerNorms (diffusers `BasicTransformerBlock`).
const BLOCK_NORM_EPS: f32 = 1e-5;

/// What the UNet is conditioned on.
#[derive(Debug, Clone, Copy)]
pub struct Conditioning {
    /// Timestep [B, 1, 1, 1] in f32.
    pub timestep: Value,
    /// SDXL: pooled text [B, 1, 1, D].
    pub pooled: Option<Value>,
    /// SDXL: original height and width, crop top and left, target height and width [B, 1, 1, 6] in f32.
    pub sizes: Option<Value>,
    /// LCM: guidance scale minus 1 [B, 1, 1, 1] in f32.
    pub guidance: Option<Value>,
}

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
    let batch = g.shape(sample).batch;
    let time = time_embedding(g, w, config, given, batch); // [B, E], activated
    g.tap("unet.time", time);
    let mut unet = Unet { g, w, config, time, text };
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

/// Everything that a resnet takes from the timestep and the added conditioning: SiLU(embedding) [B, E].
fn time_embedding(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, given: Conditioning, batch: u32) -> Value {
    let embed = config.time_embed_dim as u32;
    let sinusoid = Sinusoid {
        batch,
        inputs: 1,
        dim: config.block_out_channels[0] as u32,
        flip: config.flip_sin_to_cos,
        shift: config.freq_shift as f32,
        scale: 1.0,
    };
    let mut x = nn::sinusoid(g, "time_proj", given.timestep, sinusoid);
    let w_time = w.at("time_embedding");
    if let (Some(width), Some(guidance)) = (config.time_cond_proj_dim, given.guidance) {
        let dim = width as u32;
        let wave = Sinusoid { batch, inputs: 1, dim, flip: false, shift: 1.0, scale: 1000.0 };
        let condition = nn::sinusoid(g, "guidance_proj", guidance, wave);
        let channels = g.shape(x).channels;
        let linear = Linear { bias: false, residual: Some(x), ..Linear::new(channels) };
        x = nn::linear(g, &w_time.at("cond_proj"), condition, linear);
    }
    let hidden = Linear { activation: Activation::Silu, ..Linear::new(embed) };
    let x = nn::linear(g, &w_time.at("linear_1"), x, hidden);
    match (&config.text_time, given.pooled, given.sizes) {
        (Some(added), Some(pooled), Some(sizes)) => {
            let x = nn::linear(g, &w_time.at("linear_2"), x, Linear::new(embed));
            let dim = added.time_embed_dim as u32;
            let wave = Sinusoid {
                batch,
                inputs: 6,
                dim,
                flip: config.flip_sin_to_cos,
                shift: config.freq_shift as f32,
                scale: 1.0,
            };
            let waves = nn::sinusoid(g, "add_time_proj", sizes, wave);
            let both = nn::concat(g, "add_embedding", pooled, waves);
            let both = nn::linear(g, &w.at("add_embedding.linear_1"), both, hidden);
            let both = nn::linear(g, &w.at("add_embedding.linear_2"), both, Linear::new(embed));
            nn::add(g, "time_embedding", x, both, Activation::Silu)
        }
        _ => nn::linear(g, &w_time.at("linear_2"), x, hidden),
    }
}

/// What every block needs.
struct Unet<'a, 'g> {
    g: &'g mut Graph,
    w: &'a Weights<'a>,
    config: &'a UnetConfig,
    time: Value,
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
        let time = nn::linear(g, &w.at("time_emb_proj"), self.time, Linear { single: true, ..Linear::new(channels) });
        let y = nn::resnet(g, w, x, Resnet { out: channels, second: skip, time: Some(time), groups, eps });
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
    let x = nn::attention(g, &w.at("attn1"), &nn::DIFFUSERS, h, None, heads, x);
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
