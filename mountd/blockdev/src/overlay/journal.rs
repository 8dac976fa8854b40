//! The journal: what is about to change, before it changes (mountd/docs/OVERLAY.md, "Journal").

use std::io;
use std::sync::Arc;

use super::files::RandomFile;
use super::sum::sum;

/// The start of every record.
const MAGIC: u32 = 0x524a_4b42;
/// Bytes of a record before its sums.
const HEAD_BYTES: usize = 32;
/// Bytes of a record's own sum, its end.
const TAIL_BYTES: usize = 8;
/// Blocks that one record of data may name.
pub(super) const MAX_BLOCKS: u64 = 4096;
/// The longest record.
const MAX_RECORD_BYTES: usize = HEAD_BYTES + MAX_BLOCKS as usize * 8 + TAIL_BYTES;
/// Space is filled with zeros so many bytes at a time, so that appending changes no metadata of the file.
const FILL_BYTES: usize = 1 << 20;
/// Filled space kept for [`Change::Settled`] and [`Change::Void`], so that a flush succeeds on a full disk.
const RESERVE_BYTES: u64 = 64 << 10;
/// Read at once when a journal is read.
const WINDOW_BYTES: usize = 1 << 20;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Blocks from `first` on are about to get content with these sums.
    Data {
        /// The first block.
        first: u64,
        /// The sum of each block's content.
        sums: Vec<u64>,
    },
    /// Blocks from `first` on read as zeros.
    Zero {
        /// The first block.
        first: u64,
        /// How many.
        blocks: u64,
    },
    /// Everything up to record `through` is on the disk. `before` is what an earlier record of this sort
    /// said, whose own way to the disk had ended when this one was written.
    Settled {
        /// The last record that counts.
        through: u64,
        /// The last record that counted before.
        before: u64,
    },
    /// The change announced by that record failed: its blocks are what they were.
    Void {
        /// The record that does not count.
        record: u64,
    },
}

/// A journal that is appended to.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<dyn RandomFile>,
    seed: u64,
    /// Where the next record goes.
    at: u64,
    /// Up to where the file is filled.
    filled: u64,
    /// The next record's number.
    next: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// An empty journal in an empty file, whose first record gets the number `next`.
    pub(super) fn start(file: Arc<dyn RandomFile>, seed: u64, next: u64) -> io::Result<Self> {
        let mut journal = Self { file, seed, at: 0, filled: 0, next, buffer: Vec::new() };
        journal.fill()?;
        Ok(journal)
    }

    /// Numbers its records from `next` on.
    pub(super) fn number_from(&mut self, next: u64) {
        self.next = next;
    }

    /// The number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of its records.
    pub(super) fn bytes(&self) -> u64 {
        self.at
    }

    /// The file, to sync it without holding the journal.
    pub(super) fn file(&self) -> Arc<dyn RandomFile> {
        self.file.clone()
    }

    fn fill(&mut self) -> io::Result<()> {
        static ZEROS: [u8; FILL_BYTES] = [0; FILL_BYTES];
        self.file.write_at(&ZEROS, self.filled)?;
        self.filled += FILL_BYTES as u64;
        Ok(())
    }

    /// Appends a record of data: `sums` are those of the blocks' new content.
    pub(super) fn data(&mut self, first: u64, sums: &[u64]) -> io::Result<()> {
        self.append(1, first, sums.len() as u64, sums)
    }

    /// Appends a record of zeros.
    pub(super) fn zero(&mut self, first: u64, blocks: u64) -> io::Result<()> {
        self.append(2, first, blocks, &[])
    }

    /// Appends that the change announced by `record` failed.
    pub(super) fn void(&mut self, record: u64) -> io::Result<()> {
        self.append(4, record, 0, &[])
    }

    /// Appends that all up to record `through` is on the disk; see [`Change::Settled`].
    pub(super) fn settled(&mut self, through: u64, before: u64) -> io::Result<()> {
        self.append(3, through, before, &[])
    }

    fn append(&mut self, kind: u8, first: u64, blocks: u64, sums: &[u64]) -> io::Result<()> {
        let len = (HEAD_BYTES + 8 * sums.len() + TAIL_BYTES) as u64;
        let reserve = if kind >= 3 { 0 } else { RESERVE_BYTES };
        if self.at + len + reserve > self.filled {
            // A flush and a failure need little, and there is room for them even if the disk is full.
            let filled = self.fill();
            if self.at + len + reserve > self.filled {
                filled?;
            }
        }
        let out = &mut self.buffer;
        out.clear();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[kind, 0, 0, 0]);
        for value in [self.next, first, blocks] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in sums {
            out.extend_from_slice(&value.to_le_bytes());
        }
        let own = sum(self.seed, out);
        out.extend_from_slice(&own.to_le_bytes());
        // A record that failed is written over by the next one.
        self.file.write_at(out, self.at)?;
        self.at += len;
        self.next += 1;
        Ok(())
    }
}

