use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use backstay_format::config::RepoConfig;
use backstay_format::index_object::PackTable;
use backstay_format::point::RecoveryPoint;
use backstay_format::session::Owner;
use backstay_format::{ChunkId, IndexId, PackId, PointId};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::MemorySummaries;
use crate::index::{ChunkIndex, IndexChoice, MemoryIndex, RocksIndex};
use crate::keys::Keys;
use crate::owner;
use crate::quarantine::Quarantine;
use crate::read::{ChunkCache, ImageReader, NodeCache};
use crate::storage::Storage;

use super::adopt::Adopter;
#[cfg(test)]
use super::adopt::Excluded;
use super::damage::NotedDamage;
use super::exchange::Pending;
use super::rounds::Search;
use super::source::Source;
use super::tables::Tables;
use super::{Hold, OpenOptions};

/// Ranges waiting to be fetched ahead; beyond it readers fetch for themselves.
const PREFETCH_QUEUE: usize = 64;

/// Records of recovery points kept: a mount lists them every few seconds. About 1 KiB each.
const POINTS_MAX: usize = 16 * 1024;

/// What all parts of an opened repository share.
#[derive(Debug)]
pub(crate) struct Inner {
    me: Weak<Inner>,
    storage: Arc<dyn Storage>,
    config: RepoConfig,
    keys: Arc<Keys>,
    entropy: Arc<dyn Entropy>,
    index_choice: IndexChoice,
    /// What collections remember where the index is in memory.
    summaries: Arc<MemorySummaries>,
    index: Mutex<Option<Arc<dyn ChunkIndex>>>,
    adopter: Arc<Adopter>,
    tables: Tables,
    pending: Pending,
    nodes: NodeCache,
    chunks: ChunkCache,
    points: Cache<PointId, Arc<RecoveryPoint>>,
    damage: NotedDamage,
    prefetch: Mutex<Option<Sender<PrefetchJob>>>,
    fetch_threads: usize,
    background: bool,
    owner: Owner,
    /// What this process's readers hold.
    holds: Mutex<HashMap<PointId, Weak<Hold>>>,
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
    ) -> Arc<Self> {
        let keys = Arc::new(keys);
        let source = Source { storage: storage.clone(), keys: keys.clone(), repo_id: config.id };
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            chunks: ChunkCache::new(options.cache_bytes, config.chunk_size.bytes()),
            storage,
            config,
            keys,
            entropy,
            index_choice,
            summaries: Arc::default(),
            index: Mutex::new(None),
            adopter: Arc::new(Adopter::new(source, options.background)),
            pending: Pending::default(),
            tables: Tables::default(),
            nodes: NodeCache::new(),
            points: Cache::new(POINTS_MAX),
            damage: NotedDamage::default(),
            prefetch: Mutex::new(None),
            fetch_threads: if options.background { options.fetch_threads } else { 0 },
            background: options.background,
            holds: Mutex::default(),
            owner: options.owner.clone().unwrap_or_else(owner::this_process),
        })
    }

    /// Another handle to the same.
    pub(crate) fn share(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever has a reference keeps it alive")
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

    /// Whether threads may work beside the caller's.
    pub(crate) fn background(&self) -> bool {
        self.background
    }

    pub(crate) fn holds(&self) -> &Mutex<HashMap<PointId, Weak<Hold>>> {
        &self.holds
    }

    /// Who stands behind this process's sessions.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where collections keep what they remember; nothing where the index is in memory.
    pub(crate) fn marks_dir(&self) -> Option<PathBuf> {
        match &self.index_choice {
            IndexChoice::Directory(dir) => Some(dir.join("marks")),
            IndexChoice::Memory => None,
        }
    }

    pub(crate) fn summaries(&self) -> &Arc<MemorySummaries> {
        &self.summaries
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

    /// Remembers a copy of a chunk that a read found damaged.
    pub(crate) fn note_damage(&self, pack: PackId, id: ChunkId, reason: String) {
        self.damage.note(pack, id, reason);
    }

    /// The copies that reads found damaged: pack, chunk and reason, by pack, at most 10,000.
    pub(crate) fn noted_damage(&self) -> Vec<(PackId, ChunkId, String)> {
        self.damage.list()
    }

    /// The index, opened when it is first needed: listing points and changing keys do without. It
    /// may not know all packs yet; see [`Inner::synchronise`] and [`Inner::look_again`].
    pub(crate) fn index(&self) -> Result<Arc<dyn ChunkIndex>> {
        let mut slot = self.index.lock();
        if let Some(index) = &*slot {
            return Ok(index.clone());
        }
        let index = self.open_index()?;
        *slot = Some(index.clone());
        Ok(index)
    }

    /// An index in memory in the place of one whose directory is full or may not be written any
    /// more: that must hinder no reader. Other errors stay errors.
    fn without_directory(&self, e: Error) -> Result<()> {
        let full = matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Denied);
        if !full || matches!(self.index_choice, IndexChoice::Memory) {
            return Err(e);
        }
        tracing::warn!(error = %e, "the index directory cannot be used; reading all pack footers into memory");
        let index: Arc<dyn ChunkIndex> = Arc::new(MemoryIndex::default());
        self.adopter.complete(&*index)?;
        *self.index.lock() = Some(index);
        Ok(())
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

    /// Brings the index in line with the packs there are: when this returns, it knows all that
    /// were there at the call, and none that was gone.
    pub(crate) fn synchronise(&self) -> Result<()> {
        let index = self.index()?;
        match self.adopter.complete(&*index) {
            Err(e) => self.without_directory(e),
            Ok(()) => Ok(()),
        }
    }

    /// Begins to look for chunks, before the first lookup; see [`Inner::look_again`].
    pub(crate) fn search(&self) -> Search {
        self.adopter.search()
    }

    /// Waits until looking again may find what the index did not know: as packs are adopted, in the
    /// background where there may be threads. `false`: all packs are known, and no more is to come.
    pub(crate) fn look_again(&self, search: &mut Search) -> Result<bool> {
        match self.adopter.look_again(search, self.index()?) {
            Err(e) => self.without_directory(e).map(|()| true),
            more => more,
        }
    }

    pub(super) fn pending_tables(&self) -> &Pending {
        &self.pending
    }

    /// Gives `each` the tables of an index object, one by one. `NotFound` if there is none,
    /// `Damaged` if it cannot be used.
    pub(crate) fn each_table(
        &self,
        id: IndexId,
        each: &mut dyn FnMut(PackTable) -> Result<()>,
    ) -> Result<()> {
        self.adopter.each_table(id, each)
    }

    /// Gives `each` the tables of packs from their footers, from several threads. Packs that cannot
    /// be used are left out.
    pub(crate) fn each_footer(
        &self,
        packs: &[PackId],
        each: &(dyn Fn(PackTable) -> Result<()> + Sync),
    ) -> Result<()> {
        self.adopter.each_footer(packs, each)
    }

    /// Adds a pack to the index, less what is excluded.
    pub(crate) fn adopt_table(&self, table: PackTable) -> Result<()> {
        self.adopter.adopt(&*self.index()?, table)
    }

    /// Whether a chunk is known to be bad in a pack.
    pub(crate) fn excludes(&self, pack: PackId, id: &ChunkId) -> bool {
        self.adopter.excludes(pack, id)
    }

    /// What index objects say of packs that do not say it themselves.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What is known of bad copies of chunks.
    pub(crate) fn quarantine(&self) -> &Quarantine {
        self.adopter.quarantine()
    }

    /// Reads the records of damage that are new. Packs are adopted without what these name from now
    /// on; what the index has already, [`Inner::follow_quarantine`] makes it forget.
    pub(crate) fn learn_quarantine(&self) -> Result<()> {
        self.adopter.learn()
    }

    /// Reads the records of damage that are new, and makes the index forget what they name: after
    /// writing some, and where [`Inner::synchronise`], which does it too, would be too much.
    pub(crate) fn follow_quarantine(&self) -> Result<()> {
        self.learn_quarantine()?;
        self.quarantine().apply(&*self.index()?, &[])
    }

    /// From now on, packs are adopted without what is excluded here, as if records of damage said
    /// so.
    #[cfg(test)]
    pub(crate) fn exclude(&self, excluded: HashMap<PackId, Excluded>) {
        self.adopter.exclude(excluded);
    }

    /// Queues a range to be fetched into the cache. `false`: the queue is full.
    pub(crate) fn queue_prefetch(&self, reader: ImageReader, offset: u64, len: u64) -> bool {
        let mut slot = self.prefetch.lock();
        let sender = slot.get_or_insert_with(|| {
            let (sender, receiver) = bounded(PREFETCH_QUEUE);
            // Without threads the queue has no reader and refuses everything.
            let distant = self.storage.advice().reads;
            for n in 0..if self.background { self.fetch_threads.max(distant) } else { 0 } {
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

impl Drop for Inner {
    fn drop(&mut self) {
        self.adopter.close();
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
