//! GroupNorm with an optional scale and shift, of a picture or of a place, and an activation over one tensor or two side by side, in two
//! kernels: statistics per chunk of rows, then the application, whose every workgroup combines the few statistics that it needs.

use bytemuck::{Pod, Zeroable};

use super::elementwise::Activation;
use super::{Call, Launch, Limits, Variant, bands, vector_bytes, vectors};
use crate::tensor::DType;

/// Invocations of a workgroup.
const LANES: u32 = 256;
/// Columns of a tile at the most, unless one group is wider: 160 bytes of halves, so that reads stay coalesced.
const TILE: u32 = 20;
/// Rows that one invocation reads before it computes.
const DEPTH: u32 = 8;

/// What to compute, over [B, P, C].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// B.
    pub batch: u32,
    /// P = H * W.
    pub positions: u32,
    /// C, of both sources.
    pub channels: u32,
    /// How many of the channels, the last ones, the second source holds; 0 when there is one source.
    pub second: u32,
    /// Divides C.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Whether the result is multiplied by 1 plus a scale and a shift is added, which every picture has of its own; or by a
    /// scale, where every place has.
    pub modulation: Option<Modulation>,
    /// Applied last: none, SiLU or GELU.
    pub activation: Activation,
    /// Stored element type of the inputs and the output.
    pub dtype: DType,
}

/// Where the scales and the shifts of the channels lie in a row, one a picture, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modulation {
    /// Channels of the row.
    pub channels: u32,
    /// First channel of the scales, a multiple of four.
    pub scale: u32,
    /// First channel of the shifts, a multiple of four.
    pub shift: u32,
    /// Places that have a row of their own, rather than pictures; there is no 1 plus then.
    pub grid: Option<Grid>,
}

/// A grid of rows, coarser than the picture or as fine: every place has that of the cell it lies in (`nearest`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Places of a line of the picture, a multiple of `factor`.
    pub width: u32,
    /// Places of a cell along either axis; divides the picture's height, too.
    pub factor: u32,
}

impl Grid {
    /// Cells of a picture of `positions` places.
    fn cells(self, positions: u32) -> u32 {
        positions / self.width / self.factor * (self.width / self.factor)
    }

    /// The first cell of the line of cells in which a place lies.
    fn line(self, position: u64) -> u64 {
        position / u64::from(self.width) / u64::from(self.factor) * u64::from(self.width / self.factor)
    }
}

/// How the columns (vectors of four channels) are shared out: whole groups to every workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    tile: u32,
    tiles: u32,
    members: u32,
    strips: u32,
}

impl GroupNorm {
    /// Whether a group has more vectors than a workgroup has invocations, which the shaders cannot take.
    pub fn too_wide(&self) -> bool {
        self.tiling().tile > LANES
    }

    fn per_group(&self) -> u32 {
        self.channels / self.groups
    }

    fn tiling(&self) -> Tiling {
        let (width, per_group) = (vectors(self.channels), self.per_group());
        // The fewest columns that end where a group ends.
        let unit = match per_group % 4 {
            0 => per_group / 4,
            2 => per_group / 2,
            _ => per_group,
        };
        let whole = width <= TILE || unit >= width;
        let tile = if whole {
            width
        } else {
            // The least waste in the last tile, then the widest.
            let waste = |tile: u32| (width.next_multiple_of(tile) - width, std::cmp::Reverse(tile));
            (1..=(TILE / unit).max(1)).map(|count| count * unit).min_by_key(|tile| waste(*tile)).unwrap_or(unit)
        };
        let members = if whole { self.groups } else { tile * 4 / per_group };
        Tiling { tile, tiles: width.div_ceil(tile), members, strips: (LANES / tile).max(1) }
    }

    /// Rows of a chunk, whose statistics one workgroup computes: few enough workgroups that combining their results is
    /// cheap, enough of them to fill a GPU.
    fn chunk(&self, limits: &Limits) -> u32 {
        let Tiling { tiles, strips, .. } = self.tiling();
        if limits.lanes() {
            return self.block(limits);
        }
        let wanted = (self.positions * tiles).div_ceil(256).clamp(2 * strips, DEPTH * strips);
        let rows = wanted.max(self.positions.div_ceil(128));
        rows.next_multiple_of(if rows > DEPTH * strips { DEPTH * strips } else { strips })
    }

