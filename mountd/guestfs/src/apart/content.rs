//! The content of files, read from where the child says it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, ErrorKind as DeviceKind};
use parking_lot::Mutex;

use super::guest_fs::GuestFs;
use super::wire::{DiskExtent, DiskPlace, PIECE_MAX};
use crate::fs::NodeId;
use crate::{Error, ErrorKind};

/// Ranges of a file asked for at once: most files have fewer.
const EXTENTS_ASKED: usize = 256;
/// Ranges of an open file kept. When there are more, all are forgotten and asked for anew.
const EXTENTS_KEPT: usize = 16 << 10;

/// An open file: where its content is, as far as it was needed. Content that lies on the disks as it is, is read there, without
/// the child.
#[derive(Debug)]
pub struct OpenContent {
    fs: Arc<GuestFs>,
    node: NodeId,
    size_bytes: u64,
    extents: Mutex<BTreeMap<u64, DiskExtent>>,
    /// Held while the child is asked, so that two who need one answer ask once.
    asking: Mutex<()>,
}

impl OpenContent {
    pub(super) fn new(fs: Arc<GuestFs>, node: NodeId, size_bytes: u64) -> Self {
        Self { fs, node, size_bytes, extents: Mutex::default(), asking: Mutex::default() }
    }

    /// The length of the file in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buf` from `offset_bytes` on; answers how much: less than all only at the file's end.
    ///
    /// # Errors
    /// As [`FileSystem::read`](crate::fs::FileSystem::read).
    pub fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let len = self.within(offset_bytes, buf.len());
        let mut done = 0;
        while done < len {
            let extent = self.extent(offset_bytes + done as u64)?;
            done += piece(
                &self.fs,
                self.node,
                &extent,
                offset_bytes + done as u64,
                &mut buf[done..len],
            )?;
        }
        Ok(len)
    }

    /// The same, if it takes no waiting: where everything is known, and the disks have it at hand. `None`: ask
    /// [`read_at`](Self::read_at), from a thread that may block.
    ///
    /// # Errors
    /// As `read_at`.
    pub fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Option<usize>, Error> {
        let len = self.within(offset_bytes, buf.len());
        let mut done = 0;
        while done < len {
            let at = offset_bytes + done as u64;
            let Some(extent) = self.known(at) else { return Ok(None) };
            let part = &mut buf[done..len];
            let len = rest(&extent, at, part.len());
            let part = &mut part[..len];
            match extent.place {
                DiskPlace::Hole | DiskPlace::Unwritten => part.fill(0),
                DiskPlace::Inside => return Ok(None),
                DiskPlace::Disk { disk, offset_bytes } => {
                    let start = offset_bytes + (at - extent.offset_bytes);
                    let there = device(&self.fs, disk)?.try_read_at(start, part);
                    if !there.map_err(|e| failed(self.node, e))? {
                        return Ok(None);
                    }
                }
            }
            done += len;
        }
        Ok(Some(len))
    }

    /// Learns where the start of the file is, and has it fetched: while whoever opened it gets round to reading. Blocks for
    /// the first, and what fails is told to who reads.
    pub fn locate(&self, len_bytes: u64) {
        if self.size_bytes > 0 && self.extent(0).is_ok() {
            self.prefetch(0, len_bytes);
        }
    }

    /// A hint that the range will be read soon. Returns at once.
    pub fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes.saturating_add(len_bytes).min(self.size_bytes);
        let mut at = offset_bytes;
        while at < end {
            let Some(extent) = self.known(at) else { return };
            let len = (extent.offset_bytes + extent.len_bytes).min(end) - at;
            if let DiskPlace::Disk { disk, offset_bytes } = extent.place
                && let Ok(device) = device(&self.fs, disk)
            {
                device.prefetch(offset_bytes + (at - extent.offset_bytes), len);
            }
            at += len;
        }
    }

    /// The first offset from `offset_bytes` on with data, or, for `hole`, without; the end of the file counts as a hole. `None` where
    /// there is no data behind. See lseek(2), `SEEK_DATA` and `SEEK_HOLE`.
    ///
    /// # Errors
    /// As [`FileSystem::extents`](crate::fs::FileSystem::extents).
    pub fn seek(&self, offset_bytes: u64, hole: bool) -> Result<Option<u64>, Error> {
        let mut at = offset_bytes;
        while at < self.size_bytes {
            let extent = self.extent(at)?;
            let empty = matches!(extent.place, DiskPlace::Hole | DiskPlace::Unwritten);
            if empty == hole {
                return Ok(Some(at));
            }
            at = extent.offset_bytes + extent.len_bytes;
        }
        Ok((hole && offset_bytes < self.size_bytes).then_some(self.size_bytes))
    }

    fn within(&self, offset_bytes: u64, len: usize) -> usize {
        let left = self.size_bytes.saturating_sub(offset_bytes);
        usize::try_from(left).map_or(len, |left| left.min(len))
    }

    fn known(&self, at: u64) -> Option<DiskExtent> {
        let extents = self.extents.lock();
        let (_, extent) = extents.range(..=at).next_back()?;
        (at - extent.offset_bytes < extent.len_bytes).then_some(*extent)
    }

    /// The range that holds the byte at `at`, asked for if need be.
    fn extent(&self, at: u64) -> Result<DiskExtent, Error> {
        if let Some(extent) = self.known(at) {
            return Ok(extent);
        }
        let _asking = self.asking.lock();
        if let Some(extent) = self.known(at) {
            return Ok(extent);
        }
        let more = self.fs.disk_extents(self.node, at, self.size_bytes - at, EXTENTS_ASKED)?;
        let Some(first) = more.first().copied() else { return Err(cut_off(self.node, at)) };
        let mut extents = self.extents.lock();
        if extents.len() + more.len() > EXTENTS_KEPT {
            extents.clear();
        }
        extents.extend(more.into_iter().map(|e| (e.offset_bytes, e)));
        Ok(first)
    }
}

