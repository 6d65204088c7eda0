//! Whole pipelines against diffusers: tiny random models of every kind and the embedded one, prompt to picture.
//!
//! The numbers come from `tools/goldens/make.py`. Without an adapter the tests that need one pass without doing anything.

mod golden;
mod memory;
mod taps;

use std::sync::{Arc, OnceLock};

use golden::{Golden, assert_close, compare_pictures, folder};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::pipelines::{Drawing, Event, Request, StableDiffusion, Variation};
use scumble::tensor::{DType, HostTensor};
use scumble::text::{ClipTokenizer, TokenizerFiles};
use scumble::weights::checkpoint::Checkpoint;

/// Sums in another order than PyTorch's give differences near 1e-6 of the largest value in one layer; text encoders have a few.
const TEXT_TOLERANCE: f32 = 2e-5;
/// Each step feeds the UNet's rounding into the next, and guidance multiplies the difference of two predictions by up to 8.5.
const LATENT_TOLERANCE: f32 = 3e-4;

/// One adapter for all tests of this file: compiled kernels are shared. Without any adapter they fail.
fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| open(&GpuOptions::default())).clone()
}

fn open(options: &GpuOptions) -> Arc<Gpu> {
    Arc::new(Gpu::open(options).unwrap())
}

fn checkpoint(name: &str) -> Checkpoint {
    match name {
        "emoji" => scumble::weights::embedded::open().unwrap(),
        name => Checkpoint::open(&folder(name)).unwrap(),
    }
}

/// The 8-bit picture and the intermediates of one run.
fn draw(gpu: Arc<Gpu>, name: &str, request: Request, precision: DType) -> (Vec<u8>, Vec<(String, HostTensor)>) {
    let model = Arc::new(StableDiffusion::new(gpu, checkpoint(name), precision));
    let mut generation = model.generate(request, 1, true).unwrap();
    while let Some(event) = generation.next() {
        if let Event::Picture(picture) = event.unwrap_or_else(|error| panic!("{name}: {error}")) {
            return (picture.rgb, generation.take_dump());
        }
    }
    panic!("{name}: no picture");
}

/// In f32: every intermediate that diffusers recorded, and the picture to at least 65 dB with no value off by more than 2.
fn same_picture(gpu: Arc<Gpu>, name: &'static str) {
    let golden = Golden::open(name);
    let (rgb, dump) = draw(gpu, name, golden.request(), DType::F32);
    let dumped = |key: &str| dump.iter().find(|(name, _)| name == key).map(|(_, tensor)| tensor);
    for key in ["text_embeddings", "pooled_text_embeddings"]
        .into_iter()
        .flat_map(|key| [key.to_owned(), format!("negative_{key}")])
    {
        if let Some(want) = golden.find(&key) {
            let got = dumped(&key).unwrap_or_else(|| panic!("{name}: the dump lacks {key}"));
            assert_eq!(got.shape, want.shape, "{name}: {key}");
            assert_close(&format!("{name}: {key}"), &got.data, &want.data, TEXT_TOLERANCE);
        }
    }
    assert_close(&format!("{name}: noise"), &dumped("noise").unwrap().data, &golden.get("noise").data, 1e-6);
    let calls = golden.names("latents.").count();
    assert_eq!(
        dump.iter().filter(|(key, _)| key.starts_with("latents.")).count(),
        calls,
        "{name}: calls of the solver"
    );
    for call in 0..calls {
        let key = format!("latents.{call}");
        let got = dumped(&key).unwrap();
        assert_eq!(got.shape, golden.get(&key).shape, "{name}: {key}");
        assert_close(&format!("{name}: {key}"), &got.data, &golden.get(&key).data, LATENT_TOLERANCE);
    }
    let (decibels, worst) = compare_pictures(&rgb, golden.get("image"));
    println!("{name}: {decibels:.1} dB, off by {worst}");
    assert!(decibels >= 65.0 && worst <= 2, "{name}: {decibels:.1} dB, off by {worst}");
}

/// In f16: the picture to at least 50 dB, where PyTorch's own f16 reaches 55 and more.
fn near_picture(name: &'static str) {
    let gpu = gpu();
    let golden = Golden::open(name);
    let (rgb, _) = draw(gpu, name, golden.request(), DType::F16);
    let (decibels, worst) = compare_pictures(&rgb, golden.get("image"));
    println!("{name} in f16: {decibels:.1} dB, off by {worst}");
    assert!(decibels >= 50.0, "{name} in f16: {decibels:.1} dB, off by {worst}");
}

