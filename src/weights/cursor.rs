//! A path into a part's tensors: `w.at("conv1")` is the checkpoint key, the graph scope and the place in an error.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::{Source, missing_key_error, unexpected_key_error};
use crate::error::{Error, Result};
use crate::graph::{Graph, Layout, RowSource, WeightId, WeightSpec};
use crate::tensor::DType;

/// Which keys of a part a graph has asked for, and the first fault found on the way.
#[derive(Debug, Default)]
pub struct Claims {
    used: RefCell<BTreeSet<String>>,
    fault: RefCell<Option<Error>>,
}

/// A place in a part's tree of tensors.
#[derive(Clone, Copy)]
struct Root<'a> {
    part: usize,
    source: &'a dyn Source,
    claims: &'a Claims,
}

/// A cursor in a part's tree of tensors. Cheap to clone.
#[derive(Clone)]
pub struct Weights<'a> {
    root: Root<'a>,
    path: String,
}

impl std::fmt::Debug for Weights<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.path)
    }
}

impl<'a> Weights<'a> {
    /// The root of `source`, known to the graph as part number `part`.
    pub fn new(part: usize, source: &'a dyn Source, claims: &'a Claims) -> Self {
        Self { root: Root { part, source, claims }, path: String::new() }
    }

    /// The place `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { root: self.root, path }
    }

    /// The path: the common start of the keys below.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the tensor `name` stands below this place.
    pub fn has(&self, name: &str) -> bool {
        self.root.source.info(&self.at(name).path).is_some()
    }

    /// Claims the tensor at this place, which must have one of the `shapes`.
    pub fn claim(&self, shapes: &[&[u32]]) -> String {
        let Root { source, claims, .. } = self.root;
        claims.used.borrow_mut().insert(self.path.clone());
        let fault = match source.info_among(&self.path, shapes) {
            None => Some(missing_key_error(&source.describe(), &self.path, &source.names())),
            Some(info) => {
                let fits =
                    shapes.iter().any(|shape| shape.iter().map(|axis| *axis as usize).eq(info.shape.iter().copied()));
                let wanted: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
                (!fits).then(|| {
                    Error::new("tensor shape")
                        .at(format!("{}: `{}`", source.describe(), self.path))
                        .expected(wanted.join(" or "))
                        .found(format!("{:?}", info.shape))
                        .hint("a config.json that belongs to these weights")
                })
            }
        };
        if let Some(fault) = fault {
            claims.fault.borrow_mut().get_or_insert(fault);
        }
        self.path.clone()
    }

    /// Declares a packed matrix made of the rows of `keys`.
    pub fn matrix(
        &self,
        g: &mut Graph,
        keys: Vec<String>,
        rows: Vec<RowSource>,
        columns: Vec<Option<u32>>,
        taps: u32,
    ) -> WeightId {
        let dtype = g.precision();
        g.weight(WeightSpec { part: self.root.part, keys, layout: Layout::Matrix { rows, columns, taps, dtype } })
    }

    /// Declares a padded f32 vector made of the elements of `keys`.
    pub fn vector(&self, g: &mut Graph, keys: Vec<String>, rows: Vec<RowSource>) -> WeightId {
        g.weight(WeightSpec { part: self.root.part, keys, layout: Layout::Vector { rows } })
    }

    /// Declares the rows `first .. first + count` of the table at this place, already claimed.
    pub fn table(&self, g: &mut Graph, first: u32, count: u32, channels: u32, dtype: DType) -> WeightId {
        let layout = Layout::Table { first, count, channels, dtype };
        g.weight(WeightSpec { part: self.root.part, keys: vec![self.path.clone()], layout })
    }
}

impl Claims {
    /// Checks that every tensor of `source` was claimed, and that nothing claimed was missing or of another shape.
    pub fn finish(&self, source: &dyn Source) -> Result<()> {
        if let Some(fault) = self.fault.borrow().as_ref() {
            return Err(fault.clone());
        }
        let used = self.used.borrow();
        match source.names().into_iter().find(|name| !used.contains(name)) {
            None => Ok(()),
            Some(name) => {
                let known: Vec<String> = used.iter().cloned().collect();
                Err(unexpected_key_error(&source.describe(), &name, &known))
            }
        }
    }

    /// The keys claimed so far, sorted.
    pub fn used(&self) -> Vec<String> {
        self.used.borrow().iter().cloned().collect()
    }
}
