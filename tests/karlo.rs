//! Karlo against diffusers: tiny random models (`tests/goldens/karlo/`, made by `tools/goldens/karlo.py`), prompt to picture with
//! everything between; unCLIP's prior block by block; the published keys of a whole Karlo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use safetensors::{Dtype, SafeTensors};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::{KernelSet, Limits};
use scumble::models::config::PriorConfig;
use scumble::models::generator::prior;
use scumble::pipelines::{Drawing, Event, Karlo, KarloSettings, Request, System, Variation, Work, karlo_graphs};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::file_source::FileSource;
use scumble::weights::karlo::KarloCheckpoint;
use scumble::weights::shapes::parse_manifest;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, ShapesSource, TensorInfo, Weights, keys, pack};

/// Some dozens of layers in f32, whose sums have another order than PyTorch's, over a few steps that pass errors on.
const TOLERANCE: f32 = 5e-4;
/// Up to three blocks in f32.
const BLOCKS: f32 = 2e-5;
/// The same rounded to halves at every layer, 5e-4 each, of twenty channels whose norms amplify it.
const HALVES: f32 = 2e-2;

type Tensors = BTreeMap<String, HostTensor>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/karlo").join(name)
}

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn read(name: &str) -> Tensors {
    let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        let data = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn cases(name: &str) -> Vec<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(folder(name).join("cases.json")).unwrap()).unwrap()
}

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.data.len(), want.data.len(), "{place}: {:?} instead of {:?}", got.shape, want.shape);
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    println!("{place}: {:.1e} of the largest", worst / largest);
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        let difference = (got - want).abs();
        assert!(difference <= tolerance * largest, "{place}: value {i} is {got}, wanted {want}");
    }
}

fn model(name: &str, precision: DType) -> Arc<Karlo> {
    Arc::new(Karlo::new(gpu(), KarloCheckpoint::open(&folder(name)).unwrap(), precision))
}

fn request(case: &serde_json::Value) -> Request {
    let number = |key: &str| Some(case[key].as_u64().unwrap() as u32);
    let scale = |key: &str| Some(case[key].as_f64().unwrap() as f32);
    Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        steps: number("steps"),
        guidance_scale: scale("guidance"),
        prior_steps: number("prior_steps"),
        prior_guidance_scale: scale("prior_guidance"),
        sr_steps: number("sr_steps"),
        seed: case["seed"].as_u64().unwrap(),
        ..Request::default()
    }
}

/// Runs to the picture: what was kept, and its bytes.
fn finish(drawing: &mut dyn Drawing) -> (Tensors, Vec<u8>) {
    let mut pictures = Vec::new();
    for event in &mut *drawing {
        if let Event::Picture(picture) = event.unwrap() {
            pictures.push(picture.rgb);
        }
    }
    assert_eq!(pictures.len(), 1);
    (drawing.take_dump().into_iter().collect(), pictures.remove(0))
}

/// From 0 to 1, as the pipelines hand it out.
fn shown(image: &HostTensor) -> HostTensor {
    let data = image.data.iter().map(|value| (value * 0.5 + 0.5).clamp(0.0, 1.0)).collect();
    HostTensor { shape: image.shape.clone(), data }
}

#[test]
fn pictures_and_all_between_are_diffusers() {
    for name in ["plain", "uneven"] {
        let golden = read(name);
        let model = model(name, DType::F32);
        for case in cases(name) {
            let case_name = case["name"].as_str().unwrap();
            let mut drawing = Arc::clone(&model).draw(request(&case), 1, true).unwrap();
            let (dump, rgb) = finish(drawing.as_mut());
            let pairs = [
                ("text_embeddings", "text"),
                ("text_embedding", "text_embedding"),
                ("prior.embedding", "embedding"),
                ("sr.low", "low"),
            ];
            for (got, want) in pairs {
                let want = &golden[&format!("{case_name}.{want}")];
                close(&format!("{name} {case_name}: {got}"), &dump[got], want, TOLERANCE);
            }
            let latents = dump.iter().filter(|(key, _)| key.contains("latents."));
            for (key, got) in latents.clone() {
                close(&format!("{name} {case_name}: {key}"), got, &golden[&format!("{case_name}.{key}")], TOLERANCE);
            }
            let steps = ["prior_steps", "steps", "sr_steps"].map(|key| case[key].as_u64().unwrap() as usize);
            assert_eq!(latents.count(), steps.iter().sum::<usize>());
            let image = &golden[&format!("{case_name}.image")];
            close(&format!("{name} {case_name}"), &shown(&dump["image"]), image, TOLERANCE);
            assert_eq!(drawing.image().unwrap(), dump["image"]);
            let bytes = image.channels_last().data;
            let bytes = bytes.iter().map(|value| (value * 255.0).round() as u8);
            assert!(rgb.iter().zip(bytes).all(|(got, want)| got.abs_diff(want) <= 1), "{name} {case_name}: bytes");
        }
    }
}

