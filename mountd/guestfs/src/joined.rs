//! A guest's tree over several volumes as one file system.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::{DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, NodeId, Place, Stat, Xattr};
use crate::namespace::{Mount, Namespace, Open};
use crate::{Error, ErrorKind};

/// Bits of [`NodeId::part`] that are left to the file systems themselves; above them stands which of them it is.
const PART_BITS: u32 = 48;

/// The tree of a system: its root, and in it the volumes it mounts, each in the place of the directory it covers.
///
/// Nodes have the ids of their own file system, with its place in the list in the upper 16 bits of `part`; those of the root's are
/// as they are. What is below a covered directory is not there, as in the guest.
#[derive(Debug)]
pub struct Joined {
    /// The root's first.
    parts: Vec<Part>,
    root: NodeId,
    /// From a covered directory to what is in its place.
    covered: HashMap<NodeId, NodeId>,
    left_out: Vec<LeftOut>,
}

/// What a guest mounts and is not in its tree here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where the guest has it.
    pub path: String,
    /// Why it is not here.
    pub why: String,
}

#[derive(Debug)]
struct Part {
    volume: usize,
    fs: Arc<dyn FileSystem>,
}

impl Joined {
    /// The tree of `system`; `open` opens a volume, by its place in the list.
    ///
    /// A mount whose volume cannot be read, or whose directory is not there, is left out and told by
    /// [`left_out`](Self::left_out).
    ///
    /// # Errors
    /// Those of the root's volume.
    pub fn new(system: &Namespace, open: &Open<'_>) -> Result<Self, Error> {
        let mut mounts = system.mounts().iter();
        let Some(root) = mounts.next() else {
            return Err(Error::not_found("the system has no root"));
        };
        let first = Part { volume: root.volume, fs: open(root.volume)? };
        let mut joined = Self {
            parts: vec![first],
            root: root.root,
            covered: HashMap::new(),
            left_out: system
                .missing()
                .iter()
                .map(|line| LeftOut {
                    path: line.path.clone(),
                    why: format!("{} is on none of these disks", line.spec),
                })
                .collect(),
        };
        for mount in mounts {
            if let Err(e) = joined.mount(system, mount, open) {
                joined.left_out.push(LeftOut { path: mount.path.clone(), why: e.to_string() });
            }
        }
        Ok(joined)
    }

    fn mount(&mut self, system: &Namespace, mount: &Mount, open: &Open<'_>) -> Result<(), Error> {
        let below = system.covered_by(mount, open)?;
        let Some(from) = self.id(below.volume, below.node) else {
            return Err(Error::not_found("the volume it lies on is not mounted itself"));
        };
        if !self.parts.iter().any(|part| part.volume == mount.volume) {
            self.parts.push(Part { volume: mount.volume, fs: open(mount.volume)? });
        }
        let to = self.id(mount.volume, mount.root);
        self.covered.insert(from, to.ok_or_else(|| too_far(mount.root))?);
        Ok(())
    }

    /// What the guest mounts at `path` or below it and is not in this tree.
    pub fn left_out(&self, path: &[u8]) -> impl Iterator<Item = &LeftOut> {
        let top = path.strip_suffix(b"/").unwrap_or(path);
        self.left_out.iter().filter(move |left| {
            left.path
                .as_bytes()
                .strip_prefix(top)
                .is_some_and(|rest| rest.first() == Some(&b'/') || rest.is_empty())
        })
    }

    /// The id here of a node of a volume; `None` if the volume is not part of the tree.
    pub fn id(&self, volume: usize, node: NodeId) -> Option<NodeId> {
        let place = self.parts.iter().position(|part| part.volume == volume)?;
        outer(place, node).ok()
    }

    /// The volume a node is on, by its place in the list of volumes, and its id there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an id that is none of this tree's.
    pub fn home(&self, node: NodeId) -> Result<(usize, NodeId), Error> {
        let (part, inner, _) = self.part(node)?;
        Ok((part.volume, inner))
    }

    fn part(&self, node: NodeId) -> Result<(&Part, NodeId, usize), Error> {
        let place = (node.part >> PART_BITS) as usize;
        let part = self.parts.get(place).ok_or_else(|| {
            Error::not_found(format!("there is no {node}: the tree has {} parts", self.parts.len()))
        })?;
        let inner = NodeId { part: node.part & ((1 << PART_BITS) - 1), ..node };
        Ok((part, inner, place))
    }

    /// The id of a node that an entry leads to.
    fn entered(&self, place: usize, node: NodeId) -> Result<NodeId, Error> {
        let id = outer(place, node)?;
        Ok(self.covered.get(&id).copied().unwrap_or(id))
    }
}

fn outer(place: usize, node: NodeId) -> Result<NodeId, Error> {
    if node.part >> PART_BITS != 0 {
        return Err(too_far(node));
    }
    Ok(NodeId { part: (place as u64) << PART_BITS | node.part, ..node })
}

fn too_far(node: NodeId) -> Error {
    Error::new(ErrorKind::Limit, format!("{node} has a number that is larger than can be joined"))
}

impl FileSystem for Joined {
    fn info(&self) -> &FsInfo {
        // There is a first one from the start.
        self.parts[0].fs.info()
    }

    fn root(&self) -> NodeId {
        self.root
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let (part, inner, place) = self.part(dir)?;
        self.entered(place, part.fs.lookup(inner, name)?)
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let (part, inner, place) = self.part(dir)?;
        let mut entries = part.fs.read_dir(inner, from, max)?;
        for entry in &mut entries {
            entry.node = self.entered(place, entry.node)?;
        }
        Ok(entries)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let (part, inner, _) = self.part(node)?;
        Ok(Stat { node, ..part.fs.stat(inner)? })
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let (part, inner, _) = self.part(node)?;
        part.fs.read(inner, offset_bytes, buf)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let (part, inner, _) = self.part(node)?;
        part.fs.read_link(inner)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        let (part, inner, _) = self.part(node)?;
        part.fs.xattrs(inner)
    }

    /// The devices of several volumes have no common numbers, so content that lies on one is [`Place::Inside`]: it is read with
    /// [`read`](FileSystem::read).
    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let (part, inner, _) = self.part(node)?;
        let mut extents = part.fs.extents(inner, offset_bytes, len_bytes, max)?;
        for extent in &mut extents {
            if matches!(extent.place, Place::Device { .. }) {
                extent.place = Place::Inside;
            }
        }
        Ok(extents)
    }
}
