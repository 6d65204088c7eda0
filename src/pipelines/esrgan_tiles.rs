//! A picture in windows that an upscaler enlarges one after the other: where they lie, and which part of each is kept.

use std::ops::Range;

use super::decode::Tiling;
use super::tiles::TileSide;
use crate::tensor::HostTensor;

/// Pixels around a tile that are computed and thrown away, where the network does not end sooner: what reaches further has
/// passed dozens of convolutions, each of whose dense blocks counts a fifth. (Real-ESRGAN's own program has 10.)
const OVERLAP: u32 = 32;
/// Sides of tiles that are tried until one fits.
const SIDES: [u32; 12] = [2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 32];
/// What a picture may take on the adapter where nobody says, in bytes: no adapter tells how much it has, and most have this.
const BUDGET: u64 = 4 << 30;

/// Bytes that an upscaler may take.
pub(super) fn budget(tile: TileSide, tiling: Tiling) -> u64 {
    match (tile, tiling) {
        (TileSide::Auto, Tiling::Auto(Some(budget))) => budget,
        (TileSide::Auto, _) => BUDGET,
        (TileSide::Px(_) | TileSide::Off, _) => u64::MAX,
    }
}

/// The sides of tiles to try for a picture of `size` [height, width], the largest first; `None` is the whole picture.
pub(super) fn sides(tile: TileSide, size: [u32; 2]) -> Vec<Option<u32>> {
    let largest = size[0].max(size[1]);
    match tile {
        TileSide::Off => vec![None],
        TileSide::Px(side) => vec![Some(side)],
        TileSide::Auto => {
            let smaller = SIDES.into_iter().filter(|side| side + 2 * OVERLAP < largest);
            [None].into_iter().chain(smaller.map(Some)).collect()
        }
    }
}

/// One axis in windows of the same length, which overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Axis {
    /// Pixels of a window.
    pub window: u32,
    /// Where each begins, and which pixels are taken from it, of all.
    pub parts: Vec<(u32, Range<u32>)>,
}

impl Axis {
    /// Of `length` pixels, tiles of `side` (all where there is none) and what is around them, as far as a network reaches
    /// `reach` pixels. Windows begin at multiples of `unit`, of which `length` is one.
    pub fn new(length: u32, side: Option<u32>, reach: u32, unit: u32) -> Self {
        let overlap = reach.min(OVERLAP);
        let window = side.map_or(length, |side| (side.max(unit) + 2 * overlap).next_multiple_of(unit).min(length));
        if window == length {
            return Self { window, parts: vec![(0, 0..length)] };
        }
        // Rounding down to units brings neighbours apart by less than one.
        let step = (window - 2 * overlap - (unit - 1)).max(1);
        let count = (length - window).div_ceil(step);
        let start = |index: u32| {
            let exact = u64::from(index) * u64::from(length - window) / u64::from(count);
            exact as u32 / unit * unit
        };
        // Two neighbours meet in the middle of what both have.
        let seam = |index: u32| (start(index) + window + start(index + 1)) / 2;
        let begin = |index: u32| if index == 0 { 0 } else { seam(index - 1) };
        let end = |index: u32| if index == count { length } else { seam(index) };
        Self { window, parts: (0..=count).map(|index| (start(index), begin(index)..end(index))).collect() }
    }
}

/// The windows of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tiles {
    pub rows: Axis,
    pub columns: Axis,
}

impl Tiles {
    /// For a picture of `size` [height, width], rounded up to `unit`; see [`Axis::new`].
    pub fn new(size: [u32; 2], side: Option<u32>, reach: u32, unit: u32) -> Self {
        let [rows, columns] = size.map(|length| Axis::new(length.next_multiple_of(unit), side, reach, unit));
        Self { rows, columns }
    }

    /// Height and width of every window.
    pub fn window(&self) -> [u32; 2] {
        [self.rows.window, self.columns.window]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.parts.len() * self.columns.parts.len()
    }

    /// Rows and columns of window `index`, row by row.
    pub fn part(&self, index: usize) -> [&(u32, Range<u32>); 2] {
        let across = self.columns.parts.len();
        [&self.rows.parts[index / across], &self.columns.parts[index % across]]
    }
}

