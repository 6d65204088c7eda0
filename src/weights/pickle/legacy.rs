//! `torch.save` before PyTorch 1.6: five pickles in a row (magic number, version, byte order, the object, the storages'
//! keys), and behind them for each key a count and the raw elements.

use std::collections::HashMap;
use std::ops::Range;

use super::super::shown;
use super::super::stored::{Collector, Contents};
use super::machine::{Id, Machine, Node};
use super::names::Names;
use crate::error::{Error, Result};

/// The first pickle's number, 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The second pickle's.
const VERSION: i64 = 1001;

/// Reads and checks `file`; `place` names it in errors.
pub(in super::super) fn open(file: &[u8], place: &str) -> Result<Contents> {
    let fault = |expected: &str| Error::new("not a PyTorch checkpoint").at(place).expected(expected.to_string());
    let mut machine = Machine::new(file, 0, place, false);
    let magic = machine.run()?;
    let is_magic = matches!(machine.node(magic), Node::Long(bytes) if file[bytes.clone()] == MAGIC);
    if !is_magic {
        return Err(fault("PyTorch's magic number").found("another pickle").hint("a file that torch.save wrote"));
    }
    let version = next(&mut machine)?;
    if !matches!(machine.node(version), Node::Int(VERSION)) {
        return Err(fault("the format's version 1001").found(machine.kind(version)));
    }
    let system = next(&mut machine)?;
    if !is_little_endian(&machine, system) {
        let error = Error::new("unsupported byte order").at(place).expected("little");
        return Err(error.hint("saving the file on a little-endian machine"));
    }
    let mut object = Machine::new(file, machine.at, place, false);
    let top = object.run()?;
    let mut keys = Machine::new(file, object.at, place, false);
    let list = keys.run()?;
    let runs = runs(&object, &keys, list)?;
    let mut found = Collector::new(place, file.len());
    Names::new(&object, &runs).collect(top, "", &mut found)?;
    found.finish("a PyTorch pickle")
}

/// Runs the pickle behind the one that has been run.
fn next(machine: &mut Machine<'_>) -> Result<Id> {
    *machine = Machine::new(machine.bytes, machine.at, machine.place, false);
    machine.run()
}

fn is_little_endian(machine: &Machine<'_>, system: Id) -> bool {
    let Node::Dict(pairs) = machine.node(system) else { return false };
    pairs.iter().any(|(key, value)| {
        let (Node::Text(key) | Node::Bytes(key)) = machine.node(*key) else { return false };
        machine.text(key) == "little_endian" && matches!(machine.node(*value), Node::Bool(true))
    })
}

/// Where the storages of `object` lie behind the pickle of their keys.
fn runs(object: &Machine<'_>, keys: &Machine<'_>, list: Id) -> Result<Vec<Range<usize>>> {
    const COUNT_BYTES: usize = 8;
    let (file, place) = (object.bytes, object.place);
    let at = |key: &str| format!("{place}: storage `{}`", shown(key));
    // The elements' size is told where the storage is used: (bytes of the run, bytes of an element).
    let mut sizes: HashMap<&str, (usize, usize)> = HashMap::new();
    for storage in &object.storages {
        let key = object.text(&storage.key);
        let size = storage.kind.map_or(1, super::super::stored::FileType::bytes);
        let told = *sizes.entry(key).or_insert((storage.bytes, size));
        if told != (storage.bytes, size) {
            return Err(Error::new("a storage of two types").at(at(key)).expected("one"));
        }
    }
    let Node::List(list) = keys.node(list) else {
        return Err(Error::new("broken PyTorch pickle").at(place).expected("a list of storages"));
    };
    let mut places: HashMap<&str, Range<usize>> = HashMap::new();
    let mut next = keys.at;
    for key in list {
        let (Node::Text(key) | Node::Bytes(key)) = keys.node(*key) else {
            return Err(Error::new("broken PyTorch pickle").at(place).expected("storages' keys that are strings"));
        };
        let key = keys.text(key);
        let Some((bytes, size)) = sizes.get(key) else {
            return Err(Error::new("a storage that no tensor uses").at(at(key)).expected("none"));
        };
        let count =
            file.get(next..).and_then(|rest| rest.first_chunk::<COUNT_BYTES>()).copied().map(u64::from_le_bytes);
        let run = next + COUNT_BYTES..(next + COUNT_BYTES).saturating_add(*bytes);
        if count != Some((bytes / size) as u64) || run.end > file.len() {
            let error = Error::new("truncated storage").at(at(key)).expected(format!("{} elements", bytes / size));
            return Err(error
                .found(format!("{} bytes", file.len().saturating_sub(run.start)))
                .hint("downloading it again"));
        }
        next = run.end;
        if places.insert(key, run).is_some() {
            return Err(Error::new("a storage twice").at(at(key)).expected("one"));
        }
    }
    if next != file.len() {
        let error = Error::new("bytes after the last storage").at(place).expected(format!("{next} bytes"));
        return Err(error.found(file.len()).hint("downloading the file again"));
    }
    let run = |key: &str| places.get(key).cloned();
    let runs = object.storages.iter().map(|storage| {
        let key = object.text(&storage.key);
        run(key).ok_or_else(|| Error::new("a storage that is not there").at(at(key)))
    });
    runs.collect()
}
