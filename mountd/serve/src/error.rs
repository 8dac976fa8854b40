//! The crate's error.

use std::fmt;
use std::io;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address that cannot be used: give another one.
    Invalid,
    /// The operating system failed; trying again may help.
    Io,
}

/// An error of a server's sockets or threads. Its text says what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{context}{}", Cause(.source))]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<io::Error>,
}

struct Cause<'a>(&'a Option<io::Error>);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self { kind: ErrorKind::Io, context: context.into(), source: Some(source) }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done, and what the system said of it.
    pub fn into_parts(self) -> (ErrorKind, String, Option<io::Error>) {
        (self.kind, self.context, self.source)
    }
}
