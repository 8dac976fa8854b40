use std::fmt;

use backstay_format::{PackId, PointId, SlotId};

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
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    /// Key slots.
    Slots,
    /// Packs.
    Packs,
    /// Recovery points.
    Points,
}

impl ObjectKey {
    /// The object's path below the repository, with `/` between the parts.
    pub fn path(&self) -> String {
        match self {
            ObjectKey::Config => "config".into(),
            ObjectKey::Slot(id) => format!("keys/{id}"),
            ObjectKey::Pack(id) => {
                let name = id.to_string();
                format!("packs/{}/{name}", &name[..1])
            }
            ObjectKey::Point(id) => format!("points/{id}"),
        }
    }

    /// The key of the object `name` in `folder`; nothing if the name is no id of that kind.
    pub fn from_name(folder: Folder, name: &str) -> Option<Self> {
        match folder {
            Folder::Slots => name.parse().ok().map(ObjectKey::Slot),
            Folder::Packs => name.parse().ok().map(ObjectKey::Pack),
            Folder::Points => name.parse().ok().map(ObjectKey::Point),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

impl Folder {
    /// The directories that hold the folder's objects, below the repository.
    pub fn directories(self) -> Vec<String> {
        match self {
            Folder::Slots => vec!["keys".into()],
            Folder::Points => vec!["points".into()],
            Folder::Packs => {
                "0123456789abcdefghjkmnpqrstvwxyz".chars().map(|c| format!("packs/{c}")).collect()
            }
        }
    }
}
