//! Where objects are kept.

mod disk_cache;
mod fault;
mod local;
mod memory;
mod reserve;
mod s3;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::location::{Location, Place};

pub(crate) use disk_cache::DiskCache;
pub use fault::{FaultPlan, FaultStorage};
pub use local::LocalStorage;
pub use memory::MemoryStorage;
pub use s3::{S3Location, S3Options, S3Storage};

/// A part of an object to be read.
#[derive(Debug)]
pub struct RangeRead<'a> {
    /// The object.
    pub key: ObjectKey,
    /// Where the part starts.
    pub offset: u64,
    /// Filled whole.
    pub buf: &'a mut [u8],
    /// Whether it pays to keep what is read nearby.
    pub keep: Keep,
}

/// Whether a part of an object will be wanted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is read once.
    No,
    /// A part of a data pack that may be read again.
    Data,
    /// A part of a tree pack.
    Tree,
}

/// A part of an object that may reach beyond the object's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The object.
    pub key: ObjectKey,
    /// Where the part starts.
    pub offset: u64,
    /// Bytes at most.
    pub len: u64,
}

/// How a storage wants to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Reading threads worth having, beyond those that the processors are worth; each waits most
    /// of its time. 0: the processors decide alone.
    pub reads: usize,
    /// Packs worth sending at the same time.
    pub writes: usize,
    /// Bytes worth asking for with one [`Storage::read_many`]; 0: one range at a time, because an
    /// answer comes at once.
    pub batch_bytes: u32,
}

impl Advice {
    /// A storage that answers within a millisecond.
    pub const NEAR: Self = Self { reads: 0, writes: 2, batch_bytes: 0 };

    /// Whether an answer takes so long that asking for more than is needed now pays.
    pub fn is_distant(self) -> bool {
        self.batch_bytes > 0
    }
}

/// A place for immutable objects. Only this crate writes to one.
///
/// All methods may be called from many threads, and several processes may use one storage at once.
pub trait Storage: Send + Sync + Debug {
    /// Stores a new object, the concatenation of `parts`. Visible whole or not at all; durable when
    /// this returns `Ok`. [`crate::ErrorKind::Exists`] if the name is taken: nothing is ever
    /// overwritten (FORMAT.md, rule O4). After any other error the object may or may not exist.
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()>;

    /// The same for an object that a full storage must still take, so that space can be won back:
    /// records of removals and collections, and packs written by collecting and repairing. May use
    /// a reserve that packs of backups leave alone.
    fn put_vital(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.put(key, parts)
    }

    /// Makes the reserve again if there is room for it. Called when a backup begins and when a
    /// collection has ended; that it cannot be made is nobody's failure.
    fn refill_reserve(&self) {}

    /// The whole object, if it is at most `max` bytes long; longer is `Damaged`.
    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>>;

    /// Fills all of `buf` from `offset`. An object that ends before is `Damaged`, never short data.
    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Fills several buffers, in no order and, where it pays, at the same time. After an error
    /// nothing in the buffers is of use.
    fn read_many(&self, reads: &mut [RangeRead<'_>]) -> Result<()> {
        reads.iter_mut().try_for_each(|r| self.read_at(r.key, r.offset, r.buf))
    }

    /// What there is of several parts, in their order. A part that starts behind the object's end
    /// is `Damaged`.
    fn read_parts(&self, parts: &[Part]) -> Result<Vec<Vec<u8>>> {
        let read = |part: &Part| {
            let size = self.size(part.key)?;
            let len = size.saturating_sub(part.offset).min(part.len);
            if len == 0 && part.len > 0 {
                let text = format!("{} is cut short: it ends at byte {size}", part.key);
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            let mut data = vec![0u8; usize::try_from(len).unwrap_or(usize::MAX)];
            self.read_at(part.key, part.offset, &mut data)?;
            Ok(data)
        };
        parts.iter().map(read).collect()
    }

    /// How to use this storage well.
    fn advice(&self) -> Advice {
        Advice::NEAR
    }

    /// The object's length in bytes.
    fn size(&self, key: ObjectKey) -> Result<u64>;

    /// The objects of a folder, sorted. Names that are no ids of that kind are left out.
    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>>;

    /// Removes an object. `NotFound` if there is none.
    fn delete(&self, key: ObjectKey) -> Result<()>;

    /// Claims `what` (a word) for one at a time, among all threads and processes that use this
    /// storage, until the claim is dropped or its process dies. `Busy` if another does not let go
    /// within some seconds. A storage that has no such thing gives everybody a claim.
    fn claim(&self, what: &str) -> Result<Box<dyn Send>> {
        let _ = what;
        Ok(Box::new(()))
    }

    /// Removes what writers that no longer live have left unfinished.
    fn tidy(&self) -> Result<()> {
        Ok(())
    }
}

/// The storage at `location`, ready for a repository to be made. `Exists` if there is one.
pub(crate) fn create(location: &Location) -> Result<Arc<dyn Storage>> {
    Ok(match location.place() {
        Place::Directory(path) => Arc::new(LocalStorage::create_real(path)?),
        Place::S3(s3) => Arc::new(S3Storage::create(s3, S3Options::default())?),
    })
}

/// The storage of the repository at `location`. `NotFound` if there is none.
pub(crate) fn open(location: &Location) -> Result<Arc<dyn Storage>> {
    Ok(match location.place() {
        Place::Directory(path) => Arc::new(LocalStorage::open_real(path)?),
        Place::S3(s3) => Arc::new(S3Storage::new(s3, S3Options::default())?),
    })
}

/// `storage` with a cache in `dir`, if it is far away and there may be one.
pub(crate) fn with_disk_cache(
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    max_bytes: u64,
) -> Arc<dyn Storage> {
    if max_bytes == 0 || !storage.advice().is_distant() {
        return storage;
    }
    Arc::new(DiskCache::new(storage, dir, max_bytes))
}
