//! Typed access to the fields of a config's JSON object, with errors that name the field.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A config's object and the path that names it in errors.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    place: &'a str,
}

/// Longer lists than any model's levels are a corrupt file.
const LONGEST_LIST: usize = 16;
/// More layers than any model has in one place are a corrupt file.
const MOST_LAYERS: usize = 256;
/// Larger lengths and counts than any model's are a corrupt file (and would overflow later products).
const LARGEST_COUNT: u64 = 1 << 24;

impl<'a> Fields<'a> {
    /// The fields of `config`, which must be an object.
    pub fn new(config: &'a Value, place: &'a str) -> Result<Self> {
        match config.as_object() {
            Some(object) => Ok(Self { object, place }),
            None => Err(Error::new("config").at(place).expected("a JSON object").found(brief(config))),
        }
    }

    /// The value of a field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null (rather than absent).
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    /// The error of a field whose value is not one of those that scumble implements.
    pub fn unsupported(&self, name: &str, expected: &str) -> Error {
        let found = self.object.get(name).map_or("nothing".to_string(), brief);
        Error::new("unsupported config").at(format!("{}: `{name}`", self.place)).expected(expected).found(found)
    }

    /// Errors unless the field is absent, null or one of `accepted`.
    pub fn neutral(&self, name: &str, accepted: &[Value]) -> Result<()> {
        let Some(value) = self.get(name) else { return Ok(()) };
        if accepted.iter().any(|a| a == value || (a.is_number() && a.as_f64() == value.as_f64())) {
            return Ok(());
        }
        let mut expected: Vec<String> = accepted.iter().map(brief).collect();
        if expected.is_empty() {
            expected.push("null".into());
        }
        Err(self.unsupported(name, &expected.join(" or ")))
    }

    /// A positive count or length; `default` where absent (an error if there is none).
    pub fn count(&self, name: &str, default: impl Into<Option<usize>>) -> Result<usize> {
        match (self.get(name), default.into()) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.unsupported(name, "a positive integer")),
            (Some(value), _) => count(value).ok_or_else(|| self.unsupported(name, "a positive integer")),
        }
    }

    /// A count of layers, each of which will have tensors.
    pub fn layers(&self, name: &str, default: usize) -> Result<usize> {
        let layers = self.count(name, default)?;
        self.few_layers(name, &[layers])?;
        Ok(layers)
    }

    /// Errors if there are more layers than a model can have.
    pub fn few_layers(&self, name: &str, layers: &[usize]) -> Result<()> {
        if layers.iter().all(|n| *n <= MOST_LAYERS) {
            Ok(())
        } else {
            Err(self.unsupported(name, &format!("at most {MOST_LAYERS} layers")))
        }
    }

    /// A positive count that may be absent or null.
    pub fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        self.get(name).map(|_| self.count(name, None)).transpose()
    }

    /// A finite number.
    pub fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().filter(|x| (*x as f32).is_finite()).ok_or_else(|| self.unsupported(name, "a number"))
            }
        }
    }

    /// A positive number.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64> {
        let value = self.number(name, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.unsupported(name, "a positive number")) }
    }

    /// true or false; null is false, as in Python.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None if self.is_null(name) => Ok(false),
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.unsupported(name, "true or false")),
        }
    }

    /// A word.
    pub fn word(&self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.unsupported(name, "a string")),
        }
    }

    /// A list of counts, one per level.
    pub fn counts(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let fault = || self.unsupported(name, "a list of positive integers");
        match self.get(name) {
            None => Ok(default.to_vec()),
            Some(value) => {
                let list = value.as_array().filter(|l| !l.is_empty() && l.len() <= LONGEST_LIST).ok_or_else(fault)?;
                list.iter().map(|v| count(v).ok_or_else(fault)).collect()
            }
        }
    }

    /// A count for all levels, or a list with one per level.
    pub fn per_level(&self, name: &str, default: usize, levels: usize) -> Result<Vec<usize>> {
        match self.get(name) {
            Some(Value::Array(_)) => {
                let list = self.counts(name, &[])?;
                if list.len() == levels {
                    Ok(list)
                } else {
                    Err(self.unsupported(name, &format!("a list with one entry for each of the {levels} levels")))
                }
            }
            _ => Ok(vec![self.count(name, default)?; levels]),
        }
    }

    /// A list of words, each of which `read` understands; `expected` lists those.
    pub fn words<T>(
        &self,
        name: &str,
        default: &[&str],
        read: impl Fn(&str) -> Option<T>,
        expected: &str,
    ) -> Result<Vec<T>> {
        let fault = || self.unsupported(name, expected);
        match self.get(name) {
            None => default.iter().map(|word| read(word).ok_or_else(fault)).collect(),
            Some(value) => {
                let list = value.as_array().filter(|l| !l.is_empty() && l.len() <= LONGEST_LIST).ok_or_else(fault)?;
                list.iter().map(|v| v.as_str().and_then(&read).ok_or_else(fault)).collect()
            }
        }
    }
}

/// A value as a count of things, at least one.
pub(super) fn count(value: &Value) -> Option<usize> {
    value.as_u64().filter(|n| (1..=LARGEST_COUNT).contains(n)).map(|n| n as usize)
}

/// A value's JSON, cut to a length that fits an error.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
