//! What a subtree needs, remembered from collection to collection.
//!
//! A tree node never changes, so neither does the set of chunks below it; only where their copies
//! lie may. A summary tells the copies by pack, as runs of entries, and holds as long as all of its
//! packs are present: so marking costs a lookup for a subtree that was seen before, and the work of
//! following its references only for one that is new.
//!
//! The store of summaries is derived, in the cache directory, and used by one collector at a time.
//! Whoever finds it taken, or cannot open it, follows all references.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use backstay_format::{ChunkId, PackId};
use parking_lot::Mutex;
use rocksdb::{BlockBasedOptions, DB, Options, WriteBatch};

use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkLocation;

/// Needed entries, as runs of numbers, by pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    packs: BTreeMap<PackId, Vec<Run>>,
}

/// `len` entries from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Summary {
    pub(crate) fn add(&mut self, l: &ChunkLocation) {
        self.add_entry(l.pack, l.number);
    }

    /// Adds entry `number` of a pack.
    pub(crate) fn add_entry(&mut self, pack: PackId, number: u32) {
        let runs = self.packs.entry(pack).or_default();
        match runs.last_mut() {
            // Chunks written one after the other mostly are needed so.
            Some(last) if last.start + last.len == number => last.len += 1,
            _ => runs.push(Run { start: number, len: 1 }),
        }
    }

    pub(crate) fn extend(&mut self, other: &Summary) {
        for (pack, runs) in &other.packs {
            self.packs.entry(*pack).or_default().extend(runs);
        }
    }

    /// Merges neighbouring runs.
    pub(crate) fn settle(&mut self) {
        for runs in self.packs.values_mut() {
            runs.sort_unstable_by_key(|r| r.start);
            let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
            for r in runs.iter() {
                match merged.last_mut() {
                    Some(last) if r.start <= last.start + last.len => {
                        last.len = last.len.max(r.start + r.len - last.start);
                    }
                    _ => merged.push(*r),
                }
            }
            *runs = merged;
        }
    }

    pub(crate) fn packs(&self) -> impl Iterator<Item = (&PackId, &[Run])> {
        self.packs.iter().map(|(id, runs)| (id, runs.as_slice()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (pack, runs) in &self.packs {
            out.extend_from_slice(pack.as_bytes());
            out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
            for r in runs {
                out.extend_from_slice(&r.start.to_le_bytes());
                out.extend_from_slice(&r.len.to_le_bytes());
            }
        }
        out
    }

    /// Nothing if the bytes are no summary.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        fn number(bytes: &mut &[u8]) -> Option<u32> {
            let (head, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some(u32::from_le_bytes(*head))
        }
        let mut packs = BTreeMap::new();
        while !bytes.is_empty() {
            let (id, rest) = bytes.split_first_chunk::<16>()?;
            bytes = rest;
            let count = number(&mut bytes)? as usize;
            if count > bytes.len() / 8 {
                return None;
            }
            let mut runs = Vec::with_capacity(count);
            for _ in 0..count {
                let run = Run { start: number(&mut bytes)?, len: number(&mut bytes)? };
                run.start.checked_add(run.len)?;
                runs.push(run);
            }
            packs.insert(PackId::from_bytes(*id), runs);
        }
        Some(Self { packs })
    }
}

/// Where summaries are kept from one collection to the next.
pub(crate) trait Summaries: Send + Sync + std::fmt::Debug {
    /// The summary of a subtree, by its root.
    fn get(&self, root: ChunkId) -> Option<Summary>;

    /// Remembers summaries. They may be forgotten at any time.
    fn put(&self, summaries: Vec<(ChunkId, Summary)>);

    /// The summary of a group of disks, by a key that says which.
    fn get_group(&self, key: ChunkId) -> Option<Summary>;

    /// Remembers the summary of a group of disks.
    fn put_group(&self, key: ChunkId, summary: &Summary);

    /// Forgets all groups but these: others are of points that are no more.
    fn keep_groups(&self, keys: &[ChunkId]);

