//! Copying one point.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use backstay_store::{
    CopiedFrom, DiskRecord, ImageWriter, NewPoint, RecoveryPoint, Repository, WriteSession,
};

use super::disk::StoredDisk;
use super::verify::{self, Pair};
use super::{Identity, Verify, identity};
use crate::backup::changes::{is_loss, to_read, trust};
use crate::backup::feed::FeedDisk;
use crate::backup::read::{self, Done, Target};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::ranges::Ranges;

/// A point of the source whose copy the destination has.
#[derive(Clone, Copy)]
pub(super) struct Twins<'a> {
    pub(super) source: &'a RecoveryPoint,
    pub(super) copy: &'a RecoveryPoint,
}

/// Where from, where to, and how.
pub(super) struct Way<'a> {
    pub(super) from: &'a Repository,
    pub(super) to: &'a Repository,
    pub(super) verify: Verify,
    pub(super) workers: usize,
    pub(super) monitor: &'a dyn Monitor,
}

/// What copying a point came to.
pub(super) enum Arrived {
    Copied {
        point: RecoveryPoint,
        done: Done,
        verified_bytes: u64,
    },
    /// Somebody else had copied it when this copy was about to be committed.
    Before(RecoveryPoint),
}

/// Why a point did not arrive.
pub(super) struct Failure {
    pub(super) error: Error,
    /// The source cannot be read there: other points may be better off.
    pub(super) of_source: bool,
}

/// What differs between two disks, and may be read again for it.
pub(super) fn difference(
    repo: &Repository,
    before: &DiskRecord,
    disk: &DiskRecord,
) -> Result<Ranges, backstay_store::Error> {
    let mut changed = Ranges::default();
    repo.diff_images(before, disk, &mut |e| {
        changed.push(e.offset_bytes, e.offset_bytes.saturating_add(e.len_bytes));
    })?;
    Ok(changed)
}

