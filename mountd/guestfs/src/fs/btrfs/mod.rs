//! btrfs. Source: btrfs documentation, "On-disk format" (btrfs.readthedocs.io).
//!
//! The root is the tree at the top; subvolumes and snapshots are directories in it, and [`NodeId::part`] is the subvolume. Metadata
//! is compared with its checksums always, content where it has them; where a copy is bad, the others are read. A log of
//! fsyncs that was not replayed is told, and not read.

mod chunks;
mod content;
mod dir;
mod file;
mod inode;
mod subvolume;
mod sums;
mod superblock;
mod tree;
mod unpack;
mod volume;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::sync::Cache;

use self::content::Content;
use self::dir::{Directory, EMPTY_INODE};
use self::file::{Packed, Segment, Segments, Source};
use self::inode::Inode;
use self::subvolume::{ROOT_INODE, SUMS, TOP};
pub(crate) use self::sums::name_hash;
use self::superblock::{Root, Superblock};
use self::volume::{Member, Volume};
use super::{
    DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind, Place, Stat,
    Xattr,
};
use crate::{Error, ErrorKind, Media};

/// Decoded compressed extents that are kept: a sequential reader asks for each several times.
const UNPACKED_KEPT: usize = 16;
/// Roots of subvolumes that are kept.
const ROOTS_KEPT: usize = 1024;
/// The longest target of a symbolic link.
const LINK_MAX: u64 = 65_535;
/// Most extents one call of `extents` looks at.
const SEGMENTS_MAX: usize = 4096;

/// A btrfs over one or several devices.
pub struct Btrfs {
    volume: Volume,
    root_tree: Root,
    info: FsInfo,
    roots: Cache<u64, Root>,
    unpacked: Cache<Packed, Arc<Vec<u8>>>,
}

impl fmt::Debug for Btrfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btrfs").field("volume", &self.volume).finish_non_exhaustive()
    }
}

/// Whether a device bears the mark of btrfs.
pub fn is_here(media: &Media) -> bool {
    superblock::is_here(media)
}

impl Btrfs {
    /// Opens the file system on the first of these devices that bears one and is no seed. Of the others those are used that
    /// belong to it, in any order; a device that is missing is told in the notes.
    ///
    /// # Errors
    /// `Unsupported` for features that are not read here, by name; `Damaged` if superblock or chunk tree are.
    pub fn open(devices: Vec<Arc<dyn BlockDevice>>) -> Result<Self, Error> {
        let (superblock, members) = members(devices)?;
        let volume = Volume::new(superblock, members)?;
        let root_tree = volume.superblock.root;
        let mut fs = Self {
            info: info(&volume),
            volume,
            root_tree,
            roots: Cache::new(ROOTS_KEPT),
            unpacked: Cache::new(UNPACKED_KEPT),
        };
        // Without these nothing can be read.
        fs.inode(fs.root())?;
        if let Some(id) = dir::default_subvolume(&fs.volume, root_tree)?
            && id != TOP
        {
            let text = format!("The guest mounts subvolume {id} by default; the top is shown.");
            fs.info.notes.push(text);
        }
        Ok(fs)
    }

    fn subvolume(&self, id: u64) -> Result<Root, Error> {
        if let Some(root) = self.roots.get(&id) {
            return Ok(root);
        }
        if !subvolume::is_subvolume(id) {
            return Err(Error::not_found(format!("there is no subvolume {id}")));
        }
        let root = subvolume::root(&self.volume, self.root_tree, id)?;
        self.roots.insert(id, root);
        Ok(root)
    }

    fn inode(&self, node: NodeId) -> Result<Inode, Error> {
        let root = self.subvolume(node.part)?;
        if node.inode == EMPTY_INODE {
            return self.empty(root, node);
        }
        if node.inode < ROOT_INODE {
            return Err(Error::not_found(format!("there is no {node}")));
        }
        Inode::read(&self.volume, root, node)
    }

    /// The empty directory that a snapshot has in place of a subvolume: owner and times are those of the snapshot's root.
    fn empty(&self, root: Root, node: NodeId) -> Result<Inode, Error> {
        let mut inode = Inode::read(&self.volume, root, NodeId { inode: ROOT_INODE, ..node })?;
        inode.stat = Stat {
            node,
            kind: NodeKind::Directory,
            mode: 0o755,
            links: 1,
            size_bytes: 0,
            allocated_bytes: 0,
            ..inode.stat
        };
        Ok(inode)
    }

