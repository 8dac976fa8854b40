use std::fmt;

use backstay_format::{FormatError, FormatErrorKind};

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such repository, point, disk or object.
    NotFound,
    /// There is one already; nothing was changed.
    Exists,
    /// The key given opens no key slot.
    WrongKey,
    /// The repository is encrypted and no key was given.
    NeedsKey,
    /// Stored bytes are missing or are not what was stored.
    Damaged,
    /// The storage or the cache directory is full.
    NoSpace,
    /// The operating system refused access.
    Denied,
    /// Kept by a retention lock; nothing but time releases it.
    Locked,
    /// Written by a newer program, or the storage lacks what is needed.
    Unsupported,
    /// A value given by the caller does not fit.
    Invalid,
    /// Somebody else is in the way.
    Busy,
    /// Reading or writing failed.
    Io,
    /// Somebody took the session for dead, and it may not commit any more.
    Fenced,
    /// The session failed earlier and takes nothing more.
    Aborted,
}

/// An error: kind for decisions, text for people, source for the chain.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind with a sentence that names the object.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    /// The same with the error that caused it.
    pub fn because(
        kind: ErrorKind,
        text: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind, text: text.into(), source: Some(Box::new(source)) }
    }

    /// An error of the operating system while doing `text`; the kind comes from the error.
    pub fn io(text: impl Into<String>, source: std::io::Error) -> Self {
        Self::because(io_kind(&source), text, source)
    }

    /// Bytes that do not decode, with the object they came from.
    pub fn format(text: impl Into<String>, source: FormatError) -> Self {
        let kind = match source.kind() {
            FormatErrorKind::Damaged => ErrorKind::Damaged,
            FormatErrorKind::Unsupported => ErrorKind::Unsupported,
            FormatErrorKind::Invalid => ErrorKind::Invalid,
        };
        Self::because(kind, text, source)
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the medium itself cannot give the bytes back: a bad sector, not a storage that is
    /// out of reach.
    pub(crate) fn is_media_error(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(s) = source {
            if let Some(io) = s.downcast_ref::<std::io::Error>() {
                return io.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
            }
            source = s.source();
        }
        false
    }

    /// This error and all that caused it, in one line.
    pub(crate) fn whole_story(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(s) = source {
            text = format!("{text}: {s}");
            source = s.source();
        }
        text
    }

    /// The same error with more of the story: `text` first, this error as its source.
    pub fn context(self, text: impl Into<String>) -> Self {
        Self { kind: self.kind, text: text.into(), source: Some(Box::new(self)) }
    }
}

fn io_kind(e: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as K;
    match e.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::Exists,
        K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::Denied,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
        K::ResourceBusy => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| &**e as _)
    }
}

/// The result of most functions here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
