use std::sync::Arc;

use backstay_format::limits::NODE_FANOUT;
use backstay_format::node::Node;
use backstay_format::pack::PackKind;
use backstay_format::point::DiskRecord;
use backstay_format::{ChunkId, ChunkIndex, ChunkSize};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkLocation;
use crate::read::ImageReader;

use super::packer::{Candidate, Codec, Packer};
use super::tree_builder::{Piece, TreeBuilder};

/// Working memory of one writing thread: reused from call to call.
#[derive(Debug)]
pub struct WriteScratch {
    codec: Codec,
    ids: Vec<Option<ChunkId>>,
    unknown: Vec<usize>,
    found: Vec<Option<ChunkLocation>>,
}

impl WriteScratch {
    /// Empty working memory; grows to a few chunks.
    pub fn new() -> Result<Self> {
        Ok(Self { codec: Codec::new()?, ids: Vec::new(), unknown: Vec::new(), found: Vec::new() })
    }
}

/// What became of the chunks of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkStats {
    /// Chunks that were all zeros and became holes.
    pub zero_chunks: u64,
    /// Chunks the store had already.
    pub known_chunks: u64,
    /// Chunks stored now.
    pub new_chunks: u64,
}

/// One disk being written. Shared by threads through `&self`.
#[derive(Debug)]
pub struct ImageWriter {
    packer: Arc<Packer>,
    name: String,
    source: String,
    size_bytes: u64,
    chunk_size: ChunkSize,
    base: Option<ImageReader>,
    tree: Mutex<Tree>,
}

#[derive(Debug)]
struct Tree {
    builder: TreeBuilder,
    codec: Option<Codec>,
    /// A call broke off half way: nobody knows what the tree holds.
    broken: bool,
}

/// Data handed in at once: a run of stored chunks must stay small beside a pack.
const CALL_BYTES_MAX: usize = 64 << 20;

impl ImageWriter {
    pub(super) fn new(
        packer: Arc<Packer>,
        name: &str,
        source: &str,
        size_bytes: u64,
        base: Option<ImageReader>,
    ) -> Self {
        let chunk_size = packer.repo().config().chunk_size;
        let builder = TreeBuilder::new(chunk_size.chunk_count(size_bytes));
        Self {
            packer,
            name: name.to_owned(),
            source: source.to_owned(),
            size_bytes,
            chunk_size,
            base,
            tree: Mutex::new(Tree { builder, codec: None, broken: false }),
        }
    }

    /// Stores whole chunks, starting with chunk `first`; only the disk's last may be short. Each
    /// chunk is given at most once; order and threads do not matter. Chunks of zeros become holes.
    /// Nothing is promised durable before [`crate::WriteSession::commit`] returns.
    pub fn write_chunks(
        &self,
        first: ChunkIndex,
        data: &[u8],
        scratch: &mut WriteScratch,
    ) -> Result<ChunkStats> {
        self.check_range(first, data)?;
        let mut stats = ChunkStats::default();
        self.name_chunks(first, data, scratch, &mut stats)?;
        let pieces: Vec<&[u8]> = data.chunks(self.chunk_size.as_usize()).collect();
        let mut unknown: Vec<Candidate<'_>> = Vec::new();
        let ids: Vec<ChunkId> = scratch.unknown.iter().filter_map(|&i| scratch.ids[i]).collect();
        self.packer.lookup(&ids, &mut scratch.found)?;
        for ((&i, &id), found) in scratch.unknown.iter().zip(&ids).zip(&scratch.found) {
            if found.is_none() {
                unknown.push(Candidate { id, raw: pieces[i] });
            }
        }
        let asked = scratch.unknown.len() as u64;
        let stored = self.packer.store(PackKind::Data, &mut unknown, &mut scratch.codec)? as u64;
        stats.known_chunks += asked - stored;
        stats.new_chunks = stored;
        let mut tree = self.tree.lock();
        for (i, id) in (first.0..).zip(&scratch.ids) {
            tree.update(|builder, store| builder.set(i, *id, store), &self.packer)?;
        }
        Ok(stats)
    }

    /// Tells that `count` chunks from `first` on are holes. Not telling means the same, but takes
    /// memory until [`ImageWriter::finish`] where data and holes mix.
    pub fn write_holes(&self, first: ChunkIndex, count: u64) -> Result<()> {
        self.tree
            .lock()
            .update(|builder, store| builder.set_holes(first.0, count, store), &self.packer)
    }

    /// The size of its chunks.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// How many chunks from the disk's start on [`ImageWriter::keep`] takes: all where the base has
    /// this disk in the same size; the whole chunks that both have where it was resized, because
    /// a chunk cut short by one end is another chunk; none without a base whose chunks are all
    /// known to be there ([`crate::WriteSession::trust_base`]).
    pub fn keepable(&self) -> u64 {
        let Some(base) = &self.base else { return 0 };
        if base.size_bytes() == self.size_bytes {
            return self.chunk_size.chunk_count(self.size_bytes);
        }
        base.size_bytes().min(self.size_bytes) / u64::from(self.chunk_size.bytes())
    }

