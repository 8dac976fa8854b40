//! Building a large index from scratch. Chunk ids are spread evenly, so rows in the order of packs
//! would be merged over and over; here they are first parted by their ids, on disk, and each part is
//! sorted in memory and taken in whole.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use backstay_format::pack::{PackEntry, PackKind};
use backstay_format::{ChunkId, PackId};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use super::super::PackInfo;
use super::RocksIndex;
use super::database::finish_merging;
use super::lock::make_dir;
use super::publish::write_table;
use super::rows::{COPY_KEY_LEN, PackNumber, Place, copy_key, encode_pack, pack_key, pack_of};
use crate::error::{Error, Result};

/// Unknown packs from which on it is worth it: about four million chunks.
const PACKS_MIN: usize = if cfg!(test) { 16 } else { 8 * 1024 };
/// Rows of data that are added as usual first, and so are seen at once: the newest.
const ROWS_SEEN_AT_ONCE: u64 = if cfg!(test) { 1000 } else { 1 << 20 };
/// Rows taken in together; until then they are not seen. They take 1.6 GB of disk meanwhile.
const SEGMENT_ROWS: u64 = if cfg!(test) { 10_000 } else { 32 << 20 };
/// Parts of a segment: each is sorted in memory, 16 MiB of it.
const PARTS: usize = 128;
/// Memory for the rows of a part before they are written.
const BUFFER_BYTES: usize = 32 << 10;
/// Rounds of merging after the last segment, each of which lets others have the lock.
const MERGE_ROUNDS: usize = 120;

/// What is being built; nothing: packs are added as usual.
#[derive(Debug, Default)]
pub(super) struct Bulk(Mutex<Option<Segment>>);

#[derive(Debug)]
struct Segment {
    dir: PathBuf,
    parts: Vec<BufWriter<File>>,
    packs: Vec<(PackId, PackInfo)>,
    known: HashSet<PackId>,
    rows: u64,
    /// Rows of data added as usual.
    seen: u64,
    value: Vec<u8>,
}

impl Segment {
    fn new(dir: PathBuf) -> Result<Self> {
        make_dir(&dir)?;
        let mut segment = Self {
            dir,
            parts: Vec::new(),
            packs: Vec::new(),
            known: HashSet::new(),
            rows: 0,
            seen: 0,
            value: Vec::new(),
        };
        segment.open_parts()?;
        Ok(segment)
    }

    fn open_parts(&mut self) -> Result<()> {
        self.parts = (0..PARTS)
            .map(|n| File::create(part_path(&self.dir, n)))
            .map(|file| Ok(BufWriter::with_capacity(BUFFER_BYTES, file?)))
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        Ok(())
    }

    fn add(
        &mut self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) -> Result<()> {
        if !self.known.insert(pack) {
            return Ok(());
        }
        let number = self.packs.len() as PackNumber;
        self.packs.push((pack, info));
        for (n, e) in entries.iter().enumerate().filter(|(_, e)| !bad.contains(&e.id)) {
            self.value.clear();
            Place::new(n, e).encode(&mut self.value);
            let part = &mut self.parts[usize::from(e.id.as_bytes()[0]) * PARTS / 256];
            part.write_all(&[self.value.len() as u8])
                .and_then(|()| part.write_all(&copy_key(&e.id, number)))
                .and_then(|()| part.write_all(&self.value))
                .map_err(failed)?;
        }
        self.rows += entries.len() as u64;
        Ok(())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn part_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{n:03}"))
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot write the rows of a large index", e)
}

impl RocksIndex {
    /// Prepares for so many packs that are not known.
    pub(super) fn begin_bulk(&self, packs: usize) -> Result<()> {
        if packs < PACKS_MIN || packs < self.view.read().packs.len() / 4 {
            return Ok(());
        }
        let mut slot = self.bulk.0.lock();
        if slot.is_none() {
            *slot = Some(Segment::new(self.reader.path.join("bulk"))?);
        }
        Ok(())
    }