    /// Forgets all if they were made under another `stamp`, and takes that stamp.
    fn stamp(&self, stamp: &[u8]);
}

/// Summaries in memory, for repositories whose index is there too.
#[derive(Debug, Default)]
pub(crate) struct MemorySummaries(Mutex<InMemory>);

#[derive(Debug, Default)]
struct InMemory {
    stamp: Vec<u8>,
    subtrees: HashMap<ChunkId, Summary>,
    groups: HashMap<ChunkId, Summary>,
}

impl Summaries for MemorySummaries {
    fn get(&self, root: ChunkId) -> Option<Summary> {
        self.0.lock().subtrees.get(&root).cloned()
    }

    fn put(&self, summaries: Vec<(ChunkId, Summary)>) {
        self.0.lock().subtrees.extend(summaries);
    }

    fn get_group(&self, key: ChunkId) -> Option<Summary> {
        self.0.lock().groups.get(&key).cloned()
    }

    fn put_group(&self, key: ChunkId, summary: &Summary) {
        self.0.lock().groups.insert(key, summary.clone());
    }

    fn keep_groups(&self, keys: &[ChunkId]) {
        let keys: HashSet<&ChunkId> = keys.iter().collect();
        self.0.lock().groups.retain(|key, _| keys.contains(key));
    }

    fn stamp(&self, stamp: &[u8]) {
        let mut state = self.0.lock();
        if state.stamp != stamp {
            *state = InMemory { stamp: stamp.to_vec(), ..InMemory::default() };
        }
    }
}

/// Summaries in a RocksDB of their own. Only collectors open it, one at a time.
pub(crate) struct RocksSummaries(DB);

impl std::fmt::Debug for RocksSummaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RocksSummaries")
    }
}

/// The stamp's key: no id is that short.
const STAMP: &[u8] = b"stamp";
/// The key of the list of groups.
const GROUPS: &[u8] = b"groups";

/// A group's key: one byte longer than an id.
fn group_key(key: &ChunkId) -> Vec<u8> {
    [key.as_bytes().as_slice(), b"g"].concat()
}

/// Memory for blocks read.
const CACHE_BYTES: usize = 16 << 20;

impl RocksSummaries {
    /// `Busy` or worse where it cannot be opened: then all references are followed.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(10.0, false);
        table.set_block_cache(&rocksdb::Cache::new_lru_cache(CACHE_BYTES));
        table.set_cache_index_and_filter_blocks(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(rocksdb::DBCompressionType::Zstd);
        options.set_keep_log_file_num(2);
        options.set_log_level(rocksdb::LogLevel::Warn);
        let open = || DB::open(&options, dir);
        let broken = |e: &rocksdb::Error| e.kind() == rocksdb::ErrorKind::Corruption;
        let db = match open() {
            Err(e) if broken(&e) => {
                // Derived: made anew.
                let _ = std::fs::remove_dir_all(dir);
                open()
            }
            other => other,
        };
        db.map(Self)
            .map_err(|e| Error::because(ErrorKind::Busy, "the collector's memory is not usable", e))
    }
}

impl Summaries for RocksSummaries {
    fn get(&self, root: ChunkId) -> Option<Summary> {
        let found = self.0.get_pinned(root.as_bytes()).ok()??;
        Summary::decode(&found)
    }

    fn put(&self, summaries: Vec<(ChunkId, Summary)>) {
        let mut batch = WriteBatch::default();
        for (root, summary) in &summaries {
            batch.put(root.as_bytes(), summary.encode());
        }
        if let Err(error) = self.0.write(batch) {
            tracing::warn!(%error, "the collector's memory cannot be written");
        }
    }

    fn get_group(&self, key: ChunkId) -> Option<Summary> {
        let found = self.0.get_pinned(group_key(&key)).ok()??;
        Summary::decode(&found)
    }

