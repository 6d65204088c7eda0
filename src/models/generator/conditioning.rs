//! What a UNet is told beside its sample and the text: timestep, guidance, sizes, class labels; and the time embedding, the
//! one vector that comes of it.

use crate::error::Error;
use crate::graph::{Graph, Operand, Value};
use crate::kernels::elementwise::Activation;
use crate::kernels::embed;
use crate::kernels::sinusoid::Sinusoid;
use crate::models::config::{ClassEmbedding, UnetConfig};
use crate::models::generator::context::TextKeys;
use crate::models::nn::{self, Linear};
use crate::weights::Weights;

/// What the UNet is conditioned on. A config that asks for an input which is not there is a fault of the graph.
#[derive(Debug, Clone, Copy)]
pub struct Conditioning {
    /// Timestep [B, 1, 1, 1] in f32.
    pub timestep: Value,
    /// SDXL: pooled text [B, 1, 1, D].
    pub pooled: Option<Value>,
    /// SDXL: original height and width, crop top and left, target height and width [B, 1, 1, 6] in f32.
    pub sizes: Option<Value>,
    /// LCM: guidance scale minus 1 [B, 1, 1, 1] in f32.
    pub guidance: Option<Value>,
    /// The class label, where [`UnetConfig::class`] has one. `Table`: the number of a row [B, 1, 1, 1], written as token ids
    /// are, a vector of four u32 of which the first is the number; the x4 upscaler's noise level. `Timestep`: a number
    /// [B, 1, 1, 1] in f32. The others: a vector [B, 1, 1, D].
    pub class: Option<Value>,
    /// Which text vectors attention to text and picture sees: [B, 1, 1, T] in f32, 0 for those it sees and a large negative
    /// number (diffusers takes -10000) for the others. Only `SimpleCrossAttention` takes one.
    pub mask: Option<Value>,
}

impl Conditioning {
    /// By the timestep alone.
    pub fn new(timestep: Value) -> Self {
        Self { timestep, pooled: None, sizes: None, guidance: None, class: None, mask: None }
    }
}

/// The time embedding as resnets take it, [B, 1, 1, E].
pub(super) struct TimeEmbedding {
    /// For those that apply their activation to it.
    pub activated: Value,
    /// For those that do not; the same value where there are none.
    pub raw: Value,
}

/// The sum of everything that a resnet takes from the timestep and the added conditioning.
pub(super) fn time_embedding(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    given: Conditioning,
    text: &TextKeys,
) -> TimeEmbedding {
    let parts = [
        Some(Part::Timestep),
        config.class.map(Part::Class),
        config.text_time.is_some().then_some(Part::TextTime),
        config.addition.is_some().then_some(Part::Prompt),
    ];
    let parts: Vec<Part> = parts.into_iter().flatten().collect();
    // One activation is part of the last operation; only where two follow each other is there one more.
    let fused = config.time_act == Activation::None && !config.skip_time_act;
    let last = if fused { config.act } else { config.time_act };
    let mut sum = given.timestep;
    for (index, part) in parts.iter().enumerate() {
        let activation = if index + 1 == parts.len() { last } else { Activation::None };
        let x = match part {
            Part::Timestep => timestep(g, w, config, given, activation),
            Part::Class(class) => class_embedding(g, w, config, *class, given),
            Part::TextTime => text_time(g, w, config, given),
            Part::Prompt => required(g, text.added(), "what the prompt adds", "addition_embed_type").unwrap_or(sum),
        };
        sum = if index == 0 { x } else { nn::add(g, "time_embedding", sum, x, activation) };
    }
    let activated = if fused { sum } else { nn::activate(g, "time_embedding", sum, config.act) };
    TimeEmbedding { activated, raw: sum }
}

/// A summand of the embedding.
enum Part {
    Timestep,
    Class(ClassEmbedding),
    TextTime,
    Prompt,
}

fn sinusoid(config: &UnetConfig, batch: u32, inputs: u32, dim: u32) -> Sinusoid {
    Sinusoid { batch, inputs, dim, flip: config.flip_sin_to_cos, shift: config.freq_shift as f32, scale: 1.0 }
}

/// An optional input, or the fault that it is not given.
fn required(g: &mut Graph, input: Option<Value>, what: &str, field: &str) -> Option<Value> {
    if input.is_none() {
        g.fail(Error::new("the UNet's inputs").at(format!("`{field}`")).expected(what).found("nothing"));
    }
    input
}

