//! Keeps what was read from a device in memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache as Blocks, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::stripes::Stripes;
use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::{Error, ErrorKind};

/// What a cached block costs besides its bytes.
const ENTRY_BYTES: u64 = 96;
/// Missing blocks that lie side by side are read together, up to this many bytes.
const RUN_BYTES: u64 = 1 << 20;
/// Each shard of the cache has room for this many blocks, or evicting would be blind.
const BLOCKS_PER_SHARD: u64 = 16;

/// Which cache of a pool, and which of its blocks.
type Key = (u64, u64);

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Arc<[u8]>> for ByBytes {
    fn weight(&self, _: &Key, block: &Arc<[u8]>) -> u64 {
        block.len() as u64 + ENTRY_BYTES
    }
}

/// How often a [`Cache`] helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// Blocks that were there.
    pub hits: u64,
    /// Blocks read from the device below.
    pub misses: u64,
}

/// Memory that several caches share: what one device does not need, another has.
#[derive(Debug, Clone)]
pub struct CachePool {
    blocks: Arc<Blocks<Key, Arc<[u8]>, ByBytes>>,
    block_bytes: u64,
    next: Arc<AtomicU64>,
}

impl CachePool {
    /// Of `capacity_bytes`, in blocks of `block_bytes`, a power of two from 512 bytes to
    /// 1 MiB ([`ErrorKind::Unsupported`] if not).
    pub fn new(block_bytes: u32, capacity_bytes: u64) -> Result<Self, Error> {
        if !block_bytes.is_power_of_two() || !(512..=1 << 20).contains(&block_bytes) {
            let text = format!("a cache cannot have blocks of {block_bytes} bytes");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let items = (capacity_bytes / u64::from(block_bytes)).max(1);
        let shards = (items / BLOCKS_PER_SHARD).clamp(1, 32) as usize;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(capacity_bytes)
            .shards(shards)
            .build()
            .map_err(|e| Error::new(ErrorKind::Unsupported, format!("no such cache: {e:?}")))?;
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Ok(Self {
            blocks: Arc::new(Blocks::with_options(options, ByBytes, hasher, lifecycle)),
            block_bytes: block_bytes.into(),
            next: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Bytes of memory in use for blocks; never more than the capacity.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weight()
    }
}

/// A memory cache of whole blocks over a device. Writes go through to the device at once, so nothing is
/// lost with it; blocks read once do not push out those read often. Several readers that miss one block
/// cause one read.
///
/// It must be the only way to the device below: what is written past it is not seen here.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<dyn BlockDevice>,
    geometry: Geometry,
    block_bytes: u64,
    blocks: Arc<Blocks<Key, Arc<[u8]>, ByBytes>>,
    /// Tells its blocks from those of others in the pool.
    own: u64,
    /// Held exclusively to read a block from below into the cache, and to change it: so what is cached
    /// is never older than the last write that returned.
    stripes: Stripes,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Cache {
    /// Caches `capacity_bytes` of `inner` in blocks of `block_bytes`, a power of two from 512 bytes to
    /// 1 MiB ([`ErrorKind::Unsupported`] if not).
    pub fn new(
        inner: Arc<dyn BlockDevice>,
        block_bytes: u32,
        capacity_bytes: u64,
    ) -> Result<Self, Error> {
        Ok(Self::in_pool(inner, &CachePool::new(block_bytes, capacity_bytes)?))
    }

    /// Caches `inner` in memory that it shares with others.
    pub fn in_pool(inner: Arc<dyn BlockDevice>, pool: &CachePool) -> Self {
        Self {
            geometry: inner.geometry(),
            inner,
            block_bytes: pool.block_bytes,
            blocks: Arc::clone(&pool.blocks),
            own: pool.next.fetch_add(1, Ordering::Relaxed),
            stripes: Stripes::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// How often it helped so far.
    pub fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// Bytes of memory in use for blocks, in the whole pool; never more than the capacity.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// The blocks that a range of the device touches.
    fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        offset / self.block_bytes..(offset + len).div_ceil(self.block_bytes)
    }

    /// Where blocks lie in the device; the last one ends with it.
    fn place(&self, blocks: Range<u64>) -> Range<u64> {
        let end = blocks.end.saturating_mul(self.block_bytes).min(self.geometry.size_bytes);
        blocks.start * self.block_bytes..end
    }

    /// Copies the part of `block` that `buf` (which starts at `offset`) covers.
    fn copy(&self, block: u64, bytes: &[u8], offset: u64, buf: &mut [u8]) {
        let start = block * self.block_bytes;
        let from = start.max(offset);
        let to = (start + bytes.len() as u64).min(offset + buf.len() as u64);
        let part = &bytes[(from - start) as usize..(to - start) as usize];
        buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
    }

    /// Reads the blocks of `wanted` that are missing, from its start up to the first one that is not;
    /// answers where the blocks copied to `buf` end. At least one is.
    fn fill(&self, wanted: Range<u64>, offset: u64, buf: &mut [u8]) -> Result<u64, Error> {
        let most = (RUN_BYTES / self.block_bytes).max(1);
        let mut run = wanted.start..wanted.end.min(wanted.start + most);
        let _locks = self.stripes.write(run.clone());
        if let Some(bytes) = self.blocks.get(&(self.own, run.start)) {
            // Another reader was quicker.
            self.copy(run.start, &bytes, offset, buf);
            return Ok(run.start + 1);
        }
        while let Some(next) =
            (run.start + 1..run.end).find(|b| self.blocks.contains_key(&(self.own, *b)))
        {
            run.end = next;
        }
        let place = self.place(run.clone());
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.misses.fetch_add(run.end - run.start, Ordering::Relaxed);
        if self.inner.read_at(place.start, &mut bytes).is_err() {
            // What fails may be a part of a block that nobody asked for.
            let from = place.start.max(offset);
            let to = place.end.min(offset + buf.len() as u64);
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            self.inner.read_at(from, part)?;
            return Ok(run.end);
        }
        for (block, bytes) in run.clone().zip(bytes.chunks(self.block_bytes as usize)) {
            self.copy(block, bytes, offset, buf);
            self.blocks.insert((self.own, block), bytes.into());
        }
        Ok(run.end)
    }

    /// Runs a change of a range of the device, and brings the cache in line with it: `data` is what the
    /// range holds afterwards, where that is known.
    fn change(
        &self,
        offset: u64,
        len: u64,
        data: Option<&[u8]>,
        run: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.geometry.check(offset, len)?;
        let touched = self.touched(offset, len);
        let _locks = self.stripes.write(touched.clone());
        // Taken out first: while the change is under way nobody sees the old bytes after the new ones,
        // and after a failure or a panic nothing is left that may be wrong.
        let old = self.take(&touched);
        run()?;
        let Some(data) = data else { return Ok(()) };
        // Blocks that were not cached stay so: what is written is seldom read at once.
        for (block, old) in old {
            let mut new = old.to_vec();
            let start = block * self.block_bytes;
            let from = start.max(offset);
            let to = (start + new.len() as u64).min(offset + len);
            new[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            self.blocks.insert((self.own, block), new.into());
        }
        Ok(())
    }

    /// Takes blocks out of the cache. Those of a range of more blocks than the cache has are not
    /// answered.
    fn take(&self, touched: &Range<u64>) -> Vec<(u64, Arc<[u8]>)> {
        if touched.end - touched.start > self.blocks.len() as u64 {
            self.blocks.retain(|(own, block), _| *own != self.own || !touched.contains(block));
            return Vec::new();
        }
        touched
            .clone()
            .filter_map(|block| {
                self.blocks.remove(&(self.own, block)).map(|((_, block), bytes)| (block, bytes))
            })
            .collect()
    }
}

impl Drop for Cache {
    /// What nobody can ask for any more makes room for others in the pool.
    fn drop(&mut self) {
        let own = self.own;
        self.blocks.retain(|(of, _), _| *of != own);
    }
}

impl BlockDevice for Cache {
    /// That of the device below, with the cache's blocks as the preferred size.
    fn geometry(&self) -> Geometry {
        let below = self.geometry;
        let preferred = below.preferred_block_bytes.max(self.block_bytes as u32);
        Geometry {
            preferred_block_bytes: preferred,
            max_request_bytes: below.max_request_bytes.max(preferred),
            ..below
        }
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry.check(offset_bytes, buf.len() as u64)?;
        let mut left = self.touched(offset_bytes, buf.len() as u64);
        while !left.is_empty() {
            if let Some(bytes) = self.blocks.get(&(self.own, left.start)) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.copy(left.start, &bytes, offset_bytes, buf);
                left.start += 1;
            } else {
                left.start = self.fill(left.clone(), offset_bytes, buf)?;
            }
        }
        Ok(())
    }

    /// Answers from the cache, and what the device below answers at once.
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.geometry.check(offset_bytes, buf.len() as u64)?;
        let touched = self.touched(offset_bytes, buf.len() as u64);
        for block in touched.clone() {
            let Some(bytes) = self.blocks.get(&(self.own, block)) else {
                return self.inner.try_read_at(offset_bytes, buf);
            };
            self.copy(block, &bytes, offset_bytes, buf);
        }
        self.hits.fetch_add(touched.end - touched.start, Ordering::Relaxed);
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
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.change(offset_bytes, data.len() as u64, Some(data), || {
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
        self.change(offset_bytes, len_bytes, None, || {
            self.inner.write_zeroes(offset_bytes, len_bytes, flags)
        })
    }
}
