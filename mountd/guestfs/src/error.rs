//! The crate's error: what the caller can do, what happened where, and why.

use std::fmt;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such name, node, volume or attribute.
    NotFound,
    /// The node is no directory.
    NotADirectory,
    /// The node is a directory.
    IsADirectory,
    /// The call makes no sense for this node: a link read from a file, an offset beyond any file.
    Invalid,
    /// The bytes on the disk contradict themselves or what the format allows. Nothing was guessed.
    Damaged,
    /// What is there is known, or at least named, and not read here.
    Unsupported,
    /// It is encrypted, and no key was given.
    Encrypted,
    /// A named bound of this crate is passed: bytes that nobody has honestly, or more than we take.
    Limit,
    /// The device below could not be read; trying again may help.
    Io,
}

/// An error of reading what is on a disk. Its text says what was read, and where it stands.
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
    /// An error of `kind`; `context` says what happened, and where.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// Bytes that cannot be right; `context` says which structure, where, and what is wrong with it.
    pub fn damaged(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, context)
    }

    /// Something known that is not read here.
    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, context)
    }

    /// Nothing of that name.
    pub fn not_found(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, context)
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

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
