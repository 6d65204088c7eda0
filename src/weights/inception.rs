//! Files of FID's Inception v3, with BatchNorm folded into its convolutions.
//!
//! The network of 2015-12-05 is published as a state of torchvision's module (pytorch-fid's
//! `pt_inception-2015-12-05-6726825d.pth`, the same as torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`), and as
//! a TorchScript module with names of its own (`inception-2015-12-05.pt`, which clean-fid reads).

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::file_source::{Change, FileSource};
use super::tensor_file::TensorFile;
use super::{Source, TensorInfo, rows_error};
use crate::error::{Error, Result};

/// Epsilon of every BatchNorm of the network.
const EPS: f64 = 1e-3;
/// The classes of the network's classifier, which FID does not use; torchvision's own weights have 1000.
const CLASSES: usize = 1008;

/// Opens a file of the network in either layout, whatever its format.
///
/// What is read under torchvision's names and what is left out: the classifier (`fc`, `output`), because features are
/// taken before it, and BatchNorm's `num_batches_tracked`, which only training needs.
///
/// # Errors
/// A file that cannot be read, or another network, among them torchvision's Inception v3.
pub fn open(path: &Path) -> Result<Folded> {
    let file = Arc::new(TensorFile::open(path)?);
    let script = file.names().any(|name| name.starts_with("layers."));
    let place = file.place().to_owned();
    if let Some(name) = file.names().find(|name| name.starts_with("AuxLogits.")) {
        return Err(other_network(&place, format!("torchvision's, which has `{name}`")));
    }
    let classes = ["fc.weight", "output.weight"].into_iter().find_map(|name| file.shape(name)?.first().copied());
    if let Some(found) = classes.filter(|classes| *classes != CLASSES) {
        return Err(other_network(&place, format!("one of {found} classes")));
    }
    let mut source = FileSource::new(place);
    source.add_all(&file, |name| {
        let name = if script { script_name(name) } else { state_name(name) };
        name.map(|name| (name, Change::Keep))
    })?;
    Ok(Folded::new(Box::new(source), !script))
}

fn other_network(place: &str, found: String) -> Error {
    Error::new("another Inception network")
        .at(place)
        .expected(format!("the one of 2015-12-05, with {CLASSES} classes"))
        .found(found)
        .hint("pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid")
}

/// The name here of a tensor in torchvision's layout; `None` for what is left out.
pub fn state_name(name: &str) -> Option<String> {
    let unused = name.starts_with("fc.") || name.ends_with(".num_batches_tracked");
    (!unused).then(|| name.to_owned())
}

/// The name here of a tensor of the TorchScript module, whose names are those of the TensorFlow graph (`tower_1/conv_2`);
/// `None` for what is left out. A name of neither kind stays, so that it is found unexpected.
pub fn script_name(name: &str) -> Option<String> {
    if name.starts_with("output.") || name.starts_with("CONSTANTS") {
        return None;
    }
    Some(layer_name(name).unwrap_or_else(|| name.to_owned()))
}

fn layer_name(name: &str) -> Option<String> {
    let (path, leaf) = name.strip_prefix("layers.")?.rsplit_once('.')?;
    let leaf = match leaf {
        "weight" => "conv.weight",
        "beta" => "bn.bias",
        "mean" => "bn.running_mean",
        "var" => "bn.running_var",
        _ => return None,
    };
    let (block, layer) = match path.split_once('.') {
        None => (stem(path)?, String::new()),
        Some((block, layer)) => {
            let (block, layers) = mixed(block)?;
            let layer = layer.replace('.', "_");
            (block, format!(".{}", layers.iter().find(|(script, _)| *script == layer)?.1))
        }
    };
    Some(format!("{block}{layer}.{leaf}"))
}

fn stem(name: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 5] = [
        ("conv", "Conv2d_1a_3x3"),
        ("conv_1", "Conv2d_2a_3x3"),
        ("conv_2", "Conv2d_2b_3x3"),
        ("conv_3", "Conv2d_3b_1x1"),
        ("conv_4", "Conv2d_4a_3x3"),
    ];
    NAMES.iter().find(|(script, _)| *script == name).map(|(_, name)| *name)
}

type Layers = &'static [(&'static str, &'static str)];

