//! Writing: a session takes chunks from many threads, fills packs, and ends with one recovery
//! point or with nothing.

mod base;
mod generations;
mod image_writer;
mod lease;
mod open;
mod packer;
mod tree_builder;

use std::sync::Arc;

use backstay_format::point::{
    Consistency, CopiedFrom, DiskRecord, Origin, PointStats, RecoveryPoint,
};
use backstay_format::record::Record;
use backstay_format::session::{Fence, SessionKind};
use backstay_format::{PointId, magic};
use jiff::Timestamp;

use crate::entropy::array;
use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::planted::{Fault, planted};
use crate::read::ImageReader;
use crate::record;
use crate::repository::{Inner, check_present};

pub(crate) use generations::{Newest, condemned, newest};
pub use image_writer::{ChunkStats, ImageWriter, WriteScratch};
pub(crate) use lease::{Lease, Request as LeaseRequest};
pub use open::SessionInfo;
pub(crate) use open::{clear, fence, open_sessions, retire_dead};
pub(crate) use packer::{Candidate, Codec, Packer};
pub(crate) use tree_builder::Piece;

/// What the caller knows of a new recovery point.
#[derive(Clone, Debug)]
pub struct NewPoint {
    /// The machine.
    pub machine: String,
    /// When the backup was made.
    pub time: Timestamp,
    /// How the machine was held still.
    pub consistency: Consistency,
    /// Where it comes from.
    pub origin: Origin,
    /// A note by the user.
    pub note: Option<String>,
    /// The point before it.
    pub parent: Option<PointId>,
    /// Bytes read from the sources.
    pub read_bytes: u64,
    /// Bytes that were holes.
    pub hole_bytes: u64,
    /// What it is a copy of.
    pub copied_from: Option<CopiedFrom>,
}

/// One backup being written. Shared by threads through `&self`; dropped without commit, it leaves
/// chunks behind that a later backup finds, and no recovery point.
///
/// After an error every further call fails: what was promised so far is not known any more.
#[derive(Debug)]
pub struct WriteSession {
    repo: Arc<Inner>,
    packer: Arc<Packer>,
    base: Option<RecoveryPoint>,
    /// The point that is held as base, whether or not it is trusted.
    held: Option<PointId>,
    lease: Arc<Lease>,
    /// What was known of bad copies when the session began to look chunks up.
    quarantine: u64,
}

impl WriteSession {
    pub(crate) fn begin(
        repo: Arc<Inner>,
        base: Option<&RecoveryPoint>,
        purpose: &str,
    ) -> Result<Self> {
        let request = LeaseRequest {
            id: PointId::from_bytes(array(repo.entropy())),
            kind: SessionKind::Writer,
            holds: base.iter().map(|p| p.id).filter(|_| !planted(Fault::BaseNotHeld)).collect(),
            purpose: purpose.to_owned(),
        };
        // O9: registered before anything is looked up: no collection may take what is found then.
        if planted(Fault::PacksListedTooEarly) {
            repo.synchronise()?;
        }
        let (lease, condemned) = Lease::register(&repo, request)?;
        if !planted(Fault::PacksListedTooEarly) {
            repo.synchronise()?;
        }
        // The base is trusted only if every chunk of it is known to be in a present pack, and if
        // it is not removed: asked after the registration, which holds it from then on.
        let index = repo.index()?;
        let present =
            |id: &PointId| planted(Fault::RemovedBaseUsed) || check_present(&repo, *id).is_ok();
        let held = base.map(|p| p.id).filter(present);
        let trusted = |p: &&RecoveryPoint| held == Some(p.id) && index.is_complete(p.id);
        let base = base.filter(trusted).cloned();
        let packer = Packer::start(repo.clone(), lease.id(), condemned)?;
        let quarantine = repo.quarantine().version();
        Ok(Self { repo, packer, base, held, lease, quarantine })
    }

    /// The session's id, which the point will have.
    pub fn id(&self) -> PointId {
        self.lease.id()
    }

    /// Gives a sign of life; done once a minute by itself where the repository may use threads.
    pub fn beat(&self) -> Result<()> {
        self.lease.beat()
    }

