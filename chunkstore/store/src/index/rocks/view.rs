//! What this process sees of the database: a read-only instance, and the packs in memory.

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
use crate::error::{Error, Result};

type News = (Counters, bool, Vec<(PackNumber, PackId, PackInfo)>);

/// The database as it was at one moment. It is opened anew when somebody wrote: an instance that
/// follows a writer (RocksDB's secondary) may go on to tell what was overwritten.
pub(super) struct View {
    pub(super) db: DB,
    identity: Identity,
    pub(super) counters: Counters,
    pub(super) packs: PackTable,
}

/// What is new since the last look.
pub(super) struct Update {
    db: DB,
    identity: Identity,
    counters: Counters,
    /// Whether `packs` replaces all that is known.
    anew: bool,
    packs: Vec<(PackNumber, PackId, PackInfo)>,
}

/// Tells one state of a database from all others.
#[derive(PartialEq, Eq)]
struct Identity {
    /// What RocksDB draws when it makes a database.
    database: Vec<u8>,
    /// Every opening for writing begins a new manifest.
    manifest: Vec<u8>,
}

impl Identity {
    fn read(path: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = path.join(name);
            std::fs::read(&path)
                .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))
        };
        Ok(Self { database: read("IDENTITY")?, manifest: read("CURRENT")? })
    }
}

/// An iterator over rows, and how it gets to an id.
pub(super) struct Lookup<'a> {
    rows: DBRawIterator<'a>,
    /// Rows to walk over before it seeks; if any, ids must come in ascending order.
    steps: u32,
    begun: bool,
}

/// Fewer lookups than these are not worth a look at how far they are apart.
const WALK_LEAST: usize = 1024;
/// Rows from one id to the next up to which walking is quicker than seeking.
const ROWS_APART: f64 = 12.0;
/// Rows after which walking is given up for one id.
const STEPS_MAX: u32 = 64;

impl Lookup<'_> {
    /// Goes to the first row at or behind `id`.
    fn advance(&mut self, id: &ChunkId) {
        let id = id.as_bytes().as_slice();
        if self.begun && self.steps > 0 {
            for _ in 0..self.steps {
                match self.rows.key() {
                    Some(key) if key < id => self.rows.next(),
                    // There, or behind all rows.
                    _ => return,
                }
            }
        }
        self.begun = true;
        self.rows.seek(id);
    }
}

impl View {
    /// Opens the database, making it if need be. The caller holds the exclusive lock.
    pub(super) fn open(database: &Database, own_dir: &Path) -> Result<Self> {
        let db = database.open_or_create(own_dir)?;
        let identity = Identity::read(&database.path)?;
        let (counters, packs) = (Counters::default(), PackTable::default());
        let mut view = Self { db, identity, counters, packs };
        let (counters, _, packs) = view.news(&view.db, true)?;
        view.counters = counters;
        view.packs.extend(packs);
        Ok(view)
    }

    /// Whether nobody wrote since. The caller holds the file lock.
    pub(super) fn is_current(&self, database: &Database) -> bool {
        Identity::read(&database.path).is_ok_and(|i| i == self.identity)
    }

    /// Learns what others wrote. An error: the database is missing or broken, and must be opened
    /// by [`View::open`]. The caller holds the file lock.
    pub(super) fn update(&self, database: &Database, own_dir: &Path) -> Result<Update> {
        let identity = Identity::read(&database.path)?;
        let db = database.read_only(own_dir)?;
        let (counters, anew, packs) =
            self.news(&db, identity.database != self.identity.database)?;
        Ok(Update { db, identity, counters, anew, packs })
    }

    fn news(&self, db: &DB, anew: bool) -> Result<News> {
        let counters = read_counters(db)?;
        // Numbers only grow, so packs added since stand behind the last one known.
        let anew = anew || counters.removals != self.counters.removals;
        let first = if anew { 0 } else { self.packs.last().map_or(0, |n| n.saturating_add(1)) };
        let mut packs = Vec::new();
        scan(db, PREFIX_PACK, &pack_key(first), |key, value| {
            let number = key.try_into().map(PackNumber::from_be_bytes);
            if let (Ok(number), Some((id, info))) = (number, decode_pack(value)) {
                packs.push((number, id, info));
            }
        })?;
        Ok((counters, anew, packs))
    }

    pub(super) fn apply(&mut self, update: Update) {
        if update.anew {
            self.packs = PackTable::default();
        }
        self.packs.extend(update.packs);
        self.counters = update.counters;
        self.identity = update.identity;
        self.db = update.db;
    }

    /// For [`View::copies_from`], one id at a time.
    pub(super) fn lookup(&self) -> Result<Lookup<'_>> {
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(true);
        let rows = self.db.raw_iterator_cf_opt(&chunks(&self.db)?, options);
        Ok(Lookup { rows, steps: 0, begun: false })
    }

    /// For [`View::copies_from`] with so many ids from `first` to `last`, in ascending order. Where
    /// there are few rows between one and the next, it walks rather than seeks.
    pub(super) fn lookup_many(
        &self,
        count: usize,
        first: &ChunkId,
        last: &ChunkId,
    ) -> Result<Lookup<'_>> {
        if count < WALK_LEAST {
            return self.lookup();
        }
        let chunks = chunks(&self.db)?;
        let rows = self.db.property_int_value_cf(&chunks, "rocksdb.estimate-num-keys");
        let rows = rows.ok().flatten().unwrap_or(u64::MAX);
        // Ids are hashes: rows are spread evenly.
        let start = |id: &ChunkId| {
            u64::from_be_bytes(id.as_bytes().first_chunk().copied().unwrap_or_default())
        };
        let share = start(last).saturating_sub(start(first)) as f64 / u64::MAX as f64;
        if rows as f64 * share > count as f64 * ROWS_APART {
            return self.lookup();
        }
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        let rows = self.db.raw_iterator_cf_opt(&chunks, options);
        Ok(Lookup { rows, steps: STEPS_MAX, begun: false })
    }

    /// Present copies of a chunk, newest first, until `found` says that it is enough.
    pub(super) fn copies_from(
        &self,
        lookup: &mut Lookup<'_>,
        id: &ChunkId,
        mut found: impl FnMut(ChunkLocation) -> bool,
    ) -> Result<()> {
        lookup.advance(id);
        let rows = &mut lookup.rows;
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
