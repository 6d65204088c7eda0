//! Cases of `resample`.

use super::super::resample::{self, Resample};
use super::super::resampling::{Filter, Resize, Table};
use super::super::{Limits, vectors};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, absolute, numbers};
use crate::tensor::DType;

/// One axis of a picture: [outer, input, inner, channels] -> [outer, output, inner, channels].
struct Axis {
    table: Table,
    outer: u32,
    inner: u32,
    channels: u32,
    quantize: bool,
    types: [DType; 2],
}

impl Axis {
    fn numbers(&self) -> Vec<f64> {
        let count = (self.outer * self.table.input() * self.inner * self.channels) as usize;
        let (mean, spread) = if self.quantize { (127.0, 150.0) } else { (0.3, 2.0) };
        numbers("x", count, self.types[0], mean, spread)
    }

    fn reference(&self, table: &Table, x: &[f64], quantize: bool) -> Vec<f64> {
        resample::reference(table, self.outer as usize, (self.inner * self.channels) as usize, quantize, x)
    }
}

impl Kernel for Axis {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let config = Resample {
            outer: self.outer,
            inner: self.inner * vectors(self.channels),
            quantize: self.quantize,
            types: self.types,
        };
        let packed: Vec<f64> = self.table.packed().into_iter().map(f64::from).collect();
        let tensors = vec![
            Tensor::given("x", self.channels, self.types[0], &self.numbers()),
            Tensor::given("table", packed.len() as u32, DType::F32, &packed),
            Tensor::made("y", self.outer * self.table.output() * self.inner, self.channels, self.types[1]),
        ];
        Some(Work::of(resample::call(&config, &self.table, limits)?, tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let x = self.numbers();
        let values = self.reference(&self.table, &x, self.quantize);
        let (exact, sizes) = (self.reference(&self.table, &x, false), self.table.absolute());
        let sums = self.reference(&sizes, &absolute(&x), false);
        // One product and one sum a tap. Rounding to whole numbers moves what lies that near to a tie by one.
        let k = f64::from(self.table.taps() + 1);
        let tolerance = |(sum, exact): (&f64, &f64)| {
            let within = k * EPS * sum;
            let tie = ((exact + 0.5).fract().abs() - within).min(1.0 - (exact + 0.5).fract().abs() - within) <= 0.0;
            if self.quantize { f64::from(u8::from(tie)) } else { within }
        };
        let tolerances = sums.iter().zip(&exact).map(tolerance).collect();
        vec![Expected::new("y", self.types[1], values, tolerances)]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    let axis = |method, sizes: [u32; 2], outer, inner, channels| Axis {
        table: Table::new(method, sizes[0], sizes[1]),
        outer,
        inner,
        channels,
        quantize: false,
        types: [dtype; 2],
    };
    let columns = axis(Resize::Antialias(Filter::Bicubic), [64, 25], 7, 1, 3);
    let eighth = axis(Resize::Pillow(Filter::Bicubic), [61, 31], 9, 1, 3);
    let part = Axis { table: eighth.table.crop(4..23), ..axis(Resize::Pillow(Filter::Bicubic), [61, 31], 5, 2, 3) };
    let other = if dtype == DType::F32 { DType::F16 } else { DType::F32 };
    let all = [
        ("columns, smaller, bicubic antialiased", columns),
        ("rows, smaller, bicubic of Pillow", axis(Resize::Pillow(Filter::Bicubic), [35, 12], 2, 9, 3)),
        ("rows, larger, lanczos of Pillow", axis(Resize::Pillow(Filter::Lanczos), [5, 13], 2, 5, 5)),
        ("rows, larger, bilinear, corners aligned", axis(Resize::Bilinear { align_corners: true }, [8, 32], 2, 8, 3)),
        ("columns, larger, bilinear", axis(Resize::Bilinear { align_corners: false }, [17, 29], 30, 1, 4)),
        ("rows, larger, bicubic", axis(Resize::Bicubic { align_corners: false }, [3, 7], 3, 33, 9)),
        ("columns, smaller, area", axis(Resize::Area, [10, 7], 5, 1, 33)),
        ("rows, smaller, nearest", axis(Resize::Nearest, [7, 3], 1, 13, 6)),
        ("one place to many", axis(Resize::Antialias(Filter::Bilinear), [1, 5], 3, 3, 2)),
        ("many places to one", axis(Resize::Antialias(Filter::Bilinear), [41, 1], 3, 3, 2)),
        ("a crop of the result", part),
        ("between 8-bit passes", Axis { quantize: true, ..eighth }),
        ("stored as another type", Axis { types: [dtype, other], ..axis(Resize::Area, [6, 4], 2, 3, 7) }),
    ];
    all.into_iter().map(|(what, config)| Case::new("resample", what, dtype, config)).collect()
}
