//! Pickles that would do harm elsewhere are refused by name, with the place, and cost next to nothing.

use scumble::weights::TensorFile;
use zip::CompressionMethod;

use super::allocations::peak;
use super::pickles::{Pickle, archive, archive_of, legacy_head, torch_legacy, torch_zip};

fn open(bytes: Vec<u8>) -> Result<TensorFile, String> {
    TensorFile::from_bytes(bytes, "hostile.pt").map_err(|error| error.to_string())
}

fn error(bytes: Vec<u8>) -> String {
    open(bytes).err().expect("opens")
}

/// The pickle in either format is refused with these words.
fn refused(pickle: &[u8], words: &[&str]) {
    for bytes in [torch_zip(pickle, 4), torch_legacy(pickle, 4), pickle.to_vec()] {
        let (error, cost) = peak(|| error(bytes));
        for word in words.iter().chain(&["hostile.pt"]) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        assert!(cost < 1 << 20, "{cost} bytes for: {error}");
    }
}

/// A call of `module.name("touch pwned")`.
fn call(module: &str, name: &str) -> Vec<u8> {
    Pickle::new().global(module, name).text("touch pwned").op(b"\x85R").stop()
}

#[test]
fn imports_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("__builtin__", "apply"),
        ("importlib", "import_module"),
        ("runpy", "_run_code"),
        ("torch", "load"),
        ("torch", "FloatTensor"),
        ("torch.hub", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch.nn.modules.conv", "Conv2d"),
        ("numpy.testing._private.utils", "runstring"),
        ("operator", "attrgetter"),
        ("__torch__.evil", "Class"),
        ("collections.OrderedDict", "__init__"),
        ("builtins", "list.append"),
        ("", ""),
    ] {
        let shown = format!("`{module}.{name}`");
        refused(&call(module, name), &["refused pickle", "offset", "GLOBAL", &shown]);
        let stack = Pickle(vec![0x80, 4]).text(module).text(name).op(b"\x93").text("x").op(b"\x85R").stop();
        refused(&stack, &["refused pickle", "offset", "STACK_GLOBAL", &shown]);
    }
    // The place is that of the opcode.
    assert!(error(torch_zip(&call("os", "system"), 0)).contains("m/data.pkl: offset 2"));
    let inside = error(torch_legacy(&call("os", "system"), 0));
    assert!(inside.contains(&format!("offset {}", legacy_head().len() + 2)), "{inside}");
}

