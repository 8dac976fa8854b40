//! Whether the log was written back: a file system that was unmounted ends its log with a record that says so.
//! Source: "XFS Filesystem Structure", "Journaling Log".

use super::superblock::Superblock;
use crate::fields::Fields;
use crate::{Error, Media};

/// `h_magicno`.
const MAGIC: u32 = 0xfeed_babe;
/// The log is counted in these, whatever the sectors are.
const UNIT: u64 = 512;
/// How far behind its end the last record can begin: eight buffers of 256 KiB.
const BACK_MAX: u64 = 4096;
/// `oh_flags`: the record of an unmount.
const UNMOUNT: u8 = 0x20;
/// `h_version`: records may have several blocks of head.
const V2: u32 = 2;
/// What one block of head covers.
const COVERED: u32 = 32 << 10;

/// Whether all that is in the log is in its place too.
///
/// # Errors
/// For a log that cannot be read: then nothing is known.
pub(super) fn is_clean(media: &Media, sb: &Superblock) -> Result<bool, Error> {
    let blocks = u64::from(sb.log_blocks);
    if blocks == 0 {
        return Err(Error::damaged("the log has no blocks"));
    }
    let start = sb.place(sb.log_start, blocks, "the log")?;
    let units = blocks * u64::from(sb.block_bytes) / UNIT;
    let log = Log { media, start, units };
    let (first, last) = (log.cycle(0)?, log.cycle(units - 1)?);
    if first == 0 {
        return Ok(true);
    }
    // Written round and round: what is newest ends where the number of the round falls.
    let head = if first == last { 0 } else { log.fall(first)? };
    log.ends_with_unmount(head)
}

struct Log<'a> {
    media: &'a Media,
    start: u64,
    units: u64,
}

impl Log<'_> {
    fn read(&self, unit: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.media.read(self.start + unit % self.units * UNIT, buf, "the log")
    }

    /// The round in which a unit was written. Heads have it in their second word.
    fn cycle(&self, unit: u64) -> Result<u32, Error> {
        let mut bytes = [0; 8];
        self.read(unit, &mut bytes)?;
        let f = Fields::new(&bytes, "the log");
        match f.be32(0)? {
            MAGIC => f.be32(4),
            cycle => Ok(cycle),
        }
    }

    /// The first unit that is not of the round `cycle`, with which the log begins.
    fn fall(&self, cycle: u32) -> Result<u64, Error> {
        let (mut low, mut high) = (0, self.units - 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match self.cycle(middle)? == cycle {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(high)
    }

    fn ends_with_unmount(&self, head: u64) -> Result<bool, Error> {
        for back in 1..=BACK_MAX.min(self.units) {
            let at = (head + self.units - back) % self.units;
            let mut bytes = [0; UNIT as usize];
            self.read(at, &mut bytes)?;
            let f = Fields::new(&bytes, "a record of the log");
            if f.be32(0)? != MAGIC {
                continue;
            }
            let (version, len, size) = (f.be32(8)?, f.be32(12)?, f.be32(320)?);
            let heads = match version & V2 != 0 && size > COVERED {
                true => u64::from(size.div_ceil(COVERED)),
                false => 1,
            };
            let end = at + heads + u64::from(len.div_ceil(UNIT as u32));
            if end % self.units != head || f.be32(40)? != 1 {
                return Ok(false);
            }
            let mut operation = [0; 12];
            self.read(at + heads, &mut operation)?;
            return Ok(operation[9] & UNMOUNT != 0);
        }
        Ok(false)
    }
}
