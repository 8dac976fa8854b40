//! Whether the point that a session starts from can be built upon unseen.

use std::collections::{BTreeSet, HashSet};

use backstay_format::node::chunks_below;
use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::{ChunkId, ChunkIndex, ChunkSize, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::progress::Progress;
use crate::read::node;
use crate::repository::{Inner, check_present};

use super::WriteSession;

/// Subtrees remembered as whole, so that equal ones are walked once: 32 MiB of ids at most.
const SEEN_MAX: usize = 1 << 20;

impl WriteSession {
    /// The point the session builds upon: recognises unchanged chunks by, and keeps chunks of.
    pub fn base(&self) -> Option<&RecoveryPoint> {
        self.base.as_ref()
    }

    /// The size of the chunks it takes.
    pub fn chunk_size(&self) -> ChunkSize {
        self.repo.config().chunk_size
    }

    /// Builds upon `base`, which must be a point of this repository: disks started from now on can
    /// keep its chunks ([`crate::ImageWriter::keep`]). Free when every chunk of it is known to be
    /// there. If that is not known (another host made it, or packs vanished since), its trees are
    /// walked and all their chunks looked up, once: the index remembers. No data is read.
    /// `progress` counts `chunks` of its disks, holes included.
    ///
    /// `Damaged`: a chunk is missing; the session goes on as before. `Aborted`: as `progress` asked.
    /// `NotFound`: the base was removed. The session holds it from here on (LOCKS.md, W2).
    pub fn trust_base(&mut self, base: &RecoveryPoint, progress: &dyn Progress) -> Result<()> {
        if self.held != Some(base.id) {
            self.lease.hold_also(base.id)?;
            check_present(&self.repo, base.id)?;
            self.held = Some(base.id);
        }
        if !self.repo.index()?.is_complete(base.id) {
            verify(&self.repo, base, progress)?;
        }
        self.base = Some(base.clone());
        Ok(())
    }
}

/// Looks every chunk of a point up and notes that all are there.
fn verify(repo: &Inner, point: &RecoveryPoint, progress: &dyn Progress) -> Result<()> {
    repo.synchronise()?;
    let index = repo.index()?;
    let packs = || -> BTreeSet<PackId> { index.packs().into_iter().map(|(id, _)| id).collect() };
    let before = packs();
    let known_bad = repo.quarantine().version();
    let count = |d: &DiskRecord| repo.config().chunk_size.chunk_count(d.size_bytes);
    progress.total("chunks", point.disks.iter().map(count).sum());
    let mut seen = HashSet::new();
    for disk in &point.disks {
        let mut walk = Walk { repo, progress, disk, seen: &mut seen };
        walk.disk()
            .map_err(|e| e.context(format!("disk '{}' of point {}", disk.name, point.id)))?;
    }
    // What was found early may have been in a pack that vanished since.
    repo.synchronise()?;
    if !before.is_subset(&packs()) || repo.quarantine().version() != known_bad {
        let text = "packs vanished, or were found bad, while the point was looked through";
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    index.set_complete(point.id)?;
    index.publish()
}

struct Walk<'a> {
    repo: &'a Inner,
    progress: &'a dyn Progress,
    disk: &'a DiskRecord,
    seen: &'a mut HashSet<ChunkId>,
}

impl Walk<'_> {
    fn disk(&mut self) -> Result<()> {
        let Some(root) = self.disk.root else {
            self.progress.add("chunks", self.within(0, self.disk.levels));
            return Ok(());
        };
        self.look_up(&[(0, root)], None)?;
        self.subtree(Some(root), self.disk.levels, 0)
    }

    /// Walks a subtree of `levels` levels from chunk `first` on, whose root was looked up. Depth is
    /// bounded by the levels of a tree, at most nine.
    fn subtree(&mut self, root: Option<ChunkId>, levels: u8, first: u64) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "stopped as asked"));
        }
        let within = self.within(first, levels);
        // The last subtree may end in a short chunk, so it is like none that is whole.
        let whole = within == chunks_below(levels);
        let Some(id) = root.filter(|id| !(whole && self.seen.contains(id))) else {
            self.progress.add("chunks", within);
            return Ok(());
        };
        let here = node(self.repo, id, levels - 1)?;
        let span = chunks_below(levels - 1);
        let slots = (0u64..).zip(here.slots());
        let filled: Vec<(u64, ChunkId)> = slots
            .clone()
            .filter_map(|(i, id)| Some((first.saturating_add(i * span), (*id)?)))
            .collect();
        if levels == 1 {
            self.look_up(&filled, Some(self.disk.size_bytes))?;
            self.progress.add("chunks", within);
        } else {
            // The nodes too, though they are read next: one may be remembered from a lost pack.
            self.look_up(&filled, None)?;
            for (i, slot) in slots {
                self.subtree(*slot, levels - 1, first.saturating_add(i * span))?;
            }
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        if whole {
            self.seen.insert(id);
        }
        Ok(())
    }

    /// Looks up what stands at some chunks of the disk; data chunks must be as long as their
    /// places on a disk of `size_bytes`.
    fn look_up(&self, filled: &[(u64, ChunkId)], size_bytes: Option<u64>) -> Result<()> {
        let ids: Vec<ChunkId> = filled.iter().map(|(_, id)| *id).collect();
        let mut found = Vec::new();
        self.repo.index()?.get_many(&ids, &PackSet::new(), &mut found)?;
        let size = self.repo.config().chunk_size;
        for ((place, id), location) in filled.iter().zip(found) {
            let len = size_bytes.map(|bytes| size.chunk_len(bytes, ChunkIndex(*place)));
            let why = match location {
                None => "is in no pack of this repository",
                Some(l) if len.is_some_and(|len| l.raw_len != len) => {
                    "has another length than its place"
                }
                Some(_) => continue,
            };
            let at = ChunkIndex(*place).offset(size);
            let text = format!("chunk {id}, at byte {at}, {why}");
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        Ok(())
    }

    /// Chunks of the disk below a subtree of `levels` levels that starts at chunk `first`.
    fn within(&self, first: u64, levels: u8) -> u64 {
        let count = self.repo.config().chunk_size.chunk_count(self.disk.size_bytes);
        count.saturating_sub(first).min(chunks_below(levels))
    }
}
