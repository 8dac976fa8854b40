//! Tools for tests: a file system that loses power, and randomness that repeats.

pub mod conformance;
pub mod fuzz;
mod index;
pub mod layout;
mod sim_fs;

use std::fmt;

use parking_lot::Mutex;

use backstay_format::{ChunkId, PackId};

use crate::entropy::Entropy;
use crate::error::Result;
use crate::pack::read_footer;
use crate::repository::Repository;

pub use crate::planted::{Fault, plant};
pub use index::lookup;
pub use sim_fs::SimFs;

/// Makes the index of an opened repository forget where the chunks of a pack are, though it knows
/// the pack: an index that is wrong.
pub fn forget_chunks(repo: &Repository, pack: PackId) -> Result<()> {
    let inner = repo.inner();
    let footer = read_footer(inner.storage(), inner.config().id, inner.keys(), pack)?;
    let ids: Vec<ChunkId> = footer.entries.iter().map(|e| e.id).collect();
    inner.index()?.drop_copies(pack, &ids)
}

/// Random bytes from a seed: the same seed, the same bytes.
pub struct SeededEntropy(Mutex<blake3::OutputReader>);

impl SeededEntropy {
    /// The source that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(Mutex::new(hasher.finalize_xof()))
    }

    /// A number below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }
}

impl fmt::Debug for SeededEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededEntropy")
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, buf: &mut [u8]) {
        self.0.lock().fill(buf);
    }
}
