//! A diffusers `scheduler_config.json`, and the swap of its solver or its schedule.

use serde_json::{Map, Value};

use super::kinds::{AysList, SamplerKind, ScheduleKind};
use super::program::Program;
use super::schedule;
use super::settings::{Reader, Settings, SigmaCurve, Spacing, defaults, unknown_key};
use crate::error::{Error, Result};

pub use super::settings::PredictionType;

/// A scheduler's class and settings: what decides every number of a denoising run but the count of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    place: String,
    sampler: SamplerKind,
    /// What the file (or a later swap) says explicitly, known to the class or only carried along.
    given: Map<String, Value>,
    /// What a pipeline changed afterwards; diffusers forgets such a change of an absent key on the next swap.
    patched: Map<String, Value>,
    settings: Settings,
    ays: Option<AysList>,
    eta: f32,
}

impl SchedulerConfig {
    /// Reads a scheduler config of one of the classes that scumble implements; `place` names the file in errors.
    pub fn from_json(value: &Value, place: &str) -> Result<Self> {
        let class = value.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
            Error::new("scheduler config")
                .at(format!("{place}: _class_name"))
                .expected(known_classes())
                .found("nothing")
        })?;
        let kind = SamplerKind::from_class_name(class).ok_or_else(|| {
            Error::new("scheduler class")
                .at(place)
                .expected(known_classes())
                .found(class)
                .hint("--sampler with one of scumble's samplers, which keeps the model's other settings")
        })?;
        let given = explicit(value, place)?;
        let sde = given.get("algorithm_type").and_then(Value::as_str) == Some("sde-dpmsolver++");
        let kind = if kind == SamplerKind::Dpmpp2m && sde { SamplerKind::Dpmpp2mSde } else { kind };
        Self::build(place, kind, given, Map::new())
    }

    /// Reads a config of any diffusers class for the sampler `kind`, as `Kind.from_config(config)` would. (What a pipeline
    /// does to the original comes in between: `in_stable_diffusion_pipeline()?.with_sampler(kind)?`.)
    pub fn from_json_for(value: &Value, kind: SamplerKind, place: &str) -> Result<Self> {
        let given = explicit(value, place)?;
        Self::build(place, kind, with_algorithm(given, kind), Map::new())
    }

    fn build(
        place: &str,
        sampler: SamplerKind,
        given: Map<String, Value>,
        patched: Map<String, Value>,
    ) -> Result<Self> {
        let given = normalised(given, sampler);
        let mut values = defaults(sampler);
        for (key, value) in given.iter().chain(&patched) {
            if let Some(slot) = values.get_mut(key) {
                *slot = value.clone();
            }
        }
        let settings = Reader { place, values, hidden: &given }.settings(sampler)?;
        Ok(Self { place: place.to_string(), sampler, given, patched, settings, ays: None, eta: 0.0 })
    }

    /// What diffusers' `StableDiffusionPipeline` (1.x and 2.x, not XL) does to its scheduler when it is made: a
    /// `steps_offset` other than 1 becomes 1, and `clip_sample` becomes false (`pipeline_stable_diffusion.py`, `__init__`).
    pub fn in_stable_diffusion_pipeline(mut self) -> Result<Self> {
        let known = defaults(self.sampler);
        for (key, value) in [("steps_offset", Value::from(1)), ("clip_sample", Value::from(false))] {
            if known.contains_key(key) || self.given.contains_key(key) {
                self.patched.insert(key.to_string(), value);
            }
        }
        let (ays, eta) = (self.ays, self.eta);
        let rebuilt = Self::build(&self.place, self.sampler, self.given, self.patched)?;
        Ok(Self { ays, eta, ..rebuilt })
    }

    /// The solver.
    pub fn sampler(&self) -> SamplerKind {
        self.sampler
    }

    /// The effective schedule.
    pub fn schedule(&self) -> ScheduleKind {
        match (self.ays, self.settings.curve, self.settings.spacing) {
            (Some(_), ..) => ScheduleKind::Ays,
            (_, SigmaCurve::Karras, _) => ScheduleKind::Karras,
            (_, SigmaCurve::Exponential | SigmaCurve::Lu, _) => ScheduleKind::Exponential,
            (_, SigmaCurve::Beta, _) => ScheduleKind::Beta,
            (.., Spacing::Leading) => ScheduleKind::Leading,
            (.., Spacing::Trailing) => ScheduleKind::Trailing,
            (.., Spacing::Linspace) => ScheduleKind::Linspace,
        }
    }

    /// What the model's output stands for.
    pub fn prediction_type(&self) -> PredictionType {
        self.settings.prediction
    }

    /// How many noise levels the model was trained with.
    pub fn train_timesteps(&self) -> usize {
        self.settings.train_steps
    }

    /// What a sample and noise of unit variance are multiplied by where they are added at training step `level`.
    ///
    /// # Errors
    /// A level that the model was not trained with.
    pub fn noise_at(&self, level: u32) -> Result<[f32; 2]> {
        let training = schedule::Training::new(&self.settings, false);
        let alpha = training.alpha(i64::from(level))?;
        Ok([alpha.sqrt(), (1.0 - alpha).sqrt()])
    }

    /// The same settings under another solver, exactly as diffusers' `Kind.from_config(old.config)`: what the file says
    /// explicitly is kept where the new class knows it, what it left to defaults takes the new class's default.
    pub fn with_sampler(&self, kind: SamplerKind) -> Result<Self> {
        let mut given = self.given.clone();
        for (key, value) in &self.patched {
            if given.contains_key(key) {
                given.insert(key.clone(), value.clone());
            }
        }
        Ok(Self { eta: self.eta, ..Self::build(&self.place, kind, with_algorithm(given, kind), Map::new())? })
    }

    /// The same solver on another schedule; `ays` picks the list that fits the model. A usage error if diffusers' solver
    /// does not support the schedule.
    pub fn with_schedule(&self, schedule: ScheduleKind, ays: AysList) -> Result<Self> {
        let supported = supported_schedules(self.sampler);
        if !supported.contains(&schedule) {
            let words: Vec<&str> = supported.iter().map(|kind| kind.word()).collect();
            return Err(Error::usage(format!("schedule for sampler {}", self.sampler))
                .at("--schedule")
                .expected(format!("one of {}", words.join(", ")))
                .found(schedule)
                .hint("another --sampler or --schedule"));
        }
        let mut given = self.given.clone();
        let known = defaults(self.sampler);
        let curves = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
        for key in curves.into_iter().chain(["use_lu_lambdas"]).filter(|&key| known.contains_key(key)) {
            given.insert(key.to_string(), Value::from(false));
        }
        let mut set = |key: &str, value: Value| given.insert(key.to_string(), value);
        match schedule {
            ScheduleKind::Leading | ScheduleKind::Trailing | ScheduleKind::Linspace => {
                set("timestep_spacing", schedule.word().into());
            }
            ScheduleKind::SgmUniform => {
                set("timestep_spacing", "trailing".into());
            }
            ScheduleKind::Karras => {
                set(curves[0], true.into());
            }
            ScheduleKind::Exponential => {
                set(curves[1], true.into());
            }
            ScheduleKind::Beta => {
                set(curves[2], true.into());
            }
            ScheduleKind::Ays => {}
        }
        let rebuilt = Self::build(&self.place, self.sampler, given, self.patched.clone())?;
        Ok(Self { ays: (schedule == ScheduleKind::Ays).then_some(ays), eta: self.eta, ..rebuilt })
    }

    /// The same with DDIM's eta: 0 draws no noise, 1 as much as DDPM. Other solvers ignore it, as in diffusers.
    #[must_use]
    pub fn with_eta(mut self, eta: f32) -> Self {
        self.eta = eta;
        self
    }

    /// The table of a run of `steps` steps, or of the run over `custom_timesteps` (training steps, descending), which
    /// only some solvers take. A usage error where diffusers cannot run it.
    pub fn program(&self, steps: usize, custom_timesteps: Option<&[usize]>) -> Result<Program> {
        let steps = custom_timesteps.map_or(steps, <[usize]>::len);
        if !(1..=self.settings.train_steps).contains(&steps) {
            return Err(Error::usage("number of steps")
                .at("--steps")
                .expected(format!("1 to {} (the model's training steps)", self.settings.train_steps))
                .found(steps));
        }
        let ays =
            if custom_timesteps.is_none() { self.ays.map(|list| schedule::ays_timesteps(list, steps)) } else { None };
        let custom = custom_timesteps.or(ays.as_deref());
        if let Some(custom) = custom {
            self.check_custom(custom)?;
        }
        super::solvers::program(&super::solvers::Run {
            sampler: self.sampler,
            settings: &self.settings,
            steps,
            custom,
            eta: self.eta,
        })
    }

    fn check_custom(&self, custom: &[usize]) -> Result<()> {
        if !supported_schedules(self.sampler).contains(&ScheduleKind::Ays) {
            let takers: Vec<&str> = SamplerKind::ALL
                .iter()
                .filter(|&&kind| supported_schedules(kind).contains(&ScheduleKind::Ays))
                .map(|kind| kind.word())
                .collect();
            return Err(Error::usage("sampler for a list of timesteps")
                .at("--sampler")
                .expected(format!("one of {}", takers.join(", ")))
                .found(self.sampler));
        }
        if self.settings.curve != SigmaCurve::FromTimesteps {
            return Err(Error::usage("list of timesteps")
                .expected("a schedule that is read off the timesteps")
                .found(format!("schedule {}", self.schedule())));
        }
        let falling = custom.windows(2).all(|pair| pair[0] > pair[1]);
        if !falling || custom.first().is_none_or(|&t| t >= self.settings.train_steps) {
            return Err(Error::usage("list of timesteps")
                .expected(format!("training steps below {}, descending", self.settings.train_steps))
                .found(format!("{custom:?}"))
                .hint("fewer steps"));
        }
        Ok(())
    }
}

