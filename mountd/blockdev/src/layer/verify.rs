//! Does not believe a device.

use std::hash::Hasher;
use std::ops::Range;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::stripes::Stripes;
use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::{Error, ErrorKind};

/// The grain of checksums.
const BLOCK_BYTES: u64 = 4096;

/// A device that holds another one to what was written to it. It keeps a checksum for each block of
/// 4096 bytes that was written, or zeroed, as a whole or in part, for as many blocks as it has room
/// for; a block that reads back as something else is [`ErrorKind::Damaged`], with its place. Blocks
/// that were not written, or trimmed since, or forgotten for want of room, are believed.
///
/// It must be the only way to the device below.
#[derive(Debug)]
pub struct Verify {
    inner: Arc<dyn BlockDevice>,
    geometry: Geometry,
    sums: Cache<u64, u64>,
    /// A block is not read while it changes: between the two its checksum would be wrong.
    stripes: Stripes,
}

impl Verify {
    /// `inner`, with checksums for up to `blocks` blocks (about 64 bytes of memory for each).
    pub fn new(inner: Arc<dyn BlockDevice>, blocks: usize) -> Self {
        let geometry = inner.geometry();
        Self { inner, geometry, sums: Cache::new(blocks), stripes: Stripes::new() }
    }

    fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES)
    }

    fn place(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = blocks.end.saturating_mul(BLOCK_BYTES).min(self.geometry.size_bytes);
        blocks.start * BLOCK_BYTES..end
    }

    /// Compares whole blocks, the first of which is `first`, with their checksums.
    fn check(&self, first: u64, bytes: &[u8]) -> Result<(), Error> {
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            if self.sums.get(&block).is_some_and(|sum| sum != checksum(bytes)) {
                let (len, at) = (bytes.len(), block * BLOCK_BYTES);
                let text = format!("{len} bytes at offset {at} are not what was written there");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
        }
        Ok(())
    }

    /// Reads by `read`, whole blocks where checksums are known. The caller holds the stripes.
    fn checked(
        &self,
        offset: u64,
        buf: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let touched = self.touched(offset, buf.len() as u64);
        if !touched.clone().any(|block| self.sums.contains_key(&block)) {
            return read(offset, buf);
        }
        let place = self.place(&touched);
        if place == (offset..offset + buf.len() as u64) {
            let done = read(offset, buf)?;
            return if done { self.check(touched.start, buf).map(|()| true) } else { Ok(false) };
        }
        let mut whole = vec![0; (place.end - place.start) as usize];
        if !read(place.start, &mut whole)? {
            return Ok(false);
        }
        self.check(touched.start, &whole)?;
        let skip = (offset - place.start) as usize;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(true)
    }

    /// A block as it is to be after `data` was written to `range`, which is a part of it.
    fn patched(&self, block: u64, range: &Range<u64>, data: &[u8]) -> Result<Vec<u8>, Error> {
        let place = self.place(&(block..block + 1));
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.inner.read_at(place.start, &mut bytes)?;
        self.check(block, &bytes)?;
        let from = (range.start - place.start) as usize;
        bytes[from..from + data.len()].copy_from_slice(data);
        Ok(bytes)
    }

    /// Runs a change that makes `[offset, offset + len)` hold what `data` answers for each part of a
    /// block, and keeps the checksums. `None` is nothing known.
    fn change<'d>(
        &self,
        offset: u64,
        len: u64,
        data: Option<&dyn Fn(Range<u64>) -> std::borrow::Cow<'d, [u8]>>,
        run: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.geometry.check(offset, len)?;
        let touched = self.touched(offset, len);
        let _locks = self.stripes.write(touched.clone());
        let mut sums = Vec::new();
        // More than there is room for would only push out each other.
        if let Some(data) = data.filter(|_| touched.end - touched.start <= self.sums.capacity()) {
            for block in touched.clone() {
                let place = self.place(&(block..block + 1));
                let part = place.start.max(offset)..place.end.min(offset + len);
                let bytes = data(part.clone());
                let sum = match part == place {
                    true => checksum(&bytes),
                    false => checksum(&self.patched(block, &part, &bytes)?),
                };
                sums.push((block, sum));
            }
        }
        // Forgotten first: after a failure or a panic nobody knows what is there.
        if touched.end - touched.start > self.sums.len() as u64 {
            self.sums.retain(|block, _| !touched.contains(block));
        } else {
            touched.for_each(|block| {
                self.sums.remove(&block);
            });
        }
        run()?;
        for (block, sum) in sums {
            self.sums.insert(block, sum);
        }
        Ok(())
    }
}

/// Good against accidents, which is what is looked for here.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl BlockDevice for Verify {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry.check(offset_bytes, buf.len() as u64)?;
        let _locks = self.stripes.read(self.touched(offset_bytes, buf.len() as u64));
        self.checked(offset_bytes, buf, |at, buf| self.inner.read_at(at, buf).map(|()| true))
            .map(|_| ())
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.geometry.check(offset_bytes, buf.len() as u64)?;
        let touched = self.touched(offset_bytes, buf.len() as u64);
        let Some(_locks) = self.stripes.try_read(touched) else { return Ok(false) };
        self.checked(offset_bytes, buf, |at, buf| self.inner.try_read_at(at, buf))
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

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        let part = |part: Range<u64>| {
            let range = (part.start - offset_bytes) as usize..(part.end - offset_bytes) as usize;
            data[range].into()
        };
        self.change(offset_bytes, data.len() as u64, Some(&part), || {
            self.inner.write_at(offset_bytes, data, flags)
        })
    }

    fn flush(&self) -> Result<(), Error> {
        self.inner.flush()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        self.change(offset_bytes, len_bytes, None, || {
            self.inner.trim(offset_bytes, len_bytes, flags)
        })
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
        let part = |part: Range<u64>| ZEROS[..(part.end - part.start) as usize].into();
        self.change(offset_bytes, len_bytes, Some(&part), || {
            self.inner.write_zeroes(offset_bytes, len_bytes, flags)
        })
    }
}
