//! The block device trait, its layers and local devices.
//!
//! [`BlockDevice`] is the one interface between whatever holds the bytes of a disk (memory, a file, a
//! recovery point, another machine's export) and whatever shows them (NBD, FUSE, the backup
//! pipeline). Layers in [`layer`] are devices over devices, so that fault injection and delay in tests
//! are the same objects users stack.

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod error;
mod file;
pub mod layer;
mod mem;
#[cfg(feature = "conformance")]
pub mod model;
pub mod overlay;
mod readahead;

pub use device::{
    BlockDevice, Caps, Extent, ExtentKind, Geometry, Presence, PresenceExtent, WriteFlags,
    push_extent,
};
pub use error::{Error, ErrorKind};
pub use file::FileDevice;
pub use mem::MemDevice;
pub use readahead::Readahead;
