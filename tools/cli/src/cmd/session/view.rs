//! Open sessions as commands show them.

use backstay_store::{SessionInfo, SessionKind};
use serde::Serialize;

use crate::cmd::view;
use crate::output::{Align, Table};
use crate::units;

/// An open session in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SessionView {
    pub(crate) id: String,
    pub(crate) short_id: String,
    /// `writer` or `reader`.
    pub(crate) kind: &'static str,
    pub(crate) purpose: String,
    pub(crate) host: String,
    pub(crate) process: u32,
    pub(crate) since: String,
    /// Signs of life given since; about one a minute.
    pub(crate) beat: u32,
    /// Its process ran on this host and is gone.
    pub(crate) dead: bool,
    /// Recovery points that stay as long as it is open.
    pub(crate) holds: Vec<String>,
    #[serde(skip)]
    local_since: String,
}

impl SessionView {
    /// The view of a session; `short_id` is long enough to name it among `all`.
    pub(crate) fn new(session: &SessionInfo, all: &[SessionInfo]) -> Self {
        Self {
            id: session.id.to_string(),
            short_id: view::short_among(session.id, all.iter().map(|other| other.id)),
            kind: match session.kind {
                SessionKind::Writer => "writer",
                SessionKind::Reader => "reader",
            },
            purpose: session.purpose.clone(),
            host: session.owner.host.clone(),
            process: session.owner.pid,
            since: units::utc_time(session.created),
            beat: session.beat,
            dead: session.dead,
            holds: session.holds.iter().map(ToString::to_string).collect(),
            local_since: units::local_time(session.created),
        }
    }

    /// The views of all of them.
    pub(crate) fn all(all: &[SessionInfo]) -> Vec<Self> {
        all.iter().map(|one| Self::new(one, all)).collect()
    }

    /// Who it is, in a line.
    pub(crate) fn told(&self) -> String {
        let Self { short_id, purpose, process, host, local_since, .. } = self;
        format!("{short_id}  {purpose}  (process {process} on {host}, since {local_since})")
    }
}

/// The sessions as a table for people.
pub(crate) fn table(to: &mut String, sessions: &[SessionView]) {
    let mut table = Table::new(&[
        ("SESSION", Align::Left),
        ("KIND", Align::Left),
        ("PURPOSE", Align::Left),
        ("HOST", Align::Left),
        ("PROCESS", Align::Right),
        ("SINCE", Align::Left),
        ("STATE", Align::Left),
    ]);
    for session in sessions {
        table.row([
            session.short_id.clone(),
            session.kind.to_owned(),
            session.purpose.clone(),
            session.host.clone(),
            session.process.to_string(),
            session.local_since.clone(),
            if session.dead { "process is gone" } else { "open" }.to_owned(),
        ]);
    }
    table.render(to);
}
