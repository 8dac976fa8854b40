use std::fmt;

use backstay_format::gc::Generation;
use backstay_format::{IndexId, PackId, PinId, PointId, QuarantineId, SlotId, VerifiedId};

/// The name of an object in a repository (FORMAT.md, Objects).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `config`
    Config,
    /// `keys/SLOT`
    Slot(SlotId),
    /// `packs/P/PACK`, where P is the first letter of PACK
    Pack(PackId),
    /// `points/POINT`
    Point(PointId),
    /// `sessions/POINT.BEAT`, the beat with ten digits
    Session(PointId, u32),
    /// `removals/POINT`
    Removal(PointId),
    /// `pins/PIN`
    Pin(PinId),
    /// `gc/GENERATION.plan`, the generation with twenty digits
    GcPlan(Generation),
    /// `gc/GENERATION.verdict`
    GcVerdict(Generation),
    /// `gc/GENERATION.end`
    GcEnd(Generation),
    /// `index/INDEX`
    Index(IndexId),
    /// `quarantine/QUARANTINE`
    Quarantine(QuarantineId),
    /// `verified/VERIFIED`
    Verified(VerifiedId),
    /// `parity/P/PACK`, where P is the first letter of PACK
    Parity(PackId),
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    /// Key slots.
    Slots,
    /// Packs.
    Packs,
    /// Recovery points and fences.
    Points,
    /// Sessions.
    Sessions,
    /// Removals of recovery points.
    Removals,
    /// Pins.
    Pins,
    /// Plans and ends of collections.
    Gc,
    /// Index objects.
    Index,
    /// Records of damage.
    Quarantine,
    /// Records of what was verified when.
    Verified,
    /// Parity of packs.
    Parity,
}

impl ObjectKey {
    /// The object's path below the repository, with `/` between the parts.
    pub fn path(&self) -> String {
        let spread = |folder: &str, id: &PackId| {
            let name = id.to_string();
            format!("{folder}/{}/{name}", &name[..1])
        };
        match self {
            ObjectKey::Config => "config".into(),
            ObjectKey::Slot(id) => format!("keys/{id}"),
            ObjectKey::Pack(id) => spread("packs", id),
            ObjectKey::Point(id) => format!("points/{id}"),
            ObjectKey::Session(id, beat) => format!("sessions/{id}.{beat:010}"),
            ObjectKey::Removal(id) => format!("removals/{id}"),
            ObjectKey::Pin(id) => format!("pins/{id}"),
            ObjectKey::GcPlan(n) => format!("gc/{:020}.plan", n.0),
            ObjectKey::GcVerdict(n) => format!("gc/{:020}.verdict", n.0),
            ObjectKey::GcEnd(n) => format!("gc/{:020}.end", n.0),
            ObjectKey::Index(id) => format!("index/{id}"),
            ObjectKey::Quarantine(id) => format!("quarantine/{id}"),
            ObjectKey::Verified(id) => format!("verified/{id}"),
            ObjectKey::Parity(id) => spread("parity", id),
        }
    }

    /// The key of the object `name` in `folder`; nothing if the name is no name of that kind.
    pub fn from_name(folder: Folder, name: &str) -> Option<Self> {
        let key = match folder {
            Folder::Slots => ObjectKey::Slot(name.parse().ok()?),
            Folder::Packs => ObjectKey::Pack(name.parse().ok()?),
            Folder::Points => ObjectKey::Point(name.parse().ok()?),
            Folder::Sessions => {
                let (id, beat) = name.split_once('.')?;
                ObjectKey::Session(id.parse().ok()?, beat.parse().ok()?)
            }
            Folder::Removals => ObjectKey::Removal(name.parse().ok()?),
            Folder::Pins => ObjectKey::Pin(name.parse().ok()?),
            Folder::Gc => {
                let (number, part) = name.split_once('.')?;
                let generation = Generation(number.parse().ok()?);
                match part {
                    "plan" => ObjectKey::GcPlan(generation),
                    "verdict" => ObjectKey::GcVerdict(generation),
                    "end" => ObjectKey::GcEnd(generation),
                    _ => return None,
                }
            }
            Folder::Index => ObjectKey::Index(name.parse().ok()?),
            Folder::Quarantine => ObjectKey::Quarantine(name.parse().ok()?),
            Folder::Verified => ObjectKey::Verified(name.parse().ok()?),
            Folder::Parity => ObjectKey::Parity(name.parse().ok()?),
        };
        // Only the one spelling that `path` writes is a name.
        key.path().ends_with(&format!("/{name}")).then_some(key)
    }

