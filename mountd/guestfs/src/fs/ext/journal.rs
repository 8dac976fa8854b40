//! The journal of ext3 and ext4: which blocks it holds newer than their places.
//!
//! A machine that was running has metadata, and with `data=journal` content, in its journal only. The kernel copies such
//! blocks to their places when it mounts; nothing is written here, so they are read out of the journal instead.
//! Source: Linux `Documentation/filesystems/ext4/journal.rst`, "Journal (jbd2)". Everything in a journal is big-endian.

mod records;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::fields::Fields;
use crate::{Error, ErrorKind, Media};

use super::sums::crc;
use records::Layout;

/// The first four bytes of all that is a journal's own.
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
/// The most blocks that are kept as newer than their places.
const COPIES_MAX: usize = 2 << 20;
/// The most blocks that a journal can have: what mke2fs makes at most.
const BLOCKS_MAX: u64 = 10_240_000;

/// Where blocks of the journal lie: `len` blocks from block `first` of the journal on at `device_block` of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JournalRun {
    /// The first block of the run, counted from the start of the journal.
    pub(super) first: u64,
    /// Where that block lies, counted from the start of the file system.
    pub(super) device_block: u64,
    /// Its length in blocks.
    pub(super) len: u64,
}

/// A block of the file system as the journal holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where it lies, counted in blocks from the start of the file system.
    device_block: u64,
    /// The first four bytes were [`MAGIC`] and are zeros in the journal.
    escaped: bool,
    /// The transaction it belongs to.
    sequence: u32,
    /// CRC-32C of sequence and bytes, as much of it as the journal keeps.
    sum: Option<Sum>,
}

/// The checksum of a block in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sum {
    /// The lower half (checksums of version 2).
    Low(u16),
    /// All of it (version 3).
    Whole(u32),
}

/// What a journal holds that its file system does not have yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Journal {
    copies: BTreeMap<u64, Copy>,
    /// What a user should know. Whole sentences.
    pub(super) notes: Vec<String>,
    block_bytes: u32,
    seed: u32,
}

impl Journal {
    /// Whether it holds nothing newer.
    pub(super) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Whether the journal holds this block of the file system newer than its place.
    pub(super) fn holds(&self, block: u64) -> bool {
        self.copies.contains_key(&block)
    }

    /// The first block from `from` on, and before `end`, that the journal holds.
    pub(super) fn next_held(&self, from: u64, end: u64) -> Option<u64> {
        if from >= end {
            return None;
        }
        self.copies.range(from..end).next().map(|(block, _)| *block)
    }

    /// This block as the journal holds it, if it does.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where its checksum is another.
    pub(super) fn read(&self, media: &Media, block: u64) -> Option<Result<Vec<u8>, Error>> {
        let copy = self.copies.get(&block)?;
        Some(self.copy(media, block, copy))
    }

    fn copy(&self, media: &Media, block: u64, copy: &Copy) -> Result<Vec<u8>, Error> {
        let at = copy.device_block.saturating_mul(self.block_bytes.into());
        let what = format!("block {block} in the journal");
        let mut bytes = media.bytes(at, self.block_bytes as usize, &what)?;
        let found = crc(self.seed, &[&copy.sequence.to_be_bytes(), &bytes]);
        let same = match copy.sum {
            None => true,
            Some(Sum::Low(low)) => low == (found & 0xffff) as u16,
            Some(Sum::Whole(sum)) => sum == found,
        };
        if !same {
            let text =
                format!("{what}, at byte {at}, has a checksum that is not that of its bytes");
            return Err(Error::damaged(text));
        }
        if copy.escaped
            && let Some(start) = bytes.first_chunk_mut::<4>()
        {
            *start = MAGIC;
        }
        Ok(bytes)
    }
}

/// Reads a journal whose blocks lie at `runs`, which are in order and without gaps.
///
/// Its transactions are taken in their order up to the first that is not whole: what the kernel replays.
///
/// # Errors
/// [`ErrorKind::Damaged`] for a journal that cannot be one, [`ErrorKind::Unsupported`] for a feature that is not known,
/// [`ErrorKind::Limit`] for one with more blocks than can be kept. The state without the journal can be read all the same.
pub(super) fn load(media: &Media, runs: &[JournalRun], block_bytes: u32) -> Result<Journal, Error> {
    let log = Log { media, runs, block_bytes };
    let head = log.block(0)?;
    let layout = Layout::parse(&head, block_bytes)?;
    if layout.end > log.len() || layout.end > BLOCKS_MAX {
        return Err(Error::damaged(format!(
            "the journal's superblock tells {} blocks, and the journal has {}",
            layout.end,
            log.len()
        )));
    }
    scan::scan(&log, &layout)
}

/// The blocks of a journal.
struct Log<'a> {
    media: &'a Media,
    runs: &'a [JournalRun],
    block_bytes: u32,
}

impl Log<'_> {
    /// How many there are.
    fn len(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.first.saturating_add(run.len))
    }

    /// Where block `block` of the journal lies, in blocks of the file system.
    fn place(&self, block: u64) -> Result<u64, Error> {
        let behind = self.runs.partition_point(|run| run.first <= block);
        let run = behind.checked_sub(1).and_then(|i| self.runs.get(i));
        run.filter(|run| block - run.first < run.len)
            .and_then(|run| run.device_block.checked_add(block - run.first))
            .ok_or_else(|| Error::damaged(format!("block {block} of the journal has no place")))
    }

    fn block(&self, block: u64) -> Result<Vec<u8>, Error> {
        let at = self.place(block)?.saturating_mul(self.block_bytes.into());
        self.media.bytes(at, self.block_bytes as usize, &format!("block {block} of the journal"))
    }
}

/// The kind and sequence number of a block that is the journal's own; `None` for any other.
fn header(bytes: &[u8]) -> Option<(u32, u32)> {
    let fields = Fields::new(bytes, "a block of the journal");
    if fields.array::<4>(0).ok()? != MAGIC {
        return None;
    }
    Some((fields.be32(4).ok()?, fields.be32(8).ok()?))
}

fn too_many() -> Error {
    let text = format!("the journal holds more than {COPIES_MAX} blocks that are newer");
    Error::new(ErrorKind::Limit, text)
}
