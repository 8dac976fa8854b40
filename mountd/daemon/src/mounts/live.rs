//! Bringing a mount up, and taking it down.

use std::sync::Arc;

use backstay_api::mountd::Key;
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;
use backstay_blockdev::overlay::{Overlay, OverlayOptions, RealDirectory, WhenFull};
use backstay_store::{DiskRecord, PointId, RecoveryPoint, Repository};

use super::door::Served;
use super::record::Record;
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
    pub(super) overlay: Option<Arc<Overlay>>,
    /// Dropped, it is not served any more.
    pub(super) served: Served,
}

/// What a mount stands on.
pub(super) struct Base {
    pub(super) point: RecoveryPoint,
    pub(super) disk: DiskRecord,
    pub(super) device: Arc<PointDisk>,
    pub(super) identity: [u8; 32],
}

impl Mountd {
    /// Opens the disk of a record. Reads no data.
    pub(super) fn base(
        &self,
        repository: &Repository,
        machine: &str,
        point: &str,
        disk: &str,
    ) -> Result<Base, Refusal> {
        let what = || format!("{machine}@{point}:{disk}");
        let id: PointId = point.parse().map_err(|_| {
            Refusal::new(RefusalKind::Usage, "this is no id of a recovery point").what(point)
        })?;
        let found = repository.point(id).map_err(|e| refusal(&e).what(what()))?;
        let missing = || Refusal::new(RefusalKind::NotFound, "there is no such disk").what(what());
        if found.machine != machine {
            return Err(missing());
        }
        let record = found.disks.iter().find(|d| d.name == disk).cloned().ok_or_else(missing)?;
        let device =
            PointDisk::open(repository, &found, &record).map_err(|e| refusal(&e).what(what()))?;
        let identity = overlay_identity(&repository.config().id.to_string(), point, disk);
        Ok(Base { point: found, disk: record, device: Arc::new(device), identity })
    }

    /// Serves a mount. On an error nothing is served, and the overlay is as it was.
    pub(super) fn bring_up(&self, record: &Record, key: &Key) -> Result<Live, Refusal> {
        let repository = self.repositories.open(&record.repository, key)?;
        let base = self.base(&repository, &record.machine, &record.point, &record.disk)?;
        self.serve(record, base)
    }

    pub(super) fn serve(&self, record: &Record, base: Base) -> Result<Live, Refusal> {
        let mut device: Arc<dyn BlockDevice> = base.device;
        let mut overlay = None;
        if record.writable {
            let directory = Arc::new(RealDirectory::new(self.ledger.overlay_dir(&record.id)));
            let opened = Overlay::open(directory, device, base.identity, overlay_options(record))
                .map_err(|e| overlay_refusal(&e).what(&record.id))?;
            let opened = Arc::new(opened);
            overlay = Some(opened.clone());
            device = opened;
        }
        let served = self.door.serve(record, device)?;
        Ok(Live { overlay, served })
    }

    /// Stops serving a mount; what was written is durable when this returns, unless it says otherwise in the
    /// log.
    pub(super) fn take_down(&self, id: &str, live: Live) {
        let Live { overlay, served } = live;
        self.door.stop_serving(served);
        if let Some(overlay) = overlay
            && let Err(error) = overlay.tidy()
        {
            tracing::error!(id, %error, "what was written last may be lost if the power goes now");
        }
    }
}

pub(super) fn overlay_options(record: &Record) -> OverlayOptions {
    OverlayOptions {
        limit_bytes: record.limit_bytes,
        when_full: if record.pause_when_full { WhenFull::Pause } else { WhenFull::Fail },
    }
}
