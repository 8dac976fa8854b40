//! The devices of one file system as one space of logical addresses: checked tree blocks, and content.

use std::fmt;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::chunks::{Chunks, Copy, Mapped};
use super::superblock::{SUMMED_FROM, Superblock};
use super::tree::{Block, Cursor, Key, key_type};
use crate::{Error, ErrorKind, Media};

/// What checked tree blocks may take in memory.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// The object all chunks belong to in the chunk tree, and that of device items.
const CHUNKS_OBJECT: u64 = 256;
const DEVICES_OBJECT: u64 = 1;
/// Most devices a file system may have here.
const DEVICES_MAX: usize = 1024;
/// Most items a chunk tree may have here: chunks, devices, and what is left out.
const CHUNK_ITEMS_MAX: usize = 1 << 19;

/// A device that is there.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) media: Media,
    pub(super) superblock: Superblock,
    /// Its place in the list the caller gave.
    pub(super) index: u16,
}

/// The space of logical addresses.
pub(super) struct Volume {
    pub(super) superblock: Superblock,
    members: Vec<Member>,
    chunks: Chunks,
    fsids: Vec<[u8; 16]>,
    blocks: Cache<u64, Arc<Block>>,
    /// Devices of the file system that are not there.
    pub(super) missing: Vec<u64>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("members", &self.members).finish_non_exhaustive()
    }
}

impl Volume {
    /// Over devices whose superblocks were read; `superblock` is the newest of the file system to be read.
    pub(super) fn new(superblock: Superblock, mut members: Vec<Member>) -> Result<Self, Error> {
        members.retain(|m| m.superblock.fsid == superblock.fsid || m.superblock.is_seed);
        // A mirror that missed the last writes is asked last.
        members.sort_by_key(|m| std::cmp::Reverse(m.superblock.generation));
        let mut fsids = vec![superblock.metadata_fsid];
        fsids.extend(members.iter().map(|m| m.superblock.metadata_fsid));
        fsids.dedup();
        let keep = (BLOCK_CACHE_BYTES / superblock.node_bytes as usize).max(16);
        let chunks =
            Chunks::system(&superblock.system_chunks, |id, uuid| find(&members, id, uuid))?;
        let blocks = Cache::new(keep);
        let mut volume = Self { superblock, members, chunks, fsids, blocks, missing: Vec::new() };
        volume.read_chunks()?;
        Ok(volume)
    }

    /// Reads the chunk tree by the chunks of the superblock.
    fn read_chunks(&mut self) -> Result<(), Error> {
        let root = self.superblock.chunk_root;
        let members = &self.members;
        let device_of = |id: u64, uuid: &[u8; 16]| find(members, id, uuid);
        let mut all = Chunks::system(&self.superblock.system_chunks, device_of)?;
        let mut missing = Vec::new();
        let mut left = CHUNK_ITEMS_MAX;
        let mut cursor = Cursor::at_or_behind(self, root, Key::new(0, 0, 0))?;
        while let Some(item) = cursor.item()? {
            if item.key.is_of(CHUNKS_OBJECT, key_type::CHUNK) {
                let used = all.add(item.key.offset, item.data(), device_of)?;
                if used != item.data().len() {
                    return Err(item.damaged("is longer than the chunk it holds"));
                }
            } else if item.key.is_of(DEVICES_OBJECT, key_type::DEVICE) {
                let uuid = item.fields().array(66)?;
                let is_there = device_of(item.key.offset, &uuid).is_some();
                if !is_there && missing.len() < DEVICES_MAX {
                    missing.push(item.key.offset);
                }
            }
            cursor.advance()?;
            left -= 1;
            if left == 0 {
                let text = format!("a chunk tree of more than {CHUNK_ITEMS_MAX} items");
                return Err(Error::new(ErrorKind::Limit, text));
            }
        }
        self.chunks = all;
        self.missing = missing;
        Ok(())
    }

