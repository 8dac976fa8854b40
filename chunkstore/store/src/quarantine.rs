//! Copies of chunks that are known to be bad (FORMAT.md, Quarantine).
//!
//! Every node learns the records when it brings its index in line with the packs, and makes the
//! index forget the bad copies: so they count as absent for deduplication, and the next backup
//! that has the data stores it again. A bad copy is read only when no other is left, and then
//! verified as every copy is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use backstay_format::limits::{QUARANTINE_CHUNKS_MAX, QUARANTINE_PACKS_MAX, QUARANTINE_REASON_MAX};
use backstay_format::pack::PackKind;
use backstay_format::quarantine::{BadPack, Quarantine as Record};
use backstay_format::{ChunkId, PackId, PointId, QuarantineId};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};

use crate::entropy::array;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkIndex, ChunkLocation, PackInfo};
use crate::key::{Folder, ObjectKey};
use crate::pack::{PackFooter, read_footer};
use crate::planted::{Fault, planted};
use crate::record;
use crate::repository::{Excluded, Inner, Source};
use crate::seal::Decoder;

/// What this process knows of bad copies.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    state: RwLock<State>,
    /// Tables of packs that were asked for chunks nobody else has; nothing for a pack that nobody
    /// knows the content of.
    tables: Mutex<HashMap<PackId, Option<Arc<Table>>>>,
}

type Table = HashMap<ChunkId, Vec<ChunkLocation>>;

/// Tables kept: some 50 KiB each.
const TABLES_MAX: usize = 256;

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<QuarantineId, Vec<PackId>>,
    /// Records that cannot be read, with the reason.
    unreadable: BTreeMap<QuarantineId, String>,
    packs: HashMap<PackId, Bad>,
    /// Where bad copies of a chunk are.
    chunks: HashMap<ChunkId, Vec<PackId>>,
    /// Packs whose bad copies the index has forgotten.
    applied: HashSet<PackId>,
    /// Grows with every record learned.
    version: u64,
}

/// What is bad in one pack.
#[derive(Clone, Debug)]
struct Bad {
    /// Nothing in it can be told apart.
    whole: bool,
    chunks: HashSet<ChunkId>,
    reason: String,
    found: Timestamp,
}

impl State {
    fn take_in(&mut self, record: Record) {
        let packs = record.packs.iter().map(|b| b.pack).collect();
        self.records.insert(record.id, packs);
        self.version += 1;
        for b in record.packs {
            let known = self.packs.entry(b.pack).or_insert_with(|| Bad {
                whole: false,
                chunks: HashSet::new(),
                reason: b.reason.clone(),
                found: b.found,
            });
            self.applied.remove(&b.pack);
            known.whole |= b.chunks.is_none();
            for id in b.chunks.unwrap_or_default() {
                if known.chunks.insert(id) {
                    self.chunks.entry(id).or_default().push(b.pack);
                }
            }
        }
    }
}

