//! The crate's one error: what happened, to which object, and what the caller can do about it.

use std::fmt;
use std::path::Path;

/// What a caller can do about an error. The command line maps each kind to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named file, machine, point or disk does not exist.
    NotFound,
    /// A name fits more than one object; the message lists the candidates.
    Ambiguous,
    /// The request makes no sense as given: a bad name, a wrong format, a directory for an image.
    Invalid,
    /// The source was written to while it was read; nothing was recorded.
    SourceChanged,
    /// A format, a feature or a tool this build or this machine does not have.
    Unsupported,
    /// The target is there already and the plan does not allow replacing it.
    Exists,
    /// Somebody else holds the image or the device.
    InUse,
    /// The file system or device is too small or full.
    NoSpace,
    /// Stored data, or a source image, is damaged.
    Damaged,
    /// The key does not open the repository, or a key is needed.
    WrongKey,
    /// Another process is in the way; trying again later may help.
    Busy,
    /// The operating system refuses access.
    Denied,
    /// The monitor asked for the end.
    Cancelled,
    /// An operating system call failed otherwise.
    Io,
    /// An outside program (qemu-nbd, qemu-img) failed; the message has its own words.
    Tool,
}

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of the engine. `Display` is one line that tells the whole story: what happened to which
/// object, why, and, where there is one, the remedy. `source()` leads to the cause for those who
/// look for its type; its text is in the line already.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Source>,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that has no cause below it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Error { kind, context: context.into(), source: None }
    }

    /// The same error with the cause it came from, told after it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Source>) -> Self {
        let source = source.into();
        self.context = format!("{}: {}", self.context, story(&*source));
        self.source = Some(source);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An operating system error on `path` while doing `what` ("open", "write").
    pub(crate) fn io(what: &str, path: &Path, error: std::io::Error) -> Self {
        Error::new(kind_of_io(&error), format!("cannot {what} {}", path.display())).caused_by(error)
    }

    /// Puts what was being done in front, and keeps the kind and the chain.
    pub(crate) fn within(self, context: impl Into<String>) -> Self {
        Error::new(self.kind, context).caused_by(self)
    }
}

/// The texts of an error and of all causes below it in one line. Some crates put the cause into
/// their own text and some do not; a cause that was told already is not told twice.
fn story(error: &(dyn std::error::Error + 'static)) -> String {
    /// Longest chain that is told; no crate here nests as deep.
    const CAUSES_MAX: usize = 16;
    let mut line = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// The kind for an operating system error.
pub(crate) fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::Exists,
        K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::Denied,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
        K::ResourceBusy | K::ExecutableFileBusy => ErrorKind::InUse,
        K::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

impl From<backstay_store::Error> for Error {
    fn from(error: backstay_store::Error) -> Self {
        use backstay_store::ErrorKind as K;
        let kind = match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::Exists => ErrorKind::Exists,
            K::WrongKey | K::NeedsKey => ErrorKind::WrongKey,
            K::Damaged => ErrorKind::Damaged,
            K::NoSpace => ErrorKind::NoSpace,
            K::Denied | K::Locked => ErrorKind::Denied,
            K::Unsupported => ErrorKind::Unsupported,
            K::Invalid => ErrorKind::Invalid,
            K::Busy => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error { kind, context: story(&error), source: Some(Box::new(error)) }
    }
}

impl From<backstay_blockdev::Error> for Error {
    fn from(error: backstay_blockdev::Error) -> Self {
        use backstay_blockdev::ErrorKind as K;
        let kind = match error.kind() {
            K::OutOfRange => ErrorKind::Invalid,
            K::ReadOnly => ErrorKind::Denied,
            K::Unsupported => ErrorKind::Unsupported,
            K::NoSpace => ErrorKind::NoSpace,
            K::Damaged => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        };
        Error { kind, context: story(&error), source: Some(Box::new(error)) }
    }
}

impl From<backstay_nbd::Error> for Error {
    fn from(error: backstay_nbd::Error) -> Self {
        Error { kind: ErrorKind::Io, context: story(&error), source: Some(Box::new(error)) }
    }
}
