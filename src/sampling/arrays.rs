//! The few array functions of numpy and torch that schedules are made of, with their order of rounding.

/// `torch.linspace(start, end, n)` in f32: each half counts from its own end, with a fused multiply-add.
pub(super) fn torch_linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (end - start) / (n - 1) as f32;
    let value = |i: usize| {
        if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - i - 1) as f32, end) }
    };
    (0..n).map(value).collect()
}

/// `numpy.linspace(start, end, n)` in f64.
pub(super) fn numpy_linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (end - start) / (n - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    values[n - 1] = end;
    values
}

/// `numpy.arange(start, 0, -step)`: its length can be one off the whole count, as numpy's.
pub(super) fn numpy_arange_down(start: f64, step: f64) -> Vec<f64> {
    let n = (start / step).ceil().max(0.0) as usize;
    let delta = (start - step) - start;
    (0..n).map(|i| start + i as f64 * delta).collect()
}

/// `numpy.interp(x, arange(len), table)`: linear between entries, clamped at both ends.
pub(super) fn interpolate(table: &[f32], x: f64) -> f64 {
    let last = table.len() - 1;
    if x <= 0.0 {
        return f64::from(table[0]);
    }
    if x >= last as f64 {
        return f64::from(table[last]);
    }
    let low = x.floor();
    let (a, b) = (f64::from(table[low as usize]), f64::from(table[low as usize + 1]));
    if low == x { a } else { (b - a) * (x - low) + a }
}

/// Natural logarithm rounded once to f32, as torch's and numpy's are meant to be.
pub(super) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// Exponential rounded once to f32.
pub(super) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// `exp(x) - 1` rounded once to f32.
pub(super) fn exp_m1(x: f32) -> f32 {
    f64::from(x).exp_m1() as f32
}

/// Quantile `p` of the Beta(a, a) distribution, `scipy.stats.beta.ppf(p, a, a)`, by bisection of its series.
pub(super) fn symmetric_beta_quantile(p: f64, a: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    if p > 0.5 {
        return 1.0 - symmetric_beta_quantile(1.0 - p, a);
    }
    let (mut low, mut high) = (0.0f64, 0.5f64);
    let whole = 2.0 * lower_beta(0.5, a);
    while high - low > high * 1e-16 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if lower_beta(middle, a) < p * whole { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The incomplete beta function B(x; a, a) for x <= 1/2: x^a sum_n (1-a)_n x^n / (n! (a+n)) (DLMF 8.17.7).
fn lower_beta(x: f64, a: f64) -> f64 {
    let (mut sum, mut term, mut n) = (0.0, 1.0, 0.0);
    while term > 1e-18 {
        sum += term / (a + n);
        term *= (n + 1.0 - a) / (n + 1.0) * x;
        n += 1.0;
    }
    x.powf(a) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy 1.17.1: `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
    #[test]
    fn beta_quantiles_are_scipys() {
        for (p, expected) in [
            (0.001, 1.855873851745199e-05),
            (0.05, 0.012_554_456_873_611_399),
            (0.25, 0.175_680_378_652_694_98),
            (0.5, 0.5),
            (0.9, 0.960_415_594_411_219_2),
        ] {
            let found = symmetric_beta_quantile(p, 0.6);
            assert!((found - expected).abs() <= 1e-12 * expected, "{p}: {found} {expected}");
        }
    }
}
