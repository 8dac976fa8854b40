//! The workers of a backup: each takes a segment, reads it and hands it to the store, which hashes,
//! looks up, compresses and seals it in the same thread. Memory is one buffer for each worker.

use std::sync::Arc;

use backstay_blockdev::ExtentKind;
use backstay_store::{ChunkSize, ImageWriter, WriteScratch};

use super::feed::{Feed, Segment};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::source::OpenSource;
use crate::workers::{self, Stop};

/// What all workers together did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    pub(super) read_bytes: u64,
    pub(super) hole_bytes: u64,
    pub(super) new_chunks: u64,
    pub(super) known_chunks: u64,
    pub(super) zero_chunks: u64,
}

struct Job<'a> {
    names: &'a [String],
    sources: &'a [OpenSource],
    writers: &'a [ImageWriter],
    chunk_size: ChunkSize,
    feed: Feed,
    monitor: &'a dyn Monitor,
}

/// Reads all disks with `workers` threads. The first error ends all of them and is returned.
pub(super) fn all(
    names: &[String],
    sources: &[OpenSource],
    writers: &[ImageWriter],
    chunk_size: ChunkSize,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Done> {
    let devices = sources.iter().map(|s| Arc::clone(&s.device)).collect();
    let feed = Feed::new(devices, chunk_size.bytes());
    let job = Job { names, sources, writers, chunk_size, feed, monitor };
    workers::run(workers, |stop| job.segments(stop), Done::add, || ())
}

impl Done {
    fn add(&mut self, more: Done) {
        self.read_bytes += more.read_bytes;
        self.hole_bytes += more.hole_bytes;
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
            self.segment(segment, &mut buf, &mut scratch, &mut done).map_err(|e| {
                let name = self.names.get(segment.disk).map_or("?", String::as_str);
                e.within(format!("disk {name} at byte {}", segment.offset))
            })?;
            self.monitor.add_bytes(segment.len);
        }
        Ok(done)
    }

    fn segment(
        &self,
        segment: Segment,
        buf: &mut Vec<u8>,
        scratch: &mut WriteScratch,
        done: &mut Done,
    ) -> Result<()> {
        let gone = || Error::new(ErrorKind::Invalid, "a segment of a disk that is not there");
        let writer = self.writers.get(segment.disk).ok_or_else(gone)?;
        let first = self.chunk_size.index_of(segment.offset);
        if segment.kind == ExtentKind::Hole {
            writer.write_holes(first, self.chunk_size.chunk_count(segment.len))?;
            done.hole_bytes += segment.len;
            return Ok(());
        }
        let device = &self.sources.get(segment.disk).ok_or_else(gone)?.device;
        let len = usize::try_from(segment.len).map_err(|_| gone())?;
        if buf.len() < len {
            buf.resize(len, 0);
        }
        let data = buf.get_mut(..len).ok_or_else(gone)?;
        device.read_at(segment.offset, data)?;
        let stats = writer.write_chunks(first, data, scratch)?;
        done.read_bytes += segment.len;
        done.new_chunks += stats.new_chunks;
        done.known_chunks += stats.known_chunks;
        done.zero_chunks += stats.zero_chunks;
        Ok(())
    }
}
