//! What the ledger keeps of a mount.

use backstay_api::mountd::{Key, Listen};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the records; a newer one is not touched.
pub(super) const VERSION: u32 = 1;

/// A mount, as it survives the daemon. Everything that happens outside (an overlay, a pin) happens after a
/// record that names it is durable, and is gone before the record goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) intent: Intent,
    pub(super) repository: String,
    pub(super) key: KeyMemory,
    pub(super) machine: String,
    pub(super) point: String,
    pub(super) point_time: Timestamp,
    pub(super) disk: String,
    pub(super) size_bytes: u64,
    pub(super) writable: bool,
    pub(super) limit_bytes: Option<u64>,
    pub(super) pause_when_full: bool,
    pub(super) allow: Vec<String>,
    pub(super) listen: Vec<Listen>,
    pub(super) owner: String,
    pub(super) owner_uid: u32,
    pub(super) reason: String,
    pub(super) created: Timestamp,
    pub(super) ends: Option<Timestamp>,
    pub(super) hard_end: bool,
    pub(super) idle_seconds: Option<u64>,
    /// The pin that keeps the point while there is an overlay over it.
    pub(super) pin: Option<String>,
}

/// How a mount is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Nbd,
}

/// What the daemon means to do with a mount, whenever it comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Intent {
    /// It is being made, and nobody was told of it: undo it.
    Starting,
    /// Serve it.
    Serve,
    /// Do not serve it; the overlay stays.
    Keep {
        /// When it ended.
        since: Timestamp,
    },
    /// Remove all that is left of it.
    Discard,
}

/// What is remembered of a key: never the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyMemory {
    /// None is needed.
    None,
    /// Where its file is.
    File(String),
    /// Where the file with the passphrase is.
    PassphraseFile(String),
    /// It was given by hand.
    Forgotten,
}

impl KeyMemory {
    pub(super) fn of(key: &Key) -> Self {
        match key {
            Key::None => Self::None,
            Key::File(path) => Self::File(path.clone()),
            Key::PassphraseFile(path) => Self::PassphraseFile(path.clone()),
            Key::Passphrase(_) | Key::Recovery(_) => Self::Forgotten,
        }
    }

    /// The key to use without asking anybody.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::None => Some(Key::None),
            Self::File(path) => Some(Key::File(path.clone())),
            Self::PassphraseFile(path) => Some(Key::PassphraseFile(path.clone())),
            Self::Forgotten => None,
        }
    }
}
