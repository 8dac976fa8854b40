//! Writing to the database: for a moment, under the exclusive lock.

use std::collections::HashSet;

use backstay_format::{ChunkId, PackId};
use rocksdb::{DB, IngestExternalFileOptions, SstFileWriter, WriteBatch};

use super::super::ChunkIndex;
use super::RocksIndex;
use super::database::{chunks, rocks_error, settle};
use super::delta::Delta;
use super::lock::Locked;
use super::rows::{
    COUNTERS_KEY, CopyKey, Counters, PREFIX_COMPLETE, PREFIX_OBJECT, PackNumber, complete_key,
    copy_key, encode_pack, object_key, pack_key, pack_of,
};
use super::sweep::sweep;
use super::view::{View, scan};
use crate::error::{Error, Result};

/// From so many rows on a table file is written and taken in whole, rather than row by row through
/// the log.
const INGEST_ROWS_MIN: usize = 16 * 1024;

/// The database, open for writing.
pub(super) struct Primary<'a> {
    pub(super) db: DB,
    pub(super) counters: Counters,
    index: &'a RocksIndex,
}

/// What [`RocksIndex::forget`] does besides forgetting packs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// Points stay complete.
    Keep,
    /// No point counts as complete any more; index objects will be looked at again, for packs
    /// that come back.
    Clear,
}

impl RocksIndex {
    /// Opens the database for writing, runs `change`, and learns what came of it.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut Primary<'_>) -> Result<T>) -> Result<T> {
        let lock = self.lock.lock();
        let _exclusive = Locked::exclusive(&lock)?;
        self.write_locked(change)
    }

    /// The same for a caller that holds the file lock.
    pub(super) fn write_locked<T>(
        &self,
        change: impl FnOnce(&mut Primary<'_>) -> Result<T>,
    ) -> Result<T> {
        self.refresh()?;
        let db = self.database.primary()?;
        let counters = self.view.read().counters;
        self.database.keep_only(&self.view.read().packs, counters.next);
        let mut primary = Primary { db, counters, index: self };
        let result = change(&mut primary)?;
        settle(&primary.db)?;
        drop(primary);
        self.refresh()?;
        Ok(result)
    }

    /// Brings the view up to date. The caller holds the exclusive lock.
    pub(super) fn refresh(&self) -> Result<()> {
        if self.view.read().is_current(&self.database) {
            return Ok(());
        }
        let update = self.view.read().update(&self.database, &self.reader.path);
        match update {
            Ok(update) => self.view.write().apply(update),
            Err(_) => *self.view.write() = View::open(&self.database, &self.reader.path)?,
        }
        Ok(())
    }

    pub(super) fn publish_sealed(&self, delta: &Delta) -> Result<()> {
        self.write_locked(|primary| {
            primary.add(delta)?;
            sweep(primary)
        })
    }

    /// Forgets packs, here and in the database.
    pub(super) fn forget(&self, packs: &[PackId], marks: Marks) -> Result<()> {
        let lock = self.lock.lock();
        {
            let mut deltas = self.deltas.write();
            deltas.open.drop_packs(packs);
            if marks == Marks::Clear {
                deltas.open.complete.clear();
                deltas.open.objects.clear();
            }
        }
        let written = Locked::exclusive(&lock).and_then(|_exclusive| {
            self.write_locked(|primary| {
                primary.forget(packs, marks)?;
                sweep(primary)
            })
        });
        if let Err(e) = written {
            // Reading must work where nothing can be written. The next one to list the packs
            // finds out again.
            tracing::warn!(error = %e, "the index was not updated; going on without");
            let mut view = self.view.write();
            view.packs.remove(&packs.iter().copied().collect());
            if marks == Marks::Clear {
                self.distrust_marks();
            }
        }
        Ok(())
    }

    pub(super) fn forget_copies(&self, pack: PackId, ids: &[ChunkId]) -> Result<()> {
        // Published first, so that the rows are there to be deleted: another process may be about
        // to publish the same pack whole.
        self.publish()?;
        {
            let mut deltas = self.deltas.write();
            deltas.open.drop_copies(pack, ids);
            deltas.open.complete.clear();
        }
        self.write(|primary| primary.forget_copies(pack, ids))
    }
}

