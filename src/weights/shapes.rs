//! A [`Source`] of names and shapes alone: graphs can be built, planned and checked without weights.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Source, TensorInfo, shown};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Names and shapes without values.
pub struct ShapesSource {
    tensors: BTreeMap<String, TensorInfo>,
    place: String,
}

impl ShapesSource {
    /// Joins names and their types and shapes; `place` names the source in errors.
    pub fn new(place: impl Into<String>, tensors: impl IntoIterator<Item = (String, TensorInfo)>) -> Self {
        Self { tensors: tensors.into_iter().collect(), place: place.into() }
    }

    /// Reads a manifest: one line per tensor, `name<TAB>length,length,...` (a scalar has an empty list).
    pub fn from_manifest(place: impl Into<String>, text: &str) -> Result<Self> {
        let place = place.into();
        Ok(Self { tensors: parse_manifest(&place, text)?.into_iter().collect(), place })
    }
}

/// The tensors of a manifest in its order; see [`ShapesSource::from_manifest`].
pub fn parse_manifest(place: &str, text: &str) -> Result<Vec<(String, TensorInfo)>> {
    let line_fault = |number: usize, line: &str| {
        Error::new("manifest line").at(format!("{place}:{}", number + 1)).expected("name<TAB>lengths").found(line)
    };
    let mut tensors = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let (name, lengths) = line.split_once('\t').ok_or_else(|| line_fault(number, line))?;
        let shape = lengths.split(',').filter(|s| !s.is_empty()).map(str::parse).collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|_| line_fault(number, line))?;
        tensors.push((name.to_string(), TensorInfo { dtype: DType::F32, shape }));
    }
    Ok(tensors)
}

impl Source for ShapesSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).cloned()
    }

    fn rows(&self, name: &str, _rows: Range<usize>, _out: &mut Vec<f32>) -> Result<()> {
        let place = format!("{}: `{}`", self.place, shown(name));
        Err(Error::new("no values").at(place).expected("a checkpoint with weights").found("names and shapes only"))
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}