/// Two layers with an activation between them (diffusers `TimestepEmbedding`), and perhaps one behind.
fn mlp(g: &mut Graph, w: &Weights<'_>, x: Value, embed: u32, activation: Activation, last: Activation) -> Value {
    let x = nn::linear(g, &w.at("linear_1"), x, Linear { activation, ..Linear::new(embed) });
    nn::linear(g, &w.at("linear_2"), x, Linear { activation: last, ..Linear::new(embed) })
}

/// The timestep, and LCM's guidance scale [B, 1, 1, E].
fn timestep(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, given: Conditioning, last: Activation) -> Value {
    let batch = g.shape(given.timestep).batch;
    let wave = sinusoid(config, batch, 1, config.block_out_channels[0] as u32);
    let mut x = nn::sinusoid(g, "time_proj", given.timestep, wave);
    let w = w.at("time_embedding");
    if let (Some(width), Some(guidance)) = (config.time_cond_proj_dim, given.guidance) {
        let dim = width as u32;
        let wave = Sinusoid { batch, inputs: 1, dim, flip: false, shift: 1.0, scale: 1000.0 };
        let condition = nn::sinusoid(g, "guidance_proj", guidance, wave);
        let channels = g.shape(x).channels;
        let linear = Linear { bias: false, residual: Some(x), ..Linear::new(channels) };
        x = nn::linear(g, &w.at("cond_proj"), condition, linear);
    }
    let embed = config.time_embed_dim as u32;
    if config.time_post_act == Activation::None {
        return mlp(g, &w, x, embed, config.embed_act, last);
    }
    let x = mlp(g, &w, x, embed, config.embed_act, config.time_post_act);
    if last == Activation::None { x } else { nn::activate(g, "time_embedding", x, last) }
}

/// The class label [B, 1, 1, E].
fn class_embedding(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    class: ClassEmbedding,
    given: Conditioning,
) -> Value {
    let embed = config.time_embed_dim as u32;
    let w = w.at("class_embedding");
    let Some(label) = required(g, given.class, "a class label", "class_embed_type") else { return given.timestep };
    match class {
        ClassEmbedding::Table { count } => table_row(g, &w, label, count as u32, embed),
        ClassEmbedding::Timestep => {
            let batch = g.shape(label).batch;
            let wave = sinusoid(config, batch, 1, config.block_out_channels[0] as u32);
            let x = nn::sinusoid(g, "class_proj", label, wave);
            mlp(g, &w, x, embed, config.embed_act, Activation::None)
        }
        ClassEmbedding::Identity => label,
        ClassEmbedding::Projection { .. } => mlp(g, &w, label, embed, Activation::Silu, Activation::None),
        ClassEmbedding::SimpleProjection { .. } => nn::linear(g, &w, label, Linear::new(embed)),
    }
}

/// Rows `ids` [B, 1, 1, 1] of the table [count, channels] at `w` -> [B, 1, 1, channels].
fn table_row(g: &mut Graph, w: &Weights<'_>, ids: Value, count: u32, channels: u32) -> Value {
    let shape = g.shape(ids);
    let dtype = g.precision();
    let table = w.at("weight");
    table.claim(&[&[count, channels]]);
    let split = embed::split(count, channels, dtype, g.limits()).unwrap_or(count);
    let ranges: Vec<Operand> = (0..count.div_ceil(split))
        .map(|range| table.table(g, range * split, split.min(count - range * split), channels, dtype).into())
        .collect();
    let zeros = g.constant(vec![0.0; channels.next_multiple_of(4) as usize]);
    let mut inputs = vec![ids.into(), zeros.into()];
    inputs.extend((0..embed::RANGES as usize).map(|range| ranges[range.min(ranges.len() - 1)]));
    let call = embed::call(shape.batch, 1, channels, split, dtype, g.limits());
    nn::push(g, w.path(), call, inputs, shape.with_channels(channels), dtype)
}

/// SDXL's pooled text and sizes [B, 1, 1, E].
fn text_time(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, given: Conditioning) -> Value {
    let pooled = required(g, given.pooled, "pooled text", "addition_embed_type");
    let sizes = required(g, given.sizes, "the picture's sizes", "addition_embed_type");
    let (Some(added), Some(pooled), Some(sizes)) = (&config.text_time, pooled, sizes) else { return given.timestep };
    let wave = sinusoid(config, g.shape(sizes).batch, 6, added.time_embed_dim as u32);
    let waves = nn::sinusoid(g, "add_time_proj", sizes, wave);
    let both = nn::concat(g, "add_embedding", pooled, waves);
    mlp(g, &w.at("add_embedding"), both, config.time_embed_dim as u32, Activation::Silu, Activation::None)
}
