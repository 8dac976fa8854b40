//! The index on disk: one RocksDB per repository in the cache directory, shared by every process
//! of this host.
//!
//! RocksDB lets one process write a directory. So nobody keeps it open for writing: every process
//! reads through a secondary instance, keeps what it adds in a bounded delta in memory, and
//! publishes the delta by opening the database for writing for a moment, under an exclusive file
//! lock. A process that dies before it publishes loses nothing: the next one reads the footers of
//! the packs it does not know.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use backstay_format::pack::{Encoding, PackEntry, PackKind};
use backstay_format::{ChunkId, PackId, PointId};
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Options, WaitForCompactOptions, WriteBatch,
};
use rustix::fs::{FlockOperation, flock};

use super::{ChunkIndex, ChunkLocation, PackInfo, PackSet};
use crate::error::{Error, ErrorKind, Result};

/// Chunks the delta may hold before it is published: about 8 MiB of memory.
const DELTA_CHUNKS_MAX: usize = 64 * 1024;
/// Memory for index blocks read from disk, per process.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Files that publishing may leave unmerged.
const SMALL_FILES_MAX: u64 = 8;
/// How long a publishing waits for a merge, in microseconds.
const SETTLE_MICROS: u64 = 10_000_000;
/// Memory for one batch of writes.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

const PREFIX_CHUNK: u8 = b'c';
const PREFIX_PACK: u8 = b'p';
const PREFIX_COMPLETE: u8 = b'd';

type ChunkKey = [u8; 1 + ChunkId::LEN];
type PackKey = [u8; 1 + PackId::LEN];

pub(crate) struct RocksIndex {
    db_path: PathBuf,
    lock: Mutex<File>,
    reader: Reader,
    db: RwLock<DB>,
    cache: Cache,
    delta: RwLock<Delta>,
    packs: RwLock<BTreeMap<PackId, PackInfo>>,
}

#[derive(Debug, Default)]
struct Delta {
    chunks: HashMap<ChunkId, ChunkLocation>,
    packs: BTreeMap<PackId, PackInfo>,
    complete: HashSet<PointId>,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksIndex").field("db_path", &self.db_path).finish_non_exhaustive()
    }
}

