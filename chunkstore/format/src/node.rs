//! Image-tree nodes: which chunk stands at which place of a disk.
//!
//! A disk is a tree of fixed shape. A node has [`NODE_FANOUT`] slots; at level 0 they are data
//! chunks, above it nodes one level lower. An empty slot is a hole, whatever its level.

use crate::limits::{NODE_FANOUT, NODE_LEVELS_MAX};
use crate::{ChunkId, ChunkSize, Field, FormatError, magic};

/// Magic of a node.
pub const MAGIC: Field = Field::new("magic", 0, 4);
/// Version of the node.
pub const VERSION: Field = MAGIC.then("version", 1);
/// 0 for a leaf, whose slots are data chunks.
pub const LEVEL: Field = VERSION.then("level", 1);
/// Zero.
pub const RESERVED: Field = LEVEL.then("reserved", 2);
/// Bit i set: slot i is filled.
pub const PRESENT: Field = RESERVED.then("present", 8);
/// The fixed fields, in order; the ids of the filled slots follow, lowest slot first.
pub const FIELDS: [Field; 5] = [MAGIC, VERSION, LEVEL, RESERVED, PRESENT];
/// Bytes before the ids.
pub const HEAD_LEN: usize = PRESENT.end();
/// The longest node.
pub const NODE_LEN_MAX: usize = HEAD_LEN + NODE_FANOUT * ChunkId::LEN;

const _: () = assert!(HEAD_LEN == 16 && NODE_FANOUT == 64);
const NODE_VERSION: u8 = 1;

/// A node, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    level: u8,
    slots: [Option<ChunkId>; NODE_FANOUT],
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let filled = self.slots.iter().flatten().count();
        f.debug_struct("Node").field("level", &self.level).field("filled", &filled).finish()
    }
}

impl Node {
    /// An empty node, which is never stored: an empty subtree is a hole in its parent.
    pub fn empty(level: u8) -> Self {
        Self { level, slots: [None; NODE_FANOUT] }
    }

    /// The node's level; 0 for a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// What stands in each slot.
    pub fn slots(&self) -> &[Option<ChunkId>; NODE_FANOUT] {
        &self.slots
    }

    /// Fills or empties a slot.
    pub fn set(&mut self, slot: usize, id: Option<ChunkId>) {
        self.slots[slot] = id;
    }

    /// Whether every slot is a hole.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// The node's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; HEAD_LEN];
        let mut present = 0u64;
        for (i, id) in self.slots.iter().enumerate() {
            if let Some(id) = id {
                present |= 1 << i;
                out.extend_from_slice(id.as_bytes());
            }
        }
        MAGIC.put(&mut out, &magic::NODE);
        VERSION.put(&mut out, &[NODE_VERSION]);
        LEVEL.put(&mut out, &[self.level]);
        PRESENT.put(&mut out, &present.to_le_bytes());
        out
    }

    /// Reads a node that must stand at `level`.
    pub fn decode(bytes: &[u8], level: u8) -> Result<Self, FormatError> {
        if MAGIC.bytes(bytes)? != magic::NODE {
            return Err(FormatError::damaged("magic", "this chunk is not an image-tree node"));
        }
        let [version] = VERSION.array(bytes)?;
        if version != NODE_VERSION {
            return Err(FormatError::unsupported("version", format!("node version {version}")));
        }
        RESERVED.expect_zero(bytes)?;
        let [found] = LEVEL.array(bytes)?;
        if found != level {
            return Err(FormatError::damaged(
                "level",
                format!("a node of level {found} stands where level {level} belongs"),
            ));
        }
        let present = PRESENT.u64(bytes)?;
        let ids = &bytes[HEAD_LEN..];
        if present == 0 || ids.len() != present.count_ones() as usize * ChunkId::LEN {
            return Err(FormatError::damaged("present", "the node's length does not fit its map"));
        }
        let mut node = Self::empty(level);
        let filled = (0..NODE_FANOUT).filter(|i| present & (1 << i) != 0);
        for (slot, id) in filled.zip(ids.as_chunks::<{ ChunkId::LEN }>().0) {
            node.slots[slot] = Some(ChunkId::from_bytes(*id));
        }
        Ok(node)
    }
}

/// How many levels the tree of a disk has: the least, at least one, whose slots cover its chunks.
pub fn levels_for(chunk_count: u64) -> u8 {
    let mut levels = 1;
    while levels < NODE_LEVELS_MAX && chunks_below(levels) < chunk_count {
        levels += 1;
    }
    levels
}

/// How many chunks a subtree of `levels` levels covers.
pub fn chunks_below(levels: u8) -> u64 {
    (NODE_FANOUT as u64).checked_pow(u32::from(levels)).unwrap_or(u64::MAX)
}

/// The levels of the tree of a disk of `size_bytes`.
pub fn levels_of_disk(size_bytes: u64, chunk_size: ChunkSize) -> u8 {
    levels_for(chunk_size.chunk_count(size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels() {
        for (chunks, levels) in [(0, 1), (1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3)] {
            assert_eq!(levels_for(chunks), levels, "{chunks}");
        }
        let largest = ChunkSize::new(4096).unwrap().chunk_count(crate::limits::DISK_SIZE_MAX);
        assert!(chunks_below(levels_for(largest)) >= largest);
    }

    proptest! {
        #[test]
        fn there_and_back(present in 1u64.., level in 0u8..9) {
            let mut node = Node::empty(level);
            for i in 0..64 {
                if present & (1 << i) != 0 {
                    node.set(i, Some(ChunkId::from_bytes([i as u8; 32])));
                }
            }
            prop_assert_eq!(Node::decode(&node.encode(), level).unwrap(), node);
        }

        #[test]
        fn any_bytes_are_a_node_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2100)) {
            let _ = Node::decode(&bytes, 0);
        }
    }

    #[test]
    fn wrong_length_and_level() {
        let mut node = Node::empty(0);
        node.set(5, Some(ChunkId::from_bytes([1; 32])));
        let good = node.encode();
        assert!(Node::decode(&good, 1).is_err());
        assert!(Node::decode(&good[..good.len() - 1], 0).is_err());
        assert!(Node::decode(&Node::empty(0).encode(), 0).is_err());
    }
}
