//! Mounts as the control API shows them.

use backstay_api::Refusal;
use backstay_api::mountd::{
    Answer, ChapView, DiskView, IscsiView, MountState, MountView, OverlayView,
};
use jiff::Timestamp;

use super::record::{Disk, Intent, Kind, Record, Side, Target};
use super::{Mount, Mountd, no_such};

impl Mountd {
    /// One mount.
    pub(super) fn show(&self, id: &str) -> Result<MountView, Refusal> {
        self.show_with(id, false)
    }

    /// One mount, and if wished with what initiators must know to get in.
    pub(super) fn show_with(&self, id: &str, secrets: bool) -> Result<MountView, Refusal> {
        let mounts = self.lock();
        let mount = mounts.get(id).ok_or_else(|| no_such(id))?;
        let mut view = view(self, mount);
        if let (Some(iscsi), Some(target), true) = (&mut view.iscsi, mount.record.target(), secrets)
        {
            let sides =
                [(&mut iscsi.chap, &target.initiator), (&mut iscsi.chap_target, &target.target)];
            for (shown, side) in sides {
                if let (Some(shown), Some(side)) = (shown, side) {
                    shown.secret = Some(side.secret.clone());
                }
            }
        }
        Ok(view)
    }

    /// All of them.
    pub(super) fn list(&self) -> Answer {
        let mut leftovers = self.strange.lock().clone();
        match self.strays() {
            Ok(strays) => leftovers.extend(strays.into_iter().map(|s| format!("overlays/{s}"))),
            Err(why) => leftovers.push(format!("overlays: {why}")),
        }
        let mounts = self.lock();
        let mut list: Vec<MountView> = mounts.values().map(|mount| view(self, mount)).collect();
        list.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.id.cmp(&b.id)));
        Answer::Mounts { mounts: list, leftovers }
    }
}

fn view(daemon: &Mountd, mount: &Mount) -> MountView {
    let record = &mount.record;
    let state = match (&mount.live, &mount.trouble, &record.intent) {
        (Some(_), ..) if mount.ending => MountState::Ending,
        (Some(_), ..) => MountState::Active,
        (None, _, Intent::Keep { .. }) => MountState::Kept,
        (None, Some((state, _)), _) => *state,
        (None, None, Intent::Discard) => MountState::Ended,
        (None, None, _) => MountState::Failed,
    };
    let mut view = of_record(daemon, record, state);
    view.problem = match (&mount.live, &mount.trouble) {
        (None, Some((_, why))) => Some(one_line(why)),
        (None, None) if mount.busy => Some("it is being opened or ended just now".to_owned()),
        _ => None,
    };
    if let Some(live) = &mount.live {
        view.uris = live.served.uris();
        view.clients = daemon.doors.clients(&record.id);
        view.clients.extend(live.served.users());
        if let Some(iscsi) = &mut view.iscsi {
            iscsi.portals = live.served.portals();
        }
        for (overlay, disk) in live.overlays.iter().zip(&mut view.disks) {
            if let Some(shown) = &mut disk.overlay {
                let usage = overlay.usage();
                shown.data_bytes = usage.data_bytes;
                shown.zero_bytes = usage.zero_bytes;
            }
        }
    }
    view
}

fn one_line(why: &Refusal) -> String {
    let mut text = why.message.clone();
    for cause in &why.causes {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}

/// What the record alone tells.
pub(super) fn of_record(daemon: &Mountd, record: &Record, state: MountState) -> MountView {
    let overlay = |name: &String| {
        let directory = daemon.ledger.overlay_dir(name);
        OverlayView {
            // Of an overlay that is not open, what its files take.
            data_bytes: super::keep::file_bytes(&directory.join("data")),
            zero_bytes: 0,
            directory: directory.display().to_string(),
            limit_bytes: record.limit_bytes,
            pause_when_full: record.pause_when_full,
        }
    };
    let disk = |disk: &Disk| DiskView {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        lun: disk.lun,
        overlay: disk.overlay.as_ref().map(overlay),
    };
    let chap = |side: &Side| ChapView { name: side.name.clone(), secret: None };
    let iscsi = |target: &Target| IscsiView {
        target: target.name.clone(),
        portals: Vec::new(),
        chap: target.initiator.as_ref().map(chap),
        chap_target: target.target.as_ref().map(chap),
    };
    MountView {
        id: record.id.clone(),
        kind: record.kind_name().to_owned(),
        state,
        problem: None,
        repository: record.repository.clone(),
        machine: record.machine.clone(),
        point: record.point.clone(),
        point_time: record.point_time,
        disks: record.disks.iter().map(disk).collect(),
        writable: record.writable,
        allow: record.allow.clone(),
        uris: Vec::new(),
        iscsi: record.target().map(iscsi),
        directory: match &record.kind {
            Kind::Files(files) => Some(files.directory.clone()),
            Kind::Nbd | Kind::Iscsi(_) => None,
        },
        owner: record.owner.clone(),
        reason: record.reason.clone(),
        created: record.created,
        ends: record.ends,
        idle_seconds: record.idle_seconds,
        clients: Vec::new(),
    }
}

/// A mount of which nothing is left but that it was there.
pub(super) fn ended(id: &str) -> MountView {
    let nothing = String::new;
    MountView {
        id: id.to_owned(),
        kind: nothing(),
        state: MountState::Ended,
        problem: None,
        repository: nothing(),
        machine: nothing(),
        point: nothing(),
        point_time: Timestamp::UNIX_EPOCH,
        disks: Vec::new(),
        writable: false,
        allow: Vec::new(),
        uris: Vec::new(),
        iscsi: None,
        directory: None,
        owner: nothing(),
        reason: nothing(),
        created: Timestamp::UNIX_EPOCH,
        ends: None,
        idle_seconds: None,
        clients: Vec::new(),
    }
}
