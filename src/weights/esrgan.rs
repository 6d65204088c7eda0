//! Opening upscalers of ESRGAN's family: one file, whose tensors' names and shapes tell everything.
//!
//! Three families of names are about, for the same network: Real-ESRGAN's and BasicSR's (`body.0.rdb1.conv1`), those of
//! ESRGAN's later files and BSRGAN's (`RRDB_trunk.0.RDB1.conv1`), and those of the first ones (`model.1.sub.0.RDB1.conv1.0`), in
//! which the layers are numbered through. All are translated to the first family.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Part, name_of};
use super::file_source::{Change, FileSource};
use super::shown;
use super::tensor_file::TensorFile;
use crate::error::{Error, Result};
use crate::models::config::RrdbConfig;

/// What training tools put in front of every name.
const PREFIXES: [&str; 6] = ["params_ema.", "params-ema.", "params.", "state_dict.", "module.", "netG."];

/// An upscaler and where it comes from.
pub struct EsrganCheckpoint {
    /// The file's name without its ending.
    pub name: String,
    /// The network.
    pub network: Part<RrdbConfig>,
    /// The file.
    pub file: PathBuf,
}

impl EsrganCheckpoint {
    /// Opens the file at `path`. Its header is read; tensors are not.
    ///
    /// # Errors
    /// A broken file; one of another kind of upscaler, or none.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(&Arc::new(TensorFile::open(path)?), name_of(path), path.to_path_buf())
    }

    /// The same of an opened file.
    ///
    /// # Errors
    /// As [`EsrganCheckpoint::open`].
    pub fn from_file(file: &Arc<TensorFile>, name: String, path: PathBuf) -> Result<Self> {
        let names: Vec<&str> = file.names().collect();
        let mut shapes: BTreeMap<String, &[usize]> = BTreeMap::new();
        let mut source = FileSource::new(file.place());
        for (stored, name) in translate(&names, file.place())? {
            shapes.insert(name.clone(), file.shape(stored).unwrap_or_default());
            source.add(&name, file, stored, Change::Keep)?;
        }
        let config = RrdbConfig::of(|name| shapes.get(name).copied(), file.place())?;
        Ok(Self { name, network: Part { config, weights: Box::new(source) }, file: path })
    }
}

/// Whether these are the names of such a network's tensors.
pub fn is_esrgan<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.to_ascii_lowercase().contains("rdb1.conv1."))
}

/// What other upscaler in one file has tensors of these names.
pub fn other_upscaler(names: &[&str]) -> Option<&'static str> {
    let first = common_prefix(names);
    let has = |part: &str| names.iter().any(|name| name[first..].starts_with(part));
    let plain = |name: &&str| name[first..].strip_prefix("body.").is_some_and(|rest| rest.matches('.').count() == 1);
    if !names.is_empty() && names.iter().all(plain) {
        return Some("a compact upscaler (SRVGGNetCompact, as realesr-general and realesr-animevideo are)");
    }
    if has("layers.0.residual_group.") {
        return Some("an upscaler of transformers (SwinIR, HAT)");
    }
    if has("model.1.sub.0.res.") {
        return Some("SRResNet");
    }
    None
}

/// Bytes that every name begins with and that belong to none.
fn common_prefix(names: &[&str]) -> usize {
    let mut length = 0;
    while let Some(prefix) = PREFIXES
        .iter()
        .find(|prefix| !names.is_empty() && names.iter().all(|name| name[length..].starts_with(**prefix)))
    {
        length += prefix.len();
    }
    length
}

