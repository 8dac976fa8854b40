//! A device in memory.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::device::{BlockDevice, Caps, Extent, ExtentKind, Geometry, WriteFlags, push_extent};
use crate::error::{Error, ErrorKind};

/// The grain at which zeros are reported as holes: the size of a page.
const GRAIN_BYTES: usize = 4096;

/// A disk in memory. Aligned 4 KiB blocks that are all zeros are reported as holes.
#[derive(Debug)]
pub struct MemDevice {
    bytes: RwLock<Vec<u8>>,
    size_bytes: u64,
    writable: bool,
}

impl MemDevice {
    /// A writable disk that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        let size_bytes = bytes.len() as u64;
        Self { bytes: RwLock::new(bytes), size_bytes, writable: true }
    }

    /// The same disk, refusing writes.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { writable: false, ..Self::new(bytes) }
    }

    /// A copy of what the disk holds now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read_lock().clone()
    }

    // The bytes are plain data and valid whatever a panicking writer did, so poisoning is no news.
    fn read_lock(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self, what: &str) -> Result<RwLockWriteGuard<'_, Vec<u8>>, Error> {
        if !self.writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("cannot {what}: the device is read-only"),
            ));
        }
        Ok(self.bytes.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The range as indices. `check` has bounded both by the length of a `Vec`.
    fn range(&self, offset_bytes: u64, len_bytes: u64) -> Result<std::ops::Range<usize>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        Ok(offset_bytes as usize..(offset_bytes + len_bytes) as usize)
    }
}

impl BlockDevice for MemDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: GRAIN_BYTES as u32,
            max_request_bytes: 32 << 20,
        }
    }

    fn caps(&self) -> Caps {
        let w = self.writable;
        Caps {
            writable: w,
            flush: w,
            trim: w,
            write_zeroes: w,
            fast_zero: w,
            fua: w,
            multi_conn: true,
            rotational: false,
            presence: false,
        }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        let range = self.range(offset_bytes, buf.len() as u64)?;
        buf.copy_from_slice(&self.read_lock()[range]);
        Ok(())
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.read_at(offset_bytes, buf)?;
        Ok(true)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let range = self.range(offset_bytes, len_bytes)?;
        let bytes = self.read_lock();
        let mut list: Vec<Extent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let grain = at / GRAIN_BYTES * GRAIN_BYTES;
            let grain_end = (grain + GRAIN_BYTES).min(bytes.len());
            let zero = bytes[grain..grain_end].iter().all(|b| *b == 0);
            let end = grain_end.min(range.end);
            let kind = if zero { ExtentKind::Hole } else { ExtentKind::Data };
            if list.len() >= max.max(1) && list.last().is_some_and(|last| last.kind != kind) {
                break;
            }
            push_extent(
                &mut list,
                Extent { offset_bytes: at as u64, len_bytes: (end - at) as u64, kind },
            );
            at = end;
        }
        Ok(list)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], _: WriteFlags) -> Result<(), Error> {
        let range = self.range(offset_bytes, data.len() as u64)?;
        self.write_lock("write")?[range].copy_from_slice(data);
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, _: WriteFlags) -> Result<(), Error> {
        let range = self.range(offset_bytes, len_bytes)?;
        self.write_lock("trim")?[range].fill(0);
        Ok(())
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, _: WriteFlags) -> Result<(), Error> {
        let range = self.range(offset_bytes, len_bytes)?;
        self.write_lock("write zeroes")?[range].fill(0);
        Ok(())
    }
}
