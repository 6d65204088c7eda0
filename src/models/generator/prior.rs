//! unCLIP's prior: a causal transformer that predicts a picture's embedding from a noisy one, the timestep and the text
//! (Ramesh et al. 2022, arXiv:2204.06125, section 2.2; diffusers `PriorTransformer`).

use crate::graph::{Graph, Shape, Value};
use crate::kernels::elementwise::Activation;
use crate::kernels::sinusoid::Sinusoid;
use crate::models::attention::projection;
use crate::models::config::PriorConfig;
use crate::models::nn::{self, AUTOENCODER, Heads, Linear, Scores};
use crate::weights::Weights;

/// Epsilon of every LayerNorm (torch's default, which diffusers keeps).
const EPS: f32 = 1e-5;

/// What all steps read of the text.
#[derive(Debug, Clone, Copy)]
pub struct PriorText {
    /// Text vectors as tokens [B, T, C].
    pub vectors: Value,
    /// The text's embedding as a token [B, 1, 1, C].
    pub embedding: Value,
}

/// Text vectors [B, T, D], D being [`PriorConfig::text_width`], and a text's embedding [B, 1, 1, E] -> their tokens. They
/// are the same in all steps.
pub fn text(g: &mut Graph, w: &Weights<'_>, config: &PriorConfig, vectors: Value, embedding: Value) -> PriorText {
    let out = Linear::new(config.width() as u32);
    let normed = match config.norm_text_embedding {
        true => nn::layer_norm(g, &w.at("embedding_proj_norm"), embedding, EPS),
        false => embedding,
    };
    let embedding = nn::linear(g, &w.at("embedding_proj"), normed, out);
    let vectors = match config.project_text {
        true => nn::linear(g, &w.at("encoder_hidden_states_proj"), vectors, out),
        false => vectors,
    };
    PriorText { vectors, embedding }
}

/// A noisy embedding [B, 1, 1, E] and the timestep [B', 1, 1, 1] in f32, one for each B / B' batch elements -> the predicted
/// embedding [B, 1, 1, E']. `mask` [B, 1, 1, S], S being [`PriorConfig::tokens`], is added to the scores of every token's
/// key (f32): diffusers takes -10000 for padding and 0 for the rest.
pub fn prior(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &PriorConfig,
    (sample, timestep): (Value, Value),
    text: PriorText,
    mask: Value,
) -> Value {
    let batch = g.shape(sample).batch;
    let time = time_token(g, w, config, timestep);
    let noisy = nn::linear(g, &w.at("proj_in"), sample, Linear::new(config.width() as u32));
    let mut x = tokens(g, w, config, text, [time, noisy]);
    g.tap("prior.tokens", x);
    if config.norm_in {
        x = nn::layer_norm(g, &w.at("norm_in"), x, EPS);
    }
    for layer in 0..config.layers {
        x = block(g, &w.at("transformer_blocks").at(layer), config, x, mask);
        g.tap(&format!("prior.transformer_blocks.{layer}"), x);
    }
    // Nothing but the last token is read, and a LayerNorm knows nothing of the others.
    let count = config.tokens() as u32;
    let last: Vec<u32> = (1..=batch).map(|element| element * count - 1).collect();
    let shape = Shape::new(batch, 1, 1, g.shape(x).channels);
    let dtype = g.dtype(x);
    let last = nn::gather(g, "prior.last", (&[x.into()], batch * count), &last, None, (shape, dtype));
    let last = nn::layer_norm(g, &w.at("norm_out"), last, EPS);
    let predicted = Linear::new(config.predicted_dim as u32);
    let predicted = nn::linear(g, &w.at("proj_to_clip_embeddings"), last, predicted);
    g.tap("prior", predicted);
    predicted
}

/// A finished embedding [B, 1, 1, E] as CLIP has it: x * deviation + mean (diffusers `PriorTransformer.post_process_latents`).
pub fn post_process(g: &mut Graph, w: &Weights<'_>, x: Value) -> Value {
    let (shape, dtype) = (g.shape(x), g.dtype(x));
    let deviation = w.at("clip_std");
    deviation.claim(&[&[1, shape.channels]]);
    let row = deviation.table(g, 0, 1, shape.channels, dtype);
    let label = deviation.path();
    let scaled = if shape.batch == 1 {
        nn::multiply(g, label, x, row)
    } else {
        let ids = vec![0; shape.batch as usize];
        let rows = nn::gather(g, label, (&[row.into()], 1), &ids, None, (shape, dtype));
        nn::multiply(g, label, x, rows)
    };
    nn::add_vector(g, &w.at("clip_mean"), scaled)
}

