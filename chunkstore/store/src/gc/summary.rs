//! What a subtree needs, remembered from collection to collection.
//!
//! A tree node never changes, so neither does the set of chunks below it; only where their copies
//! lie may. A summary tells the copies by pack, as runs of entries, and holds as long as all of its
//! packs are present: so marking costs a lookup for a subtree that was seen before, and the work of
//! following its references only for one that is new.
//!
//! The store of summaries is derived, in the cache directory, and used by one collector at a time.
//! Whoever finds it taken, or cannot open it, follows all references.

use std::collections::{BTreeMap, HashMap};
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
        let runs = self.packs.entry(l.pack).or_default();
        match runs.last_mut() {
            // Chunks written one after the other mostly are needed so.
            Some(last) if last.start + last.len == l.number => last.len += 1,
            _ => runs.push(Run { start: l.number, len: 1 }),
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

    /// Forgets all if they were made under another `stamp`, and takes that stamp.
    fn stamp(&self, stamp: &[u8]);
}

/// Summaries in memory, for repositories whose index is there too.
#[derive(Debug, Default)]
pub(crate) struct MemorySummaries(Mutex<(Vec<u8>, HashMap<ChunkId, Summary>)>);

impl Summaries for MemorySummaries {
    fn get(&self, root: ChunkId) -> Option<Summary> {
        self.0.lock().1.get(&root).cloned()
    }

    fn put(&self, summaries: Vec<(ChunkId, Summary)>) {
        self.0.lock().1.extend(summaries);
    }

    fn stamp(&self, stamp: &[u8]) {
        let mut state = self.0.lock();
        if state.0 != stamp {
            *state = (stamp.to_vec(), HashMap::new());
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
