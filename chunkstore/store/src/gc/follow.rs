//! Following many small subtrees at once, level by level: their nodes are read together, and what
//! they refer to is looked up in the order of the index, by all processors.
//!
//! It answers only where nothing is amiss. What is missing, damaged or elsewhere than it should be
//! is left to [`super::mark`], which follows one subtree at a time and can tell what is wrong.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;

use backstay_format::node::Node;
use backstay_format::{ChunkId, PackId};

use crate::error::Result;
use crate::index::{ChunkIndex, ChunkLocation, PackSet};
use crate::read::nodes_afresh;
use crate::repository::Inner;

use super::summary::{Summaries, Summary};

/// Ids in one lookup: the index is held for some ten milliseconds, and neighbours share blocks.
const LOOKUP: usize = 8192;
/// Fewer nodes or lookups than these are not worth a thread.
const NODES_A_THREAD: usize = 64;
const LOOKUPS_A_THREAD: usize = 4096;
/// More threads would only wait for the index.
const THREADS_MAX: usize = 8;

/// What subtrees need, as far as it could be told.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// In the order asked; nothing for a subtree that must be followed by itself.
    pub(super) summaries: Vec<Option<Summary>>,
    /// Those that were not known before, of the subtrees and of all below them.
    pub(super) fresh: Vec<(ChunkId, Summary)>,
}

/// Follows subtrees of points that are not removed.
pub(super) struct Follower<'a> {
    pub(super) repo: &'a Inner,
    pub(super) index: &'a dyn ChunkIndex,
    pub(super) avoid: &'a PackSet,
    /// Packs that are present and not to be avoided.
    pub(super) usable: &'a HashSet<PackId>,
    pub(super) known: &'a dyn Summaries,
}

