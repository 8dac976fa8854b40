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
        /// With its secrets.
        #[serde(default)]
        secrets: bool,
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
    /// Ends sessions of initiators; [`Answer::Mount`]. An initiator that is not kept out may come again at once.
    Kick {
        /// The mount's name.
        id: String,
        /// The session's number; `None` for all.
        session: Option<u16>,
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
    /// The disks, none twice: one for NBD, one or more for iSCSI, where they become units 0, 1 and so on.
    pub disks: Vec<String>,
    /// Served as an iSCSI target, so; `None` for NBD.
    pub iscsi: Option<IscsiRequest>,
    /// Shown as files, so: all disks of the point, read-only. Not together with `iscsi`.
    #[serde(default)]
    pub files: Option<FilesRequest>,
    /// Whether they may be written to; the writes go to an overlay for each disk.
    pub writable: bool,
    /// Bytes each overlay may take.
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
    /// Who may attach, each with `=ro` behind it for reading only. NBD: addresses (`10.0.0.7`, `10.0.0.0/24`), users
    /// (`uid:1000`), certificates (`cert:SHA256`, `dns:NAME`). iSCSI: addresses, names of initiators, or
    /// `NAME@ADDRESS`. Empty: the owner, and whoever is on the same host.
    pub allow: Vec<String>,
    /// What it is for, in the owner's words.
    pub reason: String,
}

/// Where and how a point is shown as files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesRequest {
    /// An existing directory, as an absolute path.
    pub directory: String,
    /// Other users may look into it, too; the modes of the files are then enforced.
    pub allow_other: bool,
    /// Whose the guest's files are shown as.
    pub owners: FilesOwners,
}

/// Whose a guest's files are shown as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesOwners {
    /// The guest's numbers.
    Guest,
    /// All of one user and group.
    As {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The guest's numbers, some of them changed: `(from, to, count)`.
    Map {
        /// Users.
        users: Vec<(u32, u32, u32)>,
        /// Groups.
        groups: Vec<(u32, u32, u32)>,
    },
}

/// How disks are served as an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IscsiRequest {
    /// Whether initiators must prove who they are, by a secret that the daemon makes.
    pub chap: ChapRequest,
    /// Secrets of 16 letters, which is all that Windows takes.
    #[serde(default)]
    pub short_secrets: bool,
}

/// Who proves what to whom (CHAP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChapRequest {
    /// Nobody: an initiator is what it says.
    None,
    /// The initiator to the target.
    Initiator,
    /// Each to the other.
    Mutual,
}

/// A secret. Wiped when dropped, and never in what is printed for debugging.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret of this text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret, for whoever must know it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
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
    /// Its iSCSI portals that all mounts share.
    #[serde(default)]
    pub iscsi: Vec<String>,
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
    /// How it is presented: `nbd`, `iscsi` or `files`.
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
    /// The disks, in the order of their units.
    pub disks: Vec<DiskView>,
    /// Whether they can be written to.
    pub writable: bool,
    /// Who may attach, as asked for.
    pub allow: Vec<String>,
    /// Its URIs; the first is the nearest. An iSCSI target has one for each unit at each portal, portal by portal.
    pub uris: Vec<String>,
    /// What only an iSCSI target has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iscsi: Option<IscsiView>,
    /// Where it is in this host's file tree, for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
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
}

/// A disk of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// Its name in the recovery point.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical unit number, in an iSCSI target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// What was written to it, where it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayView>,
}

/// An iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiView {
    /// Its name, as initiators know it.
    pub target: String,
    /// Where it can be reached (`10.0.0.1:3260`); those of its own first. Empty while it is not served.
    pub portals: Vec<String>,
    /// What initiators must know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<ChapView>,
    /// What the target proves in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_target: Option<ChapView>,
}

/// One direction of CHAP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChapView {
    /// The name.
    pub name: String,
    /// The secret, where it was asked for: in the answer to a mount, and to `Show` with secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// A client of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientView {
    /// Where it is, or who.
    pub peer: String,
    /// The initiator's name, over iSCSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiator: Option<String>,
    /// The number of its session, by which it is kicked, over iSCSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u16>,
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

/// The overlay of a disk.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_what_is_printed() {
        let chap = ChapView { name: "m-1".into(), secret: Some(Secret::new("geheim".into())) };
        assert!(!format!("{chap:?}").contains("geheim"));
        assert_eq!(serde_json::to_string(&chap).unwrap(), r#"{"name":"m-1","secret":"geheim"}"#);
    }
}
