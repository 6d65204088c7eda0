//! The ways to run a product: families of shaders, their tiles, and which one is guessed to be the fastest.

use std::fmt;

use super::matrix::Matrix;
use super::tuning::{Class, Product};
use super::{KernelSet, Limits};
use crate::tensor::DType;

/// Bytes of padding of a row in the cooperative shader's tiles: eight halves.
const ROW_PADDING: u32 = 16;
/// The fewest rows, columns and channels for which cooperative matrices are not mostly padding.
const LEAST: u64 = 16;
/// A split part has at least this many steps along k, or it is all prologue.
const LEAST_STEPS: u32 = 4;
/// Workgroups that run at once on the adapter that the order of candidates is guessed for: a large GPU.
const UNITS: f64 = 128.0;

/// A family of matrix shaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `matrix_lanes`, for CPU adapters.
    Lanes,
    /// `matrix_tile`, for any GPU.
    Tile,
    /// `matrix_coop`, cooperative matrices.
    Cooperative,
}

/// One way to run a product: a shader with the sizes of what a workgroup computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Which shader.
    pub family: Family,
    /// Rows of a workgroup's tile.
    pub rows: u32,
    /// Physical columns of a workgroup's tile.
    pub columns: u32,
    /// Channels that are shared through workgroup memory at a time; 0 for lanes.
    pub depth: u32,
    /// Subgroups of a workgroup (cooperative), lying in `side` columns; else 0.
    pub subgroups: u32,
    /// Subgroups side by side.
    pub side: u32,
    /// Parts into which the sum over channels and taps is split, each with partial sums of its own.
    pub split: u32,
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns, depth, subgroups, split, .. } = self;
        match self.family {
            Family::Lanes => write!(f, "lanes {rows}x{columns}"),
            Family::Tile => write!(f, "tile {rows}x{columns}"),
            Family::Cooperative => write!(f, "coop {rows}x{columns}x{depth}/{subgroups}"),
        }?;
        if *split > 1 { write!(f, " split {split}") } else { Ok(()) }
    }
}

/// Cooperative tiles of 16 x 16 matrices: rows, columns, depth, subgroups, subgroups side by side.
const TILES_16: [[u32; 5]; 7] = [
    [128, 160, 16, 8, 2],
    [128, 128, 32, 8, 2],
    [128, 128, 32, 4, 2],
    [64, 160, 32, 4, 2],
    [128, 64, 32, 4, 1],
    [64, 64, 32, 4, 2],
    [32, 64, 32, 2, 2],
];
/// Cooperative tiles of 8 x 8 matrices, within 32 KiB of workgroup memory.
const TILES_8: [[u32; 5]; 4] = [[64, 64, 32, 2, 1], [64, 64, 32, 4, 2], [32, 64, 32, 2, 2], [32, 32, 32, 1, 1]];

impl Tile {
    pub(super) const fn lanes(rows: u32, columns: u32) -> Self {
        Self { family: Family::Lanes, rows, columns, depth: 0, subgroups: 0, side: 0, split: 1 }
    }

    const fn register(rows: u32, columns: u32) -> Self {
        Self { family: Family::Tile, rows, columns, depth: 16, subgroups: 0, side: 0, split: 1 }
    }

    fn cooperative([rows, columns, depth, subgroups, side]: [u32; 5]) -> Self {
        Self { family: Family::Cooperative, rows, columns, depth, subgroups, side, split: 1 }
    }

    /// Bytes of workgroup memory of a cooperative tile whose subgroups finish `together` pairs of matrices at a time.
    fn memory(&self, size: u32, halves: u32, together: u32) -> u32 {
        let staged = self.rows * (2 * self.depth + ROW_PADDING) + self.depth * (2 * self.columns + ROW_PADDING);
        2 * staged + self.subgroups * halves * together * size * size * 4
    }

    /// Matrices side by side in a subgroup's part, or pairs of values and gates.
    fn pairs(&self, size: u32, halves: u32) -> u32 {
        self.columns / (size * halves * self.side)
    }

    /// How many of them a subgroup finishes at a time: as many as there is workgroup memory for.
    fn together(&self, halves: u32, limits: &Limits) -> u32 {
        let (size, pairs) = (limits.cooperative, self.pairs(limits.cooperative, halves));
        let fits =
            |count: &u32| pairs.is_multiple_of(*count) && self.memory(size, halves, *count) <= limits.workgroup_memory;
        (1..=pairs).rev().find(fits).unwrap_or(1)
    }

