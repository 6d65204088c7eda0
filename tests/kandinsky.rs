//! Kandinsky 2.2 against diffusers: MoVQ decoders block by block, tiny random directories drawn end to end. The numbers come from
//! `tools/goldens/kandinsky.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use safetensors::{Dtype, SafeTensors};
use scumble::error::{Error, Result};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::{KernelSet, Limits};
use scumble::models::config::MovqConfig;
use scumble::models::decoder::movq;
use scumble::pipelines::{Drawing, Event, Kandinsky, Request, System, Variation};
use scumble::sampling::TorchGenerator;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::kandinsky::KandinskyCheckpoint;
use scumble::weights::kind::ModelKind;
use scumble::weights::{Claims, Source, TensorInfo, Weights, pack};

/// Sums in another order than PyTorch's: some twenty layers, each near 1e-6 of its largest value.
const SINGLE: f32 = 5e-5;
/// Twenty layers whose results are rounded to halves (5e-4 each), which norms over few channels amplify.
const HALF: f32 = 2.5e-2;

/// Some dozens of layers in f32, whose sums have another order than PyTorch's, over a few steps that pass errors on.
const DRAWN: f32 = 5e-4;

type Tensors = BTreeMap<String, HostTensor>;

fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Gpu::open(&GpuOptions::default()).unwrap())).clone()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/kandinsky")
}

fn read(name: &str) -> Tensors {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        let data = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// Fails unless every value is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &HostTensor, want: &HostTensor, tolerance: f32) {
    assert_eq!(got.data.len(), want.data.len(), "{place}: {:?} instead of {:?}", got.shape, want.shape);
    let largest = want.data.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0f32, |worst, difference| if difference <= worst { worst } else { difference });
    println!("{place}: {:.1e} of the largest", worst / largest);
    assert!(worst <= tolerance * largest, "{place}: {:.1e} of the largest", worst / largest);
}

/// CRC-32 (ISO 3309), as Python's `zlib.crc32`.
fn crc32(text: &str) -> u64 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    u64::from(!text.bytes().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step)))
}

/// Weights that the golden's maker drew in the same way, each from a generator that its name seeds.
struct Drawn(BTreeMap<String, Vec<usize>>);

impl Source for Drawn {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|shape| TensorInfo { dtype: DType::F32, shape: shape.clone() })
    }

    fn rows(&self, name: &str, rows: std::ops::Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let info = self.info(name).ok_or_else(|| Error::new("missing tensor").at(name))?;
        let [count, length] = info.matrix();
        let drawn = TorchGenerator::new(crc32(name)).randn(count * length);
        let value = |n: f32| match (info.shape.len(), name.ends_with("weight")) {
            (1, true) => 1.0 + 0.2 * n,
            (1, false) => 0.2 * n,
            _ => n / (length as f32).sqrt(),
        };
        out.clear();
        out.extend(drawn[rows.start * length..rows.end * length].iter().map(|n| value(*n)));
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        "drawn".to_owned()
    }
}

/// The decoder of `movq.json` and its weights, without those of the encoder.
fn drawn(case: &serde_json::Value) -> (MovqConfig, Drawn) {
    let config = MovqConfig::from_json(case, "movq.json").unwrap();
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_value(case["tensors"].clone()).unwrap();
    let encoder = config.encoder_names();
    assert!(encoder.iter().all(|name| tensors.contains_key(name)), "names that the encoder does not have");
    (config, Drawn(tensors.into_iter().filter(|(name, _)| !encoder.contains(name)).collect()))
}

