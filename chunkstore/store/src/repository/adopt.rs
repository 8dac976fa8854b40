//! Bringing the index in line with the packs there are: from index objects where there are some,
//! from the packs' footers where not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstay_format::index_object::{PackTable, tables};
use backstay_format::{ChunkId, IndexId, PackId};
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkIndex, PackInfo};
use crate::key::{Folder, ObjectKey};
use crate::pack::read_footer;
use crate::planted::{Fault, planted};
use crate::quarantine::Quarantine;

use super::gate::Gate;
use super::rounds::{Next, Rounds, Search};
use super::source::Source;

/// Threads that read footers of unknown packs: each waits for storage most of the time.
const FOOTER_THREADS: usize = 16;
/// Threads that read index objects.
const OBJECT_THREADS: usize = 4;
/// Memory for index objects being read, each counted three times: as stored, opened, taken apart.
const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Times that index objects are listed anew when one of them was merged into another meanwhile.
const LISTINGS_MAX: usize = 3;

/// What an index must not say of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Excluded {
    /// None of its chunks.
    Whole,
    /// These chunks are bad there.
    Chunks(HashSet<ChunkId>),
}

/// Brings an index in line with a storage. Shared by the repository and its background thread.
#[derive(Debug)]
pub(crate) struct Adopter {
    source: Source,
    rounds: Rounds,
    stop: AtomicBool,
    quarantine: Quarantine,
    /// One reading of new records of damage at a time.
    learning: Mutex<()>,
    /// What the records of damage name, as adopting needs it.
    excluded: RwLock<HashMap<PackId, Excluded>>,
    gate: Gate,
    threads: bool,
}

/// The packs to adopt, sorted, and which of them somebody has adopted.
struct Wanted {
    packs: Vec<PackId>,
    taken: Vec<AtomicBool>,
}

impl Wanted {
    fn new(packs: Vec<PackId>) -> Self {
        let taken = packs.iter().map(|_| AtomicBool::new(false)).collect();
        Self { packs, taken }
    }

    /// Whether the pack is there, and whether it was left to the caller to adopt.
    fn take(&self, pack: &PackId) -> (bool, bool) {
        match self.packs.binary_search(pack) {
            Ok(i) => (true, !self.taken[i].swap(true, Ordering::Relaxed)),
            Err(_) => (false, false),
        }
    }

    fn left(&self) -> Vec<PackId> {
        let left = self.packs.iter().zip(&self.taken).filter(|(_, t)| !t.load(Ordering::Relaxed));
        left.map(|(pack, _)| *pack).collect()
    }
}

impl Adopter {
    /// `threads`: whether it may start any.
    pub(super) fn new(source: Source, threads: bool) -> Self {
        Self {
            source,
            rounds: Rounds::default(),
            stop: AtomicBool::new(false),
            quarantine: Quarantine::default(),
            learning: Mutex::default(),
            excluded: RwLock::default(),
            gate: Gate::new(OBJECT_BYTES_MAX),
            threads,
        }
    }

    /// Brings the index in line with the packs that are there at the call.
    pub(super) fn complete(&self, index: &dyn ChunkIndex) -> Result<()> {
        let search = self.rounds.search();
        while self.rounds.complete(&search)? {
            self.rounds.run(|| self.run(index));
        }
        Ok(())
    }

    /// Begins a search.
    pub(super) fn search(&self) -> Search {
        self.rounds.search()
    }

    /// Waits until looking again may find more; `false`: no more is to come.
    pub(super) fn look_again(
        self: &Arc<Self>,
        search: &mut Search,
        index: Arc<dyn ChunkIndex>,
    ) -> Result<bool> {
        loop {
            match self.rounds.next(search)? {
                Next::Look => return Ok(true),
                Next::Over => return Ok(false),
                Next::Run if self.threads => self.run_in_background(index.clone()),
                Next::Run => self.rounds.run(|| self.run(&*index)),
            }
        }
    }

    /// Runs a round on a thread of its own; here, if there can be none.
    fn run_in_background(self: &Arc<Self>, index: Arc<dyn ChunkIndex>) {
        let shared = (self.clone(), index.clone());
        let thread = std::thread::Builder::new()
            .name("adopt-packs".into())
            .spawn(move || shared.0.rounds.run(|| shared.0.run(&*shared.1)));
        match thread {
            Ok(thread) => self.rounds.set_thread(thread),
            Err(_) => self.rounds.run(|| self.run(&*index)),
        }
    }

