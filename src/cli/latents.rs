//! Tensors in and out: the initial noise of `--latents`, the named intermediates of `--dump`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::cli::files;
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// The name of the tensor that `--latents` reads.
const NAME: &str = "latents";
/// Larger files are no initial noise: 64 pictures of 8192x8192 pixels in f32 stay below.
const LARGEST_FILE: u64 = 1 << 30;

/// Reads the initial noise of `count` pictures: tensor `latents` [count, C, H/8, W/8] in f64, f32, f16 or bf16. Gives one
/// [1, C, H/8, W/8] each.
///
/// Errors: no such file, not a safetensors file, no such tensor, another number of axes or of pictures, a value that is not
/// a finite number. C, H and W are the model's matter.
pub fn read_latents(path: &Path, count: u32) -> Result<Vec<HostTensor>> {
    let what = "cannot read the latents";
    let size = fs::metadata(path).map_err(|fault| Error::io(what, path, &fault))?.len();
    if size > LARGEST_FILE {
        return Err(Error::new(what).at(path.display()).expected("a file below 1 GiB").found(format!("{size} bytes")));
    }
    let bytes = fs::read(path).map_err(|fault| Error::io(what, path, &fault))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|fault| Error::new(what).at(path.display()).expected("a safetensors file").found(fault))?;
    let Ok(tensor) = file.tensor(NAME) else {
        let mut names = file.names();
        names.sort_unstable();
        return Err(Error::new(what)
            .at(path.display())
            .expected(format!("a tensor named `{NAME}`"))
            .found(format!("{names:?}")));
    };
    let shape_fault = || {
        Error::new("shape of the latents")
            .at(path.display())
            .expected(format!("[{count}, channels, height/8, width/8] for {count} picture(s)"))
            .found(format!("{:?}", tensor.shape()))
    };
    let [batch, channels, height, width] = <[usize; 4]>::try_from(tensor.shape()).map_err(|_| shape_fault())?;
    if batch != count as usize || channels * height * width == 0 {
        return Err(shape_fault());
    }
    let values = floats(&tensor).map_err(|fault| fault.at(path.display()))?;
    if let Some(place) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::new("the latents hold a value that is not a number")
            .at(format!("{}, value {place}", path.display()))
            .expected("noise of variance 1")
            .found(values[place]));
    }
    values
        .chunks(channels * height * width)
        .map(|one| HostTensor::new(vec![1, channels, height, width], one.into()))
        .collect()
}

