//! From what is bad to what is lost: which ranges of which disks cannot be restored.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use backstay_format::limits::NODE_FANOUT;
use backstay_format::node::{Node, chunks_below};
use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::{ChunkId, ChunkIndex, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::progress::Progress;
use crate::quarantine::{lost, read_copy};
use crate::read::{node, node_afresh};
use crate::repository::{Inner, check_present};

use super::damage::{DamageKind, Findings};

/// Copies of chunks that were found bad just now, with the reason.
#[derive(Debug, Default)]
pub(crate) struct BadCopies {
    chunks: HashMap<ChunkId, Vec<(PackId, String)>>,
    /// Packs that some of these copies are in, or that are to be superseded as a whole.
    packs: HashSet<PackId>,
    /// Packs that do not even say what they hold.
    whole: BTreeSet<PackId>,
    /// Packs whose parity is damaged.
    pub(crate) parity: BTreeSet<PackId>,
}

impl BadCopies {
    pub(crate) fn add(&mut self, pack: PackId, id: ChunkId, reason: &str) {
        self.packs.insert(pack);
        let known = self.chunks.entry(id).or_default();
        if !known.iter().any(|(p, _)| *p == pack) {
            known.push((pack, format!("pack {pack}: {reason}")));
        }
    }

    /// A pack with chunks that can be read for the time being only.
    pub(crate) fn add_at_risk(&mut self, pack: PackId) {
        self.packs.insert(pack);
    }

    pub(crate) fn add_whole(&mut self, pack: PackId) {
        self.whole.insert(pack);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.whole.is_empty()
    }

    /// How many chunks have a bad copy.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn has_pack(&self, pack: PackId) -> bool {
        self.whole.contains(&pack) || self.packs.contains(&pack)
    }

    pub(crate) fn whole_packs(&self) -> impl Iterator<Item = PackId> {
        self.whole.iter().copied()
    }

    /// The packs that hold a bad copy of a chunk.
    pub(crate) fn packs_of(&self, id: ChunkId) -> impl Iterator<Item = PackId> {
        self.chunks.get(&id).into_iter().flatten().map(|(pack, _)| *pack)
    }

    /// Whether a pack does not even say what it holds.
    fn is_whole(&self, pack: PackId) -> bool {
        self.whole.contains(&pack)
    }

    fn reason(&self, pack: PackId, id: ChunkId) -> Option<&String> {
        let copies = self.chunks.get(&id)?;
        copies.iter().find(|(p, _)| *p == pack).map(|(_, reason)| reason)
    }

    fn any_reason(&self, id: ChunkId) -> Option<&String> {
        self.chunks.get(&id)?.first().map(|(_, reason)| reason)
    }
}

/// Chunks that count as whole although they are not stored yet; nodes with their content.
pub(crate) type Healed = HashMap<ChunkId, Option<Arc<Node>>>;

/// A chunk, or a node and all below it, that no copy is left of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost<'a> {
    pub(crate) point: &'a Arc<RecoveryPoint>,
    pub(crate) disk: &'a DiskRecord,
    pub(crate) id: ChunkId,
    /// The level of a node; nothing for a data chunk.
    pub(crate) level: Option<u8>,
    /// Where on the disk it starts.
    pub(crate) offset_bytes: u64,
    /// Bytes of the disk lost with it.
    pub(crate) len_bytes: u64,
    pub(crate) reason: &'a str,
}

impl Lost<'_> {
    pub(crate) fn add_to(&self, findings: &mut Findings) {
        let kind = DamageKind::Disk {
            machine: self.point.machine.clone(),
            point: self.point.id,
            disk: self.disk.name.clone(),
            offset_bytes: self.offset_bytes,
            len_bytes: self.len_bytes,
        };
        findings.add_text(kind, self.reason.to_owned());
    }
}

/// Walks image trees. A subtree that is whole is walked once, however many disks share it.
pub(crate) struct Walker<'a> {
    inner: &'a Inner,
    bad: &'a BadCopies,
    healed: &'a Healed,
    /// Subtrees without damage, by root.
    seen: HashSet<ChunkId>,
    /// Data chunks looked up.
    pub(crate) chunks: u64,
    /// A copy in quarantine that can be read after all counts.
    quarantined_count: bool,
}

