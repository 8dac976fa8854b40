//! The files inside the disks of a recovery point.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstay_guestfs::apart::{Guest, GuestFs, ReaderCommand};
use backstay_guestfs::fs::{FileSystem, NodeId};
use backstay_guestfs::joined::Joined;
use backstay_guestfs::namespace::{Namespace, Resolved};
use backstay_guestfs::volumes::{Content, Disk, VolumeTree};
use backstay_guestfs::{Error, ErrorKind};
use backstay_store::{RecoveryPoint, Repository};
use parking_lot::Mutex;

use crate::PointDisk;

/// File systems of one point kept open. Each keeps its root and what was looked at last; of more, some are opened again.
const OPEN_MAX: usize = 64;
/// Names that a message lists.
const LISTED_MAX: usize = 12;

/// What the disks of one recovery point hold: volumes, file systems, files.
///
/// Everything is looked for when it is first asked for. Bytes that a guest wrote are only parsed in a process apart
/// ([`backstay_guestfs::apart`]); the point is held as long as this lives.
#[derive(Debug)]
pub struct PointFiles {
    guest: Arc<Guest>,
    open: Mutex<HashMap<usize, Arc<GuestFs>>>,
    systems: OnceLock<Vec<Namespace>>,
}

/// Where a name and a path lead.
#[derive(Debug, Clone)]
pub struct FoundFile {
    /// The volume's place in the list.
    pub volume: usize,
    /// Its file system.
    pub fs: Arc<GuestFs>,
    /// The node.
    pub node: NodeId,
    /// The path without links and dots: in the guest's tree, or in the volume's where one was named.
    pub path: Vec<u8>,
}

/// A file or directory, with all that the guest sees below it.
#[derive(Debug, Clone)]
pub struct FoundTree {
    /// The tree: of the guest over all its volumes, or of the one volume that was named.
    pub fs: Arc<Joined>,
    /// The node.
    pub node: NodeId,
    /// The path without links and dots.
    pub path: Vec<u8>,
}

impl PointFiles {
    /// Of `point`; `reader` starts readers. Reads nothing yet.
    ///
    /// # Errors
    /// Whatever the store says when an image cannot be opened.
    pub fn open(
        repository: &Repository,
        point: &RecoveryPoint,
        reader: ReaderCommand,
    ) -> Result<Self, backstay_store::Error> {
        let mut disks = Vec::with_capacity(point.disks.len());
        for disk in &point.disks {
            let device = Arc::new(PointDisk::open(repository, point, disk)?);
            disks.push(Disk { name: disk.name.clone(), device });
        }
        Ok(Self::of_disks(disks, reader))
    }

    /// Of any disks.
    pub fn of_disks(disks: Vec<Disk>, reader: ReaderCommand) -> Self {
        let guest = Arc::new(Guest::new(disks, reader));
        Self { guest, open: Mutex::default(), systems: OnceLock::new() }
    }

    /// What is on the disks.
    ///
    /// # Errors
    /// As [`Guest::volumes`].
    pub fn volumes(&self) -> Result<Arc<VolumeTree>, Error> {
        self.guest.volumes()
    }

    /// The file system of a volume, by its place in the list.
    ///
    /// # Errors
    /// As [`Guest::open`].
    pub fn fs(&self, volume: usize) -> Result<Arc<GuestFs>, Error> {
        if let Some(fs) = self.open.lock().get(&volume) {
            return Ok(Arc::clone(fs));
        }
        let fs = Arc::new(self.guest.open(volume)?);
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(volume, Arc::clone(&fs));
        Ok(fs)
    }

    /// The same if it is open. Does not block.
    pub fn fs_now(&self, volume: usize) -> Option<Arc<GuestFs>> {
        self.open.try_lock()?.get(&volume).map(Arc::clone)
    }

    /// The systems on the disks: trees over several volumes, as the guests' own tables say. Empty where there is
    /// none, as with Windows.
    ///
    /// # Errors
    /// As [`volumes`](Self::volumes).
    pub fn systems(&self) -> Result<&[Namespace], Error> {
        if let Some(systems) = self.systems.get() {
            return Ok(systems);
        }
        let tree = self.volumes()?;
        let found = Namespace::systems(&tree, &|volume| Ok(self.fs(volume)?));
        Ok(self.systems.get_or_init(|| found))
    }

