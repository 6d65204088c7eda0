//! DALL-E mini against PyTorch: tiny random models in each of the layouts of files (`tests/goldens/dalle/`, made by
//! `tools/goldens/dalle.py`), token for token, and the published models' keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use scumble::error::ErrorKind;
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::Graph;
use scumble::graph::executor::Executor;
use scumble::kernels::Limits;
use scumble::kernels::attention_cache::{self, AttentionCache};
use scumble::kernels::sample_token::{self, SampleToken};
use scumble::models::config::{DalleConfig, VqganConfig};
use scumble::pipelines::{Dalle, DalleSettings, Drawing, Event, Request, System, Variation, dalle_graphs};
use scumble::sampling::TorchGenerator;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::checkpoint::Part;
use scumble::weights::dalle::{DalleCheckpoint, DalleDefaults, DalleTokenizer};
use scumble::weights::{ShapesSource, Source, dalle_keys, pack};

const CASES: [&str; 3] = ["flax", "min_dalle", "variant"];
/// Some twenty layers in f32, whose errors add: against PyTorch at the 1e-5 of rounding, with room for the order of sums.
const TOLERANCE: f32 = 1e-4;

struct Golden {
    name: &'static str,
    tensors: BTreeMap<String, HostTensor>,
    request: Request,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/dalle").join(name)
}

fn open(name: &str) -> DalleCheckpoint {
    DalleCheckpoint::open(&folder(name), None).unwrap()
}

fn gpu() -> Arc<Gpu> {
    Arc::new(Gpu::open(&GpuOptions::default()).unwrap())
}

impl Golden {
    fn open(name: &'static str) -> Self {
        let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
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
        let case: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder(name).join("case.json")).unwrap()).unwrap();
        let request = Request {
            prompt: case["prompt"].as_str().unwrap().to_owned(),
            seed: case["seed"].as_u64().unwrap(),
            guidance_scale: Some(case["guidance"].as_f64().unwrap() as f32),
            top_k: Some(case["top_k"].as_u64().unwrap() as u32),
            temperature: Some(case["temperature"].as_f64().unwrap() as f32),
            ..Request::default()
        };
        Self { name, tensors: tensors.collect(), request }
    }

    fn get(&self, key: &str) -> &HostTensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("{}: no golden `{key}`", self.name))
    }

    fn check(&self, key: &str, got: &[f32], want: &[f32], tolerance: f32) {
        assert_eq!(got.len(), want.len(), "{} {key}: another number of values", self.name);
        let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (got, want) in got.iter().zip(want) {
            let difference = (got - want).abs();
            assert!(difference <= tolerance * largest, "{} {key}: {got}, PyTorch has {want}", self.name);
        }
    }
}

/// Draws a picture: its pixels and what was kept.
fn draw(golden: &Golden, precision: DType) -> (Vec<u8>, BTreeMap<String, HostTensor>) {
    let system = Arc::new(Dalle::new(gpu(), open(golden.name), precision));
    let mut drawing = system.draw(golden.request.clone(), 1, true).unwrap();
    let mut rgb = Vec::new();
    for event in drawing.by_ref() {
        if let Event::Picture(picture) = event.unwrap() {
            rgb = picture.rgb;
        }
    }
    (rgb, drawing.take_dump().into_iter().collect())
}

#[test]
fn pictures_are_pytorchs_token_for_token() {
    for name in CASES {
        let golden = Golden::open(name);
        let (rgb, dump) = draw(&golden, DType::F32);
        assert_eq!(dump["token_ids"].data, golden.get("token_ids").data, "{name}: text tokens");
        // Padding is computed in either, and nothing reads it.
        let states = golden.get("text_states");
        let width = *states.shape.last().unwrap();
        let real = golden.get("token_ids").data.iter().zip(states.data.chunks_exact(width));
        let kept = real.zip(dump["text_states"].data.chunks_exact(width)).filter(|((id, _), _)| **id != 1.0);
        let (want, got): (Vec<&[f32]>, Vec<&[f32]>) = kept.map(|((_, want), got)| (want, got)).unzip();
        golden.check("text_states", &got.concat(), &want.concat(), TOLERANCE);
        let logits = golden.get("logits");
        let steps = logits.shape[0];
        for (step, want) in logits.data.chunks_exact(logits.data.len() / steps).enumerate() {
            golden.check(&format!("logits.{step}"), &dump[&format!("logits.{step}")].data, want, TOLERANCE);
        }
        assert_eq!(dump["tokens"].data, golden.get("tokens").data, "{name}: image tokens");
        golden.check("image", &dump["image"].data, &golden.get("image").data, TOLERANCE);
        let picture = &golden.get("picture").data;
        let worst = rgb.iter().zip(picture).map(|(got, want)| (f32::from(*got) - want).abs()).fold(0.0, f32::max);
        assert!(rgb.len() == picture.len() && worst <= 1.0, "{name}: a pixel is {worst} off");
    }
}