struct Place<'a> {
    point: &'a Arc<RecoveryPoint>,
    disk: &'a DiskRecord,
    found: &'a mut dyn FnMut(Lost<'_>),
}

impl<'a> Walker<'a> {
    pub(crate) fn new(inner: &'a Inner, bad: &'a BadCopies, healed: &'a Healed) -> Self {
        Self { inner, bad, healed, seen: HashSet::new(), chunks: 0, quarantined_count: true }
    }

    /// What only a copy in quarantine is left of counts as lost, also if that can be read: as long
    /// as it is there, and no longer.
    pub(crate) fn without_quarantined(mut self) -> Self {
        self.quarantined_count = false;
        self
    }

    fn rescued(&self, id: ChunkId) -> Result<bool> {
        let inner = self.inner;
        Ok(self.quarantined_count && inner.quarantine().rescue(inner, id)?.is_some())
    }

    /// Walks one disk, from front to back; tells whether it is whole.
    pub(crate) fn disk(
        &mut self,
        point: &Arc<RecoveryPoint>,
        disk: &DiskRecord,
        found: &mut dyn FnMut(Lost<'_>),
    ) -> Result<bool> {
        self.subtree(&mut Place { point, disk, found }, disk.root, disk.levels, 0)
    }

    /// Walks a subtree of `levels` levels from chunk `first` on. Depth is bounded by the number of
    /// levels, at most nine.
    fn subtree(
        &mut self,
        place: &mut Place<'_>,
        root: Option<ChunkId>,
        levels: u8,
        first: u64,
    ) -> Result<bool> {
        let Some(id) = root else { return Ok(true) };
        if self.seen.contains(&id) {
            return Ok(true);
        }
        let here = match self.node(id, levels - 1)? {
            Ok(here) => here,
            Err(reason) => {
                let level = Some(levels - 1);
                self.tell(place, id, level, first, chunks_below(levels), &reason);
                return Ok(false);
            }
        };
        let whole = if levels == 1 {
            self.leaf(place, here.slots(), first)?
        } else {
            let span = chunks_below(levels - 1);
            let mut whole = true;
            for (i, slot) in (0u64..).zip(here.slots()) {
                whole &= self.subtree(place, *slot, levels - 1, first + i * span)?;
            }
            whole
        };
        if whole {
            self.seen.insert(id);
        }
        Ok(whole)
    }

    fn leaf(
        &mut self,
        place: &mut Place<'_>,
        slots: &[Option<ChunkId>; NODE_FANOUT],
        first: u64,
    ) -> Result<bool> {
        let present: Vec<(u64, ChunkId)> =
            (first..).zip(slots).filter_map(|(i, id)| Some((i, (*id)?))).collect();
        let ids: Vec<ChunkId> = present.iter().map(|(_, id)| *id).collect();
        let mut found = Vec::new();
        self.inner.index()?.get_many(&ids, &PackSet::new(), &mut found)?;
        self.chunks += ids.len() as u64;
        let size = self.inner.config().chunk_size;
        let mut whole = true;
        for ((index, id), location) in present.into_iter().zip(found) {
            let len = size.chunk_len(place.disk.size_bytes, ChunkIndex(index));
            let reason = match self.why_lost(id, location)? {
                Some(reason) => reason,
                None if location.is_some_and(|l| l.raw_len != len) => {
                    // The index may err about one copy only.
                    if self.any_readable(id, |l| l.raw_len == len)?.is_ok() {
                        continue;
                    }
                    "its chunk has another length".to_owned()
                }
                None => continue,
            };
            whole = false;
            self.tell(place, id, None, index, 1, &reason);
        }
        Ok(whole)
    }

    /// Why no copy of a chunk can be used; nothing if one can, as far as is known.
    fn why_lost(&self, id: ChunkId, location: Option<ChunkLocation>) -> Result<Option<String>> {
        if self.healed.contains_key(&id) {
            return Ok(None);
        }
        let Some(location) = location else {
            if self.rescued(id)? {
                return Ok(None);
            }
            let known = self.bad.any_reason(id).cloned();
            let known = known.or_else(|| self.inner.quarantine().reason(id));
            return Ok(Some(
                known.unwrap_or_else(|| "its chunk is in no pack of this repository".to_owned()),
            ));
        };
        let known = self.bad.reason(location.pack, id);
        if known.is_none() && !self.bad.is_whole(location.pack) {
            return Ok(None);
        }
        // Of several copies one may serve, and only reading them tells.
        let why = match self.any_readable(id, |l| self.bad.reason(l.pack, id).is_none())? {
            Ok(()) => return Ok(None),
            Err(why) => why,
        };
        if self.rescued(id)? {
            return Ok(None);
        }
        Ok(Some(known.cloned().or(why).unwrap_or_else(|| "it cannot be read".to_owned())))
    }

    /// Whether one of the copies that the index knows, and that `take` accepts, can be read; else
    /// why the last of them cannot, if there is any.
    fn any_readable(
        &self,
        id: ChunkId,
        take: impl Fn(&ChunkLocation) -> bool,
    ) -> Result<Result<(), Option<String>>> {
        let mut why = None;
        for l in self.inner.index()?.copies(id)?.iter().filter(|l| take(l)) {
            match read_copy(self.inner, id, l) {
                Ok(_) => return Ok(Ok(())),
                Err(e) if lost(&e) || e.is_media_error() => {
                    why = Some(format!("pack {}: {}", l.pack, e.whole_story()));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Err(why))
    }

    /// A node, or why it is lost.
    fn node(&self, id: ChunkId, level: u8) -> Result<Result<Arc<Node>, String>> {
        if let Some(Some(node)) = self.healed.get(&id) {
            return Ok(Ok(node.clone()));
        }
        let mut found = Vec::new();
        self.inner.index()?.get_many(&[id], &PackSet::new(), &mut found)?;
        if let Some(reason) = self.why_lost(id, found[0])? {
            return Ok(Err(reason));
        }
        // Where one copy is bad, what is in the cache may be from before it was.
        let read = match self.bad.any_reason(id) {
            Some(_) => node_afresh(self.inner, id, level),
            None => node(self.inner, id, level),
        };
        match read {
            Ok(node) => Ok(Ok(node)),
            Err(e) if lost(&e) || e.is_media_error() => Ok(Err(e.whole_story())),
            Err(e) => Err(e),
        }
    }

    fn tell(
        &self,
        place: &mut Place<'_>,
        id: ChunkId,
        level: Option<u8>,
        first: u64,
        chunks: u64,
        reason: &str,
    ) {
        let size = self.inner.config().chunk_size;
        let offset_bytes = ChunkIndex(first).offset(size);
        let end = ChunkIndex(first.saturating_add(chunks)).offset(size);
        let end = end.min(place.disk.size_bytes);
        (place.found)(Lost {
            point: place.point,
            disk: place.disk,
            id,
            level,
            offset_bytes,
            len_bytes: end.saturating_sub(offset_bytes),
            reason,
        });
    }
}

/// Walks all disks of `points` and adds what is lost to `findings`; returns how many data chunks
/// were looked up.
///
/// Whatever seems lost is looked at once more with the packs and points there are then: a
/// collection may have moved or removed it meanwhile.
pub(crate) fn walk_all(
    inner: &Inner,
    points: &[Arc<RecoveryPoint>],
    bad: &BadCopies,
    healed: &Healed,
    findings: &mut Findings,
    progress: &dyn Progress,
) -> Result<u64> {
    let disks: u64 = points.iter().map(|p| p.disks.len() as u64).sum();
    progress.total("disks", disks);
    let mut walker = Walker::new(inner, bad, healed);
    let mut damaged = Vec::new();
    for point in points {
        for disk in &point.disks {
            stopped(progress)?;
            if !walker.disk(point, disk, &mut |_| ())? {
                damaged.push((point, disk));
            }
            progress.add("disks", 1);
        }
    }
    if damaged.is_empty() {
        return Ok(walker.chunks);
    }
    inner.synchronise()?;
    let chunks = walker.chunks;
    for (point, disk) in damaged {
        stopped(progress)?;
        match check_present(inner, point.id) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        }
        walker.disk(point, disk, &mut |lost| lost.add_to(findings))?;
    }
    Ok(chunks)
}

pub(crate) fn stopped(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() {
        return Err(Error::new(ErrorKind::Aborted, "the check was stopped"));
    }
    Ok(())
}
