//! Bringing a mount up, and taking it down.

use std::sync::Arc;

use backstay_api::mountd::Key;
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;
use backstay_blockdev::overlay::{Overlay, OverlayOptions, RealDirectory, WhenFull};
use backstay_store::{DiskRecord, PointId, RecoveryPoint, Repository};

use super::doors::Served;
use super::record::{Disk, Kind, Record};
use super::repos::refusal;
use super::{Mountd, overlay_refusal};
use crate::PointDisk;

/// What an overlay remembers of the disk it lies over: the repository's id, the point's id and the disk's name.
pub fn overlay_identity(repository: &str, point: &str, disk: &str) -> [u8; 32] {
    let mut identity = blake3::Hasher::new();
    for part in [repository, point, disk] {
        identity.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    *identity.finalize().as_bytes()
}

/// A mount that is served.
#[derive(Debug)]
pub(super) struct Live {
    /// Those of its disks, in their order; none if it cannot be written to.
    pub(super) overlays: Vec<Arc<Overlay>>,
    /// Dropped, it is not served any more.
    pub(super) served: Served,
}

impl Live {
    /// Whether nothing was written; not known of what has no overlay.
    pub(super) fn is_untouched(&self) -> bool {
        let untouched = |overlay: &Arc<Overlay>| {
            let usage = overlay.usage();
            usage.data_bytes == 0 && usage.zero_bytes == 0
        };
        !self.overlays.is_empty() && self.overlays.iter().all(untouched)
    }
}

/// What a mount stands on.
pub(super) struct Base {
    pub(super) point: RecoveryPoint,
    /// The repository.
    pub(super) opened: Repository,
    /// The repository's id.
    pub(super) repository: String,
    /// In the order asked for.
    pub(super) disks: Vec<BaseDisk>,
}

/// What a disk of a mount stands on.
pub(super) struct BaseDisk {
    pub(super) record: DiskRecord,
    pub(super) device: Arc<PointDisk>,
    pub(super) identity: [u8; 32],
}

impl Mountd {
    /// Opens disks of a recovery point. Reads no data.
    pub(super) fn base(
        &self,
        repository: &Repository,
        machine: &str,
        point: &str,
        disks: &[&str],
    ) -> Result<Base, Refusal> {
        let id: PointId = point.parse().map_err(|_| {
            Refusal::new(RefusalKind::Usage, "this is no id of a recovery point").what(point)
        })?;
        let what = |disk: &str| format!("{machine}@{point}:{disk}");
        let whole = || what(&disks.join(", "));
        let found = repository.point(id).map_err(|e| refusal(&e).what(whole()))?;
        if found.machine != machine {
            let why = "there is no such recovery point of this machine";
            return Err(Refusal::new(RefusalKind::NotFound, why).what(whole()));
        }
        let repository_id = repository.config().id.to_string();
        let open = |disk: &&str| -> Result<BaseDisk, Refusal> {
            let record =
                found.disks.iter().find(|d| d.name == *disk).cloned().ok_or_else(|| {
                    Refusal::new(RefusalKind::NotFound, "there is no such disk").what(what(disk))
                })?;
            let device = PointDisk::open(repository, &found, &record)
                .map_err(|e| refusal(&e).what(what(disk)))?;
            let identity = overlay_identity(&repository_id, point, disk);
            Ok(BaseDisk { record, device: Arc::new(device), identity })
        };
        let disks = disks.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Base { point: found, opened: repository.clone(), repository: repository_id, disks })
    }

    /// Serves a mount. On an error nothing is served, and the overlays are as they were.
    pub(super) fn bring_up(&self, record: &Record, key: &Key) -> Result<Live, Refusal> {
        let repository = self.repositories.open(&record.repository, key)?;
        let disks: Vec<&str> = record.disks.iter().map(|disk| disk.name.as_str()).collect();
        let base = self.base(&repository, &record.machine, &record.point, &disks)?;
        self.serve(record, base)
    }

    /// All disks or none: a machine with a part of its disks is another machine.
    pub(super) fn serve(&self, record: &Record, base: Base) -> Result<Live, Refusal> {
        if let Kind::Files(files) = &record.kind {
            let served = self.doors.files.serve(files, base)?;
            return Ok(Live { overlays: Vec::new(), served: Served::Files(served) });
        }
        let mut overlays = Vec::new();
        let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
        for (disk, base) in record.disks.iter().zip(base.disks) {
            let Some(name) = &disk.overlay else {
                devices.push(base.device);
                continue;
            };
            let directory = Arc::new(RealDirectory::new(self.ledger.overlay_dir(name)));
            let options = overlay_options(record);
            let opened = Overlay::open(directory, base.device, base.identity, options)
                .map_err(|e| overlay_refusal(&e).what(disk_name(record, disk)))?;
            let opened = Arc::new(opened);
            overlays.push(opened.clone());
            devices.push(opened);
        }
        let served = self.doors.serve(record, &self.ledger, &base.repository, devices)?;
        Ok(Live { overlays, served })
    }

    /// Stops serving a mount; what was written is durable when this returns, unless it says otherwise in the
    /// log.
    pub(super) fn take_down(&self, id: &str, live: Live) {
        let Live { overlays, served } = live;
        self.doors.stop_serving(served);
        for overlay in overlays {
            if let Err(error) = overlay.tidy() {
                tracing::error!(
                    id,
                    %error,
                    "what was written last may be lost if the power goes now"
                );
            }
        }
    }
}

/// A disk of a mount, where the mount has more than one.
pub(super) fn disk_name(record: &Record, disk: &Disk) -> String {
    match record.disks.len() {
        1 => record.id.clone(),
        _ => format!("{}, {}", record.id, disk.name),
    }
}

pub(super) fn overlay_options(record: &Record) -> OverlayOptions {
    OverlayOptions {
        limit_bytes: record.limit_bytes,
        when_full: if record.pause_when_full { WhenFull::Pause } else { WhenFull::Fail },
    }
}