    /// Ends the background thread.
    pub(super) fn close(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.rounds.join();
    }

    /// What is known of bad copies of chunks.
    pub(super) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Reads the records of damage that are new; packs are adopted without what they name.
    pub(super) fn learn(&self) -> Result<()> {
        let _one = self.learning.lock();
        if self.quarantine.learn(&self.source)? {
            self.exclude(self.quarantine.excluded());
        }
        Ok(())
    }

    /// From now on, packs are adopted without what is excluded here. What was adopted before stays;
    /// see [`ChunkIndex::drop_copies`].
    pub(crate) fn exclude(&self, excluded: HashMap<PackId, Excluded>) {
        *self.excluded.write() = excluded;
    }

    /// Forgets packs that are gone and adopts those that are new. Called for one round at a time.
    pub(super) fn run(&self, index: &dyn ChunkIndex) -> Result<()> {
        index.catch_up()?;
        self.learn()?;
        self.quarantine.apply(index, &[])?;
        // In this order: a pack that is known was durable before it was known (rule O5), so one
        // that the listing lacks has vanished, whatever others do meanwhile.
        let known = index.pack_ids();
        let stored: Vec<PackId> = self
            .source
            .storage
            .list(Folder::Packs)?
            .into_iter()
            .filter_map(|k| if let ObjectKey::Pack(id) = k { Some(id) } else { None })
            .filter(|id| !self.quarantine.is_whole(*id))
            .collect();
        let gone = difference(&known, &stored);
        if !gone.is_empty() && !planted(Fault::VanishedPacksKept) {
            tracing::warn!(packs = gone.len(), "packs have vanished from the repository");
            index.drop_packs(&gone)?;
        }
        let new = difference(&stored, &known);
        drop((known, stored));
        if new.is_empty() {
            return Ok(());
        }
        if let Err(error) = index.expect(new.len()) {
            tracing::warn!(%error, "the index is built the slow way");
        }
        let wanted = Wanted::new(new);
        self.adopt_from_objects(index, &wanted)?;
        let left = wanted.left();
        self.each_footer(&left, &|table| {
            self.adopt(index, table)?;
            self.rounds.progress();
            Ok(())
        })?;
        // Found bad while they were adopted.
        self.quarantine.apply(index, &wanted.packs)?;
        index.publish()
    }

