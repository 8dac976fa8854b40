//! Directories: entries one after the other in blocks, or in the inode itself.
//! Source: Linux `Documentation/filesystems/ext4/directory.rst`.

use super::Ext;
use super::inode::{BLOCK_AREA, Inode, flag};
use super::map::Place;
use super::names;
use super::sums::crc;
use super::superblock::feature;
use crate::fields::Fields;
use crate::fs::{DirCookie, DirEntry, NodeId, NodeKind};
use crate::{Error, ErrorKind};

/// An entry without its name.
const HEAD: usize = 8;
/// The entry at the end of a block that holds its checksum.
const TAIL: usize = 12;
/// `det_reserved_ft`.
const TAIL_TYPE: u8 = 0xde;
/// Blocks looked through for one call.
const BLOCKS_PER_CALL: u64 = 1 << 20;

/// An entry in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    /// Where the next one begins, in bytes from the start of the block.
    pub(super) next: usize,
    /// 0: the entry is free.
    pub(super) inode: u32,
    pub(super) name: &'a [u8],
    kind: u8,
}

impl Slot<'_> {
    /// Whether it is one that users see.
    pub(super) fn is_entry(&self) -> bool {
        self.inode != 0 && !matches!(self.name, b"." | b"..")
    }

    fn kind(&self) -> Option<NodeKind> {
        Some(match self.kind {
            1 => NodeKind::File,
            2 => NodeKind::Directory,
            3 => NodeKind::CharDevice,
            4 => NodeKind::BlockDevice,
            5 => NodeKind::Fifo,
            6 => NodeKind::Socket,
            7 => NodeKind::Symlink,
            _ => return None,
        })
    }
}

/// Walks over the entries of a block, free ones among them.
pub(super) struct Slots<'a> {
    bytes: &'a [u8],
    at: usize,
    typed: bool,
    what: &'a str,
}

impl<'a> Slots<'a> {
    pub(super) fn new(fs: &Ext, bytes: &'a [u8], what: &'a str) -> Self {
        Self { bytes, at: 0, typed: fs.sb.incompat & feature::FILETYPE != 0, what }
    }

    pub(super) fn next(&mut self) -> Result<Option<Slot<'a>>, Error> {
        let (at, len) = (self.at, self.bytes.len());
        if at >= len {
            return Ok(None);
        }
        let f = Fields::new(self.bytes, self.what);
        let record = record_len(f.le16(at + 4)?, len);
        let (name_len, kind) = match self.typed {
            true => (usize::from(f.u8(at + 6)?), f.u8(at + 7)?),
            false => (usize::from(f.le16(at + 6)?), 0),
        };
        let least = (HEAD + name_len).next_multiple_of(4).max(TAIL);
        if record < least || !record.is_multiple_of(4) || at + record > len || name_len > 255 {
            return Err(Error::damaged(format!(
                "{} have one of {record} bytes at byte {at} with a name of {name_len}",
                self.what
            )));
        }
        self.at += record;
        let (inode, name) = (f.le32(at)?, f.slice(at + HEAD, name_len)?);
        Ok(Some(Slot { next: self.at, inode, name, kind }))
    }
}

/// With blocks of 64 KiB the length of a whole block has no room in 16 bits.
fn record_len(stored: u16, block: usize) -> usize {
    let stored = usize::from(stored);
    match stored {
        0 | 0xffff if block >= 1 << 16 => block,
        _ if block >= 1 << 16 => stored & 0xfffc | (stored & 3) << 16,
        _ => stored,
    }
}

/// One block of a directory.
pub(super) fn block(fs: &Ext, dir: &Inode, number: u64) -> Result<Option<Vec<u8>>, Error> {
    let what = format!("the entries of directory {} in its block {number}", dir.number);
    let run = super::map::run(&fs.blocks, dir, number, fs.sb.has_checksums())?;
    let Place::At(place) = run.place else { return Ok(None) };
    let bytes = fs.blocks.block(place, &what)?;
    if fs.sb.has_checksums() {
        check(dir, number, &bytes, &what)?;
    }
    Ok(Some(bytes))
}

/// Compares the checksum at the end of a block of entries, or behind the entries of an index.
fn check(dir: &Inode, number: u64, bytes: &[u8], what: &str) -> Result<(), Error> {
    let f = Fields::new(bytes, what);
    // In an index the last bytes may be left over from entries: they do not tell what it is.
    let whole = record_len(f.le16(4)?, bytes.len()) == bytes.len();
    let same = if dir.has(flag::INDEX) && (number == 0 || whole) {
        let first = if number == 0 { super::htree::root_entries(&f)? } else { HEAD };
        let (limit, count) = (usize::from(f.le16(first)?), usize::from(f.le16(first + 2)?));
        let stored = first + limit * 8;
        let parts = [f.slice(0, first + count * 8)?, f.slice(stored, 4)?, &[0; 4]];
        crc(dir.seed, &parts) == f.le32(stored + 4)?
    } else {
        let tail = bytes.len() - TAIL;
        let has_tail = f.le32(tail)? == 0
            && f.le16(tail + 4)? == TAIL as u16
            && f.u8(tail + 6)? == 0
            && f.u8(tail + 7)? == TAIL_TYPE;
        has_tail && crc(dir.seed, &[f.slice(0, tail)?]) == f.le32(tail + 8)?
    };
    match same {
        true => Ok(()),
        false => Err(Error::damaged(format!("{what} have a wrong checksum"))),
    }
}

