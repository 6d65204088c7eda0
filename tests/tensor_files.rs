//! Files of weights that are not safetensors hold the tensors that PyTorch and flax say, bit for bit
//! (`tools/goldens/tensor_files.py`).

use std::path::PathBuf;

use scumble::weights::TensorFile;
use scumble::weights::tensor_file::Format;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files").join(name)
}

fn bytes(file: &TensorFile, name: &str) -> Vec<u8> {
    let count = file.shape(name).unwrap().iter().product();
    let mut out = Vec::new();
    let take = |part: &[u8]| {
        out.extend_from_slice(part);
        Ok(())
    };
    file.read_bytes(name, 0..count, take).unwrap();
    out
}

/// The same names, shapes, types and bits as in the safetensors file beside it.
fn check(name: &str, format: Format) -> TensorFile {
    let stem = name.split('.').next().unwrap();
    let file = TensorFile::open(&path(name)).unwrap();
    let expected = TensorFile::open(&path(&format!("{stem}.safetensors"))).unwrap();
    assert_eq!(file.format(), format, "{name}");
    assert_eq!(file.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
    for tensor in expected.names() {
        assert_eq!(file.shape(tensor), expected.shape(tensor), "{name}: {tensor}");
        assert_eq!(file.file_type(tensor), expected.file_type(tensor), "{name}: {tensor}");
        assert_eq!(bytes(&file, tensor), bytes(&expected, tensor), "{name}: {tensor}");
    }
    file
}

#[test]
fn odd_tensors_are_read_as_pytorch_means_them() {
    for name in ["odd_zip.pt", "odd_zip_4.pt", "new_types.pt"] {
        check(name, Format::TorchZip);
    }
    for name in ["odd_legacy.pt", "odd_legacy_4.pt"] {
        check(name, Format::TorchLegacy);
    }
}

/// Any part of a tensor whose elements do not lie side by side, as f32 and as columns.
#[test]
fn parts_of_strided_tensors_are_read() {
    let file = TensorFile::open(&path("odd_zip.pt")).unwrap();
    let expected = TensorFile::open(&path("odd_zip.safetensors")).unwrap();
    let mut checked = 0;
    for name in file.names().filter(|name| file.float_type(name).is_ok()) {
        let count: usize = file.shape(name).unwrap().iter().product();
        for from in 0..=count {
            let to = (from + 1 + from % 11).min(count);
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            file.read(name, from..to, &mut ours).unwrap();
            expected.read(name, from..to, &mut theirs).unwrap();
            assert_eq!(ours, theirs, "{name} {from}..{to}");
            checked += ours.len();
        }
        assert!(file.read(name, 0..count + 1, &mut Vec::new()).is_err());
        if let &[_, columns] = file.shape(name).unwrap() {
            for from in 0..columns {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                file.read_columns(name, from..columns.min(from + 2), &mut ours).unwrap();
                expected.read_columns(name, from..columns.min(from + 2), &mut theirs).unwrap();
                assert_eq!(ours, theirs, "{name} columns {from}");
            }
        }
    }
    assert!(checked > 1000);
}

#[test]
fn trainings_leave_only_their_weights() {
    let file = check("lightning.pt", Format::TorchZip);
    let left_out = file.left_out().join(", ");
    for word in ["epoch", "callbacks", "optimizer_states", "hparams"] {
        assert!(left_out.contains(word), "{left_out}");
    }
    check("params_ema.pt", Format::TorchZip);
}

#[test]
fn torchscript_objects_are_bags_of_tensors() {
    check("script.pt", Format::TorchScript);
    check("traced.pt", Format::TorchScript);
}

#[test]
fn flax_trees_are_read() {
    let file = check("flax.msgpack", Format::Msgpack);
    assert_eq!(file.left_out(), ["step", "z"]);
}
