//! Which error number a caller of the file system sees for what.
//!
//! The one place of this mapping. Whatever keeps data from being read is `EIO`: a reader must never
//! take a lack of data for the end of a file or for a missing one.

use fuser::Errno;

/// Why a request is not answered with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such name, or it has ended.
    NoEntry,
    /// An inode the kernel knows is no longer there: its point has ended.
    Stale,
    /// A directory was asked for, and this is none.
    NotDirectory,
    /// A file was asked for, and this is a directory.
    IsDirectory,
    /// The inode is not a symbolic link, or a number makes no sense.
    Invalid,
    /// Writing was asked for.
    ReadOnly,
    /// Too many open files in this mount.
    TooManyOpen,
    /// A handle nobody was given.
    BadHandle,
    /// There is no data at or after this offset (lseek).
    NoSuchOffset,
    /// The data or the listing cannot be read.
    Unreadable,
    /// There is no such extended attribute.
    NoAttribute,
    /// The caller's room for an extended attribute is too small.
    TooSmall,
    /// What is there is encrypted, or in a form nobody reads here.
    Unsupported,
    /// Links that lead round, a name that is too long: more than is taken.
    TooMuch,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Errno {
        match refusal {
            Refusal::NoEntry => Errno::ENOENT,
            Refusal::Stale => Errno::ESTALE,
            Refusal::NotDirectory => Errno::ENOTDIR,
            Refusal::IsDirectory => Errno::EISDIR,
            Refusal::Invalid => Errno::EINVAL,
            Refusal::ReadOnly => Errno::EROFS,
            Refusal::TooManyOpen => Errno::ENFILE,
            Refusal::BadHandle => Errno::EBADF,
            Refusal::NoSuchOffset => Errno::ENXIO,
            Refusal::Unreadable => Errno::EIO,
            Refusal::NoAttribute => Errno::ENODATA,
            Refusal::TooSmall => Errno::ERANGE,
            Refusal::Unsupported => Errno::EOPNOTSUPP,
            Refusal::TooMuch => Errno::EIO,
        }
    }
}

/// Every error of a device below is `EIO` to the reader: the kernel has already kept requests
/// inside the file, so even an offset out of range means that something is broken.
impl From<backstay_blockdev::Error> for Refusal {
    fn from(_: backstay_blockdev::Error) -> Self {
        Refusal::Unreadable
    }
}

/// Damage inside a guest's file system is `EIO` as well, and is logged here: the reader behind the mount sees no more than that.
impl From<backstay_guestfs::Error> for Refusal {
    fn from(error: backstay_guestfs::Error) -> Self {
        use backstay_guestfs::ErrorKind as Guest;
        match error.kind() {
            Guest::NotFound => Refusal::NoEntry,
            Guest::NotADirectory => Refusal::NotDirectory,
            Guest::IsADirectory => Refusal::IsDirectory,
            Guest::Invalid => Refusal::Invalid,
            Guest::Unsupported | Guest::Encrypted => Refusal::Unsupported,
            kind => {
                tracing::error!(%error, "cannot read a guest's file system");
                if kind == Guest::Limit { Refusal::TooMuch } else { Refusal::Unreadable }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_fails_is_eio() {
        assert_eq!(Errno::from(Refusal::Unreadable).code(), libc::EIO);
    }
}
