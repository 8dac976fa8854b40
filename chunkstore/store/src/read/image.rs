use std::cell::RefCell;
use std::sync::Arc;

use backstay_format::limits::{DISK_SIZE_MAX, NODE_FANOUT};
use backstay_format::node::{Node, chunks_below, levels_of_disk};
use backstay_format::pack::PackKind;
use backstay_format::point::DiskRecord;
use backstay_format::{ChunkId, ChunkIndex, ChunkSize};
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind, Result};
use crate::repository::Inner;
use crate::session::Piece;

use super::cache::{self, short};
use super::fetch::{ReadScratch, Wanted, fetch};
use super::tree::{bring_nodes, node};

/// Leaves a reader keeps at hand besides the shared node cache: 8,192 cover 32 GiB.
const LEAVES_MAX: usize = 8 * 1024;
/// Chunks looked for by one call of `places`.
const PLACES_MAX: u64 = 65_536;
/// Chunks fetched together for one read; bounds what a large read holds at once.
const BATCH_BYTES: u64 = 4 << 20;

thread_local! {
    /// Reading threads keep their working memory between calls.
    static SCRATCH: RefCell<Option<ReadScratch>> = const { RefCell::new(None) };
}

pub(crate) fn with_scratch<T>(run: impl FnOnce(&mut ReadScratch) -> Result<T>) -> Result<T> {
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = match scratch {
            Some(scratch) => scratch,
            None => scratch.insert(ReadScratch::new()?),
        };
        run(scratch)
    })
}

/// One disk of a recovery point. Cheap to clone; may be read from many threads.
///
/// The disk never changes. A chunk that is missing or damaged is an error, never zeros and never
/// short data.
#[derive(Clone, Debug)]
pub struct ImageReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    repo: Arc<Inner>,
    size_bytes: u64,
    chunk_size: ChunkSize,
    levels: u8,
    root: Option<ChunkId>,
    leaves: Cache<u64, Option<Arc<Node>>>,
}

