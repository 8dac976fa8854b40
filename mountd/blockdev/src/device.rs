//! The one interface of a disk.

use crate::error::{Error, ErrorKind};

/// What a range of a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Something is stored; it must be read to know what.
    Data,
    /// Reads as zeros, and nothing is stored for it.
    Hole,
}

/// A range of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where it starts, in bytes from the start of the device.
    pub offset_bytes: u64,
    /// Its length in bytes, never 0.
    pub len_bytes: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// Adds an extent to a list that grows without gaps, merging it into the last one when the kinds
/// are equal. Empty extents are dropped.
pub fn push_extent(list: &mut Vec<Extent>, extent: Extent) {
    if extent.len_bytes == 0 {
        return;
    }
    match list.last_mut() {
        Some(last)
            if last.kind == extent.kind
                && last.offset_bytes + last.len_bytes == extent.offset_bytes =>
        {
            last.len_bytes += extent.len_bytes;
        }
        _ => list.push(extent),
    }
}

/// What a device can do. The default is a device that can only be read, over one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Writes are taken.
    pub writable: bool,
    /// `flush` means something: what was written before it is durable after it.
    pub flush: bool,
    /// `trim` does something.
    pub trim: bool,
    /// `write_zeroes` works.
    pub write_zeroes: bool,
    /// `write_zeroes` can tell at once when it would be no faster than writing.
    pub fast_zero: bool,
    /// A single write can be made durable ([`WriteFlags::fua`]).
    pub fua: bool,
    /// Several connections see one coherent device: a flush on one covers writes of all.
    pub multi_conn: bool,
    /// Seeks are dear.
    pub rotational: bool,
}

/// Size and request limits of a device. They do not change while the device is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Offsets and lengths should be multiples of this power of two.
    pub min_block_bytes: u32,
    /// Requests of this size and alignment are served best.
    pub preferred_block_bytes: u32,
    /// The longest range one read or write should ask for.
    pub max_request_bytes: u32,
}

impl Geometry {
    /// Fails with [`ErrorKind::OutOfRange`] unless `[offset, offset + len)` lies in the device.
    pub fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), Error> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{len_bytes} bytes at offset {offset_bytes} go beyond the end of the device ({} bytes)",
                    self.size_bytes
                ),
            )),
        }
    }
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteFlags {
    /// The write is durable when the call returns (force unit access).
    pub fua: bool,
    /// `write_zeroes`: keep the space allocated.
    pub no_hole: bool,
    /// `write_zeroes`: fail with [`ErrorKind::Unsupported`] at once if it would be no faster than
    /// writing zeros.
    pub fast_zero: bool,
}

/// A disk: bytes at offsets.
///
/// All methods take `&self` and may be called from many threads at once; they may block unless they
/// say otherwise. A range behind the end is [`ErrorKind::OutOfRange`] for every method. Reads that
/// overlap a write in flight see old or new bytes, each byte for itself.
pub trait BlockDevice: Send + Sync + std::fmt::Debug {
    /// Size and limits; cheap, the same at every call.
    fn geometry(&self) -> Geometry;

    /// What the device can do; cheap, the same at every call.
    fn caps(&self) -> Caps;

    /// Fills all of `buf` from `offset_bytes`, or fails. Never short, and never zeros for a failure;
    /// after an error the content of `buf` means nothing.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// Answers like `read_at`, but only if it can without blocking (cache hits, holes).
    /// `Ok(false)`: nothing useful is in `buf`; call `read_at` from a thread that may block.
    fn try_read_at(&self, _offset_bytes: u64, _buf: &mut [u8]) -> Result<bool, Error> {
        Ok(false)
    }

    /// The extents from `offset_bytes` on, without gaps, in order, none empty, neighbours of equal
    /// kind merged, cut to the range asked for. At most `max` (at least 1 is returned for
    /// `len_bytes` > 0); may stop early, then the caller asks again from where the list ends.
    /// A `Hole` is a promise that the range reads as zeros; a `Data` range may still be all zeros.
    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error>;

    /// A hint that the range will be read soon. Returns at once, promises nothing.
    fn prefetch(&self, _offset_bytes: u64, _len_bytes: u64) {}

    /// Writes all of `data`; seen by every later read, durable after the next `flush` (at once with
    /// [`WriteFlags::fua`]).
    fn write_at(&self, _offset_bytes: u64, _data: &[u8], _flags: WriteFlags) -> Result<(), Error> {
        Err(read_only("write"))
    }

    /// Makes every write that returned before this call durable. Nothing to do on a read-only device.
    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    /// A hint that the content of the range is not needed any more; what it reads as afterwards is
    /// undefined (but never bytes of something else).
    fn trim(&self, _offset_bytes: u64, _len_bytes: u64, _flags: WriteFlags) -> Result<(), Error> {
        Err(read_only("trim"))
    }

    /// Makes the range read as zeros, like `write_at` of zeros.
    fn write_zeroes(
        &self,
        _offset_bytes: u64,
        _len_bytes: u64,
        _flags: WriteFlags,
    ) -> Result<(), Error> {
        Err(read_only("write zeroes"))
    }
}

fn read_only(what: &str) -> Error {
    Error::new(ErrorKind::ReadOnly, format!("cannot {what}: the device is read-only"))
}
