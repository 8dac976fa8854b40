//! The one interface of a disk.

use crate::error::{Error, ErrorKind};

/// What a range of a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Something is stored; it must be read to know what.
    Data,
    /// Reads as zeros, and nothing is stored for it.
    Hole,
    /// Reads as zeros, though space is set aside for it.
    Zero,
}

impl ExtentKind {
    /// Whether the range is known to read as zeros.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Hole | Self::Zero)
    }
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

/// Where the bytes of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Presence {
    /// A chunk of the store holds them (not: they are zeros that nothing is stored for).
    pub stored: bool,
    /// They can be read without fetching anything from the store: they are in memory or in an overlay,
    /// or there is nothing to fetch. True for this moment only.
    pub at_hand: bool,
    /// They were written through this device and lie in its overlay, above what is stored.
    pub overlaid: bool,
}

/// A range whose bytes are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PresenceExtent {
    /// Where it starts, in bytes from the start of the device.
    pub offset_bytes: u64,
    /// Its length in bytes, never 0.
    pub len_bytes: u64,
    /// Where its bytes are.
    pub presence: Presence,
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
    /// `presence` tells something.
    pub presence: bool,
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
/// What a caller may rely on, and every device is held to by the `conformance` suite:
///
/// * **Threads.** All methods take `&self` and may be called from many threads at once; they may block
///   unless they say otherwise.
/// * **Range.** A range behind the end is [`ErrorKind::OutOfRange`] for every method but `prefetch`, and
///   then nothing was done. Any offset and length within the device is taken; multiples of
///   [`Geometry::min_block_bytes`] are what a front end should let through, and of
///   [`Geometry::preferred_block_bytes`] what is fast.
/// * **Order.** A method that returned has happened: every call that starts later sees it, from whatever
///   thread. Calls that overlap in time and in range happen in any order, each byte for itself; bytes
///   that none of them covers are never changed.
/// * **Durability.** What a `write_at`, `write_zeroes` or `trim` changed is durable once a `flush` that
///   started after it returned has returned, and at once with [`WriteFlags::fua`]. What was not flushed
///   may be lost when the power goes, each 512 bytes for itself, but reads as old or new bytes, never as
///   others. After a flush that failed, nothing since the last good one counts as durable, and later flushes
///   fail too.
/// * **Failure.** A method that failed may have changed any part of its range, and nothing else. A read
///   never answers zeros or less for a failure.
/// * **Capabilities.** [`Caps`] says beforehand what a device can do: a method whose capability is there
///   does not answer [`ErrorKind::Unsupported`] (but for `fast_zero`), one whose capability is missing
///   does, or [`ErrorKind::ReadOnly`] where nothing can be written.
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
    /// `Hole` and `Zero` are promises that the range reads as zeros; a `Data` range may still be all
    /// zeros.
    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error>;

    /// Where the bytes from `offset_bytes` on are: a list like that of `extents`. Without
    /// [`Caps::presence`] it tells nothing: one extent with nothing known.
    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let all = PresenceExtent { offset_bytes, len_bytes, presence: Presence::default() };
        Ok(if len_bytes == 0 || max == 0 { Vec::new() } else { vec![all] })
    }

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
