//! Changes: into the journal, then into the content and the map.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::journal::MAX_BLOCKS;
use super::map::State;
use super::sum::sum;
use super::{BLOCK_BYTES, Overlay, WhenFull};
use crate::device::{BlockDevice, WriteFlags};
use crate::error::{Error, ErrorKind};

/// What one record covers; longer writes are done in pieces.
const PIECE_BYTES: u64 = MAX_BLOCKS * BLOCK_BYTES;
/// When so many blocks were written without a flush, the next writer flushes: it bounds what must be looked at
/// after a crash, and the memory for it.
const MAX_LOOSE_BLOCKS: u64 = 1 << 18;

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl Overlay {
    /// Writes `data`, which lies within the device.
    pub(super) fn write(
        &self,
        offset_bytes: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.check_alive()?;
        let mut at = offset_bytes;
        let mut left = data;
        while !left.is_empty() {
            let room = PIECE_BYTES - at % BLOCK_BYTES;
            let (part, rest) = left.split_at(room.min(left.len() as u64) as usize);
            self.write_piece(at, part)?;
            at += part.len() as u64;
            left = rest;
        }
        self.after_change(flags)
    }

    /// Writes what one record can name.
    fn write_piece(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let end = offset + data.len() as u64;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let _stripes = self.stripes.lock(blocks.clone());
        let start = blocks.start * BLOCK_BYTES;
        let stop = (blocks.end * BLOCK_BYTES).min(self.header.size_bytes);
        if (start, stop) == (offset, end) {
            return self.put(blocks, data);
        }
        // Blocks are written whole; what the caller did not give comes from what they hold now.
        let mut whole = vec![0; (stop - start) as usize];
        let (head, tail) = ((offset - start) as usize, (end - start) as usize);
        let first = BLOCK_BYTES.min(stop - start) as usize;
        if head > 0 {
            self.read(start, &mut whole[..first])?;
        }
        let last = ((stop - 1) / BLOCK_BYTES * BLOCK_BYTES - start) as usize;
        if tail < whole.len() && (last > 0 || head == 0) {
            self.read(start + last as u64, &mut whole[last..])?;
        }
        whole[head..tail].copy_from_slice(data);
        self.put(blocks, &whole)
    }

    /// Writes whole blocks, whose locks the caller has.
    fn put(&self, blocks: Range<u64>, data: &[u8]) -> Result<(), Error> {
        let sums: Vec<u64> =
            data.chunks(BLOCK_BYTES as usize).map(|b| sum(self.header.nonce, b)).collect();
        let reserved = self.reserve(&blocks)?;
        let shared = self.gate.read();
        let done = self.announce(|journal| journal.data(blocks.start, &sums)).and_then(|record| {
            let done = self.data.write_at(data, blocks.start * BLOCK_BYTES);
            if done.is_err() {
                self.take_back(record);
            }
            done
        });
        let mut map = self.map.write();
        if done.is_ok() {
            map.set(blocks.clone(), State::Data);
        }
        // With the map, so that nobody counts these blocks twice or not at all.
        self.reserved_blocks.fetch_sub(reserved, Ordering::Relaxed);
        drop(map);
        self.loose_blocks.fetch_add(sums.len() as u64, Ordering::Relaxed);
        drop(shared);
        done.map_err(|e| self.change_failed("write", &blocks, e))
    }

    /// Appends a record to the journal; answers its number.
    fn announce(
        &self,
        record: impl FnOnce(&mut super::Journal) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut journal = self.journal.lock();
        record(&mut journal)?;
        let number = journal.next() - 1;
        self.last.store(number, Ordering::Release);
        Ok(number)
    }

    /// A change that was announced failed. The next flush must not say that it holds; if the journal takes not
    /// even that, there is no next flush.
    fn take_back(&self, record: u64) {
        if let Err(error) = self.announce(|journal| journal.void(record)) {
            self.failed.store(true, Ordering::Release);
            tracing::error!(overlay = %self.directory.name(), %error, "the journal cannot be written");
        }
    }

    /// Sets space aside for those of the blocks that have no content yet; answers how much. The caller has
    /// their locks.
    fn reserve(&self, blocks: &Range<u64>) -> Result<u64, Error> {
        let map = self.map.read();
        let new = (blocks.end - blocks.start) - map.data_blocks_in(blocks.clone());
        let limit = self.limit_blocks.load(Ordering::Relaxed);
        let before = self.reserved_blocks.fetch_add(new, Ordering::Relaxed);
        let all = map.data_blocks() + before + new;
        if new == 0 || all <= limit {
            return Ok(new);
        }
        self.reserved_blocks.fetch_sub(new, Ordering::Relaxed);
        drop(map);
        let why = format!("the overlay has reached its limit of {} bytes", limit * BLOCK_BYTES);
        Err(self.full(&why))
    }

    fn full(&self, why: &str) -> Error {
        let kind = match self.when_full {
            WhenFull::Fail => ErrorKind::NoSpace,
            WhenFull::Pause => ErrorKind::Paused,
        };
        Error::new(kind, self.context(why))
    }

    fn change_failed(&self, what: &str, blocks: &Range<u64>, e: io::Error) -> Error {
        let context = self.context(&format!(
            "{what} of {} bytes at offset {} failed",
            (blocks.end - blocks.start) * BLOCK_BYTES,
            blocks.start * BLOCK_BYTES
        ));
        let error = Error::os(context, e);
        if error.kind() == ErrorKind::NoSpace {
            return self.full("the disk under the overlay is full").with_source(error);
        }
        error
    }

    /// Makes whole blocks read as zeros, and frees their space.
    fn zero_blocks(&self, blocks: Range<u64>) -> Result<(), Error> {
        if blocks.is_empty() {
            return Ok(());
        }
        let _stripes = self.stripes.lock(blocks.clone());
        let count = blocks.end - blocks.start;
        let had_data = self.map.read().data_blocks_in(blocks.clone());
        let shared = self.gate.read();
        self.announce(|journal| journal.zero(blocks.start, count))
            .map_err(|e| self.change_failed("zeroing", &blocks, e))?;
        self.map.write().set(blocks.clone(), State::Zero);
        let erased = if had_data > 0 { self.erase(&blocks) } else { Ok(()) };
        // A record of zeros counts, however little it changes: after a crash it must be looked at.
        self.loose_blocks.fetch_add(had_data.max(1), Ordering::Relaxed);
        drop(shared);
        erased.map_err(|e| self.change_failed("zeroing", &blocks, e))
    }

    /// Takes the old content away, which must not pass for a write announced before.
    fn erase(&self, blocks: &Range<u64>) -> io::Result<()> {
        let start = blocks.start * BLOCK_BYTES;
        let end = (blocks.end * BLOCK_BYTES).min(self.header.size_bytes);
        match self.data.punch(start, end - start) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            punched => return punched,
        }
        let mut at = start;
        while at < end {
            let n = (end - at).min(ZEROS.len() as u64);
            self.data.write_at(&ZEROS[..n as usize], at)?;
            at += n;
        }
        Ok(())
    }

    /// The blocks that lie wholly in a range. The last one of the disk may be short.
    fn whole_blocks(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset + len;
        let first = offset.div_ceil(BLOCK_BYTES);
        let last =
            if end == self.header.size_bytes { self.header.blocks() } else { end / BLOCK_BYTES };
        first..last.max(first)
    }

    /// `BlockDevice::trim`: blocks that are only partly in the range stay as they are.
    pub(super) fn discard(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.check_alive()?;
        self.zero_blocks(self.whole_blocks(offset, len))?;
        self.after_change(flags)
    }

    /// `BlockDevice::write_zeroes`.
    pub(super) fn zero(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.check_alive()?;
        if flags.no_hole && flags.fast_zero {
            let why = "zeros that keep their space would have to be written";
            return Err(Error::new(ErrorKind::Unsupported, self.context(why)));
        }
        let whole = self.whole_blocks(offset, len);
        let plain = WriteFlags::default();
        let write = |from: u64, to: u64| -> Result<(), Error> {
            let mut at = from;
            while at < to {
                let n = (to - at).min(ZEROS.len() as u64);
                self.write(at, &ZEROS[..n as usize], plain)?;
                at += n;
            }
            Ok(())
        };
        let end = offset + len;
        if flags.no_hole || whole.is_empty() {
            write(offset, end)?;
        } else {
            let from = whole.start * BLOCK_BYTES;
            let to = (whole.end * BLOCK_BYTES).min(end);
            write(offset, from)?;
            self.zero_blocks(whole)?;
            write(to, end)?;
        }
        self.after_change(flags)
    }

    /// Flushes if the caller or the number of loose blocks wants it.
    fn after_change(&self, flags: WriteFlags) -> Result<(), Error> {
        if flags.fua || self.loose_blocks.load(Ordering::Relaxed) > MAX_LOOSE_BLOCKS {
            self.flush()?;
        }
        Ok(())
    }
}
