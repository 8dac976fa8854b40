use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_format::point::RecoveryPoint;
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkIndex, ChunkLocation, PackSet};
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::read::node;
use crate::repository::Inner;

/// Ids looked up at once.
const BATCH: usize = 4096;
/// Nodes taken from the stack at once.
const NODES: usize = 256;

/// Which entries of which packs are needed: one bit an entry, so that a hundred million chunks take
/// some twelve megabytes.
#[derive(Debug, Default)]
pub(super) struct Marks {
    packs: HashMap<PackId, PackMarks>,
    references: u64,
    missing: HashSet<ChunkId>,
}

/// The needed entries of one pack.
#[derive(Debug, Default)]
pub(super) struct PackMarks {
    bits: Vec<u64>,
    bytes: u64,
}

impl PackMarks {
    /// Their bytes as stored.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
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

    /// Whether this copy of a chunk is the one that is needed.
    pub(super) fn has(&self, l: &ChunkLocation) -> bool {
        self.packs.get(&l.pack).is_some_and(|p| p.has(l.number))
    }

    /// Marks a copy; tells whether it is marked for the first time.
    fn set(&mut self, l: &ChunkLocation) -> bool {
        let pack = self.packs.entry(l.pack).or_default();
        let (word, bit) = (l.number as usize / 64, l.number % 64);
        if pack.bits.len() <= word {
            pack.bits.resize(word + 1, 0);
        }
        if pack.bits[word] >> bit & 1 == 1 {
            return false;
        }
        pack.bits[word] |= 1 << bit;
        pack.bytes += u64::from(l.stored_len);
        true
    }
}

/// Marks everything that `points` need. Of several copies of a chunk one is marked, outside of
/// `avoid` if there is one.
///
/// A subtree is walked once, however many points share it. A node that cannot be read is an error:
/// what hangs below it is not known.
pub(super) fn mark(
    repo: &Inner,
    points: &[Arc<RecoveryPoint>],
    avoid: &PackSet,
    progress: &dyn Progress,
) -> Result<Marks> {
    let index = repo.index()?;
    let mut marker =
        Marker { repo, index: &*index, avoid, marks: Marks::default(), leaves: Vec::new() };
    progress.total("points", points.len() as u64);
    for point in points {
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
    marker.flush()?;
    Ok(marker.marks)
}

struct Marker<'a> {
    repo: &'a Inner,
    index: &'a dyn ChunkIndex,
    avoid: &'a PackSet,
    marks: Marks,
    /// Data chunks to be looked up.
    leaves: Vec<ChunkId>,
}

impl Marker<'_> {
    /// Marks a subtree whose root stands at `level`.
    fn tree(&mut self, root: ChunkId, level: u8) -> Result<()> {
        let mut stack = vec![(root, level)];
        while !stack.is_empty() {
            let some = stack.split_off(stack.len().saturating_sub(NODES));
            for (id, level) in self.unmarked(&some)? {
                let here = match node(self.repo, id, level) {
                    Err(_) if planted(Fault::DamagedNodeSkipped) => continue,
                    here => here?,
                };
                let slots = here.slots().iter().flatten();
                if level == 0 {
                    self.leaves.extend(slots);
                    if self.leaves.len() >= BATCH {
                        self.flush()?;
                    }
                } else {
                    stack.extend(slots.map(|id| (*id, level - 1)));
                }
            }
        }
        Ok(())
    }

    /// Marks nodes; returns those that were not marked before.
    fn unmarked(&mut self, nodes: &[(ChunkId, u8)]) -> Result<Vec<(ChunkId, u8)>> {
        let ids: Vec<ChunkId> = nodes.iter().map(|(id, _)| *id).collect();
        self.marks.references += ids.len() as u64;
        let found = self.locate(&ids)?;
        let mut fresh = Vec::new();
        for (node, location) in nodes.iter().zip(found) {
            let Some(location) = location else {
                if planted(Fault::DamagedNodeSkipped) {
                    continue;
                }
                let text = format!("image-tree node {} is in no pack of this repository", node.0);
                return Err(Error::new(ErrorKind::Damaged, text));
            };
            if self.marks.set(&location) {
                fresh.push(*node);
            }
        }
        Ok(fresh)
    }

    /// Marks the data chunks that were collected.
    fn flush(&mut self) -> Result<()> {
        let ids = std::mem::take(&mut self.leaves);
        self.marks.references += ids.len() as u64;
        let found = self.locate(&ids)?;
        for (id, location) in ids.iter().zip(found) {
            match location {
                Some(l) => _ = self.marks.set(&l),
                None => _ = self.marks.missing.insert(*id),
            }
        }
        Ok(())
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
