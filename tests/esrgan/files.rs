//! Files of the family: pickles, odd and hostile ones, the published networks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use scumble::error::Error;
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::models::config::RrdbConfig;
use scumble::models::decoder::rrdb;
use scumble::pipelines::{TileSide, Tiling, esrgan_plan};
use scumble::tensor::DType;
use scumble::weights::esrgan::EsrganCheckpoint;
use scumble::weights::kind::ModelKind;
use scumble::weights::tensor_file::TensorFile;
use scumble::weights::{Claims, ShapesSource, TensorInfo, Weights};

use super::{Case, cases, folder};

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
