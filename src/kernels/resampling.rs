//! Tables of resizing along one axis: which places of the input each place of the output sums, and with which weights.

use std::ops::Range;

/// A function of the distance, in places of the coarser grid, that weighs what falls into its support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Constant over one place.
    Box,
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = -1/2.
    Bicubic,
    /// A sinc windowed to three lobes.
    Lanczos,
}

/// How a picture is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// PyTorch's `nearest`.
    Nearest,
    /// PyTorch's `nearest-exact`.
    NearestExact,
    /// PyTorch's `area`: the mean of the places that an output place touches.
    Area,
    /// PyTorch's `bilinear` or `linear`, without antialiasing.
    Bilinear {
        /// Whether the first and last places of both grids lie on each other.
        align_corners: bool,
    },
    /// PyTorch's `bicubic` (a = -3/4), without antialiasing.
    Bicubic {
        /// As in [`Resize::Bilinear`].
        align_corners: bool,
    },
    /// PyTorch's `antialias=True` with `align_corners=False`, which knows [`Filter::Bilinear`] and [`Filter::Bicubic`].
    Antialias(Filter),
    /// Pillow's `Image.resize` of pictures in floating point (mode `F`).
    Pillow(Filter),
    /// Pillow's `Image.resize` of 8-bit pictures (values 0..255), whose weights have 22 binary places and whose two passes
    /// each round to whole numbers, columns before rows (as Pillow does up to version 12; 13 sometimes takes the rows first).
    Pillow8(Filter),
    /// PyTorch's `antialias=True` of 8-bit pictures (values 0..255) on a processor: weights of 16 bits, with as many binary places
    /// as the largest of an axis leaves; columns before rows, each pass rounded to whole numbers.
    Torch8(Filter),
}

/// What every place of the output is made of: a run of input places, as long for each, and their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    input: u32,
    taps: u32,
    starts: Vec<u32>,
    weights: Vec<f32>,
}

/// The tables of both axes of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Resampling {
    /// Along the height.
    pub rows: Table,
    /// Along the width.
    pub columns: Table,
    /// Whether each pass rounds to whole numbers in 0..255, as Pillow does with 8-bit pictures.
    pub quantize: bool,
}

impl Resampling {
    /// From [height, width] to [height, width].
    pub fn new(method: Resize, from: [u32; 2], to: [u32; 2]) -> Self {
        let [rows, columns] = [0, 1].map(|axis| Table::new(method, from[axis], to[axis]));
        Self { rows, columns, quantize: matches!(method, Resize::Pillow8(_) | Resize::Torch8(_)) }
    }
}

/// Of one output place: the first input place and the weights from there on.
type Window = (u32, Vec<f64>);

impl Table {
    /// The table of `method` from `input` places to `output` places, both at least 1.
    pub fn new(method: Resize, input: u32, output: u32) -> Self {
        let window = |i: u32| match method {
            Resize::Nearest => (nearest(i, input, output, 0.0), vec![1.0]),
            Resize::NearestExact => (nearest(i, input, output, 0.5), vec![1.0]),
            Resize::Area => area(i, input, output),
            Resize::Bilinear { align_corners } => bilinear(i, input, output, align_corners),
            Resize::Bicubic { align_corners } => bicubic(i, input, output, align_corners),
            Resize::Antialias(filter) => filtered(filter, single, i, input, output),
            Resize::Pillow(filter) => filtered(filter, |value| value, i, input, output),
            Resize::Pillow8(filter) => {
                let (first, weights) = filtered(filter, |value| value, i, input, output);
                let unit = f64::from(1u32 << 22);
                (first, weights.into_iter().map(|weight| (weight * unit).round() / unit).collect())
            }
            Resize::Torch8(filter) => filtered(filter, |value| value, i, input, output),
        };
        let windows = (0..output).map(window).collect();
        Self::of(input, if matches!(method, Resize::Torch8(_)) { in_16_bits(windows) } else { windows })
    }

    /// Windows of different lengths, as runs of one length inside the input.
    fn of(input: u32, windows: Vec<Window>) -> Self {
        let taps = windows.iter().map(|(_, weights)| weights.len()).max().unwrap_or(1);
        let (mut starts, mut table) = (Vec::new(), Vec::new());
        for (first, weights) in windows {
            let start = first.min(input - taps as u32);
            let lead = (first - start) as usize;
            starts.push(start);
            table.extend(std::iter::repeat_n(0.0, lead));
            table.extend(weights.iter().map(|weight| *weight as f32));
            table.extend(std::iter::repeat_n(0.0, taps - lead - weights.len()));
        }
        Self { input, taps: taps as u32, starts, weights: table }
    }

    /// The part of the table that makes the output places of `range`: a crop of the result.
    ///
    /// # Panics
    /// When the range is empty or reaches past the output.
    #[must_use]
    pub fn crop(&self, range: Range<u32>) -> Self {
        assert!(!range.is_empty() && range.end <= self.output(), "{range:?} of {}", self.output());
        let (begin, end, taps) = (range.start as usize, range.end as usize, self.taps as usize);
        let weights = self.weights[begin * taps..end * taps].to_vec();
        Self { starts: self.starts[begin..end].to_vec(), weights, ..*self }
    }

