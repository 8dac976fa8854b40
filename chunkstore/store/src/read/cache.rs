use std::sync::Arc;
use std::time::Duration;

use backstay_format::ChunkId;
use backstay_format::pack::PackKind;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::error::Result;
use crate::repository::Inner;

use super::fetch::{ReadScratch, Wanted, fetch};

/// What a cached chunk costs besides its bytes.
const ENTRY_OVERHEAD: u64 = 96;

/// Decoded data chunks, shared by every reader of a repository and bounded in bytes.
///
/// A chunk is fetched and decoded once however many ask for it: the first takes a place in the
/// cache, the others wait for it.
#[derive(Debug)]
pub(crate) struct ChunkCache(Cache<ChunkId, Arc<[u8]>, ByBytes>);

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<ChunkId, Arc<[u8]>> for ByBytes {
    fn weight(&self, _: &ChunkId, value: &Arc<[u8]>) -> u64 {
        value.len() as u64 + ENTRY_OVERHEAD
    }
}

impl ChunkCache {
    /// A cache of `bytes`, for chunks of about `chunk_bytes`.
    pub(crate) fn new(bytes: u64, chunk_bytes: u32) -> Self {
        let items = usize::try_from(bytes / u64::from(chunk_bytes)).unwrap_or(usize::MAX).max(16);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(bytes)
            // Half for chunks seen once: what is fetched ahead of a sequential reader must stay
            // until it is read, even when the rest of the cache is in use.
            .hot_allocation(0.5)
            .build();
        let options = options.expect("capacities are set");
        Self(Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        ))
    }

    /// The chunk, if it is here.
    pub(crate) fn get(&self, id: &ChunkId) -> Option<Arc<[u8]>> {
        self.0.get(id)
    }

    /// All chunks asked for (with their lengths), in order. Missing ones are fetched together, so
    /// that neighbours in a pack are one read.
    pub(crate) fn get_all(
        &self,
        repo: &Inner,
        ids: &[(ChunkId, u32)],
        scratch: &mut ReadScratch,
    ) -> Result<Vec<Arc<[u8]>>> {
        self.fill(repo, ids, scratch)?;
        ids.iter().map(|&(id, len)| self.get_one(repo, id, len, scratch)).collect()
    }

    /// Fetches those chunks that are neither here nor being fetched by another thread.
    pub(crate) fn fill(
        &self,
        repo: &Inner,
        ids: &[(ChunkId, u32)],
        scratch: &mut ReadScratch,
    ) -> Result<()> {
        let mut guards = Vec::new();
        for &(id, len) in ids {
            // No waiting here: whoever holds a place may be waiting for one of ours.
            if let GuardResult::Guard(g) = self.0.get_value_or_guard(&id, Some(Duration::ZERO)) {
                guards.push((g, id, vec![0u8; len as usize]));
            }
        }
        if guards.is_empty() {
            return Ok(());
        }
        let mut wanted: Vec<Wanted<'_>> =
            guards.iter_mut().map(|(_, id, out)| Wanted { id: *id, out }).collect();
        fetch(repo, PackKind::Data, &mut wanted, scratch)?;
        for (guard, _, bytes) in guards {
            // An error says that the place was taken away meanwhile; the chunk is fetched again
            // when it is next asked for.
            let _ = guard.insert(bytes.into());
        }
        Ok(())
    }

    fn get_one(
        &self,
        repo: &Inner,
        id: ChunkId,
        len: u32,
        scratch: &mut ReadScratch,
    ) -> Result<Arc<[u8]>> {
        self.0.get_or_insert_with(&id, || {
            let mut bytes = vec![0u8; len as usize];
            fetch(repo, PackKind::Data, &mut [Wanted { id, out: &mut bytes }], scratch)?;
            Ok(bytes.into())
        })
    }
}
