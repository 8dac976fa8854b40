//! File systems, one module each, behind one trait.

pub(crate) mod acl;
pub mod btrfs;
pub(crate) mod content;
pub mod exfat;
pub mod ext;
pub mod fat;
pub mod iso9660;
pub mod ntfs;
mod open;
pub(crate) mod utf16;
pub mod xfs;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use open::open;

use crate::Error;

/// A node of a file system: what a name leads to. The same node has the same id as long as the file system is open, and
/// whenever it is opened again over the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId {
    /// The inode number, as the guest sees it where it has such numbers.
    pub inode: u64,
    /// What tells nodes with one inode number apart: a subvolume of btrfs, a stream of an NTFS file. 0 otherwise.
    pub part: u64,
}

impl NodeId {
    /// The node with this inode number.
    pub fn inode(inode: u64) -> Self {
        Self { inode, part: 0 }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            0 => write!(f, "inode {}", self.inode),
            part => write!(f, "inode {} of part {part}", self.inode),
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A moment: seconds since 1970 in UTC, negative before, and nanoseconds forward from there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What a file system knows of a file beyond its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// Marked as not to be changed (`chattr +i`).
    pub immutable: bool,
    /// Marked as only to be appended to (`chattr +a`).
    pub append_only: bool,
    /// Kept compressed on the disk.
    pub compressed: bool,
    /// Encrypted by the file system: what is read are not the bytes that were written.
    pub encrypted: bool,
    /// DOS attribute "hidden".
    pub hidden: bool,
    /// DOS attribute "system".
    pub system: bool,
    /// DOS attribute "read-only".
    pub read_only: bool,
    /// There are no extended attributes, so nobody needs to ask. Where this is false there may be some.
    pub no_xattrs: bool,
}

/// The metadata of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky (`07777`). Where the format has none: 0555 or 0444, writable
    /// bits added where it knows "read-only" and the file is not.
    pub mode: u16,
    /// Owner; 0 where the format has none.
    pub uid: u32,
    /// Group; 0 where the format has none.
    pub gid: u32,
    /// Number of names; for directories what the format keeps.
    pub links: u32,
    /// Length in bytes; of a symbolic link the length of its target; 0 for devices, pipes and sockets.
    pub size_bytes: u64,
    /// Space taken on the disk, in bytes.
    pub allocated_bytes: u64,
    /// Last read.
    pub accessed: Time,
    /// Content last changed.
    pub modified: Time,
    /// Metadata last changed; where the format has none, `modified`.
    pub changed: Time,
    /// When it was made, where the format tells.
    pub created: Option<Time>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Further marks.
    pub attributes: Attributes,
}

/// A place in a directory: where to go on reading. Stands for the same place as long as the bytes are the same.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct DirCookie(pub u64);

impl DirCookie {
    /// Before the first entry.
    pub const START: Self = Self(0);
}

/// An entry of a directory; never `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name as the guest wrote it, any bytes but `/` and NUL, not empty, 1,024 bytes at most. Formats that keep UTF-16
    /// give it as UTF-8, lone surrogates in the same way (WTF-8).
    pub name: Vec<u8>,
    /// What it leads to.
    pub node: NodeId,
    /// What that is, where the directory tells.
    pub kind: Option<NodeKind>,
    /// Reading on from here gives what follows this entry.
    pub next: DirCookie,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Its full name with the namespace as Linux gives it: `user.x`, `security.selinux`, `system.posix_acl_access`.
    pub name: Vec<u8>,
    /// Its value as `getxattr(2)` gives it: ACLs in the kernel's form (`POSIX_ACL_XATTR_VERSION` 2), whatever the disk has.
    pub value: Vec<u8>,
}

/// Where the bytes of a range of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeros.
    Hole,
    /// Space is set aside and nothing was written: it reads as zeros.
    Unwritten,
    /// As they are, at this offset of a device.
    Device {
        /// Which of the devices the file system was opened over; 0 where there is one.
        device: u16,
        /// In bytes from the start of that device.
        offset_bytes: u64,
    },
    /// In a form that only [`FileSystem::read`] knows: compressed, inside metadata, or with a checksum to compare.
    Inside,
}

