//! T5's bias of attention scores: a number for each head and bucket of relative positions, and the mask of padding.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Launch, Limits, Variant, bands, fold, vectors};

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionBias {
    /// Batch elements.
    pub batch: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens.
    pub tokens: u32,
    /// Rows of the table.
    pub buckets: u32,
    /// The distance from which on all fall into the last bucket.
    pub max_distance: u32,
}

/// The uniform of `shaders/position_bias.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    tokens: u32,
    heads: u32,
    width: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

impl PositionBias {
    /// The bucket of every distance, key minus query, from -(T - 1) on: half of them for either direction, of those half for a
    /// distance each and the rest for ranges that grow by equal factors (transformers' `_relative_position_bucket`, in f32).
    pub fn table(&self) -> Vec<f32> {
        let half = i64::from(self.buckets / 2);
        let exact = half / 2;
        let last = i64::from(self.tokens) - 1;
        let bucket = |distance: i64| {
            let (side, far) = (if distance > 0 { half } else { 0 }, distance.abs());
            if far < exact {
                return (side + far) as f32;
            }
            let growth = (far as f32 / exact as f32).ln();
            let all = (f64::from(self.max_distance) / exact as f64).ln() as f32;
            let range = exact + (growth / all * (half - exact) as f32) as i64;
            (side + range.min(half - 1)) as f32
        };
        (-last..=last).map(bucket).collect()
    }
}

/// buckets, table, mask -> y [B, H, T, T]. `None` when one row is too large for a binding.
pub fn call(config: &PositionBias, limits: &Limits) -> Option<Call> {
    let width = u64::from(vectors(config.tokens));
    let rows = u64::from(config.batch * config.heads) * u64::from(config.tokens);
    let launches = bands::rows(rows, &[(width * 16, 16)], width, limits)?;
    let launches = launches.into_iter().map(|(begin, end, parts)| {
        let params = Params {
            begin: (begin * width) as u32,
            end: (end * width) as u32,
            tokens: config.tokens,
            heads: config.heads,
            width: width as u32,
            y_base: parts[0].base,
            pad0: 0,
            pad1: 0,
        };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold(((end - begin) * width).div_ceil(LANES), limits),
            ranges: vec![None, None, None, Some((parts[0].offset, parts[0].size))],
        }
    });
    let variant = Variant { stem: "position_bias", enables: vec![], constants: vec![], types: vec![] };
    let numbers = rows * width * 4;
    Some(Call { variant, launches: launches.collect(), flops: numbers, bytes: 4 * numbers })
}

/// The same in f64, `table [buckets][heads]`, `mask [B][T]`.
pub fn reference(config: &PositionBias, table: &[f64], mask: &[f64]) -> Vec<f64> {
    let [batch, heads, tokens] = [config.batch, config.heads, config.tokens].map(|count| count as usize);
    let buckets = config.table();
    let mut y = Vec::with_capacity(batch * heads * tokens * tokens);
    for element in 0..batch {
        for head in 0..heads {
            for query in 0..tokens {
                let bias = |key: usize| table[buckets[key + tokens - 1 - query] as usize * heads + head];
                y.extend((0..tokens).map(|key| bias(key) + mask[element * tokens + key]));
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers 5.23, `T5Attention._relative_position_bucket(torch.arange(-40, 41), True, 8, 20)`.
    #[test]
    fn buckets_are_those_of_transformers() {
        let config = PositionBias { batch: 1, heads: 1, tokens: 41, buckets: 8, max_distance: 20 };
        let table = config.table();
        let near: Vec<u32> = table[20..61].iter().map(|bucket| *bucket as u32).collect();
        let expected = [
            3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 0, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7,
            7, 7, 7, 7, 7,
        ];
        assert_eq!(near, expected);
        assert!(table[..20].iter().all(|bucket| *bucket == 3.0) && table[61..].iter().all(|bucket| *bucket == 7.0));
    }
}
