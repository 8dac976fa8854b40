//! A guest's files as its users know them: volumes at the paths where the guest mounts them, links followed inside the guest.

use std::fmt;
use std::sync::Arc;

use crate::fs::{FileSystem, NodeId, NodeKind};
use crate::fstab::{self, FSTAB_MAX, Names};
use crate::volumes::{Content, VolumeTree};
use crate::{Error, ErrorKind};

/// Symbolic links followed on one path, as Linux has it.
const LINKS_MAX: usize = 40;
/// Components of one path, those of links included.
const COMPONENTS_MAX: usize = 4096;
/// Directories of a btrfs volume in which distributions keep the root.
const ROOT_SUBVOLUMES: [&str; 4] = ["", "@", "root", "@rootfs"];

/// Opens the file system of a volume, by its place in the list.
pub type Open<'a> = dyn Fn(usize) -> Result<Arc<dyn FileSystem>, Error> + 'a;

/// A directory tree over several volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The root first, then by path: what lies below another comes behind it.
    mounts: Vec<Mount>,
    missing: Vec<Missing>,
}

/// A line of the guest's table whose volume is not on these disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is to be mounted, as it stands there: `UUID=...`.
    pub spec: String,
    /// Where.
    pub path: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.spec, self.path)
    }
}

/// A volume at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where: an absolute path; `/` for the root.
    pub path: String,
    /// The volume's place in the list.
    pub volume: usize,
    /// Which directory of it: a subvolume, or its root.
    pub root: NodeId,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The volume's place in the list.
    pub volume: usize,
    /// Its file system.
    pub fs: Arc<dyn FileSystem>,
    /// The node.
    pub node: NodeId,
    /// The path without links and dots; absolute.
    pub path: Vec<u8>,
}

impl Namespace {
    /// A single volume as the whole tree.
    pub fn of_volume(volume: usize, root: NodeId) -> Self {
        Self { mounts: vec![Mount { path: "/".into(), volume, root }], missing: Vec::new() }
    }

    /// The systems on these disks: one for each volume that has a table of what is mounted where (`/etc/fstab`). Volumes that
    /// cannot be read are passed over; a mount that leads to none of the volumes is told by [`missing`](Self::missing).
    pub fn systems(tree: &VolumeTree, open: &Open<'_>) -> Vec<Self> {
        let mut found = Vec::new();
        for (index, volume) in tree.volumes.iter().enumerate() {
            if !matches!(volume.content, Content::FileSystem(_)) {
                continue;
            }
            let Ok(fs) = open(index) else { continue };
            if let Some((root, table)) = table(&*fs) {
                found.push(Self::from_table(tree, open, index, root, &table));
            }
        }
        found
    }

    fn from_table(
        tree: &VolumeTree,
        open: &Open<'_>,
        index: usize,
        root: NodeId,
        table: &[u8],
    ) -> Self {
        let mut this = Self::of_volume(index, root);
        for line in fstab::parse(table).into_iter().filter(|line| line.path != "/") {
            let is_volume = line.spec.starts_with("/dev/") || line.spec.contains('=');
            let volume = tree.volumes.iter().position(|v| {
                matches!(v.content, Content::FileSystem(_)) && names(v).are_meant_by(&line.spec)
            });
            let at = volume
                .and_then(|v| Some((v, directory(&*open(v).ok()?, line.subvolume.as_deref())?)));
            match at {
                Some((volume, root)) => this.mounts.push(Mount { path: line.path, volume, root }),
                None if is_volume => {
                    this.missing.push(Missing { spec: line.spec, path: line.path });
                }
                None => {}
            }
        }
        // Of two at one path the later one is seen.
        this.mounts[1..].reverse();
        this.mounts[1..].sort_by(|a, b| a.path.cmp(&b.path));
        this.mounts.dedup_by(|b, a| a.path == b.path);
        this
    }

    /// What is mounted where: the root first.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Lines of the guest's table that lead to no volume of these disks.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Where `path` leads; a relative one is taken from the root. The last component is followed too, if it is a link and `follow`
    /// says so.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] naming the component that is not there, [`ErrorKind::NotADirectory`],
    /// [`ErrorKind::Limit`] for links that lead round, and whatever reading says.
    pub fn resolve(&self, path: &[u8], follow: bool, open: &Open<'_>) -> Result<Resolved, Error> {
        let mut walk = Walk::new(self, open)?;
        walk.push(path)?;
        while let Some(name) = walk.waiting.pop() {
            walk.step(&name, follow)?;
        }
        walk.end()
    }

    /// The directory that `mount` covers.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve): a table may name a directory that is not there.
    pub fn covered_by(&self, mount: &Mount, open: &Open<'_>) -> Result<Resolved, Error> {
        let mounts = self.mounts.iter().filter(|other| *other != mount).cloned().collect();
        let others = Self { mounts, missing: Vec::new() };
        others.resolve(mount.path.as_bytes(), true, open)
    }

    fn mount_at(&self, path: &[u8]) -> Option<&Mount> {
        self.mounts.iter().find(|m| m.path.as_bytes() == path)
    }
}

/// Where one is on the way.
struct Here {
    volume: usize,
    fs: Arc<dyn FileSystem>,
    node: NodeId,
    /// How long the path was before this component.
    parent_len: usize,
}