impl RocksIndex {
    /// Opens the index in `dir`, making it if it is missing and making it anew if it is broken.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        let lock = open_lock(&dir.join("lock"))?;
        let reader = Reader::new(&dir.join("readers"))?;
        let db_path = dir.join("db");
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let exclusive = Locked::exclusive(&lock)?;
        let db = open_or_create(&db_path, &reader.path, &cache)?;
        drop(exclusive);
        let index = Self {
            db_path,
            lock: Mutex::new(lock),
            reader,
            packs: RwLock::new(load_packs(&db)?),
            db: RwLock::new(db),
            cache,
            delta: RwLock::default(),
        };
        Ok(index)
    }

    fn try_publish(&self, delta: &Delta) -> Result<()> {
        let lock = self.lock.lock();
        let _exclusive = Locked::exclusive(&lock)?;
        let db = open_primary(&self.db_path, &self.cache)?;
        let mut batch = WriteBatch::default();
        for (id, location) in &delta.chunks {
            batch.put(chunk_key(id), encode_location(location));
        }
        for (pack, info) in &delta.packs {
            batch.put(pack_key(pack), encode_info(info));
        }
        for point in &delta.complete {
            batch.put(complete_key(*point), []);
        }
        db.write(batch).map_err(|e| rocks_error("cannot write the index", e))?;
        settle(&db);
        drop(db);
        self.reload()
    }

    /// Brings the secondary instance up to date. The caller holds the file lock.
    fn reload(&self) -> Result<()> {
        let caught_up = self.db.read().try_catch_up_with_primary();
        if caught_up.is_err() {
            // The directory was made anew under us: start over from what is there now.
            *self.db.write() = open_or_create(&self.db_path, &self.reader.path, &self.cache)?;
        }
        *self.packs.write() = load_packs(&self.db.read())?;
        Ok(())
    }

    fn write(&self, what: &str, fill: impl FnOnce(&DB, &mut WriteBatch)) -> Result<()> {
        let lock = self.lock.lock();
        let _exclusive = Locked::exclusive(&lock)?;
        let db = open_primary(&self.db_path, &self.cache)?;
        let mut batch = WriteBatch::default();
        fill(&db, &mut batch);
        db.write(batch).map_err(|e| rocks_error(what, e))?;
        settle(&db);
        drop(db);
        self.reload()
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
        let keys: Vec<ChunkKey> = ids.iter().map(chunk_key).collect();
        // The delta first: what leaves it while it is held is in the database already.
        let delta = self.delta.read();
        let found = self.db.read().multi_get(&keys);
        let packs = self.packs.read();
        for (id, value) in ids.iter().zip(found) {
            let value = value.map_err(|e| rocks_error("cannot read the index", e))?;
            let stored = value.and_then(|v| decode_location(&v));
            let usable =
                |l: &ChunkLocation| packs.contains_key(&l.pack) && !avoid.contains(&l.pack);
            let fresh = delta.chunks.get(id).filter(|l| !avoid.contains(&l.pack));
            out.push(stored.filter(usable).or_else(|| fresh.copied()));
        }
        Ok(())
    }

    fn copies(&self, id: ChunkId) -> Result<Vec<ChunkLocation>> {
        let mut out = Vec::new();
        self.get_many(&[id], &PackSet::new(), &mut out)?;
        Ok(out.into_iter().flatten().collect())
    }

    fn add_pack(&self, pack: PackId, info: PackInfo, entries: &[PackEntry]) -> Result<()> {
        let full = {
            let mut delta = self.delta.write();
            for (n, e) in entries.iter().enumerate() {
                delta.chunks.insert(e.id, ChunkLocation::new(pack, info.kind, n, e));
            }
            delta.packs.insert(pack, info);
            delta.chunks.len() >= DELTA_CHUNKS_MAX
        };
        if full { self.publish() } else { Ok(()) }
    }

    fn publish(&self) -> Result<()> {
        // Held until the database has it, so that nobody finds a chunk in neither.
        let mut delta = self.delta.write();
        if delta.chunks.is_empty() && delta.packs.is_empty() && delta.complete.is_empty() {
            return Ok(());
        }
        match self.try_publish(&delta) {
            Ok(()) => *delta = Delta::default(),
            Err(e) => tracing::warn!(error = %e, "the index was not updated; going on without"),
        }
        Ok(())
    }

    fn catch_up(&self) -> Result<()> {
        let lock = self.lock.lock();
        let _shared = Locked::shared(&lock)?;
        self.reload()
    }

    fn packs(&self) -> Vec<(PackId, PackInfo)> {
        let mut all = self.packs.read().clone();
        all.extend(self.delta.read().packs.iter().map(|(k, v)| (*k, *v)));
        all.into_iter().collect()
    }

    fn drop_packs(&self, packs: &[PackId]) -> Result<()> {
        {
            let mut delta = self.delta.write();
            delta.packs.retain(|id, _| !packs.contains(id));
            delta.chunks.retain(|_, l| !packs.contains(&l.pack));
            delta.complete.clear();
        }
        self.write("cannot write the index", |db, batch| {
            for pack in packs {
                batch.delete(pack_key(pack));
            }
            for key in keys_with_prefix(db, PREFIX_COMPLETE) {
                batch.delete(key);
            }
        })
    }

    fn collected(&self, packs: &[PackId]) -> Result<()> {
        self.drop_packs(packs)
    }

    fn drop_copies(&self, _pack: PackId, ids: &[ChunkId]) -> Result<()> {
        let mut delta = self.delta.write();
        delta.chunks.retain(|id, _| !ids.contains(id));
        delta.complete.clear();
        drop(delta);
        self.write("cannot write the index", |db, batch| {
            for id in ids {
                batch.delete(chunk_key(id));
            }
            for key in keys_with_prefix(db, PREFIX_COMPLETE) {
                batch.delete(key);
            }
        })
    }

    fn set_complete(&self, point: PointId) -> Result<()> {
        self.delta.write().complete.insert(point);
        Ok(())
    }

    fn is_complete(&self, point: PointId) -> bool {
        let delta = self.delta.read();
        let stored = || matches!(self.db.read().get(complete_key(point)), Ok(Some(_)));
        // A dropped pack clears the marks of what was published, and of the delta.
        delta.complete.contains(&point) || stored()
    }
}

