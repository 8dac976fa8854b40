//! What keeps recovery points from removal: pins, and sessions that use them.

use backstay_core::retention::PointFacts;
use backstay_store::{PinInfo, PointId, PointList, Repository, SessionInfo, SessionKind};
use jiff::Timestamp;
use serde::Serialize;

use super::view;
use crate::exit::CliError;
use crate::output::{clean, note};
use crate::units;

/// The pins and the open sessions of a repository, as they were when they were read.
#[derive(Debug, Default)]
pub(crate) struct Keepers {
    pins: Vec<PinInfo>,
    sessions: Vec<SessionInfo>,
}

/// One of them, in JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KeeperView {
    /// `pin` or `session`.
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    /// Why it is pinned, or what the session is for.
    pub(crate) reason: String,
    /// Who pinned it.
    pub(crate) by: Option<String>,
    /// Where the session runs.
    pub(crate) host: Option<String>,
    pub(crate) process: Option<u32>,
    pub(crate) since: String,
    /// What ends it.
    pub(crate) release: String,
    #[serde(skip)]
    short_id: String,
    #[serde(skip)]
    time: Timestamp,
}

impl Keepers {
    /// Reads them. An error when one cannot be read: what it keeps is not known then.
    pub(crate) fn read(repository: &Repository) -> Result<Self, CliError> {
        let mut pins = repository.pins().map_err(|error| {
            CliError::from(error).hint("backstay point unpin ID      gives that pin up")
        })?;
        pins.sort_by_key(|pin| (pin.time, pin.id));
        Ok(Self { pins, sessions: repository.sessions()? })
    }

    /// What keeps `point`: pins first, each kind oldest first.
    pub(crate) fn of(&self, point: PointId) -> Vec<KeeperView> {
        let pins = self.pins.iter().filter(|pin| pin.point == point).map(|pin| self.pin(pin));
        let sessions = self.sessions.iter().filter(|session| session.holds.contains(&point));
        pins.chain(sessions.map(|session| self.session(session))).collect()
    }

    fn pin(&self, pin: &PinInfo) -> KeeperView {
        let short_id = view::short_among(pin.id, self.pins.iter().map(|other| other.id));
        KeeperView {
            kind: "pin",
            id: pin.id.to_string(),
            reason: pin.cause.reason.clone(),
            by: Some(pin.cause.by.clone()),
            host: None,
            process: None,
            since: units::utc_time(pin.time),
            release: format!("backstay point unpin {short_id}"),
            short_id,
            time: pin.time,
        }
    }

    fn session(&self, session: &SessionInfo) -> KeeperView {
        let short_id = view::short_among(session.id, self.sessions.iter().map(|other| other.id));
        let (host, process) = (&session.owner.host, session.owner.pid);
        let fence = format!("backstay session fence {short_id}");
        KeeperView {
            kind: "session",
            id: session.id.to_string(),
            reason: session.purpose.clone(),
            by: None,
            host: Some(host.clone()),
            process: Some(process),
            since: units::utc_time(session.created),
            release: match (session.dead, session.kind) {
                (true, _) => format!("{fence}      its process is gone"),
                (false, SessionKind::Writer) => format!("wait for it, or if it hangs: {fence}"),
                (false, SessionKind::Reader) => {
                    format!("end process {process} on {host}, or if it is gone: {fence}")
                }
            },
            short_id,
            time: session.created,
        }
    }

    /// What retention needs to know of the points that can be read.
    pub(crate) fn facts(&self, list: &PointList) -> Vec<PointFacts> {
        let facts = |point| {
            let mut facts = PointFacts::from(point);
            facts.pins = self.of(facts.id).iter().map(KeeperView::in_short).collect();
            facts
        };
        list.points.iter().map(facts).collect()
    }
}

impl KeeperView {
    /// Who it is and why, without the time.
    fn in_short(&self) -> String {
        match (&self.by, &self.host) {
            (Some(by), _) => format!("{} (pin {} by {by})", self.reason, self.short_id),
            (None, host) => {
                format!("in use: {} on {}", self.reason, host.as_deref().unwrap_or_default())
            }
        }
    }

    /// Who it is, why, and since when.
    pub(crate) fn told(&self) -> String {
        let since = units::local_time(self.time);
        let reason = &self.reason;
        match (&self.by, &self.host, self.process) {
            (None, Some(host), Some(process)) => {
                format!("in use since {since}: {reason} (process {process} on {host})")
            }
            (by, ..) => {
                format!("pinned by {} since {since}: {reason}", by.as_deref().unwrap_or_default())
            }
        }
    }
}

/// Says on stderr that it is not known what keeps the points.
pub(crate) fn tell_unknown(keepers: &Result<Keepers, CliError>) {
    if let Err(error) = keepers {
        let message = clean(&error.message);
        note(&format!("warning: it is not known what pins or sessions keep: {message}"));
    }
}

/// The kinds of keepers, for a table. Nothing where they are not known.
pub(crate) fn mark(keepers: &Option<Vec<KeeperView>>) -> &'static str {
    let Some(keepers) = keepers else { return "?" };
    let any = |kind| keepers.iter().any(|keeper| keeper.kind == kind);
    match (any("pin"), any("session")) {
        (true, true) => "pin, in use",
        (true, false) => "pin",
        (false, true) => "in use",
        (false, false) => "",
    }
}

/// Who runs this command, for the record: `root@vault`.
pub(crate) fn me() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}@{host}", name.unwrap_or_else(|| format!("uid {uid}")))
}
