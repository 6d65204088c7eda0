//! Writes pickles opcode by opcode, and the files that hold them.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A pickle in the making.
#[derive(Clone)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    /// Begins with PROTO 2.
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn text(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    /// LONG1 of eight bytes.
    pub fn int(self, value: i64) -> Self {
        self.op(&[0x8a, 8]).op(&value.to_le_bytes())
    }

    pub fn tuple(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |pickle, value| pickle.int(*value)).op(b"t")
    }

    /// A storage of floats by persistent id.
    pub fn storage(self, class: &str, key: &str, count: i64) -> Self {
        let tuple = self.op(b"(").text("storage").global("torch", class).text(key).text("cpu").int(count);
        tuple.op(b"tQ")
    }

    /// A tensor over that storage.
    pub fn tensor(self, class: &str, key: &str, count: i64, view: (i64, &[i64], &[i64])) -> Self {
        let (offset, shape, strides) = view;
        let call = self.global("torch._utils", "_rebuild_tensor_v2").op(b"(").storage(class, key, count);
        let call = call.int(offset).tuple(shape).tuple(strides).op(b"\x89");
        call.global("collections", "OrderedDict").op(b")RtR")
    }

    pub fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A zip with these entries, stored.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    archive_of(entries, CompressionMethod::Stored)
}

pub fn archive_of(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A PyTorch archive of this pickle, with storage "0" of these floats.
pub fn torch_zip(pickle: &[u8], floats: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..floats).flat_map(|i| (i as f32).to_le_bytes()).collect();
    archive(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &data)])
}

/// The first three pickles of the older format.
pub fn legacy_head() -> Vec<u8> {
    let magic = Pickle::new().op(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop();
    let version = Pickle::new().op(b"M\xe9\x03").stop();
    let system = Pickle::new().op(b"}").text("little_endian").op(b"\x88s").stop();
    [magic, version, system].concat()
}

/// The older format with this pickle and storage "0" of these floats.
pub fn torch_legacy(pickle: &[u8], floats: usize) -> Vec<u8> {
    let keys = Pickle::new().op(b"](").text("0").op(b"e").stop();
    let mut bytes = [&legacy_head(), pickle, &keys, &(floats as u64).to_le_bytes()[..]].concat();
    bytes.extend((0..floats).flat_map(|i| (i as f32).to_le_bytes()));
    bytes
}