/// A held file lock.
struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    fn exclusive(file: &'a File) -> Result<Self> {
        Self::take(file, FlockOperation::LockExclusive)
    }

    fn shared(file: &'a File) -> Result<Self> {
        Self::take(file, FlockOperation::LockShared)
    }

    fn take(file: &'a File, operation: FlockOperation) -> Result<Self> {
        // Held only for the moment of one write or one opening, by any process.
        flock(file, operation).map_err(|e| Error::io("cannot lock the index", e.into()))?;
        Ok(Self(file))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the file would release it too; nothing can be done about an error here.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// The directory RocksDB wants for a secondary instance's own log, with a lock that tells whether
/// its process lives.
struct Reader {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Reader {
    fn new(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        remove_dead_readers(dir);
        let mut random = [0u8; 8];
        crate::entropy::Entropy::fill(&crate::entropy::SystemEntropy, &mut random);
        let name = format!("{:016x}", u64::from_le_bytes(random));
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = open_lock(&lock_path)?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::io("cannot lock the index reader", e.into()))?;
        let path = dir.join(name);
        make_dir(&path)?;
        Ok(Self { path, lock_path, _lock: lock })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

fn remove_dead_readers(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(path.with_extension(""));
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io(format!("cannot create {}", dir.display()), e))
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
}

fn options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_block_size(16 * 1024);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Zstd);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_background_jobs(2);
    // A secondary instance must keep its files open: the primary may remove them.
    options.set_max_open_files(-1);
    options.set_keep_log_file_num(2);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options
}

fn open_primary(path: &Path, cache: &Cache) -> Result<DB> {
    DB::open(&options(cache), path).map_err(|e| rocks_error("cannot open the index", e))
}

/// Lets RocksDB merge the small files that every publishing leaves, once there are several: closing
/// the database would break the merge off, and lookups would have ever more files to ask.
fn settle(db: &DB) {
    let files = db.property_int_value("rocksdb.num-files-at-level0");
    if !matches!(files, Ok(Some(n)) if n >= SMALL_FILES_MAX) {
        return;
    }
    let mut options = WaitForCompactOptions::default();
    options.set_timeout(SETTLE_MICROS);
    // Not merged in time: the next publishing goes on with it.
    let _ = db.wait_for_compact(&options);
}

/// Opens a secondary instance. The caller holds the exclusive lock.
fn open_or_create(path: &Path, reader: &Path, cache: &Cache) -> Result<DB> {
    let secondary = || DB::open_as_secondary(&options(cache), path, reader);
    if path.join("CURRENT").exists()
        && let Ok(db) = secondary()
    {
        return Ok(db);
    }
    if let Err(e) = open_primary(path, cache).map(drop) {
        if matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Denied) {
            return Err(e);
        }
        tracing::warn!(error = %e, "the index is broken and is made anew from pack footers");
        std::fs::remove_dir_all(path)
            .map_err(|e| Error::io(format!("cannot remove {}", path.display()), e))?;
        open_primary(path, cache)?;
    }
    secondary().map_err(|e| rocks_error("cannot open the index", e))
}

