//! Cases of `attention`.

use super::super::attention::{Attention, Bias, call};
use super::super::tuning::Class;
use super::super::{Call, Limits};
use super::sampled::sample;
use super::{Case, EPS, Expected, Kernel, Step, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// A score of D terms errs by a random walk of eps, and exp2 by as much again; weights are shares of at most 1. What a
/// score is off by, every weight is off by relatively, above and below the fraction.
const K: f64 = 16.0;
/// Cooperative matrices take weights in halves, each off by 2^-11 of itself, and sum them as rounded: a mean moves by that
/// share of how far values are apart, at most twice the largest.
const HALF_WEIGHTS: f64 = 1.0 / 1024.0;

/// How far numbers of a bias reach that hide nothing.
const BIAS: f64 = 2.0;
/// What hides a key: the lowest number of f32, as transformers' masks have it.
const HIDDEN: f64 = f32::MIN as f64;

/// An attention and the size of its queries.
pub(super) struct Heads {
    config: Attention,
    /// Queries, keys and values are parts of one tensor.
    fused: bool,
    /// Queries reach this far, so that a large value makes sharp weights.
    spread: f64,
}

impl Heads {
    /// Queries, keys, head width and whether later keys are hidden, in words.
    pub(super) fn shape(&self) -> (u32, u32, u32, &'static str) {
        let Attention { queries, keys, width, causal, .. } = self.config;
        (queries, keys, width, if causal { "causal" } else { "open" })
    }

    fn numbers(&self) -> (Vec<f64>, Vec<f64>) {
        let Attention { batch, queries, keys, query_channels, key_channels, dtype, .. } = self.config;
        let kv = numbers("kv", (batch * keys * key_channels) as usize, dtype, 0.3, 1.2);
        if self.fused {
            return (kv.clone(), kv);
        }
        (numbers("q", (batch * queries * query_channels) as usize, dtype, 0.1, self.spread), kv)
    }

    /// The bias, row after row, in which every fifth number hides a key as masks do.
    fn bias(&self) -> Option<Vec<f64>> {
        let rows = self.bias_rows()?;
        let mut bias = numbers("bias", (rows * self.config.keys) as usize, DType::F32, 0.1, BIAS);
        bias.iter_mut().skip(3).step_by(5).for_each(|number| *number = HIDDEN);
        Some(bias)
    }

    fn bias_rows(&self) -> Option<u32> {
        let Attention { batch, queries, heads, bias, .. } = self.config;
        let own = |own: bool, count: u32| if own { count } else { 1 };
        bias.map(|bias| own(bias.batch, batch) * own(bias.heads, heads) * own(bias.queries, queries))
    }

    fn reference(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        let (Some(bias), Some(numbers)) = (self.config.bias, self.bias()) else { return self.config.reference(q, kv) };
        let [queries, keys, heads] = [self.config.queries, self.config.keys, self.config.heads].map(|n| n as usize);
        let place = |own: bool, place: usize, count: usize| if own { (place, count) } else { (0, 1) };
        self.config.biased_reference(q, kv, &|element, head, query, key| {
            let (element, _) = place(bias.batch, element, 0);
            let (head, heads) = place(bias.heads, head, heads);
            let (query, queries) = place(bias.queries, query, queries);
            numbers[((element * heads + head) * queries + query) * keys + key]
        })
    }

    /// Per output, what it may be off by: the largest sum of |terms| of its row's scores times the largest |value|, and
    /// what rounding weights to halves costs.
    fn tolerances(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        let Attention { batch, queries, keys, heads, width, offsets, .. } = self.config;
        let [queries, keys, heads, width] = [queries, keys, heads, width].map(|count| count as usize);
        let [q_offset, k_offset, v_offset] = offsets.map(|offset| offset as usize);
        let (q_row, kv_row) = (self.config.query_channels as usize, self.config.key_channels as usize);
        let half = if self.config.dtype == DType::F32 { 0.0 } else { HALF_WEIGHTS };
        let bias = if self.config.bias.is_some() { BIAS } else { 0.0 };
        let mut tolerances = Vec::new();
        for row in 0..batch as usize * queries {
            for head in 0..heads {
                let wanted = absolute(&q[row * q_row + q_offset + head * width..][..width]);
                let (mut score, mut value) = (0f64, 0f64);
                for key in row / queries * keys..(row / queries + 1) * keys {
                    let part = |offset: usize| &kv[key * kv_row + offset + head * width..][..width];
                    let sum: f64 = wanted.iter().zip(part(k_offset)).map(|(a, b)| a * b.abs()).sum();
                    score = score.max(sum * f64::from(self.config.scale));
                    value = part(v_offset).iter().fold(value, |most, v| most.max(v.abs()));
                }
                tolerances.extend(std::iter::repeat_n((K * EPS * (score + 4.0 + bias) + half) * value, width));
            }
        }
        tolerances
    }
}

impl Kernel for Heads {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let Attention { batch, queries, heads, width, query_channels, key_channels, dtype, .. } = self.config;
        let (q, kv) = self.numbers();
        let mut tensors = vec![Tensor::given("kv", key_channels, dtype, &kv)];
        if !self.fused {
            tensors.push(Tensor::given("q", query_channels, dtype, &q));
        }
        let mut reads = vec![tensors.len() - 1, 0];
        if let Some(bias) = self.bias() {
            reads.push(tensors.len());
            tensors.push(Tensor::given("bias", self.config.keys, DType::F32, &bias));
        }
        tensors.push(Tensor::made("out", batch * queries, heads * width, dtype));
        let writes = vec![tensors.len() - 1];
        Some(Work { tensors, steps: vec![Step { call: call(&self.config, limits)?, reads, writes }] })
    }

    fn expected(&self) -> Vec<Expected> {
        let (q, kv) = self.numbers();
        vec![Expected::new("out", self.config.dtype, self.reference(&q, &kv), self.tolerances(&q, &kv))]
    }

    fn choices(&self, limits: &Limits) -> Option<(Class, Vec<String>)> {
        let names = self.config.candidates(limits).iter().map(ToString::to_string).collect();
        Some((self.config.class(), names))
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        call(&self.config, limits).map(|call| vec![call])
    }
}

