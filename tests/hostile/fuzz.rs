//! Random bytes, and good files of each format with some bytes changed: no panic, no endless work, bounded memory.

use std::sync::LazyLock;

use proptest::prelude::*;
use scumble::weights::TensorFile;

use super::allocations::peak;

/// One small good file of each format.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files");
    let names = [
        "odd_zip.pt",
        "odd_zip_4.pt",
        "odd_legacy.pt",
        "odd_legacy_4.pt",
        "lightning.pt",
        "script.pt",
        "flax.msgpack",
        "odd_zip.safetensors",
    ];
    names.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect()
});

/// Opens the bytes, and reads every tensor if that succeeds.
fn survives(bytes: Vec<u8>) {
    let size = bytes.len();
    let (result, cost) = peak(|| TensorFile::from_bytes(bytes, "fuzz"));
    // An arena's value takes some tens of bytes; a structure of many may have been copied once.
    assert!(cost < 400 * size + (1 << 20), "{cost} bytes for a file of {size}");
    match result {
        Ok(file) => read_all(&file),
        Err(error) => assert!(error.to_string().len() < 4000, "{error}"),
    }
}

fn read_all(file: &TensorFile) {
    let mut all = 0;
    for name in file.names() {
        let shape = file.shape(name).unwrap();
        let count: usize = shape.iter().product();
        let mut bytes = 0;
        let take = |part: &[u8]| {
            bytes += part.len();
            Ok(())
        };
        // A tensor may repeat its elements; a part of it shows as much as the whole.
        let part = count.min(10_000);
        file.read_bytes(name, count - part..count, take).unwrap();
        assert_eq!(bytes, part * file.file_type(name).unwrap().bytes(), "{name}");
        let mut floats = Vec::new();
        assert_eq!(file.read(name, 0..part, &mut floats).is_ok(), file.float_type(name).is_ok());
        if let (Ok(_), &[rows, columns]) = (file.float_type(name), shape)
            && rows < 1000
            && columns > 0
        {
            file.read_columns(name, columns - 1..columns, &mut floats).unwrap();
        }
        all += part;
        if all > 1_000_000 {
            break;
        }
    }
}

/// Changes to a file: (where in 2^32 parts of its length, what, how).
type Changes = Vec<(u32, u8, u8)>;

fn changed(mut bytes: Vec<u8>, changes: &Changes) -> Vec<u8> {
    for &(place, value, how) in changes {
        let at = ((u64::from(place) * bytes.len() as u64) >> 32) as usize;
        match how % 6 {
            0 => bytes[at] = value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes.insert(at, value),
            3 => drop(bytes.drain(at..(at + usize::from(value)).min(bytes.len() - 1))),
            4 => {
                let end = (at + 1 + usize::from(value)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(if value % 2 == 0 { 0xff } else { 0 });
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), head in 0usize..7) {
        let heads: [&[u8]; 7] = [b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"\x82\xa1a", b"\xde\x00\x02", b"\x40\0\0\0\0\0\0\0{"];
        survives([heads[head], &bytes].concat());
    }

    #[test]
    fn changed_files(file in 0usize..8, changes in proptest::collection::vec((any::<u32>(), any::<u8>(), any::<u8>()), 1..6)) {
        survives(changed(FILES[file].clone(), &changes));
    }

    /// Changes at the beginning, where a file's structure is told.
    #[test]
    fn changed_heads(file in 0usize..8, changes in proptest::collection::vec((0u32..1 << 28, any::<u8>(), any::<u8>()), 1..6)) {
        survives(changed(FILES[file].clone(), &changes));
    }

    /// Changes within the pickle of an archive, whose checksums are made anew.
    #[test]
    fn changed_pickles(changes in proptest::collection::vec((any::<u32>(), any::<u8>(), any::<u8>()), 1..5)) {
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&FILES[0][..])).unwrap();
        let mut entries = Vec::new();
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            entries.push((entry.name().unwrap().into_owned(), bytes));
        }
        for (_, bytes) in entries.iter_mut().filter(|(name, _)| name.ends_with("data.pkl")) {
            *bytes = changed(std::mem::take(bytes), &changes);
        }
        let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        survives(super::pickles::archive(&entries));
    }

    /// Opcodes in any order.
    #[test]
    fn random_opcodes(ops in proptest::collection::vec(opcode(), 0..60)) {
        let pickle = [&[0x80, 2][..], &ops.concat(), b"."].concat();
        survives(super::pickles::torch_zip(&pickle, 4));
        survives(super::pickles::torch_legacy(&pickle, 4));
    }
}

/// An allowed opcode with arguments that are likely to fit.
fn opcode() -> impl Strategy<Value = Vec<u8>> {
    let plain = prop::sample::select(b"(012N)]}tasuebRQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94".to_vec());
    let globals = prop::sample::select(vec![
        &b"ctorch\nFloatStorage\n"[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nTensor\n",
        b"ctorch\nSize\n",
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\nobject\n",
        b"U\x07storage",
        b"X\x01\x00\x00\x000",
        b"X\x0a\x00\x00\x00state_dict",
    ]);
    prop_oneof![
        4 => plain.prop_map(|op| vec![op]),
        2 => globals.prop_map(<[u8]>::to_vec),
        2 => (prop::sample::select(b"hqK".to_vec()), 0u8..6).prop_map(|(op, index)| vec![op, index]),
    ]
}