impl Primary<'_> {
    pub(super) fn write(&self, batch: WriteBatch) -> Result<()> {
        self.db.write(batch).map_err(|e| rocks_error("cannot write the index", e))
    }

    /// Copies in present packs.
    pub(super) fn live_rows(&self) -> u64 {
        self.index.view.read().packs.chunks()
    }

    pub(super) fn put_counters(&self, batch: &mut WriteBatch) {
        batch.put(COUNTERS_KEY, self.counters.encode());
    }

    /// Gives packs numbers. `None`: the pack is there already, or was forgotten.
    pub(super) fn number<'p>(
        &mut self,
        packs: impl IntoIterator<Item = Option<&'p PackId>>,
    ) -> Result<Vec<Option<PackNumber>>> {
        let view = self.index.view.read();
        let mut numbers = Vec::new();
        for pack in packs {
            let new = pack.filter(|id| view.packs.number_of(id).is_none());
            numbers.push(new.map(|_| {
                let number = self.counters.next;
                self.counters.next = number.saturating_add(1);
                number
            }));
        }
        if self.counters.next == PackNumber::MAX {
            let text = "the index has run out of numbers for packs; remove its directory";
            return Err(Error::new(crate::error::ErrorKind::Invalid, text));
        }
        Ok(numbers)
    }

    fn add(&mut self, delta: &Delta) -> Result<()> {
        let numbers = self.number(delta.packs.iter().map(|p| p.as_ref().map(|(id, _)| id)))?;
        let rows = delta.rows.iter().filter_map(|(key, place)| {
            let number = numbers.get(pack_of(key)? as usize).copied().flatten()?;
            let id = ChunkId::from_bytes(*key.first_chunk()?);
            Some((copy_key(&id, number), place))
        });
        let mut batch = WriteBatch::default();
        if delta.rows.len() >= INGEST_ROWS_MIN {
            // Before any row has one of the numbers they must be used up for good.
            self.reserve()?;
            let path = self.index.database.path.with_extension("rows");
            let options = self.index.database.chunk_options();
            let values = rows.map(|(key, place)| {
                let mut value = Vec::new();
                place.encode(&mut value);
                (key, value)
            });
            let written = write_table(&options, &path, values)?;
            if written {
                self.ingest(vec![path])?;
            }
        } else {
            let chunks = chunks(&self.db)?;
            let mut value = Vec::new();
            for (key, place) in rows {
                value.clear();
                place.encode(&mut value);
                batch.put_cf(&chunks, key, &value);
            }
        }
        for (pack, number) in delta.packs.iter().zip(&numbers) {
            if let (Some((id, info)), Some(number)) = (pack, number) {
                batch.put(pack_key(*number), encode_pack(id, info));
            }
        }
        for (point, clearings) in &delta.complete {
            // A pack may have vanished since: only what was noted after that still holds.
            if *clearings == self.counters.clearings {
                batch.put(complete_key(*point), []);
            }
        }
        for (object, there) in &delta.objects {
            match there {
                true => batch.put(object_key(*object), []),
                false => batch.delete(object_key(*object)),
            }
        }
        self.put_counters(&mut batch);
        self.write(batch)
    }

    /// Makes the numbers given so far survive a power cut, whatever becomes of the log.
    pub(super) fn reserve(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        self.put_counters(&mut batch);
        self.write(batch)?;
        self.db.flush().map_err(|e| rocks_error("cannot write the index", e))
    }

    /// Takes table files in; they are moved.
    pub(super) fn ingest(&self, paths: Vec<std::path::PathBuf>) -> Result<()> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db
            .ingest_external_file_cf_opts(&chunks(&self.db)?, &options, paths)
            .map_err(|e| rocks_error("cannot write the index", e))
    }

    fn forget(&mut self, packs: &[PackId], marks: Marks) -> Result<()> {
        let mut batch = WriteBatch::default();
        let mut gone = Vec::new();
        {
            let view = self.index.view.read();
            let unique: HashSet<&PackId> = packs.iter().collect();
            for pack in unique {
                if let Some(number) = view.packs.number_of(pack) {
                    batch.delete(pack_key(number));
                    gone.push(number);
                    self.counters.stale += view.packs.chunks_of(pack);
                }
            }
        }
        self.counters.removals = self.counters.removals.wrapping_add(1);
        if marks == Marks::Clear {
            self.clear_marks(&mut batch)?;
            self.delete_all(PREFIX_OBJECT, &mut batch)?;
        }
        self.put_counters(&mut batch);
        self.write(batch)?;
        // What is merged from now on loses their rows.
        self.index.database.drop_also(&gone);
        Ok(())
    }

    fn forget_copies(&mut self, pack: PackId, ids: &[ChunkId]) -> Result<()> {
        let mut batch = WriteBatch::default();
        if let Some(number) = self.index.view.read().packs.number_of(&pack) {
            let chunks = chunks(&self.db)?;
            for id in ids {
                batch.delete_cf(&chunks, copy_key(id, number));
            }
        }
        self.clear_marks(&mut batch)?;
        self.put_counters(&mut batch);
        self.write(batch)
    }

    fn clear_marks(&mut self, batch: &mut WriteBatch) -> Result<()> {
        self.counters.clearings = self.counters.clearings.wrapping_add(1);
        self.delete_all(PREFIX_COMPLETE, batch)
    }

    fn delete_all(&self, prefix: u8, batch: &mut WriteBatch) -> Result<()> {
        scan(&self.db, prefix, &[prefix], |rest, _| batch.delete([&[prefix], rest].concat()))
    }
}

/// Writes a table file of rows, sorted by key. `false`: there were none, and no file is left.
pub(super) fn write_table<V: AsRef<[u8]>>(
    options: &rocksdb::Options,
    path: &std::path::Path,
    rows: impl Iterator<Item = (CopyKey, V)>,
) -> Result<bool> {
    // Left over from a process that was killed.
    let _ = std::fs::remove_file(path);
    let failed = |e| rocks_error("cannot write the index", e);
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(false);
    }
    let mut writer = SstFileWriter::create(options);
    writer.open(path).map_err(failed)?;
    for (key, value) in rows {
        writer.put(key, value).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    Ok(true)
}
