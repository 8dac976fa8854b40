//! Looking a name up by the hash index of a directory, and walking over the blocks of attributes, which are kept alike.
//! Source: "XFS Filesystem Structure", "Leaf Directories", "Node Directories".

use super::Xfs;
use super::dir::{self, UNIT, block};
use super::inode::Inode;
use super::sums;
use crate::Error;
use crate::fields::Fields;

/// Levels of an index at most (XFS_DA_NODE_MAXDEPTH).
pub(super) const LEVELS_MAX: u16 = 5;
/// Leaves that go on with one hash, at most.
const LEAVES_MAX: usize = 4096;

/// What a block of an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Node,
    DirLeaf,
    AttributeLeaf,
}

/// The head of a block of an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// The block that follows; 0 is none.
    pub(super) forward: u32,
    pub(super) count: usize,
    /// Of a node: how far it is above the leaves.
    pub(super) level: u16,
    /// Where entries of 8 bytes begin.
    pub(super) entries: usize,
}

/// The head of a block; `checked` file systems have longer ones.
pub(super) fn head(f: &Fields<'_>, checked: bool, len: usize, what: &str) -> Result<Head, Error> {
    let kind = match (f.be16(8)?, checked) {
        (0xfebe, false) | (0x3ebe, true) => Kind::Node,
        (0xd2f1 | 0xd2ff, false) | (0x3df1 | 0x3dff, true) => Kind::DirLeaf,
        (0xfbee, false) | (0x3bee, true) => Kind::AttributeLeaf,
        _ => return Err(Error::damaged(format!("{what} is no block of an index"))),
    };
    let info = if checked { 56 } else { 12 };
    let entries = match (kind, checked) {
        (Kind::AttributeLeaf, true) => 80,
        (Kind::AttributeLeaf, false) => 32,
        (_, true) => 64,
        (_, false) => 16,
    };
    let count = usize::from(f.be16(info)?);
    if entries + count * 8 > len {
        return Err(Error::damaged(format!("{what} has {count} entries, which do not fit")));
    }
    let level = if kind == Kind::Node { f.be16(info + 2)? } else { 0 };
    Ok(Head { kind, forward: f.be32(0)?, count, level, entries })
}

/// The hash of a name (`xfs_da_hashname`).
pub(crate) fn hash(name: &[u8]) -> u32 {
    let mut hash = 0u32;
    let (pieces, rest) = name.as_chunks::<4>();
    for piece in pieces {
        let [a, b, c, d] = piece.map(u32::from);
        hash = a << 21 ^ b << 14 ^ c << 7 ^ d ^ hash.rotate_left(28);
    }
    let tail = rest.iter().fold(0, |tail, byte| tail << 7 ^ u32::from(*byte));
    match rest.len() {
        0 => hash,
        len => tail ^ hash.rotate_left(7 * len as u32),
    }
}

/// What a name leads to by the index of a directory that has one; `None` if it has none.
pub(super) fn look(fs: &Xfs, dir: &Inode, name: &[u8]) -> Result<Option<Option<u64>>, Error> {
    let wanted = hash(name);
    let checked = fs.sb.has_checksums();
    let mut number = fs.sb.leaf_block();
    let mut level = None;
    let mut leaves = 0;
    loop {
        let what = format!("block {number} of the index of directory {}", dir.number);
        let bytes = match block(fs, dir, number, Some(sums::INDEX), &what)? {
            Some(bytes) => bytes,
            None if level.is_none() && leaves == 0 => return Ok(None),
            None => return Err(Error::damaged(format!("{what} is not there"))),
        };
        let f = Fields::new(&bytes, &what);
        let head = head(&f, checked, bytes.len(), &what)?;
        let key = |i: usize| f.be32(head.entries + i * 8);
        let first = first_not_below(head.count, wanted, key)?;
        match head.kind {
            Kind::Node => {
                let right = level.is_none_or(|level| level == head.level) && leaves == 0;
                if !right || head.level == 0 || head.level > LEVELS_MAX {
                    return Err(Error::damaged(format!("{what} is at the wrong level")));
                }
                level = Some(head.level - 1);
                if first == head.count {
                    return Ok(Some(None));
                }
                number = f.be32(head.entries + first * 8 + 4)?.into();
            }
            Kind::DirLeaf if level.unwrap_or(0) == 0 => {
                let mut at = first;
                while at < head.count && key(at)? == wanted {
                    let place = u64::from(f.be32(head.entries + at * 8 + 4)?);
                    if let Some(inode) = named(fs, dir, place, name)? {
                        return Ok(Some(Some(inode)));
                    }
                    at += 1;
                }
                leaves += 1;
                if at < head.count || head.forward == 0 {
                    return Ok(Some(None));
                }
                if leaves > LEAVES_MAX {
                    return Err(Error::damaged(format!("{what} is one of too many")));
                }
                number = head.forward.into();
            }
            _ => return Err(Error::damaged(format!("{what} is at the wrong level"))),
        }
    }
}

/// The inode of the entry at a place, if it has this name. Place 0 is that of an entry that is gone.
fn named(fs: &Xfs, dir: &Inode, place: u64, name: &[u8]) -> Result<Option<u64>, Error> {
    if place == 0 {
        return Ok(None);
    }
    let (at, block_bytes) = (place * UNIT, u64::from(fs.sb.dir_block_bytes));
    let number = at / block_bytes;
    let what = dir::what(dir, number);
    let Some((bytes, start, end)) = dir::entries_block(fs, dir, number)? else {
        return Err(Error::damaged(format!("{what} is not there")));
    };
    let at = (at % block_bytes) as usize;
    if at < start || at >= end {
        return Err(Error::damaged(format!("{what} has no entry at its byte {at}")));
    }
    let (entry, _) = dir::entry(fs, &bytes, at, end, &what)?;
    Ok(entry.filter(|entry| entry.name == name).map(|entry| entry.inode))
}

/// The first entry whose hash is not below `wanted`; entries are in order.
fn first_not_below(
    count: usize,
    wanted: u32,
    key: impl Fn(usize) -> Result<u32, Error>,
) -> Result<usize, Error> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match key(middle)? < wanted {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_names() {
        // As xfs_db prints them: `hash NAME`.
        assert_eq!(hash(b"."), 0x2e);
        assert_eq!(hash(b".."), 0x172e);
        assert_eq!(hash(b"abcd"), 0x0c38_b1e4);
    }
}
