use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::read::node;
use crate::repository::{Inner, is_gone};

use super::follow::Follower;
use super::is_missing;
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
/// Disks are summed up in groups of about so many; the border is drawn by what the disks hold, so
/// that one more or one less changes one group.
const GROUP: u8 = 8;
/// The largest group.
const GROUP_MAX: usize = 32;

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

    /// The same as a summary.
    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (pack, marks) in &self.packs {
            let words = marks.bits.iter().enumerate().filter(|(_, word)| **word != 0);
            for (at, word) in words {
                for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                    summary.add_entry(*pack, (at * 64 + bit) as u32);
                }
            }
        }
        summary
    }

    /// Takes over what other marks say.
    fn join(&mut self, other: Marks) {
        for (pack, marks) in other.packs {
            let own = self.packs.entry(pack).or_default();
            if own.bits.len() < marks.bits.len() {
                own.bits.resize(marks.bits.len(), 0);
            }
            own.bits.iter_mut().zip(marks.bits).for_each(|(own, word)| *own |= word);
        }
        self.references += other.references;
        self.missing.extend(other.missing);
        self.gone.extend(other.gone);
    }

    fn apply(&mut self, summary: &Summary) {
        for (pack, runs) in summary.packs() {
            let marks = self.packs.entry(*pack).or_default();
            for r in runs {
                let end = (r.start + r.len) as usize;
                if marks.bits.len() * 64 < end {
                    marks.bits.resize(end.div_ceil(64), 0);
                }
                set_bits(&mut marks.bits, r.start as usize, end);
                self.references += u64::from(r.len);
            }
        }
    }
}