    /// Tells that `count` chunks from `first` on are as in the base. No chunk is read: whole
    /// subtrees of the base are taken over, so that the cost follows the depth of the tree and not
    /// the length of the run. The chunks must be told of in no other way, as with
    /// [`ImageWriter::write_chunks`]; order and threads do not matter.
    ///
    /// `Invalid`: the run goes beyond [`ImageWriter::keepable`]. `Damaged`: the base's tree cannot
    /// be read here. Nothing was told then, so the caller can read the run and write it.
    pub fn keep(&self, first: ChunkIndex, count: u64) -> Result<()> {
        let end = first.0.checked_add(count).filter(|end| *end <= self.keepable());
        let (Some(base), Some(end)) = (&self.base, end) else {
            let text = format!(
                "{count} chunks from {} on cannot be kept: the base vouches for the first {} of                  disk '{}'",
                first.0,
                self.keepable(),
                self.name
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        // With another size the base's last subtrees hold chunks that are not on this disk, or
        // lack some that are.
        let same_end = base.size_bytes() == self.size_bytes;
        let pieces: Vec<Piece> = self.tree.lock().builder.pieces(first.0, end, same_end).collect();
        let roots = base.subtree_roots(&pieces)?;
        self.tree.lock().update(
            |builder, store| {
                pieces.iter().zip(roots).try_for_each(|(p, r)| builder.set_piece(*p, r, store))
            },
            &self.packer,
        )
    }

    /// Ends the disk. Its record goes to [`crate::WriteSession::commit`].
    pub fn finish(self) -> Result<DiskRecord> {
        let mut tree = self.tree.into_inner();
        let levels = tree.builder.levels();
        let builder = std::mem::replace(&mut tree.builder, TreeBuilder::new(0));
        let mut root = None;
        tree.update(
            |_, store| {
                root = builder.finish(store)?;
                Ok(())
            },
            &self.packer,
        )?;
        Ok(DiskRecord {
            name: self.name,
            source: self.source,
            size_bytes: self.size_bytes,
            levels,
            root,
        })
    }

    /// Names every chunk, and lists those that the base does not have at the same place.
    fn name_chunks(
        &self,
        first: ChunkIndex,
        data: &[u8],
        scratch: &mut WriteScratch,
        stats: &mut ChunkStats,
    ) -> Result<()> {
        let keys = self.packer.repo().keys();
        let base = self.base_ids(first, data.len().div_ceil(self.chunk_size.as_usize()) as u64);
        scratch.ids.clear();
        scratch.unknown.clear();
        for (i, piece) in data.chunks(self.chunk_size.as_usize()).enumerate() {
            if is_zero(piece) {
                stats.zero_chunks += 1;
                scratch.ids.push(None);
                continue;
            }
            let id = keys.chunk_id(PackKind::Data, piece);
            if base.get(i).copied().flatten() == Some(id) {
                stats.known_chunks += 1;
            } else {
                scratch.unknown.push(i);
            }
            scratch.ids.push(Some(id));
        }
        Ok(())
    }

    /// What the base has in these places; nothing where there is no base or it cannot be read.
    fn base_ids(&self, first: ChunkIndex, count: u64) -> Vec<Option<ChunkId>> {
        let ids = |b: &ImageReader| b.chunk_ids(first, count).unwrap_or_default();
        let within = |b: &&ImageReader| {
            first.0.saturating_add(count) <= self.chunk_size.chunk_count(b.size_bytes())
        };
        self.base.as_ref().filter(within).map(ids).unwrap_or_default()
    }

    fn check_range(&self, first: ChunkIndex, data: &[u8]) -> Result<()> {
        let offset = first.offset(self.chunk_size);
        let end = offset.checked_add(data.len() as u64);
        let whole = |end: u64| {
            end == self.size_bytes || end.is_multiple_of(u64::from(self.chunk_size.bytes()))
        };
        if data.len() > CALL_BYTES_MAX || !end.is_some_and(|e| e <= self.size_bytes && whole(e)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{} bytes at {offset} are not whole chunks of the disk", data.len()),
            ));
        }
        Ok(())
    }
}

impl Tree {
    /// Runs `change` on the builder with a function that stores finished nodes.
    fn update(
        &mut self,
        change: impl FnOnce(&mut TreeBuilder, &mut dyn FnMut(&Node) -> Result<ChunkId>) -> Result<()>,
        packer: &Packer,
    ) -> Result<()> {
        if self.broken {
            let text = "the disk was not written whole: an earlier call failed";
            return Err(Error::new(ErrorKind::Aborted, text));
        }
        let codec = &mut self.codec;
        let changed = change(&mut self.builder, &mut |node| {
            let codec = match codec {
                Some(codec) => codec,
                None => codec.insert(Codec::new()?),
            };
            store_node(packer, node, codec)
        });
        self.broken = changed.is_err();
        changed
    }
}

fn store_node(packer: &Packer, node: &Node, codec: &mut Codec) -> Result<ChunkId> {
    let raw = node.encode();
    let id = packer.repo().keys().chunk_id(PackKind::Tree, &raw);
    let mut found = Vec::new();
    packer.lookup(&[id], &mut found)?;
    if found[0].is_none() {
        packer.store(PackKind::Tree, &mut vec![Candidate { id, raw: &raw }], codec)?;
    }
    Ok(id)
}

/// Whether all bytes are zero. Compares the slice with itself shifted by one, which the compiler
/// turns into a wide compare and which ends at the first byte that is not zero.
fn is_zero(data: &[u8]) -> bool {
    match data.split_first() {
        None => true,
        Some((first, rest)) => *first == 0 && *rest == data[..data.len() - 1],
    }
}

const _: () = assert!(NODE_FANOUT == 64);

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeros() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 65536]));
        for at in [0, 1, 63, 64, 65, 65535] {
            let mut data = [0u8; 65536];
            data[at] = 1;
            assert!(!is_zero(&data), "{at}");
        }
    }
}
