use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use backstay_format::ChunkId;
use backstay_format::pack::PackKind;
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::error::Result;
use crate::repository::Inner;

use super::fetch::{ReadScratch, Wanted, fetch};

/// What a cached chunk costs besides its bytes.
const ENTRY_OVERHEAD: u64 = 128;
/// Memory of dropped chunks that is kept for the next ones. Fresh memory comes from the system page by
/// page, each cleared first: that cost more than decoding.
const SPARE_BYTES: usize = 16 << 20;

/// Decoded data chunks, shared by every reader of a repository and bounded in bytes.
///
/// A chunk is fetched and decoded once however many ask for it: the first takes a place in the
/// cache, the others wait for it.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    chunks: Cache<ChunkId, Arc<Chunk>, ByBytes>,
    /// Chunks that were read whole, and once, a while ago: as many as fit into the cache.
    streamed: Cache<ChunkId, ()>,
    spare: Arc<Spare>,
}

/// A decoded chunk. Its memory is used again.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    spare: Arc<Spare>,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.bytes));
    }
}

/// Memory of chunks that were dropped.
#[derive(Debug)]
struct Spare {
    buffers: Mutex<Vec<Vec<u8>>>,
    most: usize,
}

impl Spare {
    /// `len` bytes, with anything in them.
    fn take(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.buffers.lock().pop().unwrap_or_default();
        bytes.resize(len, 0);
        bytes
    }

    fn give(&self, bytes: Vec<u8>) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < self.most {
            buffers.push(bytes);
        }
    }
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<ChunkId, Arc<Chunk>> for ByBytes {
    fn weight(&self, _: &ChunkId, value: &Arc<Chunk>) -> u64 {
        value.len() as u64 + ENTRY_OVERHEAD
    }
}

/// What is wanted of a chunk, and where to.
pub(crate) struct Piece<'a> {
    pub(crate) id: ChunkId,
    /// Bytes of the whole chunk.
    pub(crate) len: u32,
    /// Where in the chunk it begins.
    pub(crate) from: usize,
    pub(crate) out: &'a mut [u8],
}

impl Piece<'_> {
    fn is_whole(&self) -> bool {
        self.out.len() == self.len as usize
    }

    fn copy_from(&mut self, chunk: &[u8]) -> Result<()> {
        let bytes = chunk.get(self.from..self.from + self.out.len());
        self.out.copy_from_slice(bytes.ok_or_else(|| short(self.id))?);
        Ok(())
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
        let spare = Spare { buffers: Mutex::default(), most: SPARE_BYTES / chunk_bytes as usize };
        Self {
            chunks: Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            streamed: Cache::new(items),
            spare: Arc::new(spare),
        }
    }

    /// The chunk, if it is here.
    pub(crate) fn get(&self, id: &ChunkId) -> Option<Arc<Chunk>> {
        self.chunks.get(id)
    }

    /// Whether the chunk is here. Asking is no use of it.
    pub(crate) fn holds(&self, id: &ChunkId) -> bool {
        self.chunks.peek(id).is_some()
    }

    /// Reads pieces of chunks. Missing chunks are fetched together, so that neighbours in a pack are
    /// one read.
    ///
    /// Who reads whole chunks keeps them, as a rule: what is read so for the first time in a while
    /// goes past the cache. It costs no memory here and no copy, and pushes out nothing.
    pub(crate) fn read(
        &self,
        repo: &Inner,
        pieces: Vec<Piece<'_>>,
        scratch: &mut ReadScratch,
    ) -> Result<()> {
        let (mut past, mut kept, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
        for mut piece in pieces {
            // No waiting here: whoever holds a place may be waiting for one of ours.
            match self.chunks.get_value_or_guard(&piece.id, Some(Duration::ZERO)) {
                GuardResult::Value(chunk) => piece.copy_from(&chunk)?,
                GuardResult::Guard(guard) if piece.is_whole() && self.is_new(piece.id) => {
                    past.push((guard, piece));
                }
                GuardResult::Guard(guard) => kept.push((guard, self.chunk(piece.len), piece)),
                GuardResult::Timeout => elsewhere.push(piece),
            }
        }
        let mut wanted: Vec<Wanted<'_>> = Vec::with_capacity(past.len() + kept.len());
        wanted.extend(past.iter_mut().map(|(_, p)| Wanted { id: p.id, out: p.out }));
        wanted.extend(kept.iter_mut().map(|(_, c, p)| Wanted { id: p.id, out: &mut c.bytes }));
        if !wanted.is_empty() {
            fetch(repo, PackKind::Data, &mut wanted, scratch)?;
        }
        for (guard, chunk, mut piece) in kept {
            piece.copy_from(&chunk)?;
            // An error says that the place was taken away meanwhile; the chunk is fetched again
            // when it is next asked for.
            let _ = guard.insert(Arc::new(chunk));
        }
        // Whoever waits for one of these fetches it again, and keeps it.
        drop(past);
        for mut piece in elsewhere {
            piece.copy_from(&self.get_one(repo, piece.id, piece.len, scratch)?)?;
        }
        Ok(())
    }

    /// Whether a chunk is read whole for the first time in a while.
    fn is_new(&self, id: ChunkId) -> bool {
        let new = self.streamed.get(&id).is_none();
        if new {
            self.streamed.insert(id, ());
        }
        new
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
            let place = self.chunks.get_value_or_guard(&id, Some(Duration::ZERO));
            if let GuardResult::Guard(g) = place {
                guards.push((g, id, self.chunk(len)));
            }
        }
        if guards.is_empty() {
            return Ok(());
        }
        let mut wanted: Vec<Wanted<'_>> =
            guards.iter_mut().map(|(_, id, c)| Wanted { id: *id, out: &mut c.bytes }).collect();
        fetch(repo, PackKind::Data, &mut wanted, scratch)?;
        for (guard, _, chunk) in guards {
            // An error says that the place was taken away meanwhile; the chunk is fetched again
            // when it is next asked for.
            let _ = guard.insert(Arc::new(chunk));
        }
        Ok(())
    }

    fn get_one(
        &self,
        repo: &Inner,
        id: ChunkId,
        len: u32,
        scratch: &mut ReadScratch,
    ) -> Result<Arc<Chunk>> {
        self.chunks.get_or_insert_with(&id, || {
            let mut chunk = self.chunk(len);
            let out = chunk.bytes.as_mut_slice();
            fetch(repo, PackKind::Data, &mut [Wanted { id, out }], scratch)?;
            Ok(Arc::new(chunk))
        })
    }

    /// A chunk with anything in it: whoever asks for it fills it, or drops it.
    fn chunk(&self, len: u32) -> Chunk {
        Chunk { bytes: self.spare.take(len as usize), spare: self.spare.clone() }
    }
}

/// A chunk that does not fit the place it stands at.
pub(super) fn short(id: ChunkId) -> crate::Error {
    let text = format!("chunk {id} is shorter than its place on the disk");
    crate::Error::new(crate::ErrorKind::Damaged, text)
}
