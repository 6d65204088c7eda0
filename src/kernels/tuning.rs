//! Which of several ways to run a product or an attention is taken on an adapter: a small table by shape class.
//!
//! A kernel lists its [candidates](Tuning::pick), the best guess first and one that runs anywhere last. The table says
//! which one was fastest where a tuning run has measured it, and which ones failed their numeric self-test.

use crate::tensor::DType;

/// Rows of a product up to which it belongs to each of the classes but the last.
const ROWS: [u64; 3] = [192, 768, 3072];
/// Head widths up to which an attention belongs to each of the classes but the last.
const WIDTHS: [u32; 5] = [48, 64, 96, 128, 160];
/// Keys up to which an attention counts as short: those of a text.
const SHORT_KEYS: u32 = 128;

const MATRIX_CLASSES: usize = 3 * (ROWS.len() + 1);
const ATTENTION_CLASSES: usize = 2 * (WIDTHS.len() + 1);
/// Number of classes.
pub const CLASSES: usize = 2 * (MATRIX_CLASSES + ATTENTION_CLASSES);

/// What kind of product it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// A convolution of several taps.
    Convolution,
    /// A linear layer or a convolution of one tap.
    Linear,
    /// A linear layer with gates.
    Gated,
}

/// A shape class: the place of its entry in a [`Tuning`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(u8);

impl Class {
    /// The class of a product of `rows` rows, its operands stored as `dtype`.
    pub fn matrix(product: Product, rows: u64, dtype: DType) -> Self {
        let bucket = ROWS.iter().filter(|limit| rows > **limit).count();
        Self::at(product as usize * (ROWS.len() + 1) + bucket, dtype)
    }

    /// The class of an attention over `keys` keys with heads of `width` channels.
    pub fn attention(width: u32, keys: u32, dtype: DType) -> Self {
        let bucket = WIDTHS.iter().filter(|limit| width > **limit).count();
        Self::at(MATRIX_CLASSES + usize::from(keys <= SHORT_KEYS) * (WIDTHS.len() + 1) + bucket, dtype)
    }

    fn at(index: usize, dtype: DType) -> Self {
        let half = CLASSES / 2;
        Self((index + if dtype == DType::F32 { 0 } else { half }) as u8)
    }

    /// Its place, below [`CLASSES`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// All classes whose operands are stored as `dtype`.
    pub fn all(dtype: DType) -> impl Iterator<Item = Self> {
        (0..CLASSES / 2).map(move |index| Self::at(index, dtype))
    }

    /// How the operands are stored.
    pub fn dtype(self) -> DType {
        if self.index() < CLASSES / 2 { DType::F32 } else { DType::F16 }
    }
}

impl std::fmt::Display for Class {
    /// `linear, 769 to 3072 rows, f16`, `attention, width 49 to 64, few keys, f32`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let index = self.index() % (CLASSES / 2);
        let dtype = self.dtype().name();
        let Some(index) = index.checked_sub(MATRIX_CLASSES) else {
            let product = ["convolution", "linear", "gated linear"][index / (ROWS.len() + 1)];
            return write!(f, "{product}, {} rows, {dtype}", between(&ROWS, index % (ROWS.len() + 1)));
        };
        let widths = WIDTHS.map(u64::from);
        let keys = if index > WIDTHS.len() { "few" } else { "many" };
        write!(f, "attention, width {}, {keys} keys, {dtype}", between(&widths, index % (WIDTHS.len() + 1)))
    }
}

/// The range of a bucket in words.
fn between(limits: &[u64], bucket: usize) -> String {
    let from = bucket.checked_sub(1).map_or(1, |below| limits[below] + 1);
    limits.get(bucket).map_or_else(|| format!("{from} and more"), |limit| format!("{from} to {limit}"))
}

/// What is known of an adapter's candidates, by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    fastest: [u8; CLASSES],
    unfit: [u16; CLASSES],
}

