//! The bytes of a file: memory-mapped, compiled into the program, or in memory.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// Shorter parts of a file are not worth a system call to release.
#[cfg(unix)]
const RELEASED_BYTES: usize = 16 << 10;
/// A page fault maps the file's cached pages of the whole block of this size (Linux: `fault_around_bytes`).
#[cfg(unix)]
const FAULT_BYTES: usize = 64 << 10;

/// The bytes of a file.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps the file at `path`.
    ///
    /// As with every memory map, a file that another program shortens while it is in use ends this one.
    pub fn map(path: &Path) -> Result<Self> {
        let fault = |e: &std::io::Error| Error::io("cannot read the weights", path, e);
        let file = File::open(path).map_err(|e| fault(&e))?;
        let metadata = file.metadata().map_err(|e| fault(&e))?;
        if !metadata.is_file() {
            return Err(Error::new("cannot read the weights")
                .at(path.display())
                .expected("a file")
                .found("a directory"));
        }
        if metadata.len() == 0 {
            return Ok(Self::Static(&[]));
        }
        // SAFETY: the map is read-only; the risk that the file changes underneath is documented above.
        Ok(Self::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(|e| fault(&e))?))
    }

    /// All of them.
    pub fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Gives the pages of `part`, which has been read, back to the system, so that a checkpoint that has been uploaded does
    /// not count as memory of this program. Whoever reads them again gets them from the file again. `place` names the file
    /// in the log.
    #[cfg(unix)]
    pub fn release(&self, part: &[u8], place: &str) {
        if let Self::Mapped(map) = self
            && part.len() >= RELEASED_BYTES
        {
            let begin = part.as_ptr().addr() - map.as_ptr().addr();
            let (offset, end) = (begin / FAULT_BYTES * FAULT_BYTES, begin + part.len());
            // SAFETY: the map is shared and read-only, so its pages hold nothing that the file does not hold.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, end - offset) };
            if let Err(fault) = advised {
                tracing::debug!("{place}: pages stay mapped: {fault}");
            }
        }
    }

    #[cfg(not(unix))]
    pub fn release(&self, _part: &[u8], _place: &str) {}
}
