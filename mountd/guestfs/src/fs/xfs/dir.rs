//! Directories: in the inode, in one block, or in blocks of entries with an index.
//! Source: "XFS Filesystem Structure", "Directories".

use super::Xfs;
use super::bmap::{self, Place};
use super::inode::{Form, Inode};
use super::sums::{self, Marks};
use crate::fields::Fields;
use crate::fs::{DirCookie, DirEntry, NodeId, NodeKind};
use crate::{Error, ErrorKind};

/// Entries begin at multiples of this, and places in an index count in it.
pub(super) const UNIT: u64 = 8;
/// `freetag`: the space is free.
const FREE: u16 = 0xffff;
/// The tail of a directory of one block, and an entry of an index.
const TAIL: usize = 8;
/// Blocks looked through for one call.
const BLOCKS_PER_CALL: u64 = 1 << 20;

/// An entry in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) inode: u64,
    pub(super) name: &'a [u8],
    kind: u8,
    /// Where it begins and ends in its block.
    start: usize,
    end: usize,
}

impl Entry<'_> {
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

    fn is_dots(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }

    fn listed(&self, next: u64, what: &str) -> Result<DirEntry, Error> {
        // Where these two have entries at all, they were passed over before.
        if self.name.is_empty() || self.is_dots() || self.name.iter().any(|b| matches!(b, 0 | b'/'))
        {
            return Err(Error::damaged(format!("{what} has a name that no file can have")));
        }
        Ok(DirEntry {
            name: self.name.to_vec(),
            node: NodeId::inode(self.inode),
            kind: self.kind(),
            next: DirCookie(next),
        })
    }
}

/// Bytes of one block of a directory, which may lie in several pieces. `None`: it is not there.
pub(super) fn block(
    fs: &Xfs,
    dir: &Inode,
    first: u64,
    marks: Option<Marks>,
    what: &str,
) -> Result<Option<Vec<u8>>, Error> {
    let block_bytes = u64::from(fs.sb.block_bytes);
    let count = u64::from(fs.sb.dir_block_bytes) / block_bytes;
    let mut bytes = vec![0; fs.sb.dir_block_bytes as usize];
    let (mut done, mut start) = (0, None);
    while done < count {
        let run = bmap::run(fs, dir.number, &dir.data, first + done)?;
        let Place::At(place) = run.place else {
            if done == 0 {
                return Ok(None);
            }
            return Err(Error::damaged(format!("{what} is there in part")));
        };
        let len = run.len.min(count - done);
        let from = (done * block_bytes) as usize;
        let part = &mut bytes[from..from + (len * block_bytes) as usize];
        fs.media.read(place, part, what)?;
        start.get_or_insert(place);
        done += len;
    }
    if let (true, Some(marks), Some(place)) = (fs.sb.has_checksums(), marks, start) {
        sums::check(&fs.sb, &bytes, marks, (place, dir.number), what)?;
    }
    Ok(Some(bytes))
}

/// Block `number` of the entries, counted in directory blocks, and where entries begin and end in it.
pub(super) fn entries_block(
    fs: &Xfs,
    dir: &Inode,
    number: u64,
) -> Result<Option<(Vec<u8>, usize, usize)>, Error> {
    let what = what(dir, number);
    let per_block = u64::from(fs.sb.dir_block_bytes / fs.sb.block_bytes);
    let Some(bytes) = block(fs, dir, number * per_block, Some(sums::DIR_DATA), &what)? else {
        return Ok(None);
    };
    let f = Fields::new(&bytes, &what);
    let (magic, checked) = (f.array::<4>(0)?, fs.sb.has_checksums());
    let start = if checked { 64 } else { 16 };
    let end = match (&magic, checked) {
        (b"XD2D", false) | (b"XDD3", true) => bytes.len(),
        (b"XD2B", false) | (b"XDB3", true) => {
            let leaves = f.be32(bytes.len() - TAIL)? as usize;
            let room = bytes.len() - TAIL - start;
            if leaves > room / TAIL {
                return Err(Error::damaged(format!("{what} has an index of {leaves} entries")));
            }
            bytes.len() - TAIL - leaves * TAIL
        }
        _ => return Err(Error::damaged(format!("{what} is none"))),
    };
    Ok(Some((bytes, start, end)))
}

pub(super) fn what(dir: &Inode, number: u64) -> String {
    format!("block {number} of directory {}", dir.number)
}

/// The entry at byte `at` of a block; nothing where the space is free. Then where the next one begins.
pub(super) fn entry<'a>(
    fs: &Xfs,
    bytes: &'a [u8],
    at: usize,
    end: usize,
    what: &str,
) -> Result<(Option<Entry<'a>>, usize), Error> {
    let f = Fields::new(bytes, what);
    let wrong = || Error::damaged(format!("{what} has an entry at its byte {at} that cannot be"));
    if f.be16(at)? == FREE {
        let len = usize::from(f.be16(at + 2)?);
        let next = at + len;
        return match len >= UNIT as usize && len.is_multiple_of(UNIT as usize) && next <= end {
            true => Ok((None, next)),
            false => Err(wrong()),
        };
    }
    let name_len = usize::from(f.u8(at + 8)?);
    let typed = usize::from(fs.sb.has_types);
    let next = at + (9 + name_len + typed + 2).next_multiple_of(UNIT as usize);
    if name_len == 0 || next > end || usize::from(f.be16(next - 2)?) != at {
        return Err(wrong());
    }
    let name = part(bytes, at + 9, name_len, what)?;
    let kind = if fs.sb.has_types { f.u8(at + 9 + name_len)? } else { 0 };
    Ok((Some(Entry { inode: f.be64(at)?, name, kind, start: at, end: next }), next))
}

