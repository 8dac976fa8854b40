//! Opening the file system on a device.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;

use super::btrfs::Btrfs;
use super::exfat::ExFat;
use super::ext::Ext;
use super::fat::Fat;
use super::iso9660::Iso9660;
use super::ntfs::Ntfs;
use super::xfs::Xfs;
use super::{FileSystem, FsKind};
use crate::Error;

/// Opens the file system of this kind on these devices: one, or all that are there of a file system over several.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a kind that cannot be read here, and what its reader says.
pub fn open(
    kind: FsKind,
    devices: Vec<Arc<dyn BlockDevice>>,
) -> Result<Box<dyn FileSystem>, Error> {
    let Some(first) = devices.first().map(Arc::clone) else {
        return Err(Error::unsupported("there is no device to read"));
    };
    Ok(match kind {
        FsKind::Btrfs => Box::new(Btrfs::open(devices)?),
        FsKind::ExFat => Box::new(ExFat::open(first)?),
        FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 => Box::new(Ext::open(first)?),
        FsKind::Fat => Box::new(Fat::open(first)?),
        FsKind::Iso9660 => Box::new(Iso9660::open(first)?),
        FsKind::Ntfs => Box::new(Ntfs::open(first)?),
        FsKind::Xfs => Box::new(Xfs::open(first)?),
    })
}
