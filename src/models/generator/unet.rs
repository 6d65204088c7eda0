//! The UNet of every diffusion model here (diffusers `UNet2DConditionModel` and `UNet2DModel`): over Stable Diffusion's
//! latents, over pictures in DeepFloyd IF and Karlo.

use std::collections::HashMap;

use crate::error::Error;
use crate::graph::{Graph, Shape, Value};
use crate::kernels::vector_bytes;
use crate::models::config::{Block, BlockKind, MidBlock, MidKind, UnetConfig};
pub use crate::models::generator::conditioning::Conditioning;
use crate::models::generator::conditioning::{TimeEmbedding, time_embedding};
use crate::models::generator::context::{TextKeys, block_heads, mid_heads};
use crate::models::generator::unet_blocks::{added_attention, self_attention, transformer};
use crate::models::nn::{self, Conv, Norm, Resize, Resnet, ResnetBlock};
use crate::weights::Weights;

/// sample [B, H, W, C] -> prediction [B, H, W, C']. Where convolutions change the size, H and W need not be even; where
/// resnets do, sides that the levels do not divide are a fault of the graph. `text` holds what the UNet reads of the prompt.
pub fn unet(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &UnetConfig,
    sample: Value,
    given: Conditioning,
    text: &TextKeys,
) -> Value {
    let time = time_embedding(g, w, config, given, text);
    g.tap("unet.time", time.activated);
    let times = time_projections(g, w, config, &time);
    if given.mask.is_some() && takes_no_mask(config) {
        let error = Error::new("the UNet's inputs").at("the mask of the text").found("a block with transformers");
        g.fail(error.expected("attention to text and picture alone"));
    }
    let mut unet = Unet { g, w, config, times, text, mask: given.mask };
    let x = nn::conv3x3(unet.g, &w.at("conv_in"), sample, config.block_out_channels[0] as u32);
    unet.g.tap("unet.conv_in", x);
    let (x, mut skips) = unet.down(x);
    let x = unet.middle(x);
    let x = unet.up(x, &mut skips);
    let Unet { g, .. } = unet;
    let norm = Norm::new(config.norm_num_groups as u32, config.norm_eps as f32);
    let x = nn::group_norm_with(g, &w.at("conv_norm_out"), x, Norm { activation: config.out_act, ..norm });
    let x = nn::conv3x3(g, &w.at("conv_out"), x, config.out_channels as u32);
    g.tap("unet", x);
    x
}

/// Whether some block reads the text in another way than `SimpleCrossAttention`.
fn takes_no_mask(config: &UnetConfig) -> bool {
    let mid = config.mid.is_some_and(|mid| mid.kind == MidKind::CrossAttention);
    mid || config.down.iter().chain(&config.up).any(|block| block.kind == BlockKind::CrossAttention)
}

/// A resnet that takes the time embedding.
struct Timed {
    path: String,
    channels: u32,
    /// Without its activation.
    raw: bool,
}

/// All resnets.
fn resnets(config: &UnetConfig) -> Vec<Timed> {
    let mut all = Vec::new();
    for (half, blocks, resizer) in
        [("down_blocks", &config.down, "downsamplers"), ("up_blocks", &config.up, "upsamplers")]
    {
        for (index, block) in blocks.iter().enumerate() {
            let raw = config.skip_time_act && block.kind.takes_resnet_options();
            let timed = |path: String| Timed { path, channels: block.channels as u32, raw };
            all.extend((0..block.layers).map(|layer| timed(format!("{half}.{index}.resnets.{layer}"))));
            if index + 1 < blocks.len() && block.kind.resizes_by_resnet() {
                all.push(timed(format!("{half}.{index}.{resizer}.0")));
            }
        }
    }
    if let Some(mid) = config.mid {
        let channels = config.block_out_channels[config.block_out_channels.len() - 1] as u32;
        let raw = config.skip_time_act && mid.kind == MidKind::SimpleCrossAttention;
        let count = if let MidKind::Resnets(count) = mid.kind { count } else { 2 };
        all.extend((0..count).map(|layer| Timed { path: format!("mid_block.resnets.{layer}"), channels, raw }));
    }
    all
}

/// Where a resnet's channels of the projected timestep lie, by the resnet's path.
type Times = HashMap<String, (Value, u32)>;

