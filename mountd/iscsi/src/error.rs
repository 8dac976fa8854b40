//! The crate's error.

use std::fmt;
use std::io;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address or name that cannot be used: give another one.
    Invalid,
    /// The other side understood and said no (an unknown target, a login that is not allowed).
    Refused,
    /// The other side broke the protocol; nothing it sent can be trusted.
    Protocol,
    /// The other side took too long.
    Timeout,
    /// The network or the operating system failed; trying again may help.
    Io,
}

/// An error of the iSCSI target. Its text says what was being done, and with whom.
#[derive(Debug, thiserror::Error)]
#[error("{context}{}", Cause(.source))]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

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
    /// An error of `kind`; `context` says what happened.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The other side broke the protocol.
    pub(crate) fn protocol(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, context)
    }

    /// Wraps an error of the operating system; time-outs of sockets become [`ErrorKind::Timeout`].
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// Wraps what the codec found wrong.
    pub(crate) fn codec(context: impl Into<String>, source: crate::proto::Malformed) -> Self {
        Self { kind: ErrorKind::Protocol, context: context.into(), source: Some(source.into()) }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<backstay_serve::Error> for Error {
    fn from(error: backstay_serve::Error) -> Self {
        let kind = match error.kind() {
            backstay_serve::ErrorKind::Invalid => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        let (_, context, source) = error.into_parts();
        Self { kind, context, source: source.map(Into::into) }
    }
}