/// The schedules that diffusers' class for `kind` supports.
pub fn supported_schedules(kind: SamplerKind) -> Vec<ScheduleKind> {
    use ScheduleKind::{Ays, Beta, Exponential, Karras, Leading, Linspace, SgmUniform, Trailing};
    let spacings = [Leading, Trailing, Linspace, SgmUniform];
    let (curves, lists) = match kind {
        SamplerKind::Ddim | SamplerKind::Pndm | SamplerKind::EulerAncestral => (false, false),
        SamplerKind::Ddpm => (false, true),
        SamplerKind::Euler | SamplerKind::Heun | SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => (true, true),
        SamplerKind::UniPc => (true, false),
        SamplerKind::Lcm => return vec![Ays],
        SamplerKind::UnClip => return vec![Linspace],
    };
    let mut supported = spacings.to_vec();
    supported.extend(if curves { &[Karras, Exponential, Beta][..] } else { &[] });
    supported.extend(lists.then_some(Ays));
    supported
}

fn known_classes() -> String {
    let mut classes: Vec<&str> = SamplerKind::ALL.iter().map(|kind| kind.class_name()).collect();
    classes.dedup();
    format!("one of {}", classes.join(", "))
}

/// The keys that a config states, without those that it marks as defaults of an earlier class.
fn explicit(value: &Value, place: &str) -> Result<Map<String, Value>> {
    let Value::Object(all) = value else {
        return Err(Error::new("scheduler config").at(place).expected("a JSON object").found(value));
    };
    let marked = all.get("_use_default_values").and_then(Value::as_array).cloned().unwrap_or_default();
    let given: Map<String, Value> = all
        .iter()
        .filter(|(key, _)| !key.starts_with('_') && !marked.iter().any(|name| name.as_str() == Some(key)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if let Some((key, near)) = unknown_key(&given) {
        let error = Error::new("unknown scheduler setting").at(place).found(key);
        return Err(match near {
            Some(near) => error.hint(format!("{near:?}, if that is meant")),
            None => error,
        });
    }
    Ok(given)
}

fn with_algorithm(mut given: Map<String, Value>, kind: SamplerKind) -> Map<String, Value> {
    let algorithm = match kind {
        SamplerKind::Dpmpp2m => "dpmsolver++",
        SamplerKind::Dpmpp2mSde => "sde-dpmsolver++",
        _ => return given,
    };
    given.insert("algorithm_type".to_string(), algorithm.into());
    given
}

/// The replacements that diffusers' constructors make for words of a sister class.
fn normalised(mut given: Map<String, Value>, kind: SamplerKind) -> Map<String, Value> {
    let (solver, foreign): (&str, &[&str]) = match kind {
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => ("midpoint", &["logrho", "bh1", "bh2"]),
        SamplerKind::UniPc => ("bh2", &["midpoint", "heun", "logrho"]),
        _ => return given,
    };
    let replace = |given: &mut Map<String, Value>, key: &str, foreign: &[&str], own: &str| {
        if given.get(key).and_then(Value::as_str).is_some_and(|word| foreign.contains(&word)) {
            given.insert(key.to_string(), own.into());
        }
    };
    replace(&mut given, "solver_type", foreign, solver);
    if kind != SamplerKind::UniPc {
        replace(&mut given, "algorithm_type", &["deis"], "dpmsolver++");
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::json;

    fn read(value: Value) -> Result<SchedulerConfig> {
        SchedulerConfig::from_json(&value, "scheduler_config.json")
    }

    /// Python writes `-Infinity` bare; the reader of the file hands it on as a string.
    #[test]
    fn pythons_infinity_is_a_word() {
        let config = read(json!({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": "-Infinity"}));
        assert_eq!(config.unwrap().settings.lambda_min_clipped, f64::NEG_INFINITY);
    }

    #[test]
    fn odd_values_never_panic() {
        let odd = [
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(1),
            json!(3),
            json!(0.5),
            json!(1e30),
            json!(-0.2),
            json!(""),
            json!("zero"),
            json!("sigma_min"),
            json!("trailing"),
            json!("leading"),
            json!("squaredcos_cap_v2"),
            json!([]),
            json!([0.5]),
            json!([-1]),
            json!({}),
        ];
        for kind in SamplerKind::ALL {
            for (key, value) in defaults(kind).keys().flat_map(|key| odd.iter().map(move |value| (key, value))) {
                let smallest = json!({"num_train_timesteps": 1, "skip_prk_steps": true, key: value});
                let _ = SchedulerConfig::from_json_for(&smallest, kind, "x").and_then(|c| c.program(1, None));
                let small = json!({"num_train_timesteps": 20, "use_karras_sigmas": true, key: value});
                let _ = SchedulerConfig::from_json_for(&small, kind, "x").and_then(|c| c.program(3, None));
            }
        }
    }

    #[test]
    fn what_is_not_implemented_is_an_error() {
        let cases = [
            (json!({"_class_name": "LMSDiscreteScheduler"}), "LMSDiscreteScheduler"),
            (
                json!({"_class_name": "DDIMScheduler", "thresholding": true, "sample_max_value": 0.0}),
                "sample_max_value",
            ),
            (json!({"_class_name": "DDPMScheduler", "variance_type": "learned_log"}), "variance_type"),
            (json!({"_class_name": "UnCLIPScheduler", "variance_type": "fixed_small"}), "variance_type"),
            (json!({"_class_name": "UnCLIPScheduler", "prediction_type": "v_prediction"}), "prediction_type"),
            (json!({"_class_name": "UnCLIPScheduler", "beta_schedule": "linear"}), "beta_schedule"),
            (json!({"_class_name": "DDIMScheduler", "predicton_type": "v_prediction"}), "\"prediction_type\""),
            (json!({"_class_name": "DDIMScheduler", "prediction_type": "flow"}), "prediction_type"),
            (json!({"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}), "beta_schedule"),
            (json!({"_class_name": "DDIMScheduler", "beta_schedule": 3}), "beta_schedule"),
            (json!({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}), "num_train_timesteps"),
            (json!({"_class_name": "DDIMScheduler", "num_train_timesteps": 1e12}), "num_train_timesteps"),
            (json!({"_class_name": "DDIMScheduler", "trained_betas": [0.1]}), "trained_betas"),
            (json!({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}), "algorithm_type"),
            (json!({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}), "use_flow_sigmas"),
            (json!({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}), "solver_order"),
            (json!({"_class_name": "UniPCMultistepScheduler", "predict_x0": false}), "predict_x0"),
            (json!({"_class_name": "PNDMScheduler", "prediction_type": "sample"}), "prediction_type"),
            (
                json!({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true}),
                "use_beta_sigmas",
            ),
            (json!({}), "_class_name"),
            (json!([1]), "_class_name"),
        ];
        for (config, named) in cases {
            let error = read(config.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Failure, "{config}");
            assert!(error.to_string().contains(named), "{config}: {error}");
        }
    }

    #[test]
    fn an_unknown_class_serves_a_chosen_sampler() {
        let config = json!({"_class_name": "LMSDiscreteScheduler", "beta_start": 0.001, "steps_offset": 1});
        let chosen = SchedulerConfig::from_json_for(&config, SamplerKind::Euler, "x").unwrap();
        assert_eq!((chosen.settings.beta_start, chosen.settings.offset), (0.001, 1));
    }

    #[test]
    fn a_schedule_that_the_sampler_lacks_is_a_usage_error() {
        for kind in SamplerKind::ALL {
            let config = SchedulerConfig::from_json_for(&json!({"skip_prk_steps": true}), kind, "x").unwrap();
            for schedule in ScheduleKind::ALL {
                let supported = supported_schedules(kind).contains(&schedule);
                let changed = config.with_schedule(schedule, AysList::StableDiffusion);
                assert_eq!(changed.is_ok(), supported, "{kind} {schedule}");
                match changed {
                    Ok(changed) if schedule == ScheduleKind::SgmUniform => {
                        assert_eq!(changed.schedule(), ScheduleKind::Trailing);
                    }
                    Ok(changed) => assert_eq!(changed.schedule(), schedule),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Usage),
                }
            }
        }
    }

    #[test]
    fn align_your_steps_is_the_published_list() {
        let config = read(json!({"_class_name": "DPMSolverMultistepScheduler"})).unwrap();
        let config = config.with_schedule(ScheduleKind::Ays, AysList::StableDiffusionXl).unwrap();
        let timesteps = |steps| -> Vec<f32> {
            config.program(steps, None).unwrap().evaluations.iter().map(|step| step.timestep).collect()
        };
        assert_eq!(timesteps(10), [999.0, 845.0, 730.0, 587.0, 443.0, 310.0, 193.0, 116.0, 53.0, 13.0]);
        assert_eq!(timesteps(1), [999.0]);
        assert_eq!((timesteps(19)[0], timesteps(19)[1], timesteps(19)[2]), (999.0, 919.0, 845.0));
        assert!(timesteps(30).windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn step_counts_have_bounds() {
        let config = read(json!({"_class_name": "EulerDiscreteScheduler"})).unwrap();
        for steps in [0, 1001] {
            assert_eq!(config.program(steps, None).unwrap_err().kind(), ErrorKind::Usage);
        }
        assert!(config.program(1000, None).is_ok());
        assert!(config.program(0, Some(&[500, 500])).is_err());
        assert!(config.program(0, Some(&[1000])).is_err());
        assert!(config.program(0, Some(&[])).is_err());
        let ddim = config.with_sampler(SamplerKind::Ddim).unwrap();
        assert!(ddim.program(0, Some(&[500])).unwrap_err().to_string().contains("dpmpp_2m"));
    }
}
