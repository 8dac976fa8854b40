use std::fmt;

/// What is wrong with the bytes, as far as it changes what a caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatErrorKind {
    /// The bytes are not of this format at all, or were damaged: magic, checksum, length, field value.
    Damaged,
    /// The bytes are of this format but from a newer version, or need a feature unknown here.
    Unsupported,
    /// A value given by a person or a program (not read from a repository) does not fit.
    Invalid,
}

/// An error with the place in the bytes (or the name of the field) where it was seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FormatError {
    kind: FormatErrorKind,
    place: &'static str,
    detail: String,
}

impl FormatError {
    /// Bytes that are damaged or no bytes of ours.
    pub fn damaged(place: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Damaged, place, detail: detail.into() }
    }

    /// Bytes that only a newer program can read.
    pub fn unsupported(place: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Unsupported, place, detail: detail.into() }
    }

    /// A value from outside the repository that does not fit.
    pub fn invalid(place: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Invalid, place, detail: detail.into() }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> FormatErrorKind {
        self.kind
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.detail)
    }
}
