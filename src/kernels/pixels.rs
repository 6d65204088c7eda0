//! From the decoder's numbers to 8-bit pixels.

use bytemuck::{Pod, Zeroable};

use super::{Call, LANES, Launch, Limits, Variant, bands, fold, folds, vector_bytes};
use crate::tensor::DType;

/// The uniform of `shaders/pixels.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    begin: u32,
    end: u32,
    x_base: u32,
    y_base: u32,
}

/// `x [P, 3]` -> packed RGBA `[P]`, four pixels a vector.
pub fn call(pixels: u32, dtype: DType, limits: &Limits) -> Option<Call> {
    let quads = u64::from(pixels.div_ceil(4));
    let row = vector_bytes(dtype);
    let parts = |begin: u64, end: u64| {
        let x = bands::span(begin * 4, (end * 4).min(u64::from(pixels)), row, row, limits);
        (x, bands::span(begin, end, 16, 16, limits))
    };
    let fits = |begin: u64, end: u64| {
        let (x, y) = parts(begin, end);
        x.size.max(y.size) <= limits.binding && folds((end - begin).div_ceil(LANES), limits)
    };
    let launches = bands::split(quads, fits)?.into_iter().map(|(begin, end)| {
        let (x, y) = parts(begin, end);
        let last = (end as u32 * 4).min(pixels);
        let params = Params { begin: begin as u32 * 4, end: last, x_base: x.base, y_base: y.base };
        Launch {
            params: bytemuck::bytes_of(&params).to_vec(),
            workgroups: fold((end - begin).div_ceil(LANES), limits),
            ranges: vec![Some((x.offset, x.size)), Some((y.offset, y.size))],
        }
    });
    Some(Call {
        variant: Variant { stem: "pixels", enables: vec![], constants: vec![], types: vec![("X", dtype)] },
        launches: launches.collect(),
        flops: 0,
        bytes: u64::from(pixels) * (row + 4),
    })
}

/// The same in f64: one pixel's red, green, blue and alpha.
pub fn reference(rgb: [f64; 3]) -> [u8; 4] {
    let finite = rgb.iter().all(|v| v.is_finite());
    let [r, g, b] = rgb.map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
    [r, g, b, if finite { 255 } else { 0 }]
}
