//! What is held on the device: every buffer and texture is counted from its creation until its last handle is dropped.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use super::Gpu;
use crate::error::{Error, Result};

/// Bytes of buffers and textures that scumble has made on a device and not yet let go, staging of uploads included.
///
/// Counted are the sizes that were asked for; a driver's rounding, compiled shaders and wgpu's own bookkeeping are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Now.
    pub current: u64,
    /// The most since the device was opened or [`Gpu::reset_peak_memory`] was called.
    pub peak: u64,
}

/// The count of one device.
pub(super) type Ledger = Arc<Mutex<Memory>>;

/// A number of bytes that counts as held until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    ledger: Ledger,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).current -= self.bytes;
    }
}

/// A resource of wgpu with its charge. Clones share both.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    resource: T,
    charge: Arc<Charge>,
}

/// A counted buffer.
pub(crate) type Buffer = Counted<wgpu::Buffer>;
/// A counted texture.
pub(crate) type Texture = Counted<wgpu::Texture>;

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.resource
    }
}

impl<T: Clone> Clone for Counted<T> {
    fn clone(&self) -> Self {
        Self { resource: self.resource.clone(), charge: Arc::clone(&self.charge) }
    }
}

impl<T: PartialEq> PartialEq for Counted<T> {
    fn eq(&self, other: &Self) -> bool {
        self.resource == other.resource
    }
}

impl Gpu {
    /// What is held on the device, and the most that was.
    pub fn memory(&self) -> Memory {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures the peak anew from what is held now.
    pub fn reset_peak_memory(&self) {
        let mut memory = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        memory.peak = memory.current;
    }

    /// Counts `bytes` until the charge is dropped.
    pub(crate) fn charge(&self, bytes: u64) -> Charge {
        let mut memory = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        memory.current += bytes;
        memory.peak = memory.peak.max(memory.current);
        Charge { ledger: Arc::clone(&self.ledger), bytes }
    }

    fn count<T>(&self, resource: T, bytes: u64) -> Counted<T> {
        Counted { resource, charge: Arc::new(self.charge(bytes)) }
    }

    /// A buffer of `size` bytes; an error that names `label` when the device has no room for it.
    pub(crate) fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        let size = size.next_multiple_of(4).max(16);
        let largest = self.max_buffer_size();
        if size > largest {
            return Err(Self::too_large("buffer", label, largest, format!("{size} bytes")).of_memory());
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        match pollster::block_on(memory.pop()) {
            None => Ok(self.count(buffer, size)),
            Some(error) => {
                let found = format!("{size} bytes and the answer: {error}");
                Err(Self::too_large("buffer", label, largest, found).of_memory())
            }
        }
    }

    /// A texture of one level that takes `bytes`; an error that names its label when the device has no room for it.
    pub(crate) fn texture(&self, descriptor: &wgpu::TextureDescriptor<'_>, bytes: u64) -> Result<Texture> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let texture = self.device.create_texture(descriptor);
        match pollster::block_on(memory.pop()) {
            None => Ok(self.count(texture, bytes)),
            Some(error) => {
                let found = format!("{bytes} bytes and the answer: {error}");
                let label = descriptor.label.unwrap_or_default();
                Err(Self::too_large("texture", label, self.max_buffer_size(), found).of_memory())
            }
        }
    }

    fn too_large(what: &str, label: &str, largest: u64, found: String) -> Error {
        Error::new(format!("the adapter cannot hold a {what}"))
            .at(label)
            .expected(format!("at most {largest} bytes in one buffer, and free memory"))
            .found(found)
            .hint("a smaller picture, or --precision f16")
    }
}