    /// Whether the adapter can run a cooperative tile, with gates if there are `halves`.
    fn fits(&self, limits: &Limits, halves: u32) -> bool {
        let size = limits.cooperative;
        self.memory(size, halves, 1) <= limits.workgroup_memory
            && self.subgroups * subgroup(limits) <= limits.invocations
            && self.pairs(size, halves) * size * halves * self.side == self.columns
            && (halves == 1 || self.columns.is_multiple_of(64))
    }

    /// Invocations of a workgroup of `matrix_tile`.
    fn invocations(&self) -> u32 {
        if self.columns == 128 { 256 } else { 64 }
    }

    /// The constants of `matrix_tile`.
    pub(super) fn constants(&self) -> [(&'static str, u32); 3] {
        [("INVOCATIONS", self.invocations()), ("ROWS", self.rows), ("PAIRS", self.columns / 64)]
    }

    /// Bytes of workgroup memory of `matrix_tile`.
    fn tile_memory(&self) -> u32 {
        16 * (4 * self.rows + 4 * self.columns)
    }

    /// Relative time of `matrix_tile` for `rows` x `columns` x `depth` on a large GPU.
    fn tile_cost(&self, rows: u64, columns: u64, depth: u64) -> f64 {
        let tiles = rows.div_ceil(u64::from(self.rows)) * columns.div_ceil(u64::from(self.columns));
        let invocations = f64::from(self.invocations());
        let owned = f64::from(self.rows * self.columns) / invocations;
        // Per 16 channels: products, reads of the tiles, loads into them, latency of two barriers.
        let loads = f64::from(4 * (self.rows + self.columns)) / invocations;
        let step = 16.0 * owned + 32.0 * (owned / 8.0 + 8.0) + 40.0 * loads + 300.0;
        let rounds = (tiles as f64 * invocations / 256.0 / UNITS).max(1.0);
        rounds * step * depth as f64
    }

    /// Relative time for `rows` x `columns` x `depth` on a large GPU.
    fn cost(&self, rows: u64, columns: u64, depth: u64) -> f64 {
        let tiles = rows.div_ceil(u64::from(self.rows)) * columns.div_ceil(u64::from(self.columns));
        let area = f64::from(self.rows * self.columns);
        // What limits a tile is the traffic of its sides, to which the latency of a step adds.
        let side = f64::from(self.rows + self.columns);
        let step = area / 128.0 + side + 64.0;
        let rounds = (tiles as f64 * f64::from(self.split) / UNITS).max(1.0);
        let reduce =
            if self.split == 1 { 0.0 } else { (rows * columns) as f64 * f64::from(self.split + 1) / UNITS / 2.0 };
        rounds * (step * depth as f64 / f64::from(self.split) + area) + reduce
    }
}

/// Invocations of a subgroup. Metal reports a range, but every GPU with matrices there runs 32.
fn subgroup(limits: &Limits) -> u32 {
    match (limits.cooperative, limits.subgroup) {
        (8, 0) => 32,
        (_, size) => size,
    }
}

impl Matrix {
    /// The shape class that the choice of a candidate is remembered by.
    pub fn class(&self) -> Class {
        let product = match (self.gated, self.kernel) {
            (true, _) => Product::Gated,
            (false, [1, 1]) => Product::Linear,
            (false, _) => Product::Convolution,
        };
        Class::matrix(product, self.rows(), self.types[0])
    }

    /// Whether cooperative matrices can and should multiply this.
    fn cooperates(&self, limits: &Limits) -> bool {
        let halves = self.types[..2].iter().all(|dtype| *dtype == DType::F16);
        let large = [self.rows(), u64::from(self.outputs), u64::from(self.inputs)].iter().all(|axis| *axis >= LEAST);
        let has = limits.kernels == KernelSet::Cooperative && limits.cooperative > 0 && subgroup(limits) > 0;
        has && limits.f16 && halves && large
    }

    /// The ways to run this product, the best guess first, one that runs anywhere last. Products of one class that are
    /// large enough have the same ones in the same order.
    pub fn candidates(&self, limits: &Limits) -> Vec<Tile> {
        if limits.lanes() {
            return vec![self.lanes_tile()];
        }
        let mut all = if self.cooperates(limits) { self.cooperative_candidates(limits) } else { Vec::new() };
        let tiles = [Tile::register(128, 128), Tile::register(64, 64), Tile::register(32, 64)];
        let fits =
            |tile: &Tile| tile.tile_memory() <= limits.workgroup_memory && tile.invocations() <= limits.invocations;
        let mut tiles: Vec<Tile> = tiles.into_iter().filter(fits).collect();
        let (rows, columns, depth) = self.representative();
        tiles.sort_by(|a, b| a.tile_cost(rows, columns, depth).total_cmp(&b.tile_cost(rows, columns, depth)));
        all.extend(tiles);
        all
    }

