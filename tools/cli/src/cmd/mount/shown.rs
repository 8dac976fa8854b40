//! Mounts as commands show them.

use backstay_api::mountd::{MountState, MountView};
use jiff::Timestamp;
use serde::Serialize;

use super::clients::{self, ClientCommand};
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
        let commands = |uri: &str| clients::commands(uri, &view.id, &view.disk, !view.writable);
        Self { view, uri, client_commands: uri.map(commands).unwrap_or_default() }
    }
}

/// Tells of a mount that is served now.
pub(super) fn mounted(ctx: &Ctx, view: &MountView) -> Result<(), CliError> {
    let document = Document::new(view);
    ctx.out.summary(Stream::Stdout, &document, |to| {
        field(to, "mount", &summary(view));
        for uri in &view.uris {
            field(to, "address", &clean(uri));
        }
        for client in &document.client_commands {
            field(to, client.tool, &clean(&client.command));
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
        for uri in &view.uris {
            field(to, "address", &clean(uri));
        }
        if !view.allow.is_empty() {
            field(to, "allowed", &clean(&view.allow.join(", ")));
        }
        field(to, "owner", &clean(&view.owner));
        if !view.reason.is_empty() {
            field(to, "reason", &clean(&view.reason));
        }
        field(to, "since", &units::local_time(view.created));
        field(to, "ends", &end(view, Timestamp::now()));
        if let Some(overlay) = &view.overlay {
            let limit = overlay.limit_bytes.map_or_else(String::new, |limit| {
                let then =
                    if overlay.pause_when_full { "then writes wait" } else { "then no more" };
                format!(", at most {}, {then}", units::size(limit))
            });
            let data = units::size(overlay.data_bytes);
            field(to, "written", &format!("{data} in {}{limit}", clean(&overlay.directory)));
        }
        for client in &view.clients {
            let how = if client.writable { "" } else { ", read-only" };
            let (read, written) =
                (units::size(client.read_bytes), units::size(client.written_bytes));
            let peer = clean(&client.peer);
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
        let written = view.overlay.as_ref().map(|overlay| units::size(overlay.data_bytes));
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
    format!("{}@{short}:{}", view.machine, view.disk)
}

fn summary(view: &MountView) -> String {
    let how = if view.writable { "writable" } else { "read-only" };
    let size = units::size(view.size_bytes);
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
