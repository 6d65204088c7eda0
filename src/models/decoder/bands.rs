//! The decoder's last blocks in bands of rows, so that less memory does: the same numbers as [`super::vae::decode`]'s.
//!
//! Every tensor of a large picture is a list of bands, and a band is released once nothing needs it any more. GroupNorm's
//! statistics are gathered over all bands before any is normalised, and a convolution's input takes the rows of its border
//! from the neighbouring bands; so nothing is approximated and there are no seams. What it costs: the upsampling
//! convolution runs twice, once for the statistics and once, with two rows more on either side, for the result.

use crate::error::Error;
use crate::graph::{Graph, Operand, RowSource, Shape, Value, WeightId};
use crate::kernels::band_norm::{self, BandNorm, Rows};
use crate::kernels::conv2d::{self, Conv2d};
use crate::kernels::{Call, vector_bytes};
use crate::models::config::VaeConfig;
use crate::tensor::DType;
use crate::weights::Weights;

/// A picture [1, H, W, C] in bands: the first row of each and its value.
struct Picture {
    bands: Vec<(u32, Value)>,
    shape: Shape,
}

/// A convolution's declared weights.
struct Layer {
    label: String,
    weight: WeightId,
    bias: WeightId,
    inputs: u32,
    outputs: u32,
    kernel: u32,
}

/// A GroupNorm's declared weights.
struct Norm {
    label: String,
    weight: WeightId,
    bias: WeightId,
    config: BandNorm,
}

/// What a band's convolution is told besides its weights.
#[derive(Clone, Copy, Default)]
struct Edges {
    /// Rows of zeros above.
    above: u32,
    /// Output rows.
    rows: u32,
    /// Whether the input is doubled first.
    double: bool,
    /// Added last.
    residual: Option<Value>,
}

/// Statistics in the making: what every band adds, a part each.
struct Statistics {
    partials: Value,
    chunks: u32,
    rows: u32,
}

/// x [1, h, w, C], as the blocks before `first` leave it -> the picture. Bands are of `rows` rows, an even number.
pub(super) fn tail(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, x: Value, first: usize, rows: u32) -> Value {
    let levels = config.block_out_channels.len();
    let mut x = Picture { shape: g.shape(x), bands: vec![(0, x)] };
    for block in first..levels {
        let channels = config.block_out_channels[levels - 1 - block] as u32;
        let blocks = w.at("up_blocks");
        let up = layer(g, &blocks.at(block - 1).at("upsamplers.0.conv"), x.shape.channels, x.shape.channels, 3);
        let resnets = blocks.at(block).at("resnets");
        x = enlarged_resnet(g, &resnets.at(0), config, x, &up, channels, rows);
        for index in 1..config.layers_per_block + 1 {
            x = resnet(g, &resnets.at(index), config, x);
        }
    }
    let norm = norm(g, &w.at("conv_norm_out"), config, x.shape.channels);
    let out = layer(g, &w.at("conv_out"), x.shape.channels, config.out_channels as u32, 3);
    let statistics = picture_statistics(g, &norm, &x);
    let dtype = g.precision();
    let image = g.reserve(w.path(), x.shape.with_channels(out.outputs), dtype);
    for (begin, end) in x.spans(g) {
        let band = normed_convolution(g, &norm, statistics, &out, &x, (begin, end), None);
        let rows = Rows { from: 0, to: begin * x.shape.width, count: (end - begin) * x.shape.width };
        copy_rows(g, w.path(), None, band, rows, image);
    }
    image
}

