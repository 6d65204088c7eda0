//! Enlarging pictures against diffusers: tiny random x4 upscalers (`tests/goldens/upscale/`, made by `tools/goldens/upscale.py`), tiles,
//! chains of systems, and the command `scumble upscale` with either kind of diffusion upscaler.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use safetensors::{Dtype, SafeTensors};
use scumble::error::ErrorKind;
use scumble::gpu::{Gpu, GpuOptions};
use scumble::pipelines::{
    Chain, Drawing, Event, LatentUpscaler, Link, Picture, Request, StableDiffusion, System, TileSide, Tiling, Variation,
};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::checkpoint::Checkpoint;
use scumble::weights::kind::ModelKind;
use scumble::weights::latent_upscaler::LatentUpscalerCheckpoint;

/// Some thirty layers in f32, whose sums have another order than PyTorch's, over a few steps that pass errors on, multiplied by
/// guidance.
const TOLERANCE: f32 = 1e-3;

type Tensors = BTreeMap<String, HostTensor>;

fn goldens(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(path)
}

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn golden() -> Tensors {
    let bytes = std::fs::read(goldens("upscale/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        let data = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
            Dtype::U8 => view.data().iter().map(|byte| f32::from(*byte)).collect(),
            other => panic!("{key} is stored as {other:?}"),
        };
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn cases() -> Vec<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(goldens("upscale/cases.json")).unwrap()).unwrap()
}

fn case(name: &str) -> serde_json::Value {
    cases().into_iter().find(|case| case["name"] == name).unwrap()
}

/// [1, 3, H, W] from -1 to 1.
fn picture(name: &str) -> HostTensor {
    let picture = image::open(goldens(&format!("upscale/{name}.png"))).unwrap().to_rgb8();
    let (width, height) = picture.dimensions();
    let data = picture.into_raw().iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    HostTensor::new(vec![1, height as usize, width as usize, 3], data).unwrap().channels_first()
}

fn request(case: &serde_json::Value) -> Request {
    Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative_prompt"].as_str().map(str::to_owned),
        image: Some(picture(case["picture"].as_str().unwrap())),
        noise_level: Some(case["level"].as_u64().unwrap() as u32),
        steps: Some(case["steps"].as_u64().unwrap() as u32),
        guidance_scale: Some(case["guidance"].as_f64().unwrap() as f32),
        sampler: case["sampler"].as_str().map(str::to_owned),
        seed: case["seed"].as_u64().unwrap(),
        ..Request::default()
    }
}

fn upscaler(name: &str, precision: DType) -> LatentUpscaler {
    let checkpoint = LatentUpscalerCheckpoint::open(&goldens(&format!("upscale/{name}"))).unwrap();
    LatentUpscaler::new(gpu(), checkpoint, precision)
}

/// Runs a drawing to its end: the picture and what was kept.
fn finish(drawing: &mut dyn Drawing) -> (Picture, Tensors) {
    let mut pictures = Vec::new();
    for event in &mut *drawing {
        if let Event::Picture(picture) = event.unwrap() {
            pictures.push(picture);
        }
    }
    assert_eq!(pictures.len(), 1);
    let size = [pictures[0].height, pictures[0].width];
    assert_eq!(drawing.size(), Some(size));
    (pictures.remove(0), drawing.take_dump().into_iter().collect())
}

fn draw(system: LatentUpscaler, request: Request) -> (Picture, Tensors) {
    finish(Arc::new(system).draw(request, 1, true).unwrap().as_mut())
}

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.shape, want.shape, "{place}");
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        let difference = (got - want).abs();
        assert!(difference <= tolerance * largest, "{place}: value {i} is {got}, wanted {want}");
    }
}

fn decibels(got: &[u8], want: &[u8]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255f64.powi(2) * got.len() as f64 / sum).log10()
}

#[test]
fn pictures_are_enlarged_as_in_diffusers() {
    let golden = golden();
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let (picture, dump) = draw(upscaler(case["model"].as_str().unwrap(), DType::F32), request(&case));
        close(name, &dump["image"], &golden[name], TOLERANCE);
        assert_eq!(golden[name].shape[2..], [picture.height as usize, picture.width as usize]);
    }
}

