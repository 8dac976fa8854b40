//! What is on a disk, read without the help of a kernel: partitions, logical volumes, and the files of guest file systems.
//!
//! Everything here may be hostile: a disk is what a guest made of it. So readers are `forbid(unsafe_code)`, own no thread, write
//! nothing, take memory only by what is checked against a named bound, and end: no loop in a structure makes one in its
//! reader. What they cannot read is an [`Error`] that names the place.

#![forbid(unsafe_code)]

pub mod apart;
mod error;
mod fields;
pub mod fs;
mod fstab;
pub mod fuzz;
pub mod joined;
mod media;
pub mod namespace;
pub mod volumes;

pub use error::{Error, ErrorKind};
pub use media::Media;
