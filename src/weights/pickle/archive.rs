//! `torch.save` since PyTorch 1.6, and `torch.jit.save`: a zip archive with a pickle and a stored entry for each storage.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::super::shown;
use super::super::stored::{Collector, Contents};
use super::super::tensor_file::Format;
use super::machine::Machine;
use super::names::Names;
use crate::error::{Error, Result};

/// Pickles are smaller than this; a larger one is not read into memory.
const LARGEST_PICKLE: u64 = 64 << 20;

/// An archive's entries.
struct Archive<'a> {
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// Where each stored entry's bytes are; `None` for those that are compressed or encrypted.
    entries: HashMap<String, Option<Range<usize>>>,
    place: &'a str,
}

/// Reads and checks the archive `file`; `place` names it in errors.
pub(in super::super) fn open(file: &[u8], place: &str) -> Result<(Format, Contents)> {
    let mut archive = Archive::open(file, place)?;
    let root = archive.root()?;
    archive.check_byte_order(&root)?;
    let script = archive.entries.contains_key(&format!("{root}constants.pkl"));
    let mut found = Collector::new(place, file.len());
    archive.collect(&root, "data", "", script, &mut found)?;
    if script {
        archive.collect(&root, "constants", "CONSTANTS", script, &mut found)?;
    }
    let format = if script { Format::TorchScript } else { Format::TorchZip };
    Ok((format, found.finish("a PyTorch archive")?))
}

impl<'a> Archive<'a> {
    fn open(file: &'a [u8], place: &'a str) -> Result<Self> {
        let fault = |found: String| {
            let error =
                Error::new("broken zip archive").at(place).expected("a PyTorch checkpoint").found(shown(&found));
            error.hint("downloading or exporting the file again")
        };
        let mut zip = ZipArchive::new(Cursor::new(file)).map_err(|e| fault(e.to_string()))?;
        if zip.has_duplicate_names() {
            return Err(fault("two entries of one name".into()));
        }
        if zip.has_overlapping_entries().map_err(|e| fault(e.to_string()))? {
            return Err(fault("entries that overlap".into()));
        }
        let mut entries = HashMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| fault(e.to_string()))?;
            let name = entry.name().map_err(|e| fault(e.to_string()))?.into_owned();
            let stored = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
            let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
            let size = usize::try_from(entry.size()).ok();
            let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
            let range = match start.zip(end) {
                Some((start, end)) if end <= file.len() && entry.size() == entry.compressed_size() => Some(start..end),
                _ if stored => return Err(fault(format!("the entry {name}, which reaches beyond the file's end"))),
                _ => None,
            };
            entries.insert(name, range.filter(|_| stored));
        }
        Ok(Self { zip, entries, place })
    }

    /// The folder of the pickle, with its slash.
    fn root(&self) -> Result<String> {
        let mut roots = self.entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let mut at_top = roots.by_ref().filter(|root| root.matches('/').count() == 1 && root.ends_with('/'));
        match (at_top.next(), at_top.next()) {
            (Some(root), None) => Ok(root.to_string()),
            (None, _) => {
                let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
                names.sort_unstable();
                names.truncate(6);
                let error =
                    Error::new("not a PyTorch checkpoint").at(self.place).expected("a zip archive with data.pkl");
                Err(error.found(shown(&names.join(", "))))
            }
            (Some(_), Some(_)) => Err(Error::new("broken zip archive").at(self.place).expected("one data.pkl")),
        }
    }

    fn check_byte_order(&mut self, root: &str) -> Result<()> {
        let name = format!("{root}byteorder");
        if !self.entries.contains_key(&name) {
            return Ok(());
        }
        let order = self.read(&name)?;
        match order.trim_ascii() {
            b"little" => Ok(()),
            other => Err(Error::new("unsupported byte order")
                .at(self.place)
                .expected("little")
                .found(shown(&String::from_utf8_lossy(other)))
                .hint("saving the file on a little-endian machine")),
        }
    }

    /// A small entry, whose checksum is checked.
    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let place = format!("{}: {}", self.place, shown(name));
        let fault = |found: String| Error::new("broken zip archive").at(&place).found(shown(&found));
        let entry = self.zip.by_name(name).map_err(|e| fault(e.to_string()))?;
        let mut bytes = Vec::new();
        entry.take(LARGEST_PICKLE + 1).read_to_end(&mut bytes).map_err(|e| fault(e.to_string()))?;
        if bytes.len() as u64 > LARGEST_PICKLE {
            return Err(Error::new("pickle too large").at(place).expected(format!("at most {LARGEST_PICKLE} bytes")));
        }
        Ok(bytes)
    }

    /// Adds the tensors of `stem`.pkl, whose storages lie in the folder `stem`.
    fn collect(&mut self, root: &str, stem: &str, prefix: &str, script: bool, found: &mut Collector<'_>) -> Result<()> {
        let name = format!("{root}{stem}.pkl");
        let pickle = self.read(&name)?;
        let place = format!("{}: {}", self.place, shown(&name));
        let mut machine = Machine::new(&pickle, 0, &place, script);
        let top = machine.run()?;
        if machine.at != pickle.len() {
            return Err(machine.refuse(format_args!("{} bytes behind STOP", pickle.len() - machine.at)));
        }
        let mut runs = Vec::with_capacity(machine.storages.len());
        for storage in &machine.storages {
            let name = format!("{root}{stem}/{}", machine.text(&storage.key));
            let place = format!("{}: {}", self.place, shown(&name));
            let expected = format!("{} stored bytes", storage.bytes);
            let fault = || Error::new("storage").at(&place).expected(&expected);
            match self.entries.get(&name) {
                Some(Some(run)) if run.len() == storage.bytes => runs.push(run.clone()),
                Some(Some(run)) => return Err(fault().found(run.len()).hint("downloading the file again")),
                Some(None) => return Err(fault().found("a compressed entry").hint("the file as PyTorch wrote it")),
                None => return Err(fault().found("no such entry").hint("downloading the file again")),
            }
        }
        Names::new(&machine, &runs).collect(top, prefix, found)
    }
}
