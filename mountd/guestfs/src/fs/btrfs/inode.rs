//! Inodes. Source: btrfs documentation, "On-disk format", `INODE_ITEM`.

use super::superblock::Root;
use super::tree::{Item, Key, find, key_type};
use super::volume::Volume;
use crate::fs::{Attributes, NodeId, NodeKind, Stat, Time};
use crate::{Error, ErrorKind};

/// Content has no checksums.
const NO_SUMS: u64 = 1;
const IMMUTABLE: u64 = 1 << 6;
const APPEND_ONLY: u64 = 1 << 7;
const COMPRESSED: u64 = 1 << 11;
/// The longest file the kernel has.
const SIZE_MAX: u64 = i64::MAX as u64;

/// A node, with the tree it is in.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) root: Root,
    pub(super) stat: Stat,
    /// Its content has no checksums.
    pub(super) unsummed: bool,
}

impl Inode {
    /// Reads the inode of `node` in the tree of its subvolume.
    pub(super) fn read(volume: &Volume, root: Root, node: NodeId) -> Result<Self, Error> {
        let item = find(volume, root, Key::new(node.inode, key_type::INODE, 0))?
            .ok_or_else(|| Error::not_found(format!("there is no {node}")))?;
        let flags = item.fields().le64(64)?;
        let stat = stat(&item, node, flags, volume.superblock.sector_bytes)?;
        Ok(Self { root, stat, unsummed: flags & NO_SUMS != 0 })
    }

    /// The same, if it is a directory.
    pub(super) fn directory(self) -> Result<Self, Error> {
        if self.stat.kind == NodeKind::Directory {
            return Ok(self);
        }
        let text = format!("{} is no directory", self.stat.node);
        Err(Error::new(ErrorKind::NotADirectory, text))
    }

    /// The same, if it is a regular file.
    pub(super) fn file(self) -> Result<Self, Error> {
        match self.stat.kind {
            NodeKind::File => Ok(self),
            NodeKind::Directory => {
                let text = format!("{} is a directory", self.stat.node);
                Err(Error::new(ErrorKind::IsADirectory, text))
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("{} is no file", self.stat.node))),
        }
    }
}

fn stat(item: &Item, node: NodeId, flags: u64, sector: u32) -> Result<Stat, Error> {
    let f = item.fields();
    let mode = f.le32(52)?;
    let kind = match mode & 0o170_000 {
        0o100_000 => NodeKind::File,
        0o040_000 => NodeKind::Directory,
        0o120_000 => NodeKind::Symlink,
        0o020_000 => NodeKind::CharDevice,
        0o060_000 => NodeKind::BlockDevice,
        0o010_000 => NodeKind::Fifo,
        0o140_000 => NodeKind::Socket,
        _ => return Err(item.damaged(format!("has mode {mode:o}"))),
    };
    let time = |at: usize| -> Result<Time, Error> {
        let (seconds, nanos) = (f.le64(at)?.cast_signed(), f.le32(at + 8)?);
        if nanos >= 1_000_000_000 {
            return Err(item.damaged(format!("has a time with {nanos} nanoseconds")));
        }
        Ok(Time { seconds, nanos })
    };
    let is_sized = matches!(kind, NodeKind::File | NodeKind::Directory | NodeKind::Symlink);
    let size_bytes = if is_sized { f.le64(16)? } else { 0 };
    if size_bytes > SIZE_MAX {
        return Err(item.damaged(format!("has a size of {size_bytes} bytes")));
    }
    let is_device = matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice);
    let number = f.le64(56)?;
    let created = time(148)?;
    Ok(Stat {
        node,
        kind,
        mode: (mode & 0o7777) as u16,
        uid: f.le32(44)?,
        gid: f.le32(48)?,
        links: f.le32(40)?,
        size_bytes,
        allocated_bytes: f.le64(24)?.checked_next_multiple_of(sector.into()).unwrap_or(u64::MAX),
        accessed: time(112)?,
        modified: time(136)?,
        changed: time(124)?,
        // Kernels before 4.1 did not write it.
        created: (created != Time::default()).then_some(created),
        // The kernel's own form of a device number: 20 bits of minor.
        device: is_device.then_some((((number >> 20) & 0xfff) as u32, (number & 0xf_ffff) as u32)),
        attributes: Attributes {
            immutable: flags & IMMUTABLE != 0,
            append_only: flags & APPEND_ONLY != 0,
            compressed: flags & COMPRESSED != 0,
            ..Attributes::default()
        },
    })
}