    fn put_group(&self, key: ChunkId, summary: &Summary) {
        if let Err(error) = self.0.put(group_key(&key), summary.encode()) {
            tracing::warn!(%error, "the collector's memory cannot be written");
        }
    }

    fn keep_groups(&self, keys: &[ChunkId]) {
        let before = self.0.get_pinned(GROUPS).ok().flatten();
        let now: HashSet<&[u8]> = keys.iter().map(|key| key.as_bytes().as_slice()).collect();
        let mut batch = WriteBatch::default();
        let before = before.iter().flat_map(|list| list.as_chunks::<{ ChunkId::LEN }>().0);
        for key in before {
            if !now.contains(key.as_slice()) {
                batch.delete(group_key(&ChunkId::from_bytes(*key)));
            }
        }
        batch.put(GROUPS, now.into_iter().collect::<Vec<_>>().concat());
        if let Err(error) = self.0.write(batch) {
            tracing::warn!(%error, "the collector's memory cannot be written");
        }
    }

    fn stamp(&self, stamp: &[u8]) {
        if matches!(self.0.get(STAMP), Ok(Some(found)) if found == stamp) {
            return;
        }
        let mut batch = WriteBatch::default();
        // Ids are 32 bytes; the range ends after the last of them.
        batch.delete_range([0u8; 0].as_slice(), [0xffu8; 33].as_slice());
        batch.put(STAMP, stamp);
        if let Err(error) = self.0.write(batch) {
            tracing::warn!(%error, "the collector's memory cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Summary {
        let mut s = Summary::default();
        for (pack, start, len) in [(1, 5, 3), (1, 8, 2), (1, 20, 1), (2, 0, 64), (1, 6, 1)] {
            let runs = s.packs.entry(PackId::from_bytes([pack; 16])).or_default();
            runs.push(Run { start, len });
        }
        s.settle();
        s
    }

    #[test]
    fn runs_are_merged_and_come_back() {
        let s = sample();
        let first = &s.packs[&PackId::from_bytes([1; 16])];
        assert_eq!(first, &[Run { start: 5, len: 5 }, Run { start: 20, len: 1 }]);
        assert_eq!(Summary::decode(&s.encode()), Some(s.clone()));
        let bytes = s.encode();
        for n in 1..bytes.len() {
            // Cut short it is nothing, or one whole pack less.
            let cut = Summary::decode(&bytes[..n]);
            assert!(cut.is_none_or(|c| c.packs.len() < s.packs.len()), "{n}");
        }
    }

    #[test]
    fn groups_are_kept_as_long_as_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let stores: [Box<dyn Summaries>; 2] = [
            Box::new(MemorySummaries::default()),
            Box::new(RocksSummaries::open(&dir.path().join("marks")).unwrap()),
        ];
        let (a, b) = (ChunkId::from_bytes([0xff; 32]), ChunkId::from_bytes([1; 32]));
        for store in stores {
            store.stamp(b"one");
            store.put_group(a, &sample());
            store.put_group(b, &sample());
            store.keep_groups(&[a, b]);
            assert_eq!((store.get_group(a), store.get_group(b)), (Some(sample()), Some(sample())));
            assert_eq!(store.get(a), None, "a group is no subtree");
            store.keep_groups(&[b]);
            assert_eq!((store.get_group(a), store.get_group(b)), (None, Some(sample())));
            store.stamp(b"two");
            assert_eq!(store.get_group(b), None, "{store:?}");
        }
    }

    #[test]
    fn another_stamp_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let id = ChunkId::from_bytes([0xff; 32]);
        let stores: [Box<dyn Summaries>; 2] = [
            Box::new(MemorySummaries::default()),
            Box::new(RocksSummaries::open(&dir.path().join("marks")).unwrap()),
        ];
        for store in stores {
            store.stamp(b"one");
            store.put(vec![(id, sample())]);
            store.stamp(b"one");
            assert_eq!(store.get(id), Some(sample()));
            store.stamp(b"two");
            assert_eq!(store.get(id), None, "{store:?}");
        }
    }
}