/// The layers `time_emb_proj` of all resnets read the same few rows, so they are one product, or as few as the largest
/// binding allows for their weights.
fn time_projections(g: &mut Graph, w: &Weights<'_>, config: &UnetConfig, time: &TimeEmbedding) -> Times {
    let chunks = if config.scale_shift { 2 } else { 1 };
    let row_bytes = u64::from(g.shape(time.raw).vectors()) * vector_bytes(g.precision());
    let most = (g.limits().binding / row_bytes) as u32;
    let mut groups: Vec<Vec<Timed>> = Vec::new();
    let mut rows = 0;
    for timed in resnets(config) {
        // A packed weight is whole panels, and the keys of one weight are counted in a byte.
        let own = (chunks * timed.channels.next_multiple_of(4)).next_multiple_of(32);
        rows += own;
        match groups.last_mut() {
            Some(group) if rows <= most && group.len() < 256 && group[0].raw == timed.raw => group.push(timed),
            _ => {
                rows = own;
                groups.push(vec![timed]);
            }
        }
    }
    let mut times = Times::new();
    for group in groups {
        let layer = |timed: &Timed| (w.at(&timed.path).at("time_emb_proj"), chunks * timed.channels);
        let layers: Vec<_> = group.iter().map(layer).collect();
        let x = if group[0].raw { time.raw } else { time.activated };
        let (value, begins) = nn::linears(g, "time_emb_proj", &layers, chunks, x);
        times.extend(group.into_iter().zip(begins).map(|(timed, begin)| (timed.path, (value, begin))));
    }
    times
}

/// What every block needs.
struct Unet<'a, 'g> {
    g: &'g mut Graph,
    w: &'a Weights<'a>,
    config: &'a UnetConfig,
    times: Times,
    text: &'a TextKeys,
    mask: Option<Value>,
}

impl Unet<'_, '_> {
    fn down(&mut self, mut x: Value) -> (Value, Vec<Value>) {
        let config = self.config;
        let mut skips = vec![x];
        for (level, block) in config.down.iter().enumerate() {
            let w = self.w.at("down_blocks").at(level);
            let channels = block.channels as u32;
            for layer in 0..block.layers {
                x = self.resnet(&w.at("resnets").at(layer), x, None, self.options(block));
                x = self.attention(&w.at("attentions").at(layer), x, block, layer);
                skips.push(x);
            }
            if level + 1 < config.down.len() {
                x = if block.kind.resizes_by_resnet() {
                    let half = Options { resize: Some(Resize::Halve), ..self.options(block) };
                    self.resnet(&w.at("downsamplers.0"), x, None, half)
                } else {
                    let half = Conv { stride: 2, ..Conv::new(channels, 3) };
                    nn::conv(self.g, &w.at("downsamplers.0.conv"), x, half)
                };
                skips.push(x);
            }
            self.g.tap(&format!("unet.down_blocks.{level}"), x);
        }
        (x, skips)
    }

    fn middle(&mut self, mut x: Value) -> Value {
        let Some(mid) = self.config.mid else { return x };
        let w = self.w.at("mid_block");
        let options =
            Options { channels: self.g.shape(x).channels, divisor: self.config.mid_scale as f32, resize: None };
        x = self.resnet(&w.at("resnets.0"), x, None, options);
        x = self.middle_attention(&w.at("attentions.0"), x, mid);
        if mid.kind != MidKind::Resnets(1) {
            x = self.resnet(&w.at("resnets.1"), x, None, options);
        }
        self.g.tap("unet.mid_block", x);
        x
    }

    fn up(&mut self, mut x: Value, skips: &mut Vec<Value>) -> Value {
        let config = self.config;
        for (index, block) in config.up.iter().enumerate() {
            let w = self.w.at("up_blocks").at(index);
            let channels = block.channels as u32;
            for layer in 0..block.layers {
                let skip =
                    skips.pop().unwrap_or_else(|| panic!("{}: the UNet has more resnets up than down", w.path()));
                let place = w.at("resnets").at(layer);
                let Some(skip) = self.fitting(&place, x, skip) else { return x };
                x = self.resnet(&place, x, Some(skip), self.options(block));
                x = self.attention(&w.at("attentions").at(layer), x, block, layer);
            }
            if let (Some(skip), true) = (skips.last(), index + 1 < config.up.len()) {
                x = if block.kind.resizes_by_resnet() {
                    let double = Options { resize: Some(Resize::Double), ..self.options(block) };
                    self.resnet(&w.at("upsamplers.0"), x, None, double)
                } else {
                    let to = self.g.shape(*skip);
                    let double = Conv { upsample: Some((to.height, to.width)), ..Conv::new(channels, 3) };
                    nn::conv(self.g, &w.at("upsamplers.0.conv"), x, double)
                };
            }
            self.g.tap(&format!("unet.up_blocks.{index}"), x);
        }
        x
    }