fn load_packs(db: &DB) -> Result<BTreeMap<PackId, PackInfo>> {
    let mut packs = BTreeMap::new();
    for item in db.prefix_iterator([PREFIX_PACK]) {
        let (key, value) = item.map_err(|e| rocks_error("cannot read the index", e))?;
        let Some(rest) = key.strip_prefix(&[PREFIX_PACK]) else { break };
        if let (Ok(id), Some(info)) = (rest.try_into(), decode_info(&value)) {
            packs.insert(PackId::from_bytes(id), info);
        }
    }
    Ok(packs)
}

fn keys_with_prefix(db: &DB, prefix: u8) -> Vec<Box<[u8]>> {
    db.prefix_iterator([prefix])
        .flatten()
        .map(|(key, _)| key)
        .take_while(|key| key.first() == Some(&prefix))
        .collect()
}

fn rocks_error(text: &str, e: rocksdb::Error) -> Error {
    // RocksDB tells the cause of an input/output error in words only.
    let words = e.to_string();
    let kind = if words.contains("No space left") || words.contains("Disk quota") {
        ErrorKind::NoSpace
    } else if words.contains("Permission denied") || words.contains("Read-only file system") {
        ErrorKind::Denied
    } else {
        ErrorKind::Io
    };
    Error::because(kind, text, e)
}

