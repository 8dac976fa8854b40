//! Mounts as commands show them.

use backstay_api::mountd::{MountState, MountView, OverlayView};
use jiff::Timestamp;
use serde::Serialize;

use super::clients::{self, ClientCommand};
use super::initiators;
use crate::context::Ctx;
use crate::exit::CliError;
use crate::output::{Align, Stream, Table, clean, field};
use crate::units;

/// A mount in JSON: the daemon's own words, and what to type next.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    #[serde(flatten)]
    view: &'a MountView,
    /// The first of its URIs.
    uri: Option<&'a str>,
    client_commands: Vec<ClientCommand>,
}

impl<'a> Document<'a> {
    pub(super) fn new(view: &'a MountView) -> Self {
        let uri = view.uris.first().map(String::as_str);
        let client_commands = match (&view.iscsi, uri, view.disks.first()) {
            (Some(iscsi), ..) => initiators::commands(view, iscsi),
            (None, Some(uri), Some(disk)) => {
                clients::commands(uri, &view.id, &disk.name, !view.writable)
            }
            _ => Vec::new(),
        };
        Self { view, uri, client_commands }
    }
}

/// Tells of a mount that is served now.
pub(super) fn mounted(ctx: &Ctx, view: &MountView) -> Result<(), CliError> {
    let document = Document::new(view);
    ctx.out.summary(Stream::Stdout, &document, |to| {
        field(to, "mount", &summary(view));
        addresses(to, view);
        for client in &document.client_commands {
            field(to, client.tool, &clean(&client.command));
        }
        if let Some(directory) = &view.directory {
            field(to, "look", &format!("ls {}", units::shell_word(&format!("{directory}/files"))));
        }
        field(to, "end it", &format!("backstay mount end {}", view.id));
    })
}

/// Tells of a mount whatever its state.
pub(super) fn details(ctx: &Ctx, view: &MountView) -> Result<(), CliError> {
    let document = Document::new(view);
    ctx.out.report(&document, |to| {
        field(to, "mount", &summary(view));
        field(to, "state", &state(view));
        if let Some(problem) = &view.problem {
            field(to, "problem", &clean(problem));
        }
        field(to, "point", &format!("{} of {}", view.point, units::local_time(view.point_time)));
        field(to, "repository", &clean(&view.repository));
        addresses(to, view);
        if !view.allow.is_empty() {
            field(to, "allowed", &clean(&view.allow.join(", ")));
        }
        field(to, "owner", &clean(&view.owner));
        if !view.reason.is_empty() {
            field(to, "reason", &clean(&view.reason));
        }
        field(to, "since", &units::local_time(view.created));
        field(to, "ends", &end(view, Timestamp::now()));
        for disk in &view.disks {
            if let Some(overlay) = &disk.overlay {
                let of =
                    if view.disks.len() > 1 { format!("{}: ", disk.name) } else { String::new() };
                field(to, "written", &format!("{of}{}", written(overlay)));
            }
        }
        for client in &view.clients {
            let how = if client.writable { "" } else { ", read-only" };
            let (read, written) =
                (units::size(client.read_bytes), units::size(client.written_bytes));
            let session = client.session.map(|n| format!("session {n}, ")).unwrap_or_default();
            let peer = format!("{session}{}", clean(&client.peer));
            let text =
                format!("{peer}{how}: {} requests, read {read}, wrote {written}", client.requests);
            field(to, "client", &text);
        }
        for client in &document.client_commands {
            field(to, client.tool, &clean(&client.command));
        }
    })
}

/// The table of all mounts.
pub(super) fn table(to: &mut String, mounts: &[MountView]) {
    let mut table = Table::new(&[
        ("MOUNT", Align::Left),
        ("STATE", Align::Left),
        ("DISK", Align::Left),
        ("CLIENTS", Align::Right),
        ("WRITTEN", Align::Right),
        ("ENDS", Align::Left),
        ("OWNER", Align::Left),
        ("REASON", Align::Left),
    ]);
    let now = Timestamp::now();
    for view in mounts {
        let overlays = view.disks.iter().filter_map(|disk| disk.overlay.as_ref());
        let written: u64 = overlays.map(|overlay| overlay.data_bytes).sum();
        let written = view.writable.then(|| units::size(written));
        table.row([
            view.id.clone(),
            state(view),
            name(view),
            view.clients.len().to_string(),
            written.unwrap_or_else(|| "-".to_owned()),
            end(view, now),
            view.owner.clone(),
            view.reason.clone(),
        ]);
    }
    table.render(to);
}

fn name(view: &MountView) -> String {
    let short: String = view.point.chars().take(6).collect();
    let disks = match view.disks.as_slice() {
        [one] => format!(":{}", one.name),
        several => format!(", {} disks", several.len()),
    };
    format!("{}@{short}{disks}", view.machine)
}

/// What it is called where it is to be found, and what one must know to get in.
fn addresses(to: &mut String, view: &MountView) {
    if let Some(directory) = &view.directory {
        field(to, "directory", directory);
    }
    let Some(iscsi) = &view.iscsi else {
        for uri in &view.uris {
            field(to, "address", uri);
        }
        return;
    };
    field(to, "target", &iscsi.target);
    for portal in &iscsi.portals {
        field(to, "portal", portal);
    }
    for disk in &view.disks {
        let lun = disk.lun.unwrap_or_default();
        field(to, "lun", &format!("{lun}  {}  {}", disk.name, units::size(disk.size_bytes)));
    }
    let sides = [("chap", &iscsi.chap), ("chap target", &iscsi.chap_target)];
    for (label, chap) in sides.into_iter().filter_map(|(label, chap)| Some((label, chap.as_ref()?)))
    {
        let secret = match &chap.secret {
            Some(secret) => format!("secret {}", secret.reveal()),
            None => format!("secret: backstay mount show {} --secrets", view.id),
        };
        field(to, label, &format!("name {}, {secret}", chap.name));
    }
}

/// What was written, and how much may be.
fn written(overlay: &OverlayView) -> String {
    let limit = overlay.limit_bytes.map_or_else(String::new, |limit| {
        let then = if overlay.pause_when_full { "then writes wait" } else { "then no more" };
        format!(", at most {}, {then}", units::size(limit))
    });
    format!("{} in {}{limit}", units::size(overlay.data_bytes), overlay.directory)
}

fn summary(view: &MountView) -> String {
    let how = if view.writable { "writable" } else { "read-only" };
    let size = units::size(view.disks.iter().map(|disk| disk.size_bytes).sum());
    format!(
        "{}  {}  {size}  {how}  ends {}",
        view.id,
        clean(&name(view)),
        end(view, Timestamp::now())
    )
}

fn state(view: &MountView) -> String {
    match view.state {
        MountState::Active => "served",
        MountState::Ending => "ending",
        MountState::Kept => "kept",
        MountState::Locked => "locked",
        MountState::Failed => "failed",
        MountState::Ended => "ended",
    }
    .to_owned()
}

/// When it ends, for people.
fn end(view: &MountView, now: Timestamp) -> String {
    let seconds = |time: Timestamp| (time - now).get_seconds();
    match (view.state, view.ends, view.idle_seconds) {
        (MountState::Kept | MountState::Ended, ..) => "-".to_owned(),
        (_, Some(time), _) if time <= now => "when its clients leave".to_owned(),
        (_, Some(time), _) => format!("in {}", units::span(seconds(time) as f64)),
        (_, None, Some(idle)) => format!("after {} without clients", units::span(idle as f64)),
        _ => "never".to_owned(),
    }
}
