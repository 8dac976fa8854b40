//! Mounts as the control API shows them.

use backstay_api::Refusal;
use backstay_api::mountd::{Answer, MountState, MountView, OverlayView};
use jiff::Timestamp;

use super::record::{Intent, Record};
use super::{Mount, Mountd, no_such};

impl Mountd {
    /// One mount.
    pub(super) fn show(&self, id: &str) -> Result<MountView, Refusal> {
        let mounts = self.lock();
        mounts.get(id).map(|mount| view(self, mount)).ok_or_else(|| no_such(id))
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
        view.clients = daemon.door.clients(&record.id);
        if let (Some(overlay), Some(shown)) = (&live.overlay, &mut view.overlay) {
            let usage = overlay.usage();
            shown.data_bytes = usage.data_bytes;
            shown.zero_bytes = usage.zero_bytes;
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
    let directory = daemon.ledger.overlay_dir(&record.id);
    let overlay = || OverlayView {
        // Of an overlay that is not open, what its files take.
        data_bytes: super::keep::file_bytes(&directory.join("data")),
        zero_bytes: 0,
        directory: directory.display().to_string(),
        limit_bytes: record.limit_bytes,
        pause_when_full: record.pause_when_full,
    };
    MountView {
        id: record.id.clone(),
        kind: "nbd".to_owned(),
        state,
        problem: None,
        repository: record.repository.clone(),
        machine: record.machine.clone(),
        point: record.point.clone(),
        point_time: record.point_time,
        disk: record.disk.clone(),
        size_bytes: record.size_bytes,
        writable: record.writable,
        allow: record.allow.clone(),
        uris: Vec::new(),
        owner: record.owner.clone(),
        reason: record.reason.clone(),
        created: record.created,
        ends: record.ends,
        idle_seconds: record.idle_seconds,
        clients: Vec::new(),
        overlay: record.writable.then(overlay),
    }
}

/// A mount of which nothing is left but that it was there.
pub(super) fn ended(id: &str) -> MountView {
    let nothing = String::new;
    MountView {
        id: id.to_owned(),
        kind: "nbd".to_owned(),
        state: MountState::Ended,
        problem: None,
        repository: nothing(),
        machine: nothing(),
        point: nothing(),
        point_time: Timestamp::UNIX_EPOCH,
        disk: nothing(),
        size_bytes: 0,
        writable: false,
        allow: Vec::new(),
        uris: Vec::new(),
        owner: nothing(),
        reason: nothing(),
        created: Timestamp::UNIX_EPOCH,
        ends: None,
        idle_seconds: None,
        clients: Vec::new(),
        overlay: None,
    }
}