/// [`resnet`] behind an upsampling convolution, whose result is computed twice rather than kept.
fn enlarged_resnet(
    g: &mut Graph,
    w: &Weights<'_>,
    config: &VaeConfig,
    x: Picture,
    up: &Layer,
    channels: u32,
    rows: u32,
) -> Picture {
    let from = x.shape;
    let shape = Shape::new(1, 2 * from.height, 2 * from.width, from.channels);
    let norm1 = norm(g, &w.at("norm1"), config, from.channels);
    let conv1 = layer(g, &w.at("conv1"), from.channels, channels, 3);
    let norm2 = norm(g, &w.at("norm2"), config, channels);
    let conv2 = layer(g, &w.at("conv2"), channels, channels, 3);
    let shortcut = (from.channels != channels).then(|| layer(g, &w.at("conv_shortcut"), from.channels, channels, 1));
    let spans: Vec<_> =
        (0..shape.height.div_ceil(rows)).map(|i| (i * rows, ((i + 1) * rows).min(shape.height))).collect();
    let mut statistics = Statistics::new(g, &norm1, shape, &spans);
    for span in &spans {
        let enlarged = enlarge(g, up, &x, *span);
        statistics.add(g, &norm1, &enlarged, *span);
    }
    let norm1_values = statistics.finish(g, &norm1);
    let mut statistics = Statistics::new(g, &norm2, shape, &spans);
    let mut hidden = Picture { bands: Vec::new(), shape: shape.with_channels(channels) };
    let mut skip = Vec::new();
    for span in &spans {
        let enlarged = enlarge(g, up, &x, *span);
        let h = normed_convolution(g, &norm1, norm1_values, &conv1, &enlarged, *span, None);
        hidden.bands.push((span.0, h));
        statistics.add(g, &norm2, &hidden, *span);
        let inner = enlarged.window(g, w.path(), None, *span);
        let edges = Edges { rows: span.1 - span.0, ..Edges::default() };
        skip.push(shortcut.as_ref().map_or(inner, |shortcut| convolution(g, shortcut, inner, edges)));
    }
    let norm2_values = statistics.finish(g, &norm2);
    second_half(g, &norm2, norm2_values, &conv2, &hidden, skip)
}

/// x [1, H, W, C] -> [1, H, W, C] (diffusers `ResnetBlock2D` without a time embedding).
fn resnet(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, x: Picture) -> Picture {
    let channels = x.shape.channels;
    let norm1 = norm(g, &w.at("norm1"), config, channels);
    let conv1 = layer(g, &w.at("conv1"), channels, channels, 3);
    let norm2 = norm(g, &w.at("norm2"), config, channels);
    let conv2 = layer(g, &w.at("conv2"), channels, channels, 3);
    let statistics = picture_statistics(g, &norm1, &x);
    let mut hidden = Picture { bands: Vec::new(), shape: x.shape };
    for span in x.spans(g) {
        let h = normed_convolution(g, &norm1, statistics, &conv1, &x, span, None);
        hidden.bands.push((span.0, h));
    }
    let statistics = picture_statistics(g, &norm2, &hidden);
    let skip = x.bands.iter().map(|(_, band)| *band).collect();
    second_half(g, &norm2, statistics, &conv2, &hidden, skip)
}

/// conv2 of the normalised `hidden`, plus `skip`, band by band.
fn second_half(
    g: &mut Graph,
    norm: &Norm,
    statistics: Value,
    conv: &Layer,
    hidden: &Picture,
    skip: Vec<Value>,
) -> Picture {
    let mut out = Picture { bands: Vec::new(), shape: hidden.shape };
    for (span, skip) in hidden.spans(g).into_iter().zip(skip) {
        let band = normed_convolution(g, norm, statistics, conv, hidden, span, Some(skip));
        out.bands.push((span.0, band));
    }
    out
}

/// A 3x3 convolution of the normalised rows `span` and their border.
fn normed_convolution(
    g: &mut Graph,
    norm: &Norm,
    statistics: Value,
    conv: &Layer,
    x: &Picture,
    span: (u32, u32),
    residual: Option<Value>,
) -> Value {
    let bordered = (span.0.saturating_sub(1), (span.1 + 1).min(x.shape.height));
    let window = x.window(g, &norm.label, Some((statistics, norm.bias)), bordered);
    let edges = Edges { above: u32::from(span.0 == 0), rows: span.1 - span.0, double: false, residual };
    convolution(g, conv, window, edges)
}

