//! Bytes on disk and back: ids, packs, image trees, recovery points, key slots.
//!
//! Nothing here does I/O, reads a clock or makes random numbers: the same input always gives the
//! same bytes. The normative text is `chunkstore/docs/FORMAT.md`; a test of this crate compares its
//! tables with the constants used here.
#![forbid(unsafe_code)]

pub mod config;
pub mod envelope;
mod error;
mod field;
#[cfg(feature = "testkit")]
pub mod fuzz;
pub mod gc;
mod id;
pub mod index_object;
pub mod keyslot;
pub mod limits;
pub mod magic;
pub mod node;
pub mod pack;
pub mod point;
pub mod record;
pub mod recovery;
pub mod removal;
pub mod session;
mod size;

pub use error::{FormatError, FormatErrorKind};
pub use field::Field;
pub use id::{ChunkId, IndexId, PackId, PinId, PointId, QuarantineId, RepoId, SlotId, VerifiedId};
pub use size::{ChunkIndex, ChunkSize};
