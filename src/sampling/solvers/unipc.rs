//! UniPC on data predictions (Zhao et al. 2023, arXiv 2302.04867), orders 1 to 3, as diffusers'
//! `scheduling_unipc_multistep.py`: each evaluation first corrects the latent that it was made at, then predicts the next.

use super::dpm::Level;
use super::{Run, vp_estimate};
use crate::error::Result;
use crate::sampling::arrays::exp_m1;
use crate::sampling::program::{Draft, Linear, Program};
use crate::sampling::schedule::{Training, multistep_run};
use crate::sampling::settings::Formula;

/// The corrected latent of the evaluation before.
const LAST: usize = 1;
/// The newest data estimate of the evaluations before; older ones follow.
const ESTIMATES: usize = 2;

pub(super) fn program(run: &Run) -> Result<Program> {
    let settings = run.settings;
    let training = Training::new(settings, true);
    let path = multistep_run(&training, settings, run.sampler, run.steps, run.custom);
    let levels: Vec<Level> = path.sigmas.iter().map(|&sigma| Level::new(sigma)).collect();
    let count = path.timesteps.len();
    let mut drafts = Vec::new();
    let mut order_before = 0;
    for (i, &timestep) in path.timesteps.iter().enumerate() {
        let mut sample = Linear::LATENT;
        if i > 0 && !settings.disable_corrector.contains(&(i - 1)) {
            let newest_first: Vec<Linear> = (0..order_before).map(|k| Linear::slot(ESTIMATES + k)).collect();
            let step = Step::new(&levels, i - 1, order_before, settings.formula);
            sample = step.corrected(&newest_first);
        }
        let order =
            if settings.lower_order_final { settings.solver_order.min(count - i) } else { settings.solver_order };
        let order = order.min(i + 1);
        let newest_first: Vec<Linear> =
            std::iter::once(Linear::X0).chain((0..order - 1).map(|k| Linear::slot(ESTIMATES + k))).collect();
        let mut next = vec![Step::new(&levels, i, order, settings.formula).predicted(sample, &newest_first), sample];
        next.push(Linear::X0);
        next.extend((1..settings.solver_order).map(|k| Linear::slot(ESTIMATES + k - 1)));
        drafts.push(Draft {
            timestep,
            sigma: path.sigmas[i],
            input_scale: 1.0,
            estimate: vp_estimate(settings.prediction, levels[i].alpha, levels[i].sigma, settings.bound),
            draws_noise: false,
            deviation: None,
            next,
        });
        order_before = order;
    }
    run.finish(1.0, ESTIMATES + settings.solver_order, drafts)
}

/// The step from level `i` to `i + 1` at some order.
struct Step {
    order: usize,
    ratio: f32,
    alpha: f32,
    /// e^-h - 1.
    phi: f32,
    /// B(h).
    scale: f32,
    /// Relative log ratios of the earlier levels, and 1.
    nodes: Vec<f32>,
    targets: Vec<f32>,
}

impl Step {
    fn new(levels: &[Level], i: usize, order: usize, formula: Formula) -> Self {
        let (from, to) = (levels[i], levels[i + 1]);
        let h = to.lambda - from.lambda;
        let mut nodes: Vec<f32> = (1..order).map(|k| (levels[i - k].lambda - from.lambda) / h).collect();
        nodes.push(1.0);
        let hh = -h;
        let phi = exp_m1(hh);
        let scale = if formula == Formula::Bh1 { hh } else { phi };
        let (mut phi_k, mut factorial) = (phi / hh - 1.0, 1.0f32);
        let mut targets = Vec::new();
        for k in 1..=order {
            targets.push(phi_k * factorial / scale);
            factorial *= (k + 1) as f32;
            phi_k = phi_k / hh - 1.0 / factorial;
        }
        Self { order, ratio: to.sigma / from.sigma, alpha: to.alpha, phi, scale, nodes, targets }
    }

    /// Divided differences of the estimates, newest first.
    fn differences(&self, estimates: &[Linear]) -> Vec<Linear> {
        estimates[1..].iter().zip(&self.nodes).map(|(&m, &node)| (m - estimates[0]) / node).collect()
    }

    fn first_order(&self, sample: Linear, newest: Linear) -> Linear {
        self.ratio * sample - (self.alpha * self.phi) * newest
    }

    /// UniP: the latent at the step's end from that at its start.
    fn predicted(&self, sample: Linear, estimates: &[Linear]) -> Linear {
        let weights = match self.order {
            1 => return self.first_order(sample, estimates[0]),
            2 => vec![0.5],
            order => solve(&self.nodes[..order - 1], &self.targets[..order - 1]),
        };
        let slope = weighted(&weights, &self.differences(estimates));
        self.first_order(sample, estimates[0]) - (self.alpha * self.scale) * slope
    }

    /// UniC: the latent at the step's end again, now that the model has been asked there.
    fn corrected(&self, estimates: &[Linear]) -> Linear {
        let weights = if self.order == 1 { vec![0.5] } else { solve(&self.nodes, &self.targets) };
        let mut differences = self.differences(estimates);
        differences.push(Linear::X0 - estimates[0]);
        let slope = weighted(&weights, &differences);
        self.first_order(Linear::slot(LAST), estimates[0]) - (self.alpha * self.scale) * slope
    }
}

fn weighted(weights: &[f64], values: &[Linear]) -> Linear {
    weights.iter().zip(values).fold(Linear::ZERO, |sum, (&weight, &value)| sum + weight * value)
}

/// The weights w with `sum_j nodes[j]^k w[j] = targets[k]`, by elimination in f64 (at most three unknowns).
fn solve(nodes: &[f32], targets: &[f32]) -> Vec<f64> {
    let n = nodes.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|k| nodes.iter().map(|&x| f64::from(x).powi(k as i32)).chain([f64::from(targets[k])]).collect())
        .collect();
    for pivot in 0..n {
        let best = (pivot..n).max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs())).unwrap_or(pivot);
        rows.swap(pivot, best);
        let head = rows[pivot].clone();
        for row in rows.iter_mut().skip(pivot + 1) {
            let factor = row[pivot] / head[pivot];
            row.iter_mut().zip(&head).for_each(|(x, h)| *x -= factor * h);
        }
    }
    let mut weights = vec![0.0; n];
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| rows[k][j] * weights[j]).sum();
        weights[k] = (rows[k][n] - known) / rows[k][k];
    }
    weights
}
