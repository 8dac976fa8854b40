use backstay_format::limits::{CHUNK_RAW_MAX, CHUNK_STORED_MAX};
use backstay_format::pack::PackKind;
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::key::ObjectKey;
use crate::planted::{Fault, planted};
use crate::repository::Inner;
use crate::seal::Decoder;

/// Working memory of one reading thread: reused from call to call.
#[derive(Debug)]
pub struct ReadScratch {
    decoder: Decoder,
    stored: Vec<u8>,
    locations: Vec<Option<ChunkLocation>>,
}

impl ReadScratch {
    /// Empty working memory; grows to a few MiB.
    pub fn new() -> Result<Self> {
        Ok(Self { decoder: Decoder::new()?, stored: Vec::new(), locations: Vec::new() })
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
    match locate(repo, &ids, &mut scratch.locations) {
        Err(_) if planted(Fault::ZerosForMissing) => {
            wanted.iter_mut().for_each(|w| w.out.fill(0));
            return Ok(());
        }
        located => located?,
    }
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let place = |i: usize| scratch.locations[i].map(|l| (l.pack, l.offset));
    order.sort_by_key(|&i| place(i));
    let mut rest = order.as_slice();
    while let Some(&first) = rest.first() {
        let Some(start) = scratch.locations[first] else {
            return Err(missing(wanted[first].id));
        };
        let run = run_length(rest, start, &scratch.locations);
        let end = rest[..run].iter().filter_map(|&i| scratch.locations[i]).map(end_of).max();
        let len = end.unwrap_or(start.offset) - start.offset;
        read_run(repo, kind, start, len, &rest[..run], wanted, scratch)?;
        rest = &rest[run..];
    }
    Ok(())
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

fn read_run(
    repo: &Inner,
    kind: PackKind,
    start: ChunkLocation,
    len: u32,
    run: &[usize],
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
) -> Result<()> {
    let len = len as usize;
    if scratch.stored.len() < len {
        scratch.stored.resize(len, 0);
    }
    let stored = &mut scratch.stored[..len];
    let offset = u64::from(start.offset);
    repo.storage().read_at(ObjectKey::Pack(start.pack), offset, stored)?;
    let key = repo.keys().pack_key(start.pack);
    for &i in run {
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
        let other = repo.keys().chunk_id(kind, w.out) != w.id;
        if other && !planted(Fault::IdNotCompared) {
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
    index.get_many(ids, &PackSet::new(), out)?;
    if let Some(i) = out.iter().position(Option::is_none) {
        repo.synchronise()?;
        index.get_many(ids, &PackSet::new(), out)?;
        if out[i].is_none() {
            return Err(missing(ids[i]));
        }
    }
    Ok(())
}
