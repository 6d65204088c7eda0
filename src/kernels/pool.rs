//! Pooling over windows: means and maxima, and, as a window of one place, nearest-neighbour enlargement.

use bytemuck::{Pod, Zeroable};

use super::bands::{self, Span};
use super::{Call, LANES, Launch, Limits, Variant, fold, folds, vector_bytes, vectors};
use crate::tensor::DType;

/// What is taken of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The mean of the places inside the picture (torch's `count_include_pad=False`).
    Mean,
    /// The mean of all places, those of the padding being zero (torch's default).
    PaddedMean,
    /// The largest of the places inside the picture.
    Max,
}

/// What to compute, over [B, H, W, C].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// B.
    pub batch: u32,
    /// Height and width as stored.
    pub input: [u32; 2],
    /// Height and width of the result.
    pub output: [u32; 2],
    /// C.
    pub channels: u32,
    /// What is taken of a window.
    pub mode: Mode,
    /// Height and width of the window.
    pub kernel: [u32; 2],
    /// From one window to the next, down and to the right.
    pub stride: [u32; 2],
    /// Places above and to the left of the picture, fewer than the window has; those below and to the right follow from
    /// the output's size.
    pub padding: [u32; 2],
    /// The picture is enlarged by this factor before, by nearest neighbour.
    pub enlarge: u32,
    /// Stored element type.
    pub dtype: DType,
}

/// The uniform of `shaders/pool.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    width4: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    pad_top: u32,
    pad_left: u32,
    enlarge: u32,
    x_base: u32,
    y_base: u32,
}

impl Pool {
    /// Windows of a `kernel` within a picture of `size` with `padding` on either side, `stride` apart.
    pub fn windows(size: u32, kernel: u32, stride: u32, padding: u32) -> u32 {
        (size + 2 * padding).saturating_sub(kernel) / stride + 1
    }

    /// The stored lines that the window of output line `line` covers, counted over the batch.
    fn lines(&self, line: u64) -> (u64, u64) {
        let [height, out_height] = [self.input[0], self.output[0]].map(u64::from);
        let (image, place) = (line / out_height, line % out_height * u64::from(self.stride[0]));
        let padding = u64::from(self.padding[0]);
        let begin = place.saturating_sub(padding) / u64::from(self.enlarge);
        let end = (place + u64::from(self.kernel[0]) - padding).div_ceil(u64::from(self.enlarge)).min(height);
        (image * height + begin.min(height - 1), image * height + end)
    }

    /// What the output lines `begin..end` read and write.
    fn spans(&self, begin: u64, end: u64, limits: &Limits) -> [Span; 2] {
        let vector = vector_bytes(self.dtype);
        let line = |width: u32| u64::from(width) * u64::from(vectors(self.channels)) * vector;
        let (first, last) = (self.lines(begin).0, self.lines(end - 1).1);
        [
            bands::span(first, last, line(self.input[1]), vector, limits),
            bands::span(begin, end, line(self.output[1]), vector, limits),
        ]
    }

    fn params(&self, begin: u64, end: u64, parts: &[Span; 2]) -> Params {
        let width4 = vectors(self.channels);
        let line = u64::from(self.output[1] * width4);
        Params {
            begin: (begin * line) as u32,
            end: (end * line) as u32,
            width4,
            height: self.input[0] * self.enlarge,
            width: self.input[1] * self.enlarge,
            out_height: self.output[0],
            out_width: self.output[1],
            kernel_height: self.kernel[0],
            kernel_width: self.kernel[1],
            stride_y: self.stride[0],
            stride_x: self.stride[1],
            pad_top: self.padding[0],
            pad_left: self.padding[1],
            enlarge: self.enlarge,
            x_base: parts[0].base,
            y_base: parts[1].base,
        }
    }
}

/// x [B, H, W, C] -> y [B, OH, OW, C]. `None` when the lines that one output line needs are larger than a binding.
pub fn call(config: &Pool, limits: &Limits) -> Option<Call> {
    let line = u64::from(config.output[1]) * u64::from(vectors(config.channels));
    let lines = u64::from(config.batch) * u64::from(config.output[0]);
    let fits = |begin: u64, end: u64| {
        config.spans(begin, end, limits).iter().all(|part| part.size <= limits.binding)
            && folds(((end - begin) * line).div_ceil(LANES), limits)
    };
    let launches = bands::split(lines, fits)?.into_iter().map(|(begin, end)| {
        let parts = config.spans(begin, end, limits);
        Launch {
            params: bytemuck::bytes_of(&config.params(begin, end, &parts)).to_vec(),
            workgroups: fold(((end - begin) * line).div_ceil(LANES), limits),
            ranges: parts.iter().map(|part| Some((part.offset, part.size))).collect(),
        }
    });
    let outputs = lines * u64::from(config.output[1]) * u64::from(config.channels);
    let inputs = u64::from(config.batch * config.channels) * u64::from(config.input[0]) * u64::from(config.input[1]);
    let mode = match config.mode {
        Mode::Mean => 0,
        Mode::PaddedMean => 1,
        Mode::Max => 2,
    };
    Some(Call {
        variant: Variant {
            stem: "pool",
            enables: vec![],
            constants: vec![("MODE", mode)],
            types: vec![("X", config.dtype), ("Y", config.dtype)],
        },
        launches: launches.collect(),
        flops: outputs * u64::from(config.kernel[0] * config.kernel[1]),
        bytes: (inputs + outputs) * config.dtype.bytes() as u64,
    })
}

/// The same in f64.
pub fn reference(config: &Pool, x: &[f64]) -> Vec<f64> {
    let [height, width] = config.input.map(|side| i64::from(side * config.enlarge));
    let (channels, enlarge) = (config.channels as usize, i64::from(config.enlarge));
    let place =
        |out: u32, axis: usize, k: u32| i64::from(out * config.stride[axis] + k) - i64::from(config.padding[axis]);
    let mut y = Vec::new();
    for image in 0..config.batch as usize {
        for (i, j) in (0..config.output[0]).flat_map(|i| (0..config.output[1]).map(move |j| (i, j))) {
            let rows = (0..config.kernel[0]).map(|k| place(i, 0, k)).filter(|row| (0..height).contains(row));
            let columns = || (0..config.kernel[1]).map(|k| place(j, 1, k)).filter(|column| (0..width).contains(column));
            let inside: Vec<(i64, i64)> = rows.flat_map(|row| columns().map(move |column| (row, column))).collect();
            for channel in 0..channels {
                let at = |(row, column): &(i64, i64)| {
                    let line = image * config.input[0] as usize + (row / enlarge) as usize;
                    x[(line * config.input[1] as usize + (column / enlarge) as usize) * channels + channel]
                };
                let values = inside.iter().map(at);
                y.push(match config.mode {
                    Mode::Mean => values.sum::<f64>() / inside.len() as f64,
                    Mode::PaddedMean => values.sum::<f64>() / f64::from(config.kernel[0] * config.kernel[1]),
                    Mode::Max => values.fold(f64::NEG_INFINITY, f64::max),
                });
            }
        }
    }
    y
}