    /// The folder it stands in; the configuration stands in none.
    pub fn folder(&self) -> Option<Folder> {
        Some(match self {
            ObjectKey::Config => return None,
            ObjectKey::Slot(_) => Folder::Slots,
            ObjectKey::Pack(_) => Folder::Packs,
            ObjectKey::Point(_) => Folder::Points,
            ObjectKey::Session(..) => Folder::Sessions,
            ObjectKey::Removal(_) => Folder::Removals,
            ObjectKey::Pin(_) => Folder::Pins,
            ObjectKey::GcPlan(_) | ObjectKey::GcVerdict(_) | ObjectKey::GcEnd(_) => Folder::Gc,
            ObjectKey::Index(_) => Folder::Index,
            ObjectKey::Quarantine(_) => Folder::Quarantine,
            ObjectKey::Verified(_) => Folder::Verified,
            ObjectKey::Parity(_) => Folder::Parity,
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

impl Folder {
    /// Every folder of a repository.
    pub const ALL: [Folder; 11] = [
        Folder::Slots,
        Folder::Packs,
        Folder::Points,
        Folder::Sessions,
        Folder::Removals,
        Folder::Pins,
        Folder::Gc,
        Folder::Index,
        Folder::Quarantine,
        Folder::Verified,
        Folder::Parity,
    ];

    /// Its directory below the repository.
    pub const fn name(self) -> &'static str {
        match self {
            Folder::Slots => "keys",
            Folder::Packs => "packs",
            Folder::Points => "points",
            Folder::Sessions => "sessions",
            Folder::Removals => "removals",
            Folder::Pins => "pins",
            Folder::Gc => "gc",
            Folder::Index => "index",
            Folder::Quarantine => "quarantine",
            Folder::Verified => "verified",
            Folder::Parity => "parity",
        }
    }

    /// The directories that hold the folder's objects, below the repository.
    pub fn directories(self) -> Vec<String> {
        let name = self.name();
        match self {
            Folder::Packs | Folder::Parity => {
                let letters = "0123456789abcdefghjkmnpqrstvwxyz".chars();
                letters.map(|c| format!("{name}/{c}")).collect()
            }
            _ => vec![name.into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_back() {
        let point = PointId::from_bytes([5; 16]);
        let pack = PackId::from_bytes([7; 16]);
        let keys = [
            ObjectKey::Slot(SlotId::from_bytes([1; 8])),
            ObjectKey::Pack(pack),
            ObjectKey::Point(point),
            ObjectKey::Session(point, 0),
            ObjectKey::Session(point, u32::MAX),
            ObjectKey::Removal(point),
            ObjectKey::Pin(PinId::from_bytes([2; 16])),
            ObjectKey::GcPlan(Generation(1)),
            ObjectKey::GcVerdict(Generation(12)),
            ObjectKey::GcEnd(Generation(u64::MAX)),
            ObjectKey::Index(IndexId::from_bytes([3; 16])),
            ObjectKey::Quarantine(QuarantineId::from_bytes([4; 16])),
            ObjectKey::Verified(VerifiedId::from_bytes([6; 16])),
            ObjectKey::Parity(pack),
        ];
        for key in keys {
            let folder = key.folder().unwrap();
            let path = key.path();
            let (dir, name) = path.rsplit_once('/').unwrap();
            assert!(folder.directories().contains(&dir.to_owned()), "{path}");
            assert_eq!(ObjectKey::from_name(folder, name), Some(key), "{path}");
            assert_eq!(ObjectKey::from_name(folder, &format!("{name}x")), None);
        }
    }

    #[test]
    fn one_spelling_only() {
        for name in ["1.plan", "00000000000000000001.plan2", "+0000000000000000001.end", ".plan"] {
            assert_eq!(ObjectKey::from_name(Folder::Gc, name), None, "{name}");
        }
    }
}