/// Halves through some thirty narrow layers and three guided steps; another seed is far away all the same.
#[test]
fn halves_enlarge_nearly_the_same() {
    let bytes = |image: &HostTensor| scumble::pipelines::tiles::bytes(image);
    let want = bytes(&golden()["guided"]);
    let request = request(&case("guided"));
    let (near, _) = draw(upscaler("plain", DType::F16), request.clone());
    let (far, _) = draw(upscaler("plain", DType::F16), Request { seed: request.seed + 1, ..request });
    let (near, far) = (decibels(&near.rgb, &want), decibels(&far.rgb, &want));
    println!("{near:.1} dB, another seed {far:.1} dB");
    assert!(near >= 35.0 && far <= near - 10.0, "{near:.1} dB, another seed {far:.1} dB");
}

#[test]
fn further_pictures_start_from_their_own_seeds() {
    let golden = golden();
    let base = request(&case("unguided"));
    let system: Arc<dyn System> = Arc::new(upscaler("plain", DType::F32));
    let mut drawing = Arc::clone(&system).draw(Request { seed: 999, ..base.clone() }, 2, false).unwrap();
    finish(drawing.as_mut());
    drawing.again(Variation { seed: base.seed, ..Variation::default() }, true).unwrap();
    let (_, dump) = finish(drawing.as_mut());
    close("again", &dump["image"], &golden["unguided"], TOLERANCE);
    assert!(drawing.again(Variation::default(), false).is_err(), "two pictures were announced");
    // The same latent noise given instead of drawn, with another seed: only the noise on the picture differs.
    let given = Request { seed: 4, latents: Some(dump["noise"].clone()), ..base };
    let mut drawing = system.draw(given, 1, true).unwrap();
    let (_, other) = finish(drawing.as_mut());
    assert_eq!(other["noise"], dump["noise"]);
    assert_ne!(other["picture_noise"], dump["picture_noise"]);
}

/// The weights of a tile along an axis by the rule that `pipelines/tiles.rs` documents.
fn weights(starts: &[usize], number: usize, side: usize, factor: usize) -> Vec<f64> {
    let overlap = |a: usize, b: usize| ((starts[a] + side - starts[b]) * factor) as f64;
    let length = side * factor;
    let weight = |place: usize| {
        let rise = if number == 0 { 1.0 } else { (place as f64 + 0.5) / overlap(number - 1, number) };
        let last = number + 1 == starts.len();
        let fall = if last { 1.0 } else { ((length - 1 - place) as f64 + 0.5) / overlap(number, number + 1) };
        rise.min(1.0) * fall.min(1.0)
    };
    (0..length).map(weight).collect()
}

#[test]
fn tiles_are_parts_of_the_whole_and_blended() {
    // The same picture repeated below itself: 8 x 40.
    let tall = picture("tall");
    let data = tall.data.chunks_exact(160).flat_map(|plane| plane.repeat(2)).collect();
    let request = Request {
        image: Some(HostTensor::new(vec![1, 3, 40, 8], data).unwrap()),
        noise_level: Some(20),
        ..request(&case("unguided"))
    };
    let whole = draw(upscaler("plain", DType::F32), request.clone()).1;
    let tiled = upscaler("plain", DType::F32).with_tiles(TileSide::Px(16), Tiling::default());
    let (picture, dump) = draw(tiled, request);
    assert_eq!((picture.height, picture.width), (160, 32));
    assert_eq!(dump["noise"], whole["noise"]);
    // Three tiles overlap by a quarter or more: 16 + 12 + 12 rows.
    let starts = [0, 12, 24];
    let [mut sums, mut all] = [vec![0f64; 3 * 160 * 32], vec![0f64; 3 * 160 * 32]];
    for (number, start) in starts.into_iter().enumerate() {
        let low = &dump[&format!("tile.{number}.low")];
        assert_eq!(low.shape, [1, 3, 16, 8]);
        for channel in 0..3 {
            let part = &whole["low"].data[(channel * 40 + start) * 8..][..16 * 8];
            assert_eq!(&low.data[channel * 16 * 8..][..16 * 8], part, "tile {number}");
        }
        let image = &dump[&format!("tile.{number}.image")];
        for (row, weight) in weights(&starts, number, 16, 4).into_iter().enumerate() {
            for (channel, x) in (0..3).flat_map(|channel| (0..32).map(move |x| (channel, x))) {
                let place = (channel * 160 + start * 4 + row) * 32 + x;
                sums[place] += weight * f64::from(image.data[(channel * 64 + row) * 32 + x]);
                all[place] += weight;
            }
        }
    }
    let data = sums.iter().zip(&all).map(|(sum, weight)| (sum / weight) as f32).collect();
    close("blended", &dump["image"], &HostTensor::new(vec![1, 3, 160, 32], data).unwrap(), 1e-5);
    assert_eq!(picture.rgb, scumble::pipelines::tiles::bytes(&dump["image"]));
}

