//! Saving what was written over a recovery point as a new one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_blockdev::overlay::{Overlay, OverlayOptions, RealDirectory};
use backstay_daemon::PointDisk;
use backstay_daemon::mounts::overlay_identity;
use backstay_store::{DiskRecord, PointId, RecoveryPoint, Repository};
use jiff::Timestamp;

use crate::backup::{self, BackupPlan, BackupReport, ChangeMap};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::ranges::Ranges;
use crate::source::{OpenSource, SourceSpec};

/// Ranges asked for at once.
const RANGES_AT_ONCE: usize = 1 << 16;

/// What is to be saved, and as what.
#[derive(Debug, Clone)]
pub struct SavePlan {
    /// The recovery point below.
    pub point: PointId,
    /// Where the overlays of its disks are, by the disks' names; at least one. Nobody may have them open. Disks without
    /// one are taken over as they are.
    pub overlays: BTreeMap<String, PathBuf>,
    /// The machine of the new point; `None`: the same.
    pub machine: Option<String>,
    /// A note kept with the point.
    pub note: Option<String>,
    /// The time the point bears.
    pub time: Timestamp,
}

/// Makes one recovery point of the disks as they are with their overlays, and of the point's other disks as they are. Only
/// what was written is read. The overlays and the point below stay as they are, also on an error; when this returns `Ok`
/// the new point is durable.
///
/// # Errors
/// `NotFound` if the point or a disk is gone, `Unsupported` if there is no overlay of one there or somebody has it open,
/// and what [`backup::run`] says. The text names the disk.
pub fn run(repo: &Repository, plan: &SavePlan, monitor: &dyn Monitor) -> Result<BackupReport> {
    monitor.phase("open");
    let below = repo.point(plan.point)?;
    let is_there = |name: &String| below.disks.iter().any(|disk| disk.name == *name);
    if let Some(missing) = plan.overlays.keys().find(|name| !is_there(name)) {
        let text = format!("the point has no disk `{missing}`");
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    let Some(any) = plan.overlays.values().next() else {
        return Err(Error::new(ErrorKind::NotFound, "there is nothing to save"));
    };
    let mut specs = Vec::new();
    let mut sources = Vec::new();
    for disk in &below.disks {
        let (source, changed) = open(repo, plan, &below, disk)?;
        let changes = ChangeMap { since: below.id, changed };
        specs.push(SourceSpec {
            name: Some(disk.name.clone()),
            changes: Some(changes),
            ..SourceSpec::new(plan.overlays.get(&disk.name).unwrap_or(any))
        });
        sources.push(source);
    }
    let machine = plan.machine.clone().unwrap_or_else(|| below.machine.clone());
    let mut backup = BackupPlan::new(machine, specs, plan.time);
    backup.note.clone_from(&plan.note);
    backup::run_open(repo, &backup, &sources, monitor)
}

/// A disk of the new point, and what of it differs from the old one.
fn open(
    repo: &Repository,
    plan: &SavePlan,
    below: &RecoveryPoint,
    disk: &DiskRecord,
) -> Result<(OpenSource, Ranges)> {
    let base = Arc::new(PointDisk::open(repo, below, disk)?);
    let Some(directory) = plan.overlays.get(&disk.name) else {
        return Ok((OpenSource::of_device(base), Ranges::default()));
    };
    let repository = repo.config().id.to_string();
    let identity = overlay_identity(&repository, &below.id.to_string(), &disk.name);
    let directory = Arc::new(RealDirectory::new(directory));
    let overlay = Overlay::open(directory, base, identity, OverlayOptions::default())
        .map_err(|e| Error::from(e).within(format!("disk {}", disk.name)))?;
    let mut ranges = Vec::new();
    let mut from = 0;
    loop {
        let more = overlay.changed(from, RANGES_AT_ONCE);
        let Some((offset, len)) = more.last() else { break };
        from = offset + len;
        ranges.extend(more);
    }
    let changed = Ranges::from_any(ranges)?;
    Ok((OpenSource::of_device(Arc::new(overlay)), changed))
}
