//! What differs between two disks, from their image trees alone.

use backstay_format::limits::NODE_FANOUT;
use backstay_format::node::chunks_below;
use backstay_format::point::DiskRecord;
use backstay_format::{ChunkId, ChunkIndex};

use crate::error::Result;
use crate::read::node;
use crate::repository::Inner;

/// How an extent differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffKind {
    /// Data on both, not the same chunk.
    Changed,
    /// A hole on the first (or beyond its end), data on the second.
    Added,
    /// Data on the first, a hole on the second (or beyond its end).
    Removed,
}

/// A run of whole chunks that differ in the same way. The last may end at the larger disk's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// Where it starts.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// How it differs.
    pub kind: DiffKind,
}

/// A subtree: its root, if it is no hole.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Subtree {
    root: Option<ChunkId>,
    /// Levels its root node has below and with it.
    own_levels: u8,
}

struct Walk<'a> {
    repo: &'a Inner,
    size_bytes: u64,
    pending: Option<DiffExtent>,
    report: &'a mut dyn FnMut(DiffExtent),
}

/// Walks only what differs: equal subtrees have equal ids.
pub(crate) fn diff(
    repo: &Inner,
    a: &DiskRecord,
    b: &DiskRecord,
    report: &mut dyn FnMut(DiffExtent),
) -> Result<()> {
    let levels = a.levels.max(b.levels);
    let size_bytes = a.size_bytes.max(b.size_bytes);
    let mut walk = Walk { repo, size_bytes, pending: None, report };
    let tree = |d: &DiskRecord| Subtree { root: d.root, own_levels: d.levels };
    walk.subtrees(tree(a), tree(b), levels, 0)?;
    walk.flush();
    Ok(())
}

impl Walk<'_> {
    /// Compares the subtrees of `levels` levels that start at chunk `first`. Depth is bounded by
    /// the number of levels, at most nine.
    fn subtrees(&mut self, a: Subtree, b: Subtree, levels: u8, first: u64) -> Result<()> {
        if a.root == b.root && (a.root.is_none() || a.own_levels == b.own_levels) {
            return Ok(());
        }
        if levels == 0 {
            self.chunk(a.root, b.root, first);
            return Ok(());
        }
        let slots_a = self.slots(a, levels)?;
        let slots_b = self.slots(b, levels)?;
        let span = chunks_below(levels - 1);
        for (i, (a, b)) in (0u64..).zip(slots_a.into_iter().zip(slots_b)) {
            self.subtrees(a, b, levels - 1, first.saturating_add(i.saturating_mul(span)))?;
        }
        Ok(())
    }

    /// The children of a subtree as if it had `levels` levels: a smaller tree stands in slot 0.
    fn slots(&self, tree: Subtree, levels: u8) -> Result<[Subtree; NODE_FANOUT]> {
        let hole = Subtree { root: None, own_levels: levels - 1 };
        let mut out = [hole; NODE_FANOUT];
        let Some(id) = tree.root else { return Ok(out) };
        if tree.own_levels < levels {
            out[0] = tree;
            return Ok(out);
        }
        let here = node(self.repo, id, levels - 1)?;
        for (out, slot) in out.iter_mut().zip(here.slots()) {
            out.root = *slot;
        }
        Ok(out)
    }

    fn chunk(&mut self, a: Option<ChunkId>, b: Option<ChunkId>, index: u64) {
        let kind = match (a, b) {
            (Some(_), Some(_)) => DiffKind::Changed,
            (None, _) => DiffKind::Added,
            (_, None) => DiffKind::Removed,
        };
        let size = self.repo.config().chunk_size;
        let offset_bytes = ChunkIndex(index).offset(size);
        let len_bytes = u64::from(size.chunk_len(self.size_bytes, ChunkIndex(index)));
        match &mut self.pending {
            Some(p) if p.kind == kind && p.offset_bytes + p.len_bytes == offset_bytes => {
                p.len_bytes += len_bytes;
            }
            _ => {
                self.flush();
                self.pending = Some(DiffExtent { offset_bytes, len_bytes, kind });
            }
        }
    }

    fn flush(&mut self) {
        if let Some(extent) = self.pending.take() {
            (self.report)(extent);
        }
    }
}
