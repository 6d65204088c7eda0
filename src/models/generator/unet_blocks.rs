//! The attentions of a UNet's blocks.

use crate::graph::{Graph, Value};
use crate::models::config::UnetConfig;
use crate::models::generator::context::TextKeys;
use crate::models::nn::{self, Heads, Linear, Scores};
use crate::weights::Weights;

/// Epsilon of the GroupNorm before a transformer (diffusers `Transformer2DModel`).
const TRANSFORMER_NORM_EPS: f32 = 1e-6;
/// Epsilon of a transformer block's LayerNorms (diffusers `BasicTransformerBlock`).
const BLOCK_NORM_EPS: f32 = 1e-5;
/// Epsilon of the GroupNorm of an attention to text and picture (diffusers `Attention`).
const ADDED_NORM_EPS: f32 = 1e-5;

/// x [B, H, W, C] -> [B, H, W, C], `depth` transformer blocks (diffusers `Transformer2DModel`).
pub(super) fn transformer(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    x: Value,
    text: &TextKeys,
    heads: Heads,
    depth: usize,
) -> Value {
    let channels = g.shape(x).channels;
    let h = nn::group_norm(g, &w.at("norm"), x, config.norm_num_groups as u32, TRANSFORMER_NORM_EPS, false);
    let mut h = nn::linear(g, &w.at("proj_in"), h, Linear::new(channels));
    for block in 0..depth {
        h = transformer_block(g, &w.at("transformer_blocks").at(block), h, text, heads);
    }
    nn::linear(g, &w.at("proj_out"), h, Linear { residual: Some(x), ..Linear::new(channels) })
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
    let Some(keys) = text.at(g, cross.path()) else { return x };
    let x = nn::attention(g, &cross, &nn::DIFFUSERS, h, Some(keys), heads, x);
    tap(g, "attn2", x);
    let h = nn::layer_norm(g, &w.at("norm3"), x, BLOCK_NORM_EPS);
    let h = nn::geglu(g, &w.at("ff.net.0.proj"), h, 4 * channels);
    let x = nn::linear(g, &w.at("ff.net.2"), h, Linear { residual: Some(x), ..Linear::new(channels) });
    tap(g, "ff", x);
    x
}

/// x [B, H, W, C] -> [B, H, W, C]: attention to the text and, unless `only_cross`, behind it to the picture itself
/// (diffusers `AttnAddedKVProcessor`). `mask` is added to the scores of the text.
#[expect(clippy::too_many_arguments)]
pub(super) fn added_attention(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    x: Value,
    text: &TextKeys,
    heads: Heads,
    only_cross: bool,
    mask: Option<Value>,
) -> Value {
    let Some(text) = text.at(g, w.path()) else { return x };
    let h = nn::group_norm(g, &w.at("group_norm"), x, config.norm_num_groups as u32, ADDED_NORM_EPS, false);
    let (keys, bias) = if only_cross {
        (text, mask)
    } else {
        let own = nn::keys_values(g, w, &nn::AUTOENCODER, h, heads);
        let tokens = g.shape(own).positions();
        (nn::concat_tokens(g, w.path(), text, own), mask.map(|mask| nn::pad_zeros(g, w.path(), mask, tokens)))
    };
    let inner = heads.count * heads.padded();
    let q = nn::queries(g, w, &nn::AUTOENCODER, h, heads);
    let scores = Scores { bias, ..Scores::default() };
    let h = nn::attend(g, w.path(), (q, 0), (keys, [0, inner]), heads, scores);
    let out = Linear { residual: Some(x), heads: Some(heads), ..Linear::new(g.shape(x).channels) };
    nn::linear(g, &w.at("to_out.0"), h, out)
}

/// x [B, H, W, C] -> [B, H, W, C]: attention to the picture itself, of a sum that is divided by `divisor` (diffusers
/// `Attention` of `AttnDownBlock2D`). `groups` are those of its GroupNorm, if it has one.
pub(super) fn self_attention(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    x: Value,
    groups: Option<usize>,
    heads: Heads,
    divisor: f32,
) -> Value {
    let h = match groups {
        Some(groups) => nn::group_norm(g, &w.at("group_norm"), x, groups as u32, config.norm_eps as f32, false),
        None => x,
    };
    let y = nn::attention(g, w, &nn::AUTOENCODER, h, None, heads, x);
    if divisor == 1.0 { y } else { nn::scale(g, w.path(), y, 1.0 / divisor, 0.0) }
}
