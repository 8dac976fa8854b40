//! A lost tree node, built anew from the data below it.

use backstay_format::node::{Node, chunks_below};
use backstay_format::pack::PackKind;
use backstay_format::{ChunkId, ChunkIndex};

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::Inner;

use super::source::{ChunkSource, WantedChunk};

/// Names every chunk that `source` has where `wanted`, a node, stands, and builds the node of
/// them: its bytes, whatever its id turns out to be. Nothing where the source has no data. Holds
/// one node a level in memory, and reads all that is below.
pub(super) fn derive(
    inner: &Inner,
    source: &mut dyn ChunkSource,
    wanted: &WantedChunk,
    level: u8,
    progress: &dyn Progress,
) -> Result<Option<Vec<u8>>> {
    let size = inner.config().chunk_size;
    let first = size.index_of(wanted.place.offset_bytes).0;
    let count = size.chunk_count(wanted.place.size_bytes);
    let buf = vec![0u8; size.as_usize()];
    let mut builder = Builder { inner, source, wanted, count, buf, progress };
    Ok(builder.node(level, first)?.map(|node| node.encode()))
}

struct Builder<'a> {
    inner: &'a Inner,
    source: &'a mut dyn ChunkSource,
    wanted: &'a WantedChunk,
    /// Chunks of the disk.
    count: u64,
    buf: Vec<u8>,
    progress: &'a dyn Progress,
}

impl Builder<'_> {
    fn node(&mut self, level: u8, first: u64) -> Result<Option<Node>> {
        if self.progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the repair was stopped"));
        }
        let mut node = Node::empty(level);
        let span = chunks_below(level);
        for slot in 0..node.slots().len() {
            let at = first.saturating_add(span.saturating_mul(slot as u64));
            if at >= self.count {
                break;
            }
            let child = match level {
                0 => self.chunk(at)?,
                _ => self.child(level - 1, at)?,
            };
            let Some(child) = child else { return Ok(None) };
            node.set(slot, child);
        }
        Ok(Some(node))
    }

    fn child(&mut self, level: u8, first: u64) -> Result<Option<Option<ChunkId>>> {
        let Some(node) = self.node(level, first)? else { return Ok(None) };
        let id = |n: Node| self.inner.keys().chunk_id(PackKind::Tree, &n.encode());
        Ok(Some(if node.is_empty() { None } else { Some(id(node)) }))
    }

    /// The chunk's id, or that it is a hole; nothing where the source has no data.
    fn chunk(&mut self, index: u64) -> Result<Option<Option<ChunkId>>> {
        let size = self.inner.config().chunk_size;
        let len = size.chunk_len(self.wanted.place.size_bytes, ChunkIndex(index)) as usize;
        let buf = &mut self.buf[..len];
        if !self.source.read(&self.wanted.place, ChunkIndex(index).offset(size), buf)? {
            return Ok(None);
        }
        let hole = buf.iter().all(|b| *b == 0);
        Ok(Some((!hole).then(|| self.inner.keys().chunk_id(PackKind::Data, buf))))
    }
}
