//! Where objects are kept.

mod fault;
mod local;
mod memory;
mod reserve;

use std::fmt::Debug;

use crate::error::Result;
use crate::key::{Folder, ObjectKey};

pub use fault::{FaultPlan, FaultStorage};
pub use local::LocalStorage;
pub use memory::MemoryStorage;

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
