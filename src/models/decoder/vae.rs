//! The decoder of the KL autoencoder (diffusers `AutoencoderKL.decode`).

use super::bands;
use crate::graph::{Graph, Value};
use crate::models::config::VaeConfig;
use crate::models::nn::{self, Conv, Heads, Linear};
use crate::weights::Weights;

/// Epsilon of every GroupNorm of the autoencoder.
pub(super) const NORM_EPS: f32 = 1e-6;

/// latent [1, H, W, Z], as the denoiser leaves it -> picture [1, s H, s W, 3] around -1..1, s = 2^(levels - 1).
pub fn decode(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, latent: Value) -> Value {
    let groups = config.norm_num_groups as u32;
    let levels = config.block_out_channels.len();
    let x = blocks(g, w, config, latent, levels);
    let w = &w.at("decoder");
    let x = nn::group_norm(g, &w.at("conv_norm_out"), x, groups, NORM_EPS, true);
    let x = nn::conv3x3(g, &w.at("conv_out"), x, config.out_channels as u32);
    g.tap("vae.decoder", x);
    x
}

/// The same numbers with less memory: the last two blocks, where it goes to, run in bands of `rows` rows of the picture,
/// an even number. `None` for a decoder that enlarges nothing.
pub fn decode_in_bands(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, latent: Value, rows: u32) -> Option<Value> {
    assert!(rows > 0 && rows.is_multiple_of(2), "bands of {rows} rows");
    let levels = config.block_out_channels.len();
    if levels < 2 {
        return None;
    }
    let first = levels.saturating_sub(2).max(1);
    let x = blocks(g, w, config, latent, first);
    let x = bands::tail(g, &w.at("decoder"), config, x, first, rows);
    g.tap("vae.decoder", x);
    Some(x)
}

/// latent -> what the first `count` blocks leave; unless it is the last, without the upsampling that follows.
fn blocks(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, latent: Value, count: usize) -> Value {
    let groups = config.norm_num_groups as u32;
    let shift = config.shift_factor as f32;
    let mut x = nn::scale(g, "latent", latent, 1.0 / config.scaling_factor as f32, shift);
    if config.use_post_quant_conv {
        x = nn::linear(g, &w.at("post_quant_conv"), x, Linear::new(config.latent_channels as u32));
        g.tap("vae.post_quant_conv", x);
    }
    let w = &w.at("decoder");
    let levels = config.block_out_channels.len();
    let innermost = config.block_out_channels[levels - 1] as u32;
    x = nn::conv3x3(g, &w.at("conv_in"), x, innermost);
    g.tap("vae.decoder.conv_in", x);
    x = nn::resnet(g, &w.at("mid_block.resnets.0"), x, innermost, None, groups, NORM_EPS);
    if config.mid_block_add_attention {
        x = attention(g, &w.at("mid_block.attentions.0"), x, groups);
    }
    x = nn::resnet(g, &w.at("mid_block.resnets.1"), x, innermost, None, groups, NORM_EPS);
    g.tap("vae.decoder.mid_block", x);
    for block in 0..count {
        let w = w.at("up_blocks").at(block);
        let channels = config.block_out_channels[levels - 1 - block] as u32;
        for layer in 0..config.layers_per_block + 1 {
            x = nn::resnet(g, &w.at("resnets").at(layer), x, channels, None, groups, NORM_EPS);
        }
        if block + 1 < count {
            let from = g.shape(x);
            let double = Conv { upsample: Some((2 * from.height, 2 * from.width)), ..Conv::new(channels, 3) };
            x = nn::conv(g, &w.at("upsamplers.0.conv"), x, double);
        }
        if block + 1 < count || count == levels {
            g.tap(&format!("vae.decoder.up_blocks.{block}"), x);
        }
    }
    x
}

/// x [1, H, W, C] -> [1, H, W, C]: one head over all positions.
fn attention(g: &mut Graph, w: &Weights<'_>, x: Value, groups: u32) -> Value {
    let heads = Heads { count: 1, width: g.shape(x).channels };
    let h = nn::group_norm(g, &w.at("group_norm"), x, groups, NORM_EPS, false);
    nn::attention(g, w, &nn::AUTOENCODER, h, None, heads, x)
}
