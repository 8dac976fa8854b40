//! Locks over ranges of blocks, so that a change of part of a block loses no other change of it.

use std::ops::Range;

use parking_lot::{Mutex, MutexGuard};

/// Locks in all.
const STRIPES: u64 = 256;
/// Neighbouring blocks that share a lock.
const GROUP_BLOCKS: u64 = 16;

/// A fixed number of locks; each block has one of them.
#[derive(Debug)]
pub(super) struct Stripes(Vec<Mutex<()>>);

impl Stripes {
    pub(super) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    /// Locks all blocks of a range. Always in the order of the locks, so two ranges cannot wait for each other.
    pub(super) fn lock(&self, blocks: Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let (first, end) = (blocks.start / GROUP_BLOCKS, blocks.end.div_ceil(GROUP_BLOCKS));
        if end - first >= STRIPES {
            return self.0.iter().map(Mutex::lock).collect();
        }
        // The groups' locks, which may wrap around once.
        let (from, to) = (first % STRIPES, first % STRIPES + (end - first));
        let wrapped = 0..to.saturating_sub(STRIPES);
        wrapped.chain(from..to.min(STRIPES)).map(|i| self.0[i as usize].lock()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_take_each_lock_once_and_in_order() {
        let stripes = Stripes::new();
        for (range, locks) in [
            (0..1, 1),
            (15..17, 2),
            (0..16 * 256, 256),
            (16 * 250..16 * 260, 10),
            (5..1 << 40, 256),
            (7..7, 1),
        ] {
            assert_eq!(stripes.lock(range.clone()).len(), locks, "{range:?}");
        }
    }
}
