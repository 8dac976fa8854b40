//! The index on disk: one RocksDB per repository in the cache directory, shared by every process
//! of this host.
//!
//! RocksDB lets one process write a directory. So nobody keeps it open for writing: every process
//! reads a state of it that was there at some moment, keeps what it adds in a bounded delta in memory, and
//! publishes the delta by opening the database for writing for a moment, under an exclusive file
//! lock. A process that dies before it publishes loses nothing: the next one reads the tables of
//! the packs it does not know.

mod bulk;
mod database;
mod delta;
#[cfg(test)]
mod equivalence;
mod lock;
mod packs;
mod publish;
mod rows;
mod sweep;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstay_format::pack::PackEntry;
use backstay_format::{ChunkId, IndexId, PackId, PointId};
use parking_lot::{Mutex, RwLock};

use super::{COPIES_MAX, ChunkIndex, ChunkLocation, PackInfo, PackSet};
use crate::error::Result;
use bulk::Bulk;
use database::Database;
use delta::{Delta, Deltas};
use lock::{Locked, Reader, make_dir, open_lock};
use publish::Marks;
use rows::complete_key;
use view::View;

/// Copies the delta may hold before it is published: about 10 MiB of memory, and as much again
/// while the one before is being published.
const DELTA_ROWS_MAX: usize = 128 * 1024;

pub(crate) struct RocksIndex {
    database: Database,
    /// Held by the thread of this process that writes or catches up; the file by the process.
    lock: Mutex<File>,
    reader: Reader,
    view: RwLock<View>,
    /// Locked before `view` where both are.
    deltas: RwLock<Deltas>,
    bulk: Bulk,
    /// Rows at which the delta is published.
    publish_at: AtomicUsize,
    /// Marks of complete points could not be cleared in the database.
    marks_distrusted: AtomicBool,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksIndex").field("path", &self.database.path).finish_non_exhaustive()
    }
}

impl RocksIndex {
    /// Opens the index in `dir`, making it if it is missing and making it anew if it is broken.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        let lock = open_lock(&dir.join("lock"))?;
        let reader = Reader::new(&dir.join("readers"))?;
        let database = Database::new(dir.join("db"));
        let exclusive = Locked::exclusive(&lock)?;
        let view = View::open(&database, &reader.path)?;
        drop(exclusive);
        Ok(Self {
            database,
            lock: Mutex::new(lock),
            reader,
            view: RwLock::new(view),
            deltas: RwLock::default(),
            bulk: Bulk::default(),
            publish_at: AtomicUsize::new(DELTA_ROWS_MAX),
            marks_distrusted: AtomicBool::new(false),
        })
    }

    /// Publishes what can be published; what cannot stays in the delta.
    fn publish_now(&self) {
        let lock = self.lock.lock();
        let Some(delta) = self.deltas.write().seal() else { return };
        let published = Locked::exclusive(&lock).and_then(|_exclusive| self.publish_sealed(&delta));
        drop(delta);
        let mut deltas = self.deltas.write();
        let mut publish_at = DELTA_ROWS_MAX;
        match published {
            Ok(()) => deltas.sealed = None,
            Err(e) => {
                tracing::warn!(error = %e, "the index was not updated; going on without");
                deltas.unseal();
                // Not tried again at every pack.
                publish_at += deltas.open.rows.len();
            }
        }
        self.publish_at.store(publish_at, Ordering::Relaxed);
    }

    fn distrust_marks(&self) {
        self.marks_distrusted.store(true, Ordering::Relaxed);
    }
}

impl ChunkIndex for RocksIndex {
    fn get_many(
        &self,
        ids: &[ChunkId],
        avoid: &PackSet,
        out: &mut Vec<Option<ChunkLocation>>,
    ) -> Result<()> {
        out.clear();
        out.resize(ids.len(), None);
        // Held to the end: what leaves the deltas meanwhile would be found in neither.
        let deltas = self.deltas.read();
        let mut rest: Vec<usize> = (0..ids.len()).collect();
        rest.retain(|&i| {
            let copies = deltas.each().flat_map(|d| d.copies(&ids[i]));
            out[i] = copies.into_iter().find(|l| !avoid.contains(&l.pack));
            out[i].is_none()
        });
        // In the order of the rows, so that neighbours share blocks.
        rest.sort_unstable_by_key(|&i| ids[i]);
        let view = self.view.read();
        let (Some(&first), Some(&last)) = (rest.first(), rest.last()) else { return Ok(()) };
        let mut rows = view.lookup_many(rest.len(), &ids[first], &ids[last])?;
        for i in rest {
            view.copies_from(&mut rows, &ids[i], |location| {
                let usable = !avoid.contains(&location.pack);
                if usable {
                    out[i] = Some(location);
                }
                usable
            })?;
        }
        Ok(())
    }