    /// Ends the reader if nobody asked for anything for so long.
    pub fn rest(&self, idle: Duration) {
        self.guest.rest(idle);
    }

    /// The process id of the reader, if one runs.
    pub fn reader_pid(&self) -> Option<u32> {
        self.guest.reader_pid()
    }

    /// Where `path` leads: in the volume named, or else in the guest's tree. `follow`: a symbolic link at the end is followed, too.
    ///
    /// Without a volume and without a system on the disks, the path is looked for in all volumes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], also where several could be meant: then the message names them.
    pub fn find(
        &self,
        volume: Option<&str>,
        path: &[u8],
        follow: bool,
    ) -> Result<FoundFile, Error> {
        if let Some(name) = volume {
            let volume = self.volume_named(name)?;
            return self.find_in(volume, path, follow);
        }
        if let Some(system) = self.systems()?.first() {
            return self.found(system.resolve(path, follow, &|volume| Ok(self.fs(volume)?))?);
        }
        let tree = self.volumes()?;
        let readable = file_systems(&tree, |_| true);
        match readable[..] {
            [] => Err(Error::not_found(nothing_readable(&tree))),
            [one] => self.find_in(one, path, follow),
            _ => self.find_anywhere(&tree, &readable, path, follow),
        }
    }

    /// As [`find`](Self::find), for those who go on below: what the guest mounts below is there.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn tree(
        &self,
        volume: Option<&str>,
        path: &[u8],
        follow: bool,
    ) -> Result<FoundTree, Error> {
        let found = self.find(volume, path, follow)?;
        let open = |volume| -> Result<Arc<dyn FileSystem>, Error> { Ok(self.fs(volume)?) };
        let system = match volume {
            None => self.systems()?.first(),
            Some(_) => None,
        };
        let joined = match system {
            Some(system) => Joined::new(system, &open)?,
            None => {
                let alone = Namespace::of_volume(found.volume, found.fs.root());
                Joined::new(&alone, &open)?
            }
        };
        let node = joined.id(found.volume, found.node).ok_or_else(|| {
            let text = format!("{} is not in the guest's tree", found.path.escape_ascii());
            Error::not_found(text)
        })?;
        Ok(FoundTree { fs: Arc::new(joined), node, path: found.path })
    }

    /// All that can be read: the tree of the guest over its volumes if there is one, and each volume that is no part of it; these with
    /// their place in the list. Then what cannot be read, by the volume's place.
    ///
    /// # Errors
    /// As [`volumes`](Self::volumes).
    #[expect(clippy::type_complexity, reason = "two lists by volume")]
    pub fn trees(&self) -> Result<(Vec<(Option<usize>, FoundTree)>, Vec<(usize, Error)>), Error> {
        let tree = self.volumes()?;
        let open = |volume| -> Result<Arc<dyn FileSystem>, Error> { Ok(self.fs(volume)?) };
        let (mut trees, mut failed) = (Vec::new(), Vec::new());
        let mut covered = Vec::new();
        for system in self.systems()? {
            // Of several systems on the disks, the first one's tree is the guest's.
            if !trees.is_empty() {
                break;
            }
            let joined = Joined::new(system, &open)?;
            covered.extend(system.mounts().iter().map(|mount| mount.volume));
            let node = joined.root();
            trees.push((None, FoundTree { fs: Arc::new(joined), node, path: b"/".to_vec() }));
        }
        for volume in file_systems(&tree, |volume| !covered.contains(&volume)) {
            let joined = self
                .fs(volume)
                .and_then(|fs| Joined::new(&Namespace::of_volume(volume, fs.root()), &open));
            match joined {
                Ok(joined) => {
                    let node = joined.root();
                    let found = FoundTree { fs: Arc::new(joined), node, path: b"/".to_vec() };
                    trees.push((Some(volume), found));
                }
                Err(error) => failed.push((volume, error)),
            }
        }
        Ok((trees, failed))
    }

    /// A volume that has a file system, by its name; by the name of a disk, the only one on it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Unsupported`], naming what there is instead.
    pub fn volume_named(&self, name: &str) -> Result<usize, Error> {
        let tree = self.volumes()?;
        let Some(index) = tree.position(name) else {
            let all: Vec<&str> = tree.volumes.iter().map(|v| v.name.as_str()).collect();
            let text =
                format!("there is no volume {}: there are {}", name.escape_debug(), listed(&all));
            return Err(Error::not_found(text));
        };
        let volume = &tree.volumes[index];
        if matches!(volume.content, Content::FileSystem(_)) {
            return Ok(index);
        }
        let below = file_systems(&tree, |i| is_below(&tree, i, index));
        match below[..] {
            [one] => Ok(one),
            [] => {
                let text = match &volume.error {
                    Some(error) => format!("{name} cannot be read: {error}"),
                    None => format!("{name} holds no file system that can be read"),
                };
                Err(Error::unsupported(text))
            }
            _ => {
                let names: Vec<&str> =
                    below.iter().map(|i| tree.volumes[*i].name.as_str()).collect();
                Err(Error::not_found(format!("{name} holds several volumes: {}", listed(&names))))
            }
        }
    }

    fn find_in(&self, volume: usize, path: &[u8], follow: bool) -> Result<FoundFile, Error> {
        let root = self.fs(volume)?.root();
        let alone = Namespace::of_volume(volume, root);
        self.found(alone.resolve(path, follow, &|volume| Ok(self.fs(volume)?))?)
    }

    fn find_anywhere(
        &self,
        tree: &VolumeTree,
        volumes: &[usize],
        path: &[u8],
        follow: bool,
    ) -> Result<FoundFile, Error> {
        let mut found = Vec::new();
        let mut why = None;
        for volume in volumes {
            match self.find_in(*volume, path, follow) {
                Ok(at) => found.push(at),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => why = Some(e),
            }
        }
        let name = |i: usize| tree.volumes[i].name.as_str();
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (Some(one), _) => {
                found.push(one);
                let names: Vec<&str> = found.iter().map(|f| name(f.volume)).collect();
                let text = format!("several volumes have it: {}; name one of them", listed(&names));
                Err(Error::not_found(text))
            }
            (None, _) => Err(why.unwrap_or_else(|| {
                let names: Vec<&str> = volumes.iter().map(|i| name(*i)).collect();
                let text = format!("there is no {} on {}", path.escape_ascii(), listed(&names));
                Error::not_found(text)
            })),
        }
    }

    fn found(&self, at: Resolved) -> Result<FoundFile, Error> {
        let Resolved { volume, node, path, .. } = at;
        Ok(FoundFile { volume, fs: self.fs(volume)?, node, path })
    }
}

