//! A device whose size is no multiple of a block, rounded up to one.

use std::sync::Arc;

use backstay_blockdev::{
    BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, PresenceExtent, WriteFlags,
    push_extent,
};

/// The device and zeros behind it, up to the next block. Zeros may be written there, and nothing else.
#[derive(Debug)]
pub(super) struct Padded {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
}

impl Padded {
    /// The device itself if its size is a multiple of `block`.
    pub(super) fn wrap(device: Arc<dyn BlockDevice>, block: u64) -> Arc<dyn BlockDevice> {
        let mut geometry = device.geometry();
        if geometry.size_bytes.is_multiple_of(block) {
            return device;
        }
        geometry.size_bytes = geometry.size_bytes.next_multiple_of(block);
        Arc::new(Self { device, geometry })
    }

    /// How much of a range lies in the device.
    fn inside(&self, offset: u64, len: u64) -> Result<u64, Error> {
        self.geometry.check(offset, len)?;
        Ok(self.device.geometry().size_bytes.saturating_sub(offset).min(len))
    }
}

impl BlockDevice for Padded {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn caps(&self) -> Caps {
        self.device.caps()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let inside = self.inside(offset, buf.len() as u64)? as usize;
        let (data, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        if data.is_empty() { Ok(()) } else { self.device.read_at(offset, data) }
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let inside = self.inside(offset, buf.len() as u64)? as usize;
        let (data, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        if data.is_empty() { Ok(true) } else { self.device.try_read_at(offset, data) }
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let inside = self.inside(offset, len)?;
        let mut list = match inside {
            0 => Vec::new(),
            inside => self.device.extents(offset, inside, max)?,
        };
        let end = list.last().map_or(offset, |last| last.offset_bytes + last.len_bytes);
        if end == offset + inside && inside < len && list.len() < max {
            let behind =
                Extent { offset_bytes: end, len_bytes: len - inside, kind: ExtentKind::Hole };
            push_extent(&mut list, behind);
        }
        Ok(list)
    }

    fn presence(&self, offset: u64, len: u64, max: usize) -> Result<Vec<PresenceExtent>, Error> {
        match self.inside(offset, len)? {
            0 => Ok(Vec::new()),
            inside => self.device.presence(offset, inside, max),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.device.prefetch(offset, len);
    }

    fn write_at(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        let inside = self.inside(offset, data.len() as u64)? as usize;
        let (data, behind) = data.split_at(inside);
        if behind.iter().any(|byte| *byte != 0) {
            let why =
                format!("the device ends at {}, within its last block", offset + inside as u64);
            return Err(Error::new(ErrorKind::OutOfRange, why));
        }
        if data.is_empty() { Ok(()) } else { self.device.write_at(offset, data, flags) }
    }

    fn flush(&self) -> Result<(), Error> {
        self.device.flush()
    }

    fn trim(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        match self.inside(offset, len)? {
            0 => Ok(()),
            inside => self.device.trim(offset, inside, flags),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        match self.inside(offset, len)? {
            0 => Ok(()),
            inside => self.device.write_zeroes(offset, inside, flags),
        }
    }
}
