//! Records on disk: one small JSON file for each adapter, driver, set of shaders and precision.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{ClassRecord, Outcome, Record};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, disk};
use crate::kernels::cases;
use crate::kernels::tuning::Class;
use crate::tensor::DType;

/// Version of the file format.
const FORMAT: u64 = 1;

/// Everything that a record depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Key(Map<String, Value>);

impl Key {
    /// The key of `gpu` as it was opened, for operands stored as `precision`. It holds the device's features, so that
    /// developer switches do not spoil the records of everyday runs, and a hash over every candidate's name and shaders.
    pub fn of(gpu: &Gpu, precision: DType) -> Self {
        let mut key: Map<String, Value> =
            gpu.identity().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let mut hash = Sha256::new();
        let mut seen = HashSet::new();
        for case in [DType::F32, DType::F16].into_iter().flat_map(cases::self_tests) {
            let Some((class, candidates)) = case.candidates(&gpu.limits()) else { continue };
            hash.update(class.to_string());
            for candidate in candidates {
                hash.update(&candidate.name);
                for variant in candidate.variants {
                    if !seen.contains(&variant) {
                        hash.update(variant.source());
                        seen.insert(variant);
                    }
                }
            }
        }
        key.insert("shaders".to_owned(), hex(&hash.finalize()).into());
        key.insert("precision".to_owned(), precision.name().into());
        Self(key)
    }

    /// The file of this key in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        let hash = Sha256::digest(Value::Object(self.0.clone()).to_string());
        folder.join(format!("tuning-{}.json", &hex(&hash)[..16]))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The record that was kept for `key`. What cannot be read is ignored with a warning.
pub fn load(folder: &Path, key: &Key) -> Option<Record> {
    let path = key.path(folder);
    let bytes = match disk::read(&path) {
        Ok(bytes) => bytes?,
        Err(fault) => {
            tracing::warn!("ignoring the tuning record {}: {fault}", path.display());
            return None;
        }
    };
    let record = parse(&bytes, key);
    if record.is_none() {
        tracing::warn!("ignoring the tuning record {}: it is damaged or not of this adapter", path.display());
    }
    record
}

/// Keeps a record for `key`.
///
/// # Errors
/// When the folder cannot be made or written to.
pub fn save(folder: &Path, key: &Key, record: &Record) -> Result<()> {
    let path = key.path(folder);
    let text = serde_json::to_vec_pretty(&render(key, record))
        .map_err(|fault| Error::new("cannot write the cache").at(path.display()).found(fault))?;
    disk::replace(&path, &text)
}

fn render(key: &Key, record: &Record) -> Value {
    let outcome = |outcome: &Outcome| {
        let Outcome { name, fault, seconds } = outcome;
        json!({ "name": name, "fault": fault, "seconds": seconds })
    };
    let class = |(class, record): (&Class, &ClassRecord)| {
        let candidates: Vec<Value> = record.candidates.iter().map(outcome).collect();
        json!({ "class": class.to_string(), "candidates": candidates })
    };
    let classes: Vec<Value> = record.classes.iter().map(class).collect();
    json!({ "format": FORMAT, "key": key.0, "timed": record.timed, "classes": classes })
}

/// `None` if it is no record, or another key's.
fn parse(bytes: &[u8], key: &Key) -> Option<Record> {
    let file: Value = serde_json::from_slice(bytes).ok()?;
    if file["format"] != FORMAT || file["key"].as_object()? != &key.0 {
        return None;
    }
    let outcome = |found: &Value| {
        let fault = found["fault"].as_str().map(str::to_owned);
        let seconds = found["seconds"].as_f64().filter(|seconds| *seconds > 0.0);
        Some(Outcome { name: found["name"].as_str()?.to_owned(), fault, seconds })
    };
    let all: Vec<Class> = [DType::F32, DType::F16].into_iter().flat_map(Class::all).collect();
    let class = |found: &Value| {
        let class = all.iter().find(|class| found["class"].as_str() == Some(&class.to_string()))?;
        let candidates = found["candidates"].as_array()?.iter().map(outcome).collect::<Option<_>>()?;
        Some((*class, ClassRecord { candidates }))
    };
    let classes = file["classes"].as_array()?.iter().map(class).collect::<Option<_>>()?;
    Some(Record { timed: file["timed"].as_bool()?, classes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key([("name".to_owned(), name.into())].into_iter().collect())
    }

    fn record() -> Record {
        let outcome = |name: &str, fault: Option<&str>, seconds| Outcome {
            name: name.into(),
            fault: fault.map(Into::into),
            seconds,
        };
        let candidates =
            vec![outcome("a", Some("\"wrong\""), Some(0.1)), outcome("b", None, Some(0.25)), outcome("c", None, None)];
        let class = Class::attention(40, 77, DType::F16);
        Record { timed: true, classes: [(class, ClassRecord { candidates })].into_iter().collect() }
    }

    #[test]
    fn what_was_kept_is_found_again_by_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("new").join("folder");
        assert_eq!(load(&inner, &key("x")), None);
        save(&inner, &key("x"), &record()).unwrap();
        assert_eq!(load(&inner, &key("x")), Some(record()));
        assert_eq!(load(&inner, &key("y")), None);
        std::fs::copy(key("x").path(&inner), key("y").path(&inner)).unwrap();
        assert_eq!(load(&inner, &key("y")), None, "another adapter's record under this one's name");
    }

    #[test]
    fn damaged_and_future_files_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &key("x"), &record()).unwrap();
        let path = key("x").path(folder.path());
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            "[]".to_owned(),
            whole.replace("\"format\": 1", "\"format\": 2"),
            whole.replace("few keys", "no keys"),
            whole.replace("\"timed\": true", "\"timed\": 1"),
        ] {
            assert_ne!(damaged, whole);
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(load(folder.path(), &key("x")), None, "{damaged}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(load(folder.path(), &key("x")), None);
        assert!(save(folder.path(), &key("x"), &record()).is_err());
    }

    #[test]
    fn writers_at_once_leave_a_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        save(folder.path(), &key("x"), &record()).unwrap();
                        assert_eq!(load(folder.path(), &key("x")), Some(record()));
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn faults_outweigh_times() {
        let tuning = record().tuning();
        assert_eq!(tuning.pick(Class::attention(40, 77, DType::F16), 3), 1);
        assert_eq!(record().faults().count(), 1);
    }
}