    /// Starts a disk. `name` must be unlike the others' and stay within the bounds of
    /// [`backstay_format::point::check_name`]; commit checks it.
    pub fn image(&self, name: &str, source: &str, size_bytes: u64) -> ImageWriter {
        ImageWriter::new(self.packer.clone(), name, source, size_bytes, self.base_reader(name))
    }

    /// The same disk in the base, if it can serve to recognise unchanged chunks.
    fn base_reader(&self, name: &str) -> Option<ImageReader> {
        let disk = self.base.as_ref()?.disk(name)?;
        // A base that cannot be read is no reason to fail: chunks are looked up one by one then.
        ImageReader::new(self.repo.clone(), disk).ok()
    }

    /// Makes what was stored so far durable, so that it can be read back before the commit. Nothing
    /// may be stored meanwhile.
    pub fn flush(&self) -> Result<()> {
        self.packer.barrier().map(drop)
    }

    /// Makes everything durable, then writes the recovery point. When this returns `Ok` the point
    /// survives a power cut (FORMAT.md, rules O2 and O3); on an error there is no point.
    pub fn commit(self, new: NewPoint, disks: Vec<DiskRecord>) -> Result<RecoveryPoint> {
        let early = planted(Fault::PointBeforePacks);
        let stored_bytes = if early { 0 } else { self.packer.barrier()? };
        let stored = self.packer.stats();
        let point = RecoveryPoint {
            id: self.lease.id(),
            machine: new.machine,
            time: new.time,
            disks,
            parent: new.parent,
            consistency: new.consistency,
            origin: new.origin,
            stats: PointStats {
                read_bytes: new.read_bytes,
                hole_bytes: new.hole_bytes,
                new_chunks: stored.new_chunks,
                new_bytes: stored.new_bytes,
                stored_bytes,
            },
            note: new.note,
            copied_from: new.copied_from,
        };
        let invalid = |e| Error::format("the recovery point cannot be written", e);
        point.check(self.repo.config().chunk_size).map_err(invalid)?;
        let payload = point.encode().map_err(invalid)?;
        let key = ObjectKey::Point(point.id);
        let bytes = record::seal(&self.repo, key, magic::POINT, payload)?;
        if bytes.len() > backstay_format::limits::POINT_PAYLOAD_MAX as usize {
            return Err(Error::new(ErrorKind::Invalid, "the recovery point's record is too long"));
        }
        self.repo.index_exchange().flush();
        self.lease.check_ours()?;
        self.lease.check_not_overtaken()?;
        // O2: the packs are durable by now, so the point may become visible.
        if planted(Fault::SessionEndsFirst) {
            self.lease.end();
        }
        self.put_point(key, &bytes)?;
        if early {
            self.packer.barrier()?;
        }
        let index = self.repo.index()?;
        // The session may refer to copies that were found bad meanwhile: then the point is no base
        // to rely on, and the next backup looks every chunk up.
        let learned = self.repo.learn_quarantine().is_ok();
        if learned && self.repo.quarantine().version() == self.quarantine {
            index.set_complete(point.id)?;
        }
        index.publish()?;
        Ok(point)
    }

    /// The compare-and-swap of the commit (rule O10): the point takes its place unless a fence is
    /// there.
    fn put_point(&self, key: ObjectKey, bytes: &[u8]) -> Result<()> {
        let Err(e) = self.repo.storage().put(key, &[bytes]) else { return Ok(()) };
        if planted(Fault::FenceIgnored) && e.kind() == ErrorKind::Exists {
            return Ok(());
        }
        if e.kind() != ErrorKind::Exists {
            // Whether it is there is not known; the registration stays, so that nothing is taken.
            self.lease.abandon();
            return Err(e);
        }
        let max = bytes.len() as u64 + u64::from(Fence::PAYLOAD_MAX);
        match self.repo.storage().get(key, max) {
            // Our own, of an attempt whose answer was lost.
            Ok(found) if found == bytes => Ok(()),
            Ok(found) => match record::decode::<Fence>(&self.repo, key, &found) {
                Ok(f) => Err(self.lease.fenced(&format!("{} ({})", f.reason, f.by))),
                Err(_) => Err(e),
            },
            Err(other) => Err(other),
        }
    }
}