/// An attention too large to be compared whole: some queries of every batch element are.
pub(super) struct Sampled(pub(super) Heads);

/// Queries of a batch element in a sample.
const SAMPLE: usize = 8;

impl Kernel for Sampled {
    fn work(&self, limits: &Limits) -> Option<Work> {
        self.0.work(limits)
    }

    /// For attentions that are not causal: a query's result does not depend on its place.
    fn expected(&self) -> Vec<Expected> {
        let Attention { batch, queries, keys, heads, width, query_channels, key_channels, dtype, .. } = self.0.config;
        let (q, kv) = self.0.numbers();
        let chosen = sample(SAMPLE, queries as usize);
        let (q_row, kv_size) = (query_channels as usize, (keys * key_channels) as usize);
        let channels = (heads * width) as usize;
        let (mut values, mut tolerances, mut places) = (vec![], vec![], vec![]);
        for element in 0..batch as usize {
            let rows = chosen.iter().map(|query| element * queries as usize + query);
            let part: Vec<f64> = rows.clone().flat_map(|row| &q[row * q_row..][..q_row]).copied().collect();
            let kv = &kv[element * kv_size..][..kv_size];
            let config = Attention { batch: 1, queries: chosen.len() as u32, ..self.0.config };
            values.extend(config.reference(&part, kv));
            tolerances.extend(Heads { config, ..self.0 }.tolerances(&part, kv));
            places.extend(rows.flat_map(|row| row * channels..(row + 1) * channels));
        }
        vec![Expected { places: Some(places), ..Expected::new("out", dtype, values, tolerances) }]
    }

    fn choices(&self, limits: &Limits) -> Option<(Class, Vec<String>)> {
        self.0.choices(limits)
    }

    fn calls(&self, limits: &Limits) -> Option<Vec<Call>> {
        self.0.calls(limits)
    }
}

/// Attention of tokens to each other, queries, keys and values in one tensor.
pub(super) fn own(dtype: DType, batch: u32, tokens: u32, heads: u32, width: u32) -> Heads {
    let config = Attention {
        batch,
        queries: tokens,
        keys: tokens,
        heads,
        width,
        scale: 1.0 / (width as f32).sqrt(),
        causal: false,
        query_channels: 3 * heads * width,
        key_channels: 3 * heads * width,
        offsets: [0, heads * width, 2 * heads * width],
        dtype,
        bias: None,
    };
    Heads { config, fused: true, spread: 1.2 }
}

/// The same where a query sees no later key.
pub(super) fn causal(heads: Heads) -> Heads {
    Heads { config: Attention { causal: true, ..heads.config }, ..heads }
}

