//! The repository: storage, packs, index, keys, sessions, reading and checking.
//!
//! Packs and recovery points are the truth. The index is derived from pack footers and may be
//! deleted at any time. What is written, in which order, and why, stands in
//! `chunkstore/docs/FORMAT.md`; rules are cited here by number (O1, O2, ...).
#![forbid(unsafe_code)]

mod check;
mod check_index;
mod diff;
mod entropy;
mod error;
mod gc;
mod index;
mod key;
mod keys;
mod location;
mod owner;
mod pack;
mod parity;
mod planted;
mod progress;
mod quarantine;
mod read;
mod record;
mod repair;
mod repository;
mod seal;
mod secret;
mod session;
mod storage;
mod verify;
mod vfs;

pub use backstay_format::config::{Encryption, RepoConfig};
pub use backstay_format::keyslot::SlotKind;
pub use backstay_format::point::{
    Consistency, CopiedFrom, DiskRecord, Origin, PointStats, RecoveryPoint,
};
pub use backstay_format::{
    ChunkId, ChunkIndex, ChunkSize, IndexId, PackId, PinId, PointId, RepoId, SlotId,
};

pub use backstay_format::gc::Generation;
pub use backstay_format::session::{Owner, SessionKind};
pub use backstay_format::verified::Level as VerifyLevel;
pub use check::{CheckOptions, CheckReport};
pub use diff::{DiffExtent, DiffKind};
pub use entropy::{Entropy, SystemEntropy};
pub use error::{Error, ErrorKind};
pub use gc::{Amount, CollectOptions, CollectReport, LastCollection};
pub use index::IndexChoice;
pub use key::{Folder, ObjectKey};
pub use location::Location;
pub use parity::ParityReport;
pub use progress::{NoProgress, Progress};
pub use read::{ImageReader, InPlace, ReadScratch};
pub use repair::{
    ChunkSource, DiskPlace, HealedBy, ImageBytes, ImageSource, RepairOptions, RepairReport,
    RepositorySource, WantedChunk,
};
pub use repository::{
    Cause, Hold, InitOptions, Keeper, KeyRotation, KeySlotInfo, OpenOptions, PinInfo, PointList,
    RemovalReport, RepoStats, Repository,
};
pub use secret::{RecoveryKey, Secret, Unlock};
pub use session::{ChunkStats, ImageWriter, NewPoint, SessionInfo, WriteScratch, WriteSession};
pub use storage::{
    Advice, FaultPlan, FaultStorage, Keep, LocalStorage, MemoryStorage, Part, RangeRead,
    S3Location, S3Options, S3Storage, Storage,
};
pub use verify::{
    AGE_DAYS, Damage, DamageKind, KeylessOptions, PackCheckReport, VerifyOptions, VerifyReport,
    VerifyStatus,
};
pub use vfs::{RealFs, Space, Vfs, VfsRead, VfsWrite};

#[cfg(feature = "testkit")]
pub mod testkit;
