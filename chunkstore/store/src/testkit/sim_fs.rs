use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::testkit::SeededEntropy;
use crate::vfs::{Space, Vfs, VfsRead, VfsWrite};

/// A file system in memory that can lose power.
///
/// It promises exactly what [`Vfs`] promises: a file's bytes are durable after its sync, a
/// directory's names after the directory's sync. At a power cut each write of a file that was not
/// synced is kept, lost, or kept in part (cut at 512 bytes), and of each directory's changes since
/// its last sync any may be lost, in any combination. All choices come from a seed.
#[derive(Clone, Debug)]
pub struct SimFs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    inodes: Vec<Inode>,
    dirs: BTreeMap<PathBuf, Dir>,
    /// Calls that change something, so far.
    changes: u64,
    /// The change at which the power goes; it does not happen any more.
    cut_at: Option<u64>,
    /// Bytes the disk holds: those of its files, and [`NAME_COST`] for each name.
    capacity: Option<u64>,
    /// Whether syncs do nothing: the control that shows that a test would notice.
    lying_sync: bool,
    /// Syncs of files until the one that fails.
    fail_sync_in: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// Bytes as programs see them.
    data: Vec<u8>,
    /// Length up to which they are durable. Files are only appended to.
    durable: usize,
    /// Where each write since the last sync ends.
    pending: Vec<usize>,
    /// A sync failed: what was not durable then never will be.
    dropped: bool,
    owned: bool,
    /// Bytes set aside without being written, and whether that is durable.
    allocated: u64,
    allocated_durable: bool,
}