    /// The table that makes `count` output places from place `first` on; those that the output does not have are 0: a crop of the
    /// result, or the result with a border.
    #[must_use]
    pub fn window(&self, first: i64, count: u32) -> Self {
        let mut found = Self { input: self.input, taps: self.taps, starts: Vec::new(), weights: Vec::new() };
        for i in first..first + i64::from(count) {
            let inside = u32::try_from(i).ok().filter(|i| *i < self.output());
            // Starts do not fall.
            let before = found.starts.last().copied().unwrap_or(0);
            found.starts.push(inside.map_or(before, |i| self.start(i)));
            match inside {
                Some(i) => found.weights.extend_from_slice(self.weights(i)),
                None => found.weights.extend(std::iter::repeat_n(0.0, self.taps as usize)),
            }
        }
        found
    }

    /// The same with the sizes of its weights alone, for bounds of what rounding does.
    pub(crate) fn absolute(&self) -> Self {
        let weights = self.weights.iter().map(|weight| weight.abs()).collect();
        Self { starts: self.starts.clone(), weights, ..*self }
    }

    /// Places of the input.
    pub fn input(&self) -> u32 {
        self.input
    }

    /// Places of the output.
    pub fn output(&self) -> u32 {
        self.starts.len() as u32
    }

    /// Input places that an output place sums.
    pub fn taps(&self) -> u32 {
        self.taps
    }

    /// The first input place of output place `i`.
    pub fn start(&self, i: u32) -> u32 {
        self.starts[i as usize]
    }

    /// The weights of output place `i`.
    pub fn weights(&self, i: u32) -> &[f32] {
        &self.weights[(i * self.taps) as usize..][..self.taps as usize]
    }

    /// Whether it changes nothing.
    pub fn is_identity(&self) -> bool {
        let copies = |i: u32| {
            let mut weights = self.weights(i).iter().enumerate();
            weights.all(|(k, weight)| *weight == f32::from(u8::from(self.start(i) + k as u32 == i)))
        };
        self.input == self.output() && (0..self.input).all(copies)
    }

    /// As `shaders/resample.wgsl` reads it: for every output place its start, then its weights.
    pub fn packed(&self) -> Vec<f32> {
        (0..self.output()).flat_map(|i| std::iter::once(self.start(i) as f32).chain(self.weights(i).to_vec())).collect()
    }
}

/// Weights with the most binary places, at most 22, with which the largest stays below 2^15 (PyTorch,
/// `aten/src/ATen/native/cpu/UpSampleKernel.cpp`).
fn in_16_bits(windows: Vec<Window>) -> Vec<Window> {
    let largest = windows.iter().flat_map(|(_, weights)| weights).fold(0f64, |most, weight| most.max(*weight));
    let fits = |places: &i32| (0.5 + largest * f64::from(1u32 << (places + 1))).floor() < f64::from(1u32 << 15);
    let unit = f64::from(1u32 << (0..22).take_while(fits).count());
    let rounded = |weights: Vec<f64>| weights.into_iter().map(|weight| (weight * unit).round() / unit).collect();
    windows.into_iter().map(|(first, weights)| (first, rounded(weights))).collect()
}

/// f64 rounded to f32, applied after each step, is arithmetic in f32: what PyTorch does for f32 tensors. Where a place is
/// found by rounding down, anything else would choose another one now and then.
fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

fn nearest(i: u32, input: u32, output: u32, shift: f64) -> u32 {
    let scale = single(f64::from(input) / f64::from(output));
    (single(single(f64::from(i) + shift) * scale).floor() as u32).min(input - 1)
}

fn area(i: u32, input: u32, output: u32) -> Window {
    let [i, long, short] = [i, input, output].map(u64::from);
    let (begin, end) = (i * long / short, ((i + 1) * long).div_ceil(short));
    (begin as u32, vec![1.0 / (end - begin) as f64; (end - begin) as usize])
}

/// Where output place `i` lies on the input's grid.
fn place(i: u32, input: u32, output: u32, align_corners: bool) -> f64 {
    let [i, input, output] = [i, input, output].map(f64::from);
    if align_corners {
        let scale = if output > 1.0 { single((input - 1.0) / (output - 1.0)) } else { 0.0 };
        return single(scale * i);
    }
    single(single(single(input / output) * (i + 0.5)) - 0.5)
}

fn bilinear(i: u32, input: u32, output: u32, align_corners: bool) -> Window {
    let at = place(i, input, output, align_corners).max(0.0);
    let first = (at as u32).min(input - 1);
    let second = single((at - f64::from(first)).clamp(0.0, 1.0));
    if first + 1 == input { (first, vec![1.0]) } else { (first, vec![single(1.0 - second), second]) }
}