impl Way<'_> {
    /// Copies one point; `label` is its place in the whole, as `2/7`. When this returns
    /// [`Arrived::Copied`] the copy is durable and, unless nothing is to be verified, was read back
    /// before it became visible. On an error there is no copy.
    pub(super) fn point(
        &self,
        source: &RecoveryPoint,
        base: Option<Twins<'_>>,
        parent: Option<&RecoveryPoint>,
        label: &str,
    ) -> Result<Arrived, Failure> {
        let disks: Result<Vec<Arc<StoredDisk>>, backstay_store::Error> = source
            .disks
            .iter()
            .map(|d| Ok(Arc::new(StoredDisk::new(self.from.image(d)?))))
            .collect();
        let disks = disks.map_err(|e| Failure { error: e.into(), of_source: true })?;
        self.carry(source, base, parent, label, &disks).map_err(|error| {
            let of_source = disks.iter().any(|d| d.has_failed());
            Failure { error, of_source }
        })
    }

    fn carry(
        &self,
        source: &RecoveryPoint,
        base: Option<Twins<'_>>,
        parent: Option<&RecoveryPoint>,
        label: &str,
        disks: &[Arc<StoredDisk>],
    ) -> Result<Arrived> {
        let purpose = format!("copy of {}", source.machine);
        let mut session = self.to.begin_for(base.map(|b| b.copy), &purpose)?;
        let base = self.trusted(&mut session, base)?;
        let writers: Vec<ImageWriter> =
            source.disks.iter().map(|d| session.image(&d.name, &d.source, d.size_bytes)).collect();
        let reads: Vec<Option<Ranges>> = source
            .disks
            .iter()
            .zip(&writers)
            .map(|(disk, writer)| self.must_read(disk, writer, base))
            .collect::<Result<_>>()?;

        let total = source.disks.iter().fold(0, |sum: u64, d| sum.saturating_add(d.size_bytes));
        self.monitor.phase(&format!("copy {label}"));
        self.monitor.total_bytes(total);
        let targets: Vec<Target<'_>> = source
            .disks
            .iter()
            .zip(&writers)
            .map(|(disk, writer)| Target { name: &disk.name, writer })
            .collect();
        let feed = disks.iter().zip(&reads).map(|(disk, read)| FeedDisk {
            device: Arc::clone(disk) as Arc<dyn BlockDevice>,
            read: read.clone(),
        });
        let chunk_size = self.to.config().chunk_size;
        let done = read::all(&targets, feed.collect(), chunk_size, self.workers, self.monitor)?;
        let records: Vec<DiskRecord> =
            writers.into_iter().map(ImageWriter::finish).collect::<Result<_, _>>()?;

        let mut verified_bytes = 0;
        if self.verify != Verify::None {
            session.flush()?;
            self.monitor.phase(&format!("verify {label}"));
            self.monitor.total_bytes(total);
            verified_bytes = self.read_back(&records, disks, reads)?;
        }
        let me = identity(self.from, source);
        if let Some(copy) = self.find(me)? {
            return Ok(Arrived::Before(copy));
        }
        let point = session.commit(
            NewPoint {
                machine: source.machine.clone(),
                time: source.time,
                consistency: source.consistency,
                origin: source.origin.clone(),
                note: source.note.clone(),
                parent: parent.map(|p| p.id),
                read_bytes: done.read_bytes,
                hole_bytes: done.hole_bytes,
                copied_from: Some(CopiedFrom { repository: me.0, point: me.1 }),
            },
            records,
        )?;
        Ok(Arrived::Copied { point, done, verified_bytes })
    }

    /// The base, if the destination has all of it.
    fn trusted<'b>(
        &self,
        session: &mut WriteSession,
        base: Option<Twins<'b>>,
    ) -> Result<Option<Twins<'b>>> {
        let Some(base) = base else { return Ok(None) };
        let Some(why) = trust(session, base.copy, self.monitor)? else { return Ok(Some(base)) };
        self.monitor.problem(&format!(
            "point {} of the destination is damaged, so nothing is taken over from it: {why}",
            base.copy.id
        ));
        Ok(None)
    }

    /// What of a disk must be read: where it differs from the base, or all of it.
    fn must_read(
        &self,
        disk: &DiskRecord,
        writer: &ImageWriter,
        base: Option<Twins<'_>>,
    ) -> Result<Option<Ranges>> {
        let Some(base) = base else { return Ok(None) };
        let (Some(before), Some(copy)) = (base.source.disk(&disk.name), base.copy.disk(&disk.name))
        else {
            return Ok(None);
        };
        if before.size_bytes != copy.size_bytes {
            return Ok(None);
        }
        let changed = match difference(self.from, before, disk) {
            Ok(changed) => changed,
            // Either tree may be the damaged one; reading tells whether this disk's is.
            Err(e) if is_loss(&e) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let chunk_bytes = u64::from(writer.chunk_size().bytes());
        let keepable = writer.keepable().saturating_mul(chunk_bytes).min(disk.size_bytes);
        Ok(Some(to_read(&changed, chunk_bytes, keepable, disk.size_bytes)))
    }

    fn read_back(
        &self,
        records: &[DiskRecord],
        disks: &[Arc<StoredDisk>],
        reads: Vec<Option<Ranges>>,
    ) -> Result<u64> {
        let mut pairs = Vec::with_capacity(records.len());
        for ((record, source), read) in records.iter().zip(disks).zip(reads) {
            pairs.push(Pair {
                name: &record.name,
                source: Arc::clone(source),
                copy: StoredDisk::new(self.to.image(record)?),
                written: read.filter(|_| self.verify == Verify::Written),
            });
        }
        let chunk_bytes = self.to.config().chunk_size.bytes();
        verify::all(&pairs, chunk_bytes, self.workers, self.monitor)
    }

    /// The destination's point that is the same as `wanted`, if it has come to be.
    fn find(&self, wanted: Identity) -> Result<Option<RecoveryPoint>> {
        let list = self.to.points()?.points;
        Ok(list.into_iter().find(|p| identity(self.to, p) == wanted))
    }
}