#[derive(Clone, Debug, Default)]
struct Dir {
    names: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    /// Changes since the last sync: name, and what it became.
    pending: Vec<(String, Option<Entry>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir,
}

/// Bytes that a name takes, so that a full disk also refuses new files and directories.
const NAME_COST: u64 = 64;

/// What a call answers once the power is gone.
fn power_cut() -> io::Error {
    io::Error::other("simulated power cut")
}

impl Default for SimFs {
    fn default() -> Self {
        Self::new()
    }
}

impl SimFs {
    /// An empty file system with the directory `/`.
    pub fn new() -> Self {
        let dirs = BTreeMap::from([(PathBuf::from("/"), Dir::default())]);
        let state = State {
            inodes: Vec::new(),
            dirs,
            changes: 0,
            cut_at: None,
            capacity: None,
            lying_sync: false,
            fail_sync_in: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Calls that changed something, so far: the points at which the power can be cut.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Cuts the power at change number `at`.
    pub fn cut_power_at(&self, at: u64) {
        self.state.lock().cut_at = Some(at);
    }

    /// Leaves room for so many more bytes; none is a disk without end, whose size nobody can tell.
    pub fn set_space(&self, bytes: Option<u64>) {
        let mut state = self.state.lock();
        state.capacity = bytes.map(|bytes| state.used() + bytes);
    }

    /// Makes the disk so many bytes large, files and names that are there included.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes that files and names take. Those of a removed file are free at once.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Makes every sync a lie, for the control run of a test.
    pub fn set_lying_sync(&self, lying: bool) {
        self.state.lock().lying_sync = lying;
    }

    /// Lets the sync of a file fail, after `more` that do not. As on Linux the bytes then look
    /// written for good: later syncs of the same file succeed, and the bytes are not on the disk.
    pub fn fail_sync_in(&self, more: u64) {
        self.state.lock().fail_sync_in = Some(more);
    }

    /// What is found after the power came back: a new file system, this one stays as it is.
    pub fn after_power_cut(&self, entropy: &SeededEntropy) -> SimFs {
        let state = self.state.lock();
        let mut inodes = state.inodes.clone();
        for inode in &mut inodes {
            inode.lose_power(entropy);
        }
        let mut dirs = BTreeMap::new();
        for (path, dir) in &state.dirs {
            dirs.insert(path.clone(), dir.lose_power(entropy));
        }
        // Directories whose name was lost are gone with all they hold.
        let reachable = |path: &Path, dirs: &BTreeMap<PathBuf, Dir>| {
            path.ancestors().zip(path.ancestors().skip(1)).all(|(child, parent)| {
                let name = child.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                dirs.get(parent).is_some_and(|d| d.names.contains_key(name))
            })
        };
        let kept = dirs
            .iter()
            .filter(|(path, _)| reachable(path, &dirs))
            .map(|(p, d)| (p.clone(), d.clone()))
            .collect();
        let state = State {
            inodes,
            dirs: kept,
            changes: 0,
            cut_at: None,
            capacity: state.capacity,
            lying_sync: false,
            fail_sync_in: None,
        };
        SimFs { state: Arc::new(Mutex::new(state)) }
    }
}

impl Inode {
    fn lose_power(&mut self, entropy: &SeededEntropy) {
        let mut data = self.data[..self.durable].to_vec();
        let mut from = self.durable;
        for &end in &self.pending {
            match entropy.below(3) {
                0 => data.resize(end, 0),
                1 => data.extend_from_slice(&self.data[from..end]),
                _ => {
                    let sectors = (end - from) as u64 / 512;
                    let keep = usize::try_from(entropy.below(sectors + 1) * 512).unwrap_or(0);
                    data.extend_from_slice(&self.data[from..from + keep]);
                    data.resize(end, 0);
                }
            }
            from = end;
        }
        // The length itself may not have made it.
        if !self.pending.is_empty() && entropy.below(2) == 0 {
            data.truncate(self.durable.max(data.len() / 2));
        }
        let allocated = if self.allocated_durable { self.allocated } else { 0 };
        *self = Inode { durable: data.len(), data, allocated, ..Inode::default() };
    }
}

impl Dir {
    fn lose_power(&self, entropy: &SeededEntropy) -> Dir {
        let mut names = self.durable.clone();
        for (name, entry) in &self.pending {
            if entropy.below(2) == 0 {
                continue;
            }
            match entry {
                Some(entry) => names.insert(name.clone(), *entry),
                None => names.remove(name),
            };
        }
        Dir { durable: names.clone(), names, pending: Vec::new() }
    }

    fn set(&mut self, name: String, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.names.insert(name.clone(), entry),
            None => self.names.remove(&name),
        };
        self.pending.push((name, entry));
    }
}

impl State {
    /// Counts a change; an error if the power is gone.
    fn change(&mut self) -> io::Result<()> {
        self.alive()?;
        self.changes += 1;
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        match self.cut_at {
            Some(at) if self.changes >= at => Err(power_cut()),
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        let entries = || self.dirs.values().flat_map(|dir| dir.names.values());
        let named: BTreeSet<usize> = entries()
            .filter_map(|entry| if let Entry::File(inode) = entry { Some(*inode) } else { None })
            .collect();
        let held = |(n, inode): &(usize, &Inode)| inode.owned || named.contains(n);
        let bytes = |inode: &Inode| inode.allocated.max(inode.data.len() as u64);
        let files: u64 =
            self.inodes.iter().enumerate().filter(held).map(|(_, inode)| bytes(inode)).sum();
        files + entries().count() as u64 * NAME_COST
    }

    /// Bytes that still fit.
    fn free(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    fn room_for_a_name(&self) -> io::Result<()> {
        if self.free() < NAME_COST { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn dir(&mut self, path: &Path) -> io::Result<(&mut Dir, String)> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.dirs.get_mut(parent).ok_or(io::ErrorKind::NotFound)?;
        Ok((dir, name.to_owned()))
    }

    fn file(&mut self, path: &Path) -> io::Result<usize> {
        let (dir, name) = self.dir(path)?;
        match dir.names.get(&name) {
            Some(Entry::File(inode)) => Ok(*inode),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Vfs for SimFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsWrite>> {
        let mut state = self.state.lock();
        state.change()?;
        let inode = state.inodes.len();
        let (dir, name) = state.dir(path)?;
        if dir.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.room_for_a_name()?;
        let (dir, name) = state.dir(path)?;
        dir.set(name, Some(Entry::File(inode)));
        state.inodes.push(Inode { owned: true, ..Inode::default() });
        Ok(Box::new(SimWrite { fs: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsRead>> {
        let mut state = self.state.lock();
        state.alive()?;
        let inode = state.file(path)?;
        Ok(Arc::new(SimRead { fs: self.clone(), inode }))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let inode = state.file(from)?;
        let (dir, name) = state.dir(to)?;
        if dir.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        dir.set(name, Some(Entry::File(inode)));
        let (dir, name) = state.dir(from)?;
        dir.set(name, None);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let lying = state.lying_sync;
        let dir = state.dirs.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        if !lying {
            dir.durable = dir.names.clone();
            dir.pending.clear();
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.file(path)?;
        let (dir, name) = state.dir(path)?;
        dir.set(name, None);
        Ok(())
    }

    fn remove_if_unowned(&self, path: &Path) -> io::Result<bool> {
        let owned = {
            let mut state = self.state.lock();
            let inode = state.file(path)?;
            state.inodes[inode].owned
        };
        if owned { Ok(false) } else { self.remove(path).map(|()| true) }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let (dir, name) = state.dir(path)?;
        if dir.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.room_for_a_name()?;
        let (dir, name) = state.dir(path)?;
        dir.set(name, Some(Entry::Dir));
        state.dirs.insert(path.to_path_buf(), Dir::default());
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        state.alive()?;
        let total = state.capacity.ok_or(io::ErrorKind::Unsupported)?;
        Ok(Space { total, free: state.free() })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.alive()?;
        let dir = state.dirs.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(dir.names.keys().cloned().collect())
    }
}

#[derive(Debug)]
struct SimWrite {
    fs: SimFs,
    inode: usize,
}

impl VfsWrite for SimWrite {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        state.change()?;
        // What fits is written, as a real disk does.
        let fits = usize::try_from(state.free()).unwrap_or(usize::MAX).min(data.len());
        let inode = &mut state.inodes[self.inode];
        inode.data.extend_from_slice(&data[..fits]);
        let end = inode.data.len();
        inode.pending.push(end);
        if fits < data.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn allocate(&mut self, bytes: u64) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        state.change()?;
        if state.free() < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes[self.inode].allocated = bytes;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        state.change()?;
        let fails = state.fail_sync_in == Some(0);
        state.fail_sync_in = state.fail_sync_in.and_then(|n| n.checked_sub(1));
        let lying = state.lying_sync;
        let inode = &mut state.inodes[self.inode];
        if fails {
            (inode.dropped, inode.pending) = (true, Vec::new());
            return Err(io::Error::other("the disk refused some bytes"));
        }
        if !lying && !inode.dropped {
            inode.durable = inode.data.len();
            inode.pending.clear();
            inode.allocated_durable = true;
        }
        Ok(())
    }
}

impl Drop for SimWrite {
    fn drop(&mut self) {
        self.fs.state.lock().inodes[self.inode].owned = false;
    }
}

#[derive(Debug)]
struct SimRead {
    fs: SimFs,
    inode: usize,
}

impl VfsRead for SimRead {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.fs.state.lock();
        state.alive()?;
        let data = &state.inodes[self.inode].data;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = data.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.fs.state.lock();
        state.alive()?;
        let inode = &state.inodes[self.inode];
        Ok(inode.allocated.max(inode.data.len() as u64))
    }
}
