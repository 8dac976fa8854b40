//! FAT12, FAT16 and FAT32 with the long names of VFAT, as Microsoft's "FAT: General Overview of On-Disk Format" has them.
//!
//! The crate `fatfs` is not used here: it needs a device it can write to, has no numbers for nodes, no place to resume a directory at and no
//! places of content on the device.

mod boot;
mod chain;
pub(crate) mod dir;
mod names;
mod table;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use self::boot::{Boot, Width};
use self::chain::Chain;
use self::dir::{BYTES_MAX, ENTRY_BYTES, Entry, Named, Names, Slot, attribute};
use self::table::Walk;
use super::{
    Attributes, DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind,
    Place, Stat, Time, Xattr, content,
};
use crate::fields::Fields;
use crate::{Error, ErrorKind, Media};

/// The number of the root directory, which has no entry. No entry is in the second 32 bytes of a device.
const ROOT: u64 = 1;
/// What is kept of chains, and of the names of directories, in bytes.
const CHAINS_KEPT_BYTES: u64 = 4 << 20;
const NAMES_KEPT_BYTES: u64 = 8 << 20;
const CHAINS_KEPT: usize = 4096;
const NAMES_KEPT: usize = 64;
/// Slots read at once.
const SLOTS_AT_ONCE: u64 = 128;
/// A larger table is not read only to count free clusters.
const COUNTED_MAX: u64 = 1 << 20;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;

/// A FAT file system.
#[derive(Debug)]
pub struct Fat {
    media: Media,
    boot: Boot,
    info: FsInfo,
    hasher: RandomState,
    chains: Cache<u64, Arc<Chain>, ByWeight>,
    names: Cache<u64, Arc<HashMap<u64, Vec<u32>>>, ByWeight>,
}

/// Weighs what is kept by its bytes.
#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<u64, Arc<Chain>> for ByWeight {
    fn weight(&self, _: &u64, chain: &Arc<Chain>) -> u64 {
        chain.weight()
    }
}

impl Weighter<u64, Arc<HashMap<u64, Vec<u32>>>> for ByWeight {
    fn weight(&self, _: &u64, names: &Arc<HashMap<u64, Vec<u32>>>) -> u64 {
        64 + names.len() as u64 * 64
    }
}

/// Whether a boot sector of FAT is at the start. Reads one sector.
pub fn is_here(media: &Media) -> bool {
    boot::is_here(media)
}

/// What a node is.
#[derive(Debug, Clone, Copy)]
enum Node {
    Root,
    Entry(Entry),
}

impl Node {
    fn is_directory(&self) -> bool {
        match self {
            Self::Root => true,
            Self::Entry(entry) => entry.is_directory(),
        }
    }
}

