//! Where the blocks of a file lie: extents, or block numbers in three levels.
//! Source: Linux `Documentation/filesystems/ext4/ifork.rst`.

use super::blocks::Blocks;
use super::inode::{Inode, flag};
use super::sums::crc;
use crate::Error;
use crate::fields::Fields;

/// `eh_magic`.
const MAGIC: u16 = 0xf30a;
/// The deepest tree there is (EXT4_MAX_EXTENT_DEPTH).
const DEPTH_MAX: u16 = 5;
/// A longer extent is one that is set aside and was not written.
const WRITTEN_MAX: u16 = 32768;
/// Length of a header, and of an entry.
const ENTRY_BYTES: usize = 12;
/// One more than the last block a file can have.
pub(super) const BLOCKS_MAX: u64 = 1 << 32;

/// Blocks of a file that lie in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first of them, counted from the start of the file.
    pub(super) first: u64,
    /// How many, never 0.
    pub(super) len: u64,
    pub(super) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Hole,
    Unwritten,
    /// From this block of the file system on.
    At(u64),
}

/// The run that block `at` of the file is in, from there on.
pub(super) fn run(blocks: &Blocks, inode: &Inode, at: u64, checked: bool) -> Result<Run, Error> {
    if at >= BLOCKS_MAX {
        return Ok(Run { first: at, len: u64::MAX - at, place: Place::Hole });
    }
    let run = match inode.has(flag::EXTENTS) {
        true => Tree { blocks, inode, checked }.run(at)?,
        false => indirect(blocks, inode, at)?,
    };
    if let Place::At(block) = run.place {
        let what = format!("the extents of inode {}", inode.number);
        blocks.check_run(block, run.len, &what)?;
    }
    Ok(run)
}

/// The tree of extents of an inode.
struct Tree<'a> {
    blocks: &'a Blocks,
    inode: &'a Inode,
    /// Its blocks end with a checksum.
    checked: bool,
}

impl Tree<'_> {
    fn run(&self, at: u64) -> Result<Run, Error> {
        let mut node = self.inode.area.to_vec();
        let mut what = format!("the extents of inode {}", self.inode.number);
        let mut depth = None;
        let mut end = BLOCKS_MAX;
        loop {
            let own = header(&node, &what)?;
            if own.depth > DEPTH_MAX || depth.is_some_and(|depth| own.depth != depth) {
                let text = format!("{what} are {} levels deep, which they cannot be", own.depth);
                return Err(Error::damaged(text));
            }
            if own.depth == 0 {
                return leaf(&node, own.entries, (at, end), &what);
            }
            let (child, next) = index(&node, own.entries, at, &what)?;
            end = end.min(next);
            let Some(child) = child else {
                return Ok(Run { first: at, len: end - at, place: Place::Hole });
            };
            depth = Some(own.depth - 1);
            what = format!("the extents of inode {} in block {child}", self.inode.number);
            node = self.blocks.block(child, &what)?;
            if self.checked {
                self.check(&node, &what)?;
            }
        }
    }

    fn check(&self, node: &[u8], what: &str) -> Result<(), Error> {
        let f = Fields::new(node, what);
        let tail = ENTRY_BYTES + ENTRY_BYTES * usize::from(f.le16(4)?);
        match crc(self.inode.seed, &[f.slice(0, tail)?]) == f.le32(tail)? {
            true => Ok(()),
            false => Err(Error::damaged(format!("{what} have a wrong checksum"))),
        }
    }
}

struct Header {
    entries: usize,
    depth: u16,
}

fn header(node: &[u8], what: &str) -> Result<Header, Error> {
    let f = Fields::new(node, what);
    if f.le16(0)? != MAGIC {
        return Err(Error::damaged(format!("{what} are none")));
    }
    let entries = usize::from(f.le16(2)?);
    if entries > node.len() / ENTRY_BYTES - 1 {
        return Err(Error::damaged(format!("{what} would be {entries}, which do not fit")));
    }
    Ok(Header { entries, depth: f.le16(6)? })
}

