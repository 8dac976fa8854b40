//! Recovery points: one backup of one machine at one time, complete in itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::limits::{DISK_SIZE_MAX, DISKS_MAX, NAME_MAX};
use crate::node::levels_of_disk;
use crate::{ChunkId, ChunkSize, FormatError, PointId, RepoId};

/// How the machine was held still while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Nobody wrote: the machine was off, or the image was a snapshot nobody changes.
    Offline,
    /// As after pulling the plug.
    Crash,
    /// The image changed while it was read, and the user asked to keep it all the same.
    Changing,
}

/// Where a recovery point came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The host that made it.
    pub host: String,
    /// The program and its version.
    pub tool: String,
}

/// The point that a copy was made of, in another repository; of a copy of a copy, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopiedFrom {
    /// The repository it was first made in.
    pub repository: RepoId,
    /// Its id there.
    pub point: PointId,
}

/// What making the point cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointStats {
    /// Bytes read from the sources.
    pub read_bytes: u64,
    /// Bytes that were holes and not read.
    pub hole_bytes: u64,
    /// Chunks the store did not have.
    pub new_chunks: u64,
    /// Their bytes, decoded.
    pub new_bytes: u64,
    /// Bytes written to the store, with everything.
    pub stored_bytes: u64,
}

/// One disk of a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its name within the machine, for example `disk0`.
    pub name: String,
    /// What it was read from, for people.
    pub source: String,
    /// Its size; need not be a multiple of the chunk size.
    pub size_bytes: u64,
    /// Levels of its image tree.
    pub levels: u8,
    /// The root node of its image tree; none when the whole disk is a hole.
    pub root: Option<ChunkId>,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Its id; also its object name.
    pub id: PointId,
    /// The machine.
    pub machine: String,
    /// When it was made, by the clock of the host that wrote it.
    pub time: Timestamp,
    /// Its disks, in the order given.
    pub disks: Vec<DiskRecord>,
    /// The point before it, for information only: every point is complete.
    pub parent: Option<PointId>,
    /// How the machine was held still.
    pub consistency: Consistency,
    /// Where it came from.
    pub origin: Origin,
    /// What it cost.
    pub stats: PointStats,
    /// A note by the user.
    pub note: Option<String>,
    /// What it is a copy of; none where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<CopiedFrom>,
}

impl RecoveryPoint {
    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        serde_json::to_vec(self).map_err(|e| FormatError::invalid("recovery point", e.to_string()))
    }

    /// Reads a payload that must be the point `id` of a repository with chunks of `chunk_size`.
    pub fn decode(bytes: &[u8], id: PointId, chunk_size: ChunkSize) -> Result<Self, FormatError> {
        let point: RecoveryPoint = serde_json::from_slice(bytes)
            .map_err(|e| FormatError::damaged("recovery point", e.to_string()))?;
        if point.id != id {
            return Err(FormatError::damaged("id", format!("it says it is point {}", point.id)));
        }
        point
            .check(chunk_size)
            .map_err(|e| FormatError::damaged("recovery point", e.to_string()))?;
        Ok(point)
    }

    /// Whether names, counts and sizes fit.
    pub fn check(&self, chunk_size: ChunkSize) -> Result<(), FormatError> {
        check_name("machine", &self.machine)?;
        if self.disks.is_empty() || self.disks.len() > DISKS_MAX {
            return Err(FormatError::invalid("disks", format!("{} disks", self.disks.len())));
        }
        for (i, disk) in self.disks.iter().enumerate() {
            check_name("disk", &disk.name)?;
            if self.disks[..i].iter().any(|d| d.name == disk.name) {
                return Err(FormatError::invalid("disk", format!("two disks '{}'", disk.name)));
            }
            if disk.size_bytes > DISK_SIZE_MAX {
                return Err(FormatError::invalid("size_bytes", format!("{}", disk.size_bytes)));
            }
            if disk.levels != levels_of_disk(disk.size_bytes, chunk_size) {
                return Err(FormatError::invalid("levels", format!("{}", disk.levels)));
            }
        }
        Ok(())
    }

    /// The disk of this name.
    pub fn disk(&self, name: &str) -> Option<&DiskRecord> {
        self.disks.iter().find(|d| d.name == name)
    }
}

/// Machine and disk names are shown, typed and used as file names: no control characters, no `/`,
/// `@` or `:` (which separate the parts of a name on the command line), not `.` or `..`, not empty
/// and at most [`NAME_MAX`] bytes.
pub fn check_name(what: &'static str, name: &str) -> Result<(), FormatError> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || name == "."
        || name == ".."
        || name.starts_with('-')
        || name.chars().any(|c| c.is_control() || "/@:\\".contains(c) || is_bidi_control(c));
    if bad {
        return Err(FormatError::invalid(
            what,
            format!(
                "'{}' cannot be a name: 1 to {NAME_MAX} bytes without control characters, '/', \
                 '\\', '@' or ':', and not starting with '-'",
                name.escape_debug()
            ),
        ));
    }
    Ok(())
}

/// Characters that reorder what a terminal shows.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecoveryPoint {
        RecoveryPoint {
            id: PointId::from_bytes([1; 16]),
            machine: "web01".into(),
            time: "2026-11-22T03:00:00Z".parse().unwrap(),
            disks: vec![DiskRecord {
                name: "disk0".into(),
                source: "web01.raw".into(),
                size_bytes: 1 << 30,
                levels: levels_of_disk(1 << 30, ChunkSize::DEFAULT),
                root: None,
            }],
            parent: None,
            consistency: Consistency::Offline,
            origin: Origin { host: "h".into(), tool: "t".into() },
            stats: PointStats::default(),
            note: None,
            copied_from: None,
        }
    }

    #[test]
    fn there_and_back() {
        let copied_from = CopiedFrom {
            repository: RepoId::from_bytes([3; 16]),
            point: PointId::from_bytes([4; 16]),
        };
        for copied_from in [None, Some(copied_from)] {
            let p = RecoveryPoint { copied_from, ..sample() };
            let bytes = p.encode().unwrap();
            // Points that are no copies have the bytes they had before copies were known.
            let told = bytes.windows(11).any(|w| w == b"copied_from");
            assert_eq!(told, copied_from.is_some());
            assert_eq!(RecoveryPoint::decode(&bytes, p.id, ChunkSize::DEFAULT).unwrap(), p);
        }
        let p = sample();
        let bytes = p.encode().unwrap();
        let other = PointId::from_bytes([2; 16]);
        assert!(RecoveryPoint::decode(&bytes, other, ChunkSize::DEFAULT).is_err());
    }

    #[test]
    fn names() {
        for bad in
            ["", ".", "..", "a/b", "a@b", "a:b", "a\nb", "-x", "a\u{202e}b", &"x".repeat(201)]
        {
            assert!(check_name("machine", bad).is_err(), "{bad:?}");
        }
        for good in ["web01", "db server 2", "ärger", "a.b", "..x"] {
            check_name("machine", good).unwrap();
        }
    }

    #[test]
    fn wrong_levels_and_twins_are_refused() {
        let mut p = sample();
        p.disks[0].levels += 1;
        assert!(p.check(ChunkSize::DEFAULT).is_err());
        let mut p = sample();
        p.disks.push(p.disks[0].clone());
        assert!(p.check(ChunkSize::DEFAULT).is_err());
        p.disks.clear();
        assert!(p.check(ChunkSize::DEFAULT).is_err());
    }
}