    /// The tree block at a logical address, which its parent says to be of this level and generation. Where a copy is not good, the
    /// others are read.
    pub(super) fn block(&self, at: u64, level: u8, generation: u64) -> Result<Arc<Block>, Error> {
        if let Some(block) = self.blocks.get(&at)
            && block.level == level
            && block.generation == generation
        {
            return Ok(block);
        }
        if !at.is_multiple_of(u64::from(self.superblock.sector_bytes)) {
            return Err(Error::damaged(format!("a tree block would be at logical byte {at}")));
        }
        let mapped = self.chunks.map(at)?;
        if mapped.len < u64::from(self.superblock.node_bytes) {
            return Err(Error::damaged(format!("the tree block at logical byte {at} is cut off")));
        }
        let mut first = None;
        for copy in &mapped.copies {
            match self.read_block(at, *copy, level, generation) {
                Ok(block) => {
                    let block = Arc::new(block);
                    self.blocks.insert(at, Arc::clone(&block));
                    return Ok(block);
                }
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.unwrap_or_else(|| Error::damaged("a tree block without copies")))
    }

    fn read_block(&self, at: u64, copy: Copy, level: u8, generation: u64) -> Result<Block, Error> {
        let member = self.member(copy)?;
        let place = format!("the tree block at byte {} of device {}", copy.offset, member.index);
        let bytes = member.media.bytes(copy.offset, self.superblock.node_bytes as usize, &place)?;
        let summed = bytes.get(SUMMED_FROM..).unwrap_or_default();
        if !self.superblock.sums.fits(summed, &bytes) {
            return Err(Error::damaged(format!("the checksum of {place} does not fit")));
        }
        let block = Block::parse(bytes, at, &self.fsids, place)?;
        if block.level != level || block.generation != generation {
            return Err(Error::damaged(format!(
                "the tree block at byte {} of device {} has level {} and generation {} where {level} and {generation} are wanted",
                copy.offset, member.index, block.level, block.generation
            )));
        }
        Ok(block)
    }

    /// Where content at a logical address is: as [`Chunks::map`].
    pub(super) fn map(&self, logical: u64) -> Result<Mapped, Error> {
        self.chunks.map(logical)
    }

    /// The place of a copy in the list of devices the caller gave.
    pub(super) fn index_of(&self, copy: Copy) -> Option<u16> {
        self.members.get(usize::from(copy.device)).map(|m| m.index)
    }

    /// Whether a copy of this length lies on its device.
    pub(super) fn is_within(&self, copy: Copy, len: u64) -> bool {
        let end = copy.offset.checked_add(len);
        let size = self.members.get(usize::from(copy.device)).map(|m| m.media.size_bytes());
        end.zip(size).is_some_and(|(end, size)| end <= size)
    }

    /// Reads content from one copy.
    pub(super) fn read_copy(&self, copy: Copy, buf: &mut [u8]) -> Result<(), Error> {
        self.member(copy)?.media.read_content(copy.offset, buf, "the content")
    }

    fn member(&self, copy: Copy) -> Result<&Member, Error> {
        self.members.get(usize::from(copy.device)).ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("device {} is not there", copy.device))
        })
    }

    /// What a user should know of the devices. Whole sentences.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.missing.is_empty() {
            let ids: Vec<_> = self.missing.iter().map(u64::to_string).collect();
            notes.push(format!(
                "Of {} devices these are not there: number {}. What has no copy elsewhere cannot be read.",
                self.superblock.devices,
                ids.join(", ")
            ));
        }
        for member in &self.members {
            let found = &member.superblock;
            if found.fsid == self.superblock.fsid && found.generation < self.superblock.generation {
                notes.push(format!(
                    "Device number {} is behind: generation {} of {}.",
                    found.device_id, found.generation, self.superblock.generation
                ));
            }
            if found.copy > 0 {
                notes.push(format!(
                    "Device number {} was read by copy {} of its superblock.",
                    found.device_id, found.copy
                ));
            }
        }
        for name in self.chunks.unread() {
            notes.push(format!("Content in chunks of profile {name} cannot be read here."));
        }
        notes
    }
}

fn find(members: &[Member], id: u64, uuid: &[u8; 16]) -> Option<u16> {
    let is_it = |m: &Member| m.superblock.device_id == id && &m.superblock.device_uuid == uuid;
    members.iter().position(is_it).and_then(|i| u16::try_from(i).ok())
}
