//! Takes the writes away from a device.

use std::sync::Arc;

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent};
use crate::error::Error;

/// Shows a device without its writes: they fail with [`crate::ErrorKind::ReadOnly`] and never reach it.
#[derive(Debug)]
pub struct ReadOnly {
    inner: Arc<dyn BlockDevice>,
}

impl ReadOnly {
    /// The read-only view of `inner`.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner }
    }
}

impl BlockDevice for ReadOnly {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        let Caps { multi_conn, rotational, presence, .. } = self.inner.caps();
        Caps { multi_conn, rotational, presence, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_at(offset_bytes, buf)
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.inner.try_read_at(offset_bytes, buf)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.inner.extents(offset_bytes, len_bytes, max)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.inner.presence(offset_bytes, len_bytes, max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.prefetch(offset_bytes, len_bytes);
    }
}