    /// Rows of a workgroup of the application.
    fn block(&self, limits: &Limits) -> u32 {
        let Tiling { tiles, strips, .. } = self.tiling();
        let rows = if limits.lanes() {
            (2 * DEPTH * strips).max(self.positions.div_ceil(64))
        } else {
            (DEPTH * strips).max((self.positions * tiles).div_ceil(512))
        };
        rows.next_multiple_of(DEPTH * strips)
    }

    /// Chunks of rows of one batch element.
    pub fn chunks(&self, limits: &Limits) -> u32 {
        self.positions.div_ceil(self.chunk(limits))
    }

    fn grid(&self) -> Option<Grid> {
        self.modulation?.grid
    }

    /// The row of the modulation that row `row` of x reads.
    pub(super) fn modulation_row(&self, row: usize) -> usize {
        let (image, place) = (row / self.positions as usize, row % self.positions as usize);
        let Some(grid) = self.grid() else { return image };
        let (width, factor) = (grid.width as usize, grid.factor as usize);
        let cell = place / width / factor * (width / factor) + place % width / factor;
        image * grid.cells(self.positions) as usize + cell
    }

    /// Rows of the modulation.
    pub fn modulation_rows(&self) -> u32 {
        self.batch * self.grid().map_or(1, |grid| grid.cells(self.positions))
    }

    /// The channels of each source.
    fn parts(&self) -> [u32; 2] {
        [self.channels - self.second, if self.second == 0 { self.channels } else { self.second }]
    }

    /// How the shaders read: one source, or where the second begins.
    fn seam(&self) -> u32 {
        match (self.second, (self.channels - self.second) % 4) {
            (0, _) => 0,
            (_, 0) => 1,
            _ => 2,
        }
    }

    /// Blocks of `block` rows cut into dispatches; `tensors` are the channels of every row-mapped binding, behind which
    /// comes the grid's, if `grid` is one. Returns the first block, how many, and the bound parts.
    fn bands(
        &self,
        block: u32,
        tensors: &[u32],
        grid: Option<(u32, Grid)>,
        limits: &Limits,
    ) -> Option<Vec<(u32, u32, Vec<bands::Span>)>> {
        let positions = u64::from(self.positions);
        let blocks = positions.div_ceil(u64::from(block));
        let row = |index: u64| index / blocks * positions + (index % blocks * u64::from(block)).min(positions);
        let vector = vector_bytes(self.dtype);
        let spans = |begin: u64, end: u64| -> Vec<bands::Span> {
            let bytes = tensors.iter().map(|channels| u64::from(vectors(*channels)) * vector);
            let rows = bytes.map(|bytes| bands::span(row(begin), row(end), bytes, vector, limits));
            rows.chain(grid.map(|grid| self.cells(row(begin), row(end), grid, limits))).collect()
        };
        let fits = |begin: u64, end: u64| {
            end - begin <= u64::from(limits.workgroups)
                && spans(begin, end).iter().all(|part| part.size <= limits.binding)
        };
        let bands = bands::split(blocks * u64::from(self.batch), fits)?;
        Some(bands.into_iter().map(|(begin, end)| (begin as u32, (end - begin) as u32, spans(begin, end))).collect())
    }

    /// The part of the grid's rows of `channels` channels that the rows `begin .. end` read, whole lines of cells.
    fn cells(&self, begin: u64, end: u64, (channels, grid): (u32, Grid), limits: &Limits) -> bands::Span {
        let (positions, all) = (u64::from(self.positions), u64::from(grid.cells(self.positions)));
        let line = |row: u64| row / positions * all + grid.line(row % positions);
        let vector = vector_bytes(DType::F32);
        let last = line(end - 1) + u64::from(grid.width / grid.factor);
        bands::span(line(begin), last, u64::from(vectors(channels)) * vector, vector, limits)
    }

