//! Tells what is done to a device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::{Error, ErrorKind};

/// The methods of a device that a [`Log`] tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// `read_at`.
    Read,
    /// `try_read_at`.
    TryRead,
    /// `extents`.
    Extents,
    /// `presence`.
    Presence,
    /// `prefetch`.
    Prefetch,
    /// `write_at`.
    Write,
    /// `flush`.
    Flush,
    /// `trim`.
    Trim,
    /// `write_zeroes`.
    WriteZeroes,
}

/// One call that has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The method.
    pub call: Call,
    /// Where its range starts, in bytes; 0 for `flush`.
    pub offset_bytes: u64,
    /// The length of its range in bytes; 0 for `flush`.
    pub len_bytes: u64,
    /// Its flags; none set for methods without.
    pub flags: WriteFlags,
    /// How it ended: whether it did something (`false` only for a `try_read_at` that had no answer), or
    /// what kind of error it was.
    pub result: Result<bool, ErrorKind>,
    /// How long it took.
    pub duration: Duration,
}

/// Takes the entries of a [`Log`]. Called by the threads of the callers, several at once, after the
/// call has returned and before its caller goes on; so it should be quick.
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Takes one entry.
    fn entry(&self, entry: &Entry);
}

/// What was done by one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Calls that have returned.
    pub calls: u64,
    /// The bytes of the ranges of those that did something.
    pub bytes: u64,
    /// Those that failed.
    pub failed: u64,
    /// The time they took together.
    pub duration: Duration,
}

/// A device that tells a [`Sink`] of every call, and counts them.
#[derive(Debug)]
pub struct Log {
    inner: Arc<dyn BlockDevice>,
    sink: Arc<dyn Sink>,
    counts: Mutex<BTreeMap<Call, Count>>,
}

impl Log {
    /// `inner`, with every call told to `sink`.
    pub fn new(inner: Arc<dyn BlockDevice>, sink: Arc<dyn Sink>) -> Self {
        Self { inner, sink, counts: Mutex::default() }
    }

    /// What was done so far, by method; methods that were not called are missing.
    pub fn counts(&self) -> BTreeMap<Call, Count> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a call and tells of it; `did` says whether its success did something.
    fn tell<T>(
        &self,
        (call, offset_bytes, len_bytes, flags): (Call, u64, u64, WriteFlags),
        did: impl FnOnce(&T) -> bool,
        run: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        let result = run();
        let duration = start.elapsed();
        let outcome = result.as_ref().map(did).map_err(Error::kind);
        let entry = Entry { call, offset_bytes, len_bytes, flags, result: outcome, duration };
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(call).or_default();
            count.calls += 1;
            count.bytes += if outcome == Ok(true) { len_bytes } else { 0 };
            count.failed += u64::from(outcome.is_err());
            count.duration += duration;
        }
        self.sink.entry(&entry);
        result
    }
}

const PLAIN: WriteFlags = WriteFlags { fua: false, no_hole: false, fast_zero: false };

impl BlockDevice for Log {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        let what = (Call::Read, offset_bytes, buf.len() as u64, PLAIN);
        self.tell(what, |()| true, || self.inner.read_at(offset_bytes, buf))
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let what = (Call::TryRead, offset_bytes, buf.len() as u64, PLAIN);
        self.tell(what, |done| *done, || self.inner.try_read_at(offset_bytes, buf))
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let what = (Call::Extents, offset_bytes, len_bytes, PLAIN);
        self.tell(what, |_| true, || self.inner.extents(offset_bytes, len_bytes, max))
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        let what = (Call::Presence, offset_bytes, len_bytes, PLAIN);
        self.tell(what, |_| true, || self.inner.presence(offset_bytes, len_bytes, max))
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let what = (Call::Prefetch, offset_bytes, len_bytes, PLAIN);
        let hint = || {
            self.inner.prefetch(offset_bytes, len_bytes);
            Ok(())
        };
        // A hint has no result.
        let _ = self.tell(what, |()| true, hint);
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        let what = (Call::Write, offset_bytes, data.len() as u64, flags);
        self.tell(what, |()| true, || self.inner.write_at(offset_bytes, data, flags))
    }

    fn flush(&self) -> Result<(), Error> {
        self.tell((Call::Flush, 0, 0, PLAIN), |()| true, || self.inner.flush())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        let what = (Call::Trim, offset_bytes, len_bytes, flags);
        self.tell(what, |()| true, || self.inner.trim(offset_bytes, len_bytes, flags))
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        let what = (Call::WriteZeroes, offset_bytes, len_bytes, flags);
        self.tell(what, |()| true, || self.inner.write_zeroes(offset_bytes, len_bytes, flags))
    }
}
