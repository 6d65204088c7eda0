//! Seeded Gaussian noise, bit for bit as PyTorch's CPU generator draws it on x86-64.
//!
//! PyTorch fills sixteen or more normals from 24-bit uniforms in groups of sixteen by the Box-Muller transform
//! (`normal_fill_AVX2` in ATen's `native/cpu/DistributionTemplates.h`), with the logarithm, sine and cosine of the Cephes
//! single-precision library; fewer than sixteen come one by one in double precision (`at::normal_distribution<double>`,
//! `ATen/core/DistributionsHelper.h`), which keeps the second normal of each pair for the next call.

/// Words of the Mersenne twister's state (Matsumoto and Nishimura 1998, MT19937).
const STATE: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator().manual_seed(seed)` on the CPU: the same draws in the same order.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    state: [u32; STATE],
    next: usize,
    spare: Option<f64>,
}

impl TorchGenerator {
    /// A generator seeded as torch seeds it: the twister takes the low 32 bits of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        state[0] = (seed & u64::from(u32::MAX)) as u32;
        for j in 1..STATE {
            let last = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(j as u32);
        }
        Self { state, next: STATE, spare: None }
    }

    /// `torch.randn(n)`: `n` standard normals. A call of sixteen or more and a run of smaller calls differ, as in torch.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < GROUP {
            return (0..n).map(|_| self.double_normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        for group in values.chunks_exact_mut(GROUP) {
            box_muller(group);
        }
        if !n.is_multiple_of(GROUP) {
            let tail = &mut values[n - GROUP..];
            tail.fill_with(|| self.uniform());
            box_muller(tail);
        }
        values
    }

    /// `torch.empty(n).exponential_()`: `n` exponentials of rate 1, each from a uniform of 53 bits (two words). It is what
    /// `torch.multinomial` draws for one sample: of the quotients of probabilities and these the largest.
    pub fn exponential(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (-(-self.double_uniform()).ln_1p()) as f32).collect()
    }

    /// `torch.randperm(n)`: the numbers below `n`, shuffled with a word for each but the last.
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            order.swap(i as usize, (i + self.word() % (n - i)) as usize);
        }
        order
    }

    fn uniform(&mut self) -> f32 {
        (self.word() & 0x00FF_FFFF) as f32 * (1.0 / 16_777_216.0)
    }

    fn double_uniform(&mut self) -> f64 {
        let high = u64::from(self.word());
        let bits = (high << 32) | u64::from(self.word());
        (bits & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn double_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = 2.0 * std::f64::consts::PI * self.double_uniform();
        let radius = (-2.0 * (-self.double_uniform()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn word(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for k in 0..STATE {
            let y = (self.state[k] & 0x8000_0000) | (self.state[(k + 1) % STATE] & 0x7FFF_FFFF);
            let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[k] = self.state[(k + SHIFT) % STATE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Normals made from one group of uniforms: the first half of the group pairs with the second.
const GROUP: usize = 16;

fn box_muller(group: &mut [f32]) {
    for j in 0..GROUP / 2 {
        let radius = (-2.0 * log(1.0 - group[j])).sqrt();
        let (sine, cosine) = sin_cos(2.0 * std::f32::consts::PI * group[j + GROUP / 2]);
        group[j] = radius * cosine;
        group[j + GROUP / 2] = radius * sine;
    }
}

/// Natural logarithm of a number in (0, 1], by Cephes' `logf` (Moshier, netlib.org/cephes) with the multiply-adds fused
/// where torch's AVX2 build fuses them.
#[allow(clippy::excessive_precision)] // the constants as Cephes prints them
fn log(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_629_2e-2,
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mantissa = f32::from_bits((bits & 0x007F_FFFF) | 0.5f32.to_bits());
    let exponent = ((bits >> 23) as i32 - 126) as f32;
    let small = mantissa < std::f32::consts::FRAC_1_SQRT_2;
    let (exponent, x) = if small { (exponent - 1.0, (mantissa - 1.0) + mantissa) } else { (exponent, mantissa - 1.0) };
    let z = x * x;
    let y = P[1..].iter().fold(P[0], |y, &p| y.mul_add(x, p)) * x;
    let y = y.mul_add(z, exponent * -2.121_944_4e-4);
    let y = z.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_375, x + y)
}

/// Sine and cosine of an angle in [0, 2 pi], by Cephes' `sinf` and `cosf`, fused as in [`log`].
#[allow(clippy::excessive_precision)] // the constants as Cephes prints them
fn sin_cos(angle: f32) -> (f32, f32) {
    let octant = ((angle * 1.273_239_544_735_16) as u32 + 1) & !1;
    let whole = octant as f32;
    let x = whole.mul_add(-0.785_156_25, angle);
    let x = whole.mul_add(-2.418_756_484_985_351_6e-4, x);
    let x = whole.mul_add(-3.774_894_977_445_941e-8, x);
    let z = x * x;
    let c = 2.443_315_711_809_948e-5f32.mul_add(z, -1.388_731_625_493_765e-3).mul_add(z, 4.166_664_568_298_827e-2);
    let c = (c * z).mul_add(z, z * -0.5) + 1.0;
    let s = (-1.951_529_589_1e-4f32).mul_add(z, 8.332_160_873_6e-3).mul_add(z, -1.666_665_461_1e-1);
    let s = (s * z).mul_add(x, x);
    let (s, c) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let sine = if octant & 4 == 0 { s } else { -s };
    let cosine = if octant.wrapping_sub(2) & 4 == 0 { -c } else { c };
    (sine, cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of mixed sizes from `tools/goldens/sampling.py`; every value must have torch's very bits.
    #[test]
    fn draws_torchs_numbers() {
        let text = include_str!("../../tests/goldens/sampling/noise.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        for case in golden.as_array().unwrap() {
            let seed: u64 = case["seed"].as_str().unwrap().parse().unwrap();
            let mut generator = TorchGenerator::new(seed);
            for call in case["calls"].as_array().unwrap() {
                let n = call["n"].as_u64().unwrap() as usize;
                let values = generator.randn(n);
                let hash = values.iter().fold(0u64, |h, v| h.wrapping_mul(31).wrapping_add(u64::from(v.to_bits())));
                let first: Vec<u64> = values.iter().take(8).map(|v| u64::from(v.to_bits())).collect();
                let expected: Vec<u64> =
                    call["first"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
                assert_eq!(first, expected, "seed {seed}, {n} values");
                assert_eq!(hash.to_string(), call["hash"].as_str().unwrap(), "seed {seed}, {n} values");
            }
        }
    }
}
