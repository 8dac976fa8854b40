//! Arrays of Linux' md driver: superblocks of its versions 0.90, 1.0, 1.1 and 1.2 (kernel header `uapi/linux/raid/md_p.h`),
//! and how their members make a volume.

mod array;
mod superblock;

pub(super) use array::{Array, Arrays};
pub(super) use superblock::{read, right};
