//! The crate's error.

use std::fmt;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something is in the way and will go away: a live mount, an open file. Close it, or ask for
    /// a detach.
    Busy,
    /// The mountpoint cannot be one: missing, not a directory. Give another.
    Mountpoint,
    /// The kernel or `fusermount3` refuses. Other rights are needed.
    Denied,
    /// This machine has no FUSE, or one too old.
    Unsupported,
    /// The repository could not be read; the source says why.
    Repository,
    /// There is no such machine, point or disk.
    NotFound,
    /// The operating system failed; the source says how.
    Io,
}

/// An error of a mount or a door. Its text says what happened to which object; the source, where
/// there is one, says why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// From an error of the operating system; a lack of rights is `Denied`, the rest `Io`.
    pub(crate) fn os(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Self::with_source(kind, context, source)
    }

    pub(crate) fn repository(context: impl Into<String>, source: backstay_store::Error) -> Self {
        Self::with_source(ErrorKind::Repository, context, source)
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static))
    }
}
