//! Which bytes of which packs a disk needs: for tests that damage some, and must know what is lost.

use std::collections::BTreeMap;
use std::ops::Range;

use backstay_format::node::chunks_below;
use backstay_format::pack::header;
use backstay_format::point::DiskRecord;
use backstay_format::{ChunkId, PackId};

use crate::error::Result;
use crate::key::{Folder, ObjectKey};
use crate::pack::read_footer;
use crate::quarantine::{self, NewBad};
use crate::read::node;
use crate::repository::{Inner, Repository};

/// One copy of a chunk or node: its stored bytes in a pack.
pub type Copy = (PackId, Range<u64>);

/// What one chunk of a disk needs: the nodes from the root down to it, and its data unless it is a
/// hole. Each with all of its copies.
pub type Needs = Vec<Vec<Copy>>;

/// What each chunk of a disk needs, in order.
pub fn needs(repo: &Repository, disk: &DiskRecord) -> Result<Vec<Needs>> {
    let inner = repo.inner();
    let count = inner.config().chunk_size.chunk_count(disk.size_bytes);
    let mut out = vec![Needs::new(); usize::try_from(count).unwrap_or(0)];
    if let Some(root) = disk.root {
        walk(inner, root, disk.levels, 0, &Needs::new(), &mut out)?;
    }
    Ok(out)
}

fn walk(
    inner: &Inner,
    id: ChunkId,
    levels: u8,
    first: u64,
    above: &Needs,
    out: &mut [Needs],
) -> Result<()> {
    let mut path = above.clone();
    path.push(copies(inner, id)?);
    let here = node(inner, id, levels - 1)?;
    let span = chunks_below(levels - 1);
    for (i, slot) in (0u64..).zip(here.slots()) {
        let start = first + i * span;
        match slot {
            Some(child) if levels > 1 => walk(inner, *child, levels - 1, start, &path, out)?,
            _ => {
                let mut needs = path.clone();
                if let Some(chunk) = slot {
                    needs.push(copies(inner, *chunk)?);
                }
                let end = usize::try_from(start + span).unwrap_or(usize::MAX).min(out.len());
                let start = usize::try_from(start).unwrap_or(usize::MAX).min(end);
                out[start..end].fill(needs);
            }
        }
    }
    Ok(())
}

fn copies(inner: &Inner, id: ChunkId) -> Result<Vec<Copy>> {
    let copies = inner.index()?.copies(id)?;
    let range = |offset: u32, len: u32| u64::from(offset)..u64::from(offset) + u64::from(len);
    Ok(copies.into_iter().map(|l| (l.pack, range(l.offset, l.stored_len))).collect())
}

/// The chunks of a pack, as it says itself.
pub fn chunks(repo: &Repository, pack: PackId) -> Result<Vec<ChunkId>> {
    let inner = repo.inner();
    let footer = read_footer(inner.storage(), inner.config().id, inner.keys(), pack)?;
    Ok(footer.entries.iter().map(|e| e.id).collect())
}

/// By pack, the chunks that stand in another pack too.
pub fn doubles(repo: &Repository) -> Result<BTreeMap<PackId, Vec<ChunkId>>> {
    let inner = repo.inner();
    inner.synchronise()?;
    let mut doubles: BTreeMap<PackId, Vec<ChunkId>> = BTreeMap::new();
    for (pack, _) in inner.index()?.packs() {
        for id in chunks(repo, pack)? {
            if inner.index()?.copies(id)?.len() > 1 {
                doubles.entry(pack).or_default().push(id);
            }
        }
    }
    Ok(doubles)
}

/// Puts chunks of a pack into quarantine, all of it for nothing: as if a host with bad memory had
/// verified it.
pub fn quarantine(repo: &Repository, pack: PackId, chunks: Option<Vec<ChunkId>>) -> Result<()> {
    let found = NewBad { pack, chunks, reason: "bad memory".to_owned() };
    quarantine::write(repo.inner(), &[found]).map(drop)
}

/// The bytes of a pack between its header and its table. After a change outside, the pack does not
/// say any more what it holds.
pub fn body(repo: &Repository, pack: PackId) -> Result<Range<u64>> {
    let inner = repo.inner();
    let footer = read_footer(inner.storage(), inner.config().id, inner.keys(), pack)?;
    let end = footer.entries.iter().map(|e| u64::from(e.offset) + u64::from(e.stored_len)).max();
    Ok(header::LEN as u64..end.unwrap_or(header::LEN as u64))
}

/// The index objects that hold the table of each pack: with one of them the pack can be read when
/// its own table is damaged.
pub fn index_objects(repo: &Repository) -> Result<BTreeMap<PackId, Vec<ObjectKey>>> {
    let inner = repo.inner();
    let mut named: BTreeMap<PackId, Vec<ObjectKey>> = BTreeMap::new();
    for key in inner.storage().list(Folder::Index)? {
        let ObjectKey::Index(id) = key else { continue };
        inner.each_table(id, &mut |t| {
            named.entry(t.pack).or_default().push(key);
            Ok(())
        })?;
    }
    Ok(named)
}
