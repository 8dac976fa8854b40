//! The crate's error: what the caller can do, what happened where, and why.

use std::fmt;
use std::io;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The range lies (partly) behind the end of the device: ask for another one.
    OutOfRange,
    /// The device takes no writes.
    ReadOnly,
    /// The device cannot do this operation at all; another way may exist.
    Unsupported,
    /// No space is left for the write.
    NoSpace,
    /// No space is left for the write now, and the owner wants it to wait for some: nothing was done; ask
    /// again later.
    Paused,
    /// The stored data is there and is wrong. Trying again will not help.
    Damaged,
    /// Reading or writing failed; trying again may help.
    Io,
}

/// An error of a block device operation. Its text says what happened to which range.
#[derive(Debug, thiserror::Error)]
#[error("{context}{}", Cause(.source))]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shows a source after the context, so that one line tells the whole story.
struct Cause<'a>(&'a Option<Box<dyn std::error::Error + Send + Sync>>);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// An error of `kind`; `context` says what happened, and where (offset and length in bytes).
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The same error with the lower one that caused it.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Wraps an error of the operating system: a full disk or quota becomes
    /// [`ErrorKind::NoSpace`], a read-only file or device [`ErrorKind::ReadOnly`], an operation the
    /// file system lacks [`ErrorKind::Unsupported`], all others [`ErrorKind::Io`].
    pub fn os(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self::new(kind, context).with_source(source)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