/// Halves change numbers and with them, at some point, a token; the first steps' logits stay near.
#[test]
fn halves_stay_near() {
    for name in CASES {
        let golden = Golden::open(name);
        let (rgb, dump) = draw(&golden, DType::F16);
        let logits = golden.get("logits");
        let first = &logits.data[..logits.data.len() / logits.shape[0]];
        // Eleven bits through some ten layers.
        golden.check("logits.0 in f16", &dump["logits.0"].data, first, 0.02);
        assert!(rgb.iter().any(|value| *value != rgb[0]), "{name}");
    }
}

fn executor(gpu: &Arc<Gpu>, graph: &Graph, source: &dyn Source) -> Executor {
    Executor::new(gpu, graph, |spec, sink| pack::pack(spec, Some(source), sink)).unwrap()
}

fn words(rows: &[[u32; 4]]) -> Vec<u8> {
    rows.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
}

/// What lies between the layers, the generator's at its last step with the golden's tokens.
#[test]
fn taps_are_pytorchs() {
    let gpu = gpu();
    for name in CASES {
        let (golden, checkpoint) = (Golden::open(name), open(name));
        let settings = Dalle::settings(&checkpoint, &golden.request).unwrap();
        let graphs = dalle_graphs(&checkpoint, gpu.limits(), DType::F32, &settings, true).unwrap();
        let graphs: BTreeMap<&str, Graph> = graphs.into_iter().collect();
        let ids = golden.get("token_ids");
        let [rows, length] = [ids.shape[0], ids.shape[1]];
        let text = executor(&gpu, &graphs["text"], checkpoint.encoder.as_ref());
        text.poison();
        text.write_bytes("ids", &words(&ids.data.iter().map(|id| [*id as u32, 0, 0, 0]).collect::<Vec<_>>())).unwrap();
        let counts = ids.data.chunks_exact(length).map(|row| row.iter().filter(|id| **id != 1.0).count() as u32);
        let counts: Vec<[u32; 4]> = counts.map(|count| [count, count - 1, 0, 0]).collect();
        text.write_bytes("last", &words(&counts)).unwrap();
        text.run().wait().unwrap();
        for layer in 0..checkpoint.config.encoder.count {
            let key = format!("encoder.layers.{layer}");
            let [got, want] = [&text.read(&key).unwrap().data, &golden.get(&key).data];
            for ((got, want), count) in
                got.chunks_exact(got.len() / rows).zip(want.chunks_exact(want.len() / rows)).zip(&counts)
            {
                let part = count[0] as usize * checkpoint.config.width;
                golden.check(&key, &got[..part], &want[..part], TOLERANCE);
            }
        }
        let keys = executor(&gpu, &graphs["keys"], checkpoint.decoder.as_ref());
        keys.copy_from("states", &text.resident("states").unwrap()).unwrap();
        keys.run().wait().unwrap();
        let step = executor(&gpu, &graphs["tokens"], checkpoint.decoder.as_ref());
        step.poison();
        for layer in 0..checkpoint.config.decoder.count {
            let path = format!("layers.{layer}.encoder_attn");
            step.copy_from(&path, &keys.resident(&path).unwrap()).unwrap();
        }
        step.write_bytes("last", &words(&counts)).unwrap();
        let tokens = &golden.get("tokens").data;
        let before = std::iter::once(checkpoint.start_token()).chain(tokens.iter().map(|token| *token as u32));
        for (place, token) in before.take(tokens.len()).enumerate() {
            step.write_bytes("state", &words(&vec![[token, place as u32, 0, 0]; rows])).unwrap();
            step.run().wait().unwrap();
        }
        for layer in 0..checkpoint.config.decoder.count {
            let key = format!("decoder.layers.{layer}");
            let want = golden.get(&key);
            let (places, width) = (want.shape[1], want.shape[2]);
            let last = want.data.chunks_exact(places * width).flat_map(|row| &row[(places - 1) * width..]);
            golden.check(&key, &step.read(&key).unwrap().data, &last.copied().collect::<Vec<_>>(), TOLERANCE);
        }
        let decode = executor(&gpu, &graphs["vqgan"], checkpoint.vqgan.weights.as_ref());
        decode.poison();
        let tokens: Vec<[u32; 4]> = tokens.iter().map(|token| [*token as u32, 0, 0, 0]).collect();
        decode.write_bytes("tokens", &words(&tokens)).unwrap();
        decode.run().wait().unwrap();
        for key in golden.tensors.keys().filter(|key| key.starts_with("vqgan.")) {
            let got = decode.read(key).unwrap().channels_first().data;
            golden.check(key, &got, &golden.get(key).data, TOLERANCE);
        }
    }
}