/// The volumes with a file system that can be read, of those that `wanted` picks.
fn file_systems(tree: &VolumeTree, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let all = tree.volumes.iter().enumerate();
    let readable = all.filter(|(i, v)| matches!(v.content, Content::FileSystem(_)) && wanted(*i));
    readable.map(|(i, _)| i).collect()
}

/// Whether `volume` lies on `ancestor`, in however many steps.
fn is_below(tree: &VolumeTree, volume: usize, ancestor: usize) -> bool {
    let mut waiting = vec![volume];
    let mut seen = vec![false; tree.volumes.len()];
    while let Some(at) = waiting.pop() {
        let Some(volume) = tree.volumes.get(at) else { continue };
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        if volume.parents.contains(&ancestor) {
            return true;
        }
        waiting.extend(&volume.parents);
    }
    false
}

fn nothing_readable(tree: &VolumeTree) -> String {
    let all: Vec<&str> = tree.volumes.iter().map(|v| v.name.as_str()).collect();
    format!("none of these volumes has a file system that can be read: {}", listed(&all))
}

/// Names in a message.
fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(LISTED_MAX).copied().collect::<Vec<_>>().join(", ");
    if names.len() > LISTED_MAX {
        text.push_str(&format!(" and {} more", names.len() - LISTED_MAX));
    }
    text
}