#[test]
fn sd1_draws_as_diffusers_does() {
    same_picture(gpu(), "sd1");
}

#[test]
fn sd2_with_velocities_draws_as_diffusers_does() {
    same_picture(gpu(), "sd2_v");
}

#[test]
fn sdxl_draws_as_diffusers_does() {
    same_picture(gpu(), "sdxl");
}

#[test]
fn sdxl_without_guidance_draws_as_diffusers_does() {
    same_picture(gpu(), "sdxl_turbo");
}

#[test]
fn a_consistency_model_draws_as_diffusers_does() {
    same_picture(gpu(), "lcm");
}

#[test]
fn rescaled_guidance_and_skipped_layers_draw_as_in_diffusers() {
    same_picture(gpu(), "rescale");
}

#[test]
fn a_long_prompt_draws_as_in_diffusers() {
    same_picture(gpu(), "long_prompt");
}

#[test]
fn a_unicode_prompt_draws_as_in_diffusers() {
    same_picture(gpu(), "unicode_prompt");
}

#[test]
fn the_embedded_model_draws_as_in_diffusers() {
    same_picture(gpu(), "emoji");
}

/// Without a dump the next step is encoded and its noise drawn while one runs.
#[test]
fn steps_under_way_together_draw_as_one_after_the_other() {
    let golden = Golden::open("sdxl");
    let request = |seed| Request { sampler: Some("euler_a".to_owned()), steps: Some(5), seed, ..golden.request() };
    let model = Arc::new(StableDiffusion::new(gpu(), checkpoint("sdxl"), DType::F32));
    let mut generation = model.generate(request(1), 2, false).unwrap();
    for seed in [1, 2] {
        if seed == 2 {
            generation.again(Variation { seed: 2, ..Variation::default() }, false).unwrap();
        }
        let mut steps = Vec::new();
        let picture = generation.find_map(|event| match event.unwrap() {
            Event::Step(done, count) => {
                steps.push((done, count));
                None
            }
            Event::Picture(picture) => Some(picture),
            _ => None,
        });
        assert_eq!(steps, (1..=5).map(|done| (done, 5)).collect::<Vec<_>>());
        let (alone, _) = draw(gpu(), "sdxl", request(seed), DType::F32);
        assert!(picture.unwrap().rgb == alone, "seed {seed} draws another picture");
    }
}

#[test]
fn webgpu_default_limits_suffice() {
    same_picture(open(&GpuOptions { webgpu_defaults: true, ..GpuOptions::default() }), "sd1");
}

#[test]
fn run_time_checks_change_nothing() {
    same_picture(open(&GpuOptions { checked: true, ..GpuOptions::default() }), "sdxl");
}

#[test]
fn halves_draw_nearly_the_same() {
    for name in HALVES {
        near_picture(name);
    }
}

/// Cases on which PyTorch's own f16 keeps at least 55 dB (`tools/accept.py --yardstick` measures it).
const HALVES: [&str; 3] = ["sd1", "sdxl", "emoji"];

#[test]
fn prompts_become_the_same_tokens() {
    for name in ["sd1", "sd2_v", "sdxl", "sdxl_turbo", "lcm", "rescale", "long_prompt", "unicode_prompt", "emoji"] {
        let golden = Golden::open(name);
        let folder = match name {
            "emoji" => std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji"),
            name => folder(name),
        };
        for (suffix, key, prompt) in [
            ("", "tokens", "prompt"),
            ("", "negative_tokens", "negative_prompt"),
            ("_2", "tokens_2", "prompt"),
            ("_2", "negative_tokens_2", "negative_prompt"),
        ] {
            let Some(want) = golden.find(key) else { continue };
            let place = folder.join(format!("tokenizer{suffix}"));
            let files =
                TokenizerFiles::find(&place.display().to_string(), |file| Ok(std::fs::read(place.join(file)).ok()))
                    .unwrap();
            let encoded = ClipTokenizer::load(&files).unwrap().encode(golden.prompt(prompt), want.data.len()).unwrap();
            let ids: Vec<f32> = encoded.ids.iter().map(|id| *id as f32).collect();
            assert_eq!(ids, want.data, "{name}: {key}");
        }
    }
}
