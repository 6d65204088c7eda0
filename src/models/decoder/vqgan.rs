//! The decoder of a VQGAN (arXiv:2012.09841): codes of a codebook, then the blocks of taming-transformers' `Decoder`.

use crate::graph::{Graph, Shape, Value};
use crate::models::config::{VQGAN_GROUPS, VqganConfig};
use crate::models::embedding::lookup;
use crate::models::nn::{self, Conv, Heads, Linear, Resnet};
use crate::weights::Weights;

/// Epsilon of every GroupNorm, in taming-transformers and vqgan-jax (min-dalle's port has 1e-5).
const NORM_EPS: f32 = 1e-6;
const GROUPS: u32 = VQGAN_GROUPS as u32;

/// tokens [1, side * side] -> picture [1, s side, s side, 3] around 0..1, s = 2^(levels - 1).
pub fn decode(g: &mut Graph, w: &Weights<'_>, config: &VqganConfig, tokens: Value, side: u32) -> Value {
    let codes = Shape::new(1, side, side, config.code_channels as u32);
    let x = lookup(g, "codebook", (&w.at("embedding.weight"), config.codes as u32), tokens, codes);
    g.tap("vqgan.codes", x);
    let x = nn::linear(g, &w.at("post_quant_conv"), x, Linear::new(config.latent_channels as u32));
    let w = &w.at("decoder");
    let levels = config.channels.len();
    let innermost = config.channels[levels - 1] as u32;
    let resnet = |out: u32| Resnet { out, second: None, time: None, groups: GROUPS, eps: NORM_EPS };
    let mut x = nn::conv3x3(g, &w.at("conv_in"), x, innermost);
    x = nn::resnet(g, &w.at("mid.block_1"), x, resnet(innermost));
    x = attention(g, &w.at("mid.attn_1"), x);
    x = nn::resnet(g, &w.at("mid.block_2"), x, resnet(innermost));
    g.tap("vqgan.mid", x);
    for level in (0..levels).rev() {
        let w = w.at("up").at(level);
        let channels = config.channels[level] as u32;
        for block in 0..config.blocks {
            x = nn::resnet(g, &w.at("block").at(block), x, resnet(channels));
            if config.attention[level] {
                x = attention(g, &w.at("attn").at(block), x);
            }
        }
        if level > 0 {
            let from = g.shape(x);
            let double = Conv { upsample: Some((2 * from.height, 2 * from.width)), ..Conv::new(channels, 3) };
            x = nn::conv(g, &w.at("upsample.conv"), x, double);
        }
        g.tap(&format!("vqgan.up.{level}"), x);
    }
    let x = nn::group_norm(g, &w.at("norm_out"), x, GROUPS, NORM_EPS, true);
    nn::conv3x3(g, &w.at("conv_out"), x, 3)
}

/// x [1, H, W, C] -> [1, H, W, C]: one head over all positions.
fn attention(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    let heads = Heads { count: 1, width: g.shape(x).channels };
    let h = nn::group_norm(g, &w.at("group_norm"), x, GROUPS, NORM_EPS, false);
    nn::attention(g, w, &nn::AUTOENCODER, h, None, heads, x)
}
