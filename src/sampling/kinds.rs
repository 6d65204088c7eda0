//! The words for samplers and schedules: of the command line, of diffusers' configs and of AUTOMATIC1111's PNG text.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A solver of the denoising equation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502).
    Ddim,
    /// Denoising diffusion probabilistic models (Ho et al. 2020, arXiv 2006.11239).
    Ddpm,
    /// Pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778), Stable Diffusion 1's default.
    Pndm,
    /// Euler's method over sigma (Karras et al. 2022, arXiv 2206.00364).
    Euler,
    /// Euler's method with ancestral noise (k-diffusion).
    EulerAncestral,
    /// Heun's two-stage method (Karras et al. 2022).
    Heun,
    /// DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095).
    Dpmpp2m,
    /// The stochastic variant of DPM-Solver++ multistep.
    Dpmpp2mSde,
    /// Unified predictor-corrector (Zhao et al. 2023, arXiv 2302.04867).
    UniPc,
    /// Latent consistency models (Luo et al. 2023, arXiv 2310.04378).
    Lcm,
    /// The DDPM of unCLIP (Karlo), which takes the posterior between the timesteps that it visits.
    UnClip,
}

impl SamplerKind {
    /// Every sampler, in the order in which help texts list them.
    pub const ALL: [SamplerKind; 11] = [
        SamplerKind::Ddim,
        SamplerKind::Ddpm,
        SamplerKind::Pndm,
        SamplerKind::Euler,
        SamplerKind::EulerAncestral,
        SamplerKind::Heun,
        SamplerKind::Dpmpp2m,
        SamplerKind::Dpmpp2mSde,
        SamplerKind::UniPc,
        SamplerKind::Lcm,
        SamplerKind::UnClip,
    ];

    /// The word on the command line.
    pub fn word(self) -> &'static str {
        self.names().0
    }

    /// The name in AUTOMATIC1111's `parameters` text.
    pub fn a1111_name(self) -> &'static str {
        self.names().1
    }

    /// The scheduler class in diffusers.
    pub fn class_name(self) -> &'static str {
        self.names().2
    }

    /// The sampler that a diffusers class means by default; `None` for a class that scumble does not implement.
    pub fn from_class_name(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.class_name() == class)
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            SamplerKind::Ddim => ("ddim", "DDIM", "DDIMScheduler"),
            SamplerKind::Ddpm => ("ddpm", "DDPM", "DDPMScheduler"),
            SamplerKind::Pndm => ("pndm", "PLMS", "PNDMScheduler"),
            SamplerKind::Euler => ("euler", "Euler", "EulerDiscreteScheduler"),
            SamplerKind::EulerAncestral => ("euler_a", "Euler a", "EulerAncestralDiscreteScheduler"),
            SamplerKind::Heun => ("heun", "Heun", "HeunDiscreteScheduler"),
            SamplerKind::Dpmpp2m => ("dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler"),
            SamplerKind::Dpmpp2mSde => ("dpmpp_2m_sde", "DPM++ 2M SDE", "DPMSolverMultistepScheduler"),
            SamplerKind::UniPc => ("unipc", "UniPC", "UniPCMultistepScheduler"),
            SamplerKind::Lcm => ("lcm", "LCM", "LCMScheduler"),
            SamplerKind::UnClip => ("unclip", "UnCLIP", "UnCLIPScheduler"),
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let known = Self::ALL.map(SamplerKind::word);
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| unknown("sampler", word, &known))
    }
}

/// How a run's timesteps and noise levels are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScheduleKind {
    /// Multiples of a whole stride, from the offset upwards.
    Leading,
    /// Equal strides down from the last training step.
    Trailing,
    /// Both ends and equal strides between them.
    Linspace,
    /// Equal strides of sigma to the power 1/7 (Karras et al. 2022, arXiv 2206.00364).
    Karras,
    /// Equal strides of log sigma.
    Exponential,
    /// Quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024, arXiv 2407.12173).
    Beta,
    /// Stability AI's name for trailing strides.
    SgmUniform,
    /// Align Your Steps, NVIDIA's published timesteps (Sabour et al. 2024, arXiv 2404.14507).
    Ays,
}

impl ScheduleKind {
    /// Every schedule, in the order in which help texts list them.
    pub const ALL: [ScheduleKind; 8] = [
        ScheduleKind::Leading,
        ScheduleKind::Trailing,
        ScheduleKind::Linspace,
        ScheduleKind::Karras,
        ScheduleKind::Exponential,
        ScheduleKind::Beta,
        ScheduleKind::SgmUniform,
        ScheduleKind::Ays,
    ];

    /// The word on the command line.
    pub fn word(self) -> &'static str {
        self.names().0
    }

    /// The schedule type in AUTOMATIC1111's `parameters` text.
    pub fn a1111_name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            ScheduleKind::Leading => ("leading", "Uniform"),
            ScheduleKind::Trailing => ("trailing", "SGM Uniform"),
            ScheduleKind::Linspace => ("linspace", "Uniform"),
            ScheduleKind::Karras => ("karras", "Karras"),
            ScheduleKind::Exponential => ("exponential", "Exponential"),
            ScheduleKind::Beta => ("beta", "Beta"),
            ScheduleKind::SgmUniform => ("sgm_uniform", "SGM Uniform"),
            ScheduleKind::Ays => ("ays", "Align Your Steps"),
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let known = Self::ALL.map(ScheduleKind::word);
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| unknown("schedule", word, &known))
    }
}

/// Which of the published Align Your Steps lists fits the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AysList {
    /// Stable Diffusion 1 and 2.
    StableDiffusion,
    /// Stable Diffusion XL.
    StableDiffusionXl,
}

fn unknown(what: &str, word: &str, known: &[&str]) -> Error {
    let error = Error::usage(format!("unknown {what}"))
        .at(format!("--{what}"))
        .expected(format!("one of {}", known.join(", ")))
        .found(format!("{word:?}"));
    match nearest(&word.to_lowercase().replace(['-', ' '], "_").replace('+', "p"), known) {
        Some(near) => error.hint(format!("--{what} {near}")),
        None => error,
    }
}

/// The known word that looks most like `word`, if any does.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|&k| (strsim::jaro_winkler(word, k), k));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.7).map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.word().parse::<SamplerKind>().unwrap(), kind);
        }
        for kind in ScheduleKind::ALL {
            assert_eq!(kind.word().parse::<ScheduleKind>().unwrap(), kind);
        }
    }

    #[test]
    fn an_unknown_word_names_the_nearest() {
        let error = "DPM++2M".parse::<SamplerKind>().unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
        assert!(error.to_string().ends_with("Try --sampler dpmpp_2m."), "{error}");
        assert!("karas".parse::<ScheduleKind>().unwrap_err().to_string().ends_with("Try --schedule karras."));
    }
}