    fn params(&self, block: u32, first: u32, parts: &[bands::Span], limits: &Limits) -> Params {
        let (tiling, [channels_a, channels_b]) = (self.tiling(), self.parts());
        let chunks = self.chunks(limits);
        Params {
            positions: self.positions,
            channels: self.channels,
            width: vectors(self.channels),
            channels_a,
            width_a: vectors(channels_a),
            width_b: vectors(channels_b),
            a_base: parts[0].base,
            b_base: parts[1].base,
            per_group: self.per_group(),
            groups: self.groups,
            members: tiling.members,
            tile: tiling.tile,
            strips: tiling.strips,
            block,
            blocks: self.positions.div_ceil(block),
            first,
            chunks,
            share: (LANES / tiling.members).min(chunks).min(16),
            eps: self.eps,
            y_base: parts.get(2).map_or(0, |part| part.base),
            modulation_width: self.modulation.map_or(0, |part| vectors(part.channels)),
            scale_first: self.modulation.map_or(0, |part| part.scale / 4),
            shift_first: self.modulation.map_or(0, |part| part.shift / 4),
            grid_width: self.grid().map_or(1, |grid| grid.width),
            factor: self.grid().map_or(1, |grid| grid.factor),
            modulation_base: parts.get(3).map_or(0, |part| part.base),
            pad0: 0,
            pad1: 0,
        }
    }
}

/// The uniform of `shaders/group_norm_stats.wgsl` and `shaders/group_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    positions: u32,
    channels: u32,
    width: u32,
    channels_a: u32,
    width_a: u32,
    width_b: u32,
    a_base: u32,
    b_base: u32,
    per_group: u32,
    groups: u32,
    members: u32,
    tile: u32,
    strips: u32,
    block: u32,
    blocks: u32,
    first: u32,
    chunks: u32,
    share: u32,
    eps: f32,
    y_base: u32,
    modulation_width: u32,
    scale_first: u32,
    shift_first: u32,
    grid_width: u32,
    factor: u32,
    modulation_base: u32,
    pad0: u32,
    pad1: u32,
}

fn bound(parts: &[bands::Span]) -> impl Iterator<Item = Option<(u64, u64)>> {
    parts.iter().map(|part| Some((part.offset, part.size)))
}

/// a, b (a again when there is one source) -> partials [B, groups, chunks, 4] in f32: mean, M2 and count of a group's part.
/// `None` when a chunk of rows is larger than a binding.
pub fn stats(config: &GroupNorm, limits: &Limits) -> Option<Call> {
    let chunk = config.chunk(limits);
    let launches =
        config.bands(chunk, &config.parts(), None, limits)?.into_iter().map(|(first, count, parts)| Launch {
            params: bytemuck::bytes_of(&config.params(chunk, first, &parts, limits)).to_vec(),
            workgroups: [config.tiling().tiles, count, 1],
            ranges: bound(&parts).chain([None]).collect(),
        });
    let elements = u64::from(config.batch * config.positions) * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: "group_norm_stats",
            enables: vec![],
            constants: vec![("SEAM", config.seam())],
            types: vec![("X", config.dtype)],
        },
        launches: launches.collect(),
        flops: 4 * elements,
        bytes: elements * config.dtype.bytes() as u64,
    })
}

/// a, b (a again when there is one source), partials, weight, bias and, where there is a modulation, its rows
/// [`GroupNorm::modulation_rows`] -> y [B, P, C]. `None` when a block of rows is larger than a binding.
///
/// # Panics
/// When the activation is another than none, SiLU and GELU.
pub fn apply(config: &GroupNorm, limits: &Limits) -> Option<Call> {
    let block = config.block(limits);
    let known = matches!(config.activation, Activation::None | Activation::Silu | Activation::Gelu);
    assert!(known, "group_norm has no {:?}", config.activation);
    let modulated = u32::from(config.modulation.is_some());
    let spatial = u32::from(config.grid().is_some());
    let [a, b] = config.parts();
    let grid = config.modulation.and_then(|part| Some((part.channels, part.grid?)));
    let bands = config.bands(block, &[a, b, config.channels], grid, limits)?;
    let launches = bands.into_iter().map(|(first, count, parts)| {
        // Rows of modulation that belong to pictures are bound whole.
        let modulation = config.modulation.map(|_| bound(&parts[3..]).next().flatten());
        let read = bound(&parts[..2]).chain([None; 3]).chain(modulation);
        Launch {
            params: bytemuck::bytes_of(&config.params(block, first, &parts, limits)).to_vec(),
            workgroups: [config.tiling().tiles, count, 1],
            ranges: read.chain(bound(&parts[2..3])).collect(),
        }
    });
    let elements = u64::from(config.batch * config.positions) * u64::from(config.channels);
    Some(Call {
        variant: Variant {
            stem: "group_norm",
            enables: vec![],
            constants: vec![
                ("SEAM", config.seam()),
                ("SILU", u32::from(config.activation == Activation::Silu)),
                ("GELU", u32::from(config.activation == Activation::Gelu)),
                ("BOUND", modulated),
                ("MODULATED", modulated - spatial),
                ("SPATIAL", spatial),
                ("LAST", 6 + modulated),
            ],
            types: vec![("X", config.dtype), ("Y", config.dtype)],
        },
        launches: launches.collect(),
        flops: 6 * elements,
        bytes: 2 * elements * config.dtype.bytes() as u64,
    })
}

