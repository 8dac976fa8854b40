use backstay_format::{IndexId, PackId, PointId};

use crate::error::Error;

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A recovery point's record.
    Point(PointId),
    /// A pack, or a chunk in it.
    Pack(PackId),
    /// An index object. No data is lost with it.
    Index(IndexId),
    /// Another object of the repository, by its name below it.
    Object(String),
    /// A range of a disk that cannot be restored.
    Disk {
        /// The machine.
        machine: String,
        /// The recovery point.
        point: PointId,
        /// The disk.
        disk: String,
        /// Where the range starts.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What is damaged.
    pub kind: DamageKind,
    /// How it was noticed.
    pub reason: String,
}

/// Most findings a report lists.
const DAMAGE_MAX: usize = 10_000;

/// Findings as they come, each range once: neighbours with the same reason are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) damage: Vec<Damage>,
    /// Findings beyond the most that are listed.
    pub(crate) left_out: u64,
}

impl Findings {
    pub(crate) fn is_empty(&self) -> bool {
        self.damage.is_empty() && self.left_out == 0
    }

    pub(crate) fn add(&mut self, kind: DamageKind, reason: &Error) {
        self.add_text(kind, reason.whole_story());
    }

    pub(crate) fn add_text(&mut self, kind: DamageKind, reason: String) {
        if let (
            Some(Damage {
                kind: DamageKind::Disk { point, disk, offset_bytes, len_bytes, .. },
                reason: r,
            }),
            DamageKind::Disk { point: p, disk: d, offset_bytes: o, len_bytes: l, .. },
        ) = (self.damage.last_mut(), &kind)
            && point == p
            && disk == d
            && *r == reason
            && *offset_bytes + *len_bytes == *o
        {
            *len_bytes += l;
            return;
        }
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage { kind, reason });
        } else {
            self.left_out += 1;
        }
    }
}
