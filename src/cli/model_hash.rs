//! A checkpoint's hash, computed beside the drawing: the first ten hex digits of SHA-256, as AUTOMATIC1111 names models.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

/// What is hashed.
#[derive(Debug, Clone)]
pub enum HashSource {
    /// These files, one after the other: a single-file checkpoint, or the parts of a UNet's weights.
    Files(Vec<PathBuf>),
    /// These bytes: a model inside the program.
    Bytes(&'static [u8]),
}

impl HashSource {
    /// What stands for the checkpoint at `path`: a file itself, as in A1111; for a diffusers directory its UNet's weights,
    /// parts in the order of their names.
    pub fn of_checkpoint(path: &Path) -> Self {
        if !path.is_dir() {
            return Self::Files(vec![path.to_owned()]);
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(path.join("unet"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        let has = |file: &PathBuf, ending: &str| file.extension().is_some_and(|found| found == ending);
        let ending = if files.iter().any(|file| has(file, "safetensors")) { "safetensors" } else { "bin" };
        files.retain(|file| has(file, ending));
        files.sort();
        let is_half = |file: &PathBuf| file.to_string_lossy().contains(".fp16");
        if files.iter().any(|file| !is_half(file)) {
            files.retain(|file| !is_half(file));
        }
        Self::Files(files)
    }
}

/// A hash in the making.
#[derive(Debug)]
pub struct ModelHash(JoinHandle<io::Result<Option<String>>>);

impl ModelHash {
    /// Starts a thread that reads the source.
    pub fn start(source: HashSource) -> Self {
        Self(std::thread::spawn(move || hash(&source)))
    }

    /// Waits for the ten digits; `None` where the source could not be read, which the log tells.
    pub fn finish(self) -> Option<String> {
        match self.0.join() {
            Ok(Ok(digits)) => digits,
            Ok(Err(fault)) => {
                tracing::warn!("no model hash: {fault}");
                None
            }
            Err(_) => None,
        }
    }
}

fn hash(source: &HashSource) -> io::Result<Option<String>> {
    let mut sha = Sha256::new();
    match source {
        HashSource::Bytes(bytes) => sha.update(bytes),
        HashSource::Files(files) if files.is_empty() => return Ok(None),
        HashSource::Files(files) => {
            let mut buffer = vec![0; 1 << 20];
            for file in files {
                let mut file = File::open(file)?;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        count => sha.update(&buffer[..count]),
                    }
                }
            }
        }
    }
    Ok(Some(sha.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc" begins so (FIPS 180-4's example).
    const ABC: &str = "ba7816bf8f";

    #[test]
    fn files_bytes_and_folders() {
        let finish = |source| ModelHash::start(source).finish();
        assert_eq!(finish(HashSource::Bytes(b"abc")).as_deref(), Some(ABC));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.safetensors");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(finish(HashSource::of_checkpoint(&file)).as_deref(), Some(ABC));
        assert_eq!(finish(HashSource::of_checkpoint(folder.path())), None);
        assert_eq!(finish(HashSource::of_checkpoint(Path::new("nowhere"))), None);
        let unet = folder.path().join("unet");
        std::fs::create_dir(&unet).unwrap();
        for (name, content) in
            [("d-2.safetensors", "c"), ("d-1.safetensors", "ab"), ("d.fp16.safetensors", "x"), ("a.json", "")]
        {
            std::fs::write(unet.join(name), content).unwrap();
        }
        assert_eq!(finish(HashSource::of_checkpoint(folder.path())).as_deref(), Some(ABC));
    }
}
