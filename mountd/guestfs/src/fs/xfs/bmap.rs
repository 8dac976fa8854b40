//! Where the blocks of a fork lie: a list of extents in the inode, or a B+tree of them.
//! Source: "XFS Filesystem Structure", "Data Extents".

use super::Xfs;
use super::inode::{Fork, Form};
use super::sums;
use crate::Error;
use crate::fields::Fields;

/// An extent on the disk.
const RECORD_BYTES: usize = 16;
/// The deepest tree there is (XFS_BM_MAXLEVELS).
const LEVELS_MAX: u16 = 9;
/// One more than the last block a file can have.
pub(super) const BLOCKS_MAX: u64 = 1 << 54;

/// Blocks of a fork that lie in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first of them, counted from the start of the fork.
    pub(super) first: u64,
    /// How many, never 0.
    pub(super) len: u64,
    pub(super) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Hole,
    Unwritten,
    /// From this byte of the device on.
    At(u64),
}

/// The run that block `at` of a fork of inode `number` is in, from there on.
pub(super) fn run(fs: &Xfs, number: u64, fork: &Fork, at: u64) -> Result<Run, Error> {
    let what = format!("the extents of inode {number}");
    if at >= BLOCKS_MAX {
        return Ok(Run { first: at, len: u64::MAX - at, place: Place::Hole });
    }
    match fork.form {
        Form::Extents => {
            let count = usize::try_from(fork.extents).unwrap_or(usize::MAX);
            if count > fork.bytes.len() / RECORD_BYTES {
                let text = format!("{what} would be {count}, which do not fit into it");
                return Err(Error::damaged(text));
            }
            leaf(fs, &fork.bytes, 0, count, (at, BLOCKS_MAX), &what)
        }
        Form::Tree => tree(fs, number, fork, at),
        _ => Err(Error::damaged(format!("inode {number} has no extents"))),
    }
}

fn tree(fs: &Xfs, number: u64, fork: &Fork, at: u64) -> Result<Run, Error> {
    let what = format!("the root of the extents of inode {number}");
    let root = Fields::new(&fork.bytes, &what);
    let (mut level, count) = (root.be16(0)?, usize::from(root.be16(2)?));
    if level == 0 || level > LEVELS_MAX {
        return Err(Error::damaged(format!("{what} has {level} levels below it")));
    }
    let mut room = (fork.bytes.len() - 4) / RECORD_BYTES;
    let (mut bytes, mut head, mut entries) = (fork.bytes.clone(), 4, count);
    let mut end = BLOCKS_MAX;
    loop {
        if entries > room || entries == 0 {
            return Err(Error::damaged(format!(
                "{what} has {entries} entries and room for {room}"
            )));
        }
        if level == 0 {
            return leaf(fs, &bytes, head, entries, (at, end), &what);
        }
        let f = Fields::new(&bytes, &what);
        let behind = first_behind(entries, at, |i| f.be64(head + i * 8))?;
        if behind < entries {
            end = end.min(f.be64(head + behind * 8)?);
        }
        let Some(own) = behind.checked_sub(1) else {
            return Ok(Run { first: at, len: end - at, place: Place::Hole });
        };
        let child = f.be64(head + room * 8 + own * 8)?;
        bytes = node(fs, number, child, level - 1)?;
        level -= 1;
        head = if fs.sb.has_checksums() { 72 } else { 24 };
        room = (bytes.len() - head) / RECORD_BYTES;
        entries = usize::from(Fields::new(&bytes, &what).be16(6)?);
    }
}

/// A block of the tree, `level` levels above the extents.
fn node(fs: &Xfs, number: u64, block: u64, level: u16) -> Result<Vec<u8>, Error> {
    let what = format!("block {block} of the extents of inode {number}");
    let place = fs.sb.place(block, 1, &what)?;
    let bytes = fs.media.bytes(place, fs.sb.block_bytes as usize, &what)?;
    let f = Fields::new(&bytes, &what);
    let magic: &[u8; 4] = if fs.sb.has_checksums() { b"BMA3" } else { b"BMAP" };
    if f.array::<4>(0)? != *magic || f.be16(4)? != level {
        return Err(Error::damaged(format!("{what}, at byte {place}, is none")));
    }
    if fs.sb.has_checksums() {
        sums::check(&fs.sb, &bytes, sums::EXTENTS, (place, number), &what)?;
    }
    Ok(bytes)
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

/// An extent taken apart.
struct Record {
    first: u64,
    len: u64,
    block: u64,
    unwritten: bool,
}

fn record(f: &Fields<'_>, at: usize) -> Result<Record, Error> {
    let (high, low) = (f.be64(at)?, f.be64(at + 8)?);
    Ok(Record {
        unwritten: high >> 63 != 0,
        first: (high & !(1 << 63)) >> 9,
        block: (high & 0x1ff) << 43 | low >> 21,
        len: low & 0x1f_ffff,
    })
}

fn leaf(
    fs: &Xfs,
    bytes: &[u8],
    head: usize,
    entries: usize,
    (at, end): (u64, u64),
    what: &str,
) -> Result<Run, Error> {
    let f = Fields::new(bytes, what);
    let of = |i: usize| record(&f, head + i * RECORD_BYTES);
    let behind = first_behind(entries, at, |i| Ok(of(i)?.first))?;
    let next = if behind < entries { of(behind)?.first.min(end) } else { end };
    if let Some(own) = behind.checked_sub(1) {
        let own = of(own)?;
        if own.len == 0 || own.first + own.len > next {
            let text = format!("{what} overlap or are empty at block {}", own.first);
            return Err(Error::damaged(text));
        }
        let place = fs.sb.place(own.block, own.len, what)?;
        if at < own.first + own.len {
            let skip = at - own.first;
            let place = match own.unwritten {
                true => Place::Unwritten,
                false => Place::At(place + skip * u64::from(fs.sb.block_bytes)),
            };
            return Ok(Run { first: at, len: own.len - skip, place });
        }
    }
    Ok(Run { first: at, len: next - at, place: Place::Hole })
}