/// The same in f64, over x [B, P, C]; `modulation` [B, modulation channels] is read where there is one.
pub fn reference(config: &GroupNorm, x: &[f64], weight: &[f64], bias: &[f64], modulation: &[f64]) -> Vec<f64> {
    let (positions, channels) = (config.positions as usize, config.channels as usize);
    let per_group = channels / config.groups as usize;
    let mut y = vec![0.0; x.len()];
    for image in 0..config.batch as usize {
        for group in 0..config.groups as usize {
            let indices: Vec<usize> = (0..positions)
                .flat_map(|p| (0..per_group).map(move |c| (image * positions + p) * channels + group * per_group + c))
                .collect();
            let mean = indices.iter().map(|i| x[*i]).sum::<f64>() / indices.len() as f64;
            let variance = indices.iter().map(|i| (x[*i] - mean).powi(2)).sum::<f64>() / indices.len() as f64;
            let scale = 1.0 / (variance + f64::from(config.eps)).sqrt();
            for i in indices {
                let channel = i % channels;
                let v = (x[i] - mean) * scale * weight[channel] + bias[channel];
                let v = config.modulation.map_or(v, |part| {
                    let row = &modulation[config.modulation_row(i / channels) * part.channels as usize..];
                    let one = if part.grid.is_some() { 0.0 } else { 1.0 };
                    v * (one + row[part.scale as usize + channel]) + row[part.shift as usize + channel]
                });
                y[i] = config.activation.apply(v);
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::KernelSet;
    use super::*;

    proptest::proptest! {
        #[test]
        fn tiles_hold_whole_groups_and_fit_a_workgroup(
            positions in 1u32..1_200_000, groups in 1u32..65, per_group in 1u32..100, cpu in proptest::bool::ANY,
        ) {
            let channels = groups * per_group;
            let config = GroupNorm {
                batch: 1, positions, channels, second: 0, groups, eps: 1e-5, modulation: None, activation: Activation::Silu,
                dtype: DType::F16,
            };
            let kernels = if cpu { KernelSet::Lanes } else { KernelSet::Tile };
            let limits = Limits { kernels, ..Limits::default() };
            if config.too_wide() {
                proptest::prop_assert!(per_group % 4 != 0 || channels > 1024);
                return Ok(());
            }
            let Tiling { tile, tiles, members, strips } = config.tiling();
            let share = config.params(1, 0, &[bands::span(0, 1, 16, 16, &limits); 2], &limits).share;
            proptest::prop_assert!(tile * strips <= LANES && strips > 0 && share > 0 && members * share <= LANES);
            proptest::prop_assert!(tiles == 1 || tile * 4 == members * per_group);
            proptest::prop_assert!(tiles * members >= groups && (tiles - 1) * members < groups);
            proptest::prop_assert!(config.chunks(&limits) <= 128);
            // A chunk of the widest tensor stays far below the smallest binding.
            let row = u64::from(channels) * 4;
            let whole = u64::from(positions) * row;
            proptest::prop_assert!(u64::from(config.chunk(&limits)) * row <= (whole / 32).max(16 << 20));
        }
    }

    #[test]
    fn a_group_wider_than_a_workgroup_is_told() {
        let config = GroupNorm {
            batch: 1,
            positions: 9,
            channels: 2560,
            second: 0,
            groups: 1,
            eps: 1e-5,
            modulation: None,
            activation: Activation::None,
            dtype: DType::F32,
        };
        assert!(config.too_wide() && !GroupNorm { groups: 32, ..config }.too_wide());
        assert!(!GroupNorm { channels: 1024, ..config }.too_wide());
    }
}
