//! Compares two devices while one of them is read.

use std::sync::Arc;

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent};
use crate::error::{Error, ErrorKind};

/// A read-only view of a device that reads everything from a second one too: bytes that differ are
/// [`ErrorKind::Damaged`], with the place of the first. Extents and presence are those of the first
/// device.
#[derive(Debug)]
pub struct Compare {
    inner: Arc<dyn BlockDevice>,
    reference: Arc<dyn BlockDevice>,
}

impl Compare {
    /// Shows `inner` as long as it is equal to `reference`. Fails with [`ErrorKind::Damaged`] if their
    /// sizes differ.
    pub fn new(
        inner: Arc<dyn BlockDevice>,
        reference: Arc<dyn BlockDevice>,
    ) -> Result<Self, Error> {
        let (own, other) = (inner.geometry().size_bytes, reference.geometry().size_bytes);
        if own != other {
            let text = format!("the device has {own} bytes, the one to compare with {other}");
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        Ok(Self { inner, reference })
    }

    fn compare(&self, offset_bytes: u64, seen: &[u8], expected: &[u8]) -> Result<(), Error> {
        match seen.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "byte {} is {:#04x}, and {:#04x} in the device it is compared with",
                    offset_bytes + at as u64,
                    seen[at],
                    expected[at]
                ),
            )),
        }
    }

    fn below<T>(result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|e| {
            Error::new(e.kind(), "the device that is compared with failed").with_source(e)
        })
    }
}

impl BlockDevice for Compare {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        let Caps { multi_conn, rotational, presence, .. } = self.inner.caps();
        Caps { multi_conn, rotational, presence, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_at(offset_bytes, buf)?;
        let mut expected = vec![0; buf.len()];
        Self::below(self.reference.read_at(offset_bytes, &mut expected))?;
        self.compare(offset_bytes, buf, &expected)
    }

    /// Answers what both devices answer.
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        if !self.inner.try_read_at(offset_bytes, buf)? {
            return Ok(false);
        }
        let mut expected = vec![0; buf.len()];
        if !Self::below(self.reference.try_read_at(offset_bytes, &mut expected))? {
            return Ok(false);
        }
        self.compare(offset_bytes, buf, &expected)?;
        Ok(true)
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
        self.reference.prefetch(offset_bytes, len_bytes);
    }
}
