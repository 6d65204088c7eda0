//! The bound of dynamic thresholding: a quantile of the data estimate's magnitude.

use super::scheduler_step::SchedulerStep;
use super::{Call, Variant, whole};

/// The bound of a sample's estimate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicThreshold {
    /// The update that the bound is for.
    pub step: SchedulerStep,
    /// Share of the elements below the quantile, 0 to 1.
    pub ratio: f32,
    /// The largest bound.
    pub most: f32,
}

impl DynamicThreshold {
    /// Rank of the smaller neighbour, and how far the quantile lies towards the larger one: f32 arithmetic, as
    /// `torch.quantile` does it.
    fn rank(&self) -> (u32, f32) {
        let last = (self.step.positions * self.step.channels).saturating_sub(1);
        let rank = self.ratio * last as f32;
        (rank.floor().min(last as f32) as u32, rank.fract())
    }
}

/// model_output, factor, state, table -> bound `[1]` = (factor, s, 0, 0), to be the `factor` of `scheduler_step`.
pub fn call(config: &DynamicThreshold) -> Call {
    let (below, share) = config.rank();
    let params = config.step.params().with_quantile(below, share, config.most);
    let types = vec![("M", config.step.output)];
    let constants = config.step.constants();
    let variant = Variant { stem: "dynamic_threshold", enables: vec![], constants, types };
    whole(variant, &params, [1, 1, 1], 5)
}

/// The same in f64 from all data estimates.
pub fn reference(config: &DynamicThreshold, estimates: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = estimates.iter().map(|value| value.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let (below, share) = config.rank();
    let low = sorted[below as usize];
    let high = sorted[(below as usize + usize::from(share > 0.0)).min(sorted.len() - 1)];
    (low + (high - low) * f64::from(share)).max(1.0).min(f64::from(config.most))
}

#[cfg(test)]
mod tests {
    use super::super::scheduler_step::Deviation;
    use super::*;
    use crate::tensor::DType;

    /// `torch.quantile(torch.tensor(x).abs(), ratio)`, torch 2.15.
    #[test]
    fn the_quantile_is_pytorchs() {
        let x = [1.5, -2.25, 3.0, -4.5, 0.25, 7.0, -1.0];
        for (ratio, expected) in [(0.95f32, 6.25), (0.5, 2.25), (0.8, 4.20000028), (1.0, 7.0)] {
            let step = SchedulerStep {
                positions: 7,
                channels: 1,
                slots: 1,
                guided: false,
                split: false,
                deviation: Deviation::Given,
                threshold: true,
                batch: 1,
                output: DType::F32,
                input: DType::F32,
            };
            let found = reference(&DynamicThreshold { step, ratio, most: 9.0 }, &x);
            assert!((found - expected).abs() <= 1e-6, "{ratio}: {found}");
        }
    }
}
