//! Which pack holds a chunk. Derived from pack footers: deleting it loses nothing.

mod memory;
mod rocks;

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::PathBuf;

use backstay_format::index_object::PackTable;
use backstay_format::pack::{Encoding, PackEntry, PackHeader, PackKind};
use backstay_format::{ChunkId, IndexId, PackId, PointId};

use crate::error::Result;

pub(crate) use memory::MemoryIndex;
pub(crate) use rocks::RocksIndex;

/// Which index a repository uses.
#[derive(Clone, Debug)]
pub enum IndexChoice {
    /// RocksDB in this directory, shared by all processes of this host.
    Directory(PathBuf),
    /// In memory: read anew from the footers at every opening.
    Memory,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkLocation {
    pub(crate) pack: PackId,
    pub(crate) kind: PackKind,
    /// Its number in the pack's table.
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) stored_len: u32,
    pub(crate) raw_len: u32,
    pub(crate) encoding: Encoding,
}

impl ChunkLocation {
    pub(crate) fn new(pack: PackId, kind: PackKind, number: usize, e: &PackEntry) -> Self {
        Self {
            pack,
            kind,
            number: number as u32,
            offset: e.offset,
            stored_len: e.stored_len,
            raw_len: e.raw_len,
            encoding: e.encoding,
        }
    }

    pub(crate) fn entry(&self, id: ChunkId) -> PackEntry {
        PackEntry {
            id,
            offset: self.offset,
            stored_len: self.stored_len,
            raw_len: self.raw_len,
            encoding: self.encoding,
        }
    }
}

/// What the index knows of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub(crate) kind: PackKind,
    pub(crate) chunks: u32,
    pub(crate) len: u64,
    /// The session that wrote it.
    pub(crate) session: PointId,
}

impl PackInfo {
    pub(crate) fn new(header: &PackHeader, chunks: usize, len: u64) -> Self {
        Self { kind: header.kind, chunks: chunks as u32, len, session: header.session }
    }

    /// What a table says of its pack.
    pub(crate) fn of(table: &PackTable) -> Self {
        let chunks = table.entries.len() as u32;
        Self { kind: table.kind, chunks, len: table.len, session: table.session }
    }
}

/// Packs that a lookup must not answer with: those condemned by a collection.
pub(crate) type PackSet = HashSet<PackId>;

/// Copies of one chunk that are told of: trying more would not end a read any better.
pub(crate) const COPIES_MAX: usize = 8;

/// The index as the rest of the store uses it. All methods may be called from many threads.
pub(crate) trait ChunkIndex: Send + Sync + Debug {
    /// Where each chunk is, in the order asked; nothing for chunks in no present pack. Of several
    /// copies of a chunk any may be told, but none in `avoid`.
    fn get_many(
        &self,
        ids: &[ChunkId],
        avoid: &PackSet,
        out: &mut Vec<Option<ChunkLocation>>,
    ) -> Result<()>;

    /// The known copies of one chunk in present packs, newest first: all, or [`COPIES_MAX`] of
    /// them. (None is forgotten for being one of many: when those told of go, others are told of.)
    fn copies(&self, id: ChunkId) -> Result<Vec<ChunkLocation>>;

    /// Tells that so many packs that are not known are about to be added; then [`ChunkIndex::publish`]
    /// is called. Chunks of packs added in between may be seen only after that.
    fn expect(&self, packs: usize) -> Result<()>;

    /// Adds a durable pack (FORMAT.md, rule O5); `entries` in the order of its table. This process
    /// sees it at once; others after [`ChunkIndex::publish`].
    fn add_pack(&self, pack: PackId, info: PackInfo, entries: &[PackEntry]) -> Result<()> {
        self.add_pack_without(pack, info, entries, &HashSet::new())
    }

    /// The same without chunks that are known to be bad in this pack.
    fn add_pack_without(
        &self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) -> Result<()>;

    /// Makes what was added visible to other processes. May do nothing where that fails for want
    /// of space or rights: others then read the footers themselves.
    fn publish(&self) -> Result<()>;

    /// Learns what other processes published.
    fn catch_up(&self) -> Result<()>;

    /// The packs it knows, sorted.
    fn packs(&self) -> Vec<(PackId, PackInfo)>;

    /// The ids of the packs it knows, sorted.
    fn pack_ids(&self) -> Vec<PackId>;

    /// Whether it knows a pack.
    fn has_pack(&self, pack: &PackId) -> bool;

    /// Forgets packs that are gone: their chunks count as absent from now on, unless another
    /// present pack holds a copy. No point counts as complete any more, and no index object as
    /// taken in.
    fn drop_packs(&self, packs: &[PackId]) -> Result<()>;

    /// Forgets packs that a collection deleted: as [`ChunkIndex::drop_packs`], but points stay
    /// complete, since the collection made sure that each has a copy of its chunks elsewhere.
    fn collected(&self, packs: &[PackId]) -> Result<()>;

    /// Forgets single copies that are known to be bad. No point counts as complete any more.
    fn drop_copies(&self, pack: PackId, ids: &[ChunkId]) -> Result<()>;

    /// Notes that every chunk of a point was in a present pack when it was committed.
    fn set_complete(&self, point: PointId) -> Result<()>;

    /// Whether every chunk of the point is known to be in a present pack.
    fn is_complete(&self, point: PointId) -> bool;

    /// The index objects whose tables were taken in.
    fn objects(&self) -> Result<HashSet<IndexId>>;

    /// Notes index objects that were taken in, and forgets those that are gone.
    fn set_objects(&self, taken_in: &[IndexId], gone: &[IndexId]) -> Result<()>;
}