#[test]
fn one_tile_is_the_whole() {
    let request = request(&case("guided"));
    let whole = draw(upscaler("plain", DType::F32).with_tiles(TileSide::Off, Tiling::default()), request.clone());
    let one = draw(upscaler("plain", DType::F32).with_tiles(TileSide::Px(16), Tiling::default()), request);
    assert_eq!(whole.0, one.0);
    assert_eq!(whole.1["image"], one.1["image"]);
}

/// A budget below the whole picture's need takes smaller tiles, one below every tile's need is refused.
#[test]
fn memory_decides_about_tiles() {
    let wide = HostTensor::new(vec![1, 3, 16, 256], vec![0.25; 3 * 16 * 256]).unwrap();
    let request = Request { image: Some(wide), steps: Some(1), ..request(&case("unguided")) };
    let tiles = |budget: Option<u64>| {
        let system = upscaler("plain", DType::F32).with_tiles(TileSide::Auto, Tiling::Auto(budget));
        let drawing = Arc::new(system).draw(request.clone(), 1, false)?;
        Ok(drawing.summary().further.into_iter().find(|(name, _)| *name == "Tiles").map(|(_, value)| value))
    };
    assert_eq!(tiles(None).unwrap(), None);
    let mut found = Vec::new();
    let error: scumble::error::Error = (8..26)
        .rev()
        .map(|power| tiles(Some(1 << power)))
        .find_map(|outcome| match outcome {
            Ok(tiles) => {
                found.extend(tiles);
                None
            }
            Err(error) => Some(error),
        })
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    assert!(found.iter().all(|tile| tile.ends_with("x16")) && !found.is_empty(), "{found:?}");
}

#[test]
fn a_chain_is_its_links_one_after_the_other() {
    let first = || -> Arc<dyn System> {
        let checkpoint = Checkpoint::open(&goldens("pipelines/sd1")).unwrap();
        Arc::new(StableDiffusion::new(gpu(), checkpoint, DType::F32))
    };
    let second = || -> Arc<dyn System> { Arc::new(upscaler("plain", DType::F32)) };
    let request = Request {
        prompt: "a red apple".to_owned(),
        negative_prompt: Some("old".to_owned()),
        width: Some(16),
        height: Some(24),
        steps: Some(2),
        seed: 5,
        ..Request::default()
    };
    let link = |system, kind| Link { system, kind, stages: 1 };
    let links = vec![link(first(), ModelKind::StableDiffusion), link(second(), ModelKind::LatentUpscaler)];
    let chain = Arc::new(Chain::new(gpu(), links).unwrap());
    let asked = Request { sr_steps: Some(2), noise_level: Some(10), ..request.clone() };
    let mut drawing = Arc::clone(&chain).draw(asked, 2, true).unwrap();
    let (picture, dump) = finish(drawing.as_mut());
    assert_eq!((picture.height, picture.width), (96, 64));
    assert_eq!(drawing.summary().steps, Some(2));
    for name in ["SR steps", "Noise level"] {
        assert!(drawing.summary().further.iter().any(|(found, _)| *found == name), "{name}");
    }

    let mut alone = first().draw(request.clone(), 1, true).unwrap();
    let (_, small) = finish(alone.as_mut());
    assert_eq!(dump["picture"], small["image"]);
    assert_eq!(dump["latents.1"], small["latents.1"]);
    let handed = alone.handed().unwrap();
    assert!(handed.data.iter().all(|value| (-1.0..=1.0).contains(value)));
    let base = Request { steps: Some(2), noise_level: Some(10), width: None, height: None, ..request.clone() };
    let mut alone = second().draw(Request { image: Some(handed), ..base }, 1, true).unwrap();
    let (large, kept) = finish(alone.as_mut());
    assert_eq!(picture, large);
    assert_eq!((&dump["image"], &dump["2.latents.1"]), (&kept["image"], &kept["latents.1"]));
    assert_eq!(drawing.image().unwrap(), kept["image"]);
    // Once more with the same seed is the same picture.
    drawing.again(Variation { seed: 5, ..Variation::default() }, false).unwrap();
    assert_eq!(finish(drawing.as_mut()).0, picture);

    let wrong = Arc::clone(&chain).draw(Request { noise_level: Some(50), ..request.clone() }, 1, false).err().unwrap();
    assert!(wrong.to_string().contains("--noise-level"), "{wrong}");
    let turned = vec![link(second(), ModelKind::LatentUpscaler), link(first(), ModelKind::StableDiffusion)];
    let error = Chain::new(gpu(), turned).err().unwrap().to_string();
    assert!(error.contains("enlarges nothing") && error.contains("--then"), "{error}");
}

