//! Trees of blocks: keys, headers, items, and walking them in order. Source: btrfs documentation, "On-disk format",
//! Header, Node, Leaf.

use std::sync::Arc;

use super::superblock::Root;
use super::volume::Volume;
use crate::Error;
use crate::fields::Fields;

/// What an item is.
pub(super) mod key_type {
    pub(in crate::fs::btrfs) const INODE: u8 = 1;
    pub(in crate::fs::btrfs) const XATTR: u8 = 24;
    pub(in crate::fs::btrfs) const DIR_ITEM: u8 = 84;
    pub(in crate::fs::btrfs) const DIR_INDEX: u8 = 96;
    pub(in crate::fs::btrfs) const EXTENT_DATA: u8 = 108;
    pub(in crate::fs::btrfs) const EXTENT_SUM: u8 = 128;
    pub(in crate::fs::btrfs) const ROOT: u8 = 132;
    pub(in crate::fs::btrfs) const ROOT_REF: u8 = 156;
    pub(in crate::fs::btrfs) const DEVICE: u8 = 216;
    pub(in crate::fs::btrfs) const CHUNK: u8 = 228;
}

/// Levels a tree has at most.
const LEVELS_MAX: u8 = 8;
/// The header of a tree block, a pointer in an inner one, and an item's head in a leaf.
const HEADER_BYTES: usize = 101;
const POINTER_BYTES: usize = 33;
const ITEM_BYTES: usize = 25;

/// The key of an item; the order of keys is the order of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const BYTES: usize = 17;

    pub(super) fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let f = Fields::new(bytes, what);
        Ok(Self { object: f.le64(0)?, kind: f.u8(8)?, offset: f.le64(9)? })
    }

    /// Whether the item belongs to the same object and is of the same type.
    pub(super) fn is_of(&self, object: u64, kind: u8) -> bool {
        self.object == object && self.kind == kind
    }
}

/// A checked tree block.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Vec<u8>,
    /// Where it was read, for errors.
    place: String,
    pub(super) level: u8,
    pub(super) generation: u64,
    entries: usize,
}

impl Block {
    /// Checks what was read at `address`: not its checksum, but everything else that a block says of itself. Sorted keys and packed
    /// items are what later accesses rely on.
    pub(super) fn parse(
        bytes: Vec<u8>,
        address: u64,
        fsids: &[[u8; 16]],
        place: String,
    ) -> Result<Self, Error> {
        let f = Fields::new(&bytes, &place);
        if f.le64(0x30)? != address {
            return Err(Error::damaged(format!("{place} says that it is {}", f.le64(0x30)?)));
        }
        if !fsids.contains(&f.array(0x20)?) {
            return Err(Error::damaged(format!("{place} belongs to another file system")));
        }
        let (generation, level) = (f.le64(0x50)?, f.u8(0x64)?);
        let entries = f.le32(0x60)? as usize;
        let each = if level == 0 { ITEM_BYTES } else { POINTER_BYTES };
        if level >= LEVELS_MAX || entries > (bytes.len() - HEADER_BYTES) / each {
            return Err(Error::damaged(format!("{place} has level {level}, {entries} entries")));
        }
        if level > 0 && entries == 0 {
            return Err(Error::damaged(format!("{place} is an inner block without entries")));
        }
        let block = Self { bytes, place, level, generation, entries };
        block.check()?;
        Ok(block)
    }

    fn check(&self) -> Result<(), Error> {
        let mut before: Option<Key> = None;
        let mut behind = self.bytes.len() - HEADER_BYTES;
        for slot in 0..self.entries {
            let key = self.key(slot)?;
            if before.is_some_and(|before| before >= key) {
                return Err(Error::damaged(format!("{}: key {slot} is out of order", self.place)));
            }
            before = Some(key);
            if self.level == 0 {
                let (start, len) = self.item_range(slot)?;
                let packed = start.checked_add(len) == Some(behind);
                if !packed || start < self.entries * ITEM_BYTES {
                    let text = format!("{}: item {slot} is at {start}, {len} bytes", self.place);
                    return Err(Error::damaged(text));
                }
                behind = start;
            }
        }
        Ok(())
    }

    fn fields(&self) -> Fields<'_> {
        Fields::new(&self.bytes, &self.place)
    }

    fn entry_at(&self, slot: usize) -> usize {
        HEADER_BYTES + slot * if self.level == 0 { ITEM_BYTES } else { POINTER_BYTES }
    }

    fn key(&self, slot: usize) -> Result<Key, Error> {
        Key::parse(self.fields().slice(self.entry_at(slot), Key::BYTES)?, &self.place)
    }

    /// Where an item's data is, from the end of the header on.
    fn item_range(&self, slot: usize) -> Result<(usize, usize), Error> {
        let at = self.entry_at(slot);
        let f = self.fields();
        Ok((f.le32(at + 17)? as usize, f.le32(at + 21)? as usize))
    }

    /// Logical address and generation of the block a pointer leads to.
    fn pointer(&self, slot: usize) -> Result<(u64, u64), Error> {
        let at = self.entry_at(slot);
        let f = self.fields();
        Ok((f.le64(at + 17)?, f.le64(at + 25)?))
    }

    /// The last slot whose key is not behind `key`; 0 if all are.
    fn slot_of(&self, key: Key) -> Result<usize, Error> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle)? <= key { low = middle + 1 } else { high = middle }
        }
        Ok(low.saturating_sub(1))
    }
}