fn floats(tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = tensor.data();
    Ok(match tensor.dtype() {
        Dtype::F64 => each(data, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F32 => each(data, f32::from_le_bytes),
        Dtype::F16 => each(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => each(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => {
            return Err(Error::new("number format of the latents")
                .expected("f64, f32, f16 or bf16")
                .found(format!("{other:?}")));
        }
    })
}

fn each<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks().0.iter().map(|bytes| convert(*bytes)).collect()
}

/// The named intermediates of one picture, for a safetensors file of f32 tensors.
#[derive(Debug)]
pub struct Dump {
    path: PathBuf,
    tensors: Vec<(String, HostTensor)>,
}

impl Dump {
    /// A dump that [`Dump::write`] will put at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, tensors: Vec::new() }
    }

    /// Keeps a tensor under `name`, which must be new: the file's readers see one tensor per name.
    pub fn push(&mut self, name: impl Into<String>, tensor: HostTensor) {
        let name = name.into();
        assert!(!self.tensors.iter().any(|(known, _)| *known == name), "two intermediates are named {name}");
        self.tensors.push((name, tensor));
    }

    /// Writes the file, whole or not at all.
    pub fn write(self) -> Result<PathBuf> {
        files::replace_file(&self.path, |out| write_tensors(out, &self.tensors))?;
        Ok(self.path)
    }
}

/// A safetensors file: the header's length (8 bytes, little-endian), a JSON header padded to 8 bytes, the tensors in order
/// (huggingface/safetensors, README, "Format").
fn write_tensors(out: &mut dyn Write, tensors: &[(String, HostTensor)]) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.data.len() * 4;
        let entry = serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in tensors {
        for slice in tensor.data.chunks(1 << 16) {
            let bytes: Vec<u8> = slice.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], start: f32) -> HostTensor {
        let count = shape.iter().product::<usize>();
        HostTensor::new(shape.to_vec(), (0..count).map(|i| start + i as f32 * 0.5).collect()).unwrap()
    }

    #[test]
    fn what_is_dumped_is_read_by_the_safetensors_crate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.safetensors");
        let mut dump = Dump::new(path.clone());
        dump.push("text.\"é\"", tensor(&[1, 3], 1.0));
        dump.push("latents.0", tensor(&[1, 4, 2, 3], -7.0));
        dump.push("scalar", tensor(&[], 9.0));
        assert_eq!(dump.write().unwrap(), path);
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 3);
        let latent = file.tensor("latents.0").unwrap();
        assert_eq!((latent.dtype(), latent.shape()), (Dtype::F32, &[1, 4, 2, 3][..]));
        assert_eq!(floats(&latent).unwrap(), tensor(&[1, 4, 2, 3], -7.0).data);
        assert_eq!(floats(&file.tensor("text.\"é\"").unwrap()).unwrap(), [1.0, 1.5, 2.0]);
        assert_eq!(file.tensor("scalar").unwrap().shape(), &[0usize; 0]);
    }

    fn written(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.safetensors");
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        safetensors::serialize_to_file([(name, view)], None, &path).unwrap();
        (folder, path)
    }

    #[test]
    fn noise_is_read_in_every_format_and_split() {
        let values: Vec<f32> = (0..2 * 4 * 2 * 3).map(|i| (i as f32 - 20.0) / 8.0).collect();
        let files = [
            (Dtype::F64, values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect::<Vec<u8>>()),
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        ];
        for (dtype, data) in files {
            let (_folder, path) = written(NAME, dtype, &[2, 4, 2, 3], &data);
            let latents = read_latents(&path, 2).unwrap();
            assert_eq!(latents.len(), 2);
            assert_eq!(latents[1].shape, [1, 4, 2, 3]);
            assert_eq!([latents[0].data.clone(), latents[1].data.clone()].concat(), values, "{dtype:?}");
        }
    }

    #[test]
    fn bad_noise_is_named() {
        let fault = |path: &Path, count: u32| read_latents(path, count).unwrap_err().to_string();
        assert!(fault(Path::new("nowhere.safetensors"), 1).contains("nowhere.safetensors"));
        let (_folder, path) = written("noise", Dtype::F32, &[1, 1, 1, 1], &[0; 4]);
        assert!(
            fault(&path, 1).contains("expected a tensor named `latents`, found [\"noise\"]"),
            "{}",
            fault(&path, 1)
        );
        let (_folder, path) = written(NAME, Dtype::F32, &[1, 2, 1], &[0; 8]);
        assert!(fault(&path, 1).contains("found [1, 2, 1]"));
        let (_folder, path) = written(NAME, Dtype::F32, &[1, 2, 1, 1], &[0; 8]);
        assert!(
            fault(&path, 2).contains("expected [2, channels, height/8, width/8] for 2 picture(s), found [1, 2, 1, 1]")
        );
        let (_folder, path) = written(NAME, Dtype::F32, &[1, 0, 1, 1], &[]);
        assert!(fault(&path, 1).contains("found [1, 0, 1, 1]"));
        let (_folder, path) = written(NAME, Dtype::I32, &[1, 1, 1, 1], &[0; 4]);
        assert!(fault(&path, 1).contains("f16 or bf16, found I32"), "{}", fault(&path, 1));
        let (_folder, path) = written(NAME, Dtype::F32, &[1, 2, 1, 1], &[0, 0, 0, 0, 0, 0, 0xc0, 0x7f]);
        assert!(fault(&path, 1).contains("value 1: expected noise of variance 1, found NaN"), "{}", fault(&path, 1));
        fs::write(&path, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
        assert!(fault(&path, 1).contains("expected a safetensors file"));
    }
}
