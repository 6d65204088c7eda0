//! Compiled pipelines on disk, where the backend lets an application keep them: Vulkan's pipeline cache.
//!
//! A file is for one adapter and driver. It begins with what it is, whose it is and a hash of everything, because
//! drivers trust such data.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::disk;
use crate::error::Result;
use crate::kernels::SHADERS;

/// What a file begins with.
const MAGIC: &[u8] = b"scumble pipelines 1\n";
/// Bytes of a hash.
const HASH: usize = 32;

/// The pipelines of a device with their file.
#[derive(Debug)]
pub(super) struct PipelineCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    identity: [u8; HASH],
    loaded: usize,
    changed: AtomicBool,
}

/// What the cached pipelines belong to: the adapter, its driver and these very shaders. Pipelines of other shaders would
/// only be ballast, so the file starts afresh with them.
fn identity(info: &wgpu::AdapterInfo) -> [u8; HASH] {
    let mut hash = Sha256::new();
    let numbers = format!("{:?} {} {}", info.backend, info.vendor, info.device);
    for part in [&numbers, &info.name, &info.driver, &info.driver_info] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    SHADERS.iter().for_each(|(_, text)| hash.update(text.as_bytes()));
    hash.finalize().into()
}

fn digest(identity: &[u8], data: &[u8]) -> [u8; HASH] {
    Sha256::new().chain_update(identity).chain_update(data).finalize().into()
}

/// The data behind the header of a file; `None` if it is sound but of another driver or other shaders.
///
/// # Errors
/// What is wrong with the file, in words.
fn unpack<'a>(bytes: &'a [u8], identity: &[u8]) -> std::result::Result<Option<&'a [u8]>, &'static str> {
    let body = bytes.strip_prefix(MAGIC).ok_or("it is no such cache, or one of another version of scumble")?;
    let (found, body) = body.split_at_checked(HASH).ok_or("it is cut short")?;
    let (hash, data) = body.split_at_checked(HASH).ok_or("it is cut short")?;
    if hash != digest(found, data) {
        return Err("its hash does not fit");
    }
    Ok((found == identity).then_some(data))
}

impl PipelineCache {
    /// Finds the pipelines that were kept in `folder` for this adapter. `None` where the device keeps none.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        let key = wgpu::util::pipeline_cache_key(info)?;
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let driver = digest(info.driver.as_bytes(), format!("{} {}", info.name, info.driver_info).as_bytes());
        let driver: String = driver[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{key}_{driver}.bin"));
        let identity = identity(info);
        let bytes = disk::read(&path).unwrap_or_else(|fault| {
            tracing::warn!("ignoring the pipeline cache {}: {fault}", path.display());
            None
        });
        let data = bytes.as_deref().and_then(|bytes| {
            unpack(bytes, &identity).unwrap_or_else(|fault| {
                tracing::warn!("ignoring the pipeline cache {}: {fault}", path.display());
                None
            })
        });
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        // SAFETY: the data is what wgpu gave for this adapter and driver: the file's name and header say so, and a hash
        // over all of it shows damage. Who can forge that hash can write the user's files and needs no driver for harm.
        let cache = unsafe {
            let label = Some("scumble");
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor { label, data, fallback: true })
        };
        if let Some(fault) = pollster::block_on(scope.pop()) {
            tracing::warn!("no pipeline cache: {fault}");
            return None;
        }
        let loaded = data.map_or(0, <[u8]>::len);
        Some(Self { cache, path, identity, loaded, changed: AtomicBool::new(false) })
    }

    /// For a pipeline's descriptor; the pipeline will be kept.
    pub fn for_new_pipeline(&self) -> &wgpu::PipelineCache {
        self.changed.store(true, Ordering::Relaxed);
        &self.cache
    }

    /// Where the file is, and how many bytes of pipelines were found in it.
    pub fn place(&self) -> (&Path, usize) {
        (&self.path, self.loaded)
    }

    /// Writes the file if pipelines were compiled since it was read or written, and they changed it.
    pub fn save(&self) -> Result<()> {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let Some(data) = self.cache.get_data() else { return Ok(()) };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.identity);
        bytes.extend(digest(&self.identity, &data));
        bytes.extend(data);
        if matches!(disk::read(&self.path), Ok(Some(same)) if same == bytes) {
            return Ok(());
        }
        disk::replace(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_of_the_same_identity_are_taken() {
        let (identity, data) = ([7; HASH], b"pipelines".as_slice());
        let mut bytes = MAGIC.to_vec();
        bytes.extend(identity);
        bytes.extend(digest(&identity, data));
        bytes.extend(data);
        assert_eq!(unpack(&bytes, &identity), Ok(Some(data)));
        assert_eq!(unpack(&bytes, &[8; HASH]), Ok(None));
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert!(unpack(&damaged, &identity).is_err(), "byte {place}");
            assert!(unpack(&bytes[..place], &identity).is_err(), "cut at {place}");
        }
        bytes.push(0);
        assert!(unpack(&bytes, &identity).is_err());
    }
}
