//! `scumble evaluate` against pytorch-fid, clean-fid, torchmetrics, numpy and scipy (`tests/goldens/evaluate/`, made by
//! `tools/goldens/evaluate.py`). The network's weights are drawn from a seed, by the rule of `tools/goldens/inception.py`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use scumble::error::Result;
use scumble::evaluate::inception::{Extractor, Variant, graph};
use scumble::evaluate::kid::{Subsets, kid};
use scumble::evaluate::saved;
use scumble::evaluate::statistics::{Features, Statistics, frechet};
use scumble::gpu::{Gpu, GpuOptions};
use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::models::vision::inception::{self, Depth, SIDE};
use scumble::sampling::TorchGenerator;
use scumble::tensor::{DType, HostTensor};
use scumble::weights::inception::{Folded, script_name, state_name};
use scumble::weights::shapes::parse_manifest;
use scumble::weights::{Claims, ShapesSource, Source, TensorInfo, Weights, pack};
use serde_json::Value;

const SEED: u64 = 20_151_205;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// Floating-point and whole numbers of a file, as f64.
struct Golden {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    facts: Value,
}

impl Golden {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(place("evaluate").join(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let facts = metadata.metadata().as_ref().and_then(|all| serde_json::from_str(all.get("facts")?).ok());
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::I32 => data.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
                Dtype::U8 => data.iter().map(|byte| f64::from(*byte)).collect(),
                other => panic!("{name} is stored as {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        });
        Self { tensors: tensors.collect(), facts: facts.unwrap_or_default() }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    fn features(&self, name: &str) -> Features {
        let (shape, values) = &self.tensors[name];
        Features { channels: shape[1], values: values.iter().map(|value| *value as f32).collect() }
    }
}

/// Fails unless every number is within `tolerance` of the largest wanted one. NaN fails.
fn close(place: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{place}");
    let largest = want.iter().fold(0f64, |most, value| most.max(value.abs()));
    assert!(largest > 0.0 && largest.is_finite(), "{place}: {largest}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * largest, "{place}: {i} is {got}, wanted {want}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn manifest(name: &str) -> Vec<(String, TensorInfo)> {
    let path = place("keys").join(format!("{name}.tsv"));
    parse_manifest(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What the model takes of a published file.
fn taken(name: &str, rename: fn(&str) -> Option<String>) -> ShapesSource {
    ShapesSource::new(name, manifest(name).into_iter().filter_map(|(name, info)| Some((rename(&name)?, info))))
}

/// The seeded weights, in the order of the manifest: of every convolution its weight, then the four vectors of its BatchNorm.
struct Drawn {
    tensors: BTreeMap<String, (TensorInfo, Vec<f32>)>,
}

impl Drawn {
    fn new() -> Self {
        let mut generator = TorchGenerator::new(SEED);
        let mut tensors = BTreeMap::new();
        for (name, info) in manifest("FID_InceptionV3") {
            if state_name(&name).is_none() {
                continue;
            }
            let count = info.shape.iter().product();
            let mut values = generator.randn(count);
            let change: &dyn Fn(f32) -> f32 = match name.rsplit_once('.').unwrap() {
                (path, "weight") if path.ends_with("conv") => {
                    let deviation = (2.0 / (count / info.shape[0]) as f64).sqrt() as f32;
                    &move |value| value * deviation
                }
                (_, "weight") => &|value| value * 0.2 + 1.0,
                (_, "running_var") => &|value| value.abs() * 0.5 + 0.5,
                _ => &|value| value * 0.2,
            };
            values.iter_mut().for_each(|value| *value = change(*value));
            tensors.insert(name, (info, values));
        }
        Self { tensors }
    }
}

impl Source for Drawn {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info.clone())
    }

    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (info, values) = &self.tensors[name];
        let [_, length] = info.matrix();
        out.clear();
        out.extend_from_slice(&values[rows.start * length..rows.end * length]);
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        "seeded weights".to_owned()
    }
}

fn network() -> Folded {
    Folded::new(Box::new(Drawn::new()), true)
}

/// Picture `number` as a PNG in `folder`.
fn save(golden: &Golden, number: usize, folder: &Path) -> PathBuf {
    let (shape, values) = &golden.tensors[&format!("picture.{number}")];
    let bytes = values.iter().map(|value| *value as u8).collect();
    let picture = image::RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap();
    let path = folder.join(format!("{number}.png"));
    picture.save(&path).unwrap();
    path
}

/// 94 layers in f32, whose sums have another order than PyTorch's; folding BatchNorm rounds once more.
const FLOATS: f64 = 2e-4;

#[test]
fn features_are_those_of_the_other_programs() {
    let golden = Golden::read("inception.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = (0..3).map(|number| save(&golden, number, folder.path())).collect();
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let source = network();
    for variant in Variant::ALL {
        // Two pictures of different sizes in a batch, and one in the next.
        let mut extractor = Extractor::new(&gpu, &source, variant, Depth::Final, 2).unwrap();
        let mut told = Vec::new();
        let found = extractor.features(&files, &mut |done| told.push(done)).unwrap();
        assert_eq!((found.count(), found.channels, told), (3, 2048, vec![0, 2, 3]));
        for number in 0..3 {
            let name = format!("{}.2048.{number}", variant.name());
            close(&name, &wide(found.row(number)), golden.get(&name), FLOATS);
        }
    }
}

#[test]
fn earlier_layers_give_shorter_features() {
    let golden = Golden::read("inception.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = (0..3).map(|number| save(&golden, number, folder.path())).collect();
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let source = network();
    for (variant, depth, count) in [
        (Variant::PytorchFid, Depth::FirstPool, 3),
        (Variant::PytorchFid, Depth::SecondPool, 3),
        (Variant::PytorchFid, Depth::PreAuxiliary, 3),
        (Variant::Torchmetrics, Depth::FirstPool, 1),
        (Variant::Torchmetrics, Depth::SecondPool, 1),
    ] {
        let mut extractor = Extractor::new(&gpu, &source, variant, depth, count).unwrap();
        let found = extractor.features(&files[..count as usize], &mut |_| {}).unwrap();
        for number in 0..count as usize {
            let name = format!("{}.{}.{number}", variant.name(), depth.channels());
            close(&name, &wide(found.row(number)), golden.get(&name), FLOATS);
        }
    }
}

/// Means and deviations of every channel behind every block, which a swapped branch or a wrong pool changes.
#[test]
fn every_block_agrees_with_pytorch_fid() {
    let golden = Golden::read("inception.safetensors");
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let source = network();
    let claims = Claims::default();
    let mut g = Graph::new(DType::F32, gpu.limits()).with_taps();
    let (shape, pixels) = &golden.tensors["picture.0"];
    let picture = g.input("picture", Shape::new(1, shape[0] as u32, shape[1] as u32, 3), DType::F16);
    let x = Variant::PytorchFid.prepare(&mut g, picture);
    inception::inception(&mut g, &Weights::new(0, &source, &claims), x, Depth::Final);
    claims.finish(&source).unwrap();
    let executor = Executor::new(&gpu, &g, |spec, sink| pack::pack(spec, Some(&source), sink)).unwrap();
    executor.poison();
    let shape = [&[1], &shape[..]].concat();
    let data = pixels.iter().map(|value| *value as f32).collect();
    executor.write("picture", &HostTensor::new(shape, data).unwrap()).unwrap();
    executor.run();
    let taps: Vec<&String> = golden.tensors.keys().filter(|name| name.starts_with("tap.")).collect();
    assert_eq!(taps.len(), 16);
    for name in taps {
        let found = executor.read(name.trim_start_matches("tap.")).unwrap();
        let (channels, places) = (found.shape[3], (found.shape[1] * found.shape[2]) as f64);
        let values = wide(&found.data);
        let column = |c: usize| values.iter().skip(c).step_by(channels);
        let means: Vec<f64> = (0..channels).map(|c| column(c).sum::<f64>() / places).collect();
        let spread = |c: usize| column(c).map(|value| (value - means[c]).powi(2)).sum::<f64>();
        let deviations = (0..channels).map(|c| (spread(c) / (places - 1.0)).sqrt());
        let got: Vec<f64> = means.iter().copied().chain(deviations).collect();
        close(name, &got, golden.get(name), FLOATS);
    }
}

#[test]
fn published_files_are_taken_whole() {
    for (name, rename, unused) in
        [("FID_InceptionV3", state_name as fn(&str) -> Option<String>, 96), ("FID_InceptionV3_script", script_name, 2)]
    {
        // `fc` (or `output`), and what counts BatchNorm's batches.
        assert_eq!(manifest(name).iter().filter(|(name, _)| rename(name).is_none()).count(), unused);
        let source = Folded::new(Box::new(taken(name, rename)), unused > 2);
        for depth in Depth::ALL {
            let g = graph(&source, Limits::default(), 3, depth).unwrap();
            assert!(g.fault().is_none());
        }
    }
    let mut tensors: Vec<_> =
        manifest("FID_InceptionV3").into_iter().filter(|(name, _)| state_name(name).is_some()).collect();
    let fault = |tensors: &[(String, TensorInfo)], depth: Depth| {
        let source = Folded::new(Box::new(ShapesSource::new("changed", tensors.to_vec())), true);
        graph(&source, Limits::default(), 1, depth).unwrap_err().to_string()
    };
    let gone = tensors.iter().position(|(name, _)| name == "Mixed_7c.branch_pool.bn.running_var").unwrap();
    let (name, info) = tensors.remove(gone);
    // A file is checked as a whole, whatever is used of it.
    assert!(fault(&tensors, Depth::FirstPool).contains(&name));
    tensors.push((name, info.clone()));
    tensors.push(("AuxLogits.fc.bias".to_owned(), info));
    assert!(fault(&tensors, Depth::Final).contains("AuxLogits.fc.bias"));
}

#[test]
fn moments_and_distances_are_those_of_scipy() {
    let golden = Golden::read("statistics.safetensors");
    let facts = golden.facts.as_array().unwrap();
    assert_eq!(facts.len(), 4);
    for (number, facts) in facts.iter().enumerate() {
        let [a, b] = ["a", "b"].map(|set| Statistics::of(&golden.features(&format!("{set}.{number}"))).unwrap());
        if number == 0 {
            // Sums of 150 products in f64.
            close("mean", &a.mean, golden.get("mean"), 1e-13);
            let rows = (0..64 * 64).map(|i| a.covariance[(i / 64, i % 64)]);
            close("covariance", &rows.collect::<Vec<_>>(), golden.get("covariance"), 1e-13);
        }
        let found = frechet(&a, &b).unwrap();
        let given = |of: &Statistics| Statistics::given(of.mean.clone(), of.covariance.clone()).unwrap();
        let stored = frechet(&given(&a), &given(&b)).unwrap();
        // Where a covariance is singular, pytorch-fid's square root of a matrix is itself uncertain.
        let tolerance = if [0, 3].contains(&number) { 1e-8 } else { 1e-4 };
        for (place, key) in [("pytorch-fid", "fid"), ("clean-fid", "clean_fid"), ("torchmetrics", "torchmetrics_fid")] {
            let want = facts[key].as_f64().unwrap();
            close(&format!("{place} {number}"), &[found, stored, frechet(&b, &a).unwrap()], &[want; 3], tolerance);
        }
    }
}

#[test]
fn kernel_distances_are_those_of_torchmetrics_and_clean_fid() {
    let golden = Golden::read("statistics.safetensors");
    for (number, facts) in golden.facts.as_array().unwrap().iter().enumerate() {
        let [a, b] = ["a", "b"].map(|set| golden.features(&format!("{set}.{number}")));
        let whole = |key: &str| facts[key].as_u64().unwrap();
        let subsets =
            Subsets { count: whole("subsets") as u32, size: whole("subset_size") as usize, seed: whole("seed") };
        // The same subsets, from the same words of the generator; all in f64.
        let found = kid(&a, &b, subsets, &mut |_| {}).unwrap();
        let [mean, deviation] = ["kid", "deviation"].map(|key| facts[key].as_f64().unwrap());
        close(&format!("mean {number}"), &[found.mean], &[mean], 1e-9);
        close(&format!("deviation {number}"), &[found.deviation], &[deviation], 1e-9);
        if let Some(want) = facts["whole_kid"].as_f64() {
            // clean-fid works in the features' own precision, and its terms are far larger than what they come to.
            let subsets = Subsets { count: 1, size: a.count(), seed: 0 };
            let found = kid(&a, &b, subsets, &mut |_| {}).unwrap();
            close("clean-fid", &[found.mean], &[want], 1e-9);
        }
    }
}

#[test]
fn permutations_are_torchs() {
    let golden = Golden::read("statistics.safetensors");
    for n in [1, 2, 7, 1000] {
        let mut generator = TorchGenerator::new(u64::from(n));
        let found: Vec<f64> = (0..2).flat_map(|_| generator.permutation(n)).map(f64::from).collect();
        assert_eq!(found, golden.get(&format!("permutation.{n}")), "{n}");
    }
}

#[test]
fn statistics_of_pytorch_fid_are_read() {
    let golden = Golden::read("statistics.safetensors");
    let found = saved::read(&place("evaluate/stats.npz")).unwrap();
    assert_eq!((found.count, found.variant), (None, None));
    let a = Statistics::of(&golden.features("a.0")).unwrap();
    let distance = frechet(&a, &found.statistics).unwrap();
    close("distance", &[distance], &[golden.facts[0]["fid"].as_f64().unwrap()], 1e-8);
    let whole = Statistics::of(&golden.features("b.0")).unwrap();
    close("mean", &found.statistics.mean, &whole.mean, 1e-13);
}

#[test]
fn a_broken_picture_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::read("inception.safetensors");
    let good = save(&golden, 0, folder.path());
    let bad = folder.path().join("bad.png");
    std::fs::write(&bad, &std::fs::read(&good).unwrap()[..40]).unwrap();
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let source = network();
    let mut extractor = Extractor::new(&gpu, &source, Variant::PytorchFid, Depth::FirstPool, 1).unwrap();
    let fault = extractor.features(&[good, bad], &mut |_| {}).unwrap_err().to_string();
    assert!(fault.contains("bad.png"), "{fault}");
    assert_eq!(SIDE, 299);
}

/// The program, without a cache folder in which weights could lie.
fn scumble(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.arg("evaluate").args(words).env("SCUMBLE_CACHE_DIR", "").env_remove("SCUMBLE_INCEPTION");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Statistics with features of `golden`'s set `name`, as `scumble evaluate stats --features` writes them.
fn store(golden: &Golden, name: &str, path: &Path, variant: Variant) {
    let features = golden.features(name);
    let statistics = Statistics::of(&features).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    saved::write(&mut file, &statistics, features.count() as u64, variant, Some(&features)).unwrap();
}

#[test]
fn the_program_tells_what_a_figure_means() {
    let golden = Golden::read("statistics.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (a, b, clean) = (path("a.npz"), path("b.npz"), path("clean.npz"));
    store(&golden, "a.0", a.as_ref(), Variant::PytorchFid);
    store(&golden, "b.0", b.as_ref(), Variant::PytorchFid);
    store(&golden, "b.0", clean.as_ref(), Variant::CleanFid);
    let facts = &golden.facts[0];
    let (code, out, told) = scumble(&["fid", &a, &b, "--dims", "64", "--json"]);
    assert_eq!(code, Some(0), "{told}");
    let found: Value = serde_json::from_str(&out).unwrap();
    close("fid", &[found["value"].as_f64().unwrap()], &[facts["fid"].as_f64().unwrap()], 1e-8);
    assert_eq!(
        (&found["variant"], &found["dims"], &found["a"]["pictures"]),
        (&"pytorch-fid".into(), &64.into(), &150.into())
    );
    let (_, out, _) = scumble(&["fid", &a, &b, "--dims", "64"]);
    for part in [
        "FID (pytorch-fid, 64 channels): ",
        "150 pictures",
        "warning: 140 pictures",
        "Comparable only",
        "less is better",
    ] {
        assert!(out.contains(part), "{part:?}: {out}");
    }
    // What pytorch-fid has written tells neither how nor of how many.
    let theirs = place("evaluate/stats.npz");
    let (code, out, _) = scumble(&["fid", &a, theirs.to_str().unwrap(), "--dims", "64"]);
    assert!(code == Some(0) && out.contains("an unknown number") && out.contains("does not tell"), "{out}");
    let seed = facts["seed"].to_string();
    let size = facts["subset_size"].to_string();
    let words = ["kid", &a, &b, "--dims", "64", "--subsets", "20", "--subset-size", &size, "--seed", &seed];
    let (code, out, told) = scumble(&[&words[..], &["--json"]].concat());
    assert_eq!(code, Some(0), "{told}");
    let found: Value = serde_json::from_str(&out).unwrap();
    close("kid", &[found["value"].as_f64().unwrap()], &[facts["kid"].as_f64().unwrap()], 1e-9);
    let (_, out, _) = scumble(&["kid", &a, &b, "--dims", "64"]);
    assert!(out.contains("100 subsets of 140 pictures") && out.contains("instead of 1000"), "{out}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let golden = Golden::read("statistics.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (a, clean, none) = (path("a.npz"), path("clean.npz"), path("none.npz"));
    store(&golden, "a.0", a.as_ref(), Variant::PytorchFid);
    store(&golden, "b.0", clean.as_ref(), Variant::CleanFid);
    let (one, two) = (path("one"), path("two"));
    for (name, count) in [(&one, 1), (&two, 2)] {
        std::fs::create_dir(name).unwrap();
        for number in 0..count {
            image::RgbImage::new(3, 4).save(Path::new(name).join(format!("{number}.png"))).unwrap();
        }
    }
    for (words, code, parts) in [
        (vec!["fid", &a, &clean, "--dims", "64"], 2, vec!["another variant", "clean.npz", "Try --variant clean-fid"]),
        (vec!["fid", &a, &a], 2, vec!["another length", "a.npz", "expected 2048, found 64", "--dims 64"]),
        (vec!["fid", &a, &none, "--dims", "64"], 1, vec!["none.npz"]),
        (vec!["fid", &one, &two], 1, vec!["too few pictures", "one"]),
        (vec!["fid", &path("three"), &two], 1, vec!["three"]),
        (
            vec!["fid", &two, &two],
            2,
            vec!["no weights", "pt_inception-2015-12-05-6726825d.pth", "mseitzer/pytorch-fid"],
        ),
        (vec!["fid", &two, &two, "--inception", &a], 1, vec!["a.npz"]),
        (vec!["fid", &two, &two, "--dims", "100"], 2, vec!["--dims", "64, 192, 768 or 2048"]),
        (vec!["fid", &two, &two, "--variant", "other"], 2, vec!["--variant", "torchmetrics"]),
        (
            vec!["kid", &a, &a, "--dims", "64", "--subset-size", "151"],
            2,
            vec!["larger than a set", "Try --subset-size 150"],
        ),
        (
            vec!["kid", &a, place("evaluate/stats.npz").to_str().unwrap(), "--dims", "64"],
            1,
            vec!["`feats`", "--features"],
        ),
        (vec!["stats", &two, &path("a.npy")], 2, vec!["a.npy", "Try", "a.npz"]),
    ] {
        let (found, out, told) = scumble(&words);
        assert_eq!(found, Some(code), "{words:?}: {told}");
        assert!(out.is_empty() && told.matches("error: ").count() == 1, "{words:?}: {out}{told}");
        for part in parts {
            assert!(told.contains(part), "{words:?}: {part:?} is not in {told}");
        }
    }
}
