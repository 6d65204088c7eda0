//! The one error type: every fault says what went wrong, where, what was expected, what was found and what to try.

use std::fmt;
use std::path::Path;

/// `Result` with scumble's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault it is; the program turns it into its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command or the request cannot be meant that way (exit code 2).
    Usage,
    /// A file, a device or a computation did not give what was needed (exit code 1).
    Failure,
    /// The device has no room for what was asked for (exit code 1).
    Memory,
}

/// A fault on scumble's edges (files, devices, prompts, sizes): `what: where: expected X, found Y. Try Z.`
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    place: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// A failure of a file, a device or a computation.
    pub fn new(what: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failure, what: what.into(), place: None, expected: None, found: None, hint: None }
    }

    /// A request that cannot be meant that way.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::new(what) }
    }

    /// A failed read or write of `path`.
    pub fn io(what: impl Into<String>, path: &Path, source: &std::io::Error) -> Self {
        Self::new(what).at(path.display()).found(source)
    }

    /// Where: a file, a tensor, a scope path, an option.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// What would have been right.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self
    }

    /// What was there instead.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = Some(found.to_string());
        self
    }

    /// What the reader can do about it, as a sentence's end after "Try ".
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same fault as one of memory: asking for less may succeed.
    #[must_use]
    pub fn of_memory(mut self) -> Self {
        self.kind = ErrorKind::Memory;
        self
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, ": {place}")?;
        }
        match (&self.expected, &self.found) {
            (Some(expected), Some(found)) => write!(f, ": expected {expected}, found {found}")?,
            (Some(expected), None) => write!(f, ": expected {expected}")?,
            (None, Some(found)) => write!(f, ": {found}")?,
            (None, None) => {}
        }
        if let Some(hint) = &self.hint {
            write!(f, ". Try {hint}.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_sentence() {
        let error =
            Error::new("tensor shape").at("unet/conv_in.weight").expected("[4]").found("[5]").hint("another file");
        assert_eq!(error.to_string(), "tensor shape: unet/conv_in.weight: expected [4], found [5]. Try another file.");
    }
}
