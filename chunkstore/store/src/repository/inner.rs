use std::collections::BTreeSet;
use std::sync::Arc;

use backstay_format::config::RepoConfig;
use backstay_format::point::RecoveryPoint;
use backstay_format::{PackId, PointId};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::entropy::Entropy;
use crate::error::{ErrorKind, Result};
use crate::index::{ChunkIndex, IndexChoice, MemoryIndex, RocksIndex};
use crate::key::{Folder, ObjectKey};
use crate::keys::Keys;
use crate::pack::read_footer;
use crate::read::{ChunkCache, ImageReader, NodeCache};
use crate::storage::Storage;

use super::OpenOptions;

/// Ranges waiting to be fetched ahead; beyond it readers fetch for themselves.
const PREFETCH_QUEUE: usize = 64;
/// Threads that read footers of unknown packs: each waits for storage most of the time.
const FOOTER_THREADS: usize = 4;

/// Records of recovery points kept: a mount lists them every few seconds. About 1 KiB each.
const POINTS_MAX: usize = 16 * 1024;

/// What all parts of an opened repository share.
#[derive(Debug)]
pub(crate) struct Inner {
    storage: Arc<dyn Storage>,
    config: RepoConfig,
    keys: Keys,
    entropy: Arc<dyn Entropy>,
    index_choice: IndexChoice,
    index: Mutex<Option<Arc<dyn ChunkIndex>>>,
    /// One synchronisation at a time.
    synchronising: Mutex<()>,
    nodes: NodeCache,
    chunks: ChunkCache,
    points: Cache<PointId, Arc<RecoveryPoint>>,
    prefetch: Mutex<Option<Sender<PrefetchJob>>>,
    fetch_threads: usize,
}

#[derive(Debug)]
struct PrefetchJob {
    reader: ImageReader,
    offset: u64,
    len: u64,
}

impl Inner {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        config: RepoConfig,
        keys: Keys,
        index_choice: IndexChoice,
        entropy: Arc<dyn Entropy>,
        options: &OpenOptions,
    ) -> Self {
        Self {
            chunks: ChunkCache::new(options.cache_bytes, config.chunk_size.bytes()),
            storage,
            config,
            keys,
            entropy,
            index_choice,
            index: Mutex::new(None),
            synchronising: Mutex::new(()),
            nodes: NodeCache::new(),
            points: Cache::new(POINTS_MAX),
            prefetch: Mutex::new(None),
            fetch_threads: options.fetch_threads,
        }
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(crate) fn config(&self) -> &RepoConfig {
        &self.config
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }

    pub(crate) fn nodes(&self) -> &NodeCache {
        &self.nodes
    }

    pub(crate) fn chunks(&self) -> &ChunkCache {
        &self.chunks
    }

    pub(crate) fn points(&self) -> &Cache<PointId, Arc<RecoveryPoint>> {
        &self.points
    }

    /// The index, opened and brought up to date when it is first needed: listing points and
    /// changing keys do without.
    pub(crate) fn index(&self) -> Result<Arc<dyn ChunkIndex>> {
        let mut slot = self.index.lock();
        if let Some(index) = &*slot {
            return Ok(index.clone());
        }
        let index = self.open_index()?;
        self.adopt_packs(&*index)?;
        *slot = Some(index.clone());
        Ok(index)
    }

    fn open_index(&self) -> Result<Arc<dyn ChunkIndex>> {
        let IndexChoice::Directory(dir) = &self.index_choice else {
            return Ok(Arc::new(MemoryIndex::default()));
        };
        match RocksIndex::open(dir) {
            Ok(index) => Ok(Arc::new(index)),
            // Reading must work where nothing can be written: a full disk, a rescue system.
            Err(e) => {
                tracing::warn!(error = %e, "the index directory cannot be used; reading all pack footers into memory");
                Ok(Arc::new(MemoryIndex::default()))
            }
        }
    }

    /// Brings the index in line with the packs there are.
    pub(crate) fn synchronise(&self) -> Result<()> {
        let index = self.index()?;
        let _one = self.synchronising.lock();
        index.catch_up()?;
        self.adopt_packs(&*index)
    }

    /// Forgets packs that are gone and reads the footers of those it does not know, and no chunk.
    fn adopt_packs(&self, index: &dyn ChunkIndex) -> Result<()> {
        // In this order: a pack that is known was durable before it was known (rule O5), so one
        // that the listing lacks has vanished, whatever others do meanwhile.
        let known: BTreeSet<PackId> = index.packs().into_iter().map(|(id, _)| id).collect();
        let stored: BTreeSet<PackId> = self
            .storage
            .list(Folder::Packs)?
            .into_iter()
            .filter_map(|k| if let ObjectKey::Pack(id) = k { Some(id) } else { None })
            .collect();
        let gone: Vec<PackId> = known.difference(&stored).copied().collect();
        if !gone.is_empty() {
            tracing::warn!(packs = gone.len(), "packs have vanished from the repository");
            index.drop_packs(&gone)?;
        }
        let new: Vec<PackId> = stored.difference(&known).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<()> {
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(&pack) = new.get(i) else { return Ok(()) };
                self.adopt(index, pack)?;
            }
        };
        let threads = FOOTER_THREADS.max(self.storage.advice().reads).min(new.len());
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| match t.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        index.publish()
    }

    fn adopt(&self, index: &dyn ChunkIndex, pack: PackId) -> Result<()> {
        match read_footer(&*self.storage, self.config.id, &self.keys, pack) {
            Ok(f) => index.add_pack(pack, f.header.kind, f.len, &f.entries),
            // Its chunks count as absent, so the next backup stores them again; a check names it.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported
                ) =>
            {
                tracing::warn!(%pack, error = %e, "a pack cannot be used");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Queues a range to be fetched into the cache. `false`: the queue is full.
    pub(crate) fn queue_prefetch(&self, reader: ImageReader, offset: u64, len: u64) -> bool {
        let mut slot = self.prefetch.lock();
        let sender = slot.get_or_insert_with(|| {
            let (sender, receiver) = bounded(PREFETCH_QUEUE);
            for n in 0..self.fetch_threads.max(self.storage.advice().reads) {
                let receiver = receiver.clone();
                // Without the thread readers fetch for themselves, only later.
                let _ = std::thread::Builder::new()
                    .name(format!("prefetch-{n}"))
                    .spawn(move || prefetch(&receiver));
            }
            sender
        });
        sender.try_send(PrefetchJob { reader, offset, len }).is_ok()
    }
}

/// Runs until the repository is dropped, which drops the sender.
fn prefetch(queue: &Receiver<PrefetchJob>) {
    while let Ok(job) = queue.recv() {
        // The read that follows meets the same error and reports it.
        if let Err(error) = job.reader.prefetch_now(job.offset, job.len) {
            tracing::debug!(%error, "a prefetch failed");
        }
    }
}