const BLOCK_A: Layers = &[
    ("conv", "branch1x1"),
    ("tower_conv", "branch5x5_1"),
    ("tower_conv_1", "branch5x5_2"),
    ("tower_1_conv", "branch3x3dbl_1"),
    ("tower_1_conv_1", "branch3x3dbl_2"),
    ("tower_1_conv_2", "branch3x3dbl_3"),
    ("tower_2_conv", "branch_pool"),
];
const BLOCK_B: Layers = &[
    ("conv", "branch3x3"),
    ("tower_conv", "branch3x3dbl_1"),
    ("tower_conv_1", "branch3x3dbl_2"),
    ("tower_conv_2", "branch3x3dbl_3"),
];
const BLOCK_C: Layers = &[
    ("conv", "branch1x1"),
    ("tower_conv", "branch7x7_1"),
    ("tower_conv_1", "branch7x7_2"),
    ("tower_conv_2", "branch7x7_3"),
    ("tower_1_conv", "branch7x7dbl_1"),
    ("tower_1_conv_1", "branch7x7dbl_2"),
    ("tower_1_conv_2", "branch7x7dbl_3"),
    ("tower_1_conv_3", "branch7x7dbl_4"),
    ("tower_1_conv_4", "branch7x7dbl_5"),
    ("tower_2_conv", "branch_pool"),
];
const BLOCK_D: Layers = &[
    ("tower_conv", "branch3x3_1"),
    ("tower_conv_1", "branch3x3_2"),
    ("tower_1_conv", "branch7x7x3_1"),
    ("tower_1_conv_1", "branch7x7x3_2"),
    ("tower_1_conv_2", "branch7x7x3_3"),
    ("tower_1_conv_3", "branch7x7x3_4"),
];
const BLOCK_E: Layers = &[
    ("conv", "branch1x1"),
    ("tower_conv", "branch3x3_1"),
    ("tower_mixed_conv", "branch3x3_2a"),
    ("tower_mixed_conv_1", "branch3x3_2b"),
    ("tower_1_conv", "branch3x3dbl_1"),
    ("tower_1_conv_1", "branch3x3dbl_2"),
    ("tower_1_mixed_conv", "branch3x3dbl_3a"),
    ("tower_1_mixed_conv_1", "branch3x3dbl_3b"),
    ("tower_2_conv", "branch_pool"),
];

fn mixed(name: &str) -> Option<(&'static str, Layers)> {
    const BLOCKS: [(&str, &str, Layers); 11] = [
        ("mixed", "Mixed_5b", BLOCK_A),
        ("mixed_1", "Mixed_5c", BLOCK_A),
        ("mixed_2", "Mixed_5d", BLOCK_A),
        ("mixed_3", "Mixed_6a", BLOCK_B),
        ("mixed_4", "Mixed_6b", BLOCK_C),
        ("mixed_5", "Mixed_6c", BLOCK_C),
        ("mixed_6", "Mixed_6d", BLOCK_C),
        ("mixed_7", "Mixed_6e", BLOCK_C),
        ("mixed_8", "Mixed_7a", BLOCK_D),
        ("mixed_9", "Mixed_7b", BLOCK_E),
        ("mixed_10", "Mixed_7c", BLOCK_E),
    ];
    BLOCKS.iter().find(|(script, ..)| *script == name).map(|(_, name, layers)| (*name, *layers))
}

/// A source whose `*.conv.weight` are multiplied by the scale of the `*.bn` beside them, and whose `*.bn.bias` are the whole
/// shift that is left then: y = w x * s + (bias - mean * s), s = weight / sqrt(var + eps). All else is as in the file.
pub struct Folded {
    inner: Box<dyn Source>,
    /// Whether BatchNorm has a `weight`; in the TorchScript module it is 1 everywhere and not stored.
    scaled: bool,
}

impl Folded {
    /// Over tensors under torchvision's names.
    pub fn new(inner: Box<dyn Source>, scaled: bool) -> Self {
        Self { inner, scaled }
    }

    /// Of the convolution at `path`, output channels `rows`: s.
    fn scales(&self, path: &str, rows: &Range<usize>) -> Result<Vec<f64>> {
        let variances = self.part(path, "running_var", rows)?;
        let weights = if self.scaled { self.part(path, "weight", rows)? } else { vec![1.0; rows.len()] };
        if let Some(bad) = variances.iter().find(|variance| variance.is_nan() || **variance < 0.0) {
            let place = format!("{}: `{path}.bn.running_var`", self.inner.describe());
            return Err(Error::new("a variance below zero").at(place).expected("0 or more").found(bad));
        }
        Ok(weights.iter().zip(variances).map(|(weight, variance)| weight / (variance + EPS).sqrt()).collect())
    }

    fn part(&self, path: &str, part: &str, rows: &Range<usize>) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        self.inner.rows(&format!("{path}.bn.{part}"), rows.clone(), &mut values)?;
        Ok(values.into_iter().map(f64::from).collect())
    }
}

impl Source for Folded {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        match name.strip_suffix(".bn.weight") {
            Some(path) if !self.scaled => self.inner.info(&format!("{path}.bn.bias")),
            _ => self.inner.info(name),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        if let Some(path) = name.strip_suffix(".conv.weight") {
            let scales = self.scales(path, &rows)?;
            self.inner.rows(name, rows, out)?;
            let length = out.len() / scales.len().max(1);
            for (row, scale) in out.chunks_exact_mut(length.max(1)).zip(scales) {
                row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            }
            return Ok(());
        }
        if let Some(path) = name.strip_suffix(".bn.bias") {
            let scales = self.scales(path, &rows)?;
            let (biases, means) = (self.part(path, "bias", &rows)?, self.part(path, "running_mean", &rows)?);
            let shift = |((bias, mean), scale): ((f64, f64), f64)| (bias - mean * scale) as f32;
            out.clear();
            out.extend(biases.into_iter().zip(means).zip(scales).map(shift));
            return Ok(());
        }
        match self.info(name) {
            Some(info) if name.ends_with(".bn.weight") && !self.scaled => {
                let count = info.matrix()[0];
                if rows.start > rows.end || rows.end > count {
                    return Err(rows_error(&self.describe(), name, &rows, count));
                }
                out.clear();
                out.resize(rows.len(), 1.0);
                Ok(())
            }
            _ => self.inner.rows(name, rows, out),
        }
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use crate::weights::RandomSource;