/// Marks everything that the points of `roots` need. Of several copies of a chunk one is marked, outside of
/// `avoid` if there is one.
///
/// Disks are walked in groups. A group that `known` has a summary of costs one lookup; of the others
/// each subtree is walked once, and one with a summary is not followed at all. A node that cannot be read is an error: what hangs below it is not
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
    let mut groups = Vec::new();
    for group in groups_of(&roots.points) {
        marker.group(&group, progress)?;
        groups.push(key_of(&group));
    }
    known.keep_groups(&groups);
    marker.seen.clear();
    marker.removed = !planted(Fault::LateHoldTakenForDamage);
    for point in &roots.held {
        for disk in &point.disks {
            marker.disk(point, disk, progress)?;
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

/// Sets the bits from `start` up to `end`, a word at a time.
fn set_bits(words: &mut [u64], start: usize, end: usize) {
    let mut at = start;
    while at < end {
        let stop = end.min((at / 64 + 1) * 64);
        let ones = u64::MAX >> (64 - (stop - at));
        words[at / 64] |= ones << (at % 64);
        at = stop;
    }
}

/// A disk of a point; the last of each point counts it.
struct Member<'a> {
    point: &'a RecoveryPoint,
    disk: &'a DiskRecord,
    counts: u64,
}

/// The disks of all points in groups.
fn groups_of(points: &[Arc<RecoveryPoint>]) -> Vec<Vec<Member<'_>>> {
    let mut groups: Vec<Vec<Member<'_>>> = vec![Vec::new()];
    for point in points {
        let last = point.disks.len().saturating_sub(1);
        for (i, disk) in point.disks.iter().enumerate() {
            let border = disk.root.is_some_and(|root| root.as_bytes()[0] % GROUP == 0);
            if let Some(group) = groups.last_mut() {
                group.push(Member { point, disk, counts: u64::from(i == last) });
                if border || group.len() >= GROUP_MAX {
                    groups.push(Vec::new());
                }
            }
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// What a group's summary is remembered by: the same for the same trees.
fn key_of(group: &[Member<'_>]) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"a group of disks");
    for root in group.iter().filter_map(|member| member.disk.root) {
        hasher.update(root.as_bytes());
    }
    ChunkId::from_bytes(*hasher.finalize().as_bytes())
}

fn check(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() {
        return Err(Error::new(ErrorKind::Aborted, "the collection was stopped"));
    }
    Ok(())
}

struct Marker<'a> {
    repo: &'a Inner,
    follower: Follower<'a>,
    known: &'a dyn Summaries,
    /// The point that is followed is removed: what is gone of it is no damage.
    removed: bool,
    marks: Marks,
    /// Nodes at and above the level of summaries that were followed for this group.
    seen: HashSet<ChunkId>,
    /// Summaries made, to be remembered.
    fresh: Vec<(ChunkId, Summary)>,
}

impl Marker<'_> {
    /// Marks what a group of disks needs: without a look at any of them if it is known.
    fn group(&mut self, group: &[Member<'_>], progress: &dyn Progress) -> Result<()> {
        let key = key_of(group);
        if let Some(summary) = self.follower.known_group(key) {
            self.marks.apply(&summary);
            progress.add("points", group.iter().map(|member| member.counts).sum());
            return check(progress);
        }
        let mut members: Vec<&Member<'_>> = group.iter().collect();
        let own = loop {
            // By itself: what it shares with the others is part of what it needs.
            self.seen.clear();
            let others = std::mem::take(&mut self.marks);
            let done = members.iter().try_for_each(|m| self.disk(m.point, m.disk, progress));
            // The next group may need them.
            self.known.put(std::mem::take(&mut self.fresh));
            let own = std::mem::replace(&mut self.marks, others);
            let amiss = match &done {
                Ok(()) => !own.missing.is_empty(),
                Err(e) => is_missing(e),
            };
            if amiss && self.drop_gone(&mut members)? {
                continue;
            }
            done?;
            break own;
        };
        if own.missing.is_empty() && members.len() == group.len() {
            let summary = own.summary();
            if summary.packs().all(|(pack, _)| self.follower.usable.contains(pack)) {
                self.known.put_group(key, &summary);
            }
        }
        self.marks.join(own);
        progress.add("points", group.iter().map(|member| member.counts).sum());
        Ok(())
    }

    /// Leaves out disks of points that are not there any more: buried by another collector, and in
    /// the place of one there may be a fence that came too late. Tells whether there were any.
    fn drop_gone(&self, members: &mut Vec<&Member<'_>>) -> Result<bool> {
        if planted(Fault::GonePointsFollowed) {
            return Ok(false);
        }
        let before = members.len();
        let mut left = Vec::with_capacity(before);
        for &member in members.iter() {
            if !is_gone(self.repo, member.point.id)? {
                left.push(member);
            }
        }
        *members = left;
        Ok(members.len() < before)
    }

    /// Marks what a disk needs.
    fn disk(
        &mut self,
        point: &RecoveryPoint,
        disk: &DiskRecord,
        progress: &dyn Progress,
    ) -> Result<()> {
        check(progress)?;
        let Some(root) = disk.root else { return Ok(()) };
        self.tree(root, disk.levels.saturating_sub(1)).map_err(|e| {
            e.context(format!(
                "disk {} of {} at {} cannot be followed, so nothing is deleted; repair the point \
                 {} or remove it first",
                disk.name,
                point.machine,
                point.time,
                point.id.short()
            ))
        })
    }

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
                if self.add_node(id, &mut own)? == Found::Nowhere {
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
        let found = self.add_node(root, &mut summary)?;
        if found == Found::Nowhere {
            return Ok((summary, false));
        }
        let here = node(self.repo, root, level)?;
        let slots: Vec<ChunkId> = here.slots().iter().flatten().copied().collect();
        let rescued_will_do = planted(Fault::QuarantinedTakenForWhole);
        let mut whole = found == Found::InPack || rescued_will_do;
        if level == 0 {
            for (id, found) in slots.iter().zip(self.follower.locate(&slots)?) {
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
        if whole && summary.packs().all(|(pack, _)| self.follower.usable.contains(pack)) {
            self.remember(vec![(root, summary.clone())]);
        }
        Ok((summary, whole))
    }

    /// Adds a node, and tells where it is.
    fn add_node(&mut self, id: ChunkId, summary: &mut Summary) -> Result<Found> {
        match self.follower.locate(&[id])?.pop().flatten() {
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
}

#[cfg(test)]
mod tests {
    use super::set_bits;

    #[test]
    fn bits_are_set_as_one_by_one() {
        for start in 0..140 {
            for end in start..200 {
                let (mut quick, mut plain) = ([0u64; 4], [0u64; 4]);
                set_bits(&mut quick, start, end);
                (start..end).for_each(|n| plain[n / 64] |= 1 << (n % 64));
                assert_eq!(quick, plain, "{start}..{end}");
            }
        }
    }
}
