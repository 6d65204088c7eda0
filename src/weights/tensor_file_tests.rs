use proptest::prelude::*;

use super::*;

/// A file of this header text and that many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn open(bytes: Vec<u8>) -> Result<TensorFile> {
    TensorFile::from_bytes(bytes, "test.safetensors")
}

#[test]
fn a_good_file_opens() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"I64","shape":[],"data_offsets":[12,20]},
        "a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},
        "none":{"dtype":"F32","shape":[0,7],"data_offsets":[12,12]}}"#;
    let file = open(file(header, 20)).unwrap();
    let mut names: Vec<_> = file.names().collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "none"]);
    assert_eq!((file.shape("a"), file.float_type("a").unwrap()), (Some(&[2, 3][..]), DType::F16));
    let error = file.float_type("b").unwrap_err().to_string();
    assert!(error.contains("I64") && error.contains("`b`"), "{error}");
    assert!(file.read("a", 5..7, &mut Vec::new()).unwrap_err().to_string().contains("0..6"));
    let mut empty = Vec::new();
    file.read("none", 0..0, &mut empty).unwrap();
    assert!(empty.is_empty());
}

#[test]
fn hostile_headers_are_refused_and_named() {
    let entry = |dtype: &str, shape: &str, from: &str, to: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |dtype: &str, shape: &str, from: &str, to: &str| format!(r#"{{"t":{}}}"#, entry(dtype, shape, from, to));
    let two = |a: (&str, &str), b: (&str, &str)| {
        format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[2]", a.0, a.1), entry("F32", "[2]", b.0, b.1))
    };
    let most = u64::MAX.to_string();
    for (bytes, expected) in [
        (Vec::new(), "empty"),
        (vec![1, 2, 3], "truncated"),
        (file("", 0), "JSON"),
        (u64::MAX.to_le_bytes().to_vec(), "not a safetensors file"),
        ([&100_000_001u64.to_le_bytes()[..], b"{}"].concat(), "not a safetensors file"),
        ([&90_000_000u64.to_le_bytes()[..], b"{}"].concat(), "truncated safetensors header"),
        (file("\u{7f}{}", 0), "JSON"),
        ([&3u64.to_le_bytes()[..], b"\xff{}"].concat(), "UTF-8"),
        (file("[]", 0), "JSON"),
        (file("{", 0), "JSON"),
        (file("{}", 1), "bytes after the last tensor"),
        (file(&"[".repeat(100_000), 0), "JSON"),
        (file(r#"{"__metadata__":{"a":1}}"#, 0), "JSON"),
        (file(r#"{"t":{"dtype":"F32","shape":[1]}}"#, 4), "data_offsets"),
        (file(r#"{"t":3}"#, 4), "`t`"),
        (file(&one("F32", "[-1]", "0", "4"), 4), "JSON"),
        (file(&one("F32", "[1.5]", "0", "4"), 4), "JSON"),
        (file(&one("C64", "[1]", "0", "8"), 8), "C64"),
        (file(&one("F4", "[2]", "0", "1"), 1), "F4"),
        (file(&one("F32", "[2]", "0", "4"), 4), "8 bytes for F32"),
        (file(&one("F32", "[1]", "4", "0"), 4), "offsets 4..0"),
        (file(&one("F32", "[2]", "0", "8"), 4), "beyond the file's end"),
        (file(&one("F32", "[1]", "4", "8"), 8), "hole"),
        (file(&one("F32", &format!("[{most},{most}]"), "0", "4"), 4), "too large"),
        (file(&one("F32", "[4611686018427387904,1]", "0", "0"), 0), "too large"),
        (file(&one("F32", &format!("[0,{most},{most}]"), "0", "0"), 0), "too large"),
        (file(&one("F32", "[0]", &most, &most), 0), "beyond the file's end"),
        (file(&two(("0", "8"), ("4", "12")), 12), "overlapping"),
        (file(&two(("0", "8"), ("0", "8")), 8), "overlapping"),
        (file(&two(("0", "8"), ("12", "20")), 20), "hole"),
        (file(&two(("0", "8"), ("8", "16")), 17), "bytes after the last tensor"),
        (file(&format!(r#"{{"t":{0},"t":{0}}}"#, entry("F32", "[1]", "0", "4")), 4), "the name `t` twice"),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        let error = open(bytes).err().unwrap_or_else(|| panic!("opens: {shown}")).to_string();
        assert!(error.contains(expected) && error.contains("test.safetensors"), "{shown}: {error}");
    }
}

#[test]
fn a_missing_file_and_a_directory_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("none.safetensors"), folder.path().to_path_buf()] {
        let error = TensorFile::open(&path).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    let path = folder.path().join("empty.safetensors");
    std::fs::write(&path, b"").unwrap();
    assert!(TensorFile::open(&path).err().unwrap().to_string().contains("empty safetensors file"));
}

/// All 65536 halves, at an odd address, against their definition.
#[test]
fn halves_convert_exactly() {
    let header = r#"{"t":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}} "#;
    let mut bytes = file(header, 0);
    bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
    let mut out = Vec::new();
    open(bytes).unwrap().read("t", 0..65536, &mut out).unwrap();
    for (bits, value) in (0..=u16::MAX).zip(out) {
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        match (exponent, fraction) {
            (31, 0.0) => assert_eq!(value, sign as f32 * f32::INFINITY),
            (31, _) => assert!(value.is_nan()),
            (0, f) => assert_eq!(f64::from(value), sign * f * 2f64.powi(-24)),
            (e, f) => assert_eq!(f64::from(value), sign * (1024.0 + f) * 2f64.powi(e - 25)),
        }
        assert!(value.is_nan() || value.is_sign_negative() == (bits >> 15 == 1), "{bits:#x}");
    }
}

#[test]
fn bf16_and_f32_keep_their_bits() {
    for (dtype, bytes_each, shift) in [("BF16", 2, 16), ("F32", 4, 0)] {
        let values: Vec<u32> = [0u32, 1, 0x7f80, 0xff80, 0x8000, 0x3f80, 0x4049, 0x0001, 0x7fc1, 0xffff]
            .map(|high| if shift == 0 { high << 16 | 0x1234 } else { high })
            .to_vec();
        let size = values.len() * bytes_each;
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":[{}],"data_offsets":[0,{size}]}}}}"#, values.len());
        let mut bytes = file(&header, 0);
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()[..bytes_each].to_vec()));
        let mut out = vec![5.0];
        open(bytes).unwrap().read("t", 0..values.len(), &mut out).unwrap();
        let bits: Vec<u32> = out[1..].iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, values.iter().map(|v| v << shift).collect::<Vec<_>>());
    }
}

/// Whatever opens here opens in the reference implementation too, with the same tensors.
fn no_laxer_than_the_reference(bytes: &[u8]) {
    let Ok(ours) = open(bytes.to_vec()) else { return };
    if ours.format() != Format::Safetensors {
        return;
    }
    let theirs = safetensors::SafeTensors::deserialize(bytes).expect("the reference refuses this file");
    assert_eq!(ours.names().count(), theirs.len());
    for (name, view) in theirs.tensors() {
        assert_eq!(ours.shape(&name), Some(view.shape()));
        if ours.float_type(&name).is_ok() {
            let count: usize = view.shape().iter().product();
            let mut out = Vec::new();
            ours.read(&name, 0..count, &mut out).unwrap();
            assert_eq!(out.len(), count);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        no_laxer_than_the_reference(&bytes);
    }

    #[test]
    fn any_header_text_is_survived(text in "[\\[\\]{}\":,a-f0-9.eE\\- ]{0,120}", data in 0usize..9) {
        no_laxer_than_the_reference(&file(&text, data));
    }

    #[test]
    fn any_entries_are_survived(
        entries in proptest::collection::vec(
            (
                "[ab]",
                prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8", "F64", "BOOL", "F8_E4M3", "F4", "X"]),
                proptest::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..4),
                prop_oneof![0u64..20, any::<u64>()],
                prop_oneof![0u64..20, any::<u64>()],
            ),
            0..4,
        ),
        data in 0usize..40,
    ) {
        let entry = |(name, dtype, shape, from, to): &(String, &str, Vec<u64>, u64, u64)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
        };
        let header = format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","));
        no_laxer_than_the_reference(&file(&header, data));
    }

    #[test]
    fn tensors_that_fit_are_read(shapes in proptest::collection::vec(proptest::collection::vec(0usize..4, 0..3), 1..5)) {
        let mut at = 0;
        let entries: Vec<String> = shapes.iter().enumerate().map(|(i, shape)| {
            let (from, size) = (at, shape.iter().product::<usize>() * 2);
            at += size;
            format!(r#""t{i}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{from},{at}]}}"#)
        }).collect();
        let bytes = file(&format!("{{{}}}", entries.join(",")), at);
        prop_assert_eq!(open(bytes.clone()).unwrap().names().count(), shapes.len());
        no_laxer_than_the_reference(&bytes);
    }
}