/// An item: its key, and its bytes in the leaf they are in.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) key: Key,
    leaf: Arc<Block>,
    start: usize,
    len: usize,
}

impl Item {
    /// Its data.
    pub(super) fn data(&self) -> &[u8] {
        self.leaf.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// Numbers out of its data; errors name the leaf.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(self.data(), &self.leaf.place)
    }

    /// An error about it: which item of what leaf, and what is wrong.
    pub(super) fn damaged(&self, text: impl std::fmt::Display) -> Error {
        let Key { object, kind, offset } = self.key;
        let place = &self.leaf.place;
        Error::damaged(format!("item ({object} {kind} {offset}) in {place} {text}"))
    }
}

/// A place in a tree.
///
/// A walk ends: levels fall on the way down, a child's first key is what its parent says, and keys only grow from item to item, so
/// that no block is met twice.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    volume: &'a Volume,
    /// The blocks from the root down, and the slot in each.
    path: Vec<(Arc<Block>, usize)>,
    last: Option<Key>,
}

impl<'a> Cursor<'a> {
    /// At the last item whose key is not behind `key`; at the first one if all are.
    pub(super) fn at_or_before(volume: &'a Volume, root: Root, key: Key) -> Result<Self, Error> {
        let block = volume.block(root.address, root.level, root.generation)?;
        let mut cursor = Self { volume, path: Vec::new(), last: None };
        let slot = block.slot_of(key)?;
        cursor.path.push((block, slot));
        cursor.descend(Some(key))?;
        Ok(cursor)
    }

    /// At the first item whose key is `key` or behind it.
    pub(super) fn at_or_behind(volume: &'a Volume, root: Root, key: Key) -> Result<Self, Error> {
        let mut cursor = Self::at_or_before(volume, root, key)?;
        if cursor.item()?.is_some_and(|item| item.key < key) {
            cursor.advance()?;
        }
        Ok(cursor)
    }

    /// The item it is at; none at the tree's end.
    pub(super) fn item(&self) -> Result<Option<Item>, Error> {
        let Some((leaf, slot)) = self.path.last() else { return Ok(None) };
        if *slot >= leaf.entries {
            return Ok(None);
        }
        let (start, len) = leaf.item_range(*slot)?;
        let item = Item {
            key: leaf.key(*slot)?,
            leaf: Arc::clone(leaf),
            start: start + HEADER_BYTES,
            len,
        };
        if self.last.is_some_and(|last| last >= item.key) {
            return Err(item.damaged("comes behind one with a higher key"));
        }
        Ok(Some(item))
    }

    /// Goes on to the next item.
    pub(super) fn advance(&mut self) -> Result<(), Error> {
        if let Some(item) = self.item()? {
            self.last = Some(item.key);
        }
        while let Some((block, slot)) = self.path.last_mut() {
            *slot += 1;
            if *slot < block.entries {
                return self.descend(None);
            }
            self.path.pop();
        }
        Ok(())
    }

    /// From the last block of the path down to a leaf: to `key`, or always to the first entry.
    fn descend(&mut self, key: Option<Key>) -> Result<(), Error> {
        while let Some((block, slot)) = self.path.last()
            && block.level > 0
        {
            let (address, generation) = block.pointer(*slot)?;
            let first = block.key(*slot)?;
            let child = self.volume.block(address, block.level - 1, generation)?;
            if child.entries == 0 || child.key(0)? != first {
                let text = format!("{} does not start as {} says", child.place, block.place);
                return Err(Error::damaged(text));
            }
            let slot = key.map_or(Ok(0), |key| child.slot_of(key))?;
            self.path.push((child, slot));
        }
        Ok(())
    }
}

/// The item with this very key.
pub(super) fn find(volume: &Volume, root: Root, key: Key) -> Result<Option<Item>, Error> {
    let item = Cursor::at_or_before(volume, root, key)?.item()?;
    Ok(item.filter(|item| item.key == key))
}

/// The last item of an object and type whose offset is not behind `offset`.
pub(super) fn find_last(volume: &Volume, root: Root, key: Key) -> Result<Option<Item>, Error> {
    let item = Cursor::at_or_before(volume, root, key)?.item()?;
    Ok(item.filter(|item| item.key.is_of(key.object, key.kind) && item.key <= key))
}