/// Reads without remembering where: for one piece of a file.
pub(super) fn read(
    fs: &GuestFs,
    node: NodeId,
    offset_bytes: u64,
    buf: &mut [u8],
) -> Result<usize, Error> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset_bytes + done as u64;
        let wanted = (buf.len() - done) as u64;
        let extents = fs.disk_extents(node, at, wanted, EXTENTS_ASKED)?;
        if extents.is_empty() {
            break;
        }
        for extent in &extents {
            let at = offset_bytes + done as u64;
            let mut left = rest(extent, at, buf.len() - done);
            while left > 0 {
                let at = offset_bytes + done as u64;
                let read = piece(fs, node, extent, at, &mut buf[done..done + left])?;
                (done, left) = (done + read, left - read);
            }
        }
    }
    Ok(done)
}

/// How much of an extent from `at` on fits.
fn rest(extent: &DiskExtent, at: u64, room: usize) -> usize {
    let left = extent.offset_bytes + extent.len_bytes - at;
    usize::try_from(left).map_or(room, |left| left.min(room))
}

/// Reads from one extent, which holds the byte at `at`; answers how much, at least one byte.
fn piece(
    fs: &GuestFs,
    node: NodeId,
    extent: &DiskExtent,
    at: u64,
    buf: &mut [u8],
) -> Result<usize, Error> {
    let len = rest(extent, at, buf.len());
    let part = &mut buf[..len];
    match extent.place {
        DiskPlace::Hole | DiskPlace::Unwritten => part.fill(0),
        DiskPlace::Disk { disk, offset_bytes } => {
            let start = offset_bytes + (at - extent.offset_bytes);
            device(fs, disk)?.read_at(start, part).map_err(|e| failed(node, e))?;
        }
        DiskPlace::Inside => {
            let len = len.min(PIECE_MAX);
            return match fs.read_inside(node, at, &mut part[..len])? {
                0 => Err(cut_off(node, at)),
                read => Ok(read),
            };
        }
    }
    Ok(len)
}

fn device(fs: &GuestFs, disk: u16) -> Result<&Arc<dyn BlockDevice>, Error> {
    let disk = fs.guest().disks().get(usize::from(disk));
    disk.map(|d| &d.device).ok_or_else(|| Error::damaged("content on a disk that is not there"))
}

fn cut_off(node: NodeId, at: u64) -> Error {
    Error::damaged(format!("the content of {node} ends at byte {at}, before the file does"))
}

fn failed(node: NodeId, e: backstay_blockdev::Error) -> Error {
    let kind = match e.kind() {
        DeviceKind::Damaged => ErrorKind::Damaged,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot read the content of {node}")).with_source(e)
}
