//! The text encoder of DALL-E mini: BART's (arXiv:1910.13461) with NormFormer blocks and gates (dalle-mini's
//! `FlaxBartEncoder`).

use crate::graph::{Graph, Value};
use crate::models::bart;
use crate::models::config::DalleConfig;
use crate::models::embedding::embedding;
use crate::weights::Weights;

/// ids [B, T] -> vectors of the tokens [B, T, C]. `last [B]` holds, in its second place, the index of each text's last token;
/// those behind it are padding, which no token attends to.
pub fn encoder(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, ids: Value, last: Value) -> Value {
    let table = (&w.at("embed_tokens.weight"), config.text_vocabulary as u32);
    let places = (&w.at("embed_positions.weight"), config.text_length as u32);
    let x = embedding(g, "embed_tokens", table, places, config.width as u32, ids);
    let mut x = bart::norm(g, &w.at("layernorm_embedding"), x);
    g.tap("encoder.embedding", x);
    for layer in 0..config.encoder.count {
        x = encoder_layer(g, &w.at("layers").at(layer), config, x, last);
        g.tap(&format!("encoder.layers.{layer}"), x);
    }
    if config.encoder.final_norm {
        x = bart::norm_before(g, &w.at("final_ln"), x);
    }
    x
}

/// x [B, T, C] -> [B, T, C].
fn encoder_layer(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, x: Value, last: Value) -> Value {
    let heads = bart::heads(config, config.encoder.heads);
    let attn = w.at("self_attn");
    let h = bart::norm_before(g, &w.at("pre_self_attn_layer_norm"), x);
    let qkv = bart::query_key_value(g, &attn, config, h, heads);
    let inner = g.shape(qkv).channels / 3;
    let h = bart::attend(g, &attn, config, qkv, (qkv, [inner, 2 * inner]), last, heads);
    let x = bart::normed_sum(g, &w.at("self_attn_layer_norm"), x, h);
    bart::feed_forward(g, w, config, x, config.encoder.feed_forward)
}
