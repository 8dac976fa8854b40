//! The blocks of a file system, with what its journal holds newer.

use super::journal::Journal;
use crate::{Error, Media};

/// Where all metadata is read from.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) media: Media,
    pub(super) block_bytes: u32,
    /// How many there are.
    pub(super) count: u64,
    pub(super) journal: Journal,
}

impl Blocks {
    /// Fills `buf` from a place within block `block`; `what` names it in errors.
    pub(super) fn read(
        &self,
        block: u64,
        within: u32,
        buf: &mut [u8],
        what: &str,
    ) -> Result<(), Error> {
        self.check(block, what)?;
        if self.journal.holds(block)
            && let Some(copy) = self.journal.read(&self.media, block)
        {
            let copy = copy?;
            let part = copy.get(within as usize..within as usize + buf.len());
            let part =
                part.ok_or_else(|| Error::damaged(format!("{what} ends beyond its block")))?;
            buf.copy_from_slice(part);
            return Ok(());
        }
        self.media.read(block * u64::from(self.block_bytes) + u64::from(within), buf, what)
    }

    /// A whole block.
    pub(super) fn block(&self, block: u64, what: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.block_bytes as usize];
        self.read(block, 0, &mut bytes, what)?;
        Ok(bytes)
    }

    /// Whether blocks from `block` on are blocks of this file system.
    pub(super) fn check_run(&self, block: u64, len: u64, what: &str) -> Result<(), Error> {
        match block.checked_add(len) {
            Some(end) if block != 0 && end <= self.count => Ok(()),
            _ => Err(Error::damaged(format!(
                "{what} lead to {len} blocks from {block} on, and there are {}",
                self.count
            ))),
        }
    }

    fn check(&self, block: u64, what: &str) -> Result<(), Error> {
        if block < self.count {
            return Ok(());
        }
        Err(Error::damaged(format!(
            "{what} would lie in block {block}, and there are {}",
            self.count
        )))
    }
}