/// The same with a bias that batch elements, heads and queries share or have their own of.
fn biased(heads: Heads, [batch, own_heads, queries]: [bool; 3]) -> Heads {
    Heads { config: Attention { bias: Some(Bias { batch, heads: own_heads, queries }), ..heads.config }, ..heads }
}

/// Attention to the keys of another tensor: batch, queries, keys, heads, width.
pub(super) fn cross(dtype: DType, [batch, queries, keys, heads, width]: [u32; 5]) -> Heads {
    let inner = heads * width;
    let config = own(dtype, batch, queries, heads, width).config;
    let offsets = [0, 0, inner];
    let config = Attention { keys, query_channels: inner, key_channels: 2 * inner, offsets, ..config };
    Heads { config, fused: false, spread: 1.2 }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let own = |batch, tokens, heads, width| own(dtype, batch, tokens, heads, width);
    let cross = |batch, queries, keys, heads, width| cross(dtype, [batch, queries, keys, heads, width]);
    let all = [
        ("self of SD, width 40", own(2, 96, 2, 40)),
        ("cross of SD, width 80", cross(2, 48, 77, 2, 80)),
        ("mid block of SD, width 160", cross(2, 20, 77, 2, 160)),
        ("self of SDXL, width 64", own(1, 80, 3, 64)),
        ("text tower of CLIP", causal(own(1, 77, 3, 64))),
        ("VAE, width 512", own(1, 70, 1, 512)),
        ("one query, one key", cross(1, 1, 1, 1, 4)),
        ("keys of two tiles and three more", cross(1, 3, 131, 5, 12)),
        ("more queries than keys", cross(3, 17, 9, 2, 20)),
        ("width 128, queries of a tile and one more", cross(1, 65, 33, 1, 128)),
        ("width 24, causal, odd tokens", causal(own(2, 37, 2, 24))),
        ("width 8, causal, few tokens", causal(own(1, 5, 1, 8))),
        ("width 148", own(1, 9, 1, 148)),
        ("relative positions of T5", biased(own(2, 37, 3, 64), [false, true, true])),
        ("relative positions and hidden keys of T5", biased(own(2, 21, 2, 8), [true, true, true])),
        ("hidden keys of a padded text", biased(cross(3, 17, 77, 2, 20), [true, false, false])),
        ("causal with hidden keys, as in unCLIP's prior", causal(biased(own(2, 41, 2, 32), [true, false, true]))),
        ("one hidden text for all, width 512", biased(cross(2, 9, 13, 1, 512), [false, false, false])),
        ("sharp", Heads { spread: 40.0, ..cross(1, 19, 40, 2, 16) }),
    ];
    all.into_iter().map(|(what, heads)| Case::new("attention", what, dtype, heads)).collect()
}

/// Shapes of Stable Diffusion 1.5 at 512 x 512 pixels.
pub(super) fn large_sizes(dtype: DType) -> Vec<Case> {
    of_size(
        "SD 1.5 at 512, level 1, 4096 tokens, 8 heads of 40",
        "SD 1.5 at 512, level 1, 4096 tokens to 77",
        4096,
        dtype,
    )
}

/// Shapes of Stable Diffusion 1.5 at 256 x 128 pixels.
pub(super) fn sizes(dtype: DType) -> Vec<Case> {
    of_size("SD 1.5, level 1, 512 tokens, 8 heads of 40", "SD 1.5, level 1, 512 tokens to 77", 512, dtype)
}

/// Self-attention and cross-attention of the first level.
fn of_size(own_name: &str, cross_name: &str, queries: u32, dtype: DType) -> Vec<Case> {
    let (heads, inner) = (8, 320);
    let own = Attention {
        batch: 1,
        queries,
        keys: queries,
        heads,
        width: inner / heads,
        scale: 1.0 / 40f32.sqrt(),
        causal: false,
        query_channels: 3 * inner,
        key_channels: 3 * inner,
        offsets: [0, inner, 2 * inner],
        dtype,
        bias: None,
    };
    let cross = Attention { keys: 77, query_channels: inner, key_channels: 2 * inner, offsets: [0, 0, inner], ..own };
    let all = [
        (own_name, Heads { config: own, fused: true, spread: 1.2 }),
        (cross_name, Heads { config: cross, fused: false, spread: 1.2 }),
    ];
    all.into_iter().map(|(what, heads)| Case::new("attention", what, dtype, heads)).collect()
}
