//! A disk of a repository as a block device that is read once, around the cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use backstay_blockdev::{BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry};
use backstay_store::{ImageReader, ReadScratch};

/// Longest read one call should ask for: what the workers of a backup ask for at most.
const REQUEST_MAX: u32 = 4 << 20;

/// One disk of one point. An error of its reads names the byte at which they fail.
#[derive(Debug)]
pub(super) struct StoredDisk {
    image: ImageReader,
    /// Working memory of the threads that read, as many as there are.
    scratch: Mutex<Vec<ReadScratch>>,
    failed: AtomicBool,
}

impl StoredDisk {
    pub(super) fn new(image: ImageReader) -> Self {
        Self { image, scratch: Mutex::default(), failed: AtomicBool::new(false) }
    }

    /// Whether a read failed: then this repository is to blame for what went wrong.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Bytes that are stored, as opposed to holes. Reads the image tree only.
    pub(super) fn data_bytes(&self) -> Result<u64, Error> {
        const WINDOW_EXTENTS: usize = 1024;
        let size = self.image.size_bytes();
        let (mut at, mut sum) = (0, 0);
        while at < size {
            for extent in self.extents(at, size - at, WINDOW_EXTENTS)? {
                at = extent.offset_bytes + extent.len_bytes;
                sum += if extent.kind == ExtentKind::Data { extent.len_bytes } else { 0 };
            }
        }
        Ok(sum)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let chunk = u64::from(self.image.chunk_size().bytes());
        let end = offset + buf.len() as u64;
        let whole = |at: u64| at.is_multiple_of(chunk) || at == self.image.size_bytes();
        if !whole(offset) || !whole(end) {
            // Only at the end of a disk that was resized: chunks of the two repositories differ.
            return self.image.read_at(offset, buf).map_err(|e| failed(offset, e));
        }
        let lock = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut scratch = match kept {
            Some(scratch) => scratch,
            None => ReadScratch::new().map_err(|e| failed(offset, e))?,
        };
        let read = self.image.read_uncached(offset, buf, &mut scratch);
        let told = read.map_err(|e| self.first_bad_chunk(offset, buf, &mut scratch, e));
        lock().push(scratch);
        told
    }

    /// Where in a run that cannot be read the fault lies: its chunks are tried one by one.
    fn first_bad_chunk(
        &self,
        offset: u64,
        buf: &mut [u8],
        scratch: &mut ReadScratch,
        error: backstay_store::Error,
    ) -> Error {
        let mut at = offset;
        for chunk in buf.chunks_mut(self.image.chunk_size().as_usize()) {
            if let Err(e) = self.image.read_uncached(at, chunk, scratch) {
                return failed(at, e);
            }
            at += chunk.len() as u64;
        }
        failed(offset, error)
    }
}

fn failed(offset: u64, e: backstay_store::Error) -> Error {
    use backstay_store::ErrorKind as K;
    let kind = match e.kind() {
        // A missing chunk or pack is damage too: the point says it is there.
        K::Damaged | K::NotFound => ErrorKind::Damaged,
        K::Invalid => ErrorKind::OutOfRange,
        K::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot be read at byte {offset}")).with_source(e)
}

impl BlockDevice for StoredDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.image.size_bytes(),
            min_block_bytes: 1,
            preferred_block_bytes: self.image.chunk_size().bytes(),
            max_request_bytes: REQUEST_MAX,
        }
    }

    fn caps(&self) -> Caps {
        Caps { multi_conn: true, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        self.read(offset_bytes, buf).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let list = self.image.extents(offset_bytes, len_bytes, max);
        let list = list.map_err(|e| {
            self.failed.store(true, Ordering::Relaxed);
            failed(offset_bytes, e)
        })?;
        let extent = |(offset_bytes, len_bytes, data)| {
            let kind = if data { ExtentKind::Data } else { ExtentKind::Hole };
            Extent { offset_bytes, len_bytes, kind }
        };
        Ok(list.into_iter().map(extent).collect())
    }
}