impl ImageReader {
    pub(crate) fn new(repo: Arc<Inner>, disk: &DiskRecord) -> Result<Self> {
        let chunk_size = repo.config().chunk_size;
        if disk.size_bytes > DISK_SIZE_MAX
            || disk.levels != levels_of_disk(disk.size_bytes, chunk_size)
        {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the record of disk '{}' does not fit its size", disk.name),
            ));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                repo,
                size_bytes: disk.size_bytes,
                chunk_size,
                levels: disk.levels,
                root: disk.root,
                leaves: Cache::new(LEAVES_MAX),
            }),
        })
    }

    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    /// The size of its chunks.
    pub fn chunk_size(&self) -> ChunkSize {
        self.shared.chunk_size
    }

    /// Fills all of `buf` from `offset`, through the shared cache of decoded chunks.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let mut offset = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let len = (rest.len() as u64).min(BATCH_BYTES);
            let (now, later) = rest.split_at_mut(usize::try_from(len).unwrap_or(rest.len()));
            self.read_batch(offset, now)?;
            offset += len;
            rest = later;
        }
        Ok(())
    }

    /// The same, if it can be answered at once from what is in memory. `Ok(false)`: it cannot, and
    /// `buf` holds nothing of use.
    pub fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        self.check_range(offset, buf.len() as u64)?;
        let s = &*self.shared;
        for (index, from, range) in s.pieces(offset, buf.len()) {
            let Some(leaf) = s.leaves.get(&(index.0 / NODE_FANOUT as u64)) else {
                return Ok(false);
            };
            match leaf.and_then(|n| n.slots()[slot(index)]) {
                None => buf[range].fill(0),
                Some(id) => match s.repo.chunks().get(&id) {
                    Some(chunk) => {
                        let bytes = chunk.get(from..from + range.len());
                        buf[range].copy_from_slice(bytes.ok_or_else(|| short(id))?);
                    }
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    /// The extents of `offset..offset + len` as (offset, length, whether there is data), merged,
    /// at most `max` of them; at least one when `len` is not zero.
    pub fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<(u64, u64, bool)>> {
        self.check_range(offset, len)?;
        let s = &*self.shared;
        let end = offset + len;
        let mut out: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = offset;
        while at < end {
            let (filled, until) = self.presence(s.chunk_size.index_of(at))?;
            let stop = until.min(end);
            let room = out.len() < max.max(1);
            match out.last_mut() {
                Some((_, l, f)) if *f == filled => *l += stop - at,
                _ if !room => break,
                _ => out.push((at, stop - at, filled)),
            }
            at = stop;
        }
        Ok(out)
    }

    /// Where the bytes of `offset..offset + len` are, from `offset` on: (offset, length, place), merged,
    /// at most `max` of them; at least one when `len` is not zero. It may end early, since every chunk is
    /// looked for: after 65,536 of them.
    pub fn places(&self, offset: u64, len: u64, max: usize) -> Result<Vec<(u64, u64, InPlace)>> {
        self.check_range(offset, len)?;
        let s = &*self.shared;
        let end = offset + len;
        let mut out: Vec<(u64, u64, InPlace)> = Vec::new();
        let (mut at, mut looks) = (offset, 0);
        while at < end && looks < PLACES_MAX {
            let index = s.chunk_size.index_of(at);
            let (filled, until) = self.presence(index)?;
            let stop = until.min(end);
            if !filled {
                if !add_place(&mut out, max, (at, stop - at, InPlace::Nowhere)) {
                    break;
                }
                at = stop;
                continue;
            }
            let last = s.chunk_size.index_of(stop - 1);
            let count = (last.0 - index.0 + 1).min(PLACES_MAX - looks);
            looks += count;
            for (i, id) in (index.0..).map(ChunkIndex).zip(self.chunk_ids(index, count)?) {
                let here = id.is_some_and(|id| s.repo.chunks().holds(&id));
                let place = if here { InPlace::Memory } else { InPlace::Store };
                let to = (ChunkIndex(i.0 + 1).offset(s.chunk_size)).min(stop);
                if !add_place(&mut out, max, (at, to - at, place)) {
                    return Ok(out);
                }
                at = to;
            }
        }
        Ok(out)
    }

    /// Asks for a range to be fetched into the cache soon. Returns at once; errors are left for
    /// the read that follows.
    pub fn prefetch(&self, offset: u64, len: u64) {
        let s = &*self.shared;
        let end = offset.saturating_add(len).min(s.size_bytes);
        let step = BATCH_BYTES.min(1 << 20).max(u64::from(s.chunk_size.bytes()));
        let mut at = offset;
        while at < end {
            let stop = (at + step).min(end);
            if !s.repo.queue_prefetch(self.clone(), at, stop - at) {
                return; // The queue is full: the reads that follow fetch for themselves.
            }
            at = stop;
        }
    }

    /// What [`ImageReader::prefetch`] queued: fetches what is missing.
    pub(crate) fn prefetch_now(&self, offset: u64, len: u64) -> Result<()> {
        let s = &*self.shared;
        let ids = self.ids_of(offset, len)?;
        let present: Vec<(ChunkId, u32)> =
            ids.into_iter().filter_map(|(i, id)| Some((id?, s.len_of(i)))).collect();
        with_scratch(|scratch| s.repo.chunks().fill(&s.repo, &present, scratch))
    }

    /// Fills `buf` from `offset`, which must be a multiple of the chunk size, without the cache:
    /// for restores, which read everything once. `buf` ends at a chunk's end or at the disk's.
    pub fn read_uncached(
        &self,
        offset: u64,
        buf: &mut [u8],
        scratch: &mut ReadScratch,
    ) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let s = &*self.shared;
        let chunk = u64::from(s.chunk_size.bytes());
        let end = offset + buf.len() as u64;
        if !offset.is_multiple_of(chunk) || (!end.is_multiple_of(chunk) && end != s.size_bytes) {
            return Err(Error::new(ErrorKind::Invalid, "the range is not of whole chunks"));
        }
        let ids = self.ids_of(offset, buf.len() as u64)?;
        let mut wanted = Vec::with_capacity(ids.len());
        for ((_, id), out) in ids.into_iter().zip(buf.chunks_mut(s.chunk_size.as_usize())) {
            match id {
                Some(id) => wanted.push(Wanted { id, out }),
                None => out.fill(0),
            }
        }
        scratch.once = true;
        let fetched = fetch(&s.repo, PackKind::Data, &mut wanted, scratch);
        scratch.once = false;
        fetched
    }

    /// The chunk at each index from `first` on, `count` of them.
    pub(crate) fn chunk_ids(&self, first: ChunkIndex, count: u64) -> Result<Vec<Option<ChunkId>>> {
        let mut out = Vec::new();
        let mut leaf: Option<(u64, Option<Arc<Node>>)> = None;
        for i in first.0..first.0.saturating_add(count) {
            let number = i / NODE_FANOUT as u64;
            if leaf.as_ref().is_none_or(|(n, _)| *n != number) {
                leaf = Some((number, self.leaf(number)?));
            }
            let node = leaf.as_ref().and_then(|(_, n)| n.as_ref());
            out.push(node.and_then(|n| n.slots()[slot(ChunkIndex(i))]));
        }
        Ok(out)
    }

    /// The roots of whole subtrees, in the order asked. A subtree may be higher than this tree only
    /// where this tree has nothing; neighbours below one node cost one look at it.
    pub(crate) fn subtree_roots(&self, pieces: &[Piece]) -> Result<Vec<Option<ChunkId>>> {
        let s = &*self.shared;
        let fanout = NODE_FANOUT as u64;
        let mut out = Vec::with_capacity(pieces.len());
        let mut parent: Option<(u8, u64, Option<Arc<Node>>)> = None;
        for p in pieces {
            if p.level >= s.levels {
                let whole = p.level == s.levels && p.number == 0;
                out.push(s.root.filter(|_| whole));
                continue;
            }
            let number = p.number / fanout;
            if parent.as_ref().is_none_or(|(l, n, _)| (*l, *n) != (p.level, number)) {
                parent = Some((p.level, number, self.node_at(p.level, number)?));
            }
            let node = parent.as_ref().and_then(|(_, _, node)| node.as_ref());
            out.push(node.and_then(|n| n.slots()[slot(ChunkIndex(p.number))]));
        }
        Ok(out)
    }

    /// Node `number` of those at `level`; nothing where it would be a hole.
    fn node_at(&self, level: u8, number: u64) -> Result<Option<Arc<Node>>> {
        let s = &*self.shared;
        let mut at = s.levels - 1;
        if number / chunks_below(at - level) != 0 {
            return Ok(None);
        }
        let Some(root) = s.root else { return Ok(None) };
        let mut here = node(&s.repo, root, at)?;
        while at > level {
            at -= 1;
            let below = number / chunks_below(at - level);
            let Some(id) = here.slots()[slot(ChunkIndex(below))] else { return Ok(None) };
            here = node(&s.repo, id, at)?;
        }
        Ok(Some(here))
    }

    fn read_batch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let s = &*self.shared;
        let ids = self.ids_of(offset, buf.len() as u64)?;
        let mut wanted = Vec::with_capacity(ids.len());
        let pieces = s.pieces(offset, buf.len());
        let mut rest = buf;
        for ((index, from, range), (_, id)) in pieces.zip(ids) {
            let (out, later) = rest.split_at_mut(range.len());
            rest = later;
            match id {
                None => out.fill(0),
                Some(id) => wanted.push(cache::Piece { id, len: s.len_of(index), from, out }),
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        with_scratch(|scratch| s.repo.chunks().read(&s.repo, wanted, scratch))
    }

    /// The chunks that a byte range touches.
    fn ids_of(&self, offset: u64, len: u64) -> Result<Vec<(ChunkIndex, Option<ChunkId>)>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let s = &*self.shared;
        let first = s.chunk_size.index_of(offset);
        let last = s.chunk_size.index_of(offset + len - 1);
        let ids = self.chunk_ids(first, last.0 - first.0 + 1)?;
        Ok((first.0..).map(ChunkIndex).zip(ids).collect())
    }

    /// Leaf `number`; nothing where the whole leaf is a hole.
    fn leaf(&self, number: u64) -> Result<Option<Arc<Node>>> {
        let s = &*self.shared;
        s.leaves.get_or_insert_with(&number, || {
            Ok(match self.descend(number * NODE_FANOUT as u64)? {
                Place::Leaf(node) => Some(node),
                Place::Hole { .. } => None,
            })
        })
    }

    /// Whether the chunk at `index` is there, and up to which byte the same is known to hold.
    fn presence(&self, index: ChunkIndex) -> Result<(bool, u64)> {
        let s = &*self.shared;
        match self.descend(index.0)? {
            Place::Hole { levels } => {
                let span = chunks_below(levels);
                let next = (index.0 / span).saturating_add(1).saturating_mul(span);
                Ok((false, ChunkIndex(next).offset(s.chunk_size)))
            }
            Place::Leaf(node) => {
                let from = slot(index);
                let filled = node.slots()[from].is_some();
                let same = node.slots()[from..].iter().take_while(|c| c.is_some() == filled);
                let next = ChunkIndex(index.0 + same.count() as u64);
                Ok((filled, next.offset(s.chunk_size)))
            }
        }
    }

    fn descend(&self, index: u64) -> Result<Place> {
        let s = &*self.shared;
        let mut next = s.root;
        let mut levels = s.levels;
        loop {
            let Some(id) = next else { return Ok(Place::Hole { levels }) };
            let here = node(&s.repo, id, levels - 1)?;
            if levels == 1 {
                return Ok(Place::Leaf(here));
            }
            levels -= 1;
            let slot = (index / chunks_below(levels)) % NODE_FANOUT as u64;
            let slot = usize::try_from(slot).unwrap_or(0);
            next = here.slots()[slot];
            if next.is_some_and(|id| !s.repo.nodes().holds(&id)) {
                // A reader who goes on needs those that follow.
                let siblings: Vec<ChunkId> =
                    here.slots()[slot..].iter().flatten().copied().collect();
                bring_nodes(&s.repo, &siblings, levels - 1);
            }
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.shared.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{len} bytes at {offset} are outside the disk of {} bytes",
                    self.shared.size_bytes
                ),
            )),
        }
    }
}