/// Reads a journal from its start to its first record that is not whole.
#[derive(Debug)]
pub(super) struct Scan {
    file: Arc<dyn RandomFile>,
    size: u64,
    seed: u64,
    next: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What stands at a place of a journal.
enum Found {
    Record { seq: u64, change: Change, len: u64 },
    Nothing,
}

impl Scan {
    pub(super) fn new(file: Arc<dyn RandomFile>, seed: u64, next: u64) -> io::Result<Self> {
        let size = file.size()?;
        Ok(Self { file, size, seed, next, at: 0, window: Vec::new(), window_at: 0 })
    }

    /// The number that the next record must have.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// The next record with its number; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Change)>> {
        match self.record_at(self.at)? {
            Found::Record { seq, change, len } if seq == self.next => {
                self.at += len;
                self.next += 1;
                Ok(Some((seq, change)))
            }
            _ => Ok(None),
        }
    }

    /// Behind the end: whether a record there proves that what is missing had reached the disk once, so that
    /// the journal was damaged and not cut short. Answers the number that was lost.
    pub(super) fn lost(&mut self) -> io::Result<Option<u64>> {
        let mut at = self.at;
        while at + (HEAD_BYTES + TAIL_BYTES) as u64 <= self.size {
            match self.record_at(at)? {
                Found::Record { change: Change::Settled { before, .. }, .. }
                    if before >= self.next =>
                {
                    return Ok(Some(self.next));
                }
                Found::Record { len, .. } => at += len,
                Found::Nothing => at += 8,
            }
        }
        Ok(None)
    }

    /// Bytes from `at` on, as many as there are up to `len`.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let len = self.size.saturating_sub(at).min(len as u64) as usize;
        let end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + len as u64 > end {
            let want = (self.size - at).min(WINDOW_BYTES.max(len) as u64) as usize;
            self.window.resize(want, 0);
            self.window_at = at;
            self.file.read_at(&mut self.window, at)?;
        }
        let from = (at - self.window_at) as usize;
        Ok(&self.window[from..from + len])
    }

    fn record_at(&mut self, at: u64) -> io::Result<Found> {
        let seed = self.seed;
        let bytes = self.bytes(at, HEAD_BYTES)?;
        if bytes.len() < HEAD_BYTES || bytes[..4] != MAGIC.to_le_bytes() {
            return Ok(Found::Nothing);
        }
        let kind = bytes[4];
        let blocks = word(bytes, 24);
        if kind == 1 && blocks > MAX_BLOCKS {
            return Ok(Found::Nothing);
        }
        let sums = if kind == 1 { blocks as usize } else { 0 };
        let len = HEAD_BYTES + 8 * sums + TAIL_BYTES;
        debug_assert!(len <= MAX_RECORD_BYTES);
        let bytes = self.bytes(at, len)?;
        if bytes.len() < len
            || sum(seed, &bytes[..len - TAIL_BYTES]) != word(bytes, len - TAIL_BYTES)
        {
            return Ok(Found::Nothing);
        }
        let (seq, first) = (word(bytes, 8), word(bytes, 16));
        let change = match kind {
            1 => {
                let sums = (0..sums).map(|i| word(bytes, HEAD_BYTES + 8 * i)).collect();
                Change::Data { first, sums }
            }
            2 => Change::Zero { first, blocks },
            3 => Change::Settled { through: first, before: blocks },
            4 => Change::Void { record: first },
            _ => return Ok(Found::Nothing),
        };
        Ok(Found::Record { seq, change, len: len as u64 })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
