//! What a UNet makes of the prompt alone: the keys and values of its cross-attentions, and what the prompt adds to the time
//! embedding. It is the same in all steps of a picture, so it is computed once, in a graph of its own or ahead of the
//! UNet in the same one.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::graph::{Graph, Value};
use crate::models::config::{Addition, Block, BlockKind, CrossNorm, HiddenProjection, MidKind, UnetConfig};
use crate::models::nn::{self, Heads, Linear};
use crate::weights::Weights;

/// Epsilon of LayerNorms and of the GroupNorm over text vectors (torch's default, which diffusers keeps).
const NORM_EPS: f32 = 1e-5;
/// Groups of the GroupNorm over text vectors (diffusers `Attention`).
const CROSS_NORM_GROUPS: u32 = 32;
/// Vectors that Kandinsky 2.2 makes of a picture's embedding (diffusers `ImageProjection`).
const IMAGE_TOKENS: u32 = 32;
/// Vectors that Kandinsky 2.1 makes of a picture's embedding (diffusers `TextImageProjection`).
const TEXT_IMAGE_TOKENS: u32 = 10;
/// The name of what is added to the time embedding.
const ADDED: &str = "add_embedding";

/// The vectors that stand for the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptVectors {
    /// Text vectors [B, T, D], D being [`UnetConfig::text_width`].
    pub text: Option<Value>,
    /// A picture's embedding [B, 1, 1, D], D being [`UnetConfig::image_width`].
    pub image: Option<Value>,
    /// Kandinsky 2.1: pooled text [B, 1, 1, D], D being [`UnetConfig::cross_attention_dim`].
    pub pooled: Option<Value>,
}

impl From<Value> for PromptVectors {
    /// Text vectors alone.
    fn from(text: Value) -> Self {
        Self { text: Some(text), ..Self::default() }
    }
}

/// What the UNet reads of the prompt: keys and values [B, T, 2 * inner] of every cross-attention by the layer's path, and
/// perhaps `add_embedding` [B, 1, 1, E].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextKeys(BTreeMap<String, Value>);

impl TextKeys {
    /// Those of the layer at `path`, or the fault that there are none.
    pub(super) fn at(&self, g: &mut Graph, path: &str) -> Option<Value> {
        let found = self.find(path);
        if found.is_none() {
            let error = Error::new("the UNet's inputs").at(path);
            g.fail(error.expected("keys and values of the prompt").found("nothing"));
        }
        found
    }

    /// Those of the layer at `path`, if it reads the text.
    pub fn find(&self, path: &str) -> Option<Value> {
        self.0.get(path).copied()
    }

    /// What the prompt adds to the time embedding [B, 1, 1, E].
    pub fn added(&self) -> Option<Value> {
        self.find(ADDED)
    }

    /// The layers' paths, and their keys and values; in the order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value)> {
        self.0.iter().map(|(path, value)| (path.as_str(), *value))
    }
}

