//! What Karlo's decoder reads of text and picture: vectors for its attention and one that is added to its time embedding
//! (Ramesh et al. 2022, arXiv:2204.06125, section 2.1; diffusers `UnCLIPTextProjModel`).

use crate::graph::{Graph, Shape, Value};
use crate::kernels::elementwise::{self, Activation, Elementwise};
use crate::models::config::TextProjConfig;
use crate::models::nn::{self, Linear};
use crate::tensor::DType;
use crate::weights::Weights;

/// Epsilon of the LayerNorm (torch's default, which diffusers keeps).
const EPS: f32 = 1e-5;

/// What the decoder reads.
#[derive(Debug, Clone, Copy)]
pub struct Projected {
    /// Vectors for its attention [B, N + T, X], N of the picture's embedding, then those of the text.
    pub context: Value,
    /// Added to its time embedding [B, 1, 1, E].
    pub class: Value,
}

/// A picture's embedding [1, 1, 1, D], texts' embeddings [B, 1, 1, D] and vectors [B, T, D]. With B = 2 the first batch element
/// is guidance's other side, which has a learned vector in place of the picture's embedding.
pub fn text_proj(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &TextProjConfig,
    image: Value,
    (embedding, vectors): (Value, Value),
) -> Projected {
    let batch = g.shape(embedding).batch;
    let [width, cross, time] =
        [config.clip_dim, config.cross_attention_dim, config.time_embed_dim].map(|count| count as u32);
    let learned = w.at("learned_classifier_free_guidance_embeddings");
    learned.claim(&[&[width]]);
    let image = if batch == 1 {
        image
    } else {
        let (dtype, row) = (g.dtype(image), Shape::new(1, 1, 1, width));
        let vector = nn::vector(g, &learned, width);
        let copy = Elementwise { scale_a: 1.0, scale_b: None, shift: 0.0, activation: Activation::None };
        let call = elementwise::call(copy, 1, width, [DType::F32, DType::F32, dtype], g.limits());
        let other = nn::push(g, learned.path(), call, vec![vector.into(), vector.into()], row, dtype);
        let tables = [other.into(), image.into()];
        nn::gather(g, learned.path(), (&tables, 1), &[0, 1], None, (Shape { batch, ..row }, dtype))
    };
    let text = nn::linear(g, &w.at("embedding_proj"), embedding, Linear::new(time));
    let sum = Linear { residual: Some(text), ..Linear::new(time) };
    let class = nn::linear(g, &w.at("clip_image_embeddings_project_to_time_embeddings"), image, sum);
    let extra = w.at("clip_extra_context_tokens_proj");
    let extra = nn::alternating_tokens(g, &extra, image, config.extra_tokens as u32, cross);
    let text = nn::linear(g, &w.at("encoder_hidden_states_proj"), vectors, Linear::new(cross));
    let text = nn::layer_norm(g, &w.at("text_encoder_hidden_states_norm"), text, EPS);
    let context = nn::concat_tokens(g, "text_proj", extra, text);
    g.tap("text_proj.context", context);
    g.tap("text_proj.class", class);
    Projected { context, class }
}