#[test]
fn wrong_requests_are_refused() {
    let base = request(&case("unguided"));
    let small = HostTensor::new(vec![1, 3, 3, 9], vec![0.0; 81]).unwrap();
    let flat = HostTensor::new(vec![1, 1, 9, 9], vec![0.0; 81]).unwrap();
    for (request, parts) in [
        (Request { image: None, ..base.clone() }, &["no picture", "scumble upscale"][..]),
        (Request { image: Some(small), ..base.clone() }, &["too small", "9 x 3"]),
        (Request { image: Some(flat), ..base.clone() }, &["[1, 3, H, W]", "[1, 1, 9, 9]"]),
        (Request { noise_level: Some(50), ..base.clone() }, &["--noise-level", "at most 49"]),
        (Request { sr_steps: Some(5), ..base.clone() }, &["--sr-steps", "the x4 upscaler"]),
        (Request { width: Some(64), ..base.clone() }, &["--width", "the picture's size decides"]),
        (Request { top_k: Some(5), ..base.clone() }, &["--top-k"]),
        (Request { clip_skip: Some(9), ..base.clone() }, &["--clip-skip"]),
        (Request { latents: Some(picture("wide")), ..base.clone() }, &["--latents", "[1, 4, 12, 16]"]),
    ] {
        let error = Arc::new(upscaler("plain", DType::F32)).draw(request, 1, false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
    let other = Checkpoint::open(&goldens("upscale/plain")).err().unwrap().to_string();
    assert!(other.contains("StableDiffusionUpscalePipeline"), "{other}");
    let other = LatentUpscalerCheckpoint::open(&goldens("pipelines/sd1")).err().unwrap().to_string();
    assert!(other.contains("StableDiffusionPipeline"), "{other}");
}

fn scumble(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).args(["--precision", "f32"]).env("SCUMBLE_CACHE_DIR", "").stdin(Stdio::null()).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command that writes one picture.
fn picture_of(words: &[&str]) -> image::RgbImage {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.png");
    let output = scumble(&[words, &["-o", path(&out)]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    image::open(&out).unwrap().to_rgb8()
}

/// IF's second stage with the first one's text encoder, as the published directory has one of its own.
fn second_stage() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |part: &str, from: &str| {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        for file in std::fs::read_dir(goldens("imagen").join(from).join(part)).unwrap().flatten() {
            std::fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
        }
    };
    for part in ["unet", "scheduler", "image_noising_scheduler"] {
        copy(part, "II");
    }
    for part in ["text_encoder", "tokenizer"] {
        copy(part, "I");
    }
    let read = |from: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(goldens("imagen").join(from).join("model_index.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let (mut index, first) = (read("II"), read("I"));
    for part in ["text_encoder", "tokenizer"] {
        index[part] = first[part].clone();
    }
    std::fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn the_command_enlarges_with_either_model() {
    let wide = goldens("upscale/wide.png");
    let stage = second_stage();
    let words = [
        "-p",
        "two cats in chalk",
        "-n",
        "dragon",
        "--steps",
        "2",
        "--cfg-scale",
        "3",
        "--noise-level",
        "100",
        "-s",
        "21",
    ];
    let got = picture_of(&[&["upscale", path(&wide), "-m", path(stage.path())], &words[..]].concat());
    let want: Vec<u8> = golden()["second_stage"].data.iter().map(|value| *value as u8).collect();
    let near = decibels(got.as_raw(), &want);
    assert!(near >= 65.0, "IF's second stage: {near:.1} dB");

    let model = goldens("upscale/plain");
    let case = case("guided");
    let words =
        ["-p", "A red Apple", "-n", "blue, old", "--steps", "3", "--cfg-scale", "9", "--noise-level", "20", "-s", "11"];
    assert_eq!(case["prompt"], "A red Apple");
    let got = picture_of(&[&["upscale", path(&wide), "-m", path(&model)], &words[..]].concat());
    let near = decibels(got.as_raw(), &scumble::pipelines::tiles::bytes(&golden()["guided"]));
    assert!(near >= 65.0, "the x4 upscaler: {near:.1} dB");
}

#[test]
fn commands_chain_models() {
    let (first, second) = (goldens("pipelines/sd1"), goldens("upscale/plain"));
    let words = ["generate", "apple", "-m", path(&first), "-W", "16", "-H", "16", "--steps", "2", "-s", "3"];
    let whole = picture_of(&[&words[..], &["--then", path(&second), "--sr-steps", "2"]].concat());
    assert_eq!(whole.dimensions(), (64, 64));
    let small = picture_of(&words);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.png");
    small.save(&file).unwrap();
    let words = ["upscale", path(&file), "-m", path(&second), "-p", "apple", "--steps", "2", "-s", "3"];
    let apart = picture_of(&words);
    // The picture between them went through 8 bits.
    let near = decibels(whole.as_raw(), apart.as_raw());
    assert!(near >= 35.0, "{near:.1} dB");
}

#[test]
fn wrong_commands_are_told() {
    let (wide, model, other) = (goldens("upscale/wide.png"), goldens("upscale/plain"), goldens("pipelines/sd1"));
    let (wide, model, other, cases) = (path(&wide), path(&model), path(&other), goldens("upscale/cases.json"));
    for (words, code, parts) in [
        (&["upscale", wide, "-m", other][..], 2, &["enlarges nothing", "--model", "Stable Diffusion"][..]),
        (&["upscale", wide, "-m", model, "--then", other], 2, &["enlarges nothing", "--then"]),
        (&["generate", "x", "-m", other, "--then", other], 2, &["enlarges nothing", "--then"]),
        (&["generate", "x", "-m", other, "--tile", "64"], 2, &["--tile", "the x4 upscaler"]),
        (&["generate", "x", "-m", model], 2, &["no picture to enlarge"]),
        (&["upscale", wide, "-m", model, "--tile", "3"], 2, &["--tile", "at least 16"]),
        (&["upscale", wide, "-m", model, "--noise-level", "351"], 2, &["--noise-level", "at most 49"]),
        (&["upscale", wide, "-m", model, "-W", "64"], 2, &["--width", "the picture's size decides"]),
        (&["upscale", wide], 2, &["--model"]),
        (&["upscale", path(&cases), "-m", model], 1, &["cases.json", "PNG, JPEG or WebP"]),
        (&["upscale", "none.png", "-m", model], 1, &["none.png"]),
        (&["upscale", wide, "-m", "none"], 1, &["no such model"]),
    ] {
        let output = scumble(words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
        }
    }
}

#[test]
fn kinds_of_files_are_told_by_their_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, keys: &[&str]| {
        let path = folder.path().join(name);
        let tensors = keys.iter().map(|key| {
            let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            (key.to_string(), view)
        });
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        path
    };
    let unet = "model.diffusion_model.input_blocks.0.0.weight";
    let upscaler = file("x4.safetensors", &[unet, "model.diffusion_model.label_emb.weight"]);
    assert_eq!(ModelKind::of(&upscaler).unwrap(), ModelKind::LatentUpscaler);
    assert_eq!(ModelKind::of(&file("sd.safetensors", &[unet])).unwrap(), ModelKind::StableDiffusion);
    assert_eq!(ModelKind::of(&goldens("upscale/plain")).unwrap(), ModelKind::LatentUpscaler);
    assert!(Checkpoint::open(&upscaler).is_err());
}
