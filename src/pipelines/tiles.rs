//! A picture in tiles: equal, overlapping ones, enlarged each by itself and blended where they overlap.
//!
//! Across an overlap a tile's weight rises linearly from 0 at its edge to 1 at the edge of its neighbour, and at the picture's
//! borders it is 1; the weighted pictures are added and divided by the weights' sum (feathering). Blending is about
//! finished pictures, on the host, which has to hold them anyway to write them.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// The smallest side of a tile.
const LEAST: u32 = 16;

/// How large the tiles are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TileSide {
    /// The whole picture where memory suffices for it, else the largest of some sizes that fits.
    #[default]
    Auto,
    /// The whole picture.
    Off,
    /// Squares of this side in pixels of the picture that is enlarged; smaller where the picture is.
    Px(u32),
}

impl FromStr for TileSide {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match (word, word.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("off", _) => Ok(Self::Off),
            (_, Ok(side)) if side >= LEAST => Ok(Self::Px(side)),
            _ => Err(Error::usage("side of a tile")
                .at("--tile")
                .expected(format!("auto, off or pixels, at least {LEAST}"))
                .found(format!("{word:?}"))),
        }
    }
}

/// Where tiles lie in a picture, in its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Height and width of the picture.
    picture: [u32; 2],
    /// Height and width of every tile.
    tile: [u32; 2],
    /// Where tiles begin along either axis.
    starts: [Vec<u32>; 2],
}

impl Grid {
    /// Tiles of `side` over a `picture` [height, width]: as few as overlap by at least a quarter, at equal distances.
    pub fn new(picture: [u32; 2], side: u32) -> Self {
        let tile = picture.map(|length| length.min(side));
        let starts = picture.map(|length| {
            if length <= side {
                return vec![0];
            }
            let overlap = (side / 4).max(1);
            let last = (length - overlap).div_ceil(side - overlap) - 1;
            (0..=last).map(|i| (i * (length - side) + last / 2) / last).collect()
        });
        Self { picture, tile, starts }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.starts[0].len() * self.starts[1].len()
    }

    /// Height and width of every tile.
    pub fn tile(&self) -> [u32; 2] {
        self.tile
    }

    /// Row and column of tile `index`, rows first.
    fn place(&self, index: usize) -> [usize; 2] {
        [index / self.starts[1].len(), index % self.starts[1].len()]
    }

    /// Tile `index` of a tensor [1, C, H, W] that is as large as the picture.
    pub fn cut(&self, picture: &HostTensor, index: usize) -> HostTensor {
        let [row, column] = self.place(index);
        let [top, left] = [self.starts[0][row], self.starts[1][column]].map(|start| start as usize);
        let [height, width] = self.tile.map(|side| side as usize);
        let [channels, tall, wide] = [picture.shape[1], picture.shape[2], picture.shape[3]];
        let mut data = Vec::with_capacity(channels * height * width);
        for channel in 0..channels {
            for y in top..top + height {
                let begin = (channel * tall + y) * wide + left;
                data.extend_from_slice(&picture.data[begin..begin + width]);
            }
        }
        HostTensor { shape: vec![1, channels, height, width], data }
    }

    /// The weights of tile `number` along an axis, in pixels enlarged `factor` times.
    fn weights(&self, axis: usize, number: usize, factor: u32) -> Vec<f32> {
        let (starts, side) = (&self.starts[axis], self.tile[axis]);
        let ramp = |overlap: u32, from_edge: u32| ((from_edge as f32 + 0.5) / (overlap * factor) as f32).min(1.0);
        let before = number.checked_sub(1).map(|before| starts[before] + side - starts[number]);
        let after = starts.get(number + 1).map(|after| starts[number] + side - after);
        let length = side * factor;
        let weight = |place: u32| {
            let rise = before.map_or(1.0, |overlap| ramp(overlap, place));
            rise * after.map_or(1.0, |overlap| ramp(overlap, length - 1 - place))
        };
        (0..length).map(weight).collect()
    }
}

/// The enlarged picture in the making.
pub struct Blend {
    grid: Grid,
    factor: u32,
    /// [3, H, W].
    sums: Vec<f32>,
    /// [H, W].
    weights: Vec<f32>,
}

impl Blend {
    /// An empty picture `factor` times as large as that of `grid`.
    pub fn new(grid: Grid, factor: u32) -> Self {
        let pixels = grid.picture.iter().map(|side| (side * factor) as usize).product::<usize>();
        Self { grid, factor, sums: vec![0.0; 3 * pixels], weights: vec![0.0; pixels] }
    }