#[test]
fn events_tell_the_stages_and_a_second_picture_has_its_own_seed() {
    let case = &cases("plain")[0];
    let golden = read("plain");
    let other = Request { seed: 3, ..request(case) };
    let mut drawing = model("plain", DType::F32).draw(other, 2, false).unwrap();
    let mut stages = Vec::new();
    let mut steps = Vec::new();
    for event in &mut *drawing {
        match event.unwrap() {
            Event::Stage { work, steps: count, .. } if count > 0 => stages.push((work, count)),
            Event::Step(done, count) => steps.push((done, count)),
            _ => {}
        }
    }
    let three = [(1, 3), (2, 3), (3, 3)];
    assert_eq!(stages, [(Work::Generating, 3), (Work::Generating, 3), (Work::Decoding, 2), (Work::Decoding, 1)]);
    assert_eq!(steps, [&three[..], &three, &[(1, 2), (2, 2), (1, 1)]].concat());
    let summary = drawing.summary();
    assert_eq!((summary.steps, summary.guidance_scale), (Some(3), Some(8.0)));
    let further = [("Prior steps", "3"), ("Prior CFG scale", "4"), ("SR steps", "3")];
    assert_eq!(summary.further, further.map(|(name, value)| (name, value.to_owned())));
    let far = shown(&drawing.image().unwrap());
    let want = &golden["plain.image"];
    assert!(far.data.iter().zip(&want.data).any(|(a, b)| (a - b).abs() > 0.2), "another seed, the same picture");
    drawing.again(Variation { seed: case["seed"].as_u64().unwrap(), ..Variation::default() }, false).unwrap();
    finish(drawing.as_mut());
    close("again", &shown(&drawing.image().unwrap()), want, TOLERANCE);
    assert!(drawing.again(Variation::default(), false).is_err());
}

/// A few steps of narrow random models multiply the rounding to halves; the embedding and the small picture stay near.
#[test]
fn halves_draw_nearly_the_same() {
    let golden = read("plain");
    for case in &cases("plain")[..2] {
        let name = case["name"].as_str().unwrap();
        let mut drawing = model("plain", DType::F16).draw(request(case), 1, true).unwrap();
        let (dump, _) = finish(drawing.as_mut());
        close(name, &dump["prior.embedding"], &golden[&format!("{name}.embedding")], HALVES);
        let want = &golden[&format!("{name}.image")];
        let squares = shown(&dump["image"]).data.iter().zip(&want.data).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let decibels = -10.0 * (squares / want.data.len() as f32).log10();
        println!("{name}: {decibels:.1} dB");
        assert!(decibels >= 40.0, "{name}: {decibels:.1} dB");
    }
}

