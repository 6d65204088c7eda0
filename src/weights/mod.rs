//! Checkpoints: files of tensors on disk or in the program, the names of their tensors, and the configs beside them.
//!
//! [`checkpoint::Checkpoint::open`] turns a diffusers directory or a single file with the original key names into parts,
//! each a config and a [`Source`]: named tensors under diffusers' (transformers') names. Nothing is read until the
//! graph builder asks for rows, so opening a checkpoint of many gigabytes costs a header.

mod bytes;
pub mod checkpoint;
pub mod clip;
pub mod convert;
pub mod cursor;
pub mod dalle;
pub mod dalle_keys;
pub mod directory;
#[cfg(feature = "embedded-model")]
pub mod embedded;
#[cfg(feature = "embedded-model")]
pub mod embedded_dalle;
#[cfg(feature = "embedded-model")]
pub mod embedded_imagen;
pub mod esrgan;
pub mod file_source;
mod files;
pub mod flax;
pub mod imagen;
pub mod inception;
mod index;
pub mod kandinsky;
pub mod karlo;
pub mod keys;
pub mod kind;
pub mod latent_upscaler;
mod msgpack;
pub mod open_clip;
pub mod original_config;
pub mod original_keys;
pub mod pack;
mod pickle;
pub mod prior;
pub mod published;
pub mod random;
mod safetensors_header;
pub mod shapes;
pub mod single_file;
pub mod stored;
pub mod t5;
pub mod tensor_file;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::DType;

pub use cursor::{Claims, Weights};
pub use file_source::FileSource;
pub use flax::FlaxSource;
pub use random::RandomSource;
pub use shapes::ShapesSource;
pub use tensor_file::TensorFile;

/// Element type and shape of a named tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as stored (rows are always handed out as f32).
    pub dtype: DType,
    /// Axis lengths, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The tensor seen as a matrix: `[shape[0], product of the rest]`; a scalar is `[1, 1]`.
    pub fn matrix(&self) -> [usize; 2] {
        match self.shape.split_first() {
            Some((&rows, rest)) => [rows, rest.iter().product()],
            None => [1, 1],
        }
    }
}

/// Named tensors of one part of a model, under diffusers/transformers names, without data being touched.
pub trait Source: Send + Sync {
    /// Type and shape of `name`, `None` if there is no such tensor of a floating-point type.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// As [`Source::info`] for a model that takes any of `shapes`; only a source that makes its tensors up looks at them.
    fn info_among(&self, name: &str, shapes: &[&[u32]]) -> Option<TensorInfo> {
        let _ = shapes;
        self.info(name)
    }

    /// Rows `rows` of the tensor seen as `[shape[0], rest]`, converted to f32, written to `out` (cleared first).
    ///
    /// Errors: no such tensor, a tensor that is not floating-point, rows beyond its end.
    fn rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// Every name that a model has to consume, sorted. Names that are skipped by rule are not among them.
    fn names(&self) -> Vec<String>;

    /// Where the tensors come from (a path), for errors.
    fn describe(&self) -> String;
}

impl dyn Source + '_ {
    /// A whole tensor as f32.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name).ok_or_else(|| missing_key_error(&self.describe(), name, &self.names()))?;
        let mut out = Vec::new();
        self.rows(name, 0..info.matrix()[0], &mut out)?;
        Ok(out)
    }
}

/// A model asked for `key`, which `part` lacks; names the nearest of the keys that are `present`.
pub fn missing_key_error(part: &str, key: &str, present: &[String]) -> Error {
    let error = Error::new("missing tensor").at(part).expected(format!("`{}`", shown(key)));
    match nearest(key, present) {
        Some(near) => error.found(format!("`{}` as the nearest name", shown(near))),
        None => error.found("nothing of a similar name"),
    }
    .hint("a complete checkpoint of the kind that its config describes")
}

/// `part` holds `key`, which no layer consumes; names the nearest of the `known` keys.
pub fn unexpected_key_error(part: &str, key: &str, known: &[String]) -> Error {
    let error = Error::new("unexpected tensor").at(part).found(format!("`{}`", shown(key)));
    let error = match nearest(key, known) {
        Some(near) => error.expected(format!("only known names, the nearest being `{}`", shown(near))),
        None => error.expected("only known names"),
    };
    error.hint("a checkpoint without additions, or removing that tensor")
}

/// The name with the smallest edit distance to `key`, if it is near enough to be a hint. A hostile file's endless names
/// are not compared.
fn nearest<'a>(key: &str, names: &'a [String]) -> Option<&'a str> {
    const LONGEST: usize = 256;
    const MOST: usize = 20_000;
    if key.len() > LONGEST {
        return None;
    }
    let best = names
        .iter()
        .filter(|name| name.len() <= LONGEST)
        .take(MOST)
        .min_by_key(|name| strsim::levenshtein(key, name))?;
    (strsim::normalized_levenshtein(key, best) > 0.5).then_some(best.as_str())
}

/// A name out of a file as errors show it: without control characters, and cut if it is long.
fn shown(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut text = String::new();
    for (number, char) in name.chars().enumerate() {
        if number == LONGEST {
            text.push_str("...");
            break;
        }
        if char.is_control() {
            text.extend(char.escape_default());
        } else {
            text.push(char);
        }
    }
    text
}

/// The error of a rows request that reaches beyond the tensor.
fn rows_error(place: &str, name: &str, rows: &Range<usize>, have: usize) -> Error {
    Error::new("rows beyond the tensor's end")
        .at(format!("{place}: `{}`", shown(name)))
        .expected(format!("0..{have}"))
        .found(format!("{}..{}", rows.start, rows.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_known_name_is_offered() {
        let known =
            ["conv_in.weight".to_string(), "conv_out.weight".to_string(), "time_embedding.linear_1.bias".into()];
        let error = unexpected_key_error("unet", "conv_ni.weight", &known).to_string();
        assert!(error.contains("`conv_ni.weight`") && error.contains("`conv_in.weight`"), "{error}");
        let error = missing_key_error("unet", "time_embedding.linear_2.bias", &known).to_string();
        assert!(error.contains("`time_embedding.linear_1.bias`"), "{error}");
        assert!(missing_key_error("unet", "zzz", &known).to_string().contains("nothing of a similar name"));
    }
}
