//! A part of a device as a device.

use std::sync::Arc;

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::{Error, ErrorKind};

/// `len` bytes of a device from an offset on: a partition. Nothing reaches a byte outside.
#[derive(Debug)]
pub struct Range {
    inner: Arc<dyn BlockDevice>,
    start: u64,
    geometry: Geometry,
}

impl Range {
    /// `len_bytes` of `inner` from `offset_bytes` on. Fails with [`ErrorKind::OutOfRange`] if `inner`
    /// ends before.
    pub fn new(
        inner: Arc<dyn BlockDevice>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Self, Error> {
        let whole = inner.geometry();
        whole.check(offset_bytes, len_bytes)?;
        // A part that begins within a block cannot promise blocks that large.
        let grain = match offset_bytes.trailing_zeros() {
            bits @ 0..=30 => 1u32 << bits,
            _ => 1 << 31,
        };
        let min_block_bytes = whole.min_block_bytes.min(grain);
        let geometry = Geometry { size_bytes: len_bytes, min_block_bytes, ..whole };
        Ok(Self { inner, start: offset_bytes, geometry })
    }

    /// The offset in the device below.
    fn below(&self, offset_bytes: u64, len_bytes: u64) -> Result<u64, Error> {
        self.geometry.check(offset_bytes, len_bytes)?;
        Ok(self.start + offset_bytes)
    }

    /// Says that the offsets in an error of the device below are that device's.
    fn translated<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            let text = format!("in the part that starts at byte {} of its device", self.start);
            // The part lies within the device, so the device has become shorter: not the caller's
            // mistake.
            let kind = match error.kind() {
                ErrorKind::OutOfRange => ErrorKind::Io,
                kind => kind,
            };
            Error::new(kind, text).with_source(error)
        })
    }
}

impl BlockDevice for Range {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        let at = self.below(offset_bytes, buf.len() as u64)?;
        self.translated(self.inner.read_at(at, buf))
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let at = self.below(offset_bytes, buf.len() as u64)?;
        self.translated(self.inner.try_read_at(at, buf))
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let at = self.below(offset_bytes, len_bytes)?;
        let mut list = self.translated(self.inner.extents(at, len_bytes, max))?;
        for extent in &mut list {
            extent.offset_bytes -= self.start;
        }
        Ok(list)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        let at = self.below(offset_bytes, len_bytes)?;
        let mut list = self.translated(self.inner.presence(at, len_bytes, max))?;
        for extent in &mut list {
            extent.offset_bytes -= self.start;
        }
        Ok(list)
    }

    /// Only what lies in the part is passed on.
    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes.saturating_add(len_bytes).min(self.geometry.size_bytes);
        if offset_bytes < end {
            self.inner.prefetch(self.start + offset_bytes, end - offset_bytes);
        }
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        let at = self.below(offset_bytes, data.len() as u64)?;
        self.translated(self.inner.write_at(at, data, flags))
    }

    fn flush(&self) -> Result<(), Error> {
        self.inner.flush()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        let at = self.below(offset_bytes, len_bytes)?;
        self.translated(self.inner.trim(at, len_bytes, flags))
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        let at = self.below(offset_bytes, len_bytes)?;
        self.translated(self.inner.write_zeroes(at, len_bytes, flags))
    }
}
