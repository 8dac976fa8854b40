//! Makes a device slow, as networks and disks are.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::Error;

/// Makes every operation that may block take longer. `try_read_at` never answers: a slow device has
/// no hits.
#[derive(Debug)]
pub struct Delay {
    inner: Arc<dyn BlockDevice>,
    each: Duration,
}

impl Delay {
    /// `inner`, with `each` added to every operation.
    pub fn new(inner: Arc<dyn BlockDevice>, each: Duration) -> Self {
        Self { inner, each }
    }
}

impl BlockDevice for Delay {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        thread::sleep(self.each);
        self.inner.read_at(offset_bytes, buf)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        thread::sleep(self.each);
        self.inner.extents(offset_bytes, len_bytes, max)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        thread::sleep(self.each);
        self.inner.presence(offset_bytes, len_bytes, max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.prefetch(offset_bytes, len_bytes);
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        thread::sleep(self.each);
        self.inner.write_at(offset_bytes, data, flags)
    }

    fn flush(&self) -> Result<(), Error> {
        thread::sleep(self.each);
        self.inner.flush()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        thread::sleep(self.each);
        self.inner.trim(offset_bytes, len_bytes, flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        thread::sleep(self.each);
        self.inner.write_zeroes(offset_bytes, len_bytes, flags)
    }
}
