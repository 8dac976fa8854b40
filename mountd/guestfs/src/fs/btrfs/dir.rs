//! Directories and extended attributes: both are lists of names in items. Source: btrfs documentation, "On-disk format",
//! `DIR_ITEM`, `DIR_INDEX`, `XATTR_ITEM`, `ROOT_REF`.

use super::subvolume::{ROOT_INODE, is_subvolume};
use super::sums::name_hash;
use super::superblock::Root;
use super::tree::{Cursor, Item, Key, find, key_type};
use super::volume::Volume;
use crate::fields::Fields;
use crate::fs::{DirCookie, DirEntry, NodeId, NodeKind, Xattr};
use crate::{Error, ErrorKind};

/// The fixed part of an entry.
const ENTRY_BYTES: usize = 30;
/// The longest name of a file, and of an attribute.
const NAME_MAX: usize = 255;
/// What the attributes of one node may take.
const XATTRS_MAX_BYTES: usize = 16 << 20;
/// What a small attribute counts for at least, so that their number is bounded too.
const XATTR_LEAST_BYTES: usize = 64;
/// Most entries one call of `read_dir` gives.
const ENTRIES_MAX: usize = 4096;
/// The inode of the empty directory that stands where a snapshot has no copy of a subvolume.
pub(super) const EMPTY_INODE: u64 = 2;
/// The marks of an entry that is an attribute, and of one whose name is encrypted.
const TYPE_XATTR: u8 = 8;
const TYPE_ENCRYPTED: u8 = 0x80;

/// An entry of a `DIR_ITEM`, `DIR_INDEX` or `XATTR_ITEM`.
struct Entry<'a> {
    target: Key,
    kind: u8,
    name: &'a [u8],
    value: &'a [u8],
}

/// The entries of one item.
fn entries<'a>(item: &'a Item) -> impl Iterator<Item = Result<Entry<'a>, Error>> {
    let mut rest = item.data();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = parse(rest).map_err(|e| item.damaged("has a bad entry").with_source(e));
        rest = match &entry {
            Ok(entry) => {
                rest.get(ENTRY_BYTES + entry.name.len() + entry.value.len()..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(entry)
    })
}

fn parse(bytes: &[u8]) -> Result<Entry<'_>, Error> {
    let f = Fields::new(bytes, "the entry");
    let (value_len, name_len) = (usize::from(f.le16(25)?), usize::from(f.le16(27)?));
    if name_len == 0 || name_len > NAME_MAX {
        return Err(Error::damaged(format!("a name of {name_len} bytes")));
    }
    Ok(Entry {
        target: Key::parse(f.slice(0, Key::BYTES)?, "the entry")?,
        kind: f.u8(29)?,
        name: f.slice(ENTRY_BYTES, name_len)?,
        value: f.slice(ENTRY_BYTES + name_len, value_len)?,
    })
}

/// A directory: its tree and its inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directory<'a> {
    pub(super) volume: &'a Volume,
    pub(super) root_tree: Root,
    pub(super) root: Root,
    pub(super) node: NodeId,
}

