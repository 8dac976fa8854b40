//! Sessions: who writes to a repository, or reads a recovery point that must not vanish meanwhile.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::gc::Generation;
use crate::limits::RECORD_PAYLOAD_MAX;
use crate::record::{Record, check_text};
use crate::{FormatError, PointId, magic};

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// Writes packs and may commit one recovery point, of the session's own name.
    Writer,
    /// Reads recovery points, which stay as long as it lives.
    Reader,
}

/// The process behind a session: enough to tell on the same host whether it still lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name of the host, for people.
    pub host: String,
    /// What tells one run of one machine's kernel from all others; empty when not known.
    pub boot: String,
    /// The process, as its own process namespace counts.
    pub pid: u32,
    /// The process namespace; empty when not known.
    pub namespace: String,
    /// When the process started, in the kernel's ticks since boot: numbers of processes are used
    /// again.
    pub started: u64,
}

/// A registered session. Written anew, under a higher beat, as a sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id: for a writer also the id of the point it may commit.
    pub id: PointId,
    /// What it does.
    pub kind: SessionKind,
    /// The newest generation it knew when it registered: what was condemned up to then it does
    /// not refer to.
    pub epoch: Generation,
    /// Recovery points that must stay as long as it lives: a writer's base, a reader's points.
    pub holds: Vec<PointId>,
    /// Who it is.
    pub owner: Owner,
    /// What it is for, for people: `backup of web01`.
    pub purpose: String,
    /// When it registered, by its own clock.
    pub created: Timestamp,
}

/// Most points one session holds.
pub const HOLDS_MAX: usize = 4096;

impl Record for Session {
    const MAGIC: [u8; 8] = magic::SESSION;
    const WHAT: &'static str = "session";
    const PAYLOAD_MAX: u32 = RECORD_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        if self.holds.len() > HOLDS_MAX {
            return Err(FormatError::invalid("holds", format!("{} points", self.holds.len())));
        }
        check_text("host", &self.owner.host)?;
        check_text("boot", &self.owner.boot)?;
        check_text("namespace", &self.owner.namespace)?;
        check_text("purpose", &self.purpose)
    }
}

/// Takes the place of a recovery point, so that a session given up for dead cannot commit it any
/// more: of commit and fence, the first to be created wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The session, and the point that will never be.
    pub id: PointId,
    /// Why.
    pub reason: String,
    /// Who did it.
    pub by: String,
    /// When, by their clock.
    pub time: Timestamp,
}

impl Record for Fence {
    const MAGIC: [u8; 8] = magic::FENCE;
    const WHAT: &'static str = "fence";
    const PAYLOAD_MAX: u32 = RECORD_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        check_text("reason", &self.reason)?;
        check_text("by", &self.by)
    }
}
