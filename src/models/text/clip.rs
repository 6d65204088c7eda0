//! CLIP's text encoder (transformers `CLIPTextModel`, `CLIPTextModelWithProjection`).

use crate::graph::{Graph, Value};
use crate::kernels::elementwise;
use crate::models::config::{self, ClipConfig};
use crate::models::embedding::embedding;
use crate::models::nn::{self, Heads, Linear, Projections};
use crate::weights::Weights;

/// What a text encoder gives.
#[derive(Debug, Clone, Copy)]
pub struct TextVectors {
    /// Vectors of the tokens [B, T, C], one for each layer that was asked for.
    pub contexts: [Value; 2],
    /// Projected vector of the end token [B, 1, 1, D], where the encoder has a projection.
    pub pooled: Option<Value>,
}

/// Which layer's vectors a pipeline takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Layers left out at the end: 0 takes the last.
    pub skip: usize,
    /// Whether the final LayerNorm follows (Stable Diffusion 1 and 2) or not (XL).
    pub final_norm: bool,
}

/// ids [B, T] -> text vectors. `ends [B]` selects the end token's row, where pooled vectors are wanted.
pub fn clip(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &ClipConfig,
    ids: Value,
    ends: Option<Value>,
    takes: [Take; 2],
) -> TextVectors {
    let w_text = w.at("text_model");
    let eps = config.layer_norm_eps as f32;
    let mut x = embeddings(g, &w_text.at("embeddings"), config, ids);
    g.tap(w_text.at("embeddings").path(), x);
    let mut states = vec![x];
    let shape = EncoderLayer {
        heads: Heads { count: config.head_count as u32, width: (config.hidden_size / config.head_count) as u32 },
        inner: config.intermediate_size as u32,
        activation: config.activation,
        eps,
        causal: true,
    };
    for layer in 0..config.num_layers {
        let w = w_text.at("encoder.layers").at(layer);
        x = encoder_layer(g, &w, shape, x);
        g.tap(w.path(), x);
        states.push(x);
    }
    let normed = nn::layer_norm(g, &w_text.at("final_layer_norm"), x, eps);
    let mut taken = |take: Take| match (take.final_norm, take.skip) {
        (false, skip) => states[config.num_layers - skip],
        (true, 0) => normed,
        (true, skip) => nn::layer_norm(g, &w_text.at("final_layer_norm"), states[config.num_layers - skip], eps),
    };
    let first = taken(takes[0]);
    let contexts = [first, if takes[0] == takes[1] { first } else { taken(takes[1]) }];
    let pooled = match (config.projection_dim, ends) {
        (Some(width), Some(ends)) => {
            let row = nn::select_row(g, "pooled", normed, ends);
            let project = Linear { bias: false, ..Linear::new(width as u32) };
            Some(nn::linear(g, &w.at("text_projection"), row, project))
        }
        (Some(width), None) => {
            w.at("text_projection.weight").claim(&[&[width as u32, config.hidden_size as u32]]);
            None
        }
        _ => None,
    };
    TextVectors { contexts, pooled }
}

/// ids [B, T] -> token plus position vectors [B, T, C].
fn embeddings(g: &mut Graph, w: &Weights<'_>, config: &ClipConfig, ids: Value) -> Value {
    let channels = config.hidden_size as u32;
    let table = (&w.at("token_embedding.weight"), config.vocab_size as u32);
    let places = (&w.at("position_embedding.weight"), config.max_positions as u32);
    embedding(g, w.path(), table, places, channels, ids)
}

/// A layer of either of CLIP's encoders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models) struct EncoderLayer {
    /// Attention heads, all of which are as wide as the vectors.
    pub heads: Heads,
    /// Width inside the MLP.
    pub inner: u32,
    pub activation: config::Activation,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Whether a token sees only those before it.
    pub causal: bool,
}

/// x [B, T, C] -> [B, T, C] (transformers `CLIPEncoderLayer`).
pub(in crate::models) fn encoder_layer(g: &mut Graph, w: &Weights<'_>, layer: EncoderLayer, x: Value) -> Value {
    let EncoderLayer { heads, eps, .. } = layer;
    let names = Projections { causal: layer.causal, ..nn::CLIP };
    let h = nn::layer_norm(g, &w.at("layer_norm1"), x, eps);
    let x = nn::attention(g, &w.at("self_attn"), &names, h, None, heads, x);
    let h = nn::layer_norm(g, &w.at("layer_norm2"), x, eps);
    let activation = match layer.activation {
        config::Activation::QuickGelu => elementwise::Activation::QuickGelu,
        config::Activation::Gelu => elementwise::Activation::Gelu,
    };
    let h = nn::linear(g, &w.at("mlp.fc1"), h, Linear { activation, ..Linear::new(layer.inner) });
    nn::linear(g, &w.at("mlp.fc2"), h, Linear { residual: Some(x), ..Linear::new(heads.count * heads.width) })
}
