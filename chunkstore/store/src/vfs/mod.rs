//! The few file-system calls that the local storage makes, as a trait, so that power cuts can be
//! simulated between any two of them.

mod real;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use real::RealFs;

/// A file system as the store uses it. Paths are absolute.
///
/// Durability: bytes of a file are durable once [`VfsWrite::sync`] returned; names in a directory
/// are durable once [`Vfs::sync_dir`] of that directory returned after the call that changed them.
/// Nothing else is promised. After a failed sync the file must be given up, not synced again
/// (FORMAT.md, rule O6).
pub trait Vfs: Send + Sync + Debug {
    /// Makes a new file, owned by this process until the writer is dropped. `AlreadyExists` if the
    /// name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsWrite>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsRead>>;

    /// Renames a file. `AlreadyExists` if `to` is taken; never replaces.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a file unless a living process owns it (has its [`VfsWrite`]). Tells whether it did.
    fn remove_if_unowned(&self, path: &Path) -> io::Result<bool>;

    /// Makes a directory. `AlreadyExists` if the name is taken.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// How large the file system of a directory is. `Unsupported` where nobody can tell.
    fn space(&self, path: &Path) -> io::Result<Space> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The size of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What may still be written without special rights.
    pub free: u64,
}

/// A file being written.
pub trait VfsWrite: Send + Debug {
    /// Appends all of `data`.
    fn write_all(&mut self, data: &[u8]) -> io::Result<()>;

    /// Makes the file's bytes and length durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Makes an empty file `bytes` long, of zeros, with space that is really set aside. Nothing
    /// is written to it afterwards. `Unsupported` where the file system cannot.
    fn allocate(&mut self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A file being read.
pub trait VfsRead: Send + Sync + Debug {
    /// Fills all of `buf` from `offset`; `UnexpectedEof` if the file is too short.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn size(&self) -> io::Result<u64>;
}
