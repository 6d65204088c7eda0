//! The files of a checkpoint in diffusers layout, in a directory or compiled into the program.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::tensor_file::TensorFile;
use crate::error::{Error, Result};

/// Configs and vocabularies are smaller than this; a larger one is not read into memory.
const LARGEST_TEXT: u64 = 64 << 20;

/// Where a checkpoint's files are.
pub(super) enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// In the program, by path relative to the checkpoint's root.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// A path relative to the root as errors show it.
    pub fn place(&self, path: &str) -> String {
        match self {
            Self::Directory(root) => root.join(path).display().to_string(),
            Self::Embedded(_) => format!("embedded:{path}"),
        }
    }

    /// Whether there is a folder of that name.
    pub fn has_folder(&self, folder: &str) -> bool {
        match self {
            Self::Directory(root) => root.join(folder).is_dir(),
            Self::Embedded(_) => !self.list(folder).is_empty(),
        }
    }

    /// The names of the files in a folder, sorted; empty if there is no such folder.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Directory(root) => std::fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.path().is_file())
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
            Self::Embedded(files) => {
                let in_folder = |path: &'static str| match path.rsplit_once('/') {
                    Some((parent, name)) => (parent == folder).then_some(name),
                    None => folder.is_empty().then_some(path),
                };
                files.iter().filter_map(|(path, _)| in_folder(path)).map(str::to_string).collect()
            }
        };
        names.sort();
        names
    }

    /// The bytes of a small file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        match self {
            Self::Directory(root) => read_small(&root.join(path)),
            Self::Embedded(_) => self.embedded(path).map(<[u8]>::to_vec),
        }
    }

    fn embedded(&self, path: &str) -> Result<&'static [u8]> {
        let found = match self {
            Self::Directory(_) => None,
            Self::Embedded(files) => files.iter().find(|(name, _)| *name == path),
        };
        found.map(|(_, bytes)| *bytes).ok_or_else(|| Error::new("missing file").at(self.place(path)))
    }

    /// A JSON file. Python also writes bare `-Infinity`, `Infinity` and `NaN` (a published DPM-Solver config has the
    /// first); they are handed on as the strings of that spelling.
    pub fn json(&self, path: &str) -> Result<Value> {
        let bytes = self.read(path)?;
        serde_json::from_slice(&bytes)
            .or_else(|e| std::str::from_utf8(&bytes).map_err(|_| e).and_then(|t| serde_json::from_str(&quote_words(t))))
            .map_err(|e| Error::new("broken file").at(self.place(path)).expected("JSON").found(e))
    }

    /// A file of weights.
    pub fn tensors(&self, path: &str) -> Result<TensorFile> {
        match self {
            Self::Directory(root) => TensorFile::open(&root.join(path)),
            Self::Embedded(_) => TensorFile::embedded(self.embedded(path)?, self.place(path)),
        }
    }

    /// The file or shards of a part's folder. `stem` is `model` for text encoders and `diffusion_pytorch_model` for the rest.
    /// safetensors are preferred to PyTorch's pickles, and the plain file to its `.fp16.` and `.bf16.` variants.
    pub fn weights(&self, folder: &str, stem: &str) -> Result<Vec<Arc<TensorFile>>> {
        let names = self.list(folder);
        let pickled = if stem == "model" { "pytorch_model" } else { stem };
        for (stem, ending) in [(stem, "safetensors"), (pickled, "bin")] {
            for variant in ["", ".fp16", ".bf16"] {
                let whole = format!("{stem}{variant}.{ending}");
                if names.contains(&whole) {
                    return Ok(vec![Arc::new(self.tensors(&format!("{folder}/{whole}"))?)]);
                }
                // Transformers and diffusers put the variant at different places, and have changed it over time.
                let indices = [
                    format!("{stem}{variant}.{ending}.index.json"),
                    format!("{stem}.{ending}{variant}.index.json"),
                    format!("{stem}.{ending}.index{variant}.json"),
                ];
                if let Some(index) = indices.iter().find(|name| names.contains(name)) {
                    return self.shards(folder, index);
                }
            }
        }
        let expected = format!("{stem}.safetensors or {pickled}.bin");
        let error = Error::new("missing weights").at(self.place(folder)).expected(expected);
        match names.iter().find(|name| [".msgpack", ".h5", ".ckpt"].iter().any(|ending| name.ends_with(ending))) {
            Some(name) => Err(error
                .found(format!("{name}, whose tensors are in another layout"))
                .hint("the PyTorch release of the model")),
            None => Err(error.found(listing(&names)).hint("downloading the part again")),
        }
    }

    /// The files that an index names; every tensor of the index must be where it says.
    fn shards(&self, folder: &str, index: &str) -> Result<Vec<Arc<TensorFile>>> {
        let path = format!("{folder}/{index}");
        let json = self.json(&path)?;
        let fault = |expected: &str| Error::new("broken index").at(self.place(&path)).expected(expected.to_string());
        let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| fault("an object `weight_map`"))?;
        let mut files: BTreeMap<&str, Arc<TensorFile>> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .filter(|name| !name.contains(['/', '\\']) && !name.starts_with(".."))
                .ok_or_else(|| fault("file names of the same folder").found(format!("`{tensor}`: {file}")))?;
            if !files.contains_key(file) {
                if !self.list(folder).iter().any(|name| name == file) {
                    let error = Error::new("missing shard").at(self.place(&format!("{folder}/{file}")));
                    return Err(error.expected(format!("the file that {index} names")).hint("downloading it again"));
                }
                files.insert(file, Arc::new(self.tensors(&format!("{folder}/{file}"))?));
            }
            if files[file].shape(tensor).is_none() {
                let error = Error::new("missing tensor").at(self.place(&format!("{folder}/{file}")));
                return Err(error.expected(format!("`{tensor}`, as {index} says")).hint("downloading the shard again"));
            }
        }
        if files.is_empty() {
            return Err(fault("at least one tensor"));
        }
        Ok(files.into_values().collect())
    }
}

/// Puts quotes around the words that Python's JSON has and JSON lacks, outside of strings.
fn quote_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (number, piece) in text.split('"').enumerate() {
        if number > 0 {
            out.push('"');
        }
        // An escaped quote shifts the count, and then the result is no more JSON than before.
        if number % 2 == 1 {
            out.push_str(piece);
        } else {
            let marked = piece.replace("-Infinity", "\"-\u{0}\"").replace("Infinity", "\"Infinity\"");
            out.push_str(&marked.replace('\u{0}', "Infinity").replace("NaN", "\"NaN\""));
        }
    }
    out
}

/// Reads a file that must be small.
fn read_small(path: &Path) -> Result<Vec<u8>> {
    let fault = |e: &std::io::Error| Error::io("cannot read the file", path, e);
    let file = std::fs::File::open(path).map_err(|e| fault(&e))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_TEXT + 1).read_to_end(&mut bytes).map_err(|e| fault(&e))?;
    if bytes.len() as u64 > LARGEST_TEXT {
        return Err(Error::new("file too large").at(path.display()).expected(format!("at most {LARGEST_TEXT} bytes")));
    }
    Ok(bytes)
}

/// File names for an error, at most a handful.
pub(super) fn listing(names: &[String]) -> String {
    match names {
        [] => "no files".to_string(),
        few if few.len() <= 6 => few.join(", "),
        many => format!("{}, ... ({} files)", many[..6].join(", "), many.len()),
    }
}