/// Runs every decoder and compares every tap of diffusers.
fn decoders(limits: Limits, precision: DType, tolerance: f32) {
    let golden = read("movq.safetensors");
    for (name, case) in json("movq.json").as_object().unwrap() {
        let (config, source) = drawn(case);
        let latent = &golden[&format!("{name}.latent")];
        let [batch, channels, height, width] =
            <[usize; 4]>::try_from(latent.shape.clone()).unwrap().map(|axis| axis as u32);
        let claims = Claims::default();
        let w = Weights::new(0, &source, &claims);
        let mut g = Graph::new(precision, limits).with_taps();
        let x = g.input("latent", Shape::new(batch, height, width, channels), DType::F32);
        let scale = config.scale() as u32;
        let picture = movq::decode(&mut g, &w, &config, x);
        assert_eq!(g.shape(picture), Shape::new(batch, height * scale, width * scale, 3));
        claims.finish(&source).unwrap();
        assert!(g.fault().is_none(), "{name}: {:?}", g.fault());
        let executor = Executor::new(&gpu(), &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
        executor.poison();
        executor.write("latent", &latent.channels_last()).unwrap();
        executor.run();
        let taps = golden.iter().filter_map(|(key, want)| Some((key.strip_prefix(&format!("{name}.movq"))?, want)));
        let mut compared = 0;
        for (tap, want) in taps {
            let got = executor.read(&format!("movq{tap}")).unwrap().channels_first();
            close(&format!("{name}: movq{tap}"), &got, want, tolerance);
            compared += 1;
        }
        assert_eq!(compared, 4, "{name}");
    }
}

#[test]
fn movq_decodes_as_diffusers_does() {
    decoders(gpu().limits(), DType::F32, SINGLE);
}

#[test]
fn movq_decodes_in_halves() {
    decoders(gpu().limits(), DType::F16, HALF);
}

#[test]
fn movq_decodes_with_the_shaders_for_graphics_cards() {
    decoders(Limits { kernels: KernelSet::Tile, subgroup: 0, ..gpu().limits() }, DType::F32, SINGLE);
}

#[test]
fn what_a_movq_cannot_be_is_told() {
    let told = |key: &str, value: serde_json::Value| {
        let mut case = json("movq.json")["as_published"].clone();
        case[key] = value;
        MovqConfig::from_json(&case, "movq").unwrap_err().to_string()
    };
    for (key, value) in [
        ("norm_type", serde_json::json!("group")),
        ("vq_embed_dim", serde_json::json!(5)),
        ("block_out_channels", serde_json::json!([32, 48, 64])),
        ("lookup_from_codebook", serde_json::json!(true)),
        ("up_block_types", serde_json::json!(["UpDecoderBlock2D"])),
        ("act_fn", serde_json::json!("relu")),
    ] {
        let error = told(key, value);
        assert!(error.contains(key), "{key}: {error}");
    }
}

fn checkpoint() -> KandinskyCheckpoint {
    KandinskyCheckpoint::open(&folder().join("model"), Some(&folder().join("prior"))).unwrap()
}

/// The model with the case's scheduler, and the case's request.
fn drawing(case: &serde_json::Value, precision: DType) -> (Arc<Kandinsky>, Request) {
    let mut checkpoint = checkpoint();
    checkpoint.scheduler = case["scheduler"].clone();
    let number = |key: &str| Some(case[key].as_u64().unwrap() as u32);
    let scale = |key: &str| Some(case[key].as_f64().unwrap() as f32);
    let request = Request {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative_prompt"].as_str().map(str::to_owned),
        prior_steps: number("prior_steps"),
        prior_guidance_scale: scale("prior_guidance"),
        steps: number("steps"),
        guidance_scale: scale("guidance"),
        width: number("width"),
        height: number("height"),
        seed: case["seed"].as_u64().unwrap(),
        ..Request::default()
    };
    (Arc::new(Kandinsky::new(gpu(), checkpoint, precision)), request)
}

/// Runs to the picture: its width and height, and the intermediates.
fn finish(drawing: &mut dyn Drawing) -> ([u32; 2], Tensors) {
    let mut size = None;
    for event in &mut *drawing {
        if let Event::Picture(picture) = event.unwrap() {
            assert_eq!(picture.rgb.len() as u32, 3 * picture.width * picture.height);
            size = Some([picture.width, picture.height]);
        }
    }
    (size.unwrap(), drawing.take_dump().into_iter().collect())
}

fn cases() -> Vec<serde_json::Value> {
    json("cases.json").as_array().unwrap().clone()
}

#[test]
fn pictures_are_diffusers() {
    let golden = read("golden.safetensors");
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let want = |key: &str| &golden[&format!("{name}.{key}")];
        let (model, request) = drawing(&case, DType::F32);
        let last = format!("latents.{}", request.steps.unwrap() - 1);
        let (guided, negative) = (request.guidance_scale > Some(1.0), request.negative_prompt.is_some());
        let mut drawing = model.draw(request, 1, true).unwrap();
        let (size, dump) = finish(drawing.as_mut());
        let axes = &want("image").shape;
        assert_eq!(size, [axes[3], axes[2]].map(|axis| axis as u32), "{name}");
        let embedding = &dump["prior.embedding"];
        let mut wanted = want("image_embeds").data.clone();
        if negative {
            wanted.extend(&want("negative_image_embeds").data);
        }
        close(&format!("{name}: embedding"), embedding, &HostTensor { shape: vec![wanted.len()], data: wanted }, DRAWN);
        assert_eq!(dump.contains_key("zero_embedding"), guided && !negative, "{name}");
        if let Some(zero) = dump.get("zero_embedding") {
            close(&format!("{name}: black picture"), zero, want("negative_image_embeds"), DRAWN);
        }
        close(&format!("{name}: latent"), &dump[&last], want("latent"), DRAWN);
        close(&format!("{name}: image"), &dump["image"], want("image"), DRAWN);
        close(&format!("{name}: image"), &drawing.image().unwrap(), want("image"), DRAWN);
    }
}

