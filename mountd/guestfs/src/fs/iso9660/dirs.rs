//! Going through directories, and finding names in them.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::record::Record;
use super::{Iso9660, Names, Node, plain_name};
use crate::fs::{NodeId, NodeKind, utf16};
use crate::{Error, ErrorKind};

/// No disc has a directory of more bytes: some million names.
const BYTES_MAX: u64 = 256 << 20;
/// Records do not go over the end of a sector.
const SECTOR_BYTES: u64 = 2048;
/// Pieces of 4 GiB that a file may have.
const PIECES_MAX: usize = 4096;
/// Directories with more names are gone through for each that is looked for.
const INDEXED_MAX: usize = 1 << 20;

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Vec<u8>,
    pub(super) node: NodeId,
    pub(super) kind: Option<NodeKind>,
    /// Where its first record is, and where the next entry may be; in bytes from the directory's start.
    pub(super) begin: u64,
    pub(super) next: u64,
}

impl Iso9660 {
    /// First block and length of all pieces of a file, and where the last of their records ends.
    pub(super) fn pieces(&self, record: &Record) -> Result<(Vec<(u64, u64)>, u64), Error> {
        let mut pieces = vec![(record.block, record.len_bytes)];
        let (mut end, mut continued) = (record.end, record.continued);
        while continued {
            let next = match Record::read(&self.media, end)? {
                Some(next) => next,
                // The next one did not fit into the sector.
                None => self.record(end.next_multiple_of(SECTOR_BYTES))?,
            };
            if next.name != record.name || pieces.len() >= PIECES_MAX {
                let text = format!("the directory record at byte {} goes on nowhere", record.at);
                return Err(Error::damaged(text));
            }
            pieces.push((next.block, next.len_bytes));
            (end, continued) = (next.end, next.continued);
        }
        Ok((pieces, end))
    }

    fn directory(&self, dir: NodeId) -> Result<(u64, u64), Error> {
        let Node { record, .. } = self.node(dir)?;
        if !record.directory {
            return Err(Error::new(ErrorKind::NotADirectory, format!("{dir} is no directory")));
        }
        if record.len_bytes > BYTES_MAX {
            let text = format!("{dir} is a directory of {} bytes", record.len_bytes);
            return Err(Error::damaged(text));
        }
        Ok((record.block * self.tree.block_bytes, record.len_bytes))
    }

    /// Calls `each` with every entry from byte `from` of a directory on, until it answers `false`.
    pub(super) fn each_name(
        &self,
        dir: NodeId,
        from: u64,
        mut each: impl FnMut(Named) -> bool,
    ) -> Result<(), Error> {
        let (start, len) = self.directory(dir)?;
        let mut offset = from;
        while offset < len {
            let Some(record) = Record::read(&self.media, start + offset)? else {
                offset = (offset + 1).next_multiple_of(SECTOR_BYTES);
                continue;
            };
            let begin = offset;
            let (_, end) = self.pieces(&record)?;
            offset = end - start;
            if record.is_dots() {
                continue;
            }
            if let Some(named) = self.named(&record, begin, offset)?
                && !each(named)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The entry of a record; `None` for a directory that is shown elsewhere.
    fn named(&self, record: &Record, begin: u64, next: u64) -> Result<Option<Named>, Error> {
        let rock = self.rock_of(record)?;
        if rock.moved {
            return Ok(None);
        }
        let name = match rock.name {
            Some(name) => name,
            None => plain_name(&record.name, self.tree.joliet),
        };
        if !utf16::is_name(&name) {
            let (at, name) = (record.at, name.escape_ascii());
            let text = format!("the directory record at byte {at} has the name \"{name}\"");
            return Err(Error::damaged(text));
        }
        // A directory that was moved is known by its own entry for itself.
        let (at, kind) = match (rock.moved_to, rock.posix) {
            (Some(block), _) => {
                (u64::from(block) * self.tree.block_bytes, Some(NodeKind::Directory))
            }
            (None, _) if record.directory => (record.at, Some(NodeKind::Directory)),
            (None, Some(_)) => (record.at, None),
            (None, None) => (record.at, Some(NodeKind::File)),
        };
        Ok(Some(Named { name, node: NodeId::inode(at), kind, begin, next }))
    }

    /// A name as it is compared: as it is with Rock Ridge, without regard to case else.
    fn folded(&self, name: &[u8]) -> Vec<u8> {
        match std::str::from_utf8(name) {
            Ok(text) if self.rock.is_none() => text.to_uppercase().into_bytes(),
            _ => name.to_vec(),
        }
    }

    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(self.folded(name)) as u32
    }

    fn index(&self, dir: NodeId) -> Result<Option<Names>, Error> {
        if let Some(index) = self.names.get(&dir.inode) {
            return Ok(Some(index));
        }
        let mut index = Vec::new();
        self.each_name(dir, 0, |named| {
            index.push((self.hash(&named.name), named.begin as u32));
            index.len() <= INDEXED_MAX
        })?;
        if index.len() > INDEXED_MAX {
            return Ok(None);
        }
        index.sort_unstable();
        let index: Names = index.into();
        self.names.insert(dir.inode, Arc::clone(&index));
        Ok(Some(index))
    }

    /// The node that a name leads to: the exact one, or in other letters' case.
    pub(super) fn find(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, Error> {
        let folded = self.folded(name);
        let mut found: Option<NodeId> = None;
        let mut take = |named: &Named| {
            let exact = named.name == name;
            if exact || (found.is_none() && self.folded(&named.name) == folded) {
                found = Some(named.node);
            }
            !exact
        };
        match self.index(dir)? {
            None => self.each_name(dir, 0, |named| take(&named))?,
            Some(index) => {
                let hash = self.hash(name);
                let first = index.partition_point(|(other, _)| *other < hash);
                for (_, begin) in index.iter().skip(first).take_while(|(other, _)| *other == hash) {
                    let mut more = true;
                    self.each_name(dir, u64::from(*begin), |named| {
                        more = take(&named);
                        false
                    })?;
                    if !more {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }
}
