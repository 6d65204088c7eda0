//! ESRGAN's family against PyTorch: tiny random upscalers in every layout of files (`tests/goldens/esrgan/`, made by
//! `tools/goldens/esrgan.py`), whole and in tiles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use scumble::error::{Error, ErrorKind};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::kernels::elementwise::Activation;
use scumble::models::config::RrdbConfig;
use scumble::models::decoder::rrdb;
use scumble::pipelines::{Drawing, Esrgan, Event, Request, System, TileSide, Tiling, Variation, esrgan_plan};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::esrgan::EsrganCheckpoint;
use scumble::weights::kind::ModelKind;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, ShapesSource, TensorInfo, Weights, pack};

/// Some dozens of convolutions in f32, summed in another order than PyTorch's.
const TOLERANCE: f32 = 2e-5;
/// The same stored in halves, each 5e-4 off.
const HALVES: f32 = 2e-2;

type Tensors = BTreeMap<String, HostTensor>;

struct Case {
    name: String,
    scale: usize,
    tapped: bool,
    config: RrdbConfig,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/esrgan")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let case = |case: serde_json::Value| {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let config = RrdbConfig {
            width: number("width"),
            growth: number("growth"),
            blocks: number("blocks"),
            doublings: number("doublings"),
            unshuffle: number("unshuffle"),
            plus: case["plus"].as_bool().unwrap(),
        };
        let (name, tapped) = (case["name"].as_str().unwrap().to_owned(), case["tapped"].as_bool().unwrap());
        Case { name, scale: number("scale"), tapped, config }
    };
    all.into_iter().map(case).collect()
}

fn golden() -> Tensors {
    let bytes = std::fs::read(folder().join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(key, view)| {
        let data = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (key, HostTensor::new(view.shape().to_vec(), data).unwrap())
    });
    tensors.collect()
}

fn gpu() -> Arc<Gpu> {
    Arc::new(Gpu::open(&GpuOptions::default()).unwrap())
}

