//! Writing files so that a reader sees the whole file or none: into a temporary file beside the target, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Bytes that [`check_writable`] tries to place, to find a full disk before the long work.
static PROBE: [u8; 65_536] = [0; 65_536];

/// Finds out before the long work whether `path` can be written: its folder exists and takes a new file of some size, it is
/// no folder itself and not write-protected. Leaves nothing behind.
pub fn check_writable(path: &Path) -> Result<()> {
    let target = follow(path)?;
    if let Some(special) = open_special(&target)? {
        drop(special);
        return Ok(());
    }
    if target.exists() {
        File::options().write(true).open(&target).map_err(|fault| cannot_write(path, &fault))?;
    }
    probe(&target).map_err(|fault| cannot_write(path, &fault))
}

/// As [`check_writable`], for a new file in `folder`.
pub fn check_folder(folder: &Path) -> Result<()> {
    probe(&folder.join("new")).map_err(|fault| cannot_write(folder, &fault))
}

fn probe(target: &Path) -> io::Result<()> {
    let mut probe = temporary(target)?;
    probe.write_all(&PROBE)?;
    probe.as_file().sync_data()
}

/// Writes `path` whole or not at all, replacing what was there; `write` gives the bytes. A device or a pipe is written to
/// directly.
pub fn replace_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let fault = |fault: io::Error| cannot_write(path, &fault);
    let target = follow(path)?;
    if let Some(mut special) = open_special(&target)? {
        return write(&mut special).and_then(|()| special.flush()).map_err(fault);
    }
    let file = filled(&target, write).map_err(fault)?;
    file.persist(&target).map(drop).map_err(|failed| fault(failed.error))
}

/// As [`replace_file`] but never replaces: takes the first of `names` that does not exist and gives it back.
pub fn create_file(
    names: impl Iterator<Item = PathBuf>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<PathBuf> {
    let mut names = names.peekable();
    let Some(first) = names.peek().cloned() else {
        return Err(Error::new("no name to write to"));
    };
    let mut file = filled(&first, write).map_err(|fault| cannot_write(&first, &fault))?;
    for name in names {
        match file.persist_noclobber(&name) {
            Ok(_) => return Ok(name),
            Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => file = failed.file,
            Err(failed) => return Err(cannot_write(&name, &failed.error)),
        }
    }
    Err(cannot_write(&first, &io::Error::from(ErrorKind::AlreadyExists)))
}

fn filled(target: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<NamedTempFile> {
    let mut file = temporary(target)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    // Some file systems tell of a full disk only here.
    file.as_file().sync_data()?;
    Ok(file)
}

/// An empty file beside `target`, with the permissions that the user's umask gives to new files.
fn temporary(target: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scumble-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(target))
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The file behind a symbolic link, so that the link stays; checks what can be told from names alone.
fn follow(path: &Path) -> Result<PathBuf> {
    let ends_as_folder =
        path.as_os_str().as_encoded_bytes().last().is_none_or(|end| std::path::is_separator(*end as char));
    if path.is_dir() || ends_as_folder || path.file_name().is_none() {
        let hint = format!("a file's name, such as {}", path.join("picture.png").display());
        return Err(Error::new("cannot write").at(path.display()).expected("a file").found("a folder").hint(hint));
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder(&target);
    if !folder.is_dir() {
        let found = if folder.exists() { "a file of that name" } else { "no such folder" };
        return Err(Error::new("cannot write")
            .at(path.display())
            .expected(format!("the folder {}", folder.display()))
            .found(found)
            .hint("creating the folder first"));
    }
    Ok(target)
}

/// Opens a device, a pipe or a socket; `None` for a regular file or for what does not exist.
fn open_special(target: &Path) -> Result<Option<File>> {
    match fs::metadata(target) {
        Ok(found) if !found.is_file() => {
            File::options().write(true).open(target).map(Some).map_err(|fault| cannot_write(target, &fault))
        }
        _ => Ok(None),
    }
}

/// An error for a failed write, with advice where the reason is plain.
pub fn cannot_write(path: &Path, fault: &io::Error) -> Error {
    // An error without the system's number names the temporary file, which means nothing to the user.
    let error = match fault.raw_os_error() {
        Some(_) => Error::io("cannot write", path, fault),
        None => Error::io("cannot write", path, &io::Error::from(fault.kind())),
    };
    match fault.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            error.hint("freeing space, or another folder")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => error.hint("a folder that you may write to"),
        ErrorKind::AlreadyExists => error.hint("another name with -o"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_whole_files_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        check_writable(&path).unwrap();
        assert!(names(folder.path()).is_empty(), "the probe stays");
        replace_file(&path, |out| out.write_all(b"one")).unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one", "the probe damages");
        replace_file(&path, |out| out.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let failed = replace_file(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        });
        assert!(failed.unwrap_err().to_string().contains("Try freeing space"));
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn never_replaces_when_creating() {
        let folder = tempfile::tempdir().unwrap();
        let candidates = || ["a", "b", "c"].iter().map(|name| folder.path().join(name));
        assert_eq!(create_file(candidates(), |out| out.write_all(b"1")).unwrap(), folder.path().join("a"));
        assert_eq!(create_file(candidates(), |out| out.write_all(b"2")).unwrap(), folder.path().join("b"));
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"1");
        create_file(candidates(), |out| out.write_all(b"3")).unwrap();
        assert!(create_file(candidates(), |out| out.write_all(b"4")).is_err());
        assert_eq!(names(folder.path()), ["a", "b", "c"]);
    }

    #[test]
    fn says_why_a_place_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| check_writable(&folder.path().join(name)).unwrap_err().to_string();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(at("sub").contains("expected a file, found a folder"), "{}", at("sub"));
        assert!(at("new/").contains("expected a file, found a folder"));
        assert!(at("missing/out.png").contains("no such folder. Try creating the folder first"), "{}", at("missing/x"));
        assert!(at("file/out.png").contains("found a file of that name"), "{}", at("file/out.png"));
        assert!(check_writable(Path::new("")).is_err());
        assert!(check_writable(Path::new("/")).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told() {
        let full = Path::new("/dev/full");
        check_writable(full).unwrap();
        let error = replace_file(full, |out| out.write_all(b"x")).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("Try freeing space"), "{error}");
        assert!(!fs::metadata(full).unwrap().is_file(), "a device must never be replaced by a file");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_are_the_users() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, ours, link) = (folder.path().join("plain"), folder.path().join("ours"), folder.path().join("link"));
        fs::write(&plain, b"").unwrap();
        replace_file(&ours, |out| out.write_all(b"x")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        std::os::unix::fs::symlink("plain", &link).unwrap();
        replace_file(&link, |out| out.write_all(b"through")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&plain).unwrap(), b"through");
    }
}