/// A range of a file that is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileExtent {
    /// Where it starts, in bytes from the start of the file.
    pub offset_bytes: u64,
    /// Its length in bytes, never 0.
    pub len_bytes: u64,
    /// Where its bytes are.
    pub place: Place,
}

impl FileExtent {
    /// Whether `next` goes on where this one ends, in the same place.
    pub(crate) fn joins(&self, next: &Self) -> bool {
        match (self.place, next.place) {
            (
                Place::Device { device, offset_bytes },
                Place::Device { device: next_device, offset_bytes: next_offset },
            ) => {
                device == next_device
                    && offset_bytes.checked_add(self.len_bytes) == Some(next_offset)
            }
            (own, next) => own == next,
        }
    }
}

/// Which file system it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FsKind {
    /// ext2, or ext3 or ext4 by their features.
    Ext2,
    /// A journal, no extents.
    Ext3,
    /// Extents, or any other feature of ext4.
    Ext4,
    /// XFS, version 4 or 5.
    Xfs,
    /// btrfs.
    Btrfs,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    ExFat,
    /// ISO 9660, with Rock Ridge or Joliet where there are any.
    Iso9660,
}

impl FsKind {
    /// Its name as `blkid` gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ntfs => "ntfs",
            Self::Fat => "vfat",
            Self::ExFat => "exfat",
            Self::Iso9660 => "iso9660",
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file system as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsInfo {
    /// Which it is.
    pub kind: FsKind,
    /// Its label; empty if it has none. Bytes that are no text come as U+FFFD.
    pub label: String,
    /// Its UUID or serial number as `blkid` writes it, where it has one.
    pub uuid: Option<String>,
    /// The unit of allocation in bytes.
    pub block_bytes: u32,
    /// What it was made for, in bytes.
    pub size_bytes: u64,
    /// What is not free, in bytes, where that can be told without reading everything.
    pub used_bytes: Option<u64>,
    /// What a user should know: a log that was not replayed, a feature that is passed over. Whole sentences.
    pub notes: Vec<String>,
}

/// A file system that can be read. Nothing in it changes while it is open.
///
/// What callers may rely on:
///
/// * **Threads.** All methods take `&self` and may be called from many threads at once; they block on the device.
/// * **Nodes.** A [`NodeId`] that no method gave out is an error ([`NotFound`](crate::ErrorKind::NotFound) or
///   [`Damaged`](crate::ErrorKind::Damaged)) or a node like any other, never a panic.
/// * **Ends.** Every method ends, however the bytes lie: pages, trees and lists are followed to a named depth, through no block
///   twice in one walk.
/// * **Memory.** A call takes at most some MiB beyond what it gives back; an open file system keeps some MiB, besides the cache of
///   its [`Media`](crate::Media).
/// * **Failure.** Damage is found where a format can show it (checksums are compared where it has them) and is an error
///   that names the structure, its place on the device, and the node. It is never turned into zeros, a short read, or a
///   directory without the entries behind it. Damage in one node does not keep others from being read.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// What it is; cheap, the same at every call.
    fn info(&self) -> &FsInfo;

    /// The root directory.
    fn root(&self) -> NodeId;

    /// What `name` leads to in the directory `dir`; not `.` or `..`.
    ///
    /// The exact name first. Formats that do not tell case apart then take any spelling of it.
    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error>;

    /// Up to `max` entries (at least 1 is asked for) of the directory `dir` from a place on. An empty list is its end;
    /// a list shorter than `max` is not. From [`DirCookie::START`] on, each entry comes exactly once.
    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error>;

    /// The metadata of a node.
    fn stat(&self, node: NodeId) -> Result<Stat, Error>;

    /// Fills `buf` from `offset_bytes` of a file on; answers how much: less than all only at the file's end, 0 from there on.
    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error>;

    /// The target of a symbolic link, as the guest wrote it; not empty, 65,535 bytes at most.
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error>;

    /// All extended attributes of a node, each name once, 16 MiB at most together. None where the format has none.
    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error>;

    /// Where the bytes of a file are from `offset_bytes` on: without gaps, in order, none empty, cut to the file's size and to
    /// `len_bytes`. At most `max` (at least 1 comes back if the range is not empty); may stop early, then the caller asks again
    /// from where the list ends. Neighbours may be in one place; empty from the file's end on.
    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error>;
}