/// The block of the entry that covers `at`, and where the next one begins.
fn index(node: &[u8], entries: usize, at: u64, what: &str) -> Result<(Option<u64>, u64), Error> {
    let f = Fields::new(node, what);
    let key = |i: usize| -> Result<u64, Error> { Ok(f.le32(ENTRY_BYTES * (i + 1))?.into()) };
    let behind = first_behind(entries, at, key)?;
    let next = if behind < entries { key(behind)? } else { BLOCKS_MAX };
    let Some(own) = behind.checked_sub(1) else { return Ok((None, next)) };
    let place = ENTRY_BYTES * (own + 1);
    let block = u64::from(f.le16(place + 8)?) << 32 | u64::from(f.le32(place + 4)?);
    Ok((Some(block), next))
}

/// The first entry that begins behind `at`; entries are in order.
fn first_behind(
    entries: usize,
    at: u64,
    key: impl Fn(usize) -> Result<u64, Error>,
) -> Result<usize, Error> {
    let (mut low, mut high) = (0, entries);
    while low < high {
        let middle = low + (high - low) / 2;
        match key(middle)? <= at {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

fn leaf(node: &[u8], entries: usize, (at, end): (u64, u64), what: &str) -> Result<Run, Error> {
    let f = Fields::new(node, what);
    let key = |i: usize| -> Result<u64, Error> { Ok(f.le32(ENTRY_BYTES * (i + 1))?.into()) };
    let behind = first_behind(entries, at, key)?;
    // A neighbour that begins too early would be two places for one block.
    let next = if behind < entries { key(behind)?.min(end) } else { end };
    if let Some(own) = behind.checked_sub(1) {
        let place = ENTRY_BYTES * (own + 1);
        let (first, len) = (key(own)?, f.le16(place + 4)?);
        let (written, len) = match len {
            0 => return Err(Error::damaged(format!("{what} have an empty one"))),
            len if len > WRITTEN_MAX => (false, u64::from(len - WRITTEN_MAX)),
            len => (true, u64::from(len)),
        };
        if first + len > next {
            let text = format!("{what} overlap at block {next} of the file");
            return Err(Error::damaged(text));
        }
        if at < first + len {
            let block = u64::from(f.le16(place + 6)?) << 32 | u64::from(f.le32(place + 8)?);
            let skip = at - first;
            let place = match written {
                true => Place::At(block + skip),
                false => Place::Unwritten,
            };
            return Ok(Run { first: at, len: len - skip, place });
        }
    }
    Ok(Run { first: at, len: next - at, place: Place::Hole })
}

/// Direct blocks in an inode.
const DIRECT: u64 = 12;

/// The run of `at` by the block numbers of an inode without extents.
fn indirect(blocks: &Blocks, inode: &Inode, at: u64) -> Result<Run, Error> {
    let per_block = u64::from(blocks.block_bytes) / 4;
    let what = format!("the block numbers of inode {}", inode.number);
    let area = Fields::new(&inode.area, &what);
    if at < DIRECT {
        let numbers = area.slice(0, DIRECT as usize * 4)?;
        return Ok(neighbours(numbers, at, at));
    }
    let mut left = at - DIRECT;
    for level in 1..=3u32 {
        let covers = per_block.pow(level);
        if left >= covers {
            left -= covers;
            continue;
        }
        let mut block = area.le32((DIRECT as usize + level as usize - 1) * 4)?;
        let mut covered = covers;
        for _ in 0..level {
            if block == 0 {
                return Ok(Run { first: at, len: covered - left % covered, place: Place::Hole });
            }
            blocks.check_run(block.into(), 1, &what)?;
            let numbers = blocks.block(block.into(), &what)?;
            covered /= per_block;
            let index = left / covered % per_block;
            if covered == 1 {
                return Ok(neighbours(&numbers, index, at));
            }
            block = Fields::new(&numbers, &what).le32(index as usize * 4)?;
        }
    }
    Ok(Run { first: at, len: BLOCKS_MAX - at, place: Place::Hole })
}

/// The run that number `index` of a list begins; it is that of block `at` of the file.
fn neighbours(numbers: &[u8], index: u64, at: u64) -> Run {
    let (all, _) = numbers.as_chunks::<4>();
    let mut rest = all.iter().skip(index as usize).map(|bytes| u32::from_le_bytes(*bytes));
    let first = rest.next().unwrap_or(0);
    let next_to = |(i, number): (usize, u32)| match first {
        0 => number == 0,
        _ => u64::from(number) == u64::from(first) + i as u64 + 1,
    };
    let len = 1 + rest.enumerate().take_while(|pair| next_to(*pair)).count() as u64;
    let place = if first == 0 { Place::Hole } else { Place::At(first.into()) };
    Run { first: at, len, place }
}