/// Where bytes of a disk are at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPlace {
    /// They are zeros that nothing is stored for.
    Nowhere,
    /// In the store.
    Store,
    /// In the store, and decoded in memory.
    Memory,
}

enum Place {
    Leaf(Arc<Node>),
    /// A hole that covers a whole subtree of so many levels (0: one chunk).
    Hole {
        levels: u8,
    },
}

impl Shared {
    fn len_of(&self, index: ChunkIndex) -> u32 {
        self.chunk_size.chunk_len(self.size_bytes, index)
    }

    /// Cuts a byte range at chunk borders: chunk, offset within it, range of the buffer.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (ChunkIndex, usize, std::ops::Range<usize>)> {
        let size = self.chunk_size;
        let mut done = 0usize;
        std::iter::from_fn(move || {
            if done >= len {
                return None;
            }
            let at = offset + done as u64;
            let index = size.index_of(at);
            let from = usize::try_from(at - index.offset(size)).unwrap_or(0);
            let n = (size.as_usize() - from).min(len - done);
            let range = done..done + n;
            done += n;
            Some((index, from, range))
        })
    }
}

/// Adds to a list of at most `max`; `false` if there is no room.
fn add_place(list: &mut Vec<(u64, u64, InPlace)>, max: usize, new: (u64, u64, InPlace)) -> bool {
    let full = list.len() >= max.max(1);
    match list.last_mut() {
        Some((_, len, place)) if *place == new.2 => *len += new.1,
        _ if full => return false,
        _ => list.push(new),
    }
    true
}

fn slot(index: ChunkIndex) -> usize {
    usize::try_from(index.0 % NODE_FANOUT as u64).unwrap_or(0)
}
