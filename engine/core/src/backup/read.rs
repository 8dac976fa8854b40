//! The workers of a backup: each takes a segment, reads it and hands it to the store, which hashes,
//! looks up, compresses and seals it in the same thread. Memory is one buffer for each worker.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use backstay_store::{ChunkSize, ImageWriter, WriteScratch};

use super::feed::{Feed, FeedDisk, Segment, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::workers::{self, Stop};

/// What all workers together did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) read_bytes: u64,
    pub(crate) hole_bytes: u64,
    /// Taken over from the base unread.
    pub(crate) kept_bytes: u64,
    pub(crate) new_chunks: u64,
    pub(crate) known_chunks: u64,
    pub(crate) zero_chunks: u64,
}

/// Where the bytes of a disk go. Its device is at the same position in the feed.
pub(crate) struct Target<'a> {
    pub(crate) name: &'a str,
    pub(crate) writer: &'a ImageWriter,
}

struct Job<'a> {
    targets: &'a [Target<'a>],
    sources: Vec<Arc<dyn BlockDevice>>,
    chunk_size: ChunkSize,
    feed: Feed,
    monitor: &'a dyn Monitor,
}

/// Reads all disks with `workers` threads. The first error ends all of them and is returned.
pub(crate) fn all(
    targets: &[Target<'_>],
    disks: Vec<FeedDisk>,
    chunk_size: ChunkSize,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Done> {
    let sources = disks.iter().map(|d| d.device.clone()).collect();
    let feed = Feed::new(disks, chunk_size.bytes());
    let job = Job { targets, sources, chunk_size, feed, monitor };
    workers::run(workers, |stop| job.segments(stop), Done::add, || ())
}

impl Done {
    fn add(&mut self, more: Done) {
        self.read_bytes += more.read_bytes;
        self.hole_bytes += more.hole_bytes;
        self.kept_bytes += more.kept_bytes;
        self.known_chunks += more.known_chunks;
        self.zero_chunks += more.zero_chunks;
        self.new_chunks += more.new_chunks;
    }
}

impl Job<'_> {
    fn segments(&self, stop: &Stop) -> Result<Done> {
        let mut done = Done::default();
        let mut buf = Vec::new();
        let mut scratch = WriteScratch::new()?;
        while !stop.is_set() {
            if self.monitor.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the backup was cancelled"));
            }
            let Some(segment) = self.feed.next()? else { break };
            let told = self.segment(segment, &mut buf, &mut scratch, &mut done).map_err(|e| {
                let name = self.targets.get(segment.disk).map_or("?", |t| t.name);
                e.within(format!("disk {name} at byte {}", segment.offset))
            })?;
            if told {
                self.monitor.add_bytes(segment.len);
            }
        }
        Ok(done)
    }

    /// Does one piece of work; `false`: it could not be kept and comes again, to be read.
    fn segment(
        &self,
        segment: Segment,
        buf: &mut Vec<u8>,
        scratch: &mut WriteScratch,
        done: &mut Done,
    ) -> Result<bool> {
        let gone = || Error::new(ErrorKind::Invalid, "a segment of a disk that is not there");
        let target = self.targets.get(segment.disk).ok_or_else(gone)?;
        let device = self.sources.get(segment.disk).ok_or_else(gone)?;
        let first = self.chunk_size.index_of(segment.offset);
        let chunks = self.chunk_size.chunk_count(segment.len);
        match segment.task {
            Task::Hole => {
                target.writer.write_holes(first, chunks)?;
                done.hole_bytes += segment.len;
            }
            Task::Keep => match target.writer.keep(first, chunks) {
                Ok(()) => done.kept_bytes += segment.len,
                Err(e) if super::changes::is_loss(&e) => {
                    let text = format!(
                        "disk {}: {} bytes from {} on are read, because the point before cannot \
                         vouch for them: {}",
                        target.name,
                        segment.len,
                        segment.offset,
                        Error::from(e)
                    );
                    self.monitor.problem(&text);
                    self.feed.read_instead(segment);
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            },
            Task::Data => {
                let len = usize::try_from(segment.len).map_err(|_| gone())?;
                if buf.len() < len {
                    buf.resize(len, 0);
                }
                let data = buf.get_mut(..len).ok_or_else(gone)?;
                device.read_at(segment.offset, data)?;
                let stats = target.writer.write_chunks(first, data, scratch)?;
                done.read_bytes += segment.len;
                done.new_chunks += stats.new_chunks;
                done.known_chunks += stats.known_chunks;
                done.zero_chunks += stats.zero_chunks;
            }
        }
        Ok(true)
    }
}