    /// Takes a pack into the segment, if one is being built and the pack's chunks need not be seen
    /// at once. `false`: it is to be added as usual.
    pub(super) fn add_in_bulk(
        &self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) -> Result<bool> {
        let mut slot = self.bulk.0.lock();
        let Some(segment) = &mut *slot else { return Ok(false) };
        // Without tree nodes nothing else can be read.
        if info.kind == PackKind::Tree || segment.seen < ROWS_SEEN_AT_ONCE {
            segment.seen += entries.len() as u64;
            return Ok(false);
        }
        let added = segment.add(pack, info, entries, bad);
        let full = segment.rows >= SEGMENT_ROWS;
        let done = added.and_then(|()| if full { self.take_in(segment) } else { Ok(()) });
        if done.is_err() {
            *slot = None;
        }
        done.map(|()| true)
    }

    /// Ends the building: all packs are seen. The caller has published the delta.
    pub(super) fn end_bulk(&self) -> Result<()> {
        let Some(mut segment) = self.bulk.0.lock().take() else { return Ok(()) };
        self.take_in(&mut segment)?;
        for _ in 0..MERGE_ROUNDS {
            if self.write(|primary| Ok(finish_merging(&primary.db)))? {
                break;
            }
        }
        Ok(())
    }

    fn take_in(&self, segment: &mut Segment) -> Result<()> {
        let packs = std::mem::take(&mut segment.packs);
        segment.known.clear();
        segment.rows = 0;
        // The numbers are used up for good before any row has one. A pack that another process
        // makes known meanwhile keeps the other's number, and rows with ours are of no use.
        let numbers = self.write(|primary| {
            let numbers = primary.number(packs.iter().map(|(id, _)| Some(id)))?;
            primary.reserve()?;
            Ok(numbers)
        })?;
        let mut tables = Vec::new();
        for (n, part) in std::mem::take(&mut segment.parts).into_iter().enumerate() {
            part.into_inner().map_err(|e| failed(e.into_error()))?;
            let path = part_path(&segment.dir, n);
            let bytes = std::fs::read(&path).map_err(failed)?;
            std::fs::remove_file(&path).map_err(failed)?;
            let table = segment.dir.join(format!("{n:03}.rows"));
            if self.write_part(&bytes, &numbers, &table)? {
                tables.push(table);
            }
        }
        self.write(|primary| {
            // Given out before, and of no present pack yet: merging would drop their rows.
            self.database.keep_also(&numbers.iter().flatten().copied().collect::<Vec<_>>());
            if !tables.is_empty() {
                primary.ingest(tables)?;
            }
            let mut batch = WriteBatch::default();
            let view = self.view.read();
            for ((id, info), number) in packs.iter().zip(&numbers) {
                if let (Some(number), None) = (number, view.packs.number_of(id)) {
                    batch.put(pack_key(*number), encode_pack(id, info));
                }
            }
            drop(view);
            // Packs with higher numbers may be known by now, so all are loaded anew.
            primary.counters.removals = primary.counters.removals.wrapping_add(1);
            primary.put_counters(&mut batch);
            primary.write(batch)
        })?;
        segment.open_parts()
    }

    /// Sorts a part and writes it as a table file.
    fn write_part(
        &self,
        bytes: &[u8],
        numbers: &[Option<PackNumber>],
        path: &Path,
    ) -> Result<bool> {
        let mut rows: Vec<&[u8]> = Vec::new();
        let mut rest = bytes;
        while let Some((&len, tail)) = rest.split_first() {
            let Some((row, tail)) = tail.split_at_checked(COPY_KEY_LEN + usize::from(len)) else {
                break;
            };
            rows.push(row);
            rest = tail;
        }
        rows.sort_unstable();
        // A table may name a chunk twice; one place is enough.
        rows.dedup_by_key(|row| &row[..COPY_KEY_LEN]);
        let rows = rows.into_iter().filter_map(|row| {
            let (key, value) = row.split_at(COPY_KEY_LEN);
            let number = numbers.get(pack_of(key)? as usize).copied().flatten()?;
            Some((copy_key(&ChunkId::from_bytes(*key.first_chunk()?), number), value))
        });
        write_table(&self.database.chunk_options(), path, rows)
    }
}
