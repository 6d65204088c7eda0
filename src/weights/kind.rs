//! Which system a path holds, told from its files' names and `model_index.json`.

use std::fmt;
use std::path::Path;

use super::files::Files;
use super::index::read_index;
use super::kandinsky::PRIOR_CLASS;
use super::original_keys;
use super::tensor_file::TensorFile;
use super::{dalle, esrgan};
use crate::error::{Error, Result};

/// A family of systems that are opened and run in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Stable Diffusion 1.x, 2.x or XL: a diffusers directory or a single file.
    StableDiffusion,
    /// DALL-E mini or mega: a directory with the encoder, the decoder and the tokenizer.
    DalleMini,
    /// DALL-E 2 as Karlo has it: a directory of diffusers' `UnCLIPPipeline`.
    Karlo,
    /// Kandinsky 2.2: a directory of diffusers' `KandinskyV22Pipeline`.
    Kandinsky,
    /// The first stage of DeepFloyd IF: a directory of diffusers' `IFPipeline`.
    Imagen,
    /// The second stage of DeepFloyd IF: a directory of diffusers' `IFSuperResolutionPipeline`.
    ImagenSuperResolution,
    /// Stable Diffusion's x4 upscaler: a directory of diffusers' `StableDiffusionUpscalePipeline` or a single file.
    LatentUpscaler,
    /// ESRGAN, Real-ESRGAN and their kin: a single file.
    Esrgan,
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StableDiffusion => "Stable Diffusion",
            Self::DalleMini => "DALL-E mini or mega",
            Self::Karlo => "Karlo (UnCLIPPipeline)",
            Self::Kandinsky => "Kandinsky 2.2 (KandinskyV22Pipeline)",
            Self::Imagen => "DeepFloyd IF, stage I (IFPipeline)",
            Self::ImagenSuperResolution => "DeepFloyd IF, stage II (IFSuperResolutionPipeline)",
            Self::LatentUpscaler => "the x4 upscaler (StableDiffusionUpscalePipeline)",
            Self::Esrgan => "ESRGAN or Real-ESRGAN",
        })
    }
}

impl ModelKind {
    /// Whether it enlarges a picture that is given, so that it can follow another system.
    pub fn takes_picture(self) -> bool {
        self.denoises_picture() || self == Self::Esrgan
    }

    /// Whether it enlarges by denoising: it has steps, and noise is added to the picture.
    pub fn denoises_picture(self) -> bool {
        matches!(self, Self::ImagenSuperResolution | Self::LatentUpscaler)
    }

    /// Looks at a directory or a file without reading tensors.
    ///
    /// # Errors
    /// When there is no such path, or a directory of a system that scumble does not have.
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path)
            .map_err(|e| Error::io("no such model", path, &e).hint("a diffusers directory or a .safetensors file"))?;
        if !metadata.is_dir() {
            // A file that cannot be opened is told by the opener of Stable Diffusion.
            return Ok(TensorFile::open(path).map_or(Self::StableDiffusion, |file| Self::of_tensors(&file)));
        }
        Self::of_directory(&Files::Directory(path.to_path_buf()))
    }

    /// A single file's kind by the names of its tensors.
    fn of_tensors(file: &TensorFile) -> Self {
        let shape = |key: &str| file.shape(&format!("{}{key}", original_keys::UNET));
        if shape("label_emb.weight").is_some() && shape("input_blocks.0.0.weight").is_some() {
            return Self::LatentUpscaler;
        }
        let names: Vec<&str> = file.names().collect();
        // Other upscalers are refused by its opener, which knows their names.
        let upscales = esrgan::other_upscaler(&names).is_some() || esrgan::is_esrgan(names.into_iter());
        if upscales { Self::Esrgan } else { Self::StableDiffusion }
    }

    fn of_directory(files: &Files) -> Result<Self> {
        if dalle::is_dalle(files) {
            return Ok(Self::DalleMini);
        }
        let index = read_index(files)?;
        Ok(match index.class_name() {
            "UnCLIPPipeline" => Self::Karlo,
            "KandinskyV22Pipeline" => Self::Kandinsky,
            PRIOR_CLASS => {
                return Err(index
                    .unsupported("_class_name", "a model that draws, KandinskyV22Pipeline", PRIOR_CLASS)
                    .hint("this directory as --prior, the other one as --model"));
            }
            "IFPipeline" => Self::Imagen,
            "IFSuperResolutionPipeline" => Self::ImagenSuperResolution,
            "StableDiffusionUpscalePipeline" => Self::LatentUpscaler,
            // Whatever else it is, the opener of Stable Diffusion tells.
            _ => Self::StableDiffusion,
        })
    }
}
