use aws_lc_rs::aead::LessSafeKey;
use backstay_format::limits::{CHUNK_RAW_MAX, CHUNK_STORED_MAX};
use backstay_format::pack::PackKind;
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::key::ObjectKey;
use crate::planted::{Fault, planted};
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

/// A chunk that could not be had from where the index says it is.
struct Failed {
    /// Its place among the chunks asked for.
    at: usize,
    location: ChunkLocation,
    error: Error,
}

/// Reads chunks of one kind. Each is authenticated, decoded and compared with its id before any
/// byte of it counts (FORMAT.md, rule O8). A chunk that is damaged, or whose pack is gone, is read
/// from another copy if there is one; the first that cannot be had ends the call with an error that
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
    let mut failed = Vec::new();
    let mut runs = runs.as_slice();
    while !runs.is_empty() {
        let (now, later) = runs.split_at(batch_length(runs, batch));
        read_runs(repo, kind, now, wanted, scratch, &mut failed);
        runs = later;
    }
    if failed.is_empty() { Ok(()) } else { fetch_elsewhere(repo, kind, wanted, failed, scratch) }
}

/// Reads what failed from other copies.
fn fetch_elsewhere(
    repo: &Inner,
    kind: PackKind,
    wanted: &mut [Wanted<'_>],
    failed: Vec<Failed>,
    scratch: &mut ReadScratch,
) -> Result<()> {
    let index = repo.index()?;
    let mut all_known = false;
    for Failed { at, location, error } in failed {
        let id = wanted[at].id;
        note(repo, id, location, &error);
        let mut tried = PackSet::from([location.pack]);
        loop {
            let copies = index.copies(id)?;
            let next = copies.into_iter().find(|l| !tried.contains(&l.pack));
            let Some(copy) = next else {
                // Another copy may be in a pack that is not known yet: a collection stores chunks
                // again before it deletes a pack, and a backup heals what it finds missing.
                if !all_known {
                    all_known = true;
                    repo.synchronise()?;
                    continue;
                }
                if let Some((_, bytes)) = repo.quarantine().rescue(repo, id)?
                    && bytes.len() == wanted[at].out.len()
                {
                    wanted[at].out.copy_from_slice(&bytes);
                    break;
                }
                // To whoever reads a disk, a pack that is gone is lost data, and no missing disk.
                let lost = error.kind() == ErrorKind::NotFound;
                return Err(if lost { missing(id) } else { error });
            };
            tried.insert(copy.pack);
            let mut again = Vec::new();
            scratch.locations[at] = Some(copy);
            let one = RunOfChunks { start: copy, len: copy.stored_len, members: &[at] };
            read_runs(repo, kind, &[one], wanted, scratch, &mut again);
            again.iter().for_each(|f| note(repo, id, f.location, &f.error));
            if again.is_empty() {
                break;
            }
        }
        tracing::warn!(chunk = %id, pack = %location.pack, error = %error.whole_story(),
            "a chunk was read from another copy");
    }
    Ok(())
}

/// Remembers damage for the checks. A pack that is gone is none by itself, and a failing storage
/// may work again.
fn note(repo: &Inner, id: ChunkId, location: ChunkLocation, error: &Error) {
    if error.kind() == ErrorKind::Damaged {
        repo.note_damage(location.pack, id, error.whole_story());
    }
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

/// Reads several runs at the same time where that pays; what cannot be had goes to `failed`.
fn read_runs(
    repo: &Inner,
    kind: PackKind,
    runs: &[RunOfChunks<'_>],
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
    failed: &mut Vec<Failed>,
) {
    let total = runs.iter().map(|run| run.len as usize).sum();
    if scratch.stored.len() < total {
        scratch.stored.resize(total, 0);
    }
    let keep = match kind {
        PackKind::Tree => Keep::Tree,
        PackKind::Data if scratch.once => Keep::No,
        PackKind::Data => Keep::Data,
    };
    let mut reads = Vec::with_capacity(runs.len());
    let mut rest = &mut scratch.stored[..total];
    for run in runs {
        let (buf, later) = rest.split_at_mut(run.len as usize);
        let (key, offset) = (ObjectKey::Pack(run.start.pack), u64::from(run.start.offset));
        reads.push(RangeRead { key, offset, buf, keep });
        rest = later;
    }
    let read = repo.storage().read_many(&mut reads);
    if read.is_err() && runs.len() > 1 {
        // One after the other, to tell which it was.
        for run in runs {
            read_runs(repo, kind, std::slice::from_ref(run), wanted, scratch, failed);
        }
        return;
    }
    let mut at = 0;
    for run in runs {
        decode_run(repo, kind, run, at, &read, wanted, scratch, failed);
        at += run.len as usize;
    }
}

/// Decodes the chunks of a run whose bytes stand at `at` in the working memory.
#[expect(clippy::too_many_arguments, reason = "one step of reading, taken out for its length")]
fn decode_run(
    repo: &Inner,
    kind: PackKind,
    run: &RunOfChunks<'_>,
    at: usize,
    read: &Result<()>,
    wanted: &mut [Wanted<'_>],
    scratch: &mut ReadScratch,
    failed: &mut Vec<Failed>,
) {
    let ReadScratch { decoder, stored, locations, .. } = scratch;
    let stored = &stored[at..at + run.len as usize];
    let key = repo.keys().pack_key(run.start.pack);
    for &at in run.members {
        let (w, Some(location)) = (&mut wanted[at], locations[at]) else { continue };
        let result = match read {
            Err(e) => Err(Error::new(e.kind(), e.whole_story())),
            Ok(()) => {
                let from = (location.offset - run.start.offset) as usize;
                let bytes = &stored[from..from + location.stored_len as usize];
                decode_one(repo, kind, key.as_ref(), location, bytes, w, decoder)
            }
        };
        if let Err(e) = result {
            let error = damaged(w.id, location.pack, location.offset, e);
            failed.push(Failed { at, location, error });
        }
    }
}

fn decode_one(
    repo: &Inner,
    kind: PackKind,
    key: Option<&LessSafeKey>,
    l: ChunkLocation,
    bytes: &[u8],
    w: &mut Wanted<'_>,
    decoder: &mut Decoder,
) -> Result<()> {
    if l.kind != kind || l.raw_len as usize != w.out.len() || l.raw_len > CHUNK_RAW_MAX {
        let text = format!("it is {} bytes of another kind or length", l.raw_len);
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    decoder.decode(key, kind, &l.entry(w.id), bytes, w.out)?;
    let other = repo.keys().chunk_id(kind, w.out) != w.id;
    if other && !planted(Fault::IdNotCompared) {
        return Err(Error::new(ErrorKind::Damaged, "the decoded bytes are not the chunk's"));
    }
    Ok(())
}

fn damaged(id: ChunkId, pack: PackId, offset: u32, e: Error) -> Error {
    let what = if e.kind() == ErrorKind::Damaged { "is damaged" } else { "cannot be read" };
    e.context(format!("chunk {id} in pack {pack} at {offset} {what}"))
}

fn missing(id: ChunkId) -> Error {
    Error::new(ErrorKind::Damaged, format!("chunk {id} is in no pack of this repository"))
}

/// Looks chunks up, and again as packs become known. All are found, or it is an error.
pub(super) fn locate(
    repo: &Inner,
    ids: &[ChunkId],
    out: &mut Vec<Option<ChunkLocation>>,
) -> Result<()> {
    let mut search = repo.search();
    let index = repo.index()?;
    index.get_many(ids, &PackSet::new(), out)?;
    let mut found = Vec::new();
    let mut all_known = false;
    loop {
        let left: Vec<usize> = (0..ids.len()).filter(|&i| out[i].is_none()).collect();
        if left.is_empty() {
            return Ok(());
        }
        if !repo.look_again(&mut search)? {
            let rescued = left.iter().try_for_each(|&i| {
                out[i] = Some(repo.quarantine().last_resort(repo, ids[i])?);
                Ok(())
            });
            if rescued.is_ok() || all_known {
                return rescued;
            }
            // Since the packs were listed, the chunks may have been stored again, and the pack in
            // quarantine been deleted.
            all_known = true;
            repo.synchronise()?;
        }
        let wanted: Vec<ChunkId> = left.iter().map(|&i| ids[i]).collect();
        index.get_many(&wanted, &PackSet::new(), &mut found)?;
        left.iter().zip(&found).for_each(|(&i, l)| out[i] = *l);
    }
}
