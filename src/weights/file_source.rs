//! A [`Source`] over one or several safetensors files, each tensor under the name and in the layout the models use.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::tensor_file::TensorFile;
use super::{Source, TensorInfo, missing_key_error, rows_error, shown};
use crate::error::{Error, Result};

/// How a view's rows lie in the stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Row-major from this element on.
    From(usize),
    /// The stored matrix with its axes swapped.
    Transposed,
}

/// A named tensor: a stored one, renamed, sliced by rows, reshaped or transposed.
#[derive(Clone)]
struct View {
    file: Arc<TensorFile>,
    stored: String,
    info: TensorInfo,
    layout: Layout,
}

/// Tensors of one part of a model in one or several files.
pub struct FileSource {
    views: BTreeMap<String, View>,
    place: String,
}

/// What to do with a stored tensor, beside giving it another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Keep,
    /// Part `.0` of `.1` equal parts of the rows (OpenCLIP stores query, key and value as one tensor).
    RowPart(usize, usize),
    /// Swap the axes of a matrix (OpenCLIP's `text_projection`).
    Transpose,
    /// Drop trailing axes of length 1 until two are left (1x1 convolutions that are linear layers here).
    Squeeze,
    /// Drop leading axes of length 1 until two are left (tables that are stored as a batch of one).
    SqueezeFront,
}

/// What `change` needs, if `shape` does not have it.
fn check_change(shape: &[usize], change: Change) -> std::result::Result<(), String> {
    match change {
        Change::RowPart(_, parts) if !shape.first().is_some_and(|rows| rows.is_multiple_of(parts)) => {
            Err(format!("rows divisible by {parts}"))
        }
        Change::Transpose if shape.len() != 2 => Err("a matrix".into()),
        Change::Squeeze if changed_shape(shape, change).len() != 2 => Err("a matrix or a 1x1 convolution".into()),
        Change::SqueezeFront if changed_shape(shape, change).len() != 2 => Err("a matrix".into()),
        _ => Ok(()),
    }
}

/// The shape that `change` makes of `shape`, if it fits.
pub fn changed_shape(shape: &[usize], change: Change) -> Vec<usize> {
    let mut shape = shape.to_vec();
    match change {
        Change::Keep => {}
        Change::RowPart(_, parts) => shape.iter_mut().take(1).for_each(|rows| *rows /= parts),
        Change::Transpose => shape.reverse(),
        Change::Squeeze => {
            while shape.len() > 2 && shape.last() == Some(&1) {
                shape.pop();
            }
        }
        Change::SqueezeFront => {
            while shape.len() > 2 && shape.first() == Some(&1) {
                shape.remove(0);
            }
        }
    }
    shape
}

impl FileSource {
    /// An empty source; `place` names it in errors.
    pub fn new(place: impl Into<String>) -> Self {
        Self { views: BTreeMap::new(), place: place.into() }
    }

    /// Every tensor of `file` under its own name; see [`FileSource::add_all`].
    pub fn whole(file: Arc<TensorFile>) -> Result<Self> {
        let mut source = Self::new(file.place());
        source.add_all(&file, |name| Some((name.to_string(), Change::Keep)))?;
        Ok(source)
    }

    /// Adds every tensor of `file` for which `map` has a name and a change; the others are left out.
    pub fn add_all(&mut self, file: &Arc<TensorFile>, map: impl Fn(&str) -> Option<(String, Change)>) -> Result<()> {
        for stored in file.names() {
            if let Some((name, change)) = map(stored) {
                self.add(&name, file, stored, change)?;
            }
        }
        Ok(())
    }

    /// Adds the tensor `stored` of `file`, changed, under `name`. Errors: an integer tensor, a shape that the change does
    /// not fit, a name that is there already.
    pub fn add(&mut self, name: &str, file: &Arc<TensorFile>, stored: &str, change: Change) -> Result<()> {
        let place = || format!("{}: `{}`", file.place(), shown(stored));
        let dtype = file.float_type(stored)?;
        let shape = file.shape(stored).unwrap_or_default();
        check_change(shape, change)
            .map_err(|e| Error::new("tensor shape").at(place()).expected(e).found(shown(&format!("{shape:?}"))))?;
        let shape = changed_shape(shape, change);
        let layout = match change {
            Change::Keep | Change::Squeeze | Change::SqueezeFront => Layout::From(0),
            Change::RowPart(part, _) => Layout::From(part * shape.iter().product::<usize>()),
            Change::Transpose => Layout::Transposed,
        };
        let view = View { file: Arc::clone(file), stored: stored.into(), info: TensorInfo { dtype, shape }, layout };
        match self.views.insert(name.to_string(), view) {
            None => Ok(()),
            Some(earlier) => Err(Error::new("two tensors for one name")
                .at(format!("{}: `{}`", self.place, shown(name)))
                .expected("one")
                .found(format!("`{}` and `{}`", shown(&earlier.stored), shown(stored)))),
        }
    }

    /// The name in the file of the tensor that is called `name` here.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        self.views.get(name).map(|view| view.stored.as_str())
    }
}

impl Source for FileSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.views.get(name).map(|view| view.info.clone())
    }

    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let view = self.views.get(name).ok_or_else(|| missing_key_error(&self.place, name, &self.names()))?;
        let [count, length] = view.info.matrix();
        if rows.start > rows.end || rows.end > count {
            return Err(rows_error(&self.place, name, &rows, count));
        }
        match view.layout {
            Layout::From(first) => {
                view.file.read(&view.stored, first + rows.start * length..first + rows.end * length, out)
            }
            Layout::Transposed => view.file.read_columns(&view.stored, rows, out),
        }
    }

    fn names(&self) -> Vec<String> {
        self.views.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
#[path = "file_source_tests.rs"]
mod tests;
