//! Chains of clusters: where the bytes of a file are.

use super::boot::Boot;
use super::table::{Next, Walk};
use crate::{Error, Media};

/// Every so many clusters their number is kept, to begin there.
const STEP: u64 = 1024;

/// The clusters of a file: each [`STEP`]th of them.
#[derive(Debug)]
pub(super) struct Chain {
    marks: Box<[u32]>,
    clusters: u64,
}

/// Clusters side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Counted from the file's start.
    pub(super) index: u64,
    pub(super) cluster: u32,
    pub(super) clusters: u64,
}

impl Chain {
    /// Follows the chain from `first` on for `wanted` clusters, or to its end without a number. At most `max` are taken.
    ///
    /// A chain that comes back to itself is found by Brent's way: a mark stays behind and is moved up at powers of two.
    pub(super) fn follow(
        media: &Media,
        boot: &Boot,
        first: u32,
        wanted: Option<u64>,
        max: u64,
        what: &str,
    ) -> Result<Self, Error> {
        let bad = |text: String| Error::damaged(format!("the clusters of {what}: {text}"));
        if wanted == Some(0) {
            return Ok(Self { marks: Box::default(), clusters: 0 });
        }
        if !boot.has(first) {
            return Err(bad(format!("the first would be {first}")));
        }
        let mut walk = Walk::new(media, boot);
        let (mut marks, mut at, mut count) = (vec![first], first, 1u64);
        let (mut behind, mut power) = (first, 1u64);
        loop {
            let next = match walk.next(at)? {
                Next::Cluster(next) => next,
                Next::End if wanted.is_none_or(|wanted| wanted <= count) => break,
                Next::End => return Err(bad(format!("they end after {count}"))),
                Next::Free => return Err(bad(format!("{at} is one of them, and free"))),
                Next::Wrong(next) => return Err(bad(format!("{at} is followed by {next}"))),
            };
            if next == behind || count > boot.clusters {
                return Err(bad(format!("they come back to {next}")));
            }
            if wanted.is_none() && count >= max {
                return Err(bad(format!("there are more than {max}")));
            }
            // What is behind the file's size is only followed to see that it ends.
            if wanted.is_none_or(|wanted| count < wanted) && count % STEP == 0 {
                marks.push(next);
            }
            if count == power {
                (behind, power) = (next, power * 2);
            }
            (at, count) = (next, count + 1);
        }
        let clusters = wanted.unwrap_or(count);
        Ok(Self { marks: marks.into(), clusters })
    }

    /// About what it takes in memory.
    pub(super) fn weight(&self) -> u64 {
        64 + self.marks.len() as u64 * 4
    }

    /// Runs from the cluster `index` on: `max` at most, and no further than `end`.
    pub(super) fn runs(
        &self,
        media: &Media,
        boot: &Boot,
        index: u64,
        end: u64,
        max: usize,
    ) -> Result<Vec<Run>, Error> {
        let end = end.min(self.clusters);
        let mut runs: Vec<Run> = Vec::new();
        let Some(mark) = self.marks.get((index / STEP) as usize).filter(|_| index < end) else {
            return Ok(runs);
        };
        let mut walk = Walk::new(media, boot);
        let (mut here, mut cluster) = (index / STEP * STEP, *mark);
        loop {
            if here >= index {
                let full = runs.len() >= max.max(1);
                match runs.last_mut() {
                    Some(last) if u64::from(last.cluster) + last.clusters == u64::from(cluster) => {
                        last.clusters += 1;
                    }
                    _ if full => return Ok(runs),
                    _ => runs.push(Run { index: here, cluster, clusters: 1 }),
                }
            }
            here += 1;
            if here >= end {
                return Ok(runs);
            }
            cluster = match walk.next(cluster)? {
                Next::Cluster(next) => next,
                other => {
                    let text = format!("cluster {cluster} is followed by {other:?}");
                    return Err(Error::damaged(text));
                }
            };
        }
    }
}
