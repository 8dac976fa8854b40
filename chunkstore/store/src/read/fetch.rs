use backstay_format::limits::{CHUNK_RAW_MAX, CHUNK_STORED_MAX};
use backstay_format::pack::PackKind;
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkLocation;
use crate::key::ObjectKey;
use crate::repository::Inner;
use crate::seal::Decoder;
use crate::storage::{Keep, RangeRead};

/// Working memory of one reading thread: reused from call to call.
#[derive(Debug)]
pub struct ReadScratch {
    decoder: Decoder,
    stored: Vec<u8>,
    locations: Vec<Option<ChunkLocation>>,
    /// What is read now will not be read again: no cache need keep it.
    pub(crate) once: bool,
}

impl ReadScratch {
    /// Empty working memory; grows to a few MiB.
    pub fn new() -> Result<Self> {
        let (stored, locations) = (Vec::new(), Vec::new());
        Ok(Self { decoder: Decoder::new()?, stored, locations, once: false })
    }
}

/// Neighbours in a pack are read in one go, up to this many bytes.
const RUN_BYTES_MAX: u32 = 4 << 20;
/// Bytes nobody asked for that are read rather than ending a run.
const RUN_GAP_MAX: u32 = 64 << 10;

const _: () = assert!(CHUNK_STORED_MAX <= RUN_BYTES_MAX + (64 << 10));

/// One chunk to read, and where its bytes go.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) id: ChunkId,
    /// Exactly as long as the chunk must be.
    pub(crate) out: &'a mut [u8],
}

/// Reads chunks of one kind. Each is authenticated, decoded and compared with its id before any
/// byte of it counts (FORMAT.md, rule O8); the first that fails ends the call with an error that
/// names it.
pub(crate) fn fetch(
    repo: &Inner,
    kind: PackKind,
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
) -> Result<()> {
    let ids: Vec<ChunkId> = wanted.iter().map(|w| w.id).collect();
    locate(repo, &ids, &mut scratch.locations)?;
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let place = |i: usize| scratch.locations[i].map(|l| (l.pack, l.offset));
    order.sort_by_key(|&i| place(i));
    let mut runs = Vec::new();
    let mut rest = order.as_slice();
    while let Some(&first) = rest.first() {
        let Some(start) = scratch.locations[first] else {
            return Err(missing(wanted[first].id));
        };
        let (members, later) = rest.split_at(run_length(rest, start, &scratch.locations));
        let end = members.iter().filter_map(|&i| scratch.locations[i]).map(end_of).max();
        let len = end.unwrap_or(start.offset) - start.offset;
        runs.push(RunOfChunks { start, len, members });
        rest = later;
    }
    let batch = repo.storage().advice().batch_bytes;
    let mut runs = runs.as_slice();
    while !runs.is_empty() {
        let (now, later) = runs.split_at(batch_length(runs, batch));
        read_runs(repo, kind, now, wanted, scratch)?;
        runs = later;
    }
    Ok(())
}

/// Neighbours in a pack: the first, and the bytes from its start to the end of the last.
struct RunOfChunks<'a> {
    start: ChunkLocation,
    len: u32,
    members: &'a [usize],
}

/// How many of `runs` are asked for at once: as many as fit into `most` bytes, and one at least.
fn batch_length(runs: &[RunOfChunks<'_>], most: u32) -> usize {
    let mut total = 0u64;
    let fits = |run: &&RunOfChunks<'_>| {
        total += u64::from(run.len);
        total <= u64::from(most)
    };
    runs.iter().take_while(fits).count().max(1)
}

fn end_of(l: ChunkLocation) -> u32 {
    l.offset.saturating_add(l.stored_len)
}

/// How many of `order` can be read with the first in one go.
fn run_length(order: &[usize], start: ChunkLocation, at: &[Option<ChunkLocation>]) -> usize {
    let mut end = end_of(start);
    let mut run = 1;
    for &i in &order[1..] {
        let Some(l) = at[i] else { break };
        let near = l.pack == start.pack
            && l.offset <= end.saturating_add(RUN_GAP_MAX)
            && end_of(l) - start.offset <= RUN_BYTES_MAX;
        if !near {
            break;
        }
        end = end.max(end_of(l));
        run += 1;
    }
    run
}

fn read_runs(
    repo: &Inner,
    kind: PackKind,
    runs: &[RunOfChunks<'_>],
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
) -> Result<()> {
    let total = runs.iter().map(|run| run.len as usize).sum();
    if scratch.stored.len() < total {
        scratch.stored.resize(total, 0);
    }
    let mut reads = Vec::with_capacity(runs.len());
    let mut rest = &mut scratch.stored[..total];
    for run in runs {
        let (buf, later) = rest.split_at_mut(run.len as usize);
        let (key, offset) = (ObjectKey::Pack(run.start.pack), u64::from(run.start.offset));
        let keep = match kind {
            PackKind::Tree => Keep::Tree,
            PackKind::Data if scratch.once => Keep::No,
            PackKind::Data => Keep::Data,
        };
        reads.push(RangeRead { key, offset, buf, keep });
        rest = later;
    }
    repo.storage().read_many(&mut reads)?;
    let mut at = 0;
    for run in runs {
        decode_run(repo, kind, run, at, wanted, scratch)?;
        at += run.len as usize;
    }
    Ok(())
}

/// Decodes the chunks of a run whose bytes stand at `at` in the working memory.
fn decode_run(
    repo: &Inner,
    kind: PackKind,
    run: &RunOfChunks<'_>,
    at: usize,
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
) -> Result<()> {
    let start = run.start;
    let stored = &scratch.stored[at..at + run.len as usize];
    let key = repo.keys().pack_key(start.pack);
    for &i in run.members {
        let (w, Some(l)) = (&mut wanted[i], scratch.locations[i]) else { continue };
        let damaged = |e: Error| damaged(w.id, l.pack, l.offset, e);
        if l.kind != kind || l.raw_len as usize != w.out.len() || l.raw_len > CHUNK_RAW_MAX {
            let e = format!("it is {} bytes of another kind or length", l.raw_len);
            return Err(damaged(Error::new(ErrorKind::Damaged, e)));
        }
        let from = (l.offset - start.offset) as usize;
        let bytes = &stored[from..from + l.stored_len as usize];
        let entry = l.entry(w.id);
        scratch.decoder.decode(key.as_ref(), kind, &entry, bytes, w.out).map_err(damaged)?;
        if repo.keys().chunk_id(kind, w.out) != w.id {
            let e = Error::new(ErrorKind::Damaged, "the decoded bytes are not the chunk's");
            return Err(damaged(e));
        }
    }
    Ok(())
}

fn damaged(id: ChunkId, pack: PackId, offset: u32, e: Error) -> Error {
    e.context(format!("chunk {id} in pack {pack} at {offset} is damaged"))
}

fn missing(id: ChunkId) -> Error {
    Error::new(ErrorKind::Damaged, format!("chunk {id} is in no pack of this repository"))
}

/// Looks chunks up; asks once more after learning of other writers' packs if one is unknown.
fn locate(repo: &Inner, ids: &[ChunkId], out: &mut Vec<Option<ChunkLocation>>) -> Result<()> {
    let index = repo.index()?;
    index.get_many(ids, out)?;
    if let Some(i) = out.iter().position(Option::is_none) {
        repo.synchronise()?;
        index.get_many(ids, out)?;
        if out[i].is_none() {
            return Err(missing(ids[i]));
        }
    }
    Ok(())
}
