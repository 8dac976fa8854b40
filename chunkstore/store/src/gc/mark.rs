use std::collections::{HashMap, HashSet};

use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::read::node;
use crate::repository::Inner;

use super::follow::Follower;
use super::roots::Roots;
use super::summary::{Summaries, Summary};

/// Nodes taken from the stack at once.
const NODES: usize = 256;
/// Subtrees followed at once: a quarter of a million chunks, some fifty megabytes of memory.
const SUBTREES: usize = 64;
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
    let usable: HashSet<PackId> = usable.collect();
    let mut marker = Marker {
        repo,
        follower: Follower { repo, index: &*index, avoid, usable: &usable, known },
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

struct Marker<'a> {
    repo: &'a Inner,
    follower: Follower<'a>,
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
        let mut small = Vec::new();
        while !stack.is_empty() {
            let some = stack.split_off(stack.len().saturating_sub(NODES));
            let mut own = Summary::default();
            for (id, level) in some {
                if !self.seen.insert(id) {
                    continue;
                }
                if level <= SUMMED_LEVEL {
                    // A disk has either one such root, or all of them at the same level.
                    small.push(id);
                    if small.len() >= SUBTREES {
                        self.small(&std::mem::take(&mut small), level)?;
                    }
                    continue;
                }
                if !self.add_node(id, &mut own)? {
                    continue;
                }
                let here = node(self.repo, id, level)?;
                stack.extend(here.slots().iter().flatten().map(|id| (*id, level - 1)));
            }
            self.marks.apply(&own);
        }
        self.small(&small, level.min(SUMMED_LEVEL))
    }

    /// Marks small subtrees whose roots stand at `level`.
    fn small(&mut self, roots: &[ChunkId], level: u8) -> Result<()> {
        // One by one where a node may be gone, and where following all at once failed: that tells
        // which subtree is amiss.
        let followed = if self.removed { None } else { self.follower.follow(roots, level).ok() };
        let followed = followed.unwrap_or_default();
        self.remember(followed.fresh);
        let mut summaries = followed.summaries.into_iter();
        for root in roots {
            if let Some(summary) = summaries.next().flatten() {
                self.marks.apply(&summary);
                continue;
            }
            match self.summary(*root, level) {
                Err(_) if planted(Fault::DamagedNodeSkipped) => {}
                summary => self.marks.apply(&summary?.0),
            }
        }
        Ok(())
    }

    fn remember(&mut self, fresh: Vec<(ChunkId, Summary)>) {
        self.fresh.extend(fresh);
        if self.fresh.len() >= SUMMARIES {
            self.known.put(std::mem::take(&mut self.fresh));
        }
    }

    /// Everything a small subtree needs, its root included; and whether it lacks nothing.
    fn summary(&mut self, root: ChunkId, level: u8) -> Result<(Summary, bool)> {
        if let Some(summary) = self.follower.known(root) {
            return Ok((summary, true));
        }
        let mut summary = Summary::default();
        if !self.add_node(root, &mut summary)? {
            return Ok((summary, false));
        }
        let here = node(self.repo, root, level)?;
        let slots: Vec<ChunkId> = here.slots().iter().flatten().copied().collect();
        let mut whole = true;
        if level == 0 {
            for (id, found) in slots.iter().zip(self.follower.locate(&slots)?) {
                match found {
                    Some(l) => summary.add(&l),
                    None => {
                        whole = false;
                        if !self.removed {
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
        if whole && summary.packs().all(|(pack, _)| self.follower.usable.contains(pack)) {
            self.remember(vec![(root, summary.clone())]);
        }
        Ok((summary, whole))
    }

    /// Adds a node; false if it is gone, as nodes of a removed point may be.
    fn add_node(&mut self, id: ChunkId, summary: &mut Summary) -> Result<bool> {
        match self.follower.locate(&[id])?.pop().flatten() {
            Some(location) => summary.add(&location),
            None if self.removed => {
                self.marks.gone.insert(id);
                return Ok(false);
            }
            None => {
                let text = format!("image-tree node {id} is in no pack of this repository");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
        }
        Ok(true)
    }
}