    fn directory(&self, node: NodeId) -> Result<Directory<'_>, Error> {
        let inode = self.inode(node)?.directory()?;
        Ok(Directory { volume: &self.volume, root_tree: self.root_tree, root: inode.root, node })
    }

    /// Fills `buf` from a file's offset on, which is not behind its end; answers how much.
    fn fill(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let left = inode.stat.size_bytes.saturating_sub(offset);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let buf = &mut buf[..len];
        let mut segments = Segments::new(&self.volume, inode, offset)?;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let Some(segment) = segments.next()? else { break };
            if segment.end <= at {
                continue;
            }
            let room = len - done;
            let part = usize::try_from(segment.end - at).map_or(room, |n| n.min(room));
            self.segment(inode, &segment, at - segment.start, &mut buf[done..done + part])?;
            done += part;
        }
        if done < len {
            let text = format!("the extents of {} end at byte {done}", inode.stat.node);
            return Err(Error::damaged(text));
        }
        Ok(done)
    }

    /// Fills `buf` from `skip` bytes into a segment on.
    fn segment(
        &self,
        inode: &Inode,
        segment: &Segment,
        skip: u64,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        match &segment.source {
            Source::Hole | Source::Preallocated => buf.fill(0),
            Source::Inline { item, decoded_bytes, compression } => {
                let stored = file::inline_bytes(item);
                let sector = self.volume.superblock.sector_bytes as usize;
                let decoded = compression
                    .map(|c| unpack::unpack(c, stored, *decoded_bytes as usize, sector, 0))
                    .transpose()
                    .map_err(|e| item.damaged("is not what it says").with_source(e))?;
                copy_from(decoded.as_deref().unwrap_or(stored), skip, buf)?;
            }
            Source::Plain { address } => self.content(inode)?.read(address + skip, buf)?,
            Source::Packed { packed, skip: before } => {
                let decoded = match self.unpacked.get(packed) {
                    Some(decoded) => decoded,
                    None => {
                        let decoded = Arc::new(self.content(inode)?.unpacked(packed)?);
                        self.unpacked.insert(*packed, Arc::clone(&decoded));
                        decoded
                    }
                };
                copy_from(&decoded, before + skip, buf)?;
            }
        }
        Ok(())
    }

    fn content(&self, inode: &Inode) -> Result<Content<'_>, Error> {
        let sums = if inode.unsummed {
            None
        } else {
            Some(subvolume::root(&self.volume, self.root_tree, SUMS)?)
        };
        Ok(Content { volume: &self.volume, sums })
    }

    /// The part of a segment from `start` on that is in one place.
    fn place(&self, inode: &Inode, segment: &Segment, start: u64) -> FileExtent {
        let all = segment.end - start;
        let (len_bytes, place) = match segment.source {
            Source::Hole => (all, Place::Hole),
            Source::Preallocated => (all, Place::Unwritten),
            Source::Plain { address } if inode.unsummed => {
                let found = self.volume.map(address + (start - segment.start)).ok();
                let found = found.and_then(|mapped| {
                    let len = all.min(mapped.len);
                    let copy = mapped.copies.iter().find(|c| self.volume.is_within(**c, len))?;
                    let device = self.volume.index_of(*copy)?;
                    Some((len, Place::Device { device, offset_bytes: copy.offset }))
                });
                // What is nowhere fails when it is read.
                found.unwrap_or((all, Place::Inside))
            }
            _ => (all, Place::Inside),
        };
        FileExtent { offset_bytes: start, len_bytes, place }
    }
}

