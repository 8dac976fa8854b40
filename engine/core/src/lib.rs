//! Image sources, and the backup, restore and compare pipelines.
//!
//! [`source`] opens disk images as block devices, [`backup`] turns them into a recovery point,
//! [`restore`] turns one back into a file or a device, [`compare`] tells two points apart,
//! [`copy`] takes points to another repository, [`files`] takes files out of a disk, [`name`] finds a point
//! by what people write, [`file_name`] a file in one, and
//! [`retention`] says which points to keep. A [`monitor::Monitor`] watches and cancels. Nothing here
//! knows of arguments, terminals or exit codes; [`ErrorKind`] is what those are made of.
#![forbid(unsafe_code)]

pub mod backup;
pub mod compare;
pub mod copy;
mod error;
pub mod file_name;
pub mod files;
mod landing;
pub mod monitor;
pub mod name;
mod private_dir;
pub mod ranges;
pub mod restore;
pub mod retention;
pub mod save;
pub mod source;
mod tool;
mod workers;

pub use error::{Error, ErrorKind, Result};
