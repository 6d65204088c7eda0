//! The keys and values of the UNet's cross-attentions. They depend on the prompt alone, so they are computed once for all
//! steps of a picture, in a graph of their own or ahead of the UNet in the same one.

use std::collections::BTreeMap;

use crate::graph::{Graph, Value};
use crate::models::config::UnetConfig;
use crate::models::nn::{self, Heads};
use crate::weights::Weights;

/// Keys and values [B, T, 2 * inner] of every cross-attention by the layer's path, all from one text [B, T, D].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextKeys(BTreeMap<String, Value>);

impl TextKeys {
    /// Those of the layer at `path`.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn at(&self, path: &str) -> Value {
        self.find(path).unwrap_or_else(|| panic!("{path}: no keys and values of the text"))
    }

    /// Those of the layer at `path`, if it reads the text.
    pub fn find(&self, path: &str) -> Option<Value> {
        self.0.get(path).copied()
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

/// Text vectors [B, T, D] -> keys and values of every cross-attention.
pub fn text_keys(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, context: Value) -> TextKeys {
    let mut keys = BTreeMap::new();
    for Transformer { path, heads, depth, only_cross } in transformers(config) {
        let layers: &[&str] = if only_cross { &["attn1", "attn2"] } else { &["attn2"] };
        for (block, layer) in (0..depth).flat_map(|block| layers.iter().map(move |layer| (block, layer))) {
            let w = w.at(&path).at("transformer_blocks").at(block).at(layer);
            let value = nn::keys_values(g, &w, &nn::DIFFUSERS, context, heads);
            keys.insert(w.path().to_owned(), value);
        }
    }
    TextKeys(keys)
}

/// What the keys of a transformer depend on.
struct Transformer {
    path: String,
    heads: Heads,
    depth: usize,
    /// Whether the first attention of every block reads the text, too.
    only_cross: bool,
}

/// Every transformer.
fn transformers(config: &UnetConfig) -> Vec<Transformer> {
    let levels = config.block_out_channels.len();
    let of = |path: String, level: usize, depth: usize, only_cross: bool| {
        let count = config.head_count[level] as u32;
        let heads = Heads { count, width: config.block_out_channels[level] as u32 / count };
        Transformer { path, heads, depth, only_cross }
    };
    let mut found = Vec::new();
    for level in (0..levels).filter(|level| config.down_attention[*level]) {
        for (layer, depth) in config.down_transformer_layers[level].iter().enumerate() {
            let path = format!("down_blocks.{level}.attentions.{layer}");
            found.push(of(path, level, *depth, config.only_cross_attention[level]));
        }
    }
    if config.mid_block {
        found.push(of("mid_block.attentions.0".to_owned(), levels - 1, config.mid_transformer_layers, false));
    }
    for block in (0..levels).filter(|block| config.up_attention[*block]) {
        let level = levels - 1 - block;
        for (layer, depth) in config.up_transformer_layers[block].iter().enumerate() {
            let path = format!("up_blocks.{block}.attentions.{layer}");
            found.push(of(path, level, *depth, config.only_cross_attention[level]));
        }
    }
    found
}