#[test]
fn the_next_picture_is_that_of_its_seed() {
    let golden = Golden::open("flax");
    let system = Arc::new(Dalle::new(gpu(), open("flax"), DType::F32));
    let picture = |drawing: &mut Box<dyn Drawing>| {
        drawing.find_map(|event| if let Event::Picture(picture) = event.unwrap() { Some(picture.rgb) } else { None })
    };
    let other = Request { seed: golden.request.seed + 5, ..golden.request.clone() };
    let mut drawing = Arc::clone(&system).draw(other, 2, false).unwrap();
    let first = picture(&mut drawing).unwrap();
    drawing.again(Variation { seed: golden.request.seed, ..Variation::default() }, false).unwrap();
    let second = picture(&mut drawing).unwrap();
    assert_ne!(first, second);
    let want = &golden.get("picture").data;
    assert!(second.iter().zip(want).all(|(got, want)| (f32::from(*got) - want).abs() <= 1.0));
    assert!(drawing.again(Variation::default(), false).is_err());
    let summary = drawing.summary();
    assert_eq!(summary.guidance_scale, Some(2.5));
    assert_eq!(summary.further[0], ("Top-k", "all".to_owned()));
}

#[test]
fn what_a_model_does_not_have_is_refused() {
    let checkpoint = open("flax");
    let refused = |request: Request, option: &str| {
        let error = Dalle::settings(&checkpoint, &request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(option), "{error}");
    };
    refused(Request { steps: Some(20), ..Request::default() }, "--steps");
    refused(Request { sampler: Some("euler".into()), ..Request::default() }, "--sampler");
    refused(Request { width: Some(64), ..Request::default() }, "--width");
    refused(Request { temperature: Some(0.0), ..Request::default() }, "--temperature");
    refused(Request { guidance_scale: Some(f32::NAN), ..Request::default() }, "--cfg-scale");
    let latents = HostTensor { shape: vec![16, 49], data: vec![1.0; 16 * 49] };
    refused(Request { latents: Some(latents), ..Request::default() }, "[16, 50]");
    let size = Request { width: Some(checkpoint.pixels()), ..Request::default() };
    assert_eq!(Dalle::settings(&checkpoint, &size).unwrap().top_k, None);
    // dalle-mini's defaults for its layout, min-dalle's for the other.
    assert_eq!(Dalle::settings(&checkpoint, &Request::default()).unwrap().guidance_scale, 10.0);
    assert_eq!(Dalle::settings(&open("min_dalle"), &Request::default()).unwrap().top_k, Some(256));
}

/// The f64 references of the kernels against PyTorch, and the draws against `torch.multinomial`, of which each takes the
/// generator further.
#[test]
fn references_are_pytorchs() {
    let bytes = std::fs::read(folder("kernels.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: &str| -> Vec<f64> {
        let view = file.tensor(name).unwrap();
        view.data().as_chunks().0.iter().map(|four| f64::from(f32::from_le_bytes(*four))).collect()
    };
    let config = AttentionCache {
        batch: 2,
        queries: 4,
        keys: 7,
        heads: 3,
        width: 8,
        scale: 1.0 / 8f32.sqrt(),
        query_channels: 24,
        key_channels: 48,
        offsets: [0, 0, 24],
        dtype: DType::F32,
    };
    let last: Vec<u32> = get("attention.last").iter().map(|last| *last as u32).collect();
    let out = attention_cache::reference(&config, &get("attention.q"), &get("attention.kv"), &last);
    // The golden's inputs and outputs were rounded to f32.
    let want = get("attention.out");
    assert!(out.len() == want.len() && out.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 2e-6));
    let draws: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(folder("draws.json")).unwrap()).unwrap();
    for (index, draw) in draws.iter().enumerate() {
        let logits = get(&format!("draw.{index}"));
        let count = logits.len() as u32 / 2;
        let number = |name: &str| draw[name].as_f64().unwrap();
        let config = SampleToken {
            batch: 2,
            width: count,
            count,
            scale: number("scale") as f32,
            temperature: number("temperature") as f32,
            top_k: Some(number("top_k") as u32),
        };
        let mut generator = TorchGenerator::new(draw["seed"].as_str().unwrap().parse().unwrap());
        for want in draw["tokens"].as_array().unwrap() {
            let noise: Vec<f64> = generator.exponential(count as usize).into_iter().map(f64::from).collect();
            let token = sample_token::reference(&config, &logits, &noise);
            assert_eq!(u64::from(token), want.as_u64().unwrap(), "draw {index}");
        }
    }
}

