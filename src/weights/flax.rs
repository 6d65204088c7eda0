//! A [`Source`] over flax parameters: kernels turned to PyTorch's order, and layers that lie in one tensor taken apart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::tensor_file::TensorFile;
use super::{Source, TensorInfo, missing_key_error, rows_error, shown};
use crate::error::{Error, Result};

/// Turned tensors that are kept, so that the panels of a matrix made of several do not turn them again and again.
const KEPT: usize = 4;

/// How a tensor's elements lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As the models take them.
    Plain,
    /// A dense layer's kernel [in, out], which becomes [out, in].
    Dense,
    /// A convolution's kernel [height, width, in, out], which becomes [out, in, height, width].
    Convolution,
}

/// One tensor.
struct View {
    file: Arc<TensorFile>,
    stored: String,
    /// The first of its elements in the file's tensor.
    first: usize,
    info: TensorInfo,
    order: Order,
}

/// A turned tensor, by the name that it has here.
type Turned = (String, Arc<Vec<f32>>);

/// Tensors of one part of a model under PyTorch's names.
pub struct FlaxSource {
    views: BTreeMap<String, View>,
    place: String,
    turned: Mutex<Vec<Turned>>,
}

impl FlaxSource {
    /// An empty source; `place` names it in errors.
    pub fn new(place: impl Into<String>) -> Self {
        Self { views: BTreeMap::new(), place: place.into(), turned: Mutex::default() }
    }

    /// Adds the tensor `stored` under `name`, or with `layer` that element of its first axis. What the last part of a flax
    /// name means (`kernel`, `scale`, `embedding`) is [`leaf`]'s matter.
    ///
    /// # Errors
    /// An integer tensor, a kernel of another number of axes, a layer that is not there, a name that is there already.
    pub fn add(&mut self, name: &str, file: &Arc<TensorFile>, stored: &str, layer: Option<usize>) -> Result<()> {
        let fault = |expected: String, found: String| {
            let place = format!("{}: `{}`", file.place(), shown(stored));
            Error::new("tensor shape").at(place).expected(expected).found(found)
        };
        let dtype = file.float_type(stored)?;
        let mut shape = file.shape(stored).unwrap_or_default().to_vec();
        let mut first = 0;
        if let Some(layer) = layer {
            if shape.first().is_none_or(|layers| layer >= *layers) {
                return Err(fault(format!("more than {layer} layers"), format!("{shape:?}")));
            }
            shape.remove(0);
            first = layer * shape.iter().product::<usize>();
        }
        let kernel = stored.ends_with("kernel");
        let order = match shape[..] {
            [input, output] if kernel => {
                shape = vec![output, input];
                Order::Dense
            }
            [height, width, input, output] if kernel => {
                shape = vec![output, input, height, width];
                Order::Convolution
            }
            _ if kernel => return Err(fault("a kernel of two or four axes".into(), format!("{shape:?}"))),
            _ => Order::Plain,
        };
        let info = TensorInfo { dtype, shape };
        let view = View { file: Arc::clone(file), stored: stored.into(), first, info, order };
        match self.views.insert(name.to_owned(), view) {
            None => Ok(()),
            Some(earlier) => Err(Error::new("two tensors for one name")
                .at(format!("{}: `{}`", self.place, shown(name)))
                .found(format!("`{}` and `{}`", shown(&earlier.stored), shown(stored)))),
        }
    }

    /// A kernel in PyTorch's order.
    fn turned(&self, name: &str, view: &View) -> Result<Arc<Vec<f32>>> {
        let mut kept = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = kept.iter().find(|(known, _)| known == name) {
            return Ok(Arc::clone(found));
        }
        let [outputs, inner] = view.info.matrix();
        let inputs = view.info.shape[1];
        let taps = inner.checked_div(inputs).unwrap_or(0);
        let mut stored = Vec::new();
        view.file.read(&view.stored, view.first..view.first + outputs * inner, &mut stored)?;
        let mut values = vec![0.0; stored.len()];
        for (at, row) in stored.chunks_exact(outputs.max(1)).enumerate() {
            let (tap, input) = (at / inputs, at % inputs);
            for (output, value) in row.iter().enumerate() {
                values[(output * inputs + input) * taps + tap] = *value;
            }
        }
        let values = Arc::new(values);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((name.to_owned(), Arc::clone(&values)));
        Ok(values)
    }
}

/// The last part of a name as PyTorch has it, for flax's `kernel`, `scale` and `embedding`.
pub fn leaf(name: &str) -> &str {
    match name {
        "kernel" | "scale" | "embedding" => "weight",
        other => other,
    }
}

impl Source for FlaxSource {
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
        let elements = rows.start * length..rows.end * length;
        if view.order == Order::Plain {
            return view.file.read(&view.stored, view.first + elements.start..view.first + elements.end, out);
        }
        out.extend_from_slice(&self.turned(name, view)?[elements]);
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.views.keys().cloned().collect()
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    #[test]
    fn kernels_are_turned_and_layers_taken_apart() {
        let values: Vec<f32> = (0..2 * 3 * 4).map(|value| value as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        let tensors =
            [("dense.kernel", view(&[2, 3, 4])), ("conv.kernel", view(&[2, 1, 3, 4])), ("n.scale", view(&[2, 12]))];
        let file = TensorFile::from_bytes(safetensors::serialize(tensors, None).unwrap(), "test").unwrap();
        let file = Arc::new(file);
        let mut source = FlaxSource::new("test");
        source.add("dense", &file, "dense.kernel", Some(1)).unwrap();
        source.add("conv", &file, "conv.kernel", None).unwrap();
        source.add("norm", &file, "n.scale", Some(1)).unwrap();
        assert!(source.add("x", &file, "dense.kernel", Some(2)).is_err());
        assert!(source.add("y", &file, "dense.kernel", None).is_err());
        let tensor = |name: &str| (&source as &dyn Source).tensor(name).unwrap();
        assert_eq!(source.info("dense").unwrap().shape, [4, 3]);
        assert_eq!(tensor("dense"), [12., 16., 20., 13., 17., 21., 14., 18., 22., 15., 19., 23.]);
        assert_eq!(source.info("conv").unwrap().shape, [4, 3, 2, 1]);
        assert_eq!(tensor("conv")[..6], [0., 12., 4., 16., 8., 20.]);
        assert_eq!(tensor("norm"), values[12..]);
        let mut row = Vec::new();
        source.rows("dense", 2..3, &mut row).unwrap();
        assert_eq!(row, [14., 18., 22.]);
    }
}