/// Places beyond the border repeat the last one inside, so their weights are added to its.
fn bicubic(i: u32, input: u32, output: u32, align_corners: bool) -> Window {
    let at = place(i, input, output, align_corners);
    let below = at.floor();
    let t = single(at - below).clamp(0.0, 1.0);
    let inside = |k: i64| (below as i64 + k).clamp(0, i64::from(input) - 1);
    let (first, last) = (inside(-1), inside(2));
    let mut weights = vec![0.0; (last - first + 1) as usize];
    for k in -1..=2 {
        weights[(inside(k) - first) as usize] += cubic((t - k as f64).abs(), -0.75);
    }
    (first as u32, weights)
}

fn cubic(x: f64, a: f64) -> f64 {
    match x {
        x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    }
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        // The sine of a multiple of pi, as f64 has it, is not quite 0, and a picture of the same size would not stay as it is.
        let sinc = |x: f64| match x.fract() == 0.0 {
            true => f64::from(u8::from(x == 0.0)),
            false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
        };
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => cubic(x.abs(), -0.5),
            Self::Lanczos if x.abs() < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// A filter as wide as the coarser grid demands, over the places inside the picture, normalised.
fn filtered(filter: Filter, round: fn(f64) -> f64, i: u32, input: u32, output: u32) -> Window {
    let scale = round(f64::from(input) / f64::from(output));
    let stretch = scale.max(1.0);
    let support = round(filter.support() * stretch);
    let center = round(scale * (f64::from(i) + 0.5));
    let begin = (round(round(center - support) + 0.5)).max(0.0).floor();
    let end = (round(round(center + support) + 0.5)).min(f64::from(input)).floor();
    let inverse = round(1.0 / stretch);
    let weight = |k: u32| filter.at(round(round(round(begin + f64::from(k)) - center + 0.5) * inverse));
    let weights: Vec<f64> = (0..(end - begin) as u32).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    (begin as u32, weights.into_iter().map(|weight| if sum == 0.0 { weight } else { weight / sum }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Resize; 14] = [
        Resize::Nearest,
        Resize::NearestExact,
        Resize::Area,
        Resize::Bilinear { align_corners: false },
        Resize::Bilinear { align_corners: true },
        Resize::Bicubic { align_corners: false },
        Resize::Bicubic { align_corners: true },
        Resize::Antialias(Filter::Bilinear),
        Resize::Antialias(Filter::Bicubic),
        Resize::Pillow(Filter::Box),
        Resize::Pillow(Filter::Bicubic),
        Resize::Pillow(Filter::Lanczos),
        Resize::Pillow8(Filter::Lanczos),
        Resize::Torch8(Filter::Bicubic),
    ];

    #[test]
    fn windows_lie_inside_do_not_fall_and_sum_to_one() {
        for method in ALL {
            for (input, output) in
                [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (224, 299), (299, 17), (64, 256), (613, 224)]
            {
                let table = Table::new(method, input, output);
                assert_eq!((table.input(), table.output()), (input, output));
                for i in 0..output {
                    assert!(table.start(i) + table.taps() <= input, "{method:?} {input} {output}");
                    assert!(i == 0 || table.start(i - 1) <= table.start(i), "{method:?} {input} {output}");
                    let sum: f32 = table.weights(i).iter().sum();
                    // Each weight of 16 bits is off by half of its last place.
                    let most = if matches!(method, Resize::Torch8(_)) { table.taps() as f32 / 32768.0 } else { 1e-5 };
                    assert!((sum - 1.0).abs() <= most, "{method:?} {input} {output}: {sum}");
                }
                assert_eq!(table.packed().len() as u32, output * (1 + table.taps()));
            }
        }
    }

    #[test]
    fn the_same_size_is_the_identity() {
        for method in ALL {
            assert!(Table::new(method, 9, 9).is_identity(), "{method:?}");
            assert!(!Table::new(method, 9, 8).is_identity(), "{method:?}");
        }
    }

    #[test]
    fn a_crop_is_a_part_of_the_whole() {
        let whole = Table::new(Resize::Pillow(Filter::Bicubic), 31, 12);
        let part = whole.crop(3..8);
        assert_eq!((part.input(), part.output()), (31, 5));
        assert!((0..5).all(|i| part.start(i) == whole.start(i + 3) && part.weights(i) == whole.weights(i + 3)));
    }

    #[test]
    fn a_window_may_reach_beyond() {
        let whole = Table::new(Resize::Torch8(Filter::Bicubic), 31, 12);
        assert_eq!(whole.window(3, 5), whole.crop(3..8));
        let wide = whole.window(-2, 17);
        assert_eq!((wide.input(), wide.output()), (31, 17));
        assert!((0..12).all(|i| wide.start(i + 2) == whole.start(i) && wide.weights(i + 2) == whole.weights(i)));
        for i in [0, 1, 14, 15, 16] {
            assert!(wide.weights(i).iter().all(|weight| *weight == 0.0));
            assert!(i == 0 || wide.start(i - 1) <= wide.start(i));
        }
        assert!(Table::new(Resize::Nearest, 4, 4).window(0, 4).is_identity());
        assert!(!Table::new(Resize::Nearest, 4, 4).window(-1, 4).is_identity());
    }
}
