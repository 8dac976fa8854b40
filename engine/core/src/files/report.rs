//! What a run did, and what it could not do.

use std::collections::BTreeMap;

use super::shown;

/// Most notes that are kept with their paths; the totals count all.
pub const NOTES_MAX: usize = 1000;

/// Why something is not there as it was in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum What {
    /// The guest's file system could not be read here; the node, or what is below it, is missing.
    Unreadable,
    /// The target refused it; the node is missing.
    NotWritten,
    /// A name no file can have: empty, `.`, `..`, or with a `/` or a NUL in it. The node is missing.
    BadName,
    /// A second entry of one name in one directory. The first was taken.
    DuplicateName,
    /// The target has something of that name, and it was not to be replaced.
    Exists,
    /// The target takes the name for one written before: it does not tell case or forms of letters
    /// apart. One of them was taken.
    Collides,
    /// A directory below itself, or met a second time; only damage makes one.
    Loop,
    /// Deeper than the bound; what is below is missing.
    TooDeep,
    /// Sockets are not taken: nobody would listen.
    Socket,
    /// Devices are taken only on request.
    Device,
    /// The name was changed to one that can be held.
    Name,
    /// The bytes are those on the disk, which the guest encrypted.
    Encrypted,
    /// The owner or group was not kept.
    Owner,
    /// Permission bits were not kept, setuid and setgid among them.
    Mode,
    /// An extended attribute was not kept.
    Xattr,
    /// Marks such as "immutable" were not kept.
    Flags,
    /// Times were not kept, or less exactly.
    Times,
    /// A further name of a file became a file of its own.
    HardLink,
    /// Holes became zeros.
    Sparse,
}

impl What {
    /// Whether the node itself is missing or not the guest's; otherwise only something about it is.
    pub fn is_missing(self) -> bool {
        match self {
            Self::Unreadable
            | Self::NotWritten
            | Self::BadName
            | Self::DuplicateName
            | Self::Exists
            | Self::Collides
            | Self::Loop
            | Self::TooDeep
            | Self::Socket
            | Self::Device => true,
            Self::Name
            | Self::Encrypted
            | Self::Owner
            | Self::Mode
            | Self::Xattr
            | Self::Flags
            | Self::Times
            | Self::HardLink
            | Self::Sparse => false,
        }
    }
}

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where, from the start of the tree; bytes as the guest has them.
    pub path: Vec<u8>,
    /// What.
    pub what: What,
    /// In words, for people; safe for a terminal.
    pub text: String,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Regular files written.
    pub files: u64,
    /// Directories made, or entered where they were there.
    pub directories: u64,
    /// Symbolic links made.
    pub symlinks: u64,
    /// Further names of files written before.
    pub hard_links: u64,
    /// Pipes and devices.
    pub others: u64,
    /// Bytes of content written, holes not counted.
    pub data_bytes: u64,
    /// How often each thing happened.
    pub totals: BTreeMap<What, u64>,
    /// The first [`NOTES_MAX`] of them.
    pub notes: Vec<Note>,
}

impl Report {
    /// Whether everything of the tree is there, if not with all its metadata.
    pub fn is_complete(&self) -> bool {
        !self.totals.keys().any(|what| what.is_missing())
    }

    /// How often `what` happened.
    pub fn count(&self, what: What) -> u64 {
        self.totals.get(&what).copied().unwrap_or(0)
    }

    pub(crate) fn note(&mut self, path: &[u8], what: What, text: impl std::fmt::Display) {
        let count = self.totals.entry(what).or_default();
        *count = count.saturating_add(1);
        if self.notes.len() < NOTES_MAX {
            let text = format!("{}: {text}", shown(path));
            self.notes.push(Note { path: path.to_vec(), what, text });
        }
    }
}
