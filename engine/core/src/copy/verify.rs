//! Reading a copy back, and comparing it with its source.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;

use super::disk::StoredDisk;
use crate::backup::feed::{Feed, FeedDisk, Segment, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::ranges::Ranges;
use crate::workers::{self, Stop};

/// The two sides of a disk, and what of it was written (`None`: all of it).
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) source: Arc<StoredDisk>,
    pub(super) copy: StoredDisk,
    pub(super) written: Option<Ranges>,
}

struct Job<'a> {
    pairs: &'a [Pair<'a>],
    feed: Feed,
    monitor: &'a dyn Monitor,
}

/// Compares what was written, byte for byte; both sides come from their storages. Returns the
/// bytes compared. `chunk_bytes` is the size of the copy's chunks.
pub(super) fn all(
    pairs: &[Pair<'_>],
    chunk_bytes: u32,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let disk = |pair: &Pair<'_>| FeedDisk {
        device: Arc::clone(&pair.source) as Arc<dyn BlockDevice>,
        read: pair.written.clone(),
    };
    let feed = Feed::new(pairs.iter().map(disk).collect(), chunk_bytes);
    let job = Job { pairs, feed, monitor };
    workers::run(workers, |stop| job.segments(stop), |sum, n| *sum += n, || ())
}

impl Job<'_> {
    fn segments(&self, stop: &Stop) -> Result<u64> {
        let mut compared = 0;
        let mut buffers = (Vec::new(), Vec::new());
        while !stop.is_set() {
            if self.monitor.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the copy was cancelled"));
            }
            let Some(segment) = self.feed.next()? else { break };
            let pair = self.pairs.get(segment.disk).ok_or_else(gone)?;
            compared += pair
                .segment(segment, &mut buffers)
                .map_err(|e| e.within(format!("the copy of disk {} is not good", pair.name)))?;
            self.monitor.add_bytes(segment.len);
        }
        Ok(compared)
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Invalid, "a segment of a disk that is not there")
}

fn differs(at: u64) -> Error {
    let text = format!("at byte {at} it reads otherwise than its source");
    Error::new(ErrorKind::Damaged, text)
}

impl Pair<'_> {
    /// Compares one segment; returns the bytes read back.
    fn segment(&self, segment: Segment, buffers: &mut (Vec<u8>, Vec<u8>)) -> Result<u64> {
        let Segment { offset, len, task, .. } = segment;
        match task {
            Task::Keep => Ok(0),
            Task::Hole => {
                // A hole of whole chunks of the copy, so it must be one there too.
                let first = self.copy.extents(offset, len, 1)?;
                let whole = first.first().is_some_and(|e| {
                    e.kind.is_zero() && e.len_bytes == len && e.offset_bytes == offset
                });
                if whole { Ok(0) } else { Err(differs(offset)) }
            }
            Task::Data => {
                let len = usize::try_from(len).map_err(|_| gone())?;
                let (theirs, ours) = buffers;
                theirs.resize(len.max(theirs.len()), 0);
                ours.resize(len.max(ours.len()), 0);
                let (theirs, ours) = (&mut theirs[..len], &mut ours[..len]);
                self.source.read_at(offset, theirs)?;
                self.copy.read_at(offset, ours)?;
                if theirs == ours {
                    return Ok(segment.len);
                }
                let at = theirs.iter().zip(ours).position(|(a, b)| a != b).unwrap_or(0);
                Err(differs(offset + at as u64))
            }
        }
    }
}