/// The doubled and convolved rows `span`, and one more on either side that is right, in a picture of two more.
fn enlarge(g: &mut Graph, up: &Layer, x: &Picture, span: (u32, u32)) -> Picture {
    let inner = ((span.0 / 2).saturating_sub(1), (span.1 / 2 + 1).min(x.shape.height));
    let window = x.window(g, &up.label, None, inner);
    let edges = Edges { above: 1, rows: 2 * (inner.1 - inner.0), double: true, residual: None };
    let band = convolution(g, up, window, edges);
    let shape = Shape::new(1, 2 * x.shape.height, 2 * x.shape.width, up.outputs);
    Picture { bands: vec![(2 * inner.0, band)], shape }
}

impl Picture {
    /// First row and one past the last of each band.
    fn spans(&self, g: &Graph) -> Vec<(u32, u32)> {
        self.bands.iter().map(|(first, band)| (*first, first + g.shape(*band).height)).collect()
    }

    /// Rows `begin .. end` in one value, normalised and through SiLU where statistics and a bias are given.
    fn window(&self, g: &mut Graph, label: &str, norm: Option<(Value, WeightId)>, (begin, end): (u32, u32)) -> Value {
        let dtype = g.precision();
        let (width, channels) = (self.shape.width, self.shape.channels);
        let window = g.reserve(label, Shape::new(1, end - begin, width, channels), dtype);
        for ((first, last), (_, band)) in self.spans(g).into_iter().zip(&self.bands) {
            let (from, to) = (first.max(begin), last.min(end));
            if from < to {
                let rows =
                    Rows { from: (from - first) * width, to: (from - begin) * width, count: (to - from) * width };
                copy_rows(g, label, norm, *band, rows, window);
            }
        }
        window
    }
}

impl Statistics {
    fn new(g: &mut Graph, norm: &Norm, shape: Shape, spans: &[(u32, u32)]) -> Self {
        let chunks = spans.iter().map(|(begin, end)| band_norm::chunks((end - begin) * shape.width)).sum();
        let partials = Shape::new(1, chunks, 3, norm.config.channels);
        if partials.bytes(DType::F32) > g.limits().binding {
            let limit = g.limits().binding;
            g.fail(too_large(&norm.label, partials, limit));
        }
        Self { partials: g.reserve(&norm.label, partials, DType::F32), chunks: 0, rows: 0 }
    }

    /// Adds the rows `span` of a picture, which lie in one band of it.
    fn add(&mut self, g: &mut Graph, norm: &Norm, x: &Picture, (begin, end): (u32, u32)) {
        let width = x.shape.width;
        let holds = |(first, last): &(u32, u32)| *first <= begin && end <= *last;
        let index =
            x.spans(g).iter().position(holds).unwrap_or_else(|| panic!("{}: no band holds {begin}", norm.label));
        let (first, band) = x.bands[index];
        let rows = (end - begin) * width;
        let call = band_norm::stats(&norm.config, (begin - first) * width, rows, self.chunks, g.limits());
        push_into(g, &norm.label, call, vec![band.into()], self.partials);
        self.chunks += band_norm::chunks(rows);
        self.rows += rows;
    }

    /// Mean and scale of every channel.
    fn finish(self, g: &mut Graph, norm: &Norm) -> Value {
        let call = band_norm::combine(&norm.config, self.rows, self.chunks);
        let inputs = vec![self.partials.into(), norm.weight.into()];
        g.push(&norm.label, call, inputs, Shape::new(1, 2, 1, norm.config.channels), DType::F32)
    }
}

fn picture_statistics(g: &mut Graph, norm: &Norm, x: &Picture) -> Value {
    let spans = x.spans(g);
    let mut statistics = Statistics::new(g, norm, x.shape, &spans);
    spans.into_iter().for_each(|span| statistics.add(g, norm, x, span));
    statistics.finish(g, norm)
}