/// The window of `size` [height, width] that begins at `corner` of picture [1, 3, H, W], which is mirrored beyond its last row
/// and column, as [1, h / u, w / u, 3 u u]: the u u pixels of a square one after the other, row by row, of each colour
/// (PyTorch's `pixel_unshuffle`).
pub(super) fn unshuffled(picture: &HostTensor, corner: [u32; 2], size: [u32; 2], unit: u32) -> HostTensor {
    let [height, width] = [picture.shape[2], picture.shape[3]];
    let mirrored = |place: u32, length: usize| {
        let place = place as usize;
        if place < length { place } else { (2 * length).saturating_sub(2 + place) }
    };
    let [rows, columns] = size.map(|length| length / unit);
    let channels = (picture.shape[1] as u32 * unit * unit) as usize;
    let mut data = Vec::with_capacity((rows * columns) as usize * channels);
    for row in 0..rows {
        for column in 0..columns {
            for plane in picture.data.chunks_exact(height * width) {
                for y in 0..unit {
                    let line = mirrored(corner[0] + row * unit + y, height) * width;
                    data.extend((0..unit).map(|x| plane[line + mirrored(corner[1] + column * unit + x, width)]));
                }
            }
        }
    }
    HostTensor { shape: vec![1, rows as usize, columns as usize, channels], data }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn windows_cover_an_axis_and_overlap(
            units in 1u32..700, unit in 1u32..5, side in proptest::option::of(1u32..600), reach in 5u32..400,
        ) {
            let length = units * unit;
            let axis = Axis::new(length, side, reach, unit);
            let (last, kept) = (axis.parts.len() - 1, |index: usize| axis.parts[index].1.clone());
            proptest::prop_assert_eq!((kept(0).start, kept(last).end), (0, length));
            proptest::prop_assert!((0..last).all(|index| kept(index).end == kept(index + 1).start));
            for (index, (start, kept)) in axis.parts.iter().enumerate() {
                proptest::prop_assert!(start % unit == 0 && axis.window.is_multiple_of(unit) && !kept.is_empty());
                let overlap = reach.min(OVERLAP);
                let before = if index == 0 { 0 } else { overlap };
                let behind = if index == last { 0 } else { overlap };
                proptest::prop_assert!(start + before <= kept.start && kept.end + behind <= start + axis.window);
                proptest::prop_assert!(start + axis.window <= length);
            }
        }
    }

    #[test]
    fn pixels_become_channels_as_in_pytorch() {
        let picture = HostTensor { shape: vec![1, 2, 3, 2], data: (0..12).map(|value| value as f32).collect() };
        let got = unshuffled(&picture, [0, 0], [4, 2], 2);
        assert_eq!(got.shape, [1, 2, 1, 8]);
        // The fourth row is the second, mirrored at the third.
        assert_eq!(got.data, [0., 1., 2., 3., 6., 7., 8., 9., 4., 5., 2., 3., 10., 11., 8., 9.]);
        let plain = unshuffled(&picture, [1, 1], [2, 1], 1);
        assert_eq!((plain.shape, plain.data), (vec![1, 2, 1, 2], vec![3., 9., 5., 11.]));
        let line = HostTensor { shape: vec![1, 1, 1, 1], data: vec![7.0] };
        assert_eq!(unshuffled(&line, [0, 0], [4, 4], 4).data, [7.0; 16]);
    }

    #[test]
    fn sides_shrink_until_they_fit() {
        assert_eq!(sides(TileSide::Px(9), [4, 4]), [Some(9)]);
        assert_eq!(sides(TileSide::Off, [9000, 4]), [None]);
        assert_eq!(sides(TileSide::Auto, [64, 200]), [None, Some(128), Some(96), Some(64), Some(32)]);
        assert_eq!(budget(TileSide::Auto, Tiling::Auto(Some(7))), 7);
        assert_eq!(
            (budget(TileSide::Auto, Tiling::default()), budget(TileSide::Off, Tiling::Auto(Some(7)))),
            (BUDGET, u64::MAX)
        );
    }
}
