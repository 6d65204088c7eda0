//! How a picture was made, as the text that AUTOMATIC1111's web UI writes into its PNGs and reads back.
//!
//! Form (stable-diffusion-webui, `modules/processing.py` `create_infotext`, `modules/infotext_utils.py` `quote`): the
//! prompt; `Negative prompt: ...` unless empty; one line of `Name: value` joined by commas, where a value that holds a
//! comma, a colon or a line break stands as a JSON string.

use std::fmt;
use std::str::FromStr;

use crate::pipelines::Summary;
use crate::sampling::{SamplerKind, ScheduleKind};

/// What the text tells.
#[derive(Debug, Clone)]
pub struct Infotext<'a> {
    /// As the user gave it.
    pub prompt: &'a str,
    /// As the user gave it; empty for none.
    pub negative_prompt: &'a str,
    /// What the system settled; only what it has is told.
    pub summary: &'a Summary,
    /// Guidance rescale; 0 is left out.
    pub guidance_rescale: f32,
    /// The seed of this picture.
    pub seed: u64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// The first ten hex digits of the checkpoint's SHA-256, if known.
    pub model_hash: Option<&'a str>,
    /// The model's name.
    pub model: &'a str,
    /// As A1111 counts; 1 is left out.
    pub clip_skip: Option<u32>,
}

impl fmt::Display for Infotext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            write!(f, "\nNegative prompt: {}", self.negative_prompt)?;
        }
        let mut separator = "\n";
        let mut field = |name: &str, value: &str| {
            let written = write!(f, "{separator}{name}: {}", quote(value));
            separator = ", ";
            written
        };
        let Summary { steps, guidance_scale, sampler, schedule, further } = self.summary;
        if let Some(steps) = steps {
            field("Steps", &steps.to_string())?;
        }
        if let Some(sampler) = sampler {
            field("Sampler", sampler_name(sampler))?;
        }
        if let Some(schedule) = schedule {
            field("Schedule type", schedule_name(schedule))?;
        }
        if let Some(scale) = guidance_scale {
            field("CFG scale", &scale.to_string())?;
        }
        for (name, value) in further {
            field(name, value)?;
        }
        if self.guidance_rescale != 0.0 {
            field("Guidance rescale", &self.guidance_rescale.to_string())?;
        }
        field("Seed", &self.seed.to_string())?;
        field("Size", &format!("{}x{}", self.width, self.height))?;
        if let Some(hash) = self.model_hash {
            field("Model hash", hash)?;
        }
        field("Model", self.model)?;
        if let Some(layer) = self.clip_skip.filter(|layer| *layer > 1) {
            field("Clip skip", &layer.to_string())?;
        }
        field("RNG", "CPU")?;
        field("Version", concat!("scumble ", env!("CARGO_PKG_VERSION")))
    }
}

