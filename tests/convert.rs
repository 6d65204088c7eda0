//! `scumble convert`, as its users meet it: every bit is kept, and nothing is overwritten by accident.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use scumble::weights::checkpoint::Checkpoint;

/// Runs the command: exit code, stdout, stderr.
fn convert(words: &[&Path], options: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    let output = command.arg("convert").args(words).args(options).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn done(words: &[&Path], options: &[&str]) -> String {
    let (code, out, error) = convert(words, options);
    assert_eq!(code, Some(0), "{error}");
    out
}

fn goldens() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

/// The single file of a golden (`tools/goldens/weights.py`) with values that differ in every place.
fn single_file(version: &str, path: &Path) {
    let golden = std::fs::read(goldens().join(format!("weights/{version}.json"))).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = golden["original"]
        .as_object()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
            let count: usize = shape.iter().product();
            let bytes = (0..count).flat_map(|i| half::f16::from_f32(((i * 7 + seed) % 1999) as f32).to_le_bytes());
            (name.clone(), shape, bytes.collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn files_keep_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["odd_zip.pt", "odd_legacy.pt", "lightning.pt", "script.pt", "flax.msgpack", "odd_zip.safetensors"] {
        let source = goldens().join("files").join(name);
        let target = folder.path().join(name).with_extension("safetensors");
        let told = done(&[&source, &target], &["--force"]);
        assert!(told.contains("wrote"), "{told}");
        assert_eq!(read(&target), read(&source.with_extension("safetensors")), "{name}");
    }
    let source = goldens().join("files/lightning.pt");
    let told = done(&[&source, &folder.path().join("l.safetensors")], &[]);
    assert!(told.contains("PyTorch zip archive") && told.contains("optimizer_states"), "{told}");
}

#[test]
fn types_change_where_asked_and_integers_stay() {
    let folder = tempfile::tempdir().unwrap();
    let source = goldens().join("files/odd_zip.pt");
    let target = folder.path().join("o.safetensors");
    for (word, kind) in [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)] {
        done(&[&source, &target], &["--dtype", word, "--force"]);
        let tensors = read(&target);
        for name in ["plain", "transposed", "expanded", "half", "bfloat_t", "double", "empty"] {
            assert_eq!(tensors[name].0, kind, "{name}");
        }
        assert_eq!((tensors["long"].0, tensors["bool"].0), (Dtype::I64, Dtype::BOOL));
    }
    let large = folder.path().join("large.safetensors");
    let bytes = 1e6f32.to_le_bytes();
    let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([("big", view)], None, &large).unwrap();
    let before = std::fs::read(&target).unwrap();
    let (code, _, error) = convert(&[&large, &target], &["--dtype", "f16", "--force"]);
    assert!(code == Some(1) && error.contains("`big`") && error.contains("beyond the type's range"), "{error}");
    assert_eq!(std::fs::read(&target).unwrap(), before, "a failed conversion leaves its target alone");
}

/// One file -> directory -> file -> directory: the tensors that a model reads come back bit for bit.
#[test]
fn layouts_turn_into_each_other_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for version in ["sd1", "sd2", "sdxl"] {
        let (file, directory) = (at(&format!("{version}.safetensors")), at(version));
        let (again, directory_again) = (at(&format!("{version}-2.safetensors")), at(&format!("{version}-2")));
        single_file(version, &file);
        done(&[&file, &directory], &[]);
        let told = done(&[&directory, &again], &[]);
        // SD 2's last layer and projection are stored and not used; the tiny models have a vocabulary of their own.
        let (before, after) = (read(&file), read(&again));
        assert!(after.keys().all(|name| before.contains_key(name)), "{version}");
        for (name, tensor) in &after {
            assert_eq!(tensor, &before[name], "{version}: {name}");
        }
        let dropped: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
        let unused = |name: &str| {
            ["text_projection", "logit_scale", "position_ids", "transformer.resblocks."]
                .iter()
                .any(|p| name.contains(p))
                || !name.contains('.')
                || name.starts_with("model_ema.")
        };
        assert!(dropped.iter().all(|name| unused(name)), "{version}: {dropped:?}");
        assert!(!told.contains("attention heads"), "{told}");
        done(&[&again, &directory_again], &[]);
        for part in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
            let part = format!("{part}.safetensors");
            assert_eq!(read(&directory.join(&part)), read(&directory_again.join(&part)), "{version}: {part}");
        }
        let (single, opened) = (Checkpoint::open(&file).unwrap(), Checkpoint::open(&directory).unwrap());
        assert_eq!(single.unet.config, opened.unet.config, "{version}");
        assert_eq!(single.vae.config, opened.vae.config, "{version}");
        assert_eq!(single.scheduler, opened.scheduler, "{version}");
        assert_eq!(single.class, opened.class, "{version}");
        assert_eq!(single.unet.weights.names(), opened.unet.weights.names(), "{version}");
    }
}

/// What diffusers saved comes back from the single file, for every kind, with what the file cannot tell told.
#[test]
fn directories_that_diffusers_saved_become_files() {
    let folder = tempfile::tempdir().unwrap();
    for (case, count) in [("sd1", 400), ("sd2_v", 0), ("sdxl", 0)] {
        let target = folder.path().join(format!("{case}.safetensors"));
        let told = done(&[&goldens().join("pipelines").join(case), &target], &[]);
        assert!(told.contains("note: the single file cannot tell"), "{told}");
        assert!(read(&target).len() >= count.max(300), "{case}: {told}");
    }
    let lcm = convert(&[&goldens().join("pipelines/lcm"), &folder.path().join("lcm.safetensors")], &[]);
    assert!(lcm.0 == Some(1) && lcm.2.contains("no original name") && lcm.2.contains("cond_proj"), "{lcm:?}");
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = goldens().join("files/odd_zip.pt");
    std::fs::write(at("taken.safetensors"), "precious").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    single_file("sd1", &at("one.safetensors"));
    for (words, options, code, part) in [
        ([&source, &at("taken.safetensors")], &[][..], 1, "--force"),
        ([&at("one.safetensors"), &at("folder")], &[], 1, "--force"),
        ([&at("one.safetensors"), &at("folder")], &["--force"], 1, "cannot replace"),
        ([&source, &at("new.ckpt")], &[], 2, "new.safetensors"),
        ([&source, &at("directory")], &[], 1, "unsupported model"),
        ([&at("nothing.pt"), &at("new.safetensors")], &[], 1, "nothing.pt"),
        ([&goldens().join("pipelines/sd1"), &at("other")], &[], 2, "other.safetensors"),
        ([&source, &at("none/new.safetensors")], &[], 1, "no such folder"),
        ([&source, &at("new.safetensors")], &["--prediction-type", "epsilon"], 2, "--prediction-type"),
        ([&source, &at("new.safetensors")], &["--dtype", "f64"], 2, "bf16"),
    ] {
        let (found, _, error) = convert(&[words[0], words[1]], options);
        assert!(found == Some(code) && error.contains(part), "{words:?} {options:?}: {found:?} {error}");
    }
    assert_eq!(std::fs::read(at("taken.safetensors")).unwrap(), b"precious");
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["folder", "one.safetensors", "taken.safetensors"]);
    done(&[&at("one.safetensors"), &at("model")], &[]);
    done(&[&at("one.safetensors"), &at("model")], &["--force", "--prediction-type", "v_prediction"]);
    let scheduler = std::fs::read_to_string(at("model/scheduler/scheduler_config.json")).unwrap();
    assert!(scheduler.contains("v_prediction"), "{scheduler}");
}