impl Quarantine {
    /// Reads the records it does not know; tells whether what is known has changed. One that cannot
    /// be read is noted: it stops a collection, and nothing else. Called one at a time.
    pub(crate) fn learn(&self, source: &Source) -> Result<bool> {
        let mut changed = false;
        let keys = source.storage.list(Folder::Quarantine)?;
        let id = |k: ObjectKey| if let ObjectKey::Quarantine(id) = k { Some(id) } else { None };
        let stored: BTreeSet<QuarantineId> = keys.into_iter().filter_map(id).collect();
        let new: Vec<QuarantineId> = {
            let mut state = self.state.write();
            if state.records.keys().any(|id| !stored.contains(id)) {
                // Some speak of packs that are gone: what stays is read again.
                *state = State { version: state.version, ..State::default() };
                changed = true;
            }
            state.unreadable.retain(|id, _| stored.contains(id));
            let known = |id: &QuarantineId| {
                state.records.contains_key(id) || state.unreadable.contains_key(id)
            };
            stored.into_iter().filter(|id| !known(id)).collect()
        };
        for id in new {
            match get(source, id) {
                Ok(record) => {
                    self.state.write().take_in(record);
                    changed = true;
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                    tracing::warn!(%id, error = %e, "a record of damage cannot be read");
                    self.state.write().unreadable.insert(id, e.whole_story());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(changed)
    }

    /// What an index must not say, by pack.
    pub(crate) fn excluded(&self) -> HashMap<PackId, Excluded> {
        let state = self.state.read();
        let of = |bad: &Bad| match bad.whole {
            true => Excluded::Whole,
            false => Excluded::Chunks(bad.chunks.clone()),
        };
        state.packs.iter().map(|(id, bad)| (*id, of(bad))).collect()
    }

    /// The records that are known and can be read, in order.
    pub(crate) fn records(&self) -> Vec<QuarantineId> {
        self.state.read().records.keys().copied().collect()
    }

    /// Makes the index forget bad copies. `fresh` are packs it has just learned of.
    pub(crate) fn apply(&self, index: &dyn ChunkIndex, fresh: &[PackId]) -> Result<()> {
        let todo: Vec<(PackId, Bad)> = {
            let mut state = self.state.write();
            for pack in fresh {
                state.applied.remove(pack);
            }
            let waiting = state.packs.iter().filter(|(id, _)| !state.applied.contains(id));
            waiting.map(|(id, bad)| (*id, bad.clone())).collect()
        };
        if todo.is_empty() || planted(Fault::QuarantineIgnored) {
            return Ok(());
        }
        let whole: BTreeSet<PackId> = todo.iter().filter(|(_, b)| b.whole).map(|t| t.0).collect();
        if !whole.is_empty() {
            let known: Vec<PackId> =
                index.packs().into_iter().map(|p| p.0).filter(|id| whole.contains(id)).collect();
            if !known.is_empty() {
                index.drop_packs(&known)?;
            }
        }
        for (pack, bad) in todo {
            // Forgetting costs every point its mark of being complete: only if there is something.
            let mut present = Vec::new();
            for id in bad.chunks {
                if index.copies(id)?.iter().any(|l| l.pack == pack) {
                    present.push(id);
                }
            }
            if !present.is_empty() {
                index.drop_copies(pack, &present)?;
            }
            self.state.write().applied.insert(pack);
        }
        Ok(())
    }

    /// Changes whenever another record is learned.
    pub(crate) fn version(&self) -> u64 {
        self.state.read().version
    }

    /// Whether all of a pack counts as absent.
    pub(crate) fn is_whole(&self, pack: PackId) -> bool {
        self.state.read().packs.get(&pack).is_some_and(|b| b.whole)
    }

    /// Whether anything in a pack is known to be bad.
    pub(crate) fn has(&self, pack: PackId) -> bool {
        self.state.read().packs.contains_key(&pack)
    }

    /// Whether the copy of a chunk in a pack counts as absent.
    pub(crate) fn covers(&self, pack: PackId, id: ChunkId) -> bool {
        let state = self.state.read();
        state.packs.get(&pack).is_some_and(|b| b.whole || b.chunks.contains(&id))
    }

    /// Whether nothing is known to be bad.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.read().packs.is_empty()
    }

    /// The packs that hold a bad copy of a chunk.
    pub(crate) fn packs_of(&self, id: ChunkId) -> Vec<PackId> {
        self.state.read().chunks.get(&id).cloned().unwrap_or_default()
    }

    /// The packs that anything is known to be bad in, sorted.
    pub(crate) fn packs(&self) -> Vec<PackId> {
        let mut packs: Vec<PackId> = self.state.read().packs.keys().copied().collect();
        packs.sort();
        packs
    }

    /// The packs of which nothing can be told apart.
    pub(crate) fn whole_packs(&self) -> Vec<PackId> {
        let state = self.state.read();
        let mut packs: Vec<PackId> =
            state.packs.iter().filter(|(_, b)| b.whole).map(|(id, _)| *id).collect();
        packs.sort();
        packs
    }

    /// Why a chunk is bad, if a copy of it is in quarantine.
    pub(crate) fn reason(&self, id: ChunkId) -> Option<String> {
        let state = self.state.read();
        let pack = state.chunks.get(&id)?.first()?;
        let bad = state.packs.get(pack)?;
        Some(format!("its copy in pack {pack} is bad ({}, found {})", bad.reason, bad.found))
    }

    /// Whether a pack must stay because a chunk that is needed, and that no pack has whole, may
    /// still be in it: a repair needs whatever there is.
    pub(crate) fn keeps(&self, pack: PackId, missing: &HashSet<ChunkId>) -> bool {
        let state = self.state.read();
        let Some(bad) = state.packs.get(&pack) else { return false };
        if planted(Fault::BadPackDeleted) {
            return false;
        }
        if bad.whole {
            return !missing.is_empty();
        }
        bad.chunks.iter().any(|id| missing.contains(id))
    }

    /// An error if a record cannot be read: then it is not known which copies must not be relied
    /// on.
    pub(crate) fn check_readable(&self) -> Result<()> {
        let state = self.state.read();
        let Some((id, reason)) = state.unreadable.first_key_value() else { return Ok(()) };
        let text = format!(
            "the record of damage {id} cannot be read ({reason}), so it is not known which copies \
             of chunks are bad and nothing is deleted; `backstay repo verify --full` finds them anew"
        );
        Err(Error::new(ErrorKind::Damaged, text))
    }

    /// The records that cannot be read.
    pub(crate) fn unreadable(&self) -> Vec<QuarantineId> {
        self.state.read().unreadable.keys().copied().collect()
    }

    /// Where a chunk stands that only quarantined copies are left of, if one of them is whole after
    /// all. Otherwise an error that names the damage.
    pub(crate) fn last_resort(&self, repo: &Inner, id: ChunkId) -> Result<ChunkLocation> {
        match self.rescue(repo, id)? {
            Some((location, _)) => Ok(location),
            None => {
                let text = match self.reason(id) {
                    Some(reason) => format!("chunk {id} is damaged: {reason}; there is no other"),
                    None => format!("chunk {id} is in no pack of this repository"),
                };
                Err(Error::new(ErrorKind::Damaged, text))
            }
        }
    }

    /// Reads a chunk from one of its quarantined copies, if one can be read after all: whoever
    /// found it bad may have had bad memory.
    pub(crate) fn rescue(
        &self,
        repo: &Inner,
        id: ChunkId,
    ) -> Result<Option<(ChunkLocation, Vec<u8>)>> {
        for pack in self.packs_of(id).into_iter().chain(self.whole_packs()) {
            let Some(table) = self.table(repo, pack)? else { continue };
            for location in table.get(&id).into_iter().flatten() {
                match read_copy(repo, id, location) {
                    Ok(bytes) => return Ok(Some((*location, bytes))),
                    Err(e) if lost(&e) || e.is_media_error() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(None)
    }

    /// What a pack in quarantine holds, if it says so, or an index object does.
    fn table(&self, repo: &Inner, pack: PackId) -> Result<Option<Arc<Table>>> {
        let mut tables = self.tables.lock();
        if let Some(known) = tables.get(&pack) {
            return Ok(known.clone());
        }
        let table = match self.read_table(repo, pack) {
            Ok(table) => Some(Arc::new(table)),
            Err(e) if lost(&e) || e.is_media_error() => None,
            Err(e) => return Err(e),
        };
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        tables.insert(pack, table.clone());
        Ok(table)
    }

    fn read_table(&self, repo: &Inner, pack: PackId) -> Result<Table> {
        let footer = read_footer(repo.storage(), repo.config().id, repo.keys(), pack);
        let said = match footer.map(PackFooter::into_table) {
            Ok(said) => Arc::new(said),
            Err(e) if e.kind() == ErrorKind::Damaged || e.is_media_error() => {
                repo.table_of(pack)?.ok_or(e)?
            }
            Err(e) => return Err(e),
        };
        let mut table = Table::new();
        for (n, e) in said.entries.iter().enumerate() {
            let location = ChunkLocation::new(pack, said.kind, n, e);
            table.entry(e.id).or_default().push(location);
        }
        Ok(table)
    }
}

/// Whether an error says that stored bytes are gone or wrong, rather than out of reach.
pub(crate) fn lost(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported)
}

/// Reads and verifies one copy of a chunk.
pub(crate) fn read_copy(repo: &Inner, id: ChunkId, l: &ChunkLocation) -> Result<Vec<u8>> {
    let mut stored = vec![0u8; l.stored_len as usize];
    repo.storage().read_at(ObjectKey::Pack(l.pack), u64::from(l.offset), &mut stored)?;
    let mut raw = vec![0u8; l.raw_len as usize];
    let key = repo.keys().pack_key(l.pack);
    Decoder::new()?.decode(key.as_ref(), l.kind, &l.entry(id), &stored, &mut raw)?;
    if repo.keys().chunk_id(l.kind, &raw) != id {
        return Err(Error::new(ErrorKind::Damaged, "the decoded bytes are not the chunk's"));
    }
    Ok(raw)
}

fn get(source: &Source, id: QuarantineId) -> Result<Record> {
    let key = ObjectKey::Quarantine(id);
    let record: Record = source.record(key)?;
    if record.id != id {
        let text = format!("{key} says it is {}", record.id);
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    Ok(record)
}

/// What was found in one pack, before it is written down.
#[derive(Clone, Debug)]
pub(crate) struct NewBad {
    pub(crate) pack: PackId,
    /// Nothing: all of the pack.
    pub(crate) chunks: Option<Vec<ChunkId>>,
    pub(crate) reason: String,
}

/// Writes findings down; durable when this returns. Tells how many records it took.
pub(crate) fn write(repo: &Inner, found: &[NewBad]) -> Result<usize> {
    let now = repo.entropy().now();
    let mut parts = Vec::new();
    for bad in found {
        let part = |chunks| BadPack {
            pack: bad.pack,
            chunks,
            reason: tidy_reason(&bad.reason),
            found: now,
        };
        match &bad.chunks {
            None => parts.push(part(None)),
            Some(ids) => {
                let mut ids = ids.clone();
                ids.sort();
                ids.dedup();
                let pieces = ids.chunks(QUARANTINE_CHUNKS_MAX);
                parts.extend(pieces.map(|piece| part(Some(piece.to_vec()))));
            }
        }
    }
    let mut written = 0;
    let mut rest = parts.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(fitting(rest));
        let id = QuarantineId::from_bytes(array(repo.entropy()));
        let by = tidy_reason(&repo.owner().host);
        let record = Record { id, packs: now.to_vec(), by };
        record::put(repo, ObjectKey::Quarantine(id), &record)?;
        written += 1;
        rest = later;
    }
    Ok(written)
}

/// How many of the parts go into one record; at least one, since each is within the bounds.
fn fitting(parts: &[BadPack]) -> usize {
    let mut chunks = 0;
    let within = |b: &&BadPack| {
        chunks += b.chunks.as_ref().map_or(0, Vec::len);
        chunks <= QUARANTINE_CHUNKS_MAX
    };
    parts.iter().take(QUARANTINE_PACKS_MAX).take_while(within).count().max(1)
}

fn tidy_reason(text: &str) -> String {
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = QUARANTINE_REASON_MAX.min(out.len());
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
    out
}

/// Every pack a collection may look at: those of the index, and those in quarantine that the index
/// does not know, because they do not say what they hold.
pub(crate) fn with_bad_packs(
    repo: &Inner,
    mut packs: Vec<(PackId, PackInfo)>,
) -> Result<Vec<(PackId, PackInfo)>> {
    let known: HashSet<PackId> = packs.iter().map(|(id, _)| *id).collect();
    for id in repo.quarantine().packs().into_iter().filter(|id| !known.contains(id)) {
        let len = match repo.storage().size(ObjectKey::Pack(id)) {
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let info = PackInfo { kind: PackKind::Data, chunks: 0, len, session: PointId::NONE };
        packs.push((id, info));
    }
    Ok(packs)
}

/// Deletes the records that speak only of packs that are gone. Each pack is asked for by name: a
/// listing is no proof of absence.
pub(crate) fn forget_gone(repo: &Inner) -> Result<()> {
    let records: Vec<(QuarantineId, Vec<PackId>)> = {
        let state = repo.quarantine().state.read();
        state.records.iter().map(|(id, packs)| (*id, packs.clone())).collect()
    };
    for (id, packs) in records {
        let mut any = false;
        for pack in packs {
            match repo.storage().size(ObjectKey::Pack(pack)) {
                Ok(_) => any = true,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
            break;
        }
        if any {
            continue;
        }
        match repo.storage().delete(ObjectKey::Quarantine(id)) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