    fn cooperative_candidates(&self, limits: &Limits) -> Vec<Tile> {
        let tiles: &[[u32; 5]] = if limits.cooperative == 16 { &TILES_16 } else { &TILES_8 };
        let halves = self.halves();
        let fitting = tiles.iter().map(|tile| Tile::cooperative(*tile)).filter(|tile| tile.fits(limits, halves));
        let fitting: Vec<Tile> = fitting.collect();
        // A product in the middle of the class stands for all.
        let (rows, columns, depth) = self.representative();
        let mut all: Vec<Tile> =
            fitting.iter().flat_map(|tile| [1, 2, 4, 8].map(|split| Tile { split, ..*tile })).collect();
        all.sort_by(|a, b| a.cost(rows, columns, depth).total_cmp(&b.cost(rows, columns, depth)));
        // The table of unfit candidates has 16 places, three of them for other shaders, and trying more would take long.
        all.truncate(12);
        all
    }

    /// Rows, physical columns and depth of a typical product of this one's class: a level of SD 1.5's UNet at 512 x 512
    /// pixels with guidance.
    fn representative(&self) -> (u64, u64, u64) {
        let (rows, channels) = match self.rows() {
            0..=192 => (128, 1280),
            193..=768 => (512, 1280),
            769..=3072 => (2048, 640),
            _ => (8192, 320),
        };
        match (self.gated, self.kernel) {
            (true, _) => (rows, 8 * channels, channels),
            (false, [1, 1]) => (rows, channels, channels),
            (false, _) => (rows, channels, 9 * channels),
        }
    }

    /// Physical columns of one output column: 2 with gates.
    pub(super) fn halves(&self) -> u32 {
        1 << u32::from(self.gated)
    }

    /// Steps of a cooperative tile along taps and channels.
    fn steps(&self, depth: u32) -> u32 {
        self.kernel[0] * self.kernel[1] * (4 * self.depth4()).div_ceil(depth)
    }

    /// The tile with as many parts as the product has steps for.
    pub(super) fn bounded(&self, tile: Tile) -> Tile {
        let most = if tile.family == Family::Cooperative { self.steps(tile.depth) / LEAST_STEPS } else { 1 };
        Tile { split: tile.split.min(most.max(1)), ..tile }
    }

    /// The constants of `matrix_coop` for a tile.
    pub(super) fn cooperative_constants(&self, tile: &Tile, limits: &Limits) -> Vec<(&'static str, u32)> {
        let (size, halves) = (limits.cooperative, self.halves());
        let invocations = tile.subgroups * subgroup(limits);
        let partial = u32::from(tile.split > 1);
        // Pointers to vectors are wrong in what naga writes for Metal, whose matrices are 8 x 8.
        let vectors = u32::from(size == 16);
        let (pairs, together) = (tile.pairs(size, halves), tile.together(halves, limits));
        // Small matrices make a long text of an unrolled step, which Mesa's llvmpipe compiles for minutes.
        let products = if size == 16 { tile.depth / size } else { 1 };
        vec![
            ("SIZE", size),
            ("SUBGROUP", subgroup(limits)),
            ("SUBGROUPS", tile.subgroups),
            ("SUB_COLUMNS", tile.side),
            ("ROWS", tile.rows),
            ("COLUMNS", tile.columns),
            ("DEPTH", tile.depth),
            ("FRAG_ROWS", tile.rows / (size * (tile.subgroups / tile.side))),
            ("GROUPS", pairs / together),
            ("TOGETHER", together),
            ("PRODUCTS", products),
            ("A_LOADS", (tile.rows * tile.depth / 4).div_ceil(invocations)),
            ("B_LOADS", (tile.columns * tile.depth / 4).div_ceil(invocations)),
            ("SECOND", u32::from(self.second > 0)),
            ("WHOLE", 1 - partial),
            ("PARTIAL", partial),
            ("VECTORS", vectors),
            ("SCALARS", 1 - vectors),
        ]
    }
}
