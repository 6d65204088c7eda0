//! The committed numbers of diffusers, and how they are compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use scumble::pipelines::Request;
use scumble::tensor::HostTensor;
use serde_json::Value;

/// A folder of `tests/goldens/pipelines/`: what diffusers was asked, and what it computed.
pub struct Golden {
    pub name: &'static str,
    tensors: BTreeMap<String, HostTensor>,
    case: Value,
}

impl Golden {
    pub fn open(name: &'static str) -> Self {
        let folder = folder(name);
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(key, view)| {
            let bytes = view.data();
            let data = match view.dtype() {
                Dtype::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
                Dtype::I32 => bytes.as_chunks().0.iter().map(|four| i32::from_le_bytes(*four) as f32).collect(),
                Dtype::U8 => bytes.iter().map(|byte| f32::from(*byte)).collect(),
                other => panic!("{name}: {key} is stored as {other:?}"),
            };
            (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
        });
        let case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        Self { name, tensors: tensors.collect(), case }
    }

    pub fn get(&self, key: &str) -> &HostTensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("{}: no golden `{key}`", self.name))
    }

    pub fn find(&self, key: &str) -> Option<&HostTensor> {
        self.tensors.get(key)
    }

    /// Names that start with `prefix`.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().map(String::as_str).filter(move |key| key.starts_with(prefix))
    }

    pub fn prompt(&self, key: &str) -> &str {
        self.case[key].as_str().unwrap_or("")
    }

    /// The picture that diffusers was asked for.
    pub fn request(&self) -> Request {
        let number = |key: &str| self.case[key].as_u64().unwrap();
        Request {
            prompt: self.prompt("prompt").to_owned(),
            negative_prompt: self.case["negative_prompt"].as_str().map(str::to_owned),
            width: Some(number("width") as u32),
            height: Some(number("height") as u32),
            steps: Some(number("steps") as u32),
            guidance_scale: Some(self.case["guidance"].as_f64().unwrap() as f32),
            guidance_rescale: self.case["guidance_rescale"].as_f64().unwrap() as f32,
            seed: number("seed"),
            clip_skip: self.case["clip_skip"].as_u64().map(|skipped| skipped as u32),
            ..Request::default()
        }
    }
}

/// The model's folder.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipelines").join(name)
}

/// Fails unless every value of `got` is within `tolerance` times the largest golden value. NaN fails.
pub fn assert_close(place: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{place}: another number of values");
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let mut worst = 0f32;
    for (position, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (got - want).abs();
        assert!(
            difference <= tolerance * largest,
            "{place}: value {position} is {got}, diffusers has {want}; {:.1e} of the largest, at most {tolerance:.1e}",
            difference / largest
        );
        worst = worst.max(difference);
    }
    println!("{place}: {:.1e} of the largest", worst / largest);
}

/// Peak signal-to-noise ratio in decibels, and the largest difference, of two 8-bit pictures.
pub fn compare_pictures(got: &[u8], want: &HostTensor) -> (f64, u8) {
    assert_eq!(got.len(), want.data.len(), "another number of pixels");
    let differences = got.iter().zip(&want.data).map(|(got, want)| got.abs_diff(*want as u8));
    let (mut sum, mut worst) = (0f64, 0);
    for difference in differences {
        sum += f64::from(difference).powi(2);
        worst = worst.max(difference);
    }
    (10.0 * (255f64.powi(2) * got.len() as f64 / sum).log10(), worst)
}