struct Walk<'a> {
    namespace: &'a Namespace,
    open: &'a Open<'a>,
    /// From the root to where one is.
    stack: Vec<Here>,
    /// The path to there; empty for the root.
    path: Vec<u8>,
    /// What is still to go, the next one last.
    waiting: Vec<Vec<u8>>,
    links: usize,
    components: usize,
}

impl<'a> Walk<'a> {
    fn new(namespace: &'a Namespace, open: &'a Open<'a>) -> Result<Self, Error> {
        let root = &namespace.mounts[0];
        let here =
            Here { volume: root.volume, fs: open(root.volume)?, node: root.root, parent_len: 0 };
        Ok(Self {
            namespace,
            open,
            stack: vec![here],
            path: Vec::new(),
            waiting: Vec::new(),
            links: 0,
            components: 0,
        })
    }

    /// Puts a path in front of what is still to go.
    fn push(&mut self, path: &[u8]) -> Result<(), Error> {
        let before = self.waiting.len();
        let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
        self.waiting.extend(names.map(<[u8]>::to_vec));
        self.waiting[before..].reverse();
        self.components += self.waiting.len() - before;
        if self.components > COMPONENTS_MAX {
            return Err(Error::new(ErrorKind::Limit, "the path has too many components"));
        }
        Ok(())
    }

    fn step(&mut self, name: &[u8], follow: bool) -> Result<(), Error> {
        if name == b".." {
            // The root is its own parent.
            if self.stack.len() > 1
                && let Some(left) = self.stack.pop()
            {
                self.path.truncate(left.parent_len);
            }
            return Ok(());
        }
        let Some(here) = self.stack.last() else { return Err(Error::not_found("no root")) };
        let is_directory = here.fs.stat(here.node)?.kind == NodeKind::Directory;
        if !is_directory {
            let text = format!("{} is not a directory", shown(&self.path));
            return Err(Error::new(ErrorKind::NotADirectory, text));
        }
        let parent_len = self.path.len();
        let mut path = self.path.clone();
        path.push(b'/');
        path.extend(name);
        if let Some(mount) = self.namespace.mount_at(&path) {
            let fs = (self.open)(mount.volume)?;
            let here = Here { volume: mount.volume, fs, node: mount.root, parent_len };
            self.stack.push(here);
            self.path = path;
            return Ok(());
        }
        let node = here.fs.lookup(here.node, name).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::not_found(format!("there is no {}", shown(&path))),
            _ => e,
        })?;
        let (volume, fs) = (here.volume, Arc::clone(&here.fs));
        let last = self.waiting.is_empty();
        if (follow || !last) && fs.stat(node)?.kind == NodeKind::Symlink {
            return self.follow(&fs.read_link(node)?, &path);
        }
        self.stack.push(Here { volume, fs, node, parent_len });
        self.path = path;
        Ok(())
    }

    fn follow(&mut self, target: &[u8], link: &[u8]) -> Result<(), Error> {
        self.links += 1;
        if self.links > LINKS_MAX {
            let text = format!("too many symbolic links, the last of them {}", shown(link));
            return Err(Error::new(ErrorKind::Limit, text));
        }
        if target.first() == Some(&b'/') {
            self.stack.truncate(1);
            self.path.clear();
        }
        self.push(target)
    }

    fn end(mut self) -> Result<Resolved, Error> {
        let Some(here) = self.stack.pop() else { return Err(Error::not_found("no root")) };
        let path = if self.path.is_empty() { b"/".to_vec() } else { self.path };
        Ok(Resolved { volume: here.volume, fs: here.fs, node: here.node, path })
    }
}

/// A path in a message.
fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".into() } else { path.escape_ascii().to_string() }
}

/// The table of a system whose root is on this volume, and where on it that root is.
fn table(fs: &dyn FileSystem) -> Option<(NodeId, Vec<u8>)> {
    ROOT_SUBVOLUMES.iter().find_map(|name| {
        let root = directory(fs, Some(name))?;
        let etc = fs.lookup(root, b"etc").ok()?;
        let file = fs.lookup(etc, b"fstab").ok()?;
        let stat = fs.stat(file).ok()?;
        if stat.kind != NodeKind::File {
            return None;
        }
        let mut text = vec![0; usize::try_from(stat.size_bytes.min(FSTAB_MAX)).ok()?];
        let read = fs.read(file, 0, &mut text).ok()?;
        text.truncate(read);
        Some((root, text))
    })
}

/// A directory of a file system by its path; its root without one.
fn directory(fs: &dyn FileSystem, path: Option<&str>) -> Option<NodeId> {
    let names = path.unwrap_or_default().split('/').filter(|name| !name.is_empty());
    let mut node = fs.root();
    for name in names {
        node = fs.lookup(node, name.as_bytes()).ok()?;
    }
    (fs.stat(node).ok()?.kind == NodeKind::Directory).then_some(node)
}

fn names(volume: &crate::volumes::Volume) -> Names<'_> {
    let partition = volume.partition.as_ref();
    Names {
        uuid: volume.uuid.as_deref(),
        label: &volume.label,
        partition_uuid: partition.and_then(|p| p.uuid.as_deref()),
        partition_label: partition.map(|p| p.name.as_str()).unwrap_or_default(),
        name: &volume.name,
    }
}