/// The newest superblock of the file system the first device is of, and all devices that bear one.
fn members(devices: Vec<Arc<dyn BlockDevice>>) -> Result<(Superblock, Vec<Member>), Error> {
    let (mut members, mut first_error) = (Vec::new(), None);
    for (index, device) in devices.into_iter().enumerate() {
        let media = Media::new(device)?;
        let index = u16::try_from(index)
            .map_err(|_| Error::new(ErrorKind::Limit, "more than 65,536 devices"))?;
        match superblock::read(&media) {
            Ok(superblock) => members.push(Member { media, superblock, index }),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    let wanted = members.iter().find(|m| !m.superblock.is_seed).or(members.first());
    let Some(fsid) = wanted.map(|m| m.superblock.fsid) else {
        return Err(first_error.unwrap_or_else(|| Error::unsupported("there is no device to read")));
    };
    let of_it = members.iter().map(|m| &m.superblock).filter(|s| s.fsid == fsid);
    match of_it.max_by_key(|s| s.generation).cloned() {
        Some(newest) => Ok((newest, members)),
        None => Err(Error::damaged("there is no superblock of btrfs")),
    }
}

fn info(volume: &Volume) -> FsInfo {
    let superblock = &volume.superblock;
    let mut notes = volume.notes();
    if superblock.has_log {
        notes.push(
            "There is a log of what was synced last (fsync), which is not read: files written shortly before may be \
             older than the guest saw them."
                .to_owned(),
        );
    }
    FsInfo {
        kind: FsKind::Btrfs,
        label: superblock.label.clone(),
        uuid: Some(uuid(&superblock.fsid)),
        block_bytes: superblock.sector_bytes,
        size_bytes: superblock.total_bytes,
        used_bytes: Some(superblock.used_bytes),
        notes,
    }
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn copy_from(bytes: &[u8], skip: u64, buf: &mut [u8]) -> Result<(), Error> {
    let part = usize::try_from(skip)
        .ok()
        .and_then(|skip| bytes.get(skip..))
        .and_then(|rest| rest.get(..buf.len()))
        .ok_or_else(|| Error::damaged(format!("an extent ends at byte {}", bytes.len())))?;
    buf.copy_from_slice(part);
    Ok(())
}

impl FileSystem for Btrfs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId { inode: ROOT_INODE, part: TOP }
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        self.directory(dir)?.lookup(name)
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        self.directory(dir)?.list(from, max)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let inode = self.inode(node)?;
        let mut stat = inode.stat;
        // Mostly in the block that the inode is in, so nearly free; asking for them later is not.
        stat.attributes.no_xattrs = node.inode == EMPTY_INODE
            || !dir::has_xattrs(&self.volume, inode.root, node.inode).unwrap_or(true);
        Ok(stat)
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let inode = self.inode(node)?.file()?;
        if offset_bytes >= inode.stat.size_bytes || buf.is_empty() {
            return Ok(0);
        }
        self.fill(&inode, offset_bytes, buf)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let inode = self.inode(node)?;
        if inode.stat.kind != NodeKind::Symlink {
            return Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link")));
        }
        let len = inode.stat.size_bytes;
        if len == 0 || len > LINK_MAX {
            let text = format!("the target of the symbolic link {node} is {len} bytes long");
            return Err(Error::damaged(text));
        }
        let mut target = vec![0; len as usize];
        self.fill(&inode, 0, &mut target)?;
        Ok(target)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        let inode = self.inode(node)?;
        if node.inode == EMPTY_INODE {
            return Ok(Vec::new());
        }
        dir::xattrs(&self.volume, inode.root, node.inode)
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let inode = self.inode(node)?.file()?;
        let end = offset_bytes.saturating_add(len_bytes).min(inode.stat.size_bytes);
        let mut list: Vec<FileExtent> = Vec::new();
        if offset_bytes >= end {
            return Ok(list);
        }
        let mut segments = Segments::new(&self.volume, &inode, offset_bytes)?;
        let mut at = offset_bytes;
        for _ in 0..SEGMENTS_MAX {
            let Some(mut segment) = segments.next()? else { break };
            segment.end = segment.end.min(end);
            while at < segment.end && list.len() < max.max(1) {
                let extent = self.place(&inode, &segment, at);
                at += extent.len_bytes;
                match list.last_mut() {
                    // Not for devices: neighbours may share one extent.
                    Some(last)
                        if last.place == extent.place
                            && !matches!(extent.place, Place::Device { .. }) =>
                    {
                        last.len_bytes += extent.len_bytes;
                    }
                    _ => list.push(extent),
                }
            }
            if at >= end || list.len() >= max.max(1) {
                break;
            }
        }
        Ok(list)
    }
}