/// A part of a block, which lives as long as it does.
fn part<'a>(bytes: &'a [u8], at: usize, len: usize, what: &str) -> Result<&'a [u8], Error> {
    let part = at.checked_add(len).and_then(|end| bytes.get(at..end));
    part.ok_or_else(|| Error::damaged(format!("{what} ends within a name")))
}

/// Entries from a place on. Cookies are places in the directory's bytes, or for one in its inode numbers of entries.
pub(super) fn list(
    fs: &Xfs,
    dir: &Inode,
    from: DirCookie,
    max: usize,
) -> Result<Vec<DirEntry>, Error> {
    let mut found = Vec::new();
    if dir.data.form == Form::Local {
        let what = format!("directory {}", dir.number);
        let mut short = Short::new(fs, dir)?;
        let mut number = 0;
        while let Some(entry) = short.next()? {
            number += 1;
            if number > from.0 && found.len() < max {
                found.push(entry.listed(number, &what)?);
            }
        }
        return Ok(found);
    }
    let block_bytes = u64::from(fs.sb.dir_block_bytes);
    let blocks = dir.size.min(1 << 35).div_ceil(block_bytes);
    let mut number = from.0 / block_bytes;
    let last = blocks.min(number.saturating_add(BLOCKS_PER_CALL));
    while number < last && found.len() < max {
        let base = number * block_bytes;
        if let Some((bytes, mut at, end)) = entries_block(fs, dir, number)? {
            let what = what(dir, number);
            while at < end && found.len() < max {
                let (entry, next) = entry(fs, &bytes, at, end, &what)?;
                if let Some(entry) = entry.filter(|e| !e.is_dots())
                    && base + entry.start as u64 >= from.0
                {
                    found.push(entry.listed(base + entry.end as u64, &what)?);
                }
                at = next;
            }
        }
        number += 1;
    }
    if found.is_empty() && number < blocks {
        let text =
            format!("directory {} has {BLOCKS_PER_CALL} blocks without an entry", dir.number);
        return Err(Error::new(ErrorKind::Limit, text));
    }
    Ok(found)
}

/// What a name leads to, by looking at all entries. Without the case of ASCII letters where the file system has none.
pub(super) fn scan(fs: &Xfs, dir: &Inode, name: &[u8]) -> Result<Option<u64>, Error> {
    let (mut from, mut other) = (DirCookie::START, None);
    loop {
        let part = list(fs, dir, from, 1024)?;
        let Some(last) = part.last() else { return Ok(other) };
        from = last.next;
        for entry in &part {
            if entry.name == name {
                return Ok(Some(entry.node.inode));
            }
            if fs.sb.ascii_ci && entry.name.eq_ignore_ascii_case(name) {
                other = other.or(Some(entry.node.inode));
            }
        }
    }
}

/// The entries of a directory in its inode.
struct Short<'a> {
    bytes: &'a [u8],
    what: String,
    left: usize,
    at: usize,
    wide: bool,
    typed: bool,
}

impl<'a> Short<'a> {
    fn new(fs: &Xfs, dir: &'a Inode) -> Result<Self, Error> {
        let what = format!("the entries in inode {}", dir.number);
        let len = usize::try_from(dir.size).unwrap_or(usize::MAX);
        let bytes = part(&dir.data.bytes, 0, len, &what)?;
        let f = Fields::new(bytes, &what);
        let (count, wide) = (f.u8(0)?, f.u8(1)?);
        // With many entries of large numbers the count stands in the other field.
        let left = usize::from(if wide == 0 { count } else { count.max(wide) });
        let at = if wide == 0 { 6 } else { 10 };
        Ok(Self { bytes, what, left, at, wide: wide != 0, typed: fs.sb.has_types })
    }

    fn next(&mut self) -> Result<Option<Entry<'a>>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let start = self.at;
        let f = Fields::new(self.bytes, &self.what);
        let len = usize::from(f.u8(start)?);
        // A name stands behind its length and the place it would have in a block.
        let name = part(self.bytes, start + 3, len, &self.what)?;
        let mut at = start + 3 + len;
        let kind = if self.typed { f.u8(at)? } else { 0 };
        at += usize::from(self.typed);
        let (inode, end) = match self.wide {
            true => (f.be64(at)?, at + 8),
            false => (f.be32(at)?.into(), at + 4),
        };
        self.at = end;
        Ok(Some(Entry { inode, name, kind, start, end }))
    }
}
