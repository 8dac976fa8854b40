//! Looking a name up by the hash index of a directory.
//! Source: Linux `Documentation/filesystems/ext4/directory.rst`, "Hash Tree Directories".

mod hash;

use super::Ext;
use super::dir::{Slots, block};
use super::inode::Inode;
use crate::Error;
use crate::fields::Fields;

/// Where the information about the index stands in its first block: behind the entries for the directory itself and the one above.
const ROOT_INFO: usize = 24;
/// Levels of an index below its root: two, three with `large_dir`.
const LEVELS_MAX: u8 = 3;
/// Blocks of entries looked through for one name: with one hash there are few.
const LEAVES_MAX: usize = 4096;

/// Where the entries of the first block begin.
pub(super) fn root_entries(f: &Fields<'_>) -> Result<usize, Error> {
    Ok(ROOT_INFO + usize::from(f.u8(ROOT_INFO + 5)?))
}

/// What came of looking.
pub(super) enum Looked {
    Found(u32),
    Nothing,
    /// The index is of a kind that is not known; all entries have to be looked at.
    Unknown,
}

/// An index block, and where one is in it.
struct Frame {
    bytes: Vec<u8>,
    /// Where its entries begin.
    entries: usize,
    count: usize,
    at: usize,
}

impl Frame {
    fn new(bytes: Vec<u8>, entries: usize, what: &str) -> Result<Self, Error> {
        let f = Fields::new(&bytes, what);
        let (limit, count) = (usize::from(f.le16(entries)?), usize::from(f.le16(entries + 2)?));
        if count == 0 || count > limit || entries + limit * 8 > bytes.len() {
            let text = format!("{what} has {count} entries, and room for {limit}");
            return Err(Error::damaged(text));
        }
        Ok(Self { bytes, entries, count, at: 0 })
    }

    fn word(&self, i: usize, at: usize) -> Result<u32, Error> {
        Fields::new(&self.bytes, "an index of a directory").le32(self.entries + i * 8 + at)
    }

    /// The first entry stands for all hashes before the second.
    fn hash(&self, i: usize) -> Result<u32, Error> {
        if i == 0 { Ok(0) } else { self.word(i, 0) }
    }

    fn child(&self) -> Result<u64, Error> {
        Ok(u64::from(self.word(self.at, 4)? & 0x0fff_ffff))
    }

    /// Goes to the entry that covers `hash`.
    fn seek(&mut self, hash: u32) -> Result<(), Error> {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.hash(middle)? <= hash {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        self.at = low - 1;
        Ok(())
    }
}

/// Looks for `name` in a directory that has an index.
pub(super) fn look(fs: &Ext, dir: &Inode, name: &[u8]) -> Result<Looked, Error> {
    let what = format!("the index of directory {}", dir.number);
    let Some(root) = block(fs, dir, 0)? else {
        return Err(Error::damaged(format!("{what} is not there")));
    };
    let f = Fields::new(&root, &what);
    let (version, levels) = (f.u8(ROOT_INFO + 4)?, f.u8(ROOT_INFO + 6)?);
    let Some(hash) = hash::of(name, version, fs.sb.unsigned_hash, &fs.sb.hash_seed) else {
        return Ok(Looked::Unknown);
    };
    if levels > LEVELS_MAX {
        return Err(Error::damaged(format!("{what} has {levels} levels")));
    }
    let entries = root_entries(&f)?;
    let mut root = Frame::new(root, entries, &what)?;
    root.seek(hash)?;
    let mut frames = vec![root];
    while frames.len() <= usize::from(levels) {
        let mut frame = below(fs, dir, &frames, &what)?;
        frame.seek(hash)?;
        frames.push(frame);
    }
    for _ in 0..LEAVES_MAX {
        let Some(last) = frames.last() else { break };
        if let Some(inode) = leaf(fs, dir, last.child()?, name)? {
            return Ok(Looked::Found(inode));
        }
        if !forward(fs, dir, &mut frames, hash, &what)? {
            return Ok(Looked::Nothing);
        }
    }
    Err(Error::damaged(format!("{what} has too many blocks of one hash")))
}

fn below(fs: &Ext, dir: &Inode, frames: &[Frame], what: &str) -> Result<Frame, Error> {
    let none = || Error::damaged(format!("{what} leads to a block that is not there"));
    let number = frames.last().ok_or_else(none)?.child()?;
    let bytes = block(fs, dir, number)?.ok_or_else(none)?;
    Frame::new(bytes, 8, what)
}

/// Goes to the next block of entries, if it goes on with the same hash.
fn forward(
    fs: &Ext,
    dir: &Inode,
    frames: &mut Vec<Frame>,
    hash: u32,
    what: &str,
) -> Result<bool, Error> {
    let depth = frames.len();
    while let Some(frame) = frames.last_mut() {
        frame.at += 1;
        if frame.at < frame.count {
            break;
        }
        frames.pop();
    }
    let Some(frame) = frames.last() else { return Ok(false) };
    // The lowest bit says that the block before ends with the same hash.
    let next = frame.hash(frame.at)?;
    if next & !1 != hash {
        return Ok(false);
    }
    while frames.len() < depth {
        let frame = below(fs, dir, frames, what)?;
        frames.push(frame);
    }
    Ok(true)
}

fn leaf(fs: &Ext, dir: &Inode, number: u64, name: &[u8]) -> Result<Option<u32>, Error> {
    let what = format!("the entries of directory {} in its block {number}", dir.number);
    let Some(bytes) = block(fs, dir, number)? else {
        return Err(Error::damaged(format!("{what} are not there")));
    };
    let mut slots = Slots::new(fs, &bytes, &what);
    while let Some(slot) = slots.next()? {
        if slot.is_entry() && slot.name == name {
            return Ok(Some(slot.inode));
        }
    }
    Ok(None)
}
