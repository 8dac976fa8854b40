//! A disk of a recovery point as a block device.

use std::fmt;
use std::sync::Arc;

use backstay_blockdev::{
    BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, Presence, PresenceExtent,
    push_extent,
};
use backstay_store::{DiskRecord, Hold, ImageReader, InPlace, RecoveryPoint, Repository};

/// Longest read one call should ask for; the doors cut longer ones. Bounds the buffer of a request.
const REQUEST_MAX: u32 = 32 << 20;

/// One disk of one recovery point, read-only. Its bytes never change, so any number of connections
/// may read it.
///
/// All copies of one repository handle share one cache of decoded chunks; a chunk is fetched and
/// decoded once, whatever number of doors and disks ask for it.
#[derive(Clone)]
pub struct PointDisk {
    image: ImageReader,
    machine: String,
    point: String,
    disk: String,
    /// Keeps the point while it is open: no collection takes what somebody reads.
    _hold: Arc<Hold>,
}

impl PointDisk {
    /// The disk `disk` of `point`. Reads no data yet.
    ///
    /// The point is held as long as the disk is open (`mountd/docs/SEMANTICS.md`).
    ///
    /// # Errors
    /// Whatever the store says when the image cannot be opened; `NotFound` when the point was
    /// removed meanwhile.
    pub fn open(
        repository: &Repository,
        point: &RecoveryPoint,
        disk: &DiskRecord,
    ) -> Result<Self, backstay_store::Error> {
        let purpose = format!("reading {}@{}", point.machine, point.id.short());
        Ok(Self {
            _hold: repository.hold_shared(point.id, &purpose)?,
            image: repository.image(disk)?,
            machine: point.machine.clone(),
            point: point.id.to_string(),
            disk: disk.name.clone(),
        })
    }

    /// A store error as the doors know it. The one place of this mapping.
    ///
    /// Damage and failures are also logged here with machine, point, disk and offset: the reader
    /// behind a door sees no more than an I/O error.
    fn failed(
        &self,
        what: &str,
        offset_bytes: u64,
        len_bytes: u64,
        e: backstay_store::Error,
    ) -> Error {
        use backstay_store::ErrorKind as Store;
        let kind = match e.kind() {
            // A missing chunk or pack is damage too: the point says it is there.
            Store::Damaged | Store::NotFound => ErrorKind::Damaged,
            Store::Invalid => ErrorKind::OutOfRange,
            Store::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        tracing::error!(
            machine = %self.machine,
            point = %self.point,
            disk = %self.disk,
            offset_bytes,
            len_bytes,
            error = %chain(&e),
            "cannot {what}"
        );
        let context = format!(
            "cannot {what} of {}@{}:{} at offset {offset_bytes} ({len_bytes} bytes)",
            self.machine, self.point, self.disk
        );
        Error::new(kind, context).with_source(e)
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl fmt::Debug for PointDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointDisk({}@{}:{})", self.machine, self.point, self.disk)
    }
}

impl BlockDevice for PointDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.image.size_bytes(),
            min_block_bytes: 1,
            preferred_block_bytes: u32::from(self.image.chunk_size()),
            max_request_bytes: REQUEST_MAX,
        }
    }

    fn caps(&self) -> Caps {
        Caps { multi_conn: true, presence: true, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        let len = buf.len() as u64;
        self.geometry().check(offset_bytes, len)?;
        self.image
            .read_at(offset_bytes, buf)
            .map_err(|e| self.failed("read the data", offset_bytes, len, e))
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let len = buf.len() as u64;
        self.geometry().check(offset_bytes, len)?;
        self.image
            .try_read_at(offset_bytes, buf)
            .map_err(|e| self.failed("read the data", offset_bytes, len, e))
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        if len_bytes == 0 || max == 0 {
            return Ok(Vec::new());
        }
        let found = self
            .image
            .extents(offset_bytes, len_bytes, max)
            .map_err(|e| self.failed("read the map", offset_bytes, len_bytes, e))?;
        let mut extents = Vec::with_capacity(found.len());
        for (offset_bytes, len_bytes, data) in found {
            let kind = if data { ExtentKind::Data } else { ExtentKind::Hole };
            push_extent(&mut extents, Extent { offset_bytes, len_bytes, kind });
        }
        Ok(extents)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        if len_bytes == 0 || max == 0 {
            return Ok(Vec::new());
        }
        let found = self
            .image
            .places(offset_bytes, len_bytes, max)
            .map_err(|e| self.failed("read the map", offset_bytes, len_bytes, e))?;
        let presence = |place| Presence {
            stored: place != InPlace::Nowhere,
            at_hand: place != InPlace::Store,
            overlaid: false,
        };
        let extent = |(offset_bytes, len_bytes, place)| PresenceExtent {
            offset_bytes,
            len_bytes,
            presence: presence(place),
        };
        Ok(found.into_iter().map(extent).collect())
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        if self.geometry().check(offset_bytes, len_bytes).is_ok() {
            self.image.prefetch(offset_bytes, len_bytes);
        }
    }
}
