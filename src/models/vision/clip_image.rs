//! CLIP's picture encoder (transformers `CLIPVisionModelWithProjection`; arXiv:2103.00020).

use crate::error::Error;
use crate::graph::{Graph, Operand, Shape, Value};
use crate::kernels::conv2d::Conv2d;
use crate::kernels::embed;
use crate::kernels::matrix::{Matrix, Operands};
use crate::models::config::ClipVisionConfig;
use crate::models::nn::{self, Heads, Linear};
use crate::models::text::clip::{EncoderLayer, encoder_layer};
use crate::weights::Weights;

/// pixels [B, H, W, 3], normalised, H and W the config's `image_size` -> the pictures' projected vectors [B, 1, 1, E] in f32,
/// not normalised.
///
/// `w` is the place of `vision_model` and `visual_projection`. `pixels` may be in f32 whatever the graph's precision.
pub fn clip_image(g: &mut Graph, w: &Weights<'_>, config: &ClipVisionConfig, pixels: Value) -> Value {
    let w_vision = w.at("vision_model");
    let eps = config.layer_norm_eps as f32;
    let x = embeddings(g, &w_vision.at("embeddings"), config, pixels);
    g.tap(w_vision.at("embeddings").path(), x);
    // The name is published so.
    let mut x = nn::layer_norm(g, &w_vision.at("pre_layrnorm"), x, eps);
    let layer = EncoderLayer {
        heads: Heads { count: config.head_count as u32, width: (config.hidden_size / config.head_count) as u32 },
        inner: config.intermediate_size as u32,
        activation: config.activation,
        eps,
        causal: false,
    };
    for index in 0..config.num_layers {
        let w = w_vision.at("encoder.layers").at(index);
        x = encoder_layer(g, &w, layer, x);
        g.tap(w.path(), x);
    }
    let shape = g.shape(x);
    let firsts = rows(g, (0..shape.batch).map(|picture| picture * shape.height));
    let first = nn::select_row_at(g, "class", x, firsts, shape.batch);
    let pooled = nn::layer_norm(g, &w_vision.at("post_layernorm"), first, eps);
    g.tap(w_vision.at("post_layernorm").path(), pooled);
    let options = Linear { bias: false, single: true, ..Linear::new(config.projection_dim as u32) };
    nn::linear(g, &w.at("visual_projection"), pooled, options)
}

/// pixels [B, H, W, 3] -> class vector and patches with their positions [B, T, C].
fn embeddings(g: &mut Graph, w: &Weights<'_>, config: &ClipVisionConfig, pixels: Value) -> Value {
    let patches = patches(g, &w.at("patch_embedding"), config, pixels);
    let (from, dtype) = (g.shape(patches), g.precision());
    let (channels, tokens) = (from.channels, config.tokens() as u32);
    let places = w.at("position_embedding.weight");
    places.claim(&[&[tokens, channels]]);
    let places = places.table(g, 0, tokens, channels, dtype);
    let class = w.at("class_embedding");
    class.claim(&[&[channels]]);
    let class = class.table(g, 0, 1, channels, dtype);
    // The patches are the first range of a table, the class vector the only row of the second.
    let count = from.positions();
    let ids = (0..from.batch).flat_map(|picture| {
        let class = from.batch * count;
        std::iter::once(class).chain(picture * count..(picture + 1) * count)
    });
    let ids = rows(g, ids);
    if from.bytes(dtype) > g.limits().binding {
        let limit = g.limits().binding;
        g.fail(
            Error::new("the pictures' patches are larger than a binding of this adapter")
                .at(w.path())
                .expected(format!("at most {limit} bytes"))
                .found(format!("{} bytes", from.bytes(dtype)))
                .hint("fewer pictures at a time"),
        );
    }
    let call = embed::call(from.batch, tokens, channels, from.rows(), dtype, g.limits());
    let table = [patches.into(), class.into(), class.into(), class.into()];
    let inputs: Vec<Operand> = [ids, places.into()].into_iter().chain(table).collect();
    nn::push(g, w.path(), call, inputs, Shape::tokens(from.batch, tokens, channels), dtype)
}

/// pixels [B, H, W, 3] -> [B, floor(H / P), floor(W / P), C], a convolution without bias whose windows lie side by side.
fn patches(g: &mut Graph, w: &Weights<'_>, config: &ClipVisionConfig, pixels: Value) -> Value {
    let pixels = if g.dtype(pixels) == g.precision() { pixels } else { nn::scale(g, "pixels", pixels, 1.0, 0.0) };
    let (from, side, dtype) = (g.shape(pixels), config.patch_size as u32, g.precision());
    let size = config.image_size as u32;
    assert!(from == Shape::new(from.batch, size, size, 3), "{}: {from} instead of pictures of {size}", w.path());
    let channels = config.hidden_size as u32;
    let key = w.at("weight").claim(&[&[channels, 3, side, side]]);
    let outputs = (0..channels).map(|row| Some((0, row))).collect();
    let weight = w.matrix(g, vec![key], outputs, nn::padded(3), side * side);
    let convolution = Conv2d {
        batch: from.batch,
        input: [from.height, from.width],
        output: [from.height / side, from.width / side],
        inputs: 3,
        outputs: channels,
        kernel: [side; 2],
        stride: side,
        padding: [0, 0],
        upsample: false,
        row_bias: false,
        residual: false,
        dtype,
    };
    let [height, width] = convolution.output;
    let config = Matrix { bias: false, ..convolution.matrix() };
    let operands = Operands {
        x: Operand::from(pixels),
        second: None,
        weight: weight.into(),
        bias: None,
        row_bias: None,
        residual: None,
    };
    nn::push_product(g, w.path(), &config, operands, Shape::new(from.batch, height, width, channels))
}

/// Numbers of rows as the embedding kernel reads them, known when the graph is built.
fn rows(g: &mut Graph, numbers: impl Iterator<Item = u32>) -> Operand {
    let words = numbers.flat_map(|number| [f32::from_bits(number), 0.0, 0.0, 0.0]).collect();
    g.constant(words).into()
}
