//! Makes a device no faster than it may be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::Error;

const NANOS: u128 = 1_000_000_000;

/// The time, as [`Rate`] sees it. Tests bring one of their own, and need not sleep.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Returns when `time` more has passed.
    fn sleep(&self, time: Duration);
}

/// The clock of the machine.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// What a [`Rate`] lets through. Zero is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes read and written a second.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a time without any; more than this pass, but have to wait.
    pub burst_bytes: u64,
    /// Operations a second, of any sort but `prefetch`.
    pub operations_per_second: u64,
    /// Operations that may pass at once after a time without any.
    pub burst_operations: u64,
}

/// A token bucket, kept as one moment: when it will be full again. What it holds is the burst less
/// what comes in until then.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_second: u64,
    burst: u64,
    full_at: u128,
}

impl Bucket {
    fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second, burst, full_at: 0 }
    }

    /// The time in which `tokens` come in, in nanoseconds.
    fn time_of(&self, tokens: u64) -> u128 {
        match self.per_second {
            0 => 0,
            rate => u128::from(tokens) * NANOS / u128::from(rate),
        }
    }

    /// The moment at which `tokens` are there.
    fn ready_at(&self, tokens: u64, now: u128) -> u128 {
        (self.full_at.max(now) + self.time_of(tokens)).saturating_sub(self.time_of(self.burst))
    }

    fn take(&mut self, tokens: u64, now: u128) {
        self.full_at = self.full_at.max(now) + self.time_of(tokens);
    }
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    bytes: Bucket,
    operations: Bucket,
}

/// A device of bounded speed. Bytes are counted for `read_at`, `try_read_at` and `write_at`; every
/// operation but `prefetch` counts as one. Operations pass in the order in which they came, and wait
/// without holding a lock.
#[derive(Debug)]
pub struct Rate {
    inner: Arc<dyn BlockDevice>,
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

impl Rate {
    /// `inner` within `limits`.
    pub fn new(inner: Arc<dyn BlockDevice>, limits: Limits) -> Self {
        Self::with_clock(inner, limits, Arc::new(SystemClock::default()))
    }

    /// The same by another clock.
    pub fn with_clock(inner: Arc<dyn BlockDevice>, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let buckets = Buckets {
            bytes: Bucket::new(limits.bytes_per_second, limits.burst_bytes),
            operations: Bucket::new(limits.operations_per_second, limits.burst_operations),
        };
        Self { inner, clock, buckets: Mutex::new(buckets) }
    }

    /// Takes the tokens of one operation of `bytes` bytes, and waits until they are there.
    fn pass(&self, bytes: u64) {
        let wait = self.with_buckets(|buckets, now| {
            let ready = ready_at(buckets, bytes, now);
            buckets.bytes.take(bytes, now);
            buckets.operations.take(1, now);
            ready.saturating_sub(now)
        });
        if wait > 0 {
            self.clock.sleep(nanos(wait));
        }
    }

    /// Whether an operation of `bytes` bytes need not wait.
    fn is_free(&self, bytes: u64) -> bool {
        self.with_buckets(|buckets, now| ready_at(buckets, bytes, now) <= now)
    }

    fn with_buckets<T>(&self, run: impl FnOnce(&mut Buckets, u128) -> T) -> T {
        let now = self.clock.now().as_nanos();
        // Numbers only: whole whatever a holder did.
        run(&mut self.buckets.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

fn ready_at(buckets: &Buckets, bytes: u64, now: u128) -> u128 {
    buckets.bytes.ready_at(bytes, now).max(buckets.operations.ready_at(1, now))
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl BlockDevice for Rate {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.pass(buf.len() as u64);
        self.inner.read_at(offset_bytes, buf)
    }

    /// Answers only what need not wait; what it does not answer costs nothing.
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let len = buf.len() as u64;
        if !self.is_free(len) {
            return Ok(false);
        }
        let answered = self.inner.try_read_at(offset_bytes, buf)?;
        if answered {
            // Another one may have taken the tokens meanwhile; then the next one waits for both.
            self.with_buckets(|buckets, now| {
                buckets.bytes.take(len, now);
                buckets.operations.take(1, now);
            });
        }
        Ok(answered)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.pass(0);
        self.inner.extents(offset_bytes, len_bytes, max)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.pass(0);
        self.inner.presence(offset_bytes, len_bytes, max)
    }

    /// A hint that would have to wait is dropped; one that passes costs nothing, its read does.
    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        if self.is_free(len_bytes) {
            self.inner.prefetch(offset_bytes, len_bytes);
        }
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.pass(data.len() as u64);
        self.inner.write_at(offset_bytes, data, flags)
    }

    fn flush(&self) -> Result<(), Error> {
        self.pass(0);
        self.inner.flush()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        self.pass(0);
        self.inner.trim(offset_bytes, len_bytes, flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.pass(0);
        self.inner.write_zeroes(offset_bytes, len_bytes, flags)
    }
}