fn quote(value: &str) -> String {
    if value.contains([',', ':', '\n']) || value.starts_with('"') || value.trim() != value {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

/// A1111's label for scumble's word; another word stays.
fn sampler_name(word: &str) -> &str {
    SamplerKind::from_str(word).map_or(word, |kind| kind.a1111_name())
}

/// A1111's label for scumble's word; another word stays.
fn schedule_name(word: &str) -> &str {
    ScheduleKind::from_str(word).map_or(word, |kind| kind.a1111_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(guidance_scale: f32) -> Summary {
        Summary {
            steps: Some(20),
            guidance_scale: Some(guidance_scale),
            sampler: Some("dpmpp_2m".into()),
            schedule: Some("karras".into()),
            further: Vec::new(),
        }
    }

    fn sample<'a>(prompt: &'a str, negative_prompt: &'a str, model: &'a str, summary: &'a Summary) -> Infotext<'a> {
        Infotext {
            prompt,
            negative_prompt,
            summary,
            guidance_rescale: 0.0,
            seed: 1,
            width: 512,
            height: 768,
            model_hash: Some("abcdef1234"),
            model,
            clip_skip: Some(2),
        }
    }

    /// A reader of the published form: the last line is the fields if it has three or more; above it the prompt, up to the
    /// line that starts with `Negative prompt:`.
    fn read(text: &str) -> (String, String, Vec<(String, String)>) {
        let mut lines: Vec<&str> = text.trim().split('\n').collect();
        let mut fields = read_fields(lines.last().unwrap());
        if fields.len() < 3 {
            fields.clear();
        } else {
            lines.pop();
        }
        let negative = lines.iter().position(|line| line.trim().starts_with("Negative prompt:"));
        let join = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n");
        let (prompt, rest) = lines.split_at(negative.unwrap_or(lines.len()));
        (join(prompt), join(rest).trim_start_matches("Negative prompt:").trim().to_owned(), fields)
    }

    fn read_fields(line: &str) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        let mut rest = line.trim_start();
        while let Some((name, after)) = rest.split_once(':') {
            let after = after.trim_start();
            let end = if after.starts_with('"') {
                let mut escaped = false;
                let close = after.char_indices().skip(1).find(|(_, letter)| {
                    let closes = *letter == '"' && !escaped;
                    escaped = *letter == '\\' && !escaped;
                    closes
                });
                close.expect("the string is closed").0 + 1
            } else {
                after.find(',').unwrap_or(after.len())
            };
            let value = &after[..end];
            let value = if value.starts_with('"') { serde_json::from_str(value).unwrap() } else { value.to_owned() };
            fields.push((name.trim().to_owned(), value));
            rest = after[end..].trim_start_matches(',').trim_start();
        }
        fields
    }

    #[test]
    fn reads_as_a1111_writes() {
        assert_eq!(
            sample("a cat", "blurry", "emoji", &summary(7.0)).to_string(),
            format!(
                "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, \
                 Size: 512x768, Model hash: abcdef1234, Model: emoji, Clip skip: 2, RNG: CPU, Version: scumble {}",
                env!("CARGO_PKG_VERSION")
            )
        );
        let settled = summary(7.5);
        let mut bare = sample("", "", "m", &settled);
        (bare.model_hash, bare.clip_skip) = (None, Some(1));
        let text = bare.to_string();
        assert!(
            text.starts_with("\nSteps: 20") && text.contains("CFG scale: 7.5, Seed: 1, Size: 512x768, Model: m, RNG")
        );
    }

    #[test]
    fn what_a_system_lacks_is_not_told() {
        let settled = Summary { further: vec![("Top-k", "256".into())], ..Summary::default() };
        let text = sample("a cat", "", "m", &settled).to_string();
        assert!(text.starts_with("a cat\nTop-k: 256, Seed: 1, Size: 512x768"), "{text}");
        assert!(!text.contains("Sampler") && !text.contains("CFG"), "{text}");
    }

    #[test]
    fn an_independent_reader_gets_everything_back() {
        let models = ["plain", "with, comma", "c:\\dir: \"x\"", "line\nbreak", "\"quoted\"", "Émile 😀", " spaced "];
        for model in models {
            for (prompt, negative) in [
                ("a cat, (best: 1.2), \"quoted\"", "blurry: yes, low"),
                ("two\nlines", "also\ntwo"),
                ("", "only negative"),
                ("Steps: 3, Seed: 4", ""),
                ("日本語 😀", "é"),
            ] {
                let (got_prompt, got_negative, fields) =
                    read(&sample(prompt, negative, model, &summary(7.0)).to_string());
                assert_eq!((got_prompt.as_str(), got_negative.as_str()), (prompt, negative));
                let field = |name: &str| fields.iter().find(|(known, _)| known == name).unwrap().1.as_str();
                assert_eq!((field("Model"), field("Seed"), field("Size")), (model, "1", "512x768"));
                assert_eq!((field("Sampler"), field("Schedule type")), ("DPM++ 2M", "Karras"));
                assert_eq!(fields.len(), 11);
            }
        }
    }
}