    /// One convolution of five channels, whose variances are not below zero unless asked for.
    struct Layer {
        values: RandomSource,
        sign: f32,
    }

    impl Layer {
        fn new(sign: f32) -> Self {
            let tensor =
                |name: &str, shape: &[usize]| (name.to_owned(), TensorInfo { dtype: DType::F32, shape: shape.into() });
            let parts = ["weight", "bias", "running_mean", "running_var"];
            let vectors = parts.map(|part| tensor(&format!("a.bn.{part}"), &[5]));
            let tensors = vectors.into_iter().chain([tensor("a.conv.weight", &[5, 3, 1, 2])]);
            Self { values: RandomSource::new(4, tensors), sign }
        }
    }

    impl Source for Layer {
        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.values.info(name)
        }

        fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
            self.values.rows(name, rows, out)?;
            if name.ends_with("running_var") {
                out.iter_mut().for_each(|value| *value = self.sign * (10.0 * value.abs() + 0.1));
            }
            Ok(())
        }

        fn names(&self) -> Vec<String> {
            self.values.names()
        }

        fn describe(&self) -> String {
            "a layer".to_owned()
        }
    }

    fn read(source: &dyn Source, name: &str) -> Vec<f64> {
        source.tensor(name).unwrap().into_iter().map(f64::from).collect()
    }

    #[test]
    fn a_folded_convolution_is_the_convolution_and_the_norm() {
        let plain = Layer::new(1.0);
        let [gamma, beta, mean, var] =
            ["weight", "bias", "running_mean", "running_var"].map(|part| read(&plain, &format!("a.bn.{part}")));
        let weight = read(&plain, "a.conv.weight");
        let x = [0.3, -1.2, 2.0, 0.7, -0.4, 1.1];
        let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        for scaled in [true, false] {
            let folded = Folded::new(Box::new(Layer::new(1.0)), scaled);
            for row in 0..5 {
                let (mut rows, mut bias) = (Vec::new(), Vec::new());
                folded.rows("a.conv.weight", row..row + 1, &mut rows).unwrap();
                folded.rows("a.bn.bias", row..row + 1, &mut bias).unwrap();
                let gamma = if scaled { gamma[row] } else { 1.0 };
                let plain = dot(&weight[6 * row..6 * row + 6]);
                let want = (plain - mean[row]) / (var[row] + 1e-3).sqrt() * gamma + beta[row];
                let rows: Vec<f64> = rows.into_iter().map(f64::from).collect();
                let got = dot(&rows) + f64::from(bias[0]);
                // Six products of at most 20 and a shift, each rounded once to f32.
                assert!((got - want).abs() <= 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn a_variance_below_zero_is_refused() {
        let folded = Folded::new(Box::new(Layer::new(-1.0)), true);
        for name in ["a.bn.bias", "a.conv.weight"] {
            let fault = folded.rows(name, 0..5, &mut Vec::new()).unwrap_err().to_string();
            assert!(fault.contains("a layer: `a.bn.running_var`"), "{fault}");
        }
    }

    #[test]
    fn a_scale_that_is_not_stored_is_one() {
        let tensors = |name: &str| (name.to_owned(), TensorInfo { dtype: DType::F32, shape: vec![3] });
        let folded = Folded::new(Box::new(RandomSource::new(1, [tensors("a.bn.bias")])), false);
        assert_eq!(folded.info("a.bn.weight").unwrap().shape, [3]);
        assert_eq!(read(&folded, "a.bn.weight"), [1.0; 3]);
        assert!(folded.rows("a.bn.weight", 1..4, &mut Vec::new()).is_err());
        assert!(folded.info("b.bn.weight").is_none());
    }

    #[test]
    fn names_of_the_script_are_found() {
        for (script, name) in [
            ("layers.conv_3.weight", "Conv2d_3b_1x1.conv.weight"),
            ("layers.mixed_2.tower.conv_1.beta", "Mixed_5d.branch5x5_2.bn.bias"),
            ("layers.mixed_3.conv.mean", "Mixed_6a.branch3x3.bn.running_mean"),
            ("layers.mixed_7.tower_1.conv_4.var", "Mixed_6e.branch7x7dbl_5.bn.running_var"),
            ("layers.mixed_10.tower_1_mixed_conv_1.weight", "Mixed_7c.branch3x3dbl_3b.conv.weight"),
            ("layers.mixed_11.conv.weight", "layers.mixed_11.conv.weight"),
        ] {
            assert_eq!(script_name(script).as_deref(), Some(name));
        }
        assert_eq!(script_name("output.bias"), None);
        assert_eq!(state_name("fc.weight"), None);
        assert_eq!(state_name("Conv2d_1a_3x3.bn.num_batches_tracked"), None);
    }
}