impl Default for Tuning {
    /// Nothing measured, nothing found unfit.
    fn default() -> Self {
        Self { fastest: [u8::MAX; CLASSES], unfit: [0; CLASSES] }
    }
}

impl Tuning {
    /// Notes the fastest candidate of a class.
    pub fn set_fastest(&mut self, class: Class, candidate: usize) {
        self.fastest[class.index()] = u8::try_from(candidate).unwrap_or(u8::MAX);
    }

    /// Nothing known but that `candidate` of `class` is to run.
    pub fn only(class: Class, candidate: usize) -> Self {
        let mut tuning = Self::default();
        tuning.set_fastest(class, candidate);
        tuning
    }

    /// Notes that a candidate of a class gave wrong numbers.
    pub fn set_unfit(&mut self, class: Class, candidate: usize) {
        self.unfit[class.index()] |= 1 << (candidate % 16);
    }

    /// The place of the candidate to run out of `count`: the fastest if it was measured, else the first that is fit.
    /// The last one is taken where none is fit.
    pub fn pick(&self, class: Class, count: usize) -> usize {
        self.pick_but(class, count, |_| false)
    }

    /// The same where some candidates are ruled out; the last must not be.
    pub fn pick_but(&self, class: Class, count: usize, ruled_out: impl Fn(usize) -> bool) -> usize {
        let passed = |candidate: usize| self.unfit[class.index()] & (1 << (candidate % 16)) == 0;
        let fit = |candidate: &usize| passed(*candidate) && !ruled_out(*candidate);
        let fastest = usize::from(self.fastest[class.index()]);
        let fastest = Some(fastest).filter(|candidate| *candidate < count && fit(candidate));
        fastest.or_else(|| (0..count).find(fit)).unwrap_or(count.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_distinct_and_below_their_number() {
        let mut seen = std::collections::HashSet::new();
        for dtype in [DType::F32, DType::F16] {
            for product in [Product::Convolution, Product::Linear, Product::Gated] {
                for rows in [1, 193, 769, 3073] {
                    assert!(seen.insert(Class::matrix(product, rows, dtype)));
                }
            }
            for width in [40, 64, 80, 128, 160, 512] {
                assert!(seen.insert(Class::attention(width, 77, dtype)));
                assert!(seen.insert(Class::attention(width, 4096, dtype)));
            }
        }
        assert!(seen.len() == CLASSES && seen.iter().all(|class| class.index() < CLASSES));
        let all: std::collections::HashSet<_> = Class::all(DType::F32).chain(Class::all(DType::F16)).collect();
        assert_eq!(all, seen);
        assert_eq!(all.iter().map(Class::to_string).collect::<std::collections::HashSet<_>>().len(), CLASSES);
    }

    #[test]
    fn classes_tell_what_they_hold() {
        let told = |class: Class| class.to_string();
        assert_eq!(told(Class::matrix(Product::Linear, 1000, DType::F16)), "linear, 769 to 3072 rows, f16");
        assert_eq!(told(Class::matrix(Product::Convolution, 9999, DType::F32)), "convolution, 3073 and more rows, f32");
        assert_eq!(told(Class::attention(40, 77, DType::F32)), "attention, width 1 to 48, few keys, f32");
        assert_eq!(told(Class::attention(512, 4096, DType::F16)), "attention, width 161 and more, many keys, f16");
    }

    #[test]
    fn the_fastest_fit_candidate_is_picked() {
        let class = Class::matrix(Product::Linear, 100, DType::F16);
        let mut tuning = Tuning::default();
        assert_eq!(tuning.pick(class, 3), 0);
        tuning.set_fastest(class, 1);
        assert_eq!(tuning.pick(class, 3), 1);
        assert_eq!(tuning.pick(class, 1), 0);
        tuning.set_unfit(class, 1);
        assert_eq!(tuning.pick(class, 3), 0);
        tuning.set_unfit(class, 0);
        assert_eq!(tuning.pick(class, 3), 2);
        tuning.set_unfit(class, 2);
        assert_eq!(tuning.pick(class, 3), 2);
    }
}
