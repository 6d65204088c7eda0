//! The decoder of a MoVQ (arXiv:2209.09002; diffusers `VQModel.decode` with `force_not_quantize`): every norm is scaled and
//! shifted, place by place, by what two convolutions make of the latent.

use crate::graph::{Graph, Value};
use crate::kernels::elementwise::Activation;
use crate::models::config::{MOVQ_GROUPS, MovqConfig};
use crate::models::nn::{self, Conv, Heads, Linear, Norm};
use crate::weights::Weights;

/// Epsilon of every norm (diffusers `SpatialNorm`).
const NORM_EPS: f32 = 1e-6;

/// latent [B, H, W, Z], as the denoiser leaves it -> picture [B, s H, s W, 3] around -1..1, s = 2^(levels - 1).
pub fn decode(g: &mut Graph, w: &Weights<'_>, config: &MovqConfig, latent: Value) -> Value {
    // In the graph's precision, from f32.
    let latent = nn::scale(g, "latent", latent, 1.0, 0.0);
    let x = nn::linear(g, &w.at("post_quant_conv"), latent, Linear::new(config.latent_channels as u32));
    g.tap("movq.post_quant_conv", x);
    let w = &w.at("decoder");
    let channels = |block: usize| config.block_out_channels[config.block_out_channels.len() - 1 - block] as u32;
    let mut x = nn::conv3x3(g, &w.at("conv_in"), x, channels(0));
    x = resnet(g, &w.at("mid_block.resnets.0"), x, latent, channels(0));
    if config.mid_block_add_attention {
        x = attention(g, &w.at("mid_block.attentions.0"), x, latent);
    }
    x = resnet(g, &w.at("mid_block.resnets.1"), x, latent, channels(0));
    g.tap("movq.decoder.mid_block", x);
    for (block, attends) in config.attention.iter().enumerate() {
        let w = w.at("up_blocks").at(block);
        for layer in 0..config.layers_per_block + 1 {
            x = resnet(g, &w.at("resnets").at(layer), x, latent, channels(block));
            if *attends {
                x = attention(g, &w.at("attentions").at(layer), x, latent);
            }
        }
        if block + 1 < config.attention.len() {
            let from = g.shape(x);
            let double = Conv { upsample: Some((2 * from.height, 2 * from.width)), ..Conv::new(channels(block), 3) };
            x = nn::conv(g, &w.at("upsamplers.0.conv"), x, double);
        }
        g.tap(&format!("movq.decoder.up_blocks.{block}"), x);
    }
    let x = spatial_norm(g, &w.at("conv_norm_out"), x, latent, Activation::Silu);
    let x = nn::conv3x3(g, &w.at("conv_out"), x, 3);
    g.tap("movq.decoder", x);
    x
}

/// x [B, k H, k W, C], latent [B, H, W, Z] -> GroupNorm(x) * conv_y(latent) + conv_b(latent), the latent enlarged to x by
/// `nearest`. Since both convolutions are 1x1, their results are enlarged instead, by the norm as it reads them.
fn spatial_norm(g: &mut Graph, w: &Weights<'_>, x: Value, latent: Value, activation: Activation) -> Value {
    let channels = g.shape(x).channels;
    let parts = [(w.at("conv_y"), channels), (w.at("conv_b"), channels)];
    let (rows, begins) = nn::linears(g, w.path(), &parts, 1, latent);
    let norm = Norm::new(MOVQ_GROUPS as u32, NORM_EPS);
    let modulation = Some((rows, [begins[0], begins[1]]));
    nn::group_norm_with(g, &w.at("norm_layer"), x, Norm { modulation, spatial: true, activation, ..norm })
}

/// x [B, H, W, I] -> [B, H, W, out] (diffusers `ResnetBlockCondNorm2D`).
fn resnet(g: &mut Graph, w: &Weights<'_>, x: Value, latent: Value, out: u32) -> Value {
    let inputs = g.shape(x).channels;
    let h = spatial_norm(g, &w.at("norm1"), x, latent, Activation::Silu);
    let h = nn::conv3x3(g, &w.at("conv1"), h, out);
    let h = spatial_norm(g, &w.at("norm2"), h, latent, Activation::Silu);
    let skip = if inputs == out { x } else { nn::linear(g, &w.at("conv_shortcut"), x, Linear::new(out)) };
    nn::conv(g, &w.at("conv2"), h, Conv { residual: Some(skip), ..Conv::new(out, 3) })
}

/// x [B, H, W, C] -> [B, H, W, C]: one head over all positions.
fn attention(g: &mut Graph, w: &Weights<'_>, x: Value, latent: Value) -> Value {
    let heads = Heads { count: 1, width: g.shape(x).channels };
    let h = spatial_norm(g, &w.at("spatial_norm"), x, latent, Activation::None);
    nn::attention(g, w, &nn::AUTOENCODER, h, None, heads, x)
}