    /// The skip connection, or the fault that a size does not halve and double to what it was.
    fn fitting(&mut self, w: &Weights<'_>, x: Value, skip: Value) -> Option<Value> {
        let [to, from] = [self.g.shape(skip), self.g.shape(x)].map(|shape| [shape.height, shape.width]);
        if to == from {
            return Some(skip);
        }
        let levels = self.config.block_out_channels.len() as u32;
        self.g.fail(
            Error::new("a size that this UNet cannot halve and double")
                .at(w.path())
                .expected(format!("height and width to be multiples of {}", 1 << (levels - 1)))
                .found(format!("{} x {} beside {} x {}", from[0], from[1], to[0], to[1])),
        );
        None
    }

    fn options(&self, block: &Block) -> Options {
        let divisor = if block.kind.takes_resnet_options() { self.config.resnet_scale as f32 } else { 1.0 };
        Options { channels: block.channels as u32, divisor, resize: None }
    }

    /// x [B, H, W, I], beside it the skip connection [B, H, W, J] -> [B, H, W, C] (diffusers `ResnetBlock2D`).
    fn resnet(&mut self, w: &Weights<'_>, x: Value, skip: Option<Value>, options: Options) -> Value {
        let config = self.config;
        let time = self.times.get(w.path()).copied();
        assert!(time.is_some(), "{}: a resnet that was not listed", w.path());
        let Options { channels, divisor, resize } = options;
        let (groups, eps) = (config.norm_num_groups as u32, config.norm_eps as f32);
        let shift = time.filter(|_| config.scale_shift).map(|(_, begin)| begin + channels.next_multiple_of(4));
        let base = Resnet { out: channels, second: skip, time, groups, eps };
        let block = ResnetBlock { base, activation: config.act, shift, resize, divisor };
        let y = nn::resnet_block(self.g, w, x, block);
        self.g.tap(&format!("unet.{}", w.path()), y);
        y
    }

    /// The attention behind a resnet, if the block has any.
    fn attention(&mut self, w: &Weights<'_>, x: Value, block: &Block, layer: usize) -> Value {
        let (config, text, heads) = (self.config, self.text, block_heads(block));
        let y = match block.kind {
            BlockKind::Plain | BlockKind::Resnet => return x,
            BlockKind::CrossAttention => {
                transformer(self.g, w, config, x, text, heads, block.transformer_layers[layer])
            }
            BlockKind::SimpleCrossAttention => {
                added_attention(self.g, w, config, x, text, heads, block.only_cross_attention, self.mask)
            }
            BlockKind::SelfAttention { .. } => {
                self_attention(self.g, w, config, x, Some(config.norm_num_groups), heads, 1.0)
            }
        };
        self.g.tap(&format!("unet.{}", w.path()), y);
        y
    }

    fn middle_attention(&mut self, w: &Weights<'_>, x: Value, mid: MidBlock) -> Value {
        let (config, text, heads) = (self.config, self.text, mid_heads(self.config, mid.head_count));
        let y = match mid.kind {
            MidKind::Resnets(_) => return x,
            MidKind::CrossAttention => transformer(self.g, w, config, x, text, heads, mid.transformer_layers),
            MidKind::SimpleCrossAttention => {
                added_attention(self.g, w, config, x, text, heads, mid.only_cross_attention, self.mask)
            }
            MidKind::SelfAttention { groups } => {
                self_attention(self.g, w, config, x, groups, heads, config.mid_scale as f32)
            }
        };
        self.g.tap(&format!("unet.{}", w.path()), y);
        y
    }
}

/// What differs between the resnets of a UNet.
#[derive(Clone, Copy)]
struct Options {
    channels: u32,
    divisor: f32,
    resize: Option<Resize>,
}

/// The shape of the UNet's input for a latent of `height` x `width`.
pub fn sample_shape(config: &UnetConfig, batch: u32, height: u32, width: u32) -> Shape {
    Shape::new(batch, height, width, config.in_channels as u32)
}
