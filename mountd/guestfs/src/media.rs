//! What readers read from: a device with a cache for metadata.

use std::sync::{Arc, OnceLock};

use backstay_blockdev::layer::{Cache, CachePool};
use backstay_blockdev::{BlockDevice, ErrorKind as DeviceKind};

use crate::{Error, ErrorKind};

/// The unit of the metadata cache: one default chunk of the store, so that a miss costs one chunk.
const CACHE_BLOCK_BYTES: u32 = 64 << 10;
/// What the metadata caches of all file systems that this process reads keep together: the inodes of some hundred thousand files,
/// which a directory may name in any order.
const CACHE_BYTES: u64 = 128 << 20;
/// The longest piece of metadata read at once.
const PIECE_MAX: usize = 4 << 20;

/// The device a file system or volume is on.
///
/// Metadata is read through a bounded cache; the content of files goes past it.
#[derive(Debug, Clone)]
pub struct Media {
    device: Arc<dyn BlockDevice>,
    cached: Arc<Cache>,
    size_bytes: u64,
}

impl Media {
    /// Over `device`, with the cache that all share.
    ///
    /// # Errors
    /// None that a device of ours causes.
    pub fn new(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        static POOL: OnceLock<CachePool> = OnceLock::new();
        let pool = match POOL.get() {
            Some(pool) => pool,
            None => {
                let pool = CachePool::new(CACHE_BLOCK_BYTES, CACHE_BYTES)
                    .map_err(|e| failed("set up the cache", 0, 0, e))?;
                POOL.get_or_init(|| pool)
            }
        };
        let size_bytes = device.geometry().size_bytes;
        let cached = Arc::new(Cache::in_pool(Arc::clone(&device), pool));
        Ok(Self { device, cached, size_bytes })
    }

    /// The same with a cache of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_cache(device: Arc<dyn BlockDevice>, cache_bytes: u64) -> Result<Self, Error> {
        let size_bytes = device.geometry().size_bytes;
        let cached = Cache::new(Arc::clone(&device), CACHE_BLOCK_BYTES, cache_bytes)
            .map_err(|e| failed("set up the cache", 0, 0, e))?;
        Ok(Self { device, cached: Arc::new(cached), size_bytes })
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The device itself.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Fills `buf` with metadata, through the cache. `what` names it in errors: "the inode table".
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for a range beyond the device: what led here is wrong, or the device was cut off.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8], what: &str) -> Result<(), Error> {
        self.check(offset_bytes, buf.len() as u64, what)?;
        self.cached
            .read_at(offset_bytes, buf)
            .map_err(|e| failed(what, offset_bytes, buf.len() as u64, e))
    }

    /// `len` bytes of metadata.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`ErrorKind::Limit`] for more than 4 MiB.
    pub fn bytes(&self, offset_bytes: u64, len: usize, what: &str) -> Result<Vec<u8>, Error> {
        if len > PIECE_MAX {
            let text = format!("{what} at byte {offset_bytes} would be {len} bytes long");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        self.check(offset_bytes, len as u64, what)?;
        let mut bytes = vec![0; len];
        self.read(offset_bytes, &mut bytes, what)?;
        Ok(bytes)
    }

    /// Fills `buf` with the content of a file, past the cache.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_content(&self, offset_bytes: u64, buf: &mut [u8], what: &str) -> Result<(), Error> {
        self.check(offset_bytes, buf.len() as u64, what)?;
        self.device
            .read_at(offset_bytes, buf)
            .map_err(|e| failed(what, offset_bytes, buf.len() as u64, e))
    }

    /// A hint that metadata will be read there soon.
    pub fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.device.prefetch(offset_bytes, len_bytes);
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64, what: &str) -> Result<(), Error> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Error::damaged(format!(
                "{what} would lie at byte {offset_bytes} ({len_bytes} bytes), and the device ends at {}",
                self.size_bytes
            ))),
        }
    }
}

/// A device's error as this crate knows it. The one place of this mapping.
fn failed(what: &str, offset_bytes: u64, len_bytes: u64, e: backstay_blockdev::Error) -> Error {
    let kind = match e.kind() {
        DeviceKind::Damaged => ErrorKind::Damaged,
        _ => ErrorKind::Io,
    };
    let text = format!("cannot read {what} at byte {offset_bytes} ({len_bytes} bytes)");
    Error::new(kind, text).with_source(e)
}
