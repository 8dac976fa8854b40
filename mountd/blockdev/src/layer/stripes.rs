//! Locks over the blocks of a device, a fixed number of them whatever its size.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Blocks whose numbers are equal modulo this share a lock.
const STRIPES: u64 = 128;

/// One lock for every 128th block. Locks of several blocks are always taken in the order of the
/// stripes, so holders never wait for each other in a circle.
#[derive(Debug)]
pub(super) struct Stripes {
    locks: Vec<RwLock<()>>,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { locks: (0..STRIPES).map(|_| RwLock::new(())).collect() }
    }

    /// The stripes of `blocks`, in order, each once.
    fn of(&self, blocks: &std::ops::Range<u64>) -> Vec<&RwLock<()>> {
        let count = (blocks.end - blocks.start).min(STRIPES);
        let mut list: Vec<u64> = (0..count).map(|i| (blocks.start + i) % STRIPES).collect();
        list.sort_unstable();
        list.into_iter().map(|i| &self.locks[i as usize]).collect()
    }

    /// Nobody changes the blocks while the answer lives.
    pub(super) fn read(&self, blocks: std::ops::Range<u64>) -> Vec<RwLockReadGuard<'_, ()>> {
        // The locks guard nothing of their own, so a holder that panicked leaves nothing half done.
        let locks = self.of(&blocks).into_iter();
        locks.map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Like `read`, but `None` rather than waiting.
    pub(super) fn try_read(
        &self,
        blocks: std::ops::Range<u64>,
    ) -> Option<Vec<RwLockReadGuard<'_, ()>>> {
        self.of(&blocks).into_iter().map(|lock| lock.try_read().ok()).collect()
    }

    /// Nobody else has the blocks while the answer lives.
    pub(super) fn write(&self, blocks: std::ops::Range<u64>) -> Vec<RwLockWriteGuard<'_, ()>> {
        let locks = self.of(&blocks).into_iter();
        locks.map(|lock| lock.write().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}