    /// Reads index objects that are new. None is needed: whatever is wrong with one, the footers
    /// tell the same.
    fn adopt_from_objects(&self, index: &dyn ChunkIndex, wanted: &Wanted) -> Result<()> {
        let mut known = index.objects()?;
        for _ in 0..LISTINGS_MAX {
            let listed: Vec<IndexId> = self
                .source
                .storage
                .list(Folder::Index)?
                .into_iter()
                .filter_map(|k| if let ObjectKey::Index(id) = k { Some(id) } else { None })
                .collect();
            let present: HashSet<IndexId> = listed.iter().copied().collect();
            let gone: Vec<IndexId> = known.difference(&present).copied().collect();
            index.set_objects(&[], &gone)?;
            // Sorted: objects with tree nodes first, and of each sort the newest first.
            let new: Vec<IndexId> = listed.into_iter().filter(|id| !known.contains(id)).collect();
            let vanished = AtomicUsize::new(0);
            self.each(OBJECT_THREADS, &new, |&id| {
                match self.adopt_from_object(index, wanted, id) {
                    Ok(true) => index.set_objects(&[id], &[])?,
                    Ok(false) => {}
                    // Merged into another meanwhile.
                    Err(e) if e.kind() == ErrorKind::NotFound => {
                        vanished.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(e) if is_odd(&e) => {
                        tracing::warn!(%id, error = %e.whole_story(), "an index object cannot be used; reading footers");
                    }
                    Err(e) => return Err(e),
                }
                Ok(())
            })?;
            known.extend(new);
            if vanished.into_inner() == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Adopts the packs of one object that are wanted. `false`: it names packs that were not listed
    /// (they may be newer than the listing), so it is worth another look later.
    fn adopt_from_object(
        &self,
        index: &dyn ChunkIndex,
        wanted: &Wanted,
        id: IndexId,
    ) -> Result<bool> {
        let mut all_listed = true;
        self.each_table(id, &mut |table| {
            let (listed, mine) = wanted.take(&table.pack);
            all_listed &= listed || index.has_pack(&table.pack);
            if mine {
                self.adopt(index, table)?;
                self.rounds.progress();
            }
            Ok(())
        })?;
        Ok(all_listed)
    }

    /// Gives `each` the tables of an index object, one by one.
    pub(super) fn each_table(
        &self,
        id: IndexId,
        each: &mut dyn FnMut(PackTable) -> Result<()>,
    ) -> Result<()> {
        let key = ObjectKey::Index(id);
        let len = self.source.storage.size(key)?;
        let _room = self.gate.enter(len.saturating_mul(3));
        let payload = self.source.index_object(id, len)?;
        tables(&payload, self.source.keys.sealed()).try_for_each(|table| {
            each(table.map_err(|e| Error::format(format!("{key} is damaged"), e))?)
        })
    }

    /// Gives `each` the tables of packs from their footers, from several threads. Packs that cannot
    /// be used are left out.
    pub(super) fn each_footer(
        &self,
        packs: &[PackId],
        each: &(dyn Fn(PackTable) -> Result<()> + Sync),
    ) -> Result<()> {
        let source = &self.source;
        self.each(FOOTER_THREADS, packs, |&pack| {
            match read_footer(&*source.storage, source.repo_id, &source.keys, pack) {
                Ok(footer) => each(footer.into_table()),
                // Its chunks count as absent, so the next backup stores them again; a check names
                // it.
                Err(e) if is_odd(&e) || e.kind() == ErrorKind::NotFound => {
                    tracing::warn!(%pack, error = %e.whole_story(), "a pack cannot be used");
                    Ok(())
                }
                Err(e) => Err(e),
            }
        })
    }

    /// Whether a chunk is known to be bad in a pack.
    pub(super) fn excludes(&self, pack: PackId, id: &ChunkId) -> bool {
        match self.excluded.read().get(&pack) {
            None => false,
            Some(Excluded::Whole) => true,
            Some(Excluded::Chunks(bad)) => bad.contains(id),
        }
    }

    /// Adopts a pack, less what is known to be bad in it.
    pub(super) fn adopt(&self, index: &dyn ChunkIndex, table: PackTable) -> Result<()> {
        let info = PackInfo::of(&table);
        match self.excluded.read().get(&table.pack) {
            None => index.add_pack(table.pack, info, &table.entries),
            Some(Excluded::Whole) => index.add_pack(table.pack, info, &[]),
            Some(Excluded::Chunks(bad)) => {
                index.add_pack_without(table.pack, info, &table.entries, bad)
            }
        }
    }

    /// Runs `work` for every item, on several threads where there may be some. Ends at the first
    /// error, or when the repository is closed.
    fn each<T: Sync>(
        &self,
        threads: usize,
        items: &[T],
        work: impl Fn(&T) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let run = || -> Result<()> {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::new(ErrorKind::Aborted, "the repository was closed"));
                }
                if let Err(e) = work(item) {
                    // The others need not go on.
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(e);
                }
            }
            Ok(())
        };
        let threads = threads.min(items.len());
        if !self.threads || threads < 2 {
            return run();
        }
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..threads).map(|_| s.spawn(run)).collect();
            threads.into_iter().try_for_each(|t| match t.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

/// What of `a` is not in `b`; both sorted.
fn difference(a: &[PackId], b: &[PackId]) -> Vec<PackId> {
    let mut b = b.iter().peekable();
    let mut out = Vec::new();
    for id in a {
        while b.next_if(|other| *other < id).is_some() {}
        if b.peek() != Some(&id) {
            out.push(*id);
        }
    }
    out
}

/// Whether an object is damaged, forged or from a newer program: no reason to stop.
pub(super) fn is_odd(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let ids = |ns: &[u8]| ns.iter().map(|&n| PackId::from_bytes([n; 16])).collect::<Vec<_>>();
        assert_eq!(difference(&ids(&[1, 2, 3, 5]), &ids(&[2, 4, 5])), ids(&[1, 3]));
        assert_eq!(difference(&ids(&[1, 2]), &ids(&[])), ids(&[1, 2]));
        assert_eq!(difference(&ids(&[]), &ids(&[1])), ids(&[]));
    }
}