impl FromIterator<(String, Value)> for TextKeys {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// The prompt's vectors -> what the UNet reads of them. A config that asks for vectors which are not there is a fault of the
/// graph.
pub fn text_keys(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, prompt: impl Into<PromptVectors>) -> TextKeys {
    let prompt = prompt.into();
    let mut keys = BTreeMap::new();
    if let Some(added) = added_embedding(g, w, config, prompt) {
        keys.insert(ADDED.to_owned(), added);
    }
    if !config.reads_text() {
        return TextKeys(keys);
    }
    let Some(context) = cross_vectors(g, w, config, prompt) else { return TextKeys(keys) };
    for layer in layers(config) {
        let w = w.at(&layer.path);
        let value = match layer.read {
            Read::Transformer => nn::keys_values(g, &w, &nn::DIFFUSERS, context, layer.heads),
            Read::Added => {
                let cross = w.at("norm_cross");
                let normed = match config.cross_norm {
                    None => context,
                    Some(CrossNorm::Group) => nn::group_norm(g, &cross, context, CROSS_NORM_GROUPS, NORM_EPS, false),
                    Some(CrossNorm::Layer) => nn::layer_norm(g, &cross, context, NORM_EPS),
                };
                nn::keys_values(g, &w, &nn::ADDED, normed, layer.heads)
            }
        };
        keys.insert(layer.path, value);
    }
    TextKeys(keys)
}

/// One of the prompt's vectors, or the fault that it is not given.
fn required(g: &mut Graph, input: Option<Value>, what: &str, field: &str) -> Option<Value> {
    if input.is_none() {
        g.fail(Error::new("the UNet's inputs").at(format!("`{field}`")).expected(what).found("nothing"));
    }
    input
}

/// The vectors [B, T, D] that cross-attention reads.
fn cross_vectors(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, prompt: PromptVectors) -> Option<Value> {
    const FIELD: &str = "encoder_hid_dim_type";
    let w = w.at("encoder_hid_proj");
    let dim = config.cross_attention_dim as u32;
    match config.hidden {
        None => required(g, prompt.text, "text vectors", "cross_attention_dim"),
        Some(HiddenProjection::Text { .. }) => {
            let text = required(g, prompt.text, "text vectors", FIELD)?;
            Some(nn::linear(g, &w, text, Linear::new(dim)))
        }
        Some(HiddenProjection::Image { .. }) => {
            let image = required(g, prompt.image, "a picture's embedding", FIELD)?;
            let tokens = nn::linear_tokens(g, &w.at("image_embeds"), image, IMAGE_TOKENS, dim);
            Some(nn::layer_norm(g, &w.at("norm"), tokens, NORM_EPS))
        }
        Some(HiddenProjection::TextImage { .. }) => {
            let text = required(g, prompt.text, "text vectors", FIELD)?;
            let image = required(g, prompt.image, "a picture's embedding", FIELD)?;
            let tokens = nn::linear_tokens(g, &w.at("image_embeds"), image, TEXT_IMAGE_TOKENS, dim);
            let text = nn::linear(g, &w.at("text_proj"), text, Linear::new(dim));
            Some(nn::concat_tokens(g, w.path(), tokens, text))
        }
    }
}

/// What the prompt adds to the time embedding [B, 1, 1, E].
fn added_embedding(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, prompt: PromptVectors) -> Option<Value> {
    const FIELD: &str = "addition_embed_type";
    let w = w.at(ADDED);
    let out = Linear::new(config.time_embed_dim as u32);
    let added = match config.addition? {
        Addition::Text { heads } => {
            let text = required(g, prompt.text, "text vectors", FIELD)?;
            let x = nn::layer_norm(g, &w.at("norm1"), text, NORM_EPS);
            let width = g.shape(x).channels / heads as u32;
            let heads = Heads { count: heads as u32, width };
            let pooled = attention_pooling(g, &w.at("pool"), x, heads);
            let x = nn::linear(g, &w.at("proj"), pooled, Linear { heads: Some(heads), ..out });
            nn::layer_norm(g, &w.at("norm2"), x, NORM_EPS)
        }
        Addition::Image => {
            let image = required(g, prompt.image, "a picture's embedding", FIELD)?;
            let x = nn::linear(g, &w.at("image_proj"), image, out);
            nn::layer_norm(g, &w.at("image_norm"), x, NORM_EPS)
        }
        Addition::TextImage => {
            let text = required(g, prompt.pooled, "pooled text", FIELD)?;
            let image = required(g, prompt.image, "a picture's embedding", FIELD)?;
            let x = nn::linear(g, &w.at("text_proj"), text, out);
            let x = nn::layer_norm(g, &w.at("text_norm"), x, NORM_EPS);
            nn::linear(g, &w.at("image_proj"), image, Linear { residual: Some(x), ..out })
        }
    };
    g.tap("unet.add_embedding", added);
    Some(added)
}

/// x [B, T, C] -> [B, 1, 1, C], head-major and padded: the mean of all tokens, as a token in front of them, attends to all
/// (diffusers `AttentionPooling`).
fn attention_pooling(g: &mut Graph, w: &Weights<'_>, x: Value, heads: Heads) -> Value {
    let mean = nn::mean(g, w.path(), x);
    let class = nn::add_vector(g, &w.at("positional_embedding"), mean);
    let tokens = nn::concat_tokens(g, w.path(), class, x);
    let q = nn::queries(g, w, &nn::POOLING, class, heads);
    let kv = nn::keys_values(g, w, &nn::POOLING, tokens, heads);
    let inner = heads.count * heads.padded();
    nn::attend(g, w.path(), (q, 0), (kv, [0, inner]), heads, nn::Scores::default())
}

/// Which projections a layer reads the prompt with.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    /// Those of a transformer block's attention.
    Transformer,
    /// Those that an attention to text and picture has for the text.
    Added,
}

/// An attention that reads the prompt.
struct Layer {
    path: String,
    heads: Heads,
    read: Read,
}

/// Every attention that reads the prompt.
fn layers(config: &UnetConfig) -> Vec<Layer> {
    let mut found = Vec::new();
    let halves = [("down_blocks", &config.down), ("up_blocks", &config.up)];
    for (half, index, block) in
        halves.into_iter().flat_map(|(half, blocks)| blocks.iter().enumerate().map(move |(i, block)| (half, i, block)))
    {
        let heads = block_heads(block);
        let attention = |layer: usize| format!("{half}.{index}.attentions.{layer}");
        match block.kind {
            BlockKind::CrossAttention => {
                for (layer, depth) in block.transformer_layers.iter().enumerate() {
                    transformer(&mut found, &attention(layer), heads, *depth, block.only_cross_attention);
                }
            }
            BlockKind::SimpleCrossAttention => {
                found.extend((0..block.layers).map(|layer| Layer { path: attention(layer), heads, read: Read::Added }))
            }
            _ => {}
        }
    }
    let path = "mid_block.attentions.0".to_owned();
    if let Some(mid) = config.mid {
        let heads = mid_heads(config, mid.head_count);
        match mid.kind {
            MidKind::CrossAttention => transformer(&mut found, &path, heads, mid.transformer_layers, false),
            MidKind::SimpleCrossAttention => found.push(Layer { path, heads, read: Read::Added }),
            _ => {}
        }
    }
    found
}

/// The heads of a block's attentions.
pub(super) fn block_heads(block: &Block) -> Heads {
    Heads { count: block.head_count as u32, width: (block.channels / block.head_count) as u32 }
}

/// The heads of the middle block's attention.
pub(super) fn mid_heads(config: &UnetConfig, count: usize) -> Heads {
    let channels = config.block_out_channels.last().copied().unwrap_or(0);
    Heads { count: count as u32, width: (channels / count) as u32 }
}

/// The attentions of a transformer that read the prompt: the second of every block, or both.
fn transformer(found: &mut Vec<Layer>, path: &str, heads: Heads, depth: usize, only_cross: bool) {
    let attentions: &[&str] = if only_cross { &["attn1", "attn2"] } else { &["attn2"] };
    for (block, attention) in (0..depth).flat_map(|block| attentions.iter().map(move |name| (block, name))) {
        let path = format!("{path}.transformer_blocks.{block}.{attention}");
        found.push(Layer { path, heads, read: Read::Transformer });
    }
}