impl Fat {
    /// Opens the file system on `device`.
    ///
    /// Its times are local times of an unknown zone, and taken as UTC. A node's number is the place of its entry on the device, in units
    /// of 32 bytes; so a file has one name.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if neither the boot sector nor its copy can be right.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (boot, from_copy) = Boot::read(&media)?;
        let mut fat = Self {
            info: FsInfo {
                kind: FsKind::Fat,
                label: names::label(&boot.label),
                uuid: (boot.serial != 0)
                    .then(|| format!("{:04X}-{:04X}", boot.serial >> 16, boot.serial & 0xffff)),
                block_bytes: boot.cluster_bytes as u32,
                size_bytes: boot.size_bytes,
                used_bytes: None,
                notes: vec!["Times are local times of the guest, shown as UTC.".to_owned()],
            },
            media,
            boot,
            hasher: RandomState::new(),
            chains: Cache::with_weighter(CHAINS_KEPT, CHAINS_KEPT_BYTES, ByWeight),
            names: Cache::with_weighter(NAMES_KEPT, NAMES_KEPT_BYTES, ByWeight),
        };
        fat.describe(from_copy);
        Ok(fat)
    }

    fn describe(&mut self, from_copy: bool) {
        let mut notes = Vec::new();
        if from_copy {
            notes.push("The boot sector was read from its copy.".to_owned());
        }
        if self.boot.size_bytes > self.media.size_bytes() {
            notes.push(format!(
                "The device ends before the file system: it has {} bytes of {}.",
                self.media.size_bytes(),
                self.boot.size_bytes
            ));
        }
        if self.boot.dirty {
            notes.push("The volume is marked as dirty: it was not unmounted.".to_owned());
        }
        match self.free() {
            Ok(free) => {
                let used = free.map(|free| self.boot.clusters.saturating_sub(free));
                self.info.used_bytes = used.map(|used| used * self.boot.cluster_bytes);
            }
            Err(e) => notes.push(format!("{e}.")),
        }
        match self.root_label() {
            Ok(Some(label)) => self.info.label = names::label(&label),
            // Without an entry the boot sector's word counts; "NO NAME" is how it says that there is none.
            Ok(None) if self.info.label == "NO NAME" => self.info.label.clear(),
            Ok(None) => {}
            Err(e) => notes.push(format!("{e}.")),
        }
        self.info.notes.extend(notes);
    }

    /// Free clusters: as FAT32 keeps their number, or counted in a small table.
    fn free(&self) -> Result<Option<u64>, Error> {
        if self.boot.table_bytes <= COUNTED_MAX {
            return Walk::new(&self.media, &self.boot).free().map(Some);
        }
        let Some(at) = self.boot.info_at else { return Ok(None) };
        let what = "the sector with the number of free clusters";
        let bytes = self.media.bytes(at, 512, what)?;
        let fields = Fields::new(&bytes, what);
        let marks = (fields.le32(0)?, fields.le32(484)?);
        let free = u64::from(fields.le32(488)?);
        let known = marks == (0x4161_5252, 0x6141_7272) && free <= self.boot.clusters;
        Ok(known.then_some(free))
    }

    fn root_label(&self) -> Result<Option<[u8; 11]>, Error> {
        let slots = self.slots(NodeId::inode(ROOT))?;
        let mut label = None;
        self.each_slot(&slots, 0, |_, bytes| {
            match Slot::parse(bytes, self.wide()) {
                Slot::End => return Ok(false),
                Slot::Label(name) => label = Some(name),
                _ => {}
            }
            Ok(label.is_none())
        })?;
        Ok(label)
    }

    fn wide(&self) -> bool {
        self.boot.width == Width::Fat32
    }

    /// The entry a node's number stands for.
    fn node(&self, node: NodeId) -> Result<Node, Error> {
        if node == NodeId::inode(ROOT) {
            return Ok(Node::Root);
        }
        let missing = || Error::not_found(format!("there is no {node}"));
        let at = node.inode.checked_mul(ENTRY_BYTES).ok_or_else(missing)?;
        let end = self.boot.data_at + self.boot.clusters * self.boot.cluster_bytes;
        if node.part != 0 || at < self.boot.root.0 || at >= end {
            return Err(missing());
        }
        let mut bytes = [0; 32];
        self.media.read(at, &mut bytes, "an entry of a directory")?;
        match Slot::parse(&bytes, self.wide()) {
            Slot::Entry(entry) => Ok(Node::Entry(entry)),
            _ => Err(missing()),
        }
    }

    /// The clusters of a file, or of a directory.
    fn chain(&self, node: NodeId, entry: &Entry) -> Result<Arc<Chain>, Error> {
        let wanted = match entry.is_directory() {
            true => None,
            false => Some(u64::from(entry.size_bytes).div_ceil(self.boot.cluster_bytes)),
        };
        self.chain_from(node, entry.cluster, wanted)
    }

    fn chain_from(
        &self,
        node: NodeId,
        first: u32,
        wanted: Option<u64>,
    ) -> Result<Arc<Chain>, Error> {
        if let Some(chain) = self.chains.get(&node.inode) {
            return Ok(chain);
        }
        let max = BYTES_MAX.div_ceil(self.boot.cluster_bytes);
        let what = node.to_string();
        let chain = Chain::follow(&self.media, &self.boot, first, wanted, max, &what)?;
        let chain = Arc::new(chain);
        self.chains.insert(node.inode, Arc::clone(&chain));
        Ok(chain)
    }

    /// Where the slots of a directory are: pieces of the device, in order.
    fn slots(&self, dir: NodeId) -> Result<Vec<(u64, u64)>, Error> {
        let first = match self.node(dir)? {
            Node::Root if self.boot.width != Width::Fat32 => return Ok(vec![self.boot.root]),
            Node::Root => self.boot.root_cluster,
            Node::Entry(entry) if entry.is_directory() => entry.cluster,
            Node::Entry(_) => {
                let text = format!("{dir} is no directory");
                return Err(Error::new(ErrorKind::NotADirectory, text));
            }
        };
        let chain = self.chain_from(dir, first, None)?;
        let runs = chain.runs(&self.media, &self.boot, 0, u64::MAX, usize::MAX)?;
        let place = |run: &chain::Run| {
            (self.boot.place(run.cluster), run.clusters * self.boot.cluster_bytes)
        };
        Ok(runs.iter().map(place).collect())
    }

    /// Calls `each` with the place on the device of every slot from number `from` on, until it answers `false`.
    fn each_slot(
        &self,
        pieces: &[(u64, u64)],
        from: u64,
        mut each: impl FnMut(u64, &[u8; 32]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut skip = from.saturating_mul(ENTRY_BYTES);
        let mut bytes = Vec::new();
        for (start, len) in pieces {
            let (mut at, end) = (start.saturating_add(skip), start + len);
            skip = skip.saturating_sub(*len);
            while at < end {
                let part = (end - at).min(SLOTS_AT_ONCE * ENTRY_BYTES);
                bytes.resize(part as usize, 0);
                self.media.read(at, &mut bytes, "a directory")?;
                for slot in bytes.as_chunks::<32>().0 {
                    if !each(at, slot)? {
                        return Ok(());
                    }
                    at += ENTRY_BYTES;
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with the place and the name of every entry from slot `from` on, until it answers `false`.
    fn each_name(
        &self,
        dir: NodeId,
        from: u64,
        mut each: impl FnMut(u64, Named) -> bool,
    ) -> Result<(), Error> {
        let (mut names, mut slot) = (Names::default(), from);
        let what = dir.to_string();
        self.each_slot(&self.slots(dir)?, from, |at, bytes| {
            let number = u32::try_from(slot).unwrap_or(u32::MAX);
            slot += 1;
            match names.take(bytes, self.wide(), number, &what)? {
                Some(named) => Ok(each(at, named)),
                None => Ok(!names.ended()),
            }
        })
    }

    /// The slots at which names of a directory begin, by the hash of the name without regard to case.
    fn index(&self, dir: NodeId) -> Result<Arc<HashMap<u64, Vec<u32>>>, Error> {
        if let Some(index) = self.names.get(&dir.inode) {
            return Ok(index);
        }
        let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut begin = 0;
        self.each_name(dir, 0, |_, named| {
            for name in [&named.name[..], named.entry.short().as_bytes()] {
                let slots = index.entry(self.hasher.hash_one(names::folded(name))).or_default();
                if slots.last() != Some(&begin) {
                    slots.push(begin);
                }
            }
            begin = named.slot + 1;
            true
        })?;
        let index = Arc::new(index);
        self.names.insert(dir.inode, Arc::clone(&index));
        Ok(index)
    }

    fn file(&self, node: NodeId) -> Result<Entry, Error> {
        match self.node(node)? {
            Node::Entry(entry) if !entry.is_directory() => Ok(entry),
            _ => Err(Error::new(ErrorKind::IsADirectory, format!("{node} is a directory"))),
        }
    }
}

impl FileSystem for Fat {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let folded = names::folded(name);
        let mut best: Option<(u8, u64)> = None;
        let index = self.index(dir)?;
        for slot in index.get(&self.hasher.hash_one(&folded)).into_iter().flatten() {
            self.each_name(dir, u64::from(*slot), |at, named| {
                let fit = match &named.name {
                    long if long == name => 3,
                    long if names::folded(long) == folded => 2,
                    _ if names::folded(named.entry.short().as_bytes()) == folded => 1,
                    _ => 0,
                };
                if fit > best.map_or(0, |(fit, _)| fit) {
                    best = Some((fit, at));
                }
                false
            })?;
        }
        let Some((_, at)) = best else {
            let text = format!("nothing is named {:?} in {dir}", String::from_utf8_lossy(name));
            return Err(Error::not_found(text));
        };
        Ok(NodeId::inode(at / ENTRY_BYTES))
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let mut list = Vec::new();
        self.each_name(dir, from.0, |at, named| {
            let kind =
                if named.entry.is_directory() { NodeKind::Directory } else { NodeKind::File };
            list.push(DirEntry {
                name: named.name,
                node: NodeId::inode(at / ENTRY_BYTES),
                kind: Some(kind),
                next: DirCookie(u64::from(named.slot) + 1),
            });
            list.len() < max.max(1)
        })?;
        Ok(list)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let found = self.node(node)?;
        let kind = if found.is_directory() { NodeKind::Directory } else { NodeKind::File };
        let allocated = match &found {
            Node::Entry(entry) if kind == NodeKind::File => {
                u64::from(entry.size_bytes).next_multiple_of(self.boot.cluster_bytes)
            }
            _ => self.slots(node)?.iter().map(|(_, len)| len).sum(),
        };
        let entry = match found {
            Node::Root => None,
            Node::Entry(entry) => Some(entry),
        };
        let flag = |flag: u8| entry.is_some_and(|entry| entry.attributes & flag != 0);
        let mode = match kind {
            NodeKind::Directory => 0o755,
            _ if flag(attribute::READ_ONLY) => 0o444,
            _ => 0o644,
        };
        let modified = entry.map_or(Time::default(), |entry| entry.modified());
        Ok(Stat {
            node,
            kind,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            size_bytes: match entry {
                Some(entry) if kind == NodeKind::File => u64::from(entry.size_bytes),
                _ => allocated,
            },
            allocated_bytes: allocated,
            accessed: entry.map_or(Time::default(), |entry| entry.accessed()),
            modified,
            changed: modified,
            created: entry.and_then(|entry| entry.created()),
            device: None,
            attributes: Attributes {
                no_xattrs: true,
                hidden: flag(attribute::HIDDEN),
                system: flag(attribute::SYSTEM),
                read_only: flag(attribute::READ_ONLY),
                ..Attributes::default()
            },
        })
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let media = std::slice::from_ref(&self.media);
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes.saturating_add(done as u64);
            let rest = &mut buf[done..];
            let extents = self.extents(node, at, rest.len() as u64, EXTENTS_AT_ONCE)?;
            if extents.is_empty() {
                break;
            }
            done += content::fill(media, &extents, at, rest, |_, _| {
                Err(Error::damaged(format!("{node} has content that is nowhere")))
            })?;
        }
        Ok(done)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        self.node(node)?;
        Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link")))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        self.node(node).map(|_| Vec::new())
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let entry = self.file(node)?;
        let end = offset_bytes.saturating_add(len_bytes).min(u64::from(entry.size_bytes));
        if offset_bytes >= end {
            return Ok(Vec::new());
        }
        let cluster = self.boot.cluster_bytes;
        let chain = self.chain(node, &entry)?;
        let (first, last) = (offset_bytes / cluster, end.div_ceil(cluster));
        let runs = chain.runs(&self.media, &self.boot, first, last, max)?;
        let extent = |run: &chain::Run| {
            let start = (run.index * cluster).max(offset_bytes);
            let stop = ((run.index + run.clusters) * cluster).min(end);
            FileExtent {
                offset_bytes: start,
                len_bytes: stop - start,
                place: Place::Device {
                    device: 0,
                    offset_bytes: self.boot.place(run.cluster) + (start - run.index * cluster),
                },
            }
        };
        Ok(runs.iter().map(extent).collect())
    }
}