fn chunk_key(id: &ChunkId) -> ChunkKey {
    let mut key = [PREFIX_CHUNK; 1 + ChunkId::LEN];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

fn pack_key(id: &PackId) -> PackKey {
    let mut key = [PREFIX_PACK; 1 + PackId::LEN];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

fn complete_key(id: PointId) -> [u8; 1 + PointId::LEN] {
    let mut key = [PREFIX_COMPLETE; 1 + PointId::LEN];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// Bytes of an encoded location. The index is derived and private to this program, so its layout
/// may change with the directory's version.
const LOCATION_LEN: usize = 34;

fn encode_location(l: &ChunkLocation) -> [u8; LOCATION_LEN] {
    let mut out = [0u8; LOCATION_LEN];
    out[..16].copy_from_slice(l.pack.as_bytes());
    out[16] = l.kind.code();
    out[17] = l.encoding.code();
    out[18..22].copy_from_slice(&l.offset.to_le_bytes());
    out[22..26].copy_from_slice(&l.stored_len.to_le_bytes());
    out[26..30].copy_from_slice(&l.raw_len.to_le_bytes());
    out[30..].copy_from_slice(&l.number.to_le_bytes());
    out
}

fn decode_location(v: &[u8]) -> Option<ChunkLocation> {
    let v: &[u8; LOCATION_LEN] = v.try_into().ok()?;
    let u32_at = |i: usize| Some(u32::from_le_bytes(*v[i..].first_chunk()?));
    Some(ChunkLocation {
        pack: PackId::from_bytes(*v.first_chunk()?),
        kind: kind_of(v[16]),
        encoding: Encoding::from_code(v[17]).ok()?,
        offset: u32_at(18)?,
        stored_len: u32_at(22)?,
        raw_len: u32_at(26)?,
        number: u32_at(30)?,
    })
}

fn kind_of(code: u8) -> PackKind {
    if code == PackKind::Tree.code() { PackKind::Tree } else { PackKind::Data }
}

const INFO_LEN: usize = 29;

fn encode_info(i: &PackInfo) -> [u8; INFO_LEN] {
    let mut out = [0u8; INFO_LEN];
    out[..4].copy_from_slice(&i.chunks.to_le_bytes());
    out[4..12].copy_from_slice(&i.len.to_le_bytes());
    out[12] = i.kind.code();
    out[13..].copy_from_slice(i.session.as_bytes());
    out
}

fn decode_info(v: &[u8]) -> Option<PackInfo> {
    let v: &[u8; INFO_LEN] = v.try_into().ok()?;
    Some(PackInfo {
        chunks: u32::from_le_bytes(*v.first_chunk()?),
        len: u64::from_le_bytes(*v[4..].first_chunk()?),
        kind: kind_of(v[12]),
        session: PointId::from_bytes(*v.last_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(chunks: u8) -> PackInfo {
        PackInfo { kind: PackKind::Data, chunks: chunks.into(), len: 99, session: PointId::NONE }
    }

    fn entries(n: u8) -> Vec<PackEntry> {
        let one = |i| PackEntry {
            id: ChunkId::from_bytes([i; 32]),
            offset: 64 + u32::from(i) * 10,
            stored_len: 10,
            raw_len: 10,
            encoding: Encoding::Raw,
        };
        (0..n).map(one).collect()
    }

    fn pack(n: u8) -> PackId {
        PackId::from_bytes([n; 16])
    }

    fn find(index: &RocksIndex, n: u8) -> Option<ChunkLocation> {
        let mut out = Vec::new();
        index.get_many(&[ChunkId::from_bytes([n; 32])], &PackSet::new(), &mut out).unwrap();
        out[0]
    }

    #[test]
    fn two_at_once_learn_from_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let a = RocksIndex::open(dir.path()).unwrap();
        let b = RocksIndex::open(dir.path()).unwrap();
        a.add_pack(pack(1), info(3), &entries(3)).unwrap();
        assert!(find(&a, 2).is_some());
        assert!(find(&b, 2).is_none());
        a.publish().unwrap();
        assert!(find(&a, 2).is_some());
        b.catch_up().unwrap();
        assert_eq!(find(&b, 2), find(&a, 2));
        b.add_pack(pack(2), info(1), &entries(1)).unwrap();
        b.publish().unwrap();
        a.catch_up().unwrap();
        assert!(a.packs().iter().any(|(id, _)| *id == pack(2)));
        assert_eq!(a.packs().len(), 2);
    }

    #[test]
    fn a_dropped_pack_takes_its_chunks_and_marks_along() {
        let dir = tempfile::tempdir().unwrap();
        let a = RocksIndex::open(dir.path()).unwrap();
        let point = PointId::from_bytes([7; 16]);
        a.add_pack(pack(1), info(3), &entries(3)).unwrap();
        a.set_complete(point).unwrap();
        a.publish().unwrap();
        assert!(a.is_complete(point));
        a.drop_packs(&[pack(1)]).unwrap();
        assert!(find(&a, 1).is_none());
        assert!(!a.is_complete(point));
        let b = RocksIndex::open(dir.path()).unwrap();
        assert!(find(&b, 1).is_none() && !b.is_complete(point));
    }

    #[test]
    fn many_publishings_do_not_leave_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let a = RocksIndex::open(dir.path()).unwrap();
        for n in 0..40 {
            a.add_pack(pack(n), info(n + 1), &entries(n + 1)).unwrap();
            a.publish().unwrap();
        }
        assert_eq!(a.packs().len(), 40);
        let files = std::fs::read_dir(dir.path().join("db")).unwrap().flatten();
        let tables =
            files.filter(|f| f.path().extension().is_some_and(|e| e == "sst")).count() as u64;
        assert!(tables <= SMALL_FILES_MAX + 4, "{tables} table files");
    }

    #[test]
    fn a_broken_database_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let a = RocksIndex::open(dir.path()).unwrap();
        a.add_pack(pack(1), info(3), &entries(3)).unwrap();
        a.publish().unwrap();
        drop(a);
        for entry in std::fs::read_dir(dir.path().join("db")).unwrap().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("MANIFEST") {
                std::fs::write(entry.path(), b"rubbish").unwrap();
            }
        }
        let b = RocksIndex::open(dir.path()).unwrap();
        assert!(b.packs().is_empty());
        b.add_pack(pack(1), info(3), &entries(3)).unwrap();
        b.publish().unwrap();
        assert!(find(&b, 1).is_some());
    }

    #[test]
    fn dead_readers_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let readers = dir.path().join("readers");
        std::fs::create_dir_all(readers.join("dead")).unwrap();
        std::fs::write(readers.join("dead.lock"), b"").unwrap();
        drop(RocksIndex::open(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(&readers).unwrap().count(), 0);
    }
}
