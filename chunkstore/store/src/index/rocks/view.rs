//! What this process sees of the database: a secondary instance, and the packs in memory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use backstay_format::{ChunkId, IndexId, PackId};
use rocksdb::{DB, DBRawIterator, IteratorMode, ReadOptions};

use super::super::{ChunkLocation, PackInfo};
use super::database::{Database, chunks, rocks_error};
use super::packs::PackTable;
use super::rows::{
    COUNTERS_KEY, Counters, PREFIX_OBJECT, PREFIX_PACK, PackNumber, Place, decode_pack, pack_key,
    pack_of,
};
use crate::error::Result;

pub(super) struct View {
    pub(super) db: DB,
    /// Tells whether the directory is still the one that was opened.
    identity: (u64, u64),
    pub(super) counters: Counters,
    pub(super) packs: PackTable,
}

/// What is new since the last look.
pub(super) struct Update {
    counters: Counters,
    /// Whether `packs` replaces all that is known.
    anew: bool,
    packs: Vec<(PackNumber, PackId, PackInfo)>,
}

impl View {
    /// Opens the database, making it if need be. The caller holds the exclusive lock.
    pub(super) fn open(database: &Database, own_dir: &Path) -> Result<Self> {
        let db = database.open_or_create(own_dir)?;
        let identity = identity(&database.path);
        let mut view =
            Self { db, identity, counters: Counters::default(), packs: PackTable::default() };
        let update = view.news(true)?;
        view.apply(update);
        Ok(view)
    }

    /// Learns what others wrote; nothing if the directory was made anew under us, and the view
    /// must be too. The caller holds the file lock.
    pub(super) fn catch_up(&self, database: &Database) -> Result<Option<Update>> {
        if self.identity != identity(&database.path) || self.db.try_catch_up_with_primary().is_err()
        {
            return Ok(None);
        }
        self.news(false).map(Some)
    }

    fn news(&self, anew: bool) -> Result<Update> {
        let counters = read_counters(&self.db)?;
        // Numbers only grow, so packs added since stand behind the last one known.
        let anew = anew || counters.removals != self.counters.removals;
        let first = if anew { 0 } else { self.packs.last().map_or(0, |n| n.saturating_add(1)) };
        let mut packs = Vec::new();
        scan(&self.db, PREFIX_PACK, &pack_key(first), |key, value| {
            let number = key.try_into().map(PackNumber::from_be_bytes);
            if let (Ok(number), Some((id, info))) = (number, decode_pack(value)) {
                packs.push((number, id, info));
            }
        })?;
        Ok(Update { counters, anew, packs })
    }

    pub(super) fn apply(&mut self, update: Update) {
        if update.anew {
            self.packs = PackTable::default();
        }
        self.packs.extend(update.packs);
        self.counters = update.counters;
    }

    /// An iterator for [`View::copies_from`].
    pub(super) fn lookup(&self) -> Result<DBRawIterator<'_>> {
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(true);
        Ok(self.db.raw_iterator_cf_opt(&chunks(&self.db)?, options))
    }

    /// Present copies of a chunk, newest first, until `found` says that it is enough.
    pub(super) fn copies_from(
        &self,
        rows: &mut DBRawIterator<'_>,
        id: &ChunkId,
        mut found: impl FnMut(ChunkLocation) -> bool,
    ) -> Result<()> {
        rows.seek(id.as_bytes());
        while let Some((key, value)) = rows.item() {
            if !key.starts_with(id.as_bytes()) {
                return Ok(());
            }
            let pack = pack_of(key).and_then(|n| self.packs.get(n));
            if let (Some((pack, kind)), Some(place)) = (pack, Place::decode(value))
                && found(place.in_pack(pack, kind))
            {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|e| rocks_error("cannot read the index", e))
    }

    /// The index objects that were taken in.
    pub(super) fn objects(&self) -> Result<Vec<IndexId>> {
        let mut objects = Vec::new();
        scan(&self.db, PREFIX_OBJECT, &[PREFIX_OBJECT], |key, _| {
            objects.extend(key.try_into().map(IndexId::from_bytes));
        })?;
        Ok(objects)
    }
}

/// Calls `each` for the rows of a prefix from `first` on, with the keys without it.
pub(super) fn scan(
    db: &DB,
    prefix: u8,
    first: &[u8],
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<()> {
    for row in db.iterator(IteratorMode::From(first, rocksdb::Direction::Forward)) {
        let (key, value) = row.map_err(|e| rocks_error("cannot read the index", e))?;
        match key.split_first() {
            Some((p, rest)) if *p == prefix => each(rest, &value),
            _ => break,
        }
    }
    Ok(())
}

pub(super) fn read_counters(db: &DB) -> Result<Counters> {
    let row = db.get_pinned(COUNTERS_KEY).map_err(|e| rocks_error("cannot read the index", e))?;
    Ok(row.and_then(|v| Counters::decode(&v)).unwrap_or_default())
}

fn identity(path: &Path) -> (u64, u64) {
    path.metadata().map_or((0, 0), |m| (m.dev(), m.ino()))
}