#[test]
fn a_second_picture_begins_with_its_own_seed() {
    let golden = read("golden.safetensors");
    let case = &cases()[1];
    let (model, request) = drawing(case, DType::F32);
    let seed = request.seed;
    let mut drawing = model.draw(Request { seed: seed + 1, ..request }, 2, true).unwrap();
    let (_, other) = finish(drawing.as_mut());
    drawing.again(Variation { seed, ..Variation::default() }, true).unwrap();
    let (_, dump) = finish(drawing.as_mut());
    close("again", &dump["image"], &golden["negative.image"], DRAWN);
    let apart = other["image"].data.iter().zip(&dump["image"].data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart > 0.1, "another seed is only {apart} away");
    assert!(drawing.again(Variation::default(), false).is_err(), "a third picture");
}

/// The decoder's first latent is given; the prior draws its noise all the same, and what the generator gives next is the steps'.
#[test]
fn a_given_latent_is_the_first() {
    let (model, request) = drawing(&cases()[3], DType::F32);
    let mut drawing = Arc::clone(&model).draw(request.clone(), 1, true).unwrap();
    let (_, dump) = finish(drawing.as_mut());
    let given = Request { latents: Some(dump["noise"].clone()), ..request };
    let (_, again) = finish(model.draw(given, 1, true).unwrap().as_mut());
    assert_eq!(again["noise"].data, dump["noise"].data);
    assert_eq!(again["prior.embedding"].data, dump["prior.embedding"].data);
}

/// A few steps of random models multiply the rounding to halves; another seed's picture is far away all the same.
#[test]
fn halves_draw_nearly_the_same() {
    let golden = read("golden.safetensors");
    let (model, request) = drawing(&cases()[1], DType::F16);
    let want = &golden["negative.image"].data;
    let apart = |seed: u64| {
        let request = Request { seed, ..request.clone() };
        let (_, dump) = finish(Arc::clone(&model).draw(request, 1, true).unwrap().as_mut());
        let sum: f32 = dump["image"].data.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum();
        (sum / want.len() as f32).sqrt()
    };
    let (near, far) = (apart(request.seed), apart(request.seed + 1));
    println!("{near:.1e}, another seed {far:.1e}");
    assert!(near < 0.02 && far > 0.2, "{near:.1e}, another seed {far:.1e}");
}

#[test]
fn what_kandinsky_does_not_have_is_told() {
    let (model, request) = drawing(&cases()[0], DType::F32);
    for (wrong, named) in [
        (Request { noise_level: Some(3), ..request.clone() }, "--noise-level"),
        (Request { sr_steps: Some(3), ..request.clone() }, "--sr-steps"),
        (Request { clip_skip: Some(1), ..request.clone() }, "--clip-skip"),
        (Request { guidance_rescale: 0.5, ..request.clone() }, "--guidance-rescale"),
        (Request { top_k: Some(1), ..request.clone() }, "--top-k"),
        (Request { prior_steps: Some(0), ..request.clone() }, "--prior-steps"),
        (Request { width: Some(0), ..request.clone() }, "-W"),
        (Request { sampler: Some("none".to_owned()), ..request.clone() }, "none"),
        (Request { latents: Some(HostTensor::new(vec![1], vec![0.0]).unwrap()), ..request.clone() }, "--latents"),
        (Request { image: Some(HostTensor::new(vec![1], vec![0.0]).unwrap()), ..request.clone() }, "a picture"),
    ] {
        let error = Arc::clone(&model).draw(wrong, 1, false).err().unwrap().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn a_prior_is_asked_for_and_looked_at() {
    let [model, prior] = ["model", "prior"].map(|name| folder().join(name));
    assert_eq!(ModelKind::of(&model).unwrap(), ModelKind::Kandinsky);
    let swapped = ModelKind::of(&prior).unwrap_err().to_string();
    assert!(swapped.contains("--prior"), "{swapped}");
    let told = |prior: Option<&Path>| KandinskyCheckpoint::open(&model, prior).err().unwrap().to_string();
    let without = told(None);
    assert!(without.contains("--prior") && without.contains("KandinskyV22PriorPipeline"), "{without}");
    let same = told(Some(&model));
    assert!(same.contains("--prior") && same.contains("KandinskyV22PriorPipeline"), "{same}");
    let missing = told(Some(Path::new("nowhere")));
    assert!(missing.contains("nowhere"), "{missing}");
}
