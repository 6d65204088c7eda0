//! Storages and tensors as a pickle describes them, checked against each other.

use std::ops::Range;

use super::super::stored::{Entry, FileType, Layout, byte_size};

/// A run of elements in the file, or (`view`) a part of one.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    /// Its name, in the pickle.
    pub key: Range<usize>,
    /// Element type; `None` for bytes whose type the tensor tells.
    pub kind: Option<FileType>,
    /// Bytes of the whole run.
    pub bytes: usize,
    /// Where in the run the storage begins, in bytes.
    start: usize,
    /// Bytes of the storage.
    length: usize,
}

impl Storage {
    /// A storage of `count` elements (bytes, where the type is open); `view`: only `view.1` of them from `view.0` on.
    pub fn new(
        key: Range<usize>,
        kind: Option<FileType>,
        count: usize,
        view: Option<(usize, usize)>,
    ) -> Result<Self, String> {
        let size = kind.map_or(1, FileType::bytes);
        let too_large = || format!("{count} elements, more than any file has");
        let bytes = count.checked_mul(size).ok_or_else(too_large)?;
        let (offset, length) = view.unwrap_or((0, count));
        if offset.checked_add(length).is_none_or(|end| end > count) {
            return Err(format!("a view of {length} elements from {offset} on of {count}"));
        }
        Ok(Self { key, kind, bytes, start: offset * size, length: length * size })
    }
}

/// A view of a storage's elements.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// Index of the storage.
    pub storage: usize,
    kind: FileType,
    /// Bytes from the run's begin to the first element.
    start: usize,
    shape: Vec<usize>,
    /// In bytes.
    strides: Vec<usize>,
}

impl Tensor {
    /// Checks that every element lies in the storage. `offset` and `strides` count elements.
    pub fn new(
        index: usize,
        storage: &Storage,
        kind: FileType,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("{} axes and {} strides", shape.len(), strides.len()));
        }
        let size = kind.bytes();
        let total = byte_size(&shape, kind).ok_or_else(|| format!("the shape {shape:?}, which overflows"))?;
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |last, (&axis, &stride)| axis.saturating_sub(1).checked_mul(stride)?.checked_add(last));
        let end = last.and_then(|last| last.checked_add(usize::from(total > 0))).and_then(|end| end.checked_mul(size));
        match end {
            Some(end) if total == 0 || end <= storage.length => {}
            _ => {
                let count = storage.length / size;
                return Err(format!("elements beyond its storage's {count} (shape {shape:?}, strides {strides:?})"));
            }
        }
        // An empty tensor's offset and strides may point anywhere.
        let (offset, strides) = if total == 0 { (0, vec![0; shape.len()]) } else { (offset, strides) };
        let strides = strides.into_iter().zip(&shape).map(|(stride, axis)| if *axis == 1 { 0 } else { stride * size });
        let strides = strides.collect();
        Ok(Self { storage: index, kind, start: storage.start + offset * size, shape, strides })
    }

    /// The tensor in a file that has the storage's run at `run`.
    pub fn entry(&self, run: &Range<usize>) -> Entry {
        let mut next = self.kind.bytes();
        let mut contiguous = true;
        for (axis, stride) in self.shape.iter().zip(&self.strides).rev().filter(|(axis, _)| **axis != 1) {
            contiguous &= *stride == next;
            next *= (*axis).max(1);
        }
        let start = run.start + self.start;
        let layout = if self.shape.contains(&0) {
            Layout::Plain(run.start..run.start)
        } else if contiguous {
            Layout::Plain(start..start + next)
        } else {
            Layout::Strided { start, strides: self.strides.clone() }
        };
        Entry { file_type: self.kind, shape: self.shape.clone(), layout }
    }
}