impl Follower<'_> {
    /// What the subtrees need whose roots, all different, stand at `level`. An error says nothing
    /// about any single one of them.
    pub(super) fn follow(&self, roots: &[ChunkId], level: u8) -> Result<Followed> {
        let summaries = in_parts(roots, LOOKUPS_A_THREAD, |part| {
            Ok(part.iter().map(|root| self.known(*root)).collect())
        })?;
        let mut out = Followed { summaries, fresh: Vec::new() };
        let new: Vec<usize> = (0..roots.len()).filter(|&i| out.summaries[i].is_none()).collect();
        let ids: Vec<ChunkId> = new.iter().map(|&i| roots[i]).collect();
        let places = self.locate(&ids)?;
        // A node that is in no pack makes no summary below; only those that are there are read.
        let there: Vec<usize> = (0..ids.len()).filter(|&n| places[n].is_some()).collect();
        let wanted: Vec<ChunkId> = there.iter().map(|&n| ids[n]).collect();
        let nodes = in_parts(&wanted, NODES_A_THREAD, |part| nodes_afresh(self.repo, part, level))?;
        let below = if level == 0 {
            self.chunks(&nodes)?
        } else {
            self.subtrees(&nodes, level - 1, &mut out.fresh)?
        };
        for (&n, summary) in there.iter().zip(below) {
            let (Some(mut summary), Some(place)) = (summary, places[n]) else { continue };
            summary.add(&place);
            summary.settle();
            if summary.packs().all(|(pack, _)| self.usable.contains(pack)) {
                out.fresh.push((ids[n], summary.clone()));
                out.summaries[new[n]] = Some(summary);
            }
        }
        Ok(out)
    }

    /// A summary made by an earlier collection that still holds.
    pub(super) fn known(&self, root: ChunkId) -> Option<Summary> {
        let holds = |s: &Summary| s.packs().all(|(pack, _)| self.usable.contains(pack));
        self.known.get(root).filter(holds)
    }

    /// The same of a group of disks.
    pub(super) fn known_group(&self, key: ChunkId) -> Option<Summary> {
        let holds = |s: &Summary| s.packs().all(|(pack, _)| self.usable.contains(pack));
        self.known.get_group(key).filter(holds)
    }

    /// What nodes of the lowest level need; nothing for one that refers to a chunk in no pack.
    fn chunks(&self, nodes: &[Node]) -> Result<Vec<Option<Summary>>> {
        let slots = |node: &Node| node.slots().iter().flatten().copied().collect::<Vec<_>>();
        let ids: Vec<ChunkId> = nodes.iter().flat_map(slots).collect();
        let places = self.locate(&ids)?;
        let mut rest = places.as_slice();
        let mut summaries = Vec::with_capacity(nodes.len());
        for node in nodes {
            let (own, after) = rest.split_at(node.slots().iter().flatten().count());
            rest = after;
            let mut summary = Summary::default();
            own.iter().flatten().for_each(|l| summary.add(l));
            summaries.push(own.iter().all(Option::is_some).then_some(summary));
        }
        Ok(summaries)
    }

    /// What nodes need whose slots stand at `level`; nothing for one with a subtree that must be
    /// followed by itself.
    fn subtrees(
        &self,
        nodes: &[Node],
        level: u8,
        fresh: &mut Vec<(ChunkId, Summary)>,
    ) -> Result<Vec<Option<Summary>>> {
        let mut numbers = HashMap::new();
        let mut roots = Vec::new();
        for id in nodes.iter().flat_map(|node| node.slots().iter().flatten()) {
            numbers.entry(*id).or_insert_with(|| {
                roots.push(*id);
                roots.len() - 1
            });
        }
        let below = self.follow(&roots, level)?;
        fresh.extend(below.fresh);
        let sum = |node: &Node| {
            let mut summary = Summary::default();
            for id in node.slots().iter().flatten() {
                summary.extend(below.summaries[numbers[id]].as_ref()?);
            }
            Some(summary)
        };
        Ok(nodes.iter().map(sum).collect())
    }

    /// Where each chunk lies: outside of `avoid`, or else anywhere.
    pub(super) fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkLocation>>> {
        // By the first bytes alone: quicker to sort, and the index puts equal ones right.
        let place = |(i, id): (usize, &ChunkId)| {
            let first = id.as_bytes().first_chunk().copied().unwrap_or_default();
            (u64::from_be_bytes(first), i)
        };
        let mut order: Vec<(u64, usize)> = ids.iter().enumerate().map(place).collect();
        order.sort_unstable();
        let sorted: Vec<ChunkId> = order.iter().map(|&(_, i)| ids[i]).collect();
        let found = in_parts(&sorted, LOOKUPS_A_THREAD, |part| {
            let mut found = Vec::with_capacity(part.len());
            for ids in part.chunks(LOOKUP) {
                found.extend(self.look_up(ids)?);
            }
            Ok(found)
        })?;
        let mut out = vec![None; ids.len()];
        for ((_, i), location) in order.into_iter().zip(found) {
            out[i] = location;
        }
        Ok(out)
    }

    fn look_up(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkLocation>>> {
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

/// Does the work in one part a processor, each of at least so many items; the answers in order.
fn in_parts<T: Sync, R: Send>(
    items: &[T],
    least: usize,
    work: impl Fn(&[T]) -> Result<Vec<R>> + Sync,
) -> Result<Vec<R>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
    let parts = threads.min(items.len() / least.max(1));
    if parts < 2 {
        return work(items);
    }
    let (first, others) = items.split_at(items.len().div_ceil(parts));
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = others
            .chunks(items.len().div_ceil(parts))
            .map(|part| (part, std::thread::Builder::new().spawn_scoped(scope, || work(part))))
            .collect();
        let mut out = work(first)?;
        for (part, thread) in others {
            out.extend(match thread {
                Ok(thread) => match thread.join() {
                    Ok(done) => done?,
                    Err(panic) => std::panic::resume_unwind(panic),
                },
                // No more threads are to be had.
                Err(_) => work(part)?,
            });
        }
        Ok(out)
    })
}