#[test]
fn opcodes_that_make_objects_otherwise_are_refused_by_name() {
    let p = Pickle::new;
    for (pickle, name) in [
        (p().op(b"(").text("touch pwned").op(b"ios\nsystem\n."), "INST"),
        (p().op(b"(").global("collections", "OrderedDict").op(b"o."), "OBJ"),
        (p().op(b"Pevil\n."), "PERSID"),
        (p().op(b"\x82\x01."), "EXT1"),
        (p().op(b"\x83\x01\x00."), "EXT2"),
        (p().op(b"\x84\x01\x00\x00\x00."), "EXT4"),
        (p().op(b"\x97."), "NEXT_BUFFER"),
        (p().op(b"\x98."), "READONLY_BUFFER"),
        (p().op(b"S'abc'\n."), "STRING"),
        (p().op(b"I1\n."), "INT"),
        (p().op(b"L1L\n."), "LONG"),
        (p().op(b"F1\n."), "FLOAT"),
        (p().op(b"Vabc\n."), "UNICODE"),
        (p().op(b"(d."), "DICT"),
        (p().op(b"(l."), "LIST"),
        (p().op(b"g0\n."), "GET"),
        (p().op(b"Np0\n."), "PUT"),
        (p().op(b"\xff."), "no opcode"),
        (p().op(b"\x80\x02N."), "PROTO within"),
        (p().op(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN."), "frame"),
    ] {
        refused(&pickle.0, &["refused pickle", "offset", name]);
    }
    assert!(error(torch_zip(b"N.", 0)).contains("protocol 0 or 1"));
    assert!(error(torch_zip(b"\x80\x06N.", 0)).contains("protocol 6"));
    assert!(error(torch_zip(b"\x80\x00N.", 0)).contains("protocol 0"));
}

/// What is allowed for one purpose serves no other.
#[test]
fn calls_of_what_is_no_function_are_refused() {
    let p = Pickle::new;
    let dict = || p().global("collections", "OrderedDict").op(b")R");
    for (pickle, words) in [
        (p().text("os.system").text("x").op(b"\x85R."), ["REDUCE", "a string"]),
        (p().global("torch", "FloatStorage").int(9).op(b"\x85R."), ["REDUCE", "`torch.FloatStorage`"]),
        (p().global("torch", "UntypedStorage").int(1 << 40).op(b"\x85R."), ["REDUCE", "UntypedStorage"]),
        (p().global("torch", "Tensor").op(b")R."), ["REDUCE", "`torch.Tensor`"]),
        (p().global("torch", "float32").op(b")R."), ["REDUCE", "`torch.float32`"]),
        (p().global("torch", "Size").op(b")R."), ["REDUCE", "`torch.Size`"]),
        (p().global("collections", "OrderedDict").text("x").op(b"R."), ["REDUCE", "without a short tuple"]),
        (p().global("collections", "OrderedDict").text("x").op(b"\x85R."), ["OrderedDict", "pairs"]),
        (p().global("torch", "FloatStorage").op(b")\x81."), ["NEWOBJ", "`torch.FloatStorage`"]),
        (p().text("x").op(b")\x81."), ["NEWOBJ", "a string"]),
        (p().global("torch._utils", "_rebuild_tensor_v2").op(b")}\x92."), ["NEWOBJ_EX", "_rebuild_tensor_v2"]),
        (p().global("torch._utils", "_rebuild_tensor_v2").op(b")R."), ["a tensor", "too few"]),
        (p().global("torch._utils", "_rebuild_parameter").op(b"N\x89N\x87R."), ["parameter", "no tensor"]),
        (p().global("torch._tensor", "_rebuild_from_type_v2").op(b")R."), ["_rebuild_from_type_v2", "four"]),
        (p().text("x").op(b"}b."), ["BUILD", "a string"]),
        (p().op(b"N}b."), ["BUILD", "None"]),
        (p().global("builtins", "object").op(b")\x81}b}b."), ["BUILD", "an object"]),
        (p().global("builtins", "dict").op(b"}b."), ["BUILD", "`builtins.dict`"]),
        (p().tensor("FloatStorage", "0", 4, (0, &[4], &[1])).op(b"}b."), ["BUILD", "a tensor"]),
        (dict().text("x").op(b"a."), ["appended", "a dictionary"]),
        (p().op(b"]NNs."), ["put into", "a list"]),
        (p().op(b"}(Nu."), ["a key", "without a value"]),
        (p().text("storage").op(b"Q."), ["persistent id", "tuple"]),
        (p().op(b")Q."), ["persistent id", "too few"]),
        (p().op(b"(").text("module").op(b"NNNNtQ."), ["persistent id", "`module`"]),
        (p().op(b"(").text("storage").global("builtins", "object").op(b"NNNtQ."), ["persistent id", "storage class"]),
        (p().op(b"(").text("storage").global("torch", "FloatStorage").op(b"NNNtQ."), ["persistent id", "key"]),
        (p().storage("FloatStorage", "0", -1).op(b"."), ["persistent id", "count"]),
        (p().storage("FloatStorage", "0", i64::MAX).op(b"."), ["persistent id", "more than any file"]),
    ] {
        refused(&pickle.0, &["refused pickle", "offset", words[0], words[1]]);
    }
    // A wrapped call may call nothing but what rebuilds a tensor.
    let wrapped = p().global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
    let wrapped = wrapped.global("torch._tensor", "_rebuild_from_type_v2").global("torch", "Tensor").op(b")}tR.");
    refused(&wrapped.0, &["a tensor of class"]);
}

#[test]
fn stack_and_memo_are_kept_whole() {
    let p = Pickle::new;
    for (pickle, word) in [
        (p().op(b"."), "stack"),
        (p().op(b"R."), "stack"),
        (p().op(b"0."), "stack"),
        (p().op(b"N(R."), "stack"),
        (p().op(b"NN(2."), "stack"),
        (p().op(b"q\x00."), "stack"),
        (p().op(b"t."), "mark"),
        (p().op(b"Nu."), "mark"),
        (p().op(b"NN."), "left on the stack"),
        (p().op(b"(N."), "stack"),
        (p().op(b"h\x07."), "memo index 7"),
        (p().op(b"j\xff\xff\xff\xff."), "memo index 4294967295"),
        (p().op(b"\x93."), "stack"),
        (p().op(b"NN\x93."), "STACK_GLOBAL"),
        (p().op(b"cos"), "GLOBAL without an end"),
    ] {
        refused(&pickle.0, &["refused pickle", word]);
    }
}

/// Bytes that claim lengths, counts and indices as large as they go.
#[test]
fn bombs_cost_nothing() {
    let p = Pickle::new;
    for lengths in [
        &b"\x8b\xff\xff\xff\xff"[..],
        b"\x8b\xff\xff\xff\x7f",
        b"\x8a\xff",
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x96\x00\x00\x00\x00\x00\x01\x00\x00",
    ] {
        let pickle = p().op(lengths).0;
        let (error, cost) = peak(|| error(torch_zip(&pickle, 0)));
        assert!(error.contains("truncated pickle") && cost < 1 << 20, "{cost}: {error}");
    }
    // A memo index reserves nothing.
    let pickle = p().op(b"}r\xff\xff\xff\xff.").0;
    let (error, cost) = peak(|| self::error(torch_zip(&pickle, 0)));
    assert!(error.contains("no tensors") && cost < 1 << 20, "{cost}: {error}");
    // Lists of ten lists of ten lists, and a list that contains itself twice.
    let mut nested = p().op(b"(]q\x00");
    for level in 0..30u8 {
        nested = nested.op(b"](").op(&[b'h', level].repeat(10)).op(b"e").op(&[b'q', level + 1]);
    }
    let nested = nested.op(b"t").stop();
    let cyclic = p().op(b"]q\x00(h\x00h\x00e").stop();
    let wrapped = p().op(b"}").text("state_dict").op(b"}q\x01(").text("a").op(b"h\x01").text("b").op(b"h\x01us").stop();
    for pickle in [nested, cyclic, wrapped] {
        let size = pickle.len();
        let (error, cost) = peak(|| self::error(torch_zip(&pickle, 0)));
        assert!(error.contains("contain each other too often"), "{error}");
        assert!(cost < 300 << 20, "{cost} bytes for {size}");
    }
    // A million levels are neither walked nor dropped recursively.
    let deep = p().op(&b"]".repeat(1_000_000)).op(&b"a".repeat(999_999)).stop();
    assert!(self::error(torch_zip(&deep, 0)).contains("levels"));
    let tuples = p().op(b")").op(&b"\x85".repeat(1_000_000)).stop();
    assert!(self::error(torch_zip(&tuples, 0)).contains("levels"));
    // More values than any checkpoint has.
    let (error, cost) = peak(|| self::error(torch_zip(&p().op(b"(").op(&b"N".repeat(5_000_000)).op(b"t").stop(), 0)));
    assert!(error.contains("more than 4194304 values") && cost < 400 << 20, "{cost}: {error}");
    // A large dictionary copied by every call.
    let copies = p().op(b"}(").op(&b"NN".repeat(300_000)).op(b"u\x85q\x00").global("collections", "OrderedDict");
    let copies = copies.op(b"q\x01").op(&b"h\x01h\x00R0".repeat(10_000)).stop();
    let (error, cost) = peak(|| self::error(torch_zip(&copies, 0)));
    assert!(error.contains("more than 4194304 values") && cost < 400 << 20, "{cost}: {error}");
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let tensor = |count: i64, offset: i64, shape: &[i64], strides: &[i64]| {
        let state = Pickle::new().op(b"}").text("t");
        state.tensor("FloatStorage", "0", count, (offset, shape, strides)).op(b"s").stop()
    };
    let most = i64::MAX;
    for (pickle, word) in [
        (tensor(4, 1, &[4], &[1]), "beyond its storage's 4"),
        (tensor(4, 0, &[5], &[1]), "beyond its storage's 4"),
        (tensor(4, 0, &[2, 2], &[3, 1]), "beyond its storage's 4"),
        (tensor(4, -1, &[1], &[1]), "offset"),
        (tensor(4, most, &[1], &[1]), "beyond its storage"),
        (tensor(4, 0, &[-1], &[1]), "shape"),
        (tensor(4, 0, &[2], &[-1]), "strides"),
        (tensor(4, 0, &[most, most], &[0, 0]), "overflows"),
        (tensor(4, 0, &[0, most, most], &[0, 0, 0]), "overflows"),
        (tensor(4, 0, &[2, 2], &[most, most]), "beyond its storage"),
        (tensor(4, 0, &[2, 2], &[1]), "2 axes and 1 strides"),
        (tensor(4, 0, &[1; 17], &[1; 17]), "shape"),
    ] {
        refused_within(&pickle, word);
    }
    for (count, word) in [(5, "20 stored bytes"), (3, "12 stored bytes"), (1 << 50, "stored bytes")] {
        let error = error(torch_zip(&tensor(count, 0, &[1], &[1]), 4));
        assert!(error.contains(word), "{error}");
    }
    let error = error(torch_legacy(&tensor(5, 0, &[1], &[1]), 4));
    assert!(error.contains("truncated storage"), "{error}");
    // A few bytes that claim to be a tensor of 4 GB.
    let bomb = tensor(4, 0, &[1 << 30], &[0]);
    assert!(self::error(torch_zip(&bomb, 4)).contains("repeat the file's data too often"));
    assert!(open(torch_zip(&tensor(4, 3, &[1 << 20], &[0]), 4)).is_ok());
}

fn refused_within(pickle: &[u8], word: &str) {
    for bytes in [torch_zip(pickle, 4), torch_legacy(pickle, 4)] {
        let error = error(bytes);
        assert!(error.contains("refused pickle") && error.contains(word), "{error}");
    }
}

/// Values that PyTorch would negate or conjugate on loading.
#[test]
fn marked_storages_are_refused() {
    let call = Pickle::new().op(b"}").text("t").global("torch._utils", "_rebuild_tensor_v2").op(b"(");
    let call = call.storage("FloatStorage", "0", 4).int(0).tuple(&[4]).tuple(&[1]).op(b"\x89N}");
    let marked = call.text("neg").op(b"\x88stRs").stop();
    refused_within(&marked, "negated or conjugated");
}

#[test]
fn broken_archives_are_told() {
    let good = Pickle::new().op(b"}").text("t").tensor("FloatStorage", "0", 4, (0, &[4], &[1])).op(b"s").stop();
    let data = [0; 16];
    let opened = open(torch_zip(&good, 4)).unwrap();
    assert_eq!((opened.names().collect::<Vec<_>>(), opened.shape("t")), (vec!["t"], Some(&[4][..])));
    for (entries, word) in [
        (&[("m/data.pkl", &good[..]), ("m/data/1", &data)][..], "no such entry"),
        (&[("m/data.pkl", &good), ("m/data/0", &data[..15])], "found 15"),
        (&[("m/data.pkl", &good), ("m/data/0", &data), ("m/byteorder", b"big")], "byte order"),
        (&[("m/data.pkl", &good), ("n/data.pkl", &good), ("m/data/0", &data)], "one data.pkl"),
        (&[("a.txt", b"x"), ("b/c/data.pkl", b"y")], "a zip archive with data.pkl"),
        (&[], "a zip archive with data.pkl"),
        (&[("m/data.pkl", b""), ("m/data/0", &data)], "truncated pickle"),
        (&[("m/data.pkl", &[&good[..], b"N"].concat()), ("m/data/0", &data)], "1 bytes behind STOP"),
    ] {
        let error = error(archive(entries));
        assert!(error.contains(word), "{word}: {error}");
    }
    let long = [0u8; 4096];
    let floats = Pickle::new().op(b"}").text("t").tensor("FloatStorage", "0", 1024, (0, &[4], &[1])).op(b"s").stop();
    let packed = archive_of(&[("m/data.pkl", &floats), ("m/data/0", &long)], CompressionMethod::Deflated);
    let error = error(packed);
    assert!(error.contains("a compressed entry"), "{error}");
    // 300 MB of zeros in 300 kB are not unpacked.
    let zeros = vec![0; 100 << 20];
    let bomb = archive_of(&[("m/data.pkl", &zeros)], CompressionMethod::Deflated);
    assert!(bomb.len() < 1 << 20);
    let (error, cost) = peak(|| self::error(bomb));
    assert!(error.contains("pickle too large") && cost < 200 << 20, "{cost}: {error}");
}

#[test]
fn broken_rows_of_pickles_are_told() {
    let good = Pickle::new().op(b"}").text("t").tensor("FloatStorage", "0", 4, (0, &[4], &[1])).op(b"s").stop();
    assert!(open(torch_legacy(&good, 4)).is_ok());
    let other = Pickle::new().int(7).stop();
    assert!(error(other).contains("magic number"));
    let system = |text: &str, value: &[u8]| Pickle::new().op(b"}").text(text).op(value).op(b"s").stop();
    let head = legacy_head();
    let plain = system("little_endian", b"\x88");
    let begin = &head[..head.len() - plain.len()];
    for system in [system("little_endian", b"\x89"), system("x", b"\x88"), Pickle::new().op(b"N").stop()] {
        assert!(error([begin, &system].concat()).contains("byte order"));
    }
    let keys =
        |keys: &[&str]| keys.iter().fold(Pickle::new().op(b"]("), |pickle, key| pickle.text(key)).op(b"e").stop();
    let raw = [&4u64.to_le_bytes()[..], &[0; 16]].concat();
    let file = |keys: Vec<u8>, raw: &[u8]| [&head, &good, &keys, raw].concat();
    for (bytes, word) in [
        (file(keys(&["1"]), &raw), "no tensor uses"),
        (file(keys(&[]), &[]), "not there"),
        (file(keys(&["0", "0"]), &[&raw[..], &raw].concat()), "a storage twice"),
        (file(keys(&["0"]), &raw[..23]), "truncated storage"),
        (file(keys(&["0"]), &raw[..5]), "truncated storage"),
        (file(keys(&["0"]), &[&5u64.to_le_bytes()[..], &[0; 20]].concat()), "truncated storage"),
        (file(keys(&["0"]), &[&raw[..], b"x"].concat()), "after the last storage"),
        (file(Pickle::new().op(b"N").stop(), &raw), "a list of storages"),
        (file(Pickle::new().op(b"](Ne").stop(), &raw), "strings"),
    ] {
        let error = error(bytes);
        assert!(error.contains(word), "{word}: {error}");
    }
}

/// Every beginning of a good file of each format is an error, and is found cheaply.
#[test]
fn files_that_end_early_are_errors() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files");
    for name in ["odd_zip.pt", "odd_legacy.pt", "odd_legacy_4.pt", "script.pt", "flax.msgpack", "odd_zip.safetensors"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        for end in 0..bytes.len() {
            let (result, cost) = peak(|| open(bytes[..end].to_vec()));
            assert!(result.is_err(), "{name} opens with {end} of {} bytes", bytes.len());
            assert!(cost < 2 << 20, "{name}: {cost} bytes for {end}");
        }
    }
}

#[test]
fn other_files_are_told_apart() {
    for (bytes, word) in [
        (&b"\x89HDF\r\n\x1a\n"[..], "HDF5"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
    ] {
        let error = error(bytes.to_vec());
        assert!(error.contains(word) && error.contains("not a file of weights"), "{error}");
    }
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(error(tar).contains("tar archive"));
}
