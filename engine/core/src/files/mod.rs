//! Taking files out of a guest's file system.
//!
//! A [`Tree`] is where to start. [`directory`] writes it into a directory of this machine, [`tar`], [`zip`]
//! and [`content`] (one file's bytes) into any writer. [`walk`] goes over all that is below,
//! [`find`] tells what has a name, [`diff`] what two trees differ in.
//!
//! What is read was made by a guest and may be hostile. So no name, link, number or kind in it is
//! taken for what it says: names are checked, links are never followed, everything is counted against
//! a bound. What cannot be taken, or not wholly, is told in a [`Report`] and the rest goes on.

mod archive;
pub mod catalogue;
pub mod content;
pub mod diff;
pub mod directory;
pub mod find;
mod report;
pub mod tar;
pub mod to_archive;
pub mod walk;
pub mod zip;

pub use report::{NOTES_MAX, Note, Report, What};

use backstay_guestfs::fs::{FileSystem, NodeId};

use crate::error::{Error, ErrorKind};
use crate::monitor::Monitor;

/// Where to start in a file system.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    /// The file system; it gives content too.
    pub fs: &'a dyn FileSystem,
    /// The node that is taken, with all that is below it.
    pub node: NodeId,
}

/// An error of the reader below, about the file at `path`.
pub(crate) fn guest_error(path: &[u8], error: backstay_guestfs::Error) -> Error {
    use backstay_guestfs::ErrorKind as K;
    let kind = match error.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::NotADirectory | K::IsADirectory | K::Invalid => ErrorKind::Invalid,
        K::Damaged => ErrorKind::Damaged,
        K::Unsupported | K::Encrypted | K::Limit => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot read {}", shown(path))).caused_by(error)
}

/// A path for people: bytes that are no text, and control characters, are escaped, so that a name a
/// guest made cannot play with a terminal.
pub fn shown(path: &[u8]) -> String {
    use std::fmt::Write;
    if path.is_empty() {
        return String::from(".");
    }
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The error of a run that its monitor ended.
pub(crate) fn stopped(monitor: &dyn Monitor) -> Result<(), Error> {
    match monitor.cancelled() {
        true => Err(Error::new(ErrorKind::Cancelled, "stopped as asked")),
        false => Ok(()),
    }
}
