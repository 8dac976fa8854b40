//! The workers of a restore: each takes a run, reads and verifies it, and gives it to the target.

use backstay_store::{ImageReader, ReadScratch};

use super::direct::Buffer;
use super::runs::{Run, Runs};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::workers::{self, Stop};

/// Where runs go. Called from several threads at once, in no order.
pub(super) trait Sink: Sync {
    /// Takes the bytes of a run of data.
    fn data(&self, run: Run, bytes: &[u8]) -> Result<()>;
    /// Makes a run read as zeros.
    fn hole(&self, run: Run) -> Result<()>;
    /// Another worker failed: nobody shall wait for runs that will not come.
    fn abort(&self) {}
}

/// What was written.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Copied {
    pub(super) data_bytes: u64,
    pub(super) hole_bytes: u64,
}

struct Job<'a> {
    disk: &'a str,
    reader: &'a ImageReader,
    runs: Runs,
    sink: &'a dyn Sink,
    monitor: &'a dyn Monitor,
}

/// Copies the whole image into `sink` with `workers` threads. The first error ends all of them and
/// is returned. Nothing is made durable here.
pub(super) fn copy(
    disk: &str,
    reader: &ImageReader,
    sink: &dyn Sink,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Copied> {
    let job = Job { disk, reader, runs: Runs::new(reader.clone()), sink, monitor };
    workers::run(workers, |stop| job.runs(stop), Copied::add, || sink.abort())
}

impl Copied {
    fn add(&mut self, more: Copied) {
        self.data_bytes += more.data_bytes;
        self.hole_bytes += more.hole_bytes;
    }
}

impl Job<'_> {
    fn runs(&self, stop: &Stop) -> Result<Copied> {
        let mut copied = Copied::default();
        let mut buf = Buffer::default();
        let mut scratch = ReadScratch::new()?;
        while !stop.is_set() {
            if self.monitor.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the restore was cancelled"));
            }
            let Some(run) = self.runs.next().map_err(|e| self.place(e, None))? else { break };
            if run.data {
                self.data(run, &mut buf, &mut scratch)?;
                copied.data_bytes += run.len;
            } else {
                self.sink.hole(run)?;
                copied.hole_bytes += run.len;
            }
            self.monitor.add_bytes(run.len);
        }
        Ok(copied)
    }

    fn data(&self, run: Run, buf: &mut Buffer, scratch: &mut ReadScratch) -> Result<()> {
        let len = usize::try_from(run.len)
            .map_err(|e| Error::new(ErrorKind::Invalid, "a run beyond memory").caused_by(e))?;
        let bytes = buf.bytes(len);
        if let Err(error) = self.reader.read_uncached(run.offset, bytes, scratch) {
            let place = self.first_bad_chunk(run, bytes, scratch);
            return Err(self.place(error.into(), Some(place)));
        }
        self.sink.data(run, bytes)
    }

    /// Where in a run that cannot be read the fault lies: its chunks are tried one by one.
    fn first_bad_chunk(&self, run: Run, buf: &mut [u8], scratch: &mut ReadScratch) -> u64 {
        let mut at = run.offset;
        for chunk in buf.chunks_mut(self.reader.chunk_size().as_usize()) {
            if self.reader.read_uncached(at, chunk, scratch).is_err() {
                return at;
            }
            at += u64::try_from(chunk.len()).unwrap_or_default();
        }
        run.offset
    }

    fn place(&self, error: Error, offset: Option<u64>) -> Error {
        match offset {
            Some(at) => error.within(format!("disk {} cannot be read at byte {at}", self.disk)),
            None => error.within(format!("the map of disk {} cannot be read", self.disk)),
        }
    }
}
