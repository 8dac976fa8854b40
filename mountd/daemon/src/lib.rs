//! Opens recovery points: as block devices, as a FUSE tree, over NBD.
//!
//! - [`PointDisk`] is one disk of one recovery point as a
//!   [`BlockDevice`](backstay_blockdev::BlockDevice); every door stands on it.
//! - [`PointFiles`] is what lies inside the disks of a point: volumes and their files.
//! - [`fuse`] shows all points of a repository as `MACHINE/POINT/disks/NAME.raw`.
//! - [`nbd`] serves the disks of one point as NBD exports.
//!
//! What a mount promises is written in `mountd/docs/SEMANTICS.md`.

#![forbid(unsafe_code)]

mod error;
mod files;
pub mod fuse;
pub mod memory;
pub mod mounts;
mod nbd_door;
mod point_disk;

pub use error::{Error, ErrorKind};
pub use files::{FoundFile, FoundTree, PointFiles};
pub use point_disk::PointDisk;

/// The network door: disks of a recovery point as NBD exports.
pub mod nbd {
    pub use crate::nbd_door::PointExports;
}
