//! What a scheduler's config means: diffusers' defaults by class, checked and typed.

use serde_json::{Map, Value, json};

use super::kinds::SamplerKind;
use super::kinds::nearest;
use super::program::Bound;
use crate::error::{Error, Result};

/// What the model's output stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise in the latent.
    Epsilon,
    /// sqrt(alpha) noise - sqrt(1 - alpha) x0 (Salimans and Ho 2022, arXiv 2202.00512).
    Velocity,
    /// The noiseless latent.
    Sample,
}

/// How betas grow over the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaCurve {
    Linear,
    ScaledLinear,
    Cosine,
    Exponential,
    Laplace,
    Sigmoid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// How noise levels between the extremes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SigmaCurve {
    FromTimesteps,
    Karras,
    Exponential,
    Beta,
    Lu,
}

/// DDPM's posterior variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variance {
    Small,
    SmallLog,
    Large,
    LargeLog,
    /// The model predicts it.
    Learned,
    /// The model predicts where it lies between the smallest and the largest, in logarithms.
    Range,
    /// The model predicts it, and the solver has no use for it.
    Unread,
}

/// The second-order formula of DPM-Solver++, or the B(h) of UniPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Formula {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
}

/// A checked config; a setting that the class lacks holds its neutral value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub train_steps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_curve: BetaCurve,
    pub trained_betas: Option<Vec<f32>>,
    pub zero_snr: bool,
    pub prediction: PredictionType,
    pub spacing: Spacing,
    pub offset: i64,
    pub bound: Option<Bound>,
    pub set_alpha_to_one: bool,
    pub curve: SigmaCurve,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub final_sigma_min: bool,
    pub log_linear: bool,
    pub continuous: bool,
    pub variance: Variance,
    pub skip_prk_steps: bool,
    pub solver_order: usize,
    pub formula: Formula,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub lambda_min_clipped: f64,
    pub disable_corrector: Vec<usize>,
    pub original_steps: usize,
    pub timestep_scaling: f64,
}

/// The keyword arguments of a class's `__init__` with their defaults (diffusers 0.42.1, `schedulers/scheduling_*.py`).
pub(super) fn defaults(kind: SamplerKind) -> Map<String, Value> {
    let common = json!({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "trained_betas": null, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0});
    let thresholds = json!({"thresholding": false, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0});
    let clips = json!({"clip_sample": true, "clip_sample_range": 1.0, "rescale_betas_zero_snr": false});
    let curves = json!({"timestep_spacing": "linspace", "use_karras_sigmas": false, "use_exponential_sigmas": false,
        "use_beta_sigmas": false});
    let multistep = json!({"solver_order": 2, "lower_order_final": true, "use_flow_sigmas": false, "flow_shift": 1.0,
        "final_sigmas_type": "zero", "rescale_betas_zero_snr": false, "use_dynamic_shifting": false,
        "time_shift_type": "exponential"});
    let own = match kind {
        SamplerKind::UnClip => vec![json!({"variance_type": "fixed_small_log", "clip_sample": true,
            "clip_sample_range": 1.0, "beta_schedule": "squaredcos_cap_v2"})],
        SamplerKind::Ddim => vec![thresholds, clips, json!({"set_alpha_to_one": true})],
        SamplerKind::Ddpm => vec![thresholds, clips, json!({"variance_type": "fixed_small"})],
        SamplerKind::Pndm => vec![json!({"skip_prk_steps": false, "set_alpha_to_one": false})],
        SamplerKind::Euler => vec![
            curves,
            json!({"interpolation_type": "linear", "sigma_min": null, "sigma_max": null, "timestep_type": "discrete",
                "rescale_betas_zero_snr": false, "final_sigmas_type": "zero"}),
        ],
        SamplerKind::EulerAncestral => {
            vec![json!({"timestep_spacing": "linspace", "rescale_betas_zero_snr": false})]
        }
        SamplerKind::Heun => vec![
            curves,
            json!({"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false, "clip_sample_range": 1.0}),
        ],
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => vec![
            thresholds,
            curves,
            multistep,
            json!({"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": false,
                "use_lu_lambdas": false, "lambda_min_clipped": null, "variance_type": null}),
        ],
        SamplerKind::UniPc => vec![
            thresholds,
            curves,
            multistep,
            json!({"solver_type": "bh2", "predict_x0": true, "disable_corrector": [], "solver_p": null,
                "sigma_min": null, "sigma_max": null, "shift_terminal": null}),
        ],
        SamplerKind::Lcm => vec![
            thresholds,
            clips,
            json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
                "original_inference_steps": 50, "set_alpha_to_one": true, "timestep_scaling": 10.0}),
        ],
    };
    let mut all = Map::new();
    for part in std::iter::once(common).chain(own) {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    if kind == SamplerKind::UnClip {
        let foreign = ["beta_start", "beta_end", "trained_betas", "timestep_spacing", "steps_offset"];
        all.retain(|key, _| !foreign.contains(&key.as_str()));
    }
    all
}

/// Keys of diffusers' other schedulers: carried along by `from_config`, without meaning here.
const CARRIED: [&str; 19] = [
    "base_image_seq_len",
    "base_shift",
    "corrector_order",
    "eta",
    "invert_sigmas",
    "max_image_seq_len",
    "max_shift",
    "noise_sampler_seed",
    "predictor_order",
    "rho",
    "s_churn",
    "s_noise",
    "shift",
    "sigma_data",
    "sigma_schedule",
    "snr_shift_scale",
    "stochastic_sampling",
    "tau_func",
    "tensor_format",
];

/// The first key that no scheduler knows, with the nearest known one.
pub(super) fn unknown_key(given: &Map<String, Value>) -> Option<(&str, Option<String>)> {
    let mut known: Vec<String> = CARRIED.iter().map(|&key| key.to_string()).collect();
    known.extend(SamplerKind::ALL.iter().flat_map(|&kind| defaults(kind).into_iter().map(|(key, _)| key)));
    let stranger = given.keys().find(|key| !key.starts_with('_') && !known.contains(key))?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Some((stranger, nearest(stranger, &known).map(str::to_string)))
}

/// Typed access to a config's effective values.
pub(super) struct Reader<'a> {
    pub place: &'a str,
    pub values: Map<String, Value>,
    /// Values that the class does not take but that `from_config` leaves where its methods look (`hasattr`).
    pub hidden: &'a Map<String, Value>,
}

