//! Snapshots of the old kind: chunks that were written since lie in a store, and a table in it says where (kernel document
//! `admin-guide/device-mapper/snapshot.rst` and the layout at the head of `dm-snap-persistent.c`).

use std::sync::Arc;

use crate::fields::Fields;
use crate::volumes::map::{Map, Step, below, beyond};
use crate::{Error, ErrorKind, Media};

const MAGIC: u32 = 0x7041_6e53;
const SECTOR_BYTES: u64 = 512;
const PAIR_BYTES: usize = 16;
/// Chunks are 4 KiB to 512 KiB.
const CHUNK_SECTORS: std::ops::RangeInclusive<u32> = 8..=1024;

/// A snapshot.
#[derive(Debug)]
pub(crate) struct Snapshot {
    origin: Arc<dyn Map>,
    store: Arc<dyn Map>,
    chunk: u64,
    /// Chunks of the origin that lie in the store instead, and where: in order, each once.
    moved: Vec<(u64, u64)>,
}

impl Snapshot {
    /// Reads the table of a store, which may have `max` entries. `media` is the store too.
    pub(crate) fn open(
        origin: Arc<dyn Map>,
        store: Arc<dyn Map>,
        media: &Media,
        max: usize,
    ) -> Result<Self, Error> {
        let what = "the header of a snapshot's store";
        let header = media.bytes(0, 512, what)?;
        let fields = Fields::new(&header, what);
        let (magic, valid, version) = (fields.le32(0)?, fields.le32(4)?, fields.le32(8)?);
        if magic != MAGIC || version != 1 {
            return Err(Error::damaged(format!("{what} is none")));
        }
        if valid != 1 {
            let text = "the snapshot is invalid: its store ran full, or the guest dropped it";
            return Err(Error::damaged(text));
        }
        let sectors = fields.le32(12)?;
        if !CHUNK_SECTORS.contains(&sectors) || !sectors.is_power_of_two() {
            return Err(Error::damaged(format!("{what} has chunks of {sectors} sectors")));
        }
        let chunk = u64::from(sectors) * SECTOR_BYTES;
        let moved = table(media, chunk, max)?;
        Ok(Self { origin, store, chunk, moved })
    }

    /// How many chunks are its own.
    pub(crate) fn chunks(&self) -> usize {
        self.moved.len()
    }
}

/// The table is in areas of one chunk, each before the chunks it tells of; it ends with a pair that says 0.
fn table(media: &Media, chunk: u64, max: usize) -> Result<Vec<(u64, u64)>, Error> {
    let pairs = chunk / PAIR_BYTES as u64;
    let what = "the table of a snapshot's store";
    let mut moved = Vec::new();
    // Chunk 0 is the header.
    let mut area = 1_u64;
    loop {
        let Some(at) = area.checked_mul(chunk).filter(|at| *at < media.size_bytes()) else {
            return Ok(sorted(moved));
        };
        let bytes = media.bytes(at, chunk as usize, what)?;
        let fields = Fields::new(&bytes, what);
        for at in (0..bytes.len()).step_by(PAIR_BYTES) {
            let (old, new) = (fields.le64(at)?, fields.le64(at + 8)?);
            if new == 0 {
                return Ok(sorted(moved));
            }
            if moved.len() >= max {
                let text = format!("snapshots with more than {max} chunks of their own");
                return Err(Error::new(ErrorKind::Limit, text));
            }
            moved.push((old, new));
        }
        area += pairs + 1;
    }
}

/// In order; of a chunk that is told of twice the last word counts.
fn sorted(mut moved: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    moved.reverse();
    moved.sort_by_key(|(old, _)| *old);
    moved.dedup_by_key(|(old, _)| *old);
    moved
}

impl Map for Snapshot {
    fn size(&self) -> u64 {
        self.origin.size()
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let size = self.size();
        if offset >= size {
            return Err(beyond("the snapshot", offset, size));
        }
        let (key, skip) = (offset / self.chunk, offset % self.chunk);
        let at = self.moved.partition_point(|(old, _)| *old < key);
        let next = self.moved.get(at);
        if let Some((_, new)) = next.filter(|(old, _)| *old == key) {
            let at = new.checked_mul(self.chunk).and_then(|at| at.checked_add(skip));
            return below(&self.store, at, len.min(self.chunk - skip).min(size - offset));
        }
        let until = next.map_or(u64::MAX, |(old, _)| *old).saturating_mul(self.chunk).min(size);
        below(&self.origin, Some(offset), len.min(until - offset))
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.origin.refused().or_else(|| self.store.refused())
    }
}