fn identity(count: u32) -> Vec<RowSource> {
    (0..count).map(|row| Some((0, row))).collect()
}

fn layer(g: &mut Graph, w: &Weights<'_>, inputs: u32, outputs: u32, kernel: u32) -> Layer {
    let shapes: [&[u32]; 2] = [&[outputs, inputs], &[outputs, inputs, kernel, kernel]];
    let key = w.at("weight").claim(if kernel == 1 { &shapes } else { &shapes[1..] });
    let columns = (0..inputs.next_multiple_of(4)).map(|k| (k < inputs).then_some(k)).collect();
    let weight = w.matrix(g, vec![key], identity(outputs), columns, kernel * kernel);
    let bias = w.at("bias").claim(&[&[outputs]]);
    let bias = w.vector(g, vec![bias], identity(outputs));
    Layer { label: w.path().to_owned(), weight, bias, inputs, outputs, kernel }
}

fn norm(g: &mut Graph, w: &Weights<'_>, config: &VaeConfig, channels: u32) -> Norm {
    let mut vector = |name: &str| {
        let key = w.at(name).claim(&[&[channels]]);
        w.vector(g, vec![key], identity(channels))
    };
    let (weight, bias) = (vector("weight"), vector("bias"));
    let groups = config.norm_num_groups as u32;
    let config = BandNorm { channels, groups, eps: super::vae::NORM_EPS, dtype: g.precision() };
    Norm { label: w.path().to_owned(), weight, bias, config }
}

fn convolution(g: &mut Graph, layer: &Layer, x: Value, edges: Edges) -> Value {
    let from = g.shape(x);
    let scale = 1 + u32::from(edges.double);
    let to = Shape::new(1, edges.rows, scale * from.width, layer.outputs);
    let config = Conv2d {
        batch: 1,
        input: [from.height, from.width],
        output: [to.height, to.width],
        inputs: layer.inputs,
        outputs: layer.outputs,
        kernel: [layer.kernel; 2],
        stride: 1,
        padding: [edges.above, layer.kernel / 2],
        upsample: edges.double,
        row_bias: false,
        residual: edges.residual.is_some(),
        dtype: g.precision(),
    };
    let inputs = conv2d::inputs(x, layer.weight, layer.bias, None::<Value>, edges.residual);
    let dtype = g.precision();
    match conv2d::call(&config, g.limits()) {
        Some(call) => g.push(&layer.label, call, inputs, to, dtype),
        None => {
            let limit = g.limits().binding;
            g.fail(too_large(&layer.label, to, limit));
            g.reserve(&layer.label, to, dtype)
        }
    }
}

fn copy_rows(g: &mut Graph, label: &str, norm: Option<(Value, WeightId)>, x: Value, rows: Rows, to: Value) {
    let call = band_norm::rows(norm.is_some(), g.shape(x).channels, g.dtype(x), rows, g.limits());
    let inputs = match norm {
        Some((statistics, bias)) => vec![x.into(), statistics.into(), bias.into()],
        None => vec![x.into(); 3],
    };
    push_into(g, label, call, inputs, to);
}

fn push_into(g: &mut Graph, label: &str, call: Option<Call>, inputs: Vec<Operand>, to: Value) {
    match call {
        Some(call) => g.push_into(label, call, inputs, to),
        None => {
            let (shape, limit) = (g.shape(to), g.limits().binding);
            g.fail(too_large(label, shape, limit));
        }
    }
}

fn too_large(label: &str, shape: Shape, limit: u64) -> Error {
    Error::new("one row of a tensor is larger than a binding of this adapter")
        .at(format!("{label} {shape}"))
        .expected(format!("at most {limit} bytes"))
        .found(format!("{} bytes a row", u64::from(shape.width * shape.vectors()) * vector_bytes(DType::F32)))
        .hint("a smaller picture, or another --adapter")
}
