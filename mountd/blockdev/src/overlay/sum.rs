//! Sums that tell a write that was cut short from one that was not (XXH3, 64 bits).

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// The sum of `bytes`; `seed` keeps the sums of one overlay apart from those of another.
pub(super) fn sum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// The same over bytes that come piece by piece.
pub(super) struct Summing(XxHash3_64);

impl Summing {
    pub(super) fn new(seed: u64) -> Self {
        Self(XxHash3_64::with_seed(seed))
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(super) fn end(&self) -> u64 {
        self.0.finish()
    }
}
