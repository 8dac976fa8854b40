//! The mount daemon's control API.
//!
//! A client connects to the daemon's socket, writes one [`Request`] a line and reads one [`Answer`] for each. The socket is
//! for its owner alone; who asks is known by the kernel's word (`SO_PEERCRED`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::refusal::Refusal;

/// The version of the API; a daemon refuses requests of another.
pub const VERSION: u32 = 1;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum Request {
    /// Who are you? Answered with [`Answer::Status`].
    Status {},
    /// Opens a disk of a recovery point; [`Answer::Mount`].
    Mount(Box<MountRequest>),
    /// All mounts; [`Answer::Mounts`].
    List {},
    /// One mount; [`Answer::Mount`].
    Show {
        /// Its name.
        id: String,
    },
    /// Changes when a mount ends, or how much it may write; [`Answer::Mount`].
    Extend {
        /// Its name.
        id: String,
        /// The new end, so many seconds from now; 0 for none.
        for_seconds: Option<u64>,
        /// The new limit of its overlay in bytes; 0 for none.
        limit_bytes: Option<u64>,
    },
    /// Ends a mount; [`Answer::Mount`] as it is then. Ending one that has ended is success.
    End {
        /// Its name.
        id: String,
        /// What becomes of what was written. Not needed if nothing was.
        overlay: Option<OverlayFate>,
        /// End it though clients are attached.
        force: bool,
    },
    /// Serves a mount again that was ended with its overlay kept, or could not be opened; [`Answer::Mount`].
    Resume {
        /// Its name.
        id: String,
        /// The key to its repository, if the daemon has none.
        key: Option<Key>,
    },
    /// Removes what is left over: [`Answer::Pruned`].
    Prune {
        /// Only tell what would be removed.
        dry_run: bool,
        /// Remove overlays that were kept, too, if they ended so many seconds ago.
        kept_older_than_seconds: Option<u64>,
    },
}

/// What is to be opened, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The repository's location.
    pub repository: String,
    /// How to unlock it.
    pub key: Key,
    /// The machine.
    pub machine: String,
    /// The recovery point's whole id.
    pub point: String,
    /// The disk.
    pub disk: String,
    /// Whether it may be written to; the writes go to an overlay.
    pub writable: bool,
    /// Bytes the overlay may take.
    pub limit_bytes: Option<u64>,
    /// Whether writes beyond that wait for space instead of failing.
    pub pause_when_full: bool,
    /// When it ends, in seconds from now.
    pub for_seconds: Option<u64>,
    /// Whether it ends then though clients are attached.
    pub hard_end: bool,
    /// It ends when nobody was attached for so many seconds.
    pub idle_seconds: Option<u64>,
    /// Where it can be reached besides the daemon's own addresses.
    pub listen: Vec<Listen>,
    /// Who may attach: addresses (`10.0.0.7`, `10.0.0.0/24`), users (`uid:1000`), certificates (`cert:SHA256`, `dns:NAME`), each
    /// with `=ro` behind it for reading only. Empty: the owner, and whoever is on the same host.
    pub allow: Vec<String>,
    /// What it is for, in the owner's words.
    pub reason: String,
}

/// An address of its own for a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Listen {
    /// An address and port; port 0 takes a free one.
    Tcp(String),
    /// A socket in the file system.
    Unix(String),
}

/// How to unlock a repository. Secrets are wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Key {
    /// It is not encrypted.
    None,
    /// With the content of a file, which the daemon reads again when it is restarted.
    File(String),
    /// With the passphrase in a file, which the daemon reads again when it is restarted.
    PassphraseFile(String),
    /// With these bytes of a passphrase; the daemon forgets them when it ends.
    Passphrase(Vec<u8>),
    /// With the text of a recovery key; the daemon forgets it when it ends.
    Recovery(String),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::File(_) => "File",
            Self::PassphraseFile(_) => "PassphraseFile",
            Self::Passphrase(_) => "Passphrase",
            Self::Recovery(_) => "Recovery",
        })
    }
}

/// What becomes of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlayFate {
    /// It stays, and the mount can be resumed.
    Keep,
    /// It is removed with all that was written.
    Discard,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// Who the daemon is.
    Status(StatusView),
    /// One mount.
    Mount(Box<MountView>),
    /// All mounts, oldest first.
    Mounts {
        /// The mounts.
        mounts: Vec<MountView>,
        /// Things in the daemon's directory that belong to no mount.
        leftovers: Vec<String>,
    },
    /// What was removed, or would be.
    Pruned {
        /// Names of mounts, and files.
        removed: Vec<String>,
    },
    /// It was not done.
    Refused(Refusal),
}

impl Answer {
    /// One mount, as an answer.
    pub fn mount(view: MountView) -> Self {
        Self::Mount(Box::new(view))
    }
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// [`VERSION`].
    pub api_version: u32,
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where its files are.
    pub state_dir: String,
    /// Where it serves NBD.
    pub nbd: Vec<String>,
    /// Mounts that are served.
    pub active: u64,
}

/// The state of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// It is served.
    Active,
    /// Its time is over; clients that are attached may finish, and no others come in.
    Ending,
    /// It is not served; what was written is there.
    Kept,
    /// It should be served and is not, because its repository needs a key.
    Locked,
    /// It should be served and is not; `problem` says why.
    Failed,
    /// It is over, and nothing is left of it.
    Ended,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountView {
    /// Its name, which is the export's name, too.
    pub id: String,
    /// How it is presented: `nbd`.
    pub kind: String,
    /// Its state.
    pub state: MountState,
    /// Why it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The repository's location.
    pub repository: String,
    /// The machine.
    pub machine: String,
    /// The recovery point's id.
    pub point: String,
    /// The point's time.
    pub point_time: Timestamp,
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether it can be written to.
    pub writable: bool,
    /// Who may attach, as asked for.
    pub allow: Vec<String>,
    /// Its URIs; the first is the nearest.
    pub uris: Vec<String>,
    /// Who made it.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// It ends when nobody was attached for so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Who is attached.
    pub clients: Vec<ClientView>,
    /// What was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayView>,
}

/// A client of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientView {
    /// Where it is, or who.
    pub peer: String,
    /// Since when.
    pub since: Timestamp,
    /// Whether it can write.
    pub writable: bool,
    /// Requests answered.
    pub requests: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// The overlay of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayView {
    /// Where its files are.
    pub directory: String,
    /// Bytes of content.
    pub data_bytes: u64,
    /// Bytes that read as zeros because somebody said so.
    pub zero_bytes: u64,
    /// What the content may grow to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Whether writes beyond that wait.
    pub pause_when_full: bool,
}