#[test]
fn what_karlo_does_not_have_is_refused() {
    let model = model("plain", DType::F32);
    let base = Request::default;
    for (word, wrong) in [
        ("--negative-prompt", Request { negative_prompt: Some("a dragon".to_owned()), ..base() }),
        ("--width", Request { width: Some(16), ..base() }),
        ("--height", Request { height: Some(16), ..base() }),
        ("--sampler", Request { sampler: Some("ddim".to_owned()), ..base() }),
        ("--schedule", Request { schedule: Some("karras".to_owned()), ..base() }),
        ("--noise-level", Request { noise_level: Some(3), ..base() }),
        ("--latents", Request { latents: Some(HostTensor::new(vec![1], vec![0.0]).unwrap()), ..base() }),
        ("--top-k", Request { top_k: Some(3), ..base() }),
        ("--clip-skip", Request { clip_skip: Some(1), ..base() }),
        ("--prior-steps", Request { prior_steps: Some(1), ..base() }),
        ("--steps", Request { steps: Some(1), ..base() }),
        ("--sr-steps", Request { sr_steps: Some(1001), ..base() }),
    ] {
        let error = Arc::clone(&model).draw(wrong, 1, false).err().unwrap().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

fn prior_config(name: &str) -> PriorConfig {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    PriorConfig::from_json(&serde_json::from_str(&text).unwrap(), name).unwrap()
}

/// The prior's taps, the prediction and the finished embedding, asked at one timestep.
fn asked(name: &str, limits: Limits, precision: DType) -> (Executor, Tensors) {
    let (config, golden) = (prior_config(name), read(name));
    let mut source = FileSource::new(name);
    let file = TensorFile::open(&folder(name).join("diffusion_pytorch_model.safetensors")).unwrap();
    source.add_all(&Arc::new(file), keys::prior).unwrap();
    let claims = Claims::default();
    let w = Weights::new(0, &source, &claims);
    let mut g = Graph::new(precision, limits).with_taps();
    let row = |g: &mut Graph, key: &str| {
        let [batch, width] = <[usize; 2]>::try_from(golden[key].shape.clone()).unwrap();
        g.input(key, Shape::new(batch as u32, 1, 1, width as u32), precision)
    };
    let (sample, embedding) = (row(&mut g, "sample"), row(&mut g, "embedding"));
    let [batch, tokens, width] = <[usize; 3]>::try_from(golden["vectors"].shape.clone()).unwrap().map(|n| n as u32);
    let vectors = g.input("vectors", Shape::tokens(batch, tokens, width), precision);
    // One timestep serves all batch elements.
    let timestep = g.input("timestep", Shape::new(1, 1, 1, 1), DType::F32);
    let mask = g.input("bias", Shape::new(batch, 1, 1, config.tokens() as u32), DType::F32);
    let text = prior::text(&mut g, &w, &config, vectors, embedding);
    let prediction = prior::prior(&mut g, &w, &config, (sample, timestep), text, mask);
    if config.predicted_dim == config.embedding_dim {
        let finished = prior::post_process(&mut g, &w, prediction);
        g.output("finished", finished);
        claims.finish(&source).unwrap();
    }
    assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
    let executor = Executor::new(&gpu(), &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
    executor.poison();
    for key in ["sample", "embedding", "vectors"] {
        executor.write(key, &golden[key]).unwrap();
    }
    executor.write("timestep", &HostTensor::new(vec![1], vec![731.0]).unwrap()).unwrap();
    let seen = golden["mask"].data.chunks_exact(tokens as usize);
    let more = vec![0.0; config.tokens() - tokens as usize];
    let bias = seen.flat_map(|row| row.iter().map(|seen| (1.0 - seen) * -10000.0).chain(more.clone())).collect();
    executor.write("bias", &HostTensor::new(vec![batch as usize, config.tokens()], bias).unwrap()).unwrap();
    executor.run();
    (executor, golden)
}

#[test]
fn priors_of_every_option_agree_block_by_block() {
    let tiles = Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu().limits() };
    for name in ["prior_defaults", "prior_norms", "prior_no_token"] {
        for (limits, precision, tolerance) in
            [(gpu().limits(), DType::F32, BLOCKS), (tiles, DType::F32, BLOCKS), (gpu().limits(), DType::F16, HALVES)]
        {
            let (executor, golden) = asked(name, limits, precision);
            for (key, want) in golden.iter().filter(|(key, _)| key.starts_with("prior")) {
                close(&format!("{name} {precision:?}: {key}"), &executor.read(key).unwrap(), want, tolerance);
            }
            if let Ok(finished) = executor.read("finished") {
                // As the pipelines read it: the mean of several thousand training embeddings hides nothing here.
                close(&format!("{name} {precision:?}: finished"), &finished, &golden["finished"], tolerance);
            }
        }
    }
}

fn manifest(name: &str) -> Vec<(String, TensorInfo)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/keys/{name}.tsv"));
    parse_manifest(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The published priors, Karlo's and Kandinsky 2.2's, are taken exactly, tables without the batch of one around them.
#[test]
fn priors_take_every_published_tensor() {
    for (name, width) in [("Karlo_prior", 768), ("Kandinsky2.2_prior", 1280)] {
        let config = PriorConfig::from_json(&serde_json::json!({ "embedding_dim": width }), name).unwrap();
        let tensors = manifest(name).into_iter().map(|(key, mut info)| {
            while info.shape.len() > 2 {
                assert_eq!(info.shape.remove(0), 1, "{key}");
            }
            (key, info)
        });
        let source = ShapesSource::new(name, tensors);
        let claims = Claims::default();
        let w = Weights::new(0, &source, &claims);
        let mut g = Graph::new(DType::F32, Limits::default());
        let row = |g: &mut Graph, key: &str, width: u32| g.input(key, Shape::new(2, 1, 1, width), DType::F32);
        let vectors = g.input("vectors", Shape::tokens(2, 77, width), DType::F32);
        let [embedding, sample] = ["embedding", "sample"].map(|key| row(&mut g, key, width));
        let (timestep, mask) = (row(&mut g, "timestep", 1), row(&mut g, "mask", 81));
        let text = prior::text(&mut g, &w, &config, vectors, embedding);
        let made = prior::prior(&mut g, &w, &config, (sample, timestep), text, mask);
        assert_eq!(g.shape(made), Shape::new(2, 1, 1, width));
        prior::post_process(&mut g, &w, made);
        claims.finish(&source).unwrap();
        assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
    }
}

/// The settings of the published Karlo, from the configs of its directory, ask for every tensor of its parts and no other; and
/// everything fits WebGPU's bindings in halves as in floats.
#[test]
fn the_published_karlo_is_taken_whole() {
    let folder = folder("published");
    let checkpoint = KarloCheckpoint::open_random(&folder, 1).unwrap();
    let settings = KarloSettings::resolve(&checkpoint, &Request::default()).unwrap();
    let steps = [&settings.prior.program, &settings.decoder.program, &settings.super_resolution.program];
    assert_eq!(steps.map(|program| program.evaluations.len()), [25, 25, 7]);
    assert!(settings.guided && settings.guidance_scale == 8.0 && settings.prior.guidance_scale == 4.0);
    for precision in [DType::F16, DType::F32] {
        for (name, graph) in karlo_graphs(&checkpoint, Limits::default(), precision, &settings).unwrap() {
            assert!(graph.fault().is_none(), "{name}: {:?}", graph.fault());
        }
    }
    let [first, last] = &checkpoint.super_resolution;
    let parts = [
        ("Karlo_prior", checkpoint.prior.prior.weights.as_ref()),
        ("CLIP_L_text_proj_Karlo", checkpoint.prior.text.weights.as_ref()),
        ("Karlo_text_proj", checkpoint.text_proj.weights.as_ref()),
        ("Karlo_decoder_UNet_64px", checkpoint.decoder.weights.as_ref()),
        ("Karlo_SR_UNet_each_of_2_256px", first.weights.as_ref()),
        ("Karlo_SR_UNet_each_of_2_256px", last.weights.as_ref()),
    ];
    for (manifest, source) in parts {
        let published = self::manifest(manifest).into_iter().filter(|(name, _)| !keys::is_skipped(name));
        // A batch of one around a table is taken off.
        let bare = |shape: &[usize]| shape.iter().copied().skip_while(|axis| *axis == 1).collect::<Vec<usize>>();
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let mut names: Vec<String> = Vec::new();
        for (name, info) in published {
            let asked = source.info(&name).unwrap_or_else(|| panic!("{manifest}: {name} is not asked for"));
            let (asked, stored) = (asked.shape, info.shape);
            assert!(
                bare(&asked) == bare(&stored) || asked.len() == 2 && elements(&asked) == elements(&stored),
                "{name}"
            );
            names.push(name);
        }
        names.sort();
        assert_eq!(source.names(), names, "{manifest}");
    }
}