impl Directory<'_> {
    /// What a name leads to, by its hash.
    pub(super) fn lookup(&self, name: &[u8]) -> Result<NodeId, Error> {
        let key = Key::new(self.node.inode, key_type::DIR_ITEM, name_hash(name));
        if let Some(item) = find(self.volume, self.root, key)? {
            for entry in entries(&item) {
                let entry = entry?;
                if entry.name == name {
                    return self.target(&item, &entry);
                }
            }
        }
        let name = String::from_utf8_lossy(name);
        Err(Error::not_found(format!("there is no {name:?} in directory {}", self.node)))
    }

    /// The entries behind a place, in the order they were made. The place is the index of the entry before.
    pub(super) fn list(&self, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let mut list = Vec::new();
        let Some(first) = from.0.checked_add(1) else { return Ok(list) };
        let start = Key::new(self.node.inode, key_type::DIR_INDEX, first);
        let mut cursor = Cursor::at_or_behind(self.volume, self.root, start)?;
        while list.len() < max.clamp(1, ENTRIES_MAX) {
            let Some(item) = cursor.item()? else { break };
            if !item.key.is_of(self.node.inode, key_type::DIR_INDEX) {
                break;
            }
            let mut all = entries(&item);
            let (Some(entry), None) = (all.next().transpose()?, all.next()) else {
                return Err(item.damaged("does not hold one entry"));
            };
            check_name(&item, entry.name)?;
            list.push(DirEntry {
                name: entry.name.to_vec(),
                node: self.target(&item, &entry)?,
                kind: kind(entry.kind),
                next: DirCookie(item.key.offset),
            });
            cursor.advance()?;
        }
        Ok(list)
    }

    /// Where an entry leads.
    fn target(&self, item: &Item, entry: &Entry<'_>) -> Result<NodeId, Error> {
        let target = entry.target;
        match target.kind {
            key_type::INODE if target.object >= ROOT_INODE => {
                Ok(NodeId { inode: target.object, part: self.node.part })
            }
            key_type::ROOT if is_subvolume(target.object) => self.subvolume(entry),
            _ => Err(item.damaged(format!("leads to an item of type {}", target.kind))),
        }
    }

    /// A subvolume is there only under the name its reference tells: a snapshot of what is above it has the name,
    /// and the kernel shows an empty directory.
    fn subvolume(&self, entry: &Entry<'_>) -> Result<NodeId, Error> {
        let target = entry.target.object;
        let key = Key::new(self.node.part, key_type::ROOT_REF, target);
        if let Some(reference) = find(self.volume, self.root_tree, key)? {
            let f = reference.fields();
            let name = f.slice(18, usize::from(f.le16(16)?))?;
            if f.le64(0)? == self.node.inode && name == entry.name {
                return Ok(NodeId { inode: ROOT_INODE, part: target });
            }
        }
        Ok(NodeId { inode: EMPTY_INODE, part: self.node.part })
    }
}

fn check_name(item: &Item, name: &[u8]) -> Result<(), Error> {
    if name == b"." || name == b".." || name.iter().any(|b| matches!(b, 0 | b'/')) {
        let name = String::from_utf8_lossy(name);
        return Err(item.damaged(format!("has the name {name:?}, which no file can have")));
    }
    Ok(())
}

fn kind(number: u8) -> Option<NodeKind> {
    Some(match number & !TYPE_ENCRYPTED {
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

/// Whether a node has extended attributes.
pub(super) fn has_xattrs(volume: &Volume, root: Root, inode: u64) -> Result<bool, Error> {
    let cursor = Cursor::at_or_behind(volume, root, Key::new(inode, key_type::XATTR, 0))?;
    Ok(cursor.item()?.is_some_and(|item| item.key.is_of(inode, key_type::XATTR)))
}

/// All extended attributes of a node.
pub(super) fn xattrs(volume: &Volume, root: Root, inode: u64) -> Result<Vec<Xattr>, Error> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    let mut cursor = Cursor::at_or_behind(volume, root, Key::new(inode, key_type::XATTR, 0))?;
    while let Some(item) = cursor.item()? {
        if !item.key.is_of(inode, key_type::XATTR) {
            break;
        }
        // One name has one hash, so a name can only come twice within an item.
        let first = all.len();
        for entry in entries(&item) {
            let Entry { kind, name, value, .. } = entry?;
            if all[first..].iter().any(|x: &Xattr| x.name == name) {
                return Err(item.damaged("holds one attribute twice"));
            }
            if kind != TYPE_XATTR || name_hash(name) != item.key.offset || name.contains(&0) {
                return Err(item.damaged("holds something else than an attribute of its hash"));
            }
            bytes += (name.len() + value.len()).max(XATTR_LEAST_BYTES);
            if bytes > XATTRS_MAX_BYTES {
                let text = format!("inode {inode} has more than 16 MiB of attributes");
                return Err(Error::new(ErrorKind::Limit, text));
            }
            all.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        }
        cursor.advance()?;
    }
    Ok(all)
}

/// What the root tree's directory has under "default": the subvolume that is mounted if none is named.
pub(super) fn default_subvolume(volume: &Volume, root_tree: Root) -> Result<Option<u64>, Error> {
    const ROOT_TREE_DIRECTORY: u64 = 6;
    let key = Key::new(ROOT_TREE_DIRECTORY, key_type::DIR_ITEM, name_hash(b"default"));
    let Some(item) = find(volume, root_tree, key)? else { return Ok(None) };
    for entry in entries(&item) {
        let entry = entry?;
        if entry.name == b"default" && entry.target.kind == key_type::ROOT {
            return Ok(Some(entry.target.object));
        }
    }
    Ok(None)
}