/// Every stored name and what it is called here.
///
/// # Errors
/// Names of another network; layers of the numbered family at other places than upsampling by nearest neighbours has them.
pub fn translate<'a>(names: &[&'a str], place: &str) -> Result<Vec<(&'a str, String)>> {
    let other = || {
        let found = other_upscaler(names).map_or_else(
            || names.first().map_or("no tensors".to_owned(), |name| format!("`{}`", shown(name))),
            str::to_owned,
        );
        let expected = "an upscaler of residual-in-residual dense blocks (ESRGAN, Real-ESRGAN, BSRGAN)";
        Error::new("unsupported upscaler").at(place).expected(expected).found(found)
    };
    if !is_esrgan(names.iter().copied()) {
        return Err(other());
    }
    let first = common_prefix(names);
    let numbered = names.iter().any(|name| name[first..].starts_with("model.0."));
    let layers = if numbered { numbered_layers(names, first, place)? } else { BTreeMap::new() };
    let rename = |name: &str| -> String {
        let (layer, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        let layer = match layers.get(layer) {
            Some(known) => known.clone(),
            None if numbered => layer.strip_prefix("model.1.sub.").map_or_else(|| layer.to_owned(), dense_layer),
            None => worded_layer(layer),
        };
        format!("{layer}.{kind}")
    };
    Ok(names.iter().map(|name| (*name, rename(&name[first..]))).collect())
}

/// `0.RDB1.conv1.0` -> `body.0.rdb1.conv1`.
fn dense_layer(rest: &str) -> String {
    let rest = rest.replace("RDB", "rdb");
    // The convolution is the first of a sequence with its activation; ESRGAN+'s 1x1 convolution stands alone.
    format!("body.{}", rest.strip_suffix(".0").unwrap_or(&rest))
}

/// The second family's layer in the first one's words.
fn worded_layer(layer: &str) -> String {
    if let Some(rest) = layer.strip_prefix("RRDB_trunk.") {
        return dense_layer(rest);
    }
    match layer {
        "trunk_conv" => "conv_body".to_owned(),
        "HRconv" => "conv_hr".to_owned(),
        _ => match layer.strip_prefix("upconv") {
            Some(index) => format!("conv_up{index}"),
            None => layer.to_owned(),
        },
    }
}

/// The layers of the numbered family outside of the dense blocks. Behind the blocks a layer is an upsampling (2, 5, ..), a
/// convolution (3, 6, ..) or an activation, for every doubling; two convolutions with an activation between them follow.
fn numbered_layers(names: &[&str], first: usize, place: &str) -> Result<BTreeMap<String, String>> {
    let mut layers = BTreeMap::from([("model.0".to_owned(), "conv_first".to_owned())]);
    let mut behind = Vec::new();
    for name in names {
        let Some(layer) = name[first..].strip_suffix(".weight") else { continue };
        let Some(number) = layer.strip_prefix("model.") else { continue };
        if let Some(block) = number.strip_prefix("1.sub.").filter(|block| block.parse::<u32>().is_ok()) {
            layers.insert(format!("model.1.sub.{block}"), "conv_body".to_owned());
        } else if let Some(number) = number.parse::<usize>().ok().filter(|number| *number > 0) {
            behind.push(number);
        }
    }
    behind.sort_unstable();
    let doublings = behind.len().saturating_sub(2);
    let mut wanted: Vec<usize> = (1..=doublings).map(|index| 3 * index).collect();
    wanted.extend([3 * doublings + 2, 3 * doublings + 4]);
    if behind != wanted {
        let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::new("unsupported upscaler")
            .at(format!("{place}: layers behind `model.1`"))
            .expected(format!("{} (upsampling by nearest neighbours)", list(&wanted)))
            .found(list(&behind)));
    }
    let words =
        (1..=doublings).map(|index| format!("conv_up{index}")).chain(["conv_hr".to_owned(), "conv_last".to_owned()]);
    layers.extend(behind.iter().map(|number| format!("model.{number}")).zip(words));
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(names: &[&str]) -> Vec<String> {
        translate(names, "file").unwrap().into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn three_families_of_names_are_one() {
        let words = [
            "conv_first.weight",
            "body.0.rdb1.conv1.weight",
            "body.22.rdb3.conv5.bias",
            "conv_body.weight",
            "conv_up1.weight",
            "conv_up2.weight",
            "conv_hr.weight",
            "conv_last.bias",
        ];
        let later = [
            "module.conv_first.weight",
            "module.RRDB_trunk.0.RDB1.conv1.weight",
            "module.RRDB_trunk.22.RDB3.conv5.bias",
            "module.trunk_conv.weight",
            "module.upconv1.weight",
            "module.upconv2.weight",
            "module.HRconv.weight",
            "module.conv_last.bias",
        ];
        assert_eq!(renamed(&words), words);
        assert_eq!(renamed(&later), words);
        let numbered = [
            "model.0.weight",
            "model.1.sub.0.RDB1.conv1.0.weight",
            "model.1.sub.22.RDB3.conv5.0.bias",
            "model.1.sub.23.weight",
            "model.3.weight",
            "model.6.weight",
            "model.8.weight",
            "model.10.weight",
        ];
        let mut weights = words;
        weights[7] = "conv_last.weight";
        assert_eq!(renamed(&numbered), weights);
        let plus = [
            "model.0.weight",
            "model.1.sub.0.RDB1.conv1.0.weight",
            "model.1.sub.0.RDB1.conv1x1.weight",
            "model.2.weight",
            "model.4.weight",
        ];
        assert_eq!(renamed(&plus)[2..], ["body.0.rdb1.conv1x1.weight", "conv_hr.weight", "conv_last.weight"]);
    }

    #[test]
    fn other_networks_are_named() {
        let says = |names: &[&str], part: &str| {
            let error = translate(names, "file").unwrap_err().to_string();
            assert!(error.contains("unsupported upscaler") && error.contains(part), "{error}");
        };
        says(&["params.body.0.weight", "params.body.1.weight", "params.body.0.bias"], "SRVGGNetCompact");
        says(&["conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"], "SwinIR");
        says(&["model.0.weight", "model.1.sub.0.res.0.weight"], "SRResNet");
        says(&["unet.weight"], "`unet.weight`");
        says(&[], "no tensors");
        // Upsampling by shuffled pixels has its convolutions at other places.
        let shuffled = [
            "model.0.weight",
            "model.1.sub.0.RDB1.conv1.0.weight",
            "model.2.weight",
            "model.5.weight",
            "model.7.weight",
        ];
        says(&shuffled, "found 2, 5, 7");
    }
}
