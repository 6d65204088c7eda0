//! Cache files: read whole if they are plain files of a sensible size, written beside their place and renamed, so that
//! two processes at once never see half a file.

use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// No cache of ours gets near this; a larger file is something else.
const LARGEST: u64 = 1 << 30;

/// The bytes of a plain file; `None` if there is no file.
///
/// # Errors
/// When it cannot be read, or is no plain file of a sensible size.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
        Ok(found) if !found.is_file() || found.len() > LARGEST => Err(io::Error::other("no plain file of this size")),
        Ok(_) => std::fs::read(path).map(Some),
    }
}

/// Puts `bytes` at `path`, whole or not at all, making its folder where that is missing.
///
/// # Errors
/// When the folder or the file cannot be written.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path).map(drop).map_err(|failed| failed.error)
    };
    write().map_err(|fault| Error::io("cannot write the cache", path, &fault).hint("another SCUMBLE_CACHE_DIR"))
}