/// The timestep's token [B', 1, 1, C].
fn time_token(g: &mut Graph, w: &Weights<'_>, config: &PriorConfig, timestep: Value) -> Value {
    let (batch, width) = (g.shape(timestep).batch, config.width() as u32);
    let wave = Sinusoid { batch, inputs: 1, dim: width, flip: true, shift: 0.0, scale: 1.0 };
    let x = nn::sinusoid(g, "time_proj", timestep, wave);
    let w = w.at("time_embedding");
    let wide = Linear { activation: config.time_act, ..Linear::new(config.time_embed_dim as u32) };
    let x = nn::linear(g, &w.at("linear_1"), x, wide);
    nn::linear(g, &w.at("linear_2"), x, Linear::new(width))
}

/// All tokens with the vectors of their places [B, S, C]: text vectors, text embedding, timestep, noisy embedding, and perhaps
/// the one that the prediction is read off.
fn tokens(g: &mut Graph, w: &Weights<'_>, config: &PriorConfig, text: PriorText, [time, noisy]: [Value; 2]) -> Value {
    let (dtype, channels) = (g.precision(), config.width() as u32);
    let (batch, times) = (g.shape(noisy).batch, g.shape(time).batch);
    let [vectors, all] = [config.text_tokens, config.tokens()].map(|count| count as u32);
    let joined = nn::concat_tokens(g, "prior.text", text.vectors, text.embedding);
    let mut tables = vec![joined.into(), time.into(), noisy.into()];
    if config.own_token {
        let own = w.at("prd_embedding");
        own.claim(&[&[1, channels]]);
        tables.push(own.table(g, 0, 1, channels, dtype).into());
    }
    let split = batch * (vectors + 1);
    let row = |element: u32, token: u32| match token.checked_sub(vectors + 1) {
        None => element * (vectors + 1) + token,
        Some(0) => split + element / (batch / times),
        Some(1) => 2 * split + element,
        Some(_) => 3 * split,
    };
    let ids: Vec<u32> = (0..batch).flat_map(|element| (0..all).map(move |token| row(element, token))).collect();
    let places = w.at("positional_embedding");
    places.claim(&[&[all, channels]]);
    let places = places.table(g, 0, all, channels, dtype);
    let shape = Shape::tokens(batch, all, channels);
    nn::gather(g, "prior.tokens", (&tables, split), &ids, Some(places), (shape, dtype))
}

/// x [B, S, C] -> [B, S, C] (diffusers `BasicTransformerBlock` without cross-attention).
fn block(g: &mut Graph, w: &Weights<'_>, config: &PriorConfig, x: Value, mask: Value) -> Value {
    let channels = config.width() as u32;
    let heads = Heads { count: config.head_count as u32, width: config.head_width as u32 };
    let inner = heads.count * heads.padded();
    let h = nn::layer_norm(g, &w.at("norm1"), x, EPS);
    let attention = w.at("attn1");
    let whole = 3 * u64::from(inner) * u64::from(channels.next_multiple_of(4)) * g.precision().bytes() as u64;
    let (q, kv) = if whole <= g.limits().binding {
        let fused = projection(g, &attention, &AUTOENCODER, &["to_q", "to_k", "to_v"], h, heads);
        ((fused, 0), (fused, [inner, 2 * inner]))
    } else {
        let q = nn::queries(g, &attention, &AUTOENCODER, h, heads);
        ((q, 0), (nn::keys_values(g, &attention, &AUTOENCODER, h, heads), [0, inner]))
    };
    let scores = Scores { causal: true, bias: Some(mask), ..Scores::default() };
    let h = nn::attend(g, attention.path(), q, kv, heads, scores);
    let out = Linear { residual: Some(x), heads: Some(heads), ..Linear::new(channels) };
    let x = nn::linear(g, &attention.at("to_out.0"), h, out);
    let h = nn::layer_norm(g, &w.at("norm3"), x, EPS);
    let wide = Linear { activation: Activation::Gelu, ..Linear::new(4 * channels) };
    let h = nn::linear(g, &w.at("ff.net.0.proj"), h, wide);
    nn::linear(g, &w.at("ff.net.2"), h, Linear { residual: Some(x), ..Linear::new(channels) })
}
