//! Cases of `embed` and `sinusoid`.

use super::super::sinusoid::{self, Sinusoid};
use super::super::{Limits, embed};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

/// What `embed` calls the ranges of its table.
const TABLES: [&str; embed::RANGES as usize] = ["table 0", "table 1", "table 2", "table 3"];

struct Embed {
    batch: u32,
    tokens: u32,
    vocabulary: u32,
    channels: u32,
    /// The position of the first token.
    first: u32,
    dtype: DType,
}

impl Embed {
    /// Ids that take the first and the last row and repeat one; the table; the positions.
    fn numbers(&self) -> (Vec<u32>, Vec<f64>, Vec<f64>) {
        let (count, width) = (self.batch * self.tokens, self.channels as usize);
        let last = self.vocabulary - 1;
        let id = |i: u32| if i.is_multiple_of(5) { last - last.min(i / 5) } else { i * i * 7 % self.vocabulary };
        (
            (0..count).map(id).collect(),
            numbers("table", self.vocabulary as usize * width, self.dtype, 0.0, 1.0),
            numbers("positions", (self.first + self.tokens) as usize * width, self.dtype, 0.5, 0.3),
        )
    }
}

impl Kernel for Embed {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let (ids, table, positions) = self.numbers();
        let split = embed::split(self.vocabulary, self.channels, self.dtype, limits)?;
        let words: Vec<u32> = ids.iter().flat_map(|id| [*id, self.first, 0, 0]).collect();
        let mut tensors = vec![
            Tensor {
                bytes: Some(bytemuck::cast_slice(&words).to_vec()),
                ..Tensor::made("ids", ids.len() as u32, 4, DType::F32)
            },
            Tensor::given("positions", self.channels, self.dtype, &positions),
        ];
        let ranges = table.chunks((split * self.channels) as usize).zip(TABLES);
        tensors.extend(ranges.map(|(rows, name)| Tensor::given(name, self.channels, self.dtype, rows)));
        tensors.push(Tensor::made("y", ids.len() as u32, self.channels, self.dtype));
        let call = embed::call(self.batch, self.tokens, self.channels, split, self.dtype, limits)?;
        let last = tensors.len() - 2;
        let mut work = Work::of(call, tensors, 1);
        work.steps[0].reads = [0, 1].into_iter().chain((2..6).map(|range: usize| range.min(last))).collect();
        Some(work)
    }

    fn expected(&self) -> Vec<Expected> {
        let (ids, table, positions) = self.numbers();
        let width = self.channels as usize;
        let values = embed::reference(&ids, &table, &positions[self.first as usize * width..], width);
        // One sum in f32.
        let tolerances = values.iter().map(|value| EPS * value.abs()).collect();
        vec![Expected::new("y", self.dtype, values, tolerances)]
    }
}

struct Waves {
    config: Sinusoid,
    x: Vec<f32>,
    dtype: DType,
}

impl Kernel for Waves {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let Sinusoid { batch, inputs, dim, .. } = self.config;
        let x: Vec<f64> = self.x.iter().map(|value| f64::from(*value)).collect();
        let frequencies: Vec<f64> = self.config.frequencies().iter().map(|value| f64::from(*value)).collect();
        let tensors = vec![
            Tensor::given("x", inputs, DType::F32, &x),
            Tensor::given("frequencies", frequencies.len() as u32, DType::F32, &frequencies),
            Tensor::made("y", batch, inputs * dim, self.dtype),
        ];
        Some(Work::of(sinusoid::call(&self.config, self.dtype, limits), tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let values = sinusoid::reference(&self.config, &self.x);
        // The angle is the reference's own f32; reduction and polynomial are good to 1e-7, and a driver that fuses a
        // multiply with an addition in the reduction only makes it better.
        let tolerances = vec![4.0 * EPS; values.len()];
        vec![Expected::new("y", self.dtype, values, tolerances)]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let embed = |batch: u32, tokens: u32, vocabulary: u32, channels: u32| Embed {
        batch,
        tokens,
        vocabulary,
        channels,
        first: 0,
        dtype,
    };
    let embeds = [
        ("CLIP", embed(1, 77, 600, 192)),
        ("every axis different", embed(3, 5, 131, 7)),
        ("one token", embed(1, 1, 1, 3)),
        ("many rows", embed(3, 77, 40, 12)),
        ("a token of a sequence", Embed { first: 41, ..embed(2, 1, 90, 20) }),
    ];
    let embeds = embeds.into_iter().map(|(what, config)| Case::new("embed", what, dtype, config));
    let sinusoid = |inputs: u32, dim: u32, flip: bool, shift: f32, scale: f32, x: &[f32]| Waves {
        config: Sinusoid { batch: x.len() as u32 / inputs, inputs, dim, flip, shift, scale },
        x: x.to_vec(),
        dtype,
    };
    let sizes = [512.0, 768.0, 0.0, 7.0, 1024.0, 999.0];
    let waves = [
        ("timesteps of SD", sinusoid(1, 320, true, 0.0, 1.0, &[999.0, 499.5, 1.0, 0.0])),
        ("sizes of SDXL", sinusoid(6, 256, true, 0.0, 1.0, &[sizes, sizes.map(|size| size + 1.0)].concat())),
        ("guidance of LCM", sinusoid(1, 12, false, 1.0, 1000.0, &[6.5, 0.0, 0.25])),
        ("odd width", sinusoid(1, 7, false, 1.0, 1.0, &[801.0, 3.0])),
        ("odd width, several inputs", sinusoid(3, 5, true, 0.0, -1.0, &[801.0, 3.0, 17.0, 250.25, 0.0, 40.0])),
    ];
    embeds.chain(waves.into_iter().map(|(what, waves)| Case::new("sinusoid", what, dtype, waves))).collect()
}
