//! Clusters of a file: side by side, or as the table chains them (specification, section 4).

use super::boot::Boot;
use super::set::Stream;
use crate::{Error, Media};

/// Every so many clusters their number is kept, to begin there.
const STEP: u64 = 1024;
/// What is read of the table at once.
const PAGE_BYTES: u64 = 4096;
const END: u32 = 0xffff_ffff;

/// The clusters of a file that are chained: each [`STEP`]th of them.
#[derive(Debug)]
pub(super) struct Chain {
    marks: Box<[u32]>,
    clusters: u64,
    contiguous: bool,
}

/// Clusters side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Counted from the file's start.
    pub(super) index: u64,
    pub(super) cluster: u32,
    pub(super) clusters: u64,
}

/// Reads the table page by page, in one walk.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    media: &'a Media,
    boot: &'a Boot,
    page: Vec<u8>,
    page_at: Option<u64>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(media: &'a Media, boot: &'a Boot) -> Self {
        Self { media, boot, page: Vec::new(), page_at: None }
    }

    /// What follows `cluster`; `None` for the last.
    pub(super) fn next(&mut self, cluster: u32) -> Result<Option<u32>, Error> {
        let at = u64::from(cluster) * 4;
        let start = at / PAGE_BYTES * PAGE_BYTES;
        if self.page_at != Some(start) {
            self.page_at = None;
            let left = ((u64::from(self.boot.clusters) + 2) * 4).saturating_sub(start);
            let len = PAGE_BYTES.min(left) as usize;
            let what = "the file allocation table";
            self.page = self.media.bytes(self.boot.table + start, len, what)?;
            self.page_at = Some(start);
        }
        let entry = self.page.get((at - start) as usize..).and_then(|rest| rest.first_chunk());
        match entry.copied().map(u32::from_le_bytes) {
            Some(END) => Ok(None),
            Some(next) if self.boot.has(next) => Ok(Some(next)),
            other => {
                let text = format!("cluster {cluster} is followed by {other:x?} in the table");
                Err(Error::damaged(text))
            }
        }
    }
}

impl Chain {
    /// The clusters of a stream. `None` for its size: a directory without one (the root), of at most `max` bytes.
    ///
    /// A chain that comes back to itself is found by Brent's way: a mark stays behind and is moved up at powers of two.
    pub(super) fn follow(
        media: &Media,
        boot: &Boot,
        stream: &Stream,
        max: Option<u64>,
        what: &str,
    ) -> Result<Self, Error> {
        let bad = |text: String| Error::damaged(format!("the clusters of {what}: {text}"));
        let wanted = stream.size_bytes.div_ceil(boot.cluster_bytes);
        if max.is_none() && wanted == 0 {
            return Ok(Self { marks: Box::default(), clusters: 0, contiguous: true });
        }
        let first = stream.first;
        if !boot.has(first) || wanted > u64::from(boot.clusters) {
            return Err(bad(format!("{wanted} from {first} on")));
        }
        if stream.contiguous {
            if u64::from(first) - 2 + wanted > u64::from(boot.clusters) {
                return Err(bad(format!("{wanted} from {first} on go beyond the volume")));
            }
            return Ok(Self { marks: [first].into(), clusters: wanted, contiguous: true });
        }
        let limit = max.map(|max| max.div_ceil(boot.cluster_bytes));
        let mut walk = Walk::new(media, boot);
        let (mut marks, mut at, mut count) = (vec![first], first, 1u64);
        let (mut behind, mut power) = (first, 1u64);
        loop {
            let next = match walk.next(at)? {
                Some(next) => next,
                None if limit.is_some() || count >= wanted => break,
                None => return Err(bad(format!("they end after {count} of {wanted}"))),
            };
            if next == behind || count > u64::from(boot.clusters) {
                return Err(bad(format!("they come back to {next}")));
            }
            if limit.is_some_and(|limit| count >= limit) {
                return Err(bad(format!("there are more than {count}")));
            }
            // What is behind the file's size is only followed to see that it ends.
            if (limit.is_some() || count < wanted) && count % STEP == 0 {
                marks.push(next);
            }
            if count == power {
                (behind, power) = (next, power * 2);
            }
            (at, count) = (next, count + 1);
        }
        let clusters = if limit.is_some() { count } else { wanted };
        Ok(Self { marks: marks.into(), clusters, contiguous: false })
    }

    /// How many there are.
    pub(super) fn clusters(&self) -> u64 {
        self.clusters
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
        (index, end): (u64, u64),
        max: usize,
    ) -> Result<Vec<Run>, Error> {
        let end = end.min(self.clusters);
        let mut runs: Vec<Run> = Vec::new();
        if index >= end {
            return Ok(runs);
        }
        let mark = if self.contiguous { 0 } else { index / STEP };
        let Some(mut cluster) = self.marks.get(mark as usize).copied() else { return Ok(runs) };
        if self.contiguous {
            let cluster = cluster.saturating_add(index as u32);
            return Ok(vec![Run { index, cluster, clusters: end - index }]);
        }
        let (mut walk, mut here) = (Walk::new(media, boot), mark * STEP);
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
            cluster = walk.next(cluster)?.ok_or_else(|| {
                Error::damaged(format!("the chain ends with cluster {cluster}, too early"))
            })?;
        }
    }
}
