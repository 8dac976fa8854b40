//! A file system whose reader is in another process.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::content::OpenContent;
use super::guest::{Guest, strange};
use super::process::Reply;
use super::wire::{Answer, DiskExtent, DiskPlace, FsRequest, PIECE_MAX, Request};
use crate::Error;
use crate::fs::{DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, NodeId, Place, Stat, Xattr};

/// Metadata of nodes kept, so that a listing and the look at each entry are one question. Some 2 MiB.
const STATS_KEPT: usize = 16 << 10;

/// The file system of a volume. Asks a child for everything but the content of files.
///
/// Places of [`extents`](FileSystem::extents) are on the machine's disks: `device` is the disk's place in
/// [`Guest::disks`].
#[derive(Debug)]
pub struct GuestFs {
    guest: Arc<Guest>,
    volume: u32,
    info: FsInfo,
    root: NodeId,
    stats: Cache<NodeId, Stat>,
}

impl GuestFs {
    pub(super) fn new(guest: Arc<Guest>, volume: u32, info: FsInfo, root: NodeId) -> Self {
        Self { guest, volume, info, root, stats: Cache::new(STATS_KEPT) }
    }

    /// The machine it is of.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    fn call(&self, request: FsRequest) -> Result<Reply, Error> {
        self.guest.call(&Request::In(self.volume, request))
    }

    /// The metadata of a node if it is at hand.
    pub fn known_stat(&self, node: NodeId) -> Option<Stat> {
        self.stats.get(&node)
    }

    /// What `name` leads to, with its metadata.
    ///
    /// # Errors
    /// As [`lookup`](FileSystem::lookup) and [`stat`](FileSystem::stat).
    pub fn lookup_stat(&self, dir: NodeId, name: &[u8]) -> Result<Stat, Error> {
        match self.call(FsRequest::Lookup { dir, name: name.to_vec() })? {
            Reply::Answer(Answer::Found(stat)) => {
                self.stats.insert(stat.node, stat);
                Ok(stat)
            }
            _ => Err(strange()),
        }
    }

    /// Entries as [`read_dir`](FileSystem::read_dir) gives them, with their metadata where it can be read.
    ///
    /// # Errors
    /// As `read_dir`.
    pub fn read_dir_stat(
        &self,
        dir: NodeId,
        from: DirCookie,
        max: usize,
    ) -> Result<Vec<(DirEntry, Option<Stat>)>, Error> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let Reply::Answer(Answer::Entries(entries)) =
            self.call(FsRequest::ReadDir { dir, from, max })?
        else {
            return Err(strange());
        };
        if entries.len() > max as usize || entries.iter().any(|(e, _)| !is_name(&e.name)) {
            return Err(Error::damaged("the reader lists what cannot be in a directory"));
        }
        for stat in entries.iter().filter_map(|(_, stat)| *stat) {
            self.stats.insert(stat.node, stat);
        }
        Ok(entries)
    }

    /// Opens a file for reading it in several pieces.
    ///
    /// # Errors
    /// As [`stat`](FileSystem::stat).
    pub fn open_content(self: &Arc<Self>, node: NodeId) -> Result<OpenContent, Error> {
        let stat = self.stat(node)?;
        Ok(OpenContent::new(Arc::clone(self), node, stat.size_bytes))
    }

    /// Content that only the child can make, up to a MiB of it.
    pub(super) fn read_inside(
        &self,
        node: NodeId,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<usize, Error> {
        let len = buf.len().min(PIECE_MAX);
        let request = FsRequest::Read { node, offset_bytes, len_bytes: len as u32 };
        match self.call(request)? {
            Reply::Content(bytes) if bytes.len() <= len => {
                buf[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            _ => Err(strange()),
        }
    }

    /// Where content is on the disks. What the child says is checked: the ranges follow upon each other, and lie within
    /// their disks.
    pub(super) fn disk_extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<DiskExtent>, Error> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let request = FsRequest::Extents { node, offset_bytes, len_bytes, max };
        let Reply::Answer(Answer::Extents(extents)) = self.call(request)? else {
            return Err(strange());
        };
        let mut at = offset_bytes;
        let end = offset_bytes.saturating_add(len_bytes);
        for extent in &extents {
            let next = at.checked_add(extent.len_bytes).filter(|next| *next <= end);
            let follows = extent.offset_bytes == at && extent.len_bytes > 0;
            match next {
                Some(next) if follows && self.is_on_disk(extent) => at = next,
                _ => return Err(Error::damaged("the reader tells a place that is none")),
            }
        }
        Ok(extents)
    }

    fn is_on_disk(&self, extent: &DiskExtent) -> bool {
        let DiskPlace::Disk { disk, offset_bytes } = extent.place else { return true };
        let size =
            self.guest.disks().get(usize::from(disk)).map(|d| d.device.geometry().size_bytes);
        let end = offset_bytes.checked_add(extent.len_bytes);
        matches!((size, end), (Some(size), Some(end)) if end <= size)
    }
}

/// Whether a name can be in a directory: nobody above this needs to look again.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name != b"."
        && name != b".."
        && name.len() <= 1024
        && !name.iter().any(|b| *b == 0 || *b == b'/')
}

impl FileSystem for GuestFs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        self.root
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        Ok(self.lookup_stat(dir, name)?.node)
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let entries = self.read_dir_stat(dir, from, max)?;
        Ok(entries.into_iter().map(|(entry, _)| entry).collect())
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        if let Some(stat) = self.stats.get(&node) {
            return Ok(stat);
        }
        match self.call(FsRequest::Stat(node))? {
            Reply::Answer(Answer::Found(stat)) => {
                self.stats.insert(node, stat);
                Ok(stat)
            }
            _ => Err(strange()),
        }
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        super::content::read(self, node, offset_bytes, buf)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        match self.call(FsRequest::ReadLink(node))? {
            Reply::Answer(Answer::Link(target)) => Ok(target),
            _ => Err(strange()),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        match self.call(FsRequest::Xattrs(node))? {
            Reply::Answer(Answer::Xattrs(all)) => Ok(all),
            _ => Err(strange()),
        }
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let extents = self.disk_extents(node, offset_bytes, len_bytes, max)?;
        Ok(extents.into_iter().map(FileExtent::from).collect())
    }
}

impl From<DiskExtent> for FileExtent {
    fn from(extent: DiskExtent) -> Self {
        let DiskExtent { offset_bytes, len_bytes, place } = extent;
        let place = match place {
            DiskPlace::Hole => Place::Hole,
            DiskPlace::Unwritten => Place::Unwritten,
            DiskPlace::Inside => Place::Inside,
            DiskPlace::Disk { disk, offset_bytes } => Place::Device { device: disk, offset_bytes },
        };
        FileExtent { offset_bytes, len_bytes, place }
    }
}