fn manifest(name: &str) -> ShapesSource {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/keys").join(format!("{name}.tsv"));
    ShapesSource::from_manifest(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The small model inside the program draws, and differently for another prompt.
#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model_draws() {
    let gpu = gpu();
    let picture = |prompt: &str| {
        let system =
            Arc::new(Dalle::new(Arc::clone(&gpu), scumble::weights::embedded_dalle::open().unwrap(), DType::F32));
        let request = Request { prompt: prompt.into(), seed: 1, ..Request::default() };
        let events: Vec<Event> = system.draw(request, 1, false).unwrap().map(Result::unwrap).collect();
        let Some(Event::Picture(picture)) = events.into_iter().next_back() else { panic!("no picture") };
        picture
    };
    let [apple, heart] = ["red apple", "green heart"].map(picture);
    assert_eq!((apple.width, apple.height, apple.rgb.len()), (128, 128, 128 * 128 * 3));
    let mean = |picture: &scumble::pipelines::Picture, channel: usize| {
        let values = picture.rgb.iter().skip(channel).step_by(3).map(|value| f64::from(*value));
        values.sum::<f64>() / f64::from(picture.width * picture.height)
    };
    assert!(mean(&apple, 0) > mean(&apple, 1) + 10.0, "the apple is not red");
    assert!(mean(&heart, 1) > mean(&heart, 0) + 10.0, "the heart is not green");
}

/// The published models' tensors, each taken exactly once.
#[test]
fn published_keys_are_consumed_exactly() {
    for (kind, width, layers, feed_forward) in [("mini", 1024, 12, 2730), ("mega", 2048, 24, 4096)] {
        let [encoder, decoder] = ["encoder", "decoder"].map(|part| manifest(&format!("dalle_{kind}_{part}")));
        let config = DalleConfig::from_shapes(&encoder, &decoder).unwrap();
        assert_eq!((config.width, config.encoder.count, config.decoder.count), (width, layers, layers));
        assert_eq!((config.decoder.feed_forward, config.decoder.heads, config.side()), (feed_forward, width / 64, 16));
        let file = manifest("dalle_vqgan");
        let renamed =
            file.names().into_iter().map(|name| (dalle_keys::vqgan(&name).unwrap(), file.info(&name).unwrap()));
        let vqgan = ShapesSource::new("dalle_vqgan", renamed);
        let vqgan_config = VqganConfig::from_shapes(&vqgan).unwrap();
        let published = serde_json::json!({ "n_embed": 16384 });
        assert_eq!(vqgan_config, VqganConfig::from_json(&published, "published").unwrap());
        let checkpoint = DalleCheckpoint {
            name: kind.into(),
            file: String::new(),
            config,
            encoder: Box::new(encoder),
            decoder: Box::new(decoder),
            vqgan: Part { config: vqgan_config, weights: Box::new(vqgan) },
            tokenizer: DalleTokenizer {
                place: String::new(),
                vocabulary: None,
                merges: None,
                whole: None,
                dalle_mini: false,
            },
            defaults: DalleDefaults { guidance_scale: 16.0, top_k: Some(256), temperature: 1.0 },
        };
        assert_eq!((checkpoint.drawn(), checkpoint.start_token(), checkpoint.pixels()), (16384, 16384, 256));
        let settings = DalleSettings { guidance_scale: 16.0, top_k: Some(256), temperature: 1.0 };
        for precision in [DType::F32, DType::F16] {
            for (stage, graph) in dalle_graphs(&checkpoint, Limits::default(), precision, &settings, false).unwrap() {
                assert!(graph.fault().is_none(), "{kind} {stage}: {:?}", graph.fault());
            }
        }
    }
}