/// Entries from a place on. Cookies are places in the directory's bytes.
pub(super) fn list(
    fs: &Ext,
    dir: &Inode,
    from: DirCookie,
    max: usize,
) -> Result<Vec<DirEntry>, Error> {
    let mut found = Vec::new();
    if dir.has(flag::INLINE_DATA) {
        for (bytes, base) in inline(fs, dir)? {
            let what = format!("the entries in inode {}", dir.number);
            collect(fs, dir, (&bytes, base, &what), (from, max), &mut found)?;
        }
        return Ok(found);
    }
    let block_bytes = u64::from(fs.sb.block_bytes);
    let blocks = dir.size.div_ceil(block_bytes);
    let mut number = from.0 / block_bytes;
    let last = blocks.min(number.saturating_add(BLOCKS_PER_CALL));
    while number < last && found.len() < max {
        let Some(bytes) = block(fs, dir, number)? else {
            let text = format!("directory {} has no block {number}", dir.number);
            return Err(Error::damaged(text));
        };
        let what = format!("the entries of directory {} in its block {number}", dir.number);
        collect(fs, dir, (&bytes, number * block_bytes, &what), (from, max), &mut found)?;
        number += 1;
    }
    if found.is_empty() && number < blocks {
        let text =
            format!("directory {} has {BLOCKS_PER_CALL} blocks without an entry", dir.number);
        return Err(Error::new(ErrorKind::Limit, text));
    }
    Ok(found)
}

/// The entries of one piece that lie behind `from`.
fn collect(
    fs: &Ext,
    dir: &Inode,
    (bytes, base, what): (&[u8], u64, &str),
    (from, max): (DirCookie, usize),
    found: &mut Vec<DirEntry>,
) -> Result<(), Error> {
    let mut slots = Slots::new(fs, bytes, what);
    let mut start = base;
    while let Some(slot) = slots.next()? {
        let next = base + slot.next as u64;
        let here = std::mem::replace(&mut start, next);
        if here < from.0 || !slot.is_entry() {
            continue;
        }
        if found.len() >= max {
            break;
        }
        found.push(DirEntry {
            name: shown(dir, slot.name, what)?,
            node: NodeId::inode(slot.inode.into()),
            kind: slot.kind(),
            next: DirCookie(next),
        });
    }
    Ok(())
}

/// The name as users see it.
fn shown(dir: &Inode, name: &[u8], what: &str) -> Result<Vec<u8>, Error> {
    if dir.has(flag::ENCRYPTED) {
        return Ok(names::encrypted(name));
    }
    match name.is_empty() || name.iter().any(|b| matches!(b, 0 | b'/')) {
        true => Err(Error::damaged(format!("{what} have a name that no file can have"))),
        false => Ok(name.to_vec()),
    }
}

/// The pieces of a directory in its inode, each with the place it stands for.
fn inline(fs: &Ext, dir: &Inode) -> Result<Vec<(Vec<u8>, u64)>, Error> {
    // The number of the directory above comes first; there are no entries for it and for itself.
    let first = dir.area.get(4..).unwrap_or_default().to_vec();
    let rest = super::xattr::inline_rest(fs, dir)?;
    let used = usize::try_from(dir.size).unwrap_or(usize::MAX).saturating_sub(BLOCK_AREA);
    let rest = rest.get(..used.min(rest.len())).unwrap_or_default().to_vec();
    Ok(vec![(first, 4), (rest, BLOCK_AREA as u64)])
}

/// What a name leads to, by looking at all entries.
pub(super) fn scan(fs: &Ext, dir: &Inode, name: &[u8]) -> Result<Option<u32>, Error> {
    let folded = dir.has(flag::CASEFOLD).then(|| names::folded(name)).flatten();
    let (mut from, mut other) = (DirCookie::START, None);
    loop {
        let part = list(fs, dir, from, 1024)?;
        let Some(last) = part.last() else { return Ok(other) };
        from = last.next;
        for entry in &part {
            if entry.name == name {
                return Ok(u32::try_from(entry.node.inode).ok());
            }
            if other.is_none() && folded.is_some() && names::folded(&entry.name) == folded {
                other = u32::try_from(entry.node.inode).ok();
            }
        }
    }
}
