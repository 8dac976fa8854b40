use std::collections::{HashMap, HashSet};

use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkIndex, ChunkLocation, PackSet};
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::read::node;
use crate::repository::Inner;

use super::roots::Roots;
use super::summary::{Summaries, Summary};

/// Nodes taken from the stack at once.
const NODES: usize = 256;
/// Subtrees up to this level are summed up: 4,096 chunks each, 256 MiB of disk at the default size.
const SUMMED_LEVEL: u8 = 1;
/// Summaries handed over at once.
const SUMMARIES: usize = 1024;

/// Which entries of which packs are needed: one bit an entry, so that a hundred million chunks take
/// some twelve megabytes.
#[derive(Debug, Default)]
pub(super) struct Marks {
    packs: HashMap<PackId, PackMarks>,
    references: u64,
    missing: HashSet<ChunkId>,
    gone: HashSet<ChunkId>,
}

/// The needed entries of one pack.
#[derive(Debug, Default)]
pub(super) struct PackMarks {
    bits: Vec<u64>,
}

impl PackMarks {
    /// How many of its entries are needed.
    pub(super) fn count(&self) -> u64 {
        self.bits.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether entry `number` is needed.
    pub(super) fn has(&self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, number % 64);
        self.bits.get(word).is_some_and(|w| w >> bit & 1 == 1)
    }
}

impl Marks {
    pub(super) fn pack(&self, pack: PackId) -> Option<&PackMarks> {
        self.packs.get(&pack)
    }

    pub(super) fn references(&self) -> u64 {
        self.references
    }

    /// Data chunks that are needed and that no pack has.
    pub(super) fn missing(&self) -> &HashSet<ChunkId> {
        &self.missing
    }

    /// Nodes of removed points that the index has in no pack.
    pub(super) fn gone(&self) -> &HashSet<ChunkId> {
        &self.gone
    }

    /// Whether this copy of a chunk is the one that is needed.
    pub(super) fn has(&self, l: &ChunkLocation) -> bool {
        self.packs.get(&l.pack).is_some_and(|p| p.has(l.number))
    }

    fn apply(&mut self, summary: &Summary) {
        for (pack, runs) in summary.packs() {
            let marks = self.packs.entry(*pack).or_default();
            for r in runs {
                let end = (r.start + r.len) as usize;
                if marks.bits.len() * 64 < end {
                    marks.bits.resize(end.div_ceil(64), 0);
                }
                for n in r.start as usize..end {
                    marks.bits[n / 64] |= 1 << (n % 64);
                }
                self.references += u64::from(r.len);
            }
        }
    }
}

/// Marks everything that the points of `roots` need. Of several copies of a chunk one is marked, outside of
/// `avoid` if there is one.
///
/// A subtree is walked once, however many points share it, and one that `known` has a summary of
/// is not followed at all. A node that cannot be read is an error: what hangs below it is not
/// known.
///
/// A removed point is different in one thing: its chunks may be gone already, because who holds it
/// came too late and has not noticed yet (LOCKS.md, H1). A node of it that is in no pack hides
/// nothing that anybody can still read, and is no damage.
pub(super) fn mark(
    repo: &Inner,
    roots: &Roots,
    avoid: &PackSet,
    known: &dyn Summaries,
    progress: &dyn Progress,
) -> Result<Marks> {
    let index = repo.index()?;
    let usable = index.packs().into_iter().map(|(id, _)| id).filter(|id| !avoid.contains(id));
    let mut marker = Marker {
        repo,
        index: &*index,
        avoid,
        usable: usable.collect(),
        known,
        removed: false,
        marks: Marks::default(),
        seen: HashSet::new(),
        fresh: Vec::new(),
    };
    progress.total("points", (roots.points.len() + roots.held.len()) as u64);
    // Those that are not removed first: nothing they need may count as seen before.
    let points = roots.points.iter().map(|p| (p, false));
    for (point, removed) in points.chain(roots.held.iter().map(|p| (p, true))) {
        marker.removed = removed && !planted(Fault::LateHoldTakenForDamage);
        if progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the collection was stopped"));
        }
        for disk in &point.disks {
            let Some(root) = disk.root else { continue };
            marker.tree(root, disk.levels.saturating_sub(1)).map_err(|e| {
                e.context(format!(
                    "disk {} of {} at {} cannot be followed, so nothing is deleted; repair the \
                     point {} or remove it first",
                    disk.name,
                    point.machine,
                    point.time,
                    point.id.short()
                ))
            })?;
        }
        progress.add("points", 1);
    }
    known.put(marker.fresh);
    Ok(marker.marks)
}

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    InPack,
    /// Only in a copy that counts as absent.
    InQuarantine,
    /// It is gone, as nodes of a removed point may be.
    Nowhere,
}