fn open(file: &str) -> EsrganCheckpoint {
    EsrganCheckpoint::open(&folder().join(file)).unwrap()
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

/// Draws to the end: the picture's bytes, and how many windows it took.
fn finish(drawing: &mut dyn Drawing) -> (Vec<u8>, usize) {
    let (mut pictures, mut steps) = (Vec::new(), 0);
    for event in &mut *drawing {
        match event.unwrap() {
            Event::Picture(picture) => pictures.push(picture),
            Event::Step(..) => steps += 1,
            _ => {}
        }
    }
    assert_eq!(pictures.len(), 1);
    let picture = pictures.remove(0);
    let image = drawing.image().unwrap();
    assert_eq!(image.shape, [1, 3, picture.height as usize, picture.width as usize]);
    (picture.rgb, steps)
}

fn enlarge(model: Esrgan, picture: &HostTensor) -> (HostTensor, Vec<u8>, usize) {
    let request = Request { image: Some(picture.clone()), ..Request::default() };
    let mut drawing = Arc::new(model).draw(request, 1, false).unwrap();
    let (rgb, steps) = finish(drawing.as_mut());
    (drawing.image().unwrap(), rgb, steps)
}

#[test]
fn every_layout_makes_what_pytorch_makes() {
    let (golden, gpu) = (golden(), gpu());
    for Case { name, scale, config, .. } in cases() {
        let (picture, want) = (&golden[&format!("{name}.picture")], &golden[&format!("{name}.image")]);
        assert_eq!(want.shape[2..], [picture.shape[2] * scale, picture.shape[3] * scale], "{name}");
        let checkpoint = open(&format!("{name}.safetensors"));
        assert_eq!(checkpoint.network.config, config, "{name}");
        assert_eq!(checkpoint.name, name);
        let (image, rgb, _) = enlarge(Esrgan::new(Arc::clone(&gpu), checkpoint, DType::F32), picture);
        close(&name, &image, want, TOLERANCE);
        // The bytes are those of the numbers, of red, green and blue in turn.
        let planes = image.data.len() / 3;
        for (i, byte) in rgb.iter().enumerate() {
            let exact = (image.data[i % 3 * planes + i / 3] / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
            assert!((f32::from(*byte) - exact).abs() <= 0.501, "{name}: byte {i} is {byte}, the number {exact}");
        }
        let halves = Esrgan::new(Arc::clone(&gpu), open(&format!("{name}.safetensors")), DType::F16);
        close(&name, &enlarge(halves, picture).0, want, HALVES);
    }
}

#[test]
fn layers_make_what_pytorchs_make() {
    let (golden, gpu) = (golden(), gpu());
    let mut compared = 0;
    for Case { name, config, .. } in cases().into_iter().filter(|case| case.tapped) {
        let checkpoint = open(&format!("{name}.safetensors"));
        let source = checkpoint.network.weights.as_ref();
        let picture = &golden[&format!("{name}.picture")];
        let unit = config.unshuffle;
        let [height, width] = [2, 3].map(|axis| picture.shape[axis].div_ceil(unit));
        let claims = Claims::default();
        let mut g = Graph::new(DType::F32, gpu.limits()).with_taps();
        let channels = (3 * unit * unit) as u32;
        let input = g.input("picture", Shape::new(1, height as u32, width as u32, channels), DType::F32);
        rrdb::enlarge(&mut g, &Weights::new(0, source, &claims), &config, input);
        claims.finish(source).unwrap();
        let executor = Executor::new(&gpu, &g, |spec, sink| pack::pack(spec, Some(source), sink)).unwrap();
        executor.poison();
        executor.write("picture", &unshuffled(picture, unit)).unwrap();
        executor.run();
        for (tap, want) in golden.iter().filter_map(|(key, want)| Some((key.strip_prefix(&format!("{name}."))?, want)))
        {
            if tap != "picture" && tap != "image" {
                close(&format!("{name}: {tap}"), &executor.read(tap).unwrap().channels_first(), want, TOLERANCE);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 13);
}

/// The picture from 0 to 1 as the network takes it, channels last: plainly, one value after the other.
fn unshuffled(picture: &HostTensor, unit: usize) -> HostTensor {
    let [rows, columns] = [2, 3].map(|axis| picture.shape[axis].div_ceil(unit));
    let mut data = Vec::new();
    for y in 0..rows {
        for x in 0..columns {
            for channel in 0..3 * unit * unit {
                let (colour, dy, dx) = (channel / (unit * unit), channel / unit % unit, channel % unit);
                let mirrored =
                    |place: usize, length: usize| if place < length { place } else { 2 * length - 2 - place };
                let row = mirrored(y * unit + dy, picture.shape[2]);
                let column = mirrored(x * unit + dx, picture.shape[3]);
                let value = picture.data[(colour * picture.shape[2] + row) * picture.shape[3] + column];
                data.push(value * 0.5 + 0.5);
            }
        }
    }
    HostTensor::new(vec![1, rows, columns, 3 * unit * unit], data).unwrap()
}

#[test]
fn pickles_and_safetensors_are_the_same() {
    let mut compared = 0;
    for file in std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|ending| ending != "pth") {
            continue;
        }
        assert_eq!(ModelKind::of(&file).unwrap(), ModelKind::Esrgan);
        let [pickle, plain] = [file.clone(), file.with_extension("safetensors")]
            .map(|path| EsrganCheckpoint::open(&path).unwrap().network.weights);
        assert_eq!(pickle.names(), plain.names(), "{}", file.display());
        for name in pickle.names() {
            assert_eq!(pickle.info(&name), plain.info(&name), "{name}");
            assert_eq!(pickle.tensor(&name).unwrap(), plain.tensor(&name).unwrap(), "{}: {name}", file.display());
        }
        compared += 1;
    }
    assert_eq!(compared, 3);
}

/// A smooth picture with some noise, larger than any golden.
fn large(height: usize, width: usize) -> HostTensor {
    let value = |i: usize| {
        let (plane, y, x) = (i / (height * width), i / width % height, i % width);
        let noise = (i.wrapping_mul(2_654_435_761) >> 7 & 255) as f32 / 255.0;
        ((y as f32 / 9.0 + plane as f32).sin() * (x as f32 / 7.0).cos() + 0.3 * noise).clamp(-1.0, 1.0)
    };
    HostTensor::new(vec![1, 3, height, width], (0..3 * height * width).map(value).collect()).unwrap()
}

/// Tiles that overlap as far as the network reaches (20 pixels; 40 with pixels unshuffled, of which 32 are kept and the rest
/// counts next to nothing) make the same picture; only sums over windows of another size may be rounded otherwise.
#[test]
fn tiles_make_the_whole_picture() {
    let gpu = gpu();
    for (file, [height, width], side, windows) in [
        ("later_x2.safetensors", [70, 97], 20, 6),
        ("first_x1.safetensors", [61, 130], 16, 12),
        ("real_x2.safetensors", [131, 150], 40, 6),
        ("real_x1.safetensors", [121, 150], 33, 6),
    ] {
        let picture = large(height, width);
        let whole = Esrgan::new(Arc::clone(&gpu), open(file), DType::F32).with_tiles(TileSide::Off, Tiling::default());
        let (want, want_rgb, one) = enlarge(whole, &picture);
        let tiled =
            Esrgan::new(Arc::clone(&gpu), open(file), DType::F32).with_tiles(TileSide::Px(side), Tiling::default());
        let (got, rgb, steps) = enlarge(tiled, &picture);
        assert_eq!((one, steps), (1, windows), "{file}");
        close(file, &got, &want, TOLERANCE);
        assert!(rgb.iter().zip(&want_rgb).all(|(a, b)| a.abs_diff(*b) <= 1), "{file}");
    }
}

#[test]
fn memory_asks_for_tiles() {
    let checkpoint = open("later_x4.safetensors");
    let plan = |size, budget| {
        esrgan_plan(&checkpoint, Limits::default(), DType::F16, size, TileSide::Auto, Tiling::Auto(budget)).unwrap()
    };
    let whole = plan([1200, 1100], None);
    assert_eq!((whole.windows(), whole.window()), (1, [1200, 1100]));
    let small = plan([1200, 1100], Some(whole.peak - 1));
    assert!(small.windows() > 1 && small.peak < whole.peak);
    // A budget that no tile keeps to leaves the smallest ones.
    let least = plan([1200, 1100], Some(1));
    assert_eq!(least.window(), [72, 72]);
    // The adapter's own refusal has the same effect.
    let picture = large(128, 120);
    let limited = |memory| Arc::new(Gpu::open(&GpuOptions { memory, ..GpuOptions::default() }).unwrap());
    let model =
        |gpu, tile| Esrgan::new(gpu, open("later_x4.safetensors"), DType::F32).with_tiles(tile, Tiling::default());
    let gpu = limited(None);
    let (want, ..) = enlarge(model(Arc::clone(&gpu), TileSide::Off), &picture);
    let budget = gpu.memory().peak / 2;
    let (got, _, windows) = enlarge(model(limited(Some(budget)), TileSide::Auto), &picture);
    assert!(windows > 1, "{budget} bytes were enough");
    close("in little memory", &got, &want, TOLERANCE);
    let request = Request { image: Some(picture), ..Request::default() };
    let mut whole = Arc::new(model(limited(Some(budget)), TileSide::Off)).draw(request, 1, false).unwrap();
    let error = whole.find_map(Result::err).expect("too much for the budget");
    assert_eq!(error.kind(), ErrorKind::Memory);
}

#[test]
fn another_picture_follows() {
    let golden = golden();
    let model = Arc::new(Esrgan::new(gpu(), open("real_x4.safetensors"), DType::F32));
    let (picture, want) = (&golden["real_x4.picture"], &golden["real_x4.image"]);
    let mut other = picture.clone();
    other.data.iter_mut().for_each(|value| *value = -*value);
    let request = Request { image: Some(other.clone()), ..Request::default() };
    let mut drawing = Arc::clone(&model).draw(request, 2, true).unwrap();
    assert!(drawing.image().is_err());
    finish(drawing.as_mut());
    assert_ne!(drawing.image().unwrap().data, want.data);
    let variation = |image| Variation { image, ..Variation::default() };
    assert!(drawing.again(variation(Some(large(8, 8))), false).is_err());
    drawing.again(variation(Some(picture.clone())), true).unwrap();
    finish(drawing.as_mut());
    close("again", &drawing.take_dump()[0].1, want, TOLERANCE);
    assert!(drawing.again(variation(None), false).is_err());
}

#[test]
fn what_it_does_not_have_is_refused() {
    let model = Arc::new(Esrgan::new(gpu(), open("first_x2.safetensors"), DType::F32));
    let plain = Request { image: Some(large(4, 5)), ..Request::default() };
    let says = |request: Request, part: &str| {
        let error = Arc::clone(&model).draw(request, 1, false).err().expect(part);
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    };
    says(Request::default(), "no picture to enlarge");
    says(
        Request { image: Some(HostTensor::new(vec![1, 1, 2, 2], vec![0.0; 4]).unwrap()), ..plain.clone() },
        "[1, 3, H, W]",
    );
    says(Request { prompt: "a cat".to_owned(), ..plain.clone() }, "prompt");
    says(Request { steps: Some(3), ..plain.clone() }, "--steps");
    says(Request { noise_level: Some(3), ..plain.clone() }, "--noise-level");
    says(Request { width: Some(16), ..plain.clone() }, "--width");
    says(
        Request { image: Some(HostTensor::new(vec![1, 3, 1, 40_000], vec![0.0; 120_000]).unwrap()), ..plain },
        "65536",
    );
}

#[test]
fn numbers_that_are_not_finite_are_an_error() {
    let mut picture = large(6, 6);
    picture.data[7] = f32::NAN;
    let request = Request { image: Some(picture), ..Request::default() };
    let model = Arc::new(Esrgan::new(gpu(), open("first_x2.safetensors"), DType::F32));
    let error = model.draw(request, 1, false).unwrap().find_map(Result::err).expect("NaN passed");
    assert!(error.to_string().contains("not finite"), "{error}");
}

/// A file of the tensors of `name`, changed.
fn changed(name: &str, change: impl Fn(&mut BTreeMap<String, Vec<usize>>)) -> Result<EsrganCheckpoint, Error> {
    let file = TensorFile::open(&folder().join(name)).unwrap();
    let mut shapes = file.names().map(|key| (key.to_owned(), file.shape(key).unwrap().to_vec())).collect();
    change(&mut shapes);
    let zeros: BTreeMap<&String, Vec<u8>> =
        shapes.iter().map(|(key, shape)| (key, vec![0; 2 * shape.iter().product::<usize>()])).collect();
    let views = shapes.iter().map(|(key, shape)| {
        (key, safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), &zeros[key]).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let file = Arc::new(TensorFile::from_bytes(bytes, "changed").unwrap());
    EsrganCheckpoint::from_file(&file, "changed".to_owned(), PathBuf::from("changed"))
}

#[test]
fn odd_files_are_refused_by_name() {
    let fault = |checkpoint: Result<EsrganCheckpoint, Error>| -> String {
        let planned = checkpoint.and_then(|checkpoint| {
            esrgan_plan(&checkpoint, Limits::default(), DType::F32, [8, 8], TileSide::Off, Tiling::default())
        });
        planned.err().expect("it was taken").to_string()
    };
    assert!(changed("real_x4.safetensors", |_| ()).is_ok());
    for (name, change, part) in [
        (
            "real_x4.safetensors",
            (|t| drop(t.remove("body.1.rdb2.conv3.bias"))) as fn(&mut BTreeMap<_, _>),
            "body.1.rdb2.conv3.bias",
        ),
        ("real_x4.safetensors", |t| drop(t.remove("conv_last.weight")), "conv_last.weight"),
        ("real_x4.safetensors", |t| drop(t.insert("body.0.rdb1.conv6.weight".to_owned(), vec![1])), "conv6"),
        ("real_x4.safetensors", |t| drop(t.insert("conv_up1.weight".to_owned(), vec![8, 8, 5, 5])), "conv_up1.weight"),
        ("real_x4.safetensors", |t| drop(t.insert("conv_first.weight".to_owned(), vec![8, 4, 3, 3])), "4 channels"),
        ("real_x4.safetensors", |t| drop(t.insert("conv_first.weight".to_owned(), vec![8])), "3 x 3 places"),
        ("real_x4.safetensors", |t| drop(t.insert("conv_first.weight".to_owned(), vec![0, 3, 3, 3])), "conv_first"),
        ("first_x4.safetensors", |t| drop(t.remove("model.6.weight")), "found 3, 8, 10"),
        (
            "first_x4.safetensors",
            |t| drop(t.insert("model.2.weight".to_owned(), vec![7, 7, 3, 3])),
            "nearest neighbours",
        ),
        ("plus_x4.safetensors", |t| drop(t.remove("model.1.sub.1.RDB3.conv1x1.weight")), "body.1.rdb3.conv1x1"),
    ] {
        let error = fault(changed(name, change));
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    let compact = |tensors: &mut BTreeMap<String, Vec<usize>>| {
        *tensors =
            [("body.0.weight", vec![64, 3, 3, 3]), ("body.1.weight", vec![64])].map(|(k, v)| (k.to_owned(), v)).into();
    };
    assert!(fault(changed("real_x4.safetensors", compact)).contains("SRVGGNetCompact"));
}

/// The published networks: Real-ESRGAN's x4plus, x2plus, x4plus_anime_6B and ESRGAN's first file, name by name.
#[test]
fn published_tensors_are_taken() {
    for (blocks, inputs, numbered, count, parameters) in [
        (23, 3, false, 702, 16_697_987),
        (23, 12, false, 702, 16_703_171),
        (6, 3, false, 192, 4_467_779),
        (23, 3, true, 702, 16_697_987),
    ] {
        let mut shapes: Vec<(String, [usize; 4])> = Vec::new();
        let mut add = |name: String, outputs: usize, inputs: usize| shapes.push((name, [outputs, inputs, 3, 3]));
        add(if numbered { "model.0" } else { "conv_first" }.to_owned(), 64, inputs);
        for block in 0..blocks {
            for (dense, layer) in (1..=3).flat_map(|dense| (1..=5).map(move |layer| (dense, layer))) {
                let name = match numbered {
                    true => format!("model.1.sub.{block}.RDB{dense}.conv{layer}.0"),
                    false => format!("body.{block}.rdb{dense}.conv{layer}"),
                };
                add(name, if layer == 5 { 64 } else { 32 }, 64 + 32 * (layer - 1));
            }
        }
        let body = format!("model.1.sub.{blocks}");
        let behind: [&str; 5] = match numbered {
            true => [&body, "model.3", "model.6", "model.8", "model.10"],
            false => ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"],
        };
        for (index, name) in behind.into_iter().enumerate() {
            add(name.to_owned(), if index == 4 { 3 } else { 64 }, 64);
        }
        let tensors: BTreeMap<String, Vec<usize>> = shapes
            .into_iter()
            .flat_map(|(name, shape)| {
                [(format!("{name}.weight"), shape.to_vec()), (format!("{name}.bias"), vec![shape[0]])]
            })
            .collect();
        assert_eq!(tensors.len(), count);
        assert_eq!(tensors.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), parameters);
        let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
        let renamed: BTreeMap<String, Vec<usize>> = scumble::weights::esrgan::translate(&names, "manifest")
            .unwrap()
            .into_iter()
            .map(|(stored, name)| (name, tensors[stored].clone()))
            .collect();
        let config = RrdbConfig::of(|name| renamed.get(name).map(Vec::as_slice), "manifest").unwrap();
        assert_eq!((config.blocks, config.width, config.growth, config.plus), (blocks, 64, 32, false));
        let infos = renamed.into_iter().map(|(name, shape)| (name, TensorInfo { dtype: DType::F32, shape }));
        let source = ShapesSource::new("manifest", infos);
        let claims = Claims::default();
        let mut g = Graph::new(DType::F16, Limits::default());
        let picture = g.input("picture", Shape::new(1, 512, 512, inputs as u32), DType::F16);
        rrdb::enlarge(&mut g, &Weights::new(0, &source, &claims), &config, picture);
        claims.finish(&source).unwrap();
        assert!(g.fault().is_none(), "{:?}", g.fault());
    }
}

#[test]
fn the_kind_is_told_from_names() {
    for Case { name, .. } in cases() {
        assert_eq!(ModelKind::of(&folder().join(format!("{name}.safetensors"))).unwrap(), ModelKind::Esrgan);
    }
    assert_eq!(ModelKind::of(&folder().join("golden.safetensors")).unwrap(), ModelKind::StableDiffusion);
}

fn scumble(words: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).env("SCUMBLE_CACHE_DIR", "").stdin(std::process::Stdio::null()).output().unwrap()
}

/// Writes the case's picture as PNG; its bytes are exact.
fn written(folder: &Path, picture: &HostTensor) -> String {
    let [height, width] = [picture.shape[2] as u32, picture.shape[3] as u32];
    let planes = (height * width) as usize;
    let byte = |i: usize| ((picture.data[i % 3 * planes + i / 3] + 1.0) * 127.5).round() as u8;
    let path = folder.join("in.png");
    image::save_buffer(&path, &(0..3 * planes).map(byte).collect::<Vec<_>>(), width, height, image::ColorType::Rgb8)
        .unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_program_enlarges_pictures() {
    let (golden, folder) = (golden(), tempfile::tempdir().unwrap());
    let out = folder.path().join("out.png");
    for (file, tile) in [("real_x4.pth", "auto"), ("real_x2.safetensors", "16"), ("first_x1.safetensors", "off")] {
        let name = file.split('.').next().unwrap();
        let from = written(folder.path(), &golden[&format!("{name}.picture")]);
        let model = self::folder().join(file);
        let words = ["upscale", &from, "-m", model.to_str().unwrap(), "-o", out.to_str().unwrap(), "--tile", tile];
        let output = scumble(&[&words[..], &["--precision", "f32", "--no-tune"]].concat());
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        let want = &golden[&format!("{name}.image")];
        let got = image::open(&out).unwrap().to_rgb8();
        assert_eq!([got.height() as usize, got.width() as usize], want.shape[2..], "{file}");
        let planes = want.data.len() / 3;
        for (i, byte) in got.as_raw().iter().enumerate() {
            let exact = (want.data[i % 3 * planes + i / 3] / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
            assert!((f32::from(*byte) - exact).abs() <= 0.51, "{file}: byte {i} is {byte}, the number {exact}");
        }
    }
}

#[test]
fn the_program_enlarges_what_another_model_draws() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.png");
    let then = self::folder().join("first_x2.safetensors");
    let then = then.to_str().unwrap();
    let words = ["generate", "red apple", "-W", "32", "-H", "24", "--steps", "1", "-s", "1", "--no-tune"];
    let output = scumble(&[&words[..], &["--then", then, "--then", then, "-o", out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let picture = image::open(&out).unwrap();
    assert_eq!((picture.width(), picture.height()), (128, 96));
}

#[test]
fn the_program_refuses_what_makes_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let from = written(folder.path(), &golden()["real_x4.picture"]);
    let model = self::folder().join("real_x4.safetensors");
    let model = model.to_str().unwrap();
    for (words, part) in [
        (&["upscale", &from, "-m", model, "-p", "a cat"][..], "it reads no text"),
        (&["upscale", &from, "-m", model, "--steps", "3"], "--steps"),
        (&["upscale", &from, "-m", model, "--vae-tiling", "on"], "--vae-tiling"),
        (&["upscale", &from, "-m", model, "--tile", "x"], "--tile"),
        (&["generate", "a cat", "-m", model], "it reads no text"),
        (&["upscale", &from, "-m", model, "--then", "emoji"], "enlarges nothing"),
    ] {
        let output = scumble(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
    }
}

#[test]
fn leaky_relu_is_pytorchs() {
    let golden = golden();
    for (x, want) in golden["activation.x"].data.iter().zip(&golden["activation.y"].data) {
        let got = Activation::LeakyRelu.apply(f64::from(*x));
        // PyTorch's f64, rounded once to f32.
        assert!((got - f64::from(*want)).abs() <= f64::from(f32::EPSILON) / 2.0 * f64::from(want.abs()) + 1e-45, "{x}");
    }
}