    fn copies(&self, id: ChunkId) -> Result<Vec<ChunkLocation>> {
        let deltas = self.deltas.read();
        let mut found: Vec<ChunkLocation> = Vec::new();
        let mut add = |location: ChunkLocation| {
            // A pack may be in a delta and, published by another process, in the database too.
            if found.iter().all(|l| l.pack != location.pack) {
                found.push(location);
            }
            found.len() >= COPIES_MAX
        };
        if deltas.each().flat_map(|d| d.copies(&id)).any(&mut add) {
            return Ok(found);
        }
        let view = self.view.read();
        view.copies_from(&mut view.lookup()?, &id, add)?;
        Ok(found)
    }

    fn add_pack_without(
        &self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) -> Result<()> {
        if self.has_pack(&pack) || self.add_in_bulk(pack, info, entries, bad)? {
            return Ok(());
        }
        let rows = {
            let mut deltas = self.deltas.write();
            // Looked at again under the lock: two threads may add the same pack.
            let known = deltas.each().any(|d| d.contains(&pack))
                || self.view.read().packs.number_of(&pack).is_some();
            if !known {
                deltas.open.add_pack(pack, info, entries, bad);
            }
            deltas.open.rows.len()
        };
        if rows >= self.publish_at.load(Ordering::Relaxed) {
            self.publish_now();
        }
        Ok(())
    }

    fn expect(&self, packs: usize) -> Result<()> {
        self.begin_bulk(packs)
    }

    fn publish(&self) -> Result<()> {
        self.publish_now();
        self.end_bulk()
    }

    fn catch_up(&self) -> Result<()> {
        let lock = self.lock.lock();
        {
            let _shared = Locked::shared(&lock)?;
            if self.view.read().is_current(&self.database) {
                return Ok(());
            }
            let update = self.view.read().update(&self.database, &self.reader.path);
            if let Ok(update) = update {
                self.view.write().apply(update);
                return Ok(());
            }
        }
        let _exclusive = Locked::exclusive(&lock)?;
        self.refresh()
    }

    fn packs(&self) -> Vec<(PackId, PackInfo)> {
        let deltas = self.deltas.read();
        let fresh: BTreeMap<PackId, PackInfo> = deltas.each().flat_map(|d| d.packs()).collect();
        let view = self.view.read();
        let mut all = Vec::with_capacity(view.packs.len() + fresh.len());
        all.extend(view.packs.iter().filter(|(id, _)| !fresh.contains_key(id)));
        all.extend(fresh);
        // Two sorted parts: one pass.
        all.sort_by_key(|(id, _)| *id);
        all
    }

    fn pack_ids(&self) -> Vec<PackId> {
        let deltas = self.deltas.read();
        let view = self.view.read();
        let mut all: Vec<PackId> = view.packs.ids().collect();
        all.extend(deltas.each().flat_map(Delta::packs).map(|(id, _)| id));
        all.sort();
        all.dedup();
        all
    }

    fn has_pack(&self, pack: &PackId) -> bool {
        let deltas = self.deltas.read();
        deltas.each().any(|d| d.contains(pack)) || self.view.read().packs.number_of(pack).is_some()
    }

    fn drop_packs(&self, packs: &[PackId]) -> Result<()> {
        self.forget(packs, Marks::Clear)
    }

    fn collected(&self, packs: &[PackId]) -> Result<()> {
        self.forget(packs, Marks::Keep)
    }

    fn drop_copies(&self, pack: PackId, ids: &[ChunkId]) -> Result<()> {
        self.forget_copies(pack, ids)
    }

    fn set_complete(&self, point: PointId) -> Result<()> {
        let mut deltas = self.deltas.write();
        let clearings = self.view.read().counters.clearings;
        deltas.open.complete.insert(point, clearings);
        Ok(())
    }

    fn is_complete(&self, point: PointId) -> bool {
        let deltas = self.deltas.read();
        let view = self.view.read();
        let fresh = || {
            let noted = deltas.each().find_map(|d| d.complete.get(&point));
            // A pack that vanished since may have been one of the point's.
            noted.is_some_and(|clearings| *clearings == view.counters.clearings)
        };
        let stored = || matches!(view.db.get_pinned(complete_key(point)), Ok(Some(_)));
        !self.marks_distrusted.load(Ordering::Relaxed) && (fresh() || stored())
    }

    fn objects(&self) -> Result<HashSet<IndexId>> {
        let deltas = self.deltas.read();
        let mut objects: HashSet<IndexId> = self.view.read().objects()?.into_iter().collect();
        // Oldest first, so that the newest word holds.
        for (id, there) in deltas.sealed.iter().flat_map(|d| &d.objects).chain(&deltas.open.objects)
        {
            if *there {
                objects.insert(*id);
            } else {
                objects.remove(id);
            }
        }
        Ok(objects)
    }

    fn set_objects(&self, taken_in: &[IndexId], gone: &[IndexId]) -> Result<()> {
        let objects = &mut self.deltas.write().open.objects;
        objects.extend(taken_in.iter().map(|id| (*id, true)));
        objects.extend(gone.iter().map(|id| (*id, false)));
        Ok(())
    }
}