impl Reader<'_> {
    /// The whole config, or an error for whatever scumble does not implement.
    pub fn settings(&self, kind: SamplerKind) -> Result<Settings> {
        self.refuse_unimplemented()?;
        let train_steps = self.count("num_train_timesteps", 1000)?;
        if !(1..=100_000).contains(&train_steps) {
            return Err(self.wrong("num_train_timesteps", "1 to 100000"));
        }
        Ok(Settings {
            train_steps,
            beta_start: self.beta("beta_start")?,
            beta_end: self.beta("beta_end")?,
            beta_curve: self.beta_curve(kind)?,
            trained_betas: self.trained_betas(train_steps)?,
            zero_snr: self.flag("rescale_betas_zero_snr")?,
            prediction: self.prediction(kind)?,
            spacing: self.spacing(kind)?,
            offset: self.offset()?,
            bound: self.bound()?,
            set_alpha_to_one: self.flag("set_alpha_to_one")?,
            curve: self.curve()?,
            sigma_min: self.extreme("sigma_min")?,
            sigma_max: self.extreme("sigma_max")?,
            final_sigma_min: self.word("final_sigmas_type", &[("zero", false), ("sigma_min", true)])?,
            log_linear: self.word("interpolation_type", &[("linear", false), ("log_linear", true)])?,
            continuous: self.word("timestep_type", &[("discrete", false), ("continuous", true)])?,
            variance: self.variance(kind)?,
            skip_prk_steps: self.flag("skip_prk_steps")?,
            solver_order: self.solver_order()?,
            formula: self.formula(kind)?,
            lower_order_final: self.flag("lower_order_final")?,
            euler_at_final: self.flag("euler_at_final")?,
            lambda_min_clipped: self.lambda_min_clipped()?,
            disable_corrector: self.disable_corrector()?,
            original_steps: self.count("original_inference_steps", 50)?,
            timestep_scaling: self.number("timestep_scaling", 10.0)?,
        })
    }

    fn refuse_unimplemented(&self) -> Result<()> {
        for key in ["use_flow_sigmas", "use_dynamic_shifting"] {
            if self.flag(key)? {
                return Err(self.wrong(key, "false (scumble does not implement it)"));
            }
        }
        for key in ["solver_p", "shift_terminal"] {
            if self.values.get(key).is_some_and(|value| !value.is_null()) {
                return Err(self.wrong(key, "null (scumble does not implement it)"));
            }
        }
        if self.values.contains_key("predict_x0") && !self.flag("predict_x0")? {
            return Err(self.wrong("predict_x0", "true (scumble does not implement UniPC on noise predictions)"));
        }
        Ok(())
    }

    fn spacing(&self, kind: SamplerKind) -> Result<Spacing> {
        if kind == SamplerKind::UnClip {
            return Ok(Spacing::Linspace);
        }
        self.word(
            "timestep_spacing",
            &[("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)],
        )
    }

    /// diffusers' solvers ask for thresholding first.
    fn bound(&self) -> Result<Option<Bound>> {
        if self.flag("thresholding")? {
            let ratio = self.number("dynamic_thresholding_ratio", 0.995)? as f32;
            let most = self.number("sample_max_value", 1.0)? as f32;
            return match (ratio, most) {
                (ratio, _) if !(0.0..=1.0).contains(&ratio) => {
                    Err(self.wrong("dynamic_thresholding_ratio", "a number from 0 to 1"))
                }
                (_, most) if most <= 0.0 => Err(self.wrong("sample_max_value", "a positive number")),
                (ratio, most) => Ok(Some(Bound::Dynamic { ratio, most })),
            };
        }
        if !self.flag("clip_sample")? {
            return Ok(None);
        }
        match self.number("clip_sample_range", 1.0)? as f32 {
            range if range > 0.0 => Ok(Some(Bound::Fixed(range))),
            _ => Err(self.wrong("clip_sample_range", "a positive number")),
        }
    }

    fn beta(&self, key: &str) -> Result<f64> {
        match self.number(key, 0.0)? {
            beta if (0.0..=1.0).contains(&beta) => Ok(beta),
            _ => Err(self.wrong(key, "a number from 0 to 1")),
        }
    }

    fn beta_curve(&self, kind: SamplerKind) -> Result<BetaCurve> {
        let mut known = vec![
            ("linear", BetaCurve::Linear),
            ("scaled_linear", BetaCurve::ScaledLinear),
            ("squaredcos_cap_v2", BetaCurve::Cosine),
        ];
        match kind {
            SamplerKind::Ddpm => known.extend([("laplace", BetaCurve::Laplace), ("sigmoid", BetaCurve::Sigmoid)]),
            SamplerKind::Heun => known.push(("exp", BetaCurve::Exponential)),
            SamplerKind::UnClip => known.retain(|(_, curve)| *curve == BetaCurve::Cosine),
            _ => {}
        }
        self.word("beta_schedule", &known)
    }

    fn prediction(&self, kind: SamplerKind) -> Result<PredictionType> {
        let mut known = vec![("epsilon", PredictionType::Epsilon)];
        if kind != SamplerKind::UnClip {
            known.push(("v_prediction", PredictionType::Velocity));
        }
        if !matches!(kind, SamplerKind::Pndm | SamplerKind::EulerAncestral) {
            known.push(("sample", PredictionType::Sample));
        }
        if kind == SamplerKind::Euler {
            known.push(("original_sample", PredictionType::Sample));
        }
        self.word("prediction_type", &known)
    }

    fn variance(&self, kind: SamplerKind) -> Result<Variance> {
        match kind {
            SamplerKind::Ddpm => {}
            SamplerKind::UnClip => {
                let known = [("fixed_small_log", Variance::SmallLog), ("learned_range", Variance::Range)];
                return self.word("variance_type", &known);
            }
            _ => {
                let word = self.values.get("variance_type").and_then(Value::as_str);
                let learned = word.is_some_and(|word| word.starts_with("learned"));
                return Ok(if learned { Variance::Unread } else { Variance::Small });
            }
        }
        // diffusers leaves the posterior variance as it is, which is fixed_small, for null.
        if self.values.get("variance_type").is_none_or(Value::is_null) {
            return Ok(Variance::Small);
        }
        self.word(
            "variance_type",
            &[
                ("fixed_small", Variance::Small),
                ("fixed_small_log", Variance::SmallLog),
                ("fixed_large", Variance::Large),
                ("fixed_large_log", Variance::LargeLog),
                ("learned", Variance::Learned),
                ("learned_range", Variance::Range),
            ],
        )
    }

    fn formula(&self, kind: SamplerKind) -> Result<Formula> {
        match kind {
            SamplerKind::UniPc => self.word("solver_type", &[("bh1", Formula::Bh1), ("bh2", Formula::Bh2)]),
            SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => {
                self.word("algorithm_type", &[("dpmsolver++", ()), ("sde-dpmsolver++", ())])?;
                self.word("solver_type", &[("midpoint", Formula::Midpoint), ("heun", Formula::Heun)])
            }
            _ => Ok(Formula::Midpoint),
        }
    }

    fn curve(&self) -> Result<SigmaCurve> {
        let curves = [
            ("use_karras_sigmas", SigmaCurve::Karras),
            ("use_exponential_sigmas", SigmaCurve::Exponential),
            ("use_beta_sigmas", SigmaCurve::Beta),
        ];
        let mut chosen = None;
        for (key, curve) in curves {
            if self.flag(key)? {
                if chosen.is_some() {
                    return Err(self.wrong(key, "at most one of the use_*_sigmas settings"));
                }
                chosen = Some(curve);
            }
        }
        // diffusers asks for Karras first and for Lu's lambdas before the others.
        let lu = self.flag("use_lu_lambdas")?;
        Ok(match chosen {
            Some(SigmaCurve::Karras) => SigmaCurve::Karras,
            _ if lu => SigmaCurve::Lu,
            Some(curve) => curve,
            None => SigmaCurve::FromTimesteps,
        })
    }

    fn extreme(&self, key: &str) -> Result<Option<f64>> {
        let value = self.values.get(key).or_else(|| self.hidden.get(key));
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(sigma) if sigma > 0.0 => Ok(Some(sigma)),
                _ => Err(self.unlike(key, "a positive number or null", value)),
            },
        }
    }

    fn offset(&self) -> Result<i64> {
        match self.values.get("steps_offset") {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .filter(|n| n.abs() <= 100_000)
                .ok_or_else(|| self.unlike("steps_offset", "a whole number", value)),
        }
    }

    fn solver_order(&self) -> Result<usize> {
        match self.count("solver_order", 2)? {
            order @ 1..=3 => Ok(order),
            _ => Err(self.wrong("solver_order", "1, 2 or 3")),
        }
    }

    fn lambda_min_clipped(&self) -> Result<f64> {
        match self.values.get("lambda_min_clipped") {
            None | Some(Value::Null) => Ok(f64::NEG_INFINITY),
            Some(Value::String(word)) if word == "-Infinity" => Ok(f64::NEG_INFINITY),
            Some(_) => self.number("lambda_min_clipped", 0.0),
        }
    }

    fn disable_corrector(&self) -> Result<Vec<usize>> {
        let Some(value) = self.values.get("disable_corrector") else { return Ok(Vec::new()) };
        let steps = value.as_array().and_then(|list| list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        steps.ok_or_else(|| self.unlike("disable_corrector", "a list of step indices", value))
    }

    fn trained_betas(&self, train_steps: usize) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.values.get("trained_betas").filter(|value| !value.is_null()) else { return Ok(None) };
        let betas: Option<Vec<f32>> =
            value.as_array().and_then(|l| l.iter().map(|b| b.as_f64().map(|b| b as f32)).collect());
        let betas = betas.filter(|betas| betas.len() == train_steps && betas.iter().all(|b| (0.0..=1.0).contains(b)));
        betas.map(Some).ok_or_else(|| {
            Error::new("scheduler setting")
                .at(format!("{}: trained_betas", self.place))
                .expected(format!("null or {train_steps} numbers (num_train_timesteps) from 0 to 1"))
        })
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.unlike(key, "true or false", other)),
        }
    }

    fn count(&self, key: &str, neutral: usize) -> Result<usize> {
        match self.values.get(key) {
            None => Ok(neutral),
            Some(value) => value
                .as_u64()
                .filter(|&n| (1..=100_000).contains(&n))
                .map(|n| n as usize)
                .ok_or_else(|| self.unlike(key, "a whole number from 1 to 100000", value)),
        }
    }

    fn number(&self, key: &str, neutral: f64) -> Result<f64> {
        match self.values.get(key) {
            None => Ok(neutral),
            Some(value) => value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.unlike(key, "a number", value)),
        }
    }

    /// The meaning of a setting's word; the first known one if the class lacks the setting.
    fn word<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.values.get(key) else { return Ok(known[0].1) };
        let found = value.as_str().and_then(|word| known.iter().find(|(name, _)| *name == word));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.unlike(key, &format!("one of {}", names.join(", ")), value)
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        self.unlike(key, expected, self.values.get(key).unwrap_or(&Value::Null))
    }

    fn unlike(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::new("scheduler setting").at(format!("{}: {key}", self.place)).expected(expected).found(found)
    }
}