    /// Adds tile `index`, enlarged: [1, 3, H, W].
    pub fn add(&mut self, index: usize, tile: &HostTensor) {
        let Self { grid, factor, sums, weights } = self;
        let places = grid.place(index);
        let [down, across] = [0, 1].map(|axis| grid.weights(axis, places[axis], *factor));
        let [top, left] = [0, 1].map(|axis| (grid.starts[axis][places[axis]] * *factor) as usize);
        let [tall, wide] = grid.picture.map(|side| (side * *factor) as usize);
        let [height, width] = [down.len(), across.len()];
        for channel in 0..3 {
            for (y, row) in down.iter().enumerate() {
                let from = &tile.data[(channel * height + y) * width..][..width];
                let into = &mut sums[(channel * tall + top + y) * wide + left..][..width];
                into.iter_mut().zip(from).zip(&across).for_each(|((sum, value), weight)| *sum += row * weight * value);
            }
        }
        for (y, row) in down.iter().enumerate() {
            let into = &mut weights[(top + y) * wide + left..][..width];
            into.iter_mut().zip(&across).for_each(|(sum, weight)| *sum += row * weight);
        }
    }

    /// The blended picture [1, 3, H, W].
    pub fn finish(self) -> HostTensor {
        let Self { grid, factor, mut sums, weights } = self;
        let [tall, wide] = grid.picture.map(|side| (side * factor) as usize);
        for plane in sums.chunks_exact_mut(weights.len()) {
            plane.iter_mut().zip(&weights).for_each(|(sum, weight)| *sum /= weight);
        }
        HostTensor { shape: vec![1, 3, tall, wide], data: sums }
    }
}

/// Red, green and blue of each pixel of a picture [1, 3, H, W] around -1..1, rounded as `shaders/pixels.wgsl` rounds.
pub fn bytes(picture: &HostTensor) -> Vec<u8> {
    let pixels = picture.data.len() / 3;
    let byte = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    (0..pixels).flat_map(|at| [0, 1, 2].map(|channel| byte(picture.data[channel * pixels + at]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: u32, width: u32) -> HostTensor {
        let count = 3 * height * width;
        let data = (0..count).map(|i| ((i * 7919) % 255) as f32 / 127.5 - 1.0).collect();
        HostTensor { shape: vec![1, 3, height as usize, width as usize], data }
    }

    fn enlarged(tile: &HostTensor, factor: usize) -> HostTensor {
        let [height, width] = [tile.shape[2], tile.shape[3]];
        let at = |channel: usize, y: usize, x: usize| tile.data[(channel * height + y / factor) * width + x / factor];
        let (tall, wide) = (height * factor, width * factor);
        let data = (0..3 * tall * wide).map(|i| at(i / (tall * wide), i / wide % tall, i % wide)).collect();
        HostTensor { shape: vec![1, 3, tall, wide], data }
    }

    /// Tiles of a picture that is enlarged by repeating its pixels blend to the same picture.
    #[test]
    fn tiles_cover_and_blend() {
        for (height, width, side) in
            [(40, 64, 16), (33, 17, 16), (50, 16, 32), (16, 16, 16), (97, 41, 23), (16, 200, 64)]
        {
            let grid = Grid::new([height, width], side);
            let whole = picture(height, width);
            let mut blend = Blend::new(grid.clone(), 2);
            for index in 0..grid.count() {
                let tile = grid.cut(&whole, index);
                assert_eq!(tile.shape[2..], grid.tile().map(|side| side as usize));
                blend.add(index, &enlarged(&tile, 2));
            }
            let (got, want) = (blend.finish(), enlarged(&whole, 2));
            assert_eq!(got.shape, want.shape);
            // Sums of up to nine products in f32, divided by a sum of the same weights.
            let worst = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5, "{height} x {width} by {side}: {worst}");
        }
    }

    #[test]
    fn neighbours_overlap_by_a_quarter() {
        for length in 17..300 {
            for side in [16, 24, 64] {
                let grid = Grid::new([length, 8], side);
                let starts = &grid.starts[0];
                let end = starts.last().unwrap() + grid.tile[0];
                assert_eq!((starts[0], end), (0, length), "{length} by {side}");
                assert!(
                    starts.windows(2).all(|pair| pair[0] + side - pair[1] >= side / 4),
                    "{length} by {side}: {starts:?}"
                );
                assert_eq!(grid.count() == 1, length <= side);
            }
        }
    }

    #[test]
    fn sides_are_read() {
        assert_eq!("auto".parse::<TileSide>().unwrap(), TileSide::Auto);
        assert_eq!("off".parse::<TileSide>().unwrap(), TileSide::Off);
        assert_eq!("128".parse::<TileSide>().unwrap(), TileSide::Px(128));
        for wrong in ["", "on", "15", "-64", "1e3", "64px"] {
            assert!(wrong.parse::<TileSide>().unwrap_err().to_string().contains("--tile"), "{wrong}");
        }
    }
}
