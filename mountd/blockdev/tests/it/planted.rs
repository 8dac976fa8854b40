//! Devices with planted mistakes. The model must find each of them.

use std::sync::{Arc, Mutex, RwLock};

use backstay_blockdev::model::{Reopens, Subject};
use backstay_blockdev::{
    BlockDevice, Caps, Error, Extent, ExtentKind, Geometry, MemDevice, WriteFlags, push_extent,
};

/// What a [`Planted`] device does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    Nothing,
    /// Every fourth flush does nothing.
    ForgetsFlush,
    ForgetsFua,
    /// A write that reaches the end leaves the last byte out.
    OffByOneAtTheEnd,
    /// A trimmed range shows what lies beside it.
    TrimShowsForeignBytes,
    /// Blocks are read, changed and written back without a lock.
    LosesWritesOnSharedBlocks,
    /// A block stays a hole when its first half is written.
    HoleOverData,
    /// Zeros are written to whole blocks.
    ZeroesTooMuch,
    /// Every 1000th write does not happen.
    LosesAWrite,
    /// What is answered at once is what was there at the start.
    StaleTryRead,
}

const BLOCK: u64 = 4096;

/// A disk with a volatile cache: what it holds now, and what is left of it when the power goes.
#[derive(Debug)]
pub(crate) struct Disk {
    mistake: Mistake,
    now: MemDevice,
    durable: Mutex<Vec<u8>>,
    old: RwLock<Vec<u8>>,
    holes: Mutex<Vec<bool>>,
    count: std::sync::atomic::AtomicU64,
    size: u64,
}

/// A [`Disk`] that can be opened again, and lose its power.
#[derive(Debug)]
pub(crate) struct Planted(Arc<Disk>, Vec<u8>);

fn holes(content: &[u8]) -> Vec<bool> {
    content.chunks(BLOCK as usize).map(|b| b.iter().all(|b| *b == 0)).collect()
}

impl Planted {
    pub(crate) fn new(mistake: Mistake, content: Vec<u8>) -> Self {
        let size = content.len() as u64;
        let disk = Disk {
            mistake,
            now: MemDevice::new(content.clone()),
            durable: Mutex::new(content.clone()),
            old: RwLock::new(content.clone()),
            holes: Mutex::new(holes(&content)),
            count: 0.into(),
            size,
        };
        Self(Arc::new(disk), content)
    }
}

impl Subject for Planted {
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
        Ok(self.0.clone())
    }
    fn content(&self) -> Option<Vec<u8>> {
        Some(self.1.clone())
    }
    fn reopens(&self) -> Reopens {
        Reopens::PowerCut
    }
    fn cut(&self) {
        let disk = &self.0;
        let durable = disk.durable.lock().unwrap();
        // Half of the sectors were written by chance.
        for (i, sector) in durable.chunks(512).enumerate() {
            if disk.next().is_multiple_of(2) {
                disk.now.write_at(i as u64 * 512, sector, WriteFlags::default()).unwrap();
            }
        }
        drop(durable);
        *disk.durable.lock().unwrap() = disk.now.to_vec();
        *disk.holes.lock().unwrap() = holes(&disk.now.to_vec());
    }
}

impl Disk {
    fn next(&self) -> u64 {
        self.count.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn touch(&self, offset: u64, len: u64) {
        let mut holes = self.holes.lock().unwrap();
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            let first_half = offset <= block * BLOCK && offset + len <= block * BLOCK + BLOCK / 2;
            if !(self.is(Mistake::HoleOverData) && first_half) {
                holes[block as usize] = false;
            }
        }
    }

    /// Brings a change to the durable copy.
    fn persist(&self, offset: u64, len: u64, flags: WriteFlags) {
        if flags.fua && !self.is(Mistake::ForgetsFua) {
            let mut part = vec![0; len as usize];
            self.now.read_at(offset, &mut part).unwrap();
            let range = offset as usize..(offset + len) as usize;
            self.durable.lock().unwrap()[range].copy_from_slice(&part);
        }
    }

    /// Without a lock, as one should not.
    fn write_by_blocks(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let end = offset + data.len() as u64;
        let from = offset / BLOCK * BLOCK;
        let to = end.next_multiple_of(BLOCK).min(self.size);
        let mut whole = vec![0; (to - from) as usize];
        self.now.read_at(from, &mut whole)?;
        std::thread::yield_now();
        let at = (offset - from) as usize;
        whole[at..at + data.len()].copy_from_slice(data);
        self.now.write_at(from, &whole, WriteFlags::default())
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        self.now.geometry()
    }
    fn caps(&self) -> Caps {
        self.now.caps()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.now.read_at(offset, buf)
    }
    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
        if !self.is(Mistake::StaleTryRead) {
            return self.now.try_read_at(offset, buf);
        }
        let range = offset as usize..offset as usize + buf.len();
        buf.copy_from_slice(&self.old.read().unwrap()[range]);
        Ok(true)
    }
    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let holes = self.holes.lock().unwrap();
        let (mut at, end) = (offset_bytes, offset_bytes + len_bytes);
        let mut list: Vec<Extent> = Vec::new();
        while at < end {
            let hole = holes[(at / BLOCK) as usize];
            let kind = if hole { ExtentKind::Hole } else { ExtentKind::Data };
            if list.len() == max && list.last().is_some_and(|last| last.kind != kind) {
                break;
            }
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            push_extent(&mut list, Extent { offset_bytes: at, len_bytes: next - at, kind });
            at = next;
        }
        Ok(list)
    }
    fn write_at(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        let len = data.len() as u64;
        self.geometry().check(offset, len)?;
        if self.is(Mistake::LosesAWrite) && self.next() % 1000 == 999 {
            return Ok(());
        }
        self.touch(offset, len);
        if self.is(Mistake::LosesWritesOnSharedBlocks) {
            self.write_by_blocks(offset, data)?;
        } else if self.is(Mistake::OffByOneAtTheEnd) && len > 0 && offset + len == self.size {
            self.now.write_at(offset, &data[..data.len() - 1], flags)?;
        } else {
            self.now.write_at(offset, data, flags)?;
        }
        self.persist(offset, len, flags);
        Ok(())
    }
    fn flush(&self) -> Result<(), Error> {
        if !(self.is(Mistake::ForgetsFlush) && self.next().is_multiple_of(4)) {
            let mut durable = self.durable.lock().unwrap();
            *durable = self.now.to_vec();
        }
        Ok(())
    }
    fn trim(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset, len)?;
        self.touch(offset, len);
        if self.is(Mistake::TrimShowsForeignBytes) && offset >= len {
            let mut beside = vec![0; len as usize];
            self.now.read_at(offset - len, &mut beside)?;
            self.now.write_at(offset, &beside, flags)?;
        } else {
            self.now.trim(offset, len, flags)?;
        }
        self.persist(offset, len, flags);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset, len)?;
        self.touch(offset, len);
        let (mut from, mut to) = (offset, offset + len);
        if self.is(Mistake::ZeroesTooMuch) && len > 0 {
            from = from / 512 * 512;
            to = to.next_multiple_of(512).min(self.size);
        }
        self.now.write_zeroes(from, to - from, flags)?;
        let whole = offset.div_ceil(BLOCK)..(offset + len) / BLOCK;
        let mut holes = self.holes.lock().unwrap();
        whole.for_each(|block| holes[block as usize] = true);
        drop(holes);
        self.persist(offset, len, flags);
        Ok(())
    }
}
