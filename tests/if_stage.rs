//! The first stage of DeepFloyd IF, prompt to picture, against diffusers' `IFPipeline` on a random model.
//!
//! Model and picture are case 0 of seed 0 of `tools/accept_systems.py --systems if1`, which draws others anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::pipelines::{Event, Imagen, Request, System};
use scumble::tensor::DType;
use scumble::weights::imagen::ImagenStage;

const SEED: u64 = 121_284_191;
const PROMPT: &str = "Ein schöner Café-Tisch, naïve ÉLÉGANCE, 東京の夜, привет мир, 🍎🚀, it's 3½ o’clock… ﬁn";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/if_stage")
}

fn draw(precision: DType, seed: u64) -> Vec<u8> {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let stage = ImagenStage::open(&folder().join("model")).unwrap();
    let model: Arc<dyn System> = Arc::new(Imagen::new(gpu, vec![stage], precision).unwrap());
    let request = Request {
        prompt: PROMPT.to_owned(),
        negative_prompt: Some("apple old oil".to_owned()),
        width: Some(24),
        height: Some(8),
        steps: Some(2),
        guidance_scale: Some(3.0),
        seed,
        ..Request::default()
    };
    let found = model.draw(request, 1, false).unwrap().find_map(|event| match event.unwrap() {
        Event::Picture(picture) => Some(picture),
        _ => None,
    });
    let picture = found.expect("a picture");
    assert_eq!((picture.width, picture.height), (24, 8));
    picture.rgb
}

fn reference() -> Vec<u8> {
    image::open(folder().join("reference.png")).unwrap().to_rgb8().into_raw()
}

fn decibels(got: &[u8], want: &[u8]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255f64.powi(2) * got.len() as f64 / sum).log10()
}

/// Differences of rounding in f32 change few bytes by one: the same bound as for Stable Diffusion.
#[test]
fn stage_one_draws_as_in_diffusers() {
    let (got, want) = (draw(DType::F32, SEED), reference());
    let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max();
    let decibels = decibels(&got, &want);
    assert!(decibels >= 65.0 && worst <= Some(2), "{decibels:.1} dB, off by {worst:?}");
}

/// Two steps of a random model multiply the rounding to halves; another seed's picture is far away all the same.
#[test]
fn halves_draw_nearly_the_same() {
    let near = decibels(&draw(DType::F16, SEED), &reference());
    let far = decibels(&draw(DType::F16, SEED + 1), &reference());
    println!("{near:.1} dB, another seed {far:.1} dB");
    assert!(near >= 45.0 && far <= 15.0, "{near:.1} dB, another seed {far:.1} dB");
}