struct Marker<'a> {
    repo: &'a Inner,
    index: &'a dyn ChunkIndex,
    avoid: &'a PackSet,
    /// Packs that are present and not to be avoided.
    usable: HashSet<PackId>,
    known: &'a dyn Summaries,
    /// The point that is followed is removed: what is gone of it is no damage.
    removed: bool,
    marks: Marks,
    /// Nodes at and above the level of summaries that were followed.
    seen: HashSet<ChunkId>,
    /// Summaries made, to be remembered.
    fresh: Vec<(ChunkId, Summary)>,
}

impl Marker<'_> {
    /// Marks a subtree whose root stands at `level`.
    fn tree(&mut self, root: ChunkId, level: u8) -> Result<()> {
        let mut stack = vec![(root, level)];
        while !stack.is_empty() {
            let some = stack.split_off(stack.len().saturating_sub(NODES));
            let mut own = Summary::default();
            for (id, level) in some {
                if !self.seen.insert(id) {
                    continue;
                }
                if level <= SUMMED_LEVEL {
                    match self.summary(id, level) {
                        Err(_) if planted(Fault::DamagedNodeSkipped) => {}
                        summary => self.marks.apply(&summary?.0),
                    }
                    continue;
                }
                if self.add_node(id, &mut own)? == Found::Nowhere {
                    continue;
                }
                let here = node(self.repo, id, level)?;
                stack.extend(here.slots().iter().flatten().map(|id| (*id, level - 1)));
            }
            self.marks.apply(&own);
        }
        Ok(())
    }

    /// Everything a small subtree needs, its root included; and whether it lacks nothing.
    fn summary(&mut self, root: ChunkId, level: u8) -> Result<(Summary, bool)> {
        let holds = |s: &Summary| s.packs().all(|(pack, _)| self.usable.contains(pack));
        if let Some(summary) = self.known.get(root).filter(holds) {
            return Ok((summary, true));
        }
        let mut summary = Summary::default();
        let found = self.add_node(root, &mut summary)?;
        if found == Found::Nowhere {
            return Ok((summary, false));
        }
        let here = node(self.repo, root, level)?;
        let slots: Vec<ChunkId> = here.slots().iter().flatten().copied().collect();
        let rescued_will_do = planted(Fault::QuarantinedTakenForWhole);
        let mut whole = found == Found::InPack || rescued_will_do;
        if level == 0 {
            for (id, found) in slots.iter().zip(self.locate(&slots)?) {
                match found {
                    Some(l) => summary.add(&l),
                    None => {
                        whole = false;
                        // Of a removed point some may be gone, but what is in quarantine must stay.
                        if !self.removed || self.in_quarantine(*id)? {
                            self.marks.missing.insert(*id);
                        }
                    }
                }
            }
        } else {
            for id in slots {
                let (below, all) = self.summary(id, level - 1)?;
                summary.extend(&below);
                whole &= all;
            }
        }
        summary.settle();
        // One that lacks something, or lies where it should not, is found anew the next time.
        if whole && summary.packs().all(|(pack, _)| self.usable.contains(pack)) {
            self.fresh.push((root, summary.clone()));
            if self.fresh.len() >= SUMMARIES {
                self.known.put(std::mem::take(&mut self.fresh));
            }
        }
        Ok((summary, whole))
    }

    /// Adds a node, and tells where it is.
    fn add_node(&mut self, id: ChunkId, summary: &mut Summary) -> Result<Found> {
        match self.locate(&[id])?.pop().flatten() {
            Some(location) => {
                summary.add(&location);
                Ok(Found::InPack)
            }
            // Its pack stays as long as the node is nowhere else.
            None if self.in_quarantine(id)? => {
                self.marks.missing.insert(id);
                Ok(Found::InQuarantine)
            }
            None if self.removed => {
                self.marks.gone.insert(id);
                Ok(Found::Nowhere)
            }
            None => {
                let text = format!("image-tree node {id} is in no pack of this repository");
                Err(Error::new(ErrorKind::Damaged, text))
            }
        }
    }

    /// Whether a chunk can be read from a copy that counts as absent.
    fn in_quarantine(&self, id: ChunkId) -> Result<bool> {
        Ok(self.repo.quarantine().rescue(self.repo, id)?.is_some())
    }

    fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkLocation>>> {
        let mut found = Vec::new();
        self.index.get_many(ids, self.avoid, &mut found)?;
        // Only in a condemned pack: then that pack is needed.
        let left: Vec<usize> = (0..ids.len()).filter(|&i| found[i].is_none()).collect();
        if !left.is_empty() && !self.avoid.is_empty() {
            let again: Vec<ChunkId> = left.iter().map(|&i| ids[i]).collect();
            let mut second = Vec::new();
            self.index.get_many(&again, &PackSet::new(), &mut second)?;
            for (i, l) in left.into_iter().zip(second) {
                found[i] = l;
            }
        }
        Ok(found)
    }
}
