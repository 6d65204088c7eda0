//! The generator of DALL-E mini: a transformer that draws the tokens of a picture one after the other (dalle-mini's
//! `FlaxBartDecoder`). One graph serves every step: what it has seen lies in caches of keys and values on the GPU, and so
//! does the count of steps.

use crate::graph::{Graph, Shape, Value};
use crate::kernels::put_row::{self, PutRow};
use crate::kernels::sample_token::{self, SampleToken};
use crate::models::bart;
use crate::models::config::DalleConfig;
use crate::models::embedding::embedding;
use crate::models::nn::{self, Linear};
use crate::tensor::DType;
use crate::weights::Weights;

/// The values of a step that live on between steps, or are made before the first.
#[derive(Debug, Clone)]
pub struct Given {
    /// For each of B: the token that was drawn last, and the place of the one that is to be drawn.
    pub state: Value,
    /// For each of B: the index of the text's last token, in the second place.
    pub last: Value,
    /// Of each layer, keys and values of the text [B, T, 2 * inner], as [`text_keys`] makes them.
    pub text: Vec<Value>,
    /// Of each layer, keys and values of the tokens so far [B, image length, 2 * inner].
    pub caches: Vec<Value>,
}

/// The text's vectors [B, T, C] -> of each layer what its cross-attention reads of them, by the layer's path.
pub fn text_keys(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, text: Value) -> Vec<(String, Value)> {
    let heads = bart::heads(config, config.decoder.heads);
    let names = bart::projections(config);
    let mut made = Vec::new();
    for layer in 0..config.decoder.count {
        let w = w.at("layers").at(layer).at("encoder_attn");
        made.push((w.path().to_owned(), nn::keys_values(g, &w, &names, text, heads)));
    }
    made
}

/// The shape of a layer's cache.
pub fn cache_shape(config: &DalleConfig, batch: u32) -> Shape {
    let heads = bart::heads(config, config.decoder.heads);
    Shape::tokens(batch, config.image_length as u32, 2 * heads.count * heads.padded())
}

/// The logits [B, 1, count] in f32 of the first `count` tokens at the place that `given.state` tells; the caches grow by one
/// row.
pub fn logits(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, given: &Given, count: u32) -> Value {
    let (width, rows) = (config.width as u32, config.image_rows as u32);
    let table = (&w.at("embed_tokens.weight"), rows);
    let places = (&w.at("embed_positions.weight"), config.image_length as u32);
    let x = embedding(g, "embed_tokens", table, places, width, given.state);
    let mut x = bart::norm(g, &w.at("layernorm_embedding"), x);
    g.tap("decoder.embedding", x);
    for layer in 0..config.decoder.count {
        x = decoder_layer(g, &w.at("layers").at(layer), config, x, given, layer);
        g.tap(&format!("decoder.layers.{layer}"), x);
    }
    if config.decoder.final_norm {
        x = bart::norm_before(g, &w.at("final_ln"), x);
    }
    let options = Linear { bias: false, single: true, ..Linear::new(count) };
    nn::linear_part(g, &w.at("lm_head"), x, rows, options)
}

/// x [B, 1, C] -> [B, 1, C].
fn decoder_layer(g: &mut Graph, w: &Weights<'_>, config: &DalleConfig, x: Value, given: &Given, layer: usize) -> Value {
    let heads = bart::heads(config, config.decoder.heads);
    let attn = w.at("self_attn");
    let h = bart::norm_before(g, &w.at("pre_self_attn_layer_norm"), x);
    let qkv = bart::query_key_value(g, &attn, config, h, heads);
    let from = g.shape(qkv);
    let inner = from.channels / 3;
    let (cache, dtype) = (given.caches[layer], g.precision());
    let put = PutRow {
        batch: from.batch,
        channels: from.channels,
        first: inner,
        count: 2 * inner,
        rows: config.image_length as u32,
        row: None,
        dtype,
    };
    keep(g, attn.path(), put, qkv, given.state, cache);
    let h = bart::attend(g, &attn, config, qkv, (cache, [0, inner]), given.state, heads);
    let x = bart::normed_sum(g, &w.at("self_attn_layer_norm"), x, h);
    let attn = w.at("encoder_attn");
    let h = bart::norm_before(g, &w.at("pre_encoder_attn_layer_norm"), x);
    let q = bart::query(g, &attn, config, h, heads);
    let h = bart::attend(g, &attn, config, q, (given.text[layer], [0, inner]), given.last, heads);
    let x = bart::normed_sum(g, &w.at("encoder_attn_layer_norm"), x, h);
    bart::feed_forward(g, w, config, x, config.decoder.feed_forward)
}

/// Draws a token from `logits` with the exponentials `noise` [1, 1, count] in f32, keeps it in `tokens` [1, image length] and
/// makes it the next step's state.
pub fn draw(g: &mut Graph, draw: &SampleToken, logits: Value, noise: Value, state: Value, tokens: Value) {
    let length = g.shape(tokens).positions();
    let call = sample_token::call(draw, g.limits());
    let Some(call) = call else {
        g.fail(crate::error::Error::new("the logits do not fit the adapter").at("sample").found(draw.width));
        return;
    };
    let word = |batch: u32| (Shape::tokens(batch, 1, 1), DType::F32);
    let inputs = vec![logits.into(), noise.into(), state.into()];
    let made = g.push_many("sample", call, inputs, &[word(draw.batch), word(1)]);
    let row = |batch: u32, rows: u32, row: Option<u32>| PutRow {
        batch,
        channels: 4,
        first: 0,
        count: 4,
        rows,
        row,
        dtype: DType::F32,
    };
    keep(g, "tokens", row(1, length, None), made[1], state, tokens);
    keep(g, "state", row(draw.batch, 1, Some(0)), made[0], made[0], state);
}

/// Writes a row of a value that lives on between steps.
fn keep(g: &mut Graph, label: &str, put: PutRow, from: Value, at: Value, to: Value) {
    match put_row::call(&put, g.limits()) {
        Some(call) => g.push_into(label, call, vec![from.into(), at.into()], to),
        None => g.fail(
            crate::error::Error::new("a cache is larger than one binding of this adapter")
                .at(label)
                .expected(format!("at most {} bytes", g.limits().binding)),
        ),
    }
}
