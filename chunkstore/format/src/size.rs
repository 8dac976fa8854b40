use std::fmt;

use crate::FormatError;
use crate::limits::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};

/// The size of the blocks a disk image is cut into: a power of two between 4 KiB and 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 64 KiB: one bit of QEMU's dirty bitmaps and one qcow2 cluster, so a changed block costs one chunk.
    pub const DEFAULT: ChunkSize = ChunkSize(64 * 1024);

    /// The size as given, if it is a power of two within the bounds.
    pub fn new(bytes: u32) -> Result<Self, FormatError> {
        if !bytes.is_power_of_two() || !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&bytes) {
            return Err(FormatError::invalid(
                "chunk size",
                format!(
                    "{bytes} is not a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX} bytes"
                ),
            ));
        }
        Ok(Self(bytes))
    }

    /// Bytes in a chunk.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Bytes in a chunk, for slices.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// How many chunks a disk of `size_bytes` has; the last may be short.
    pub const fn chunk_count(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.0 as u64)
    }

    /// The chunk that holds byte `offset`.
    pub const fn index_of(self, offset: u64) -> ChunkIndex {
        ChunkIndex(offset / self.0 as u64)
    }

    /// The length of chunk `index` of a disk of `size_bytes`: the chunk size, less at the disk's end,
    /// zero beyond it.
    pub fn chunk_len(self, size_bytes: u64, index: ChunkIndex) -> u32 {
        let Some(start) = index.0.checked_mul(u64::from(self.0)) else { return 0 };
        u32::try_from(size_bytes.saturating_sub(start).min(u64::from(self.0))).unwrap_or(self.0)
    }
}

impl TryFrom<u32> for ChunkSize {
    type Error = FormatError;

    fn try_from(bytes: u32) -> Result<Self, FormatError> {
        Self::new(bytes)
    }
}

impl From<ChunkSize> for u32 {
    fn from(size: ChunkSize) -> u32 {
        size.0
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB", self.0 / 1024)
    }
}

/// The number of a chunk within a disk: byte offset divided by the chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

impl ChunkIndex {
    /// The byte offset at which this chunk starts. Saturates beyond what a disk can have.
    pub const fn offset(self, size: ChunkSize) -> u64 {
        self.0.saturating_mul(size.0 as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        for bad in [0, 1, 2048, 65535, 65537, 8 << 20, u32::MAX] {
            assert!(ChunkSize::new(bad).is_err(), "{bad}");
        }
        for good in [4096, 65536, 4 << 20] {
            assert_eq!(ChunkSize::new(good).unwrap().bytes(), good);
        }
    }

    #[test]
    fn last_chunk_is_short() {
        let s = ChunkSize::new(4096).unwrap();
        assert_eq!(s.chunk_count(10_000), 3);
        assert_eq!(s.chunk_len(10_000, ChunkIndex(0)), 4096);
        assert_eq!(s.chunk_len(10_000, ChunkIndex(2)), 10_000 - 8192);
        assert_eq!(s.chunk_len(10_000, ChunkIndex(3)), 0);
        assert_eq!(s.chunk_len(10_000, ChunkIndex(u64::MAX)), 0);
        assert_eq!(s.chunk_count(0), 0);
    }
}
