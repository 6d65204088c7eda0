//! Cases of what a generator of tokens needs: `attention_cache`, `put_row` and `sample_token`.

use super::super::attention_cache::{self, AttentionCache};
use super::super::put_row::{self, PutRow};
use super::super::sample_token::{self, SampleToken};
use super::super::{Limits, vectors};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// Rows of four words.
fn words(name: &'static str, rows: &[[u32; 4]]) -> Tensor {
    let bytes = Some(bytemuck::cast_slice(rows).to_vec());
    Tensor { bytes, ..Tensor::made(name, rows.len() as u32, 4, DType::F32) }
}

struct Cached {
    config: AttentionCache,
    last: Vec<u32>,
}

impl Cached {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let AttentionCache { batch, queries, keys, query_channels, key_channels, dtype, .. } = self.config;
        [
            numbers("q", (batch * queries * query_channels) as usize, dtype, 0.1, 1.5),
            numbers("kv", (batch * keys * key_channels) as usize, dtype, -0.1, 1.5),
        ]
    }
}

impl Kernel for Cached {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let AttentionCache { batch, queries, keys, heads, width, query_channels, key_channels, dtype, .. } =
            self.config;
        let [q, mut kv] = self.numbers();
        // What does not count may be anything.
        for (element, last) in kv.chunks_exact_mut((keys * key_channels) as usize).zip(&self.last) {
            element[((last + 1) * key_channels) as usize..].fill(f64::NAN);
        }
        let last: Vec<[u32; 4]> = self.last.iter().map(|last| [7, *last, 0, 0]).collect();
        let tensors = vec![
            Tensor::given("q", query_channels, dtype, &q),
            Tensor::given("kv", key_channels, dtype, &kv),
            words("last", &last),
            Tensor::made("out", batch * queries, heads * width, dtype),
        ];
        Some(Work::of(attention_cache::call(&self.config, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let [q, kv] = self.numbers();
        let values = attention_cache::reference(&self.config, &q, &kv, &self.last);
        // Weights are off by the error of their exponents, at most about 60 eps with scores below 20 and sums of 64 terms;
        // the outputs are means of values below 1.6, summed in f32. A GPU's exp2 is good to 3 + 2 |x| ulps.
        let tolerances = absolute(&values).iter().map(|value| 300.0 * EPS * (1.6 + value)).collect();
        vec![Expected::new("out", self.config.dtype, values, tolerances)]
    }
}

struct Put {
    config: PutRow,
    at: Vec<u32>,
}

impl Put {
    fn numbers(&self) -> Vec<f64> {
        numbers("x", (self.config.batch * self.config.channels) as usize, self.config.dtype, 1.0, 3.0)
    }
}

impl Kernel for Put {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let PutRow { batch, channels, count, rows, dtype, .. } = self.config;
        let at: Vec<[u32; 4]> = self.at.iter().map(|at| [9, *at, 1, 2]).collect();
        let tensors = vec![
            Tensor::given("x", channels, dtype, &self.numbers()),
            words("at", &at),
            Tensor::made("y", batch * rows, count, dtype),
        ];
        Some(Work::of(put_row::call(&self.config, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let values = put_row::reference(&self.config, &self.numbers());
        let PutRow { count, rows, row, .. } = self.config;
        let place = |(element, at): (usize, &u32)| {
            let first = (element as u32 * rows + row.unwrap_or(*at)) * count;
            (first as usize)..(first + count) as usize
        };
        let places = self.at.iter().enumerate().flat_map(place).collect();
        let tolerances = vec![0.0; values.len()];
        vec![Expected { name: "y", packed: false, places: Some(places), values, tolerances }]
    }
}

struct Draw {
    config: SampleToken,
    spread: f64,
    /// A logit that is not finite.
    fault: bool,
}

impl Draw {
    fn numbers(&self) -> [Vec<f64>; 2] {
        let SampleToken { batch, width, count, .. } = self.config;
        let mut logits = numbers("logits", (batch * width) as usize, DType::F32, -3.0, self.spread);
        // Behind the tokens that may be drawn stands what would win.
        logits.chunks_exact_mut(width as usize).for_each(|row| row[count as usize..].fill(100.0));
        let uniforms = numbers("noise", count as usize, DType::F32, 0.5, 0.4999);
        (logits, uniforms.iter().map(|u| f64::from(-u.ln() as f32)).collect::<Vec<f64>>()).into()
    }
}

impl Kernel for Draw {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let [mut logits, noise] = self.numbers();
        if self.fault {
            logits[self.config.count as usize / 2] = f64::NAN;
        }
        let tensors = vec![
            Tensor::given("logits", self.config.width, DType::F32, &logits),
            Tensor::given("noise", 4 * vectors(self.config.count), DType::F32, &{
                let mut padded = noise;
                padded.resize(4 * vectors(self.config.count) as usize, f64::NAN);
                padded
            }),
            words("state", &vec![[3, 41, 0, 0]; self.config.batch as usize]),
            Tensor::made("next", self.config.batch, 4, DType::F32),
            Tensor::made("drawn", 1, 4, DType::F32),
        ];
        Some(Work::of(sample_token::call(&self.config, limits)?, tensors, 2))
    }

    fn expected(&self) -> Vec<Expected> {
        let [logits, noise] = self.numbers();
        let token = sample_token::reference(&self.config, &logits, &noise);
        let [token, fault] = if self.fault { [0, 1] } else { [token, 0] };
        let rows = |name: &'static str, count: u32, row: [u32; 4]| {
            let values: Vec<f64> = (0..count).flat_map(|_| row).flat_map(u32::to_le_bytes).map(f64::from).collect();
            let tolerances = vec![0.0; values.len()];
            Expected { name, packed: true, places: None, values, tolerances }
        };
        vec![rows("next", self.config.batch, [token, 42, fault, 0]), rows("drawn", 1, [token, 0, fault, 0])]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let attention = |[batch, queries, keys, heads, width]: [u32; 5], last: &[u32]| Cached {
        config: AttentionCache {
            batch,
            queries,
            keys,
            heads,
            width,
            scale: 1.0 / (width as f32).sqrt(),
            query_channels: heads * width,
            key_channels: 2 * heads * width,
            offsets: [0, 0, heads * width],
            dtype,
        },
        last: last.to_vec(),
    };
    let fused = |config: Cached| {
        let inner = config.config.heads * config.config.width;
        let offsets = [0, inner, 2 * inner];
        Cached {
            config: AttentionCache { query_channels: 3 * inner, key_channels: 3 * inner, offsets, ..config.config },
            ..config
        }
    };
    let cached = [
        ("a step of DALL-E", attention([2, 1, 256, 4, 64], &[100, 255])),
        ("a text of DALL-E", attention([2, 1, 64, 4, 64], &[1, 20])),
        ("a text encoder, projections in one tensor", fused(attention([2, 19, 19, 2, 32], &[1, 18]))),
        ("the first step", attention([1, 1, 30, 2, 20], &[0])),
        ("wide heads", attention([3, 2, 9, 2, 300], &[3, 8, 0])),
        ("few keys, narrow heads", attention([2, 3, 5, 5, 4], &[4, 2])),
    ];
    let put = |[batch, channels, first, count, rows]: [u32; 5], row: Option<u32>, at: &[u32]| Put {
        config: PutRow { batch, channels, first, count, rows, row, dtype },
        at: at.to_vec(),
    };
    let rows = [
        ("keys and values", put([2, 3 * 64, 64, 128, 40], None, &[17, 39])),
        ("every axis different", put([3, 28, 8, 12, 5], None, &[0, 4, 2])),
        ("a given row", put([1, 4, 0, 4, 9], Some(6), &[3])),
    ];
    let draw = |batch: u32, width: u32, count: u32, top_k: Option<u32>| Draw {
        config: SampleToken { batch, width, count, scale: 3.5, temperature: 0.75, top_k },
        spread: 4.0,
        fault: false,
    };
    let draws = [
        ("DALL-E mini", draw(2, 16385, 16384, Some(256))),
        ("all tokens", draw(2, 1000, 997, None)),
        ("without guidance", draw(1, 131, 130, Some(7))),
        ("the largest", draw(2, 77, 75, Some(1))),
        ("equal logits", Draw { spread: 0.0, ..draw(2, 300, 257, Some(2)) }),
        ("more than there are", draw(1, 6, 5, Some(9))),
        ("not finite", Draw { fault: true, ..draw(2, 300, 257, Some(20)) }),
    ];
    let cached = cached.into_iter().map(|(what, case)| Case::new("attention_cache", what, dtype, case));
    let rows = rows.into_iter().map(|(what, case)| Case::new("put_row", what, dtype, case));
    // Logits are f32 whatever else is.
    let draws = draws.into_iter().filter(|_| dtype == DType::F32);
    let draws = draws.map(|(what, case)| Case::new("sample_token", what, dtype, case));
    cached.chain(rows).chain(draws).collect()
}
