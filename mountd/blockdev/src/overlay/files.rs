//! The few file operations of an overlay, as traits, so that power cuts can be simulated between any
//! two of them.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

/// A directory that belongs to one overlay.
///
/// Durability: a file's bytes and length are durable once [`RandomFile::sync`] returned; names once
/// [`Directory::sync`] returned after the call that changed them. Nothing else is promised: what was not
/// synced may be lost in any combination, 512 bytes at a time.
pub trait Directory: Send + Sync + Debug {
    /// Makes a new, empty file. `AlreadyExists` if the name is taken.
    fn create(&self, name: &str) -> io::Result<Arc<dyn RandomFile>>;

    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn RandomFile>>;

    /// Renames a file; one that has the name `to` is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of the files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;

    /// Keeps every other process out until what is returned is dropped. `ResourceBusy` if one is in.
    fn lock(&self) -> io::Result<Box<dyn Guard>>;

    /// What messages call the directory.
    fn name(&self) -> String;
}

/// Keeps others out while it lives.
pub trait Guard: Send + Sync + Debug {}

impl Guard for File {}

/// A file read and written at any place, from several threads.
pub trait RandomFile: Send + Sync + Debug {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Makes it longer, with a hole that reads as zeros, or shorter.
    fn set_size(&self, bytes: u64) -> io::Result<()>;

    /// Fills all of `buf` from `offset`; `UnexpectedEof` if the file is too short.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The same if it can be done without waiting for a disk; else `false`.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;

    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Frees the space of a range, which then reads as zeros. `Unsupported` where it cannot be done.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable. After a failure the file must be given up: the next sync
    /// would succeed and have saved nothing.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the machine's file system.
#[derive(Debug)]
pub struct RealDirectory {
    path: PathBuf,
}

impl RealDirectory {
    /// The directory at `path`; it must be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directory for RealDirectory {
    fn create(&self, name: &str) -> io::Result<Arc<dyn RandomFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(RealFile { file: options.open(self.path.join(name))? }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RandomFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        // The caller syncs the file before and the directory after.
        Ok(rustix::fs::rename(self.path.join(from), self.path.join(to))?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn lock(&self) -> io::Result<Box<dyn Guard>> {
        let directory = File::open(&self.path)?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Box::new(directory)),
            Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(e) => Err(e.into()),
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

impl RandomFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let len = buf.len();
        let mut slices = [IoSliceMut::new(buf)];
        // Every failure here is left to `read_at`, which tells it.
        match rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n == len),
            Err(_) => Ok(false),
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, how, offset, len)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
