//! What is on the disks of a machine: partition tables, logical volumes, arrays, and what each of them holds.
//!
//! [`scan`] looks at all disks together, for volume groups and arrays span them. It finds volumes, and makes of each a
//! device ([`Mapped`]) that knows for every byte on which disk it lies. No kernel and no tool of the host takes part: a
//! volume group of a guest that is called as one of the host meets nobody.

pub(crate) mod fuzzing;
mod gpt;
mod luks;
mod lvm;
mod map;
mod mapped;
mod mbr;
mod md;
mod parity;
mod probe;
mod scan;
mod types;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use serde::{Deserialize, Serialize};

use crate::fs::FsKind;

pub use mapped::{Mapped, Piece, PieceAt};
pub use scan::scan;

/// A disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its name in the recovery point: `disk0`, `vda`.
    pub name: String,
    /// Its bytes.
    pub device: Arc<dyn BlockDevice>,
}

/// What kind of partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TableKind {
    /// A master boot record, with the chain of its extended partition.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Content {
    /// A partition table; the partitions are volumes of their own.
    Table(TableKind),
    /// A file system that can be read.
    FileSystem(FsKind),
    /// A physical volume of LVM.
    LvmPv {
        /// The volume group it belongs to; empty if it belongs to none, or that cannot be told.
        vg: String,
    },
    /// A logical volume that cannot be looked into; the error says why.
    LvmLv,
    /// A member of an array of Linux' md driver.
    MdMember,
    /// An encrypted volume.
    Luks {
        /// 1 or 2.
        version: u16,
        /// The cipher, as `cryptsetup luksDump` writes it: `aes-xts-plain64`.
        cipher: String,
        /// Its UUID.
        uuid: String,
    },
    /// Swap space of Linux.
    Swap,
    /// An extended partition: the logical ones are volumes of their own.
    Extended,
    /// Nothing that is known.
    Empty,
    /// Something that is known by name alone: `apfs`, `zfs_member`, `BitLocker`, names as of `blkid`.
    Other(Cow<'static, str>),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(TableKind::Mbr) => f.write_str("partition table (MBR)"),
            Self::Table(TableKind::Gpt) => f.write_str("partition table (GPT)"),
            Self::FileSystem(kind) => f.write_str(kind.name()),
            Self::LvmPv { vg } if vg.is_empty() => f.write_str("LVM physical volume"),
            Self::LvmPv { vg } => write!(f, "LVM physical volume of {vg}"),
            Self::LvmLv => f.write_str("LVM logical volume"),
            Self::MdMember => f.write_str("member of an array"),
            Self::Luks { version, .. } => write!(f, "LUKS{version}, encrypted"),
            Self::Swap => f.write_str("swap"),
            Self::Extended => f.write_str("extended partition"),
            Self::Empty => f.write_str("empty or unknown"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// What a partition table says of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Its number, as Linux counts: of the entry, and from 5 on for logical partitions.
    pub number: u32,
    /// Where it starts on what holds the table, in bytes.
    pub start_bytes: u64,
    /// Its type in words, or the number or GUID where it has none.
    pub type_name: String,
    /// Its name in the table; empty where there is none.
    pub name: String,
    /// Its marks: `boot`, `required`, `hidden`, `read-only`, `no-automount`.
    pub flags: Vec<Cow<'static, str>>,
    /// Its identifier as `blkid` writes it (`PARTUUID`), where the table has one.
    pub uuid: Option<String>,
}

/// Something on the disks of a machine that has a size: a disk, a partition, an array, a logical volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// What a user calls it: `disk0`, `disk0p2`, `vg0/root`, `md0`. Unique in its tree, and the same at every scan of the same bytes.
    pub name: String,
    /// What it is made of: indices into [`VolumeTree::volumes`], all smaller than its own. Empty for disks.
    pub parents: Vec<usize>,
    /// What it holds.
    pub content: Content,
    /// The label of what it holds; empty if it has none.
    pub label: String,
    /// The UUID or serial number of what it holds, as `blkid` writes it.
    pub uuid: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// If it is a partition: what the table says of it.
    pub partition: Option<PartitionInfo>,
    /// What a user should know. Whole sentences.
    pub notes: Vec<String>,
    /// Why it cannot be read, or only in part.
    pub error: Option<String>,
    #[serde(skip)]
    devices: Vec<Arc<Mapped>>,
}

impl Volume {
    /// The devices its file system lies on: one, or several for a btrfs over several, which has them all in the volume of its first
    /// device. None if it cannot be read at all: [`error`](Self::error) says why.
    pub fn devices(&self) -> Vec<Arc<Mapped>> {
        self.devices.clone()
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VolumeTree {
    /// Volumes, what they are made of before them.
    pub volumes: Vec<Volume>,
    /// What a user should know and belongs to no single volume. Whole sentences.
    pub notes: Vec<String>,
}

impl VolumeTree {
    /// Where in the list the volume of that name is.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.name == name)
    }

    /// The volume of that name.
    pub fn find(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }
}
