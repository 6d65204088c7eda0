//! Schedules and solvers against diffusers' schedulers (goldens from `tools/goldens/sampling.py`).

use scumble::sampling::{AysList, Program, SamplerKind, ScheduleKind, SchedulerConfig, TorchGenerator};
use serde_json::Value;

/// The stand-in for the model, the same as in the golden script.
fn model(x: &[f32], t: f32) -> Vec<f32> {
    x.iter().map(|&x| (0.5 * (f64::from(x) + f64::from(t) / 700.0).sin()) as f32).collect()
}

/// The second half of a model's channels, the same as in the golden script.
fn variance(x: &[f32], t: f32) -> Vec<f32> {
    x.iter().map(|&x| (0.5 + 0.4 * (2.0 * f64::from(x) + f64::from(t) / 300.0).sin()) as f32).collect()
}

fn program(case: &Value) -> scumble::error::Result<Program> {
    let pipeline = case["pipeline"].as_bool() == Some(true);
    let swap = case["swap"].as_str().map(|word| word.parse::<SamplerKind>().unwrap());
    let mut config = SchedulerConfig::from_json(&case["config"], "golden");
    if pipeline {
        config = config?.in_stable_diffusion_pipeline();
    }
    if let Some(kind) = swap {
        config = match config {
            Ok(config) => config.with_sampler(kind),
            Err(_) => SchedulerConfig::from_json_for(&case["config"], kind, "golden"),
        };
    }
    let mut config = config?.with_eta(case["eta"].as_f64().unwrap_or(0.0) as f32);
    if let Some(schedule) = case["schedule"].as_str() {
        config = config.with_schedule(schedule.parse::<ScheduleKind>().unwrap(), AysList::StableDiffusion)?;
    }
    let custom: Option<Vec<usize>> =
        case["custom"].as_array().map(|list| list.iter().map(|t| t.as_u64().unwrap() as usize).collect());
    config.program(case["steps"].as_u64().unwrap_or(0) as usize, custom.as_deref())
}

/// The largest deviation of a run from diffusers', relative to the largest value that the run had held until then.
fn deviation(case: &Value, program: &Program) -> Result<f64, String> {
    let expected: Vec<f64> = numbers(&case["timesteps"]);
    let found: Vec<f64> = program.evaluations.iter().map(|step| f64::from(step.timestep)).collect();
    if expected.len() != found.len() {
        return Err(format!("timesteps {found:?}, not {expected:?}"));
    }
    for (a, b) in expected.iter().zip(&found) {
        // Whole timesteps are exact. Fractional ones are read off log sigma, whose f32 logarithm differs by an ulp (2e-7 of
        // at most 8.3) between numpy's builds; neighbouring levels lie as little as 0.0015 apart at the flat end.
        let tolerance = if a.fract() == 0.0 && b.fract() == 0.0 { 0.0 } else { 5e-4 };
        let close = (a - b).abs() <= tolerance;
        if !close {
            return Err(format!("timesteps {found:?}, not {expected:?}"));
        }
    }
    let mut generator = TorchGenerator::new(7);
    let scale = program.init_noise_sigma;
    let init: Vec<f32> = generator.randn(16).iter().map(|x| x * scale).collect();
    let mut largest = init.iter().map(|x| f64::from(x.abs())).fold(1.0, f64::max);
    let whole = |x: &[f32], t: f32| match program.learned_variance {
        true => [model(x, t), variance(x, t)].concat(),
        false => model(x, t),
    };
    let latents = program.reference_run(whole, init, || generator.randn(16));
    let sigma = case["init_noise_sigma"].as_f64().unwrap();
    let mut worst = (sigma - f64::from(scale)).abs() / sigma;
    let every = case["every"].as_u64().unwrap() as usize;
    let trace = case["trace"].as_array().unwrap();
    assert_eq!(trace.len(), latents.len().div_ceil(every));
    for (i, latent) in latents.iter().enumerate() {
        largest = latent.iter().map(|x| f64::from(x.abs())).fold(largest, f64::max);
        let mut pairs: Vec<(f64, f32)> = Vec::new();
        if i % every == 0 {
            pairs.extend(numbers(&trace[i / every]).into_iter().zip([latent[0], latent[5], latent[11]]));
        }
        if i + 1 == latents.len() {
            pairs.extend(numbers(&case["last"]).into_iter().zip(latent.iter().copied()));
        }
        for (expected, found) in pairs {
            let off = (expected - f64::from(found)).abs() / largest;
            worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
        }
    }
    Ok(worst)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn compare(text: &str) {
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    let mut faults = Vec::new();
    let mut worst = 0.0f64;
    for case in &cases {
        let mut call = case.clone();
        for key in ["timesteps", "trace", "last", "init_noise_sigma", "every"] {
            call.as_object_mut().unwrap().remove(key);
        }
        match (program(case), case["error"].as_str()) {
            (Err(_), Some(_)) => {}
            (Ok(_), Some(error)) => faults.push(format!("diffusers refuses ({error}), scumble does not: {call}")),
            (Err(error), None) => faults.push(format!("{error}: {call}")),
            (Ok(program), None) => match deviation(case, &program) {
                Ok(off) if off <= TOLERANCE + amplified_rounding(&program) => worst = worst.max(off),
                Ok(off) => faults.push(format!("off by {off:.3e}: {call}")),
                Err(fault) => faults.push(format!("{fault}: {call}")),
            },
        }
    }
    println!("{} cases, worst deviation {worst:.3e}", cases.len());
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// Both sides round to f32 after every operation; a step has about ten of them, twenty steps lose at most 20 x 10 x 6e-8
/// of the largest value. Nearly all cases stay below 2e-6.
const TOLERANCE: f64 = 1e-5;

/// Heun's second stage divides diffusers' rounding of the latent, (x - x0) / sigma, by a sigma that may be far smaller than
/// the stride it is multiplied with afterwards; scumble's table does not pass through that difference.
fn amplified_rounding(program: &Program) -> f64 {
    if program.sampler != SamplerKind::Heun {
        return 0.0;
    }
    let sigmas = program.evaluations.windows(2).map(|pair| [f64::from(pair[0].sigma), f64::from(pair[1].sigma)]);
    sigmas.map(|[from, to]| f64::from(f32::EPSILON) * (from - to) / (2.0 * to)).fold(0.0, f64::max)
}

#[test]
fn every_solver_spacing_and_prediction_is_diffusers() {
    compare(include_str!("goldens/sampling/product.json"));
}

#[test]
fn special_settings_are_diffusers() {
    compare(include_str!("goldens/sampling/special.json"));
}

#[test]
fn learned_variances_and_bounds_are_diffusers() {
    compare(include_str!("goldens/sampling/learned.json"));
}

#[test]
fn swapped_solvers_are_diffusers() {
    compare(include_str!("goldens/sampling/swaps.json"));
}
