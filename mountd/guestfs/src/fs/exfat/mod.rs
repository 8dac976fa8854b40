//! exFAT, as Microsoft's "exFAT file system specification" (revision 1.00) has it.
//!
//! The crate `exfat` is not used here: it reads whole tables into memory, and gives no places of content on the device. exfat-fuse is what the
//! tests compare with.

mod boot;
mod chain;
mod dirs;
mod seal;
mod set;
mod upcase;

use std::hash::RandomState;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

pub(crate) use self::seal::seal;

use self::boot::Boot;
use self::chain::Chain;
use self::set::{Set, Stream, attribute};
use self::upcase::UpCase;
use super::{
    Attributes, DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind,
    Place, Stat, Time, Xattr, content, utf16,
};
use crate::fields::Fields;
use crate::{Error, ErrorKind, Media};

/// The number of the root directory, which has no entry. No entry is in the second 32 bytes of a device.
const ROOT: u64 = 1;
/// What is kept of chains, and of the names of directories, in bytes.
const CHAINS_KEPT_BYTES: u64 = 4 << 20;
const NAMES_KEPT_BYTES: u64 = 16 << 20;
const CHAINS_KEPT: usize = 4096;
const NAMES_KEPT: usize = 64;
/// A larger bitmap of clusters is not read only to tell how much is used.
const BITMAP_MAX: u64 = 1 << 20;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;
/// System entries stand at the start of the root; no more slots than these are gone through for them.
const SYSTEM_SLOTS_MAX: u64 = 1 << 16;

/// An exFAT file system.
#[derive(Debug)]
pub struct ExFat {
    media: Media,
    boot: Boot,
    info: FsInfo,
    upcase: UpCase,
    hasher: RandomState,
    chains: Cache<NodeId, Arc<Chain>, ByWeight>,
    names: Cache<NodeId, Names, ByWeight>,
}

/// Hashes of names and the slots where they begin, ascending.
type Names = Arc<[(u32, u32)]>;

/// Weighs what is kept by its bytes.
#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<NodeId, Arc<Chain>> for ByWeight {
    fn weight(&self, _: &NodeId, chain: &Arc<Chain>) -> u64 {
        chain.weight()
    }
}

impl Weighter<NodeId, Names> for ByWeight {
    fn weight(&self, _: &NodeId, names: &Names) -> u64 {
        64 + names.len() as u64 * 8
    }
}

/// Whether a boot sector of exFAT is at the start. Reads some bytes only.
pub fn is_here(media: &Media) -> bool {
    boot::is_here(media)
}

/// What a node is.
#[derive(Debug)]
enum Node {
    Root,
    Set(Set),
}

impl ExFat {
    /// Opens the file system on `device`.
    ///
    /// Times are UTC where the guest wrote its zone, and taken as UTC where not. A node's number is the place of its first entry on the
    /// device, in units of 32 bytes, its part the cluster where its entries go on elsewhere; so a file has one name.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if neither the boot region nor its copy has its checksum and can be right.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (boot, from_copy) = Boot::read(&media)?;
        let mut notes = Vec::new();
        if from_copy {
            notes.push("The boot sector was read from its copy.".to_owned());
        }
        if boot.size_bytes > media.size_bytes() {
            notes.push(format!(
                "The device ends before the file system: it has {} bytes of {}.",
                media.size_bytes(),
                boot.size_bytes
            ));
        }
        let marks = [
            (boot.dirty, "The volume is marked as dirty: it was not unmounted."),
            (boot.failing, "The volume is marked as failing: its medium had errors."),
            (boot.transactions, "The volume is TexFAT: changes not committed are not shown."),
        ];
        notes.extend(marks.iter().filter(|(is, _)| *is).map(|(_, text)| (*text).to_owned()));
        let mut fs = Self {
            info: FsInfo {
                kind: FsKind::ExFat,
                label: String::new(),
                uuid: Some(format!("{:04X}-{:04X}", boot.serial >> 16, boot.serial & 0xffff)),
                block_bytes: boot.cluster_bytes as u32,
                size_bytes: boot.size_bytes,
                used_bytes: None,
                notes,
            },
            media,
            boot,
            upcase: UpCase::ascii(),
            hasher: RandomState::new(),
            chains: Cache::with_weighter(CHAINS_KEPT, CHAINS_KEPT_BYTES, ByWeight),
            names: Cache::with_weighter(NAMES_KEPT, NAMES_KEPT_BYTES, ByWeight),
        };
        if let Err(e) = fs.system_entries() {
            fs.info.notes.push(format!("{e}."));
        }
        Ok(fs)
    }

    /// Label, bitmap and table of capital letters, which have entries in the root.
    fn system_entries(&mut self) -> Result<(), Error> {
        let (mut bitmap, mut upcase, mut label) = (None, None, None);
        let mut left = SYSTEM_SLOTS_MAX;
        self.each_slot(NodeId::inode(ROOT), 0, |_, entry| {
            left -= 1;
            let second = entry[1] & 1 != 0;
            match entry[0] {
                set::END => return Ok(false),
                set::BITMAP if second == self.boot.second_active => bitmap = Some(*entry),
                set::UPCASE => upcase = Some(*entry),
                set::LABEL => label = Some(*entry),
                _ => {}
            }
            Ok(left > 0)
        })?;
        if let Some(entry) = label {
            let units = utf16::le_units(&entry[2..24]).take(usize::from(entry[1]));
            self.info.label = String::from_utf16_lossy(&units.collect::<Vec<_>>());
        }
        let what = "the table of capital letters";
        let Some(entry) = upcase else {
            return Err(Error::damaged(format!("{what} is missing")));
        };
        let sum = Fields::new(&entry, what).le32(4)?;
        let Some(bytes) = self.system_file(&entry, upcase::BYTES_MAX, what)? else {
            return Err(Error::damaged(format!("{what} is too large")));
        };
        self.upcase = UpCase::parse(&bytes, sum)?;
        let what = "the bitmap of clusters";
        let Some(entry) = bitmap else { return Err(Error::damaged(format!("{what} is missing"))) };
        if let Some(bytes) = self.system_file(&entry, BITMAP_MAX, what)? {
            // Behind the last cluster there may be anything.
            let whole = bytes.get(..self.boot.clusters as usize / 8);
            let mut used: u64 =
                whole.unwrap_or(&bytes).iter().map(|byte| u64::from(byte.count_ones())).sum();
            if let Some(last) = bytes.get(self.boot.clusters as usize / 8) {
                let mask = (1u8 << (self.boot.clusters % 8)) - 1;
                used += u64::from((last & mask).count_ones());
            }
            self.info.used_bytes = Some(used * self.boot.cluster_bytes);
        }
        Ok(())
    }

    /// The content of what a system entry leads to; `None` if it is larger than `max`.
    fn system_file(
        &self,
        entry: &[u8; 32],
        max: u64,
        what: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let fields = Fields::new(entry, what);
        let (first, size_bytes) = (fields.le32(20)?, fields.le64(24)?);
        if size_bytes > max {
            return Ok(None);
        }
        let stream = Stream { first, size_bytes, valid_bytes: size_bytes, contiguous: false };
        let chain = Chain::follow(&self.media, &self.boot, &stream, None, what)?;
        let mut bytes = vec![0; size_bytes as usize];
        let ends = (0, u64::MAX);
        let runs = chain.runs(&self.media, &self.boot, ends, usize::MAX)?;
        let mut rest = &mut bytes[..];
        for run in runs {
            let len = (run.clusters * self.boot.cluster_bytes).min(rest.len() as u64) as usize;
            let (part, behind) = rest.split_at_mut(len);
            self.media.read(self.boot.place(run.cluster), part, what)?;
            rest = behind;
        }
        Ok(Some(bytes))
    }

    fn node(&self, node: NodeId) -> Result<Node, Error> {
        match Self::is_root(node) {
            true => Ok(Node::Root),
            false => self.set(node).map(Node::Set),
        }
    }

    fn chain(&self, node: NodeId, stream: &Stream, max: Option<u64>) -> Result<Arc<Chain>, Error> {
        if let Some(chain) = self.chains.get(&node) {
            return Ok(chain);
        }
        let what = node.to_string();
        let chain = Arc::new(Chain::follow(&self.media, &self.boot, stream, max, &what)?);
        self.chains.insert(node, Arc::clone(&chain));
        Ok(chain)
    }

    fn file(&self, node: NodeId) -> Result<Set, Error> {
        match self.node(node)? {
            Node::Set(set) if !set.is_directory() => Ok(set),
            _ => Err(Error::new(ErrorKind::IsADirectory, format!("{node} is a directory"))),
        }
    }
}

fn kind_of(set: &Set) -> NodeKind {
    if set.is_directory() { NodeKind::Directory } else { NodeKind::File }
}

fn stat_of(node: NodeId, set: &Set, cluster_bytes: u64) -> Stat {
    let flag = |flag: u16| set.attributes & flag != 0;
    let kind = kind_of(set);
    Stat {
        node,
        kind,
        mode: match kind {
            NodeKind::Directory => 0o755,
            _ if flag(attribute::READ_ONLY) => 0o444,
            _ => 0o644,
        },
        uid: 0,
        gid: 0,
        links: 1,
        size_bytes: set.stream.size_bytes,
        allocated_bytes: set
            .stream
            .size_bytes
            .div_ceil(cluster_bytes)
            .saturating_mul(cluster_bytes),
        accessed: set.accessed,
        modified: set.modified,
        changed: set.modified,
        created: Some(set.created),
        device: None,
        attributes: Attributes {
            no_xattrs: true,
            hidden: flag(attribute::HIDDEN),
            system: flag(attribute::SYSTEM),
            read_only: flag(attribute::READ_ONLY),
            ..Attributes::default()
        },
    }
}

impl FileSystem for ExFat {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let units = utf16::from_wtf8(name).filter(|_| utf16::is_name(name));
        let found = self.find(dir, &units.unwrap_or_default())?;
        found.ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Error::not_found(format!("nothing is named {name:?} in {dir}"))
        })
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let mut list = Vec::new();
        self.each_file(dir, from.0, |named| {
            list.push(DirEntry {
                name: named.name,
                node: named.node,
                kind: Some(kind_of(&named.set)),
                next: DirCookie(named.next),
            });
            list.len() < max.max(1)
        })?;
        Ok(list)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let set = match self.node(node)? {
            Node::Set(set) => set,
            Node::Root => {
                let first = self.boot.root_cluster;
                let stream = Stream { first, size_bytes: 0, valid_bytes: 0, contiguous: false };
                let chain = self.chain(node, &stream, Some(dirs::BYTES_MAX))?;
                let size_bytes = chain.clusters() * self.boot.cluster_bytes;
                let epoch = Time::default();
                Set {
                    attributes: attribute::DIRECTORY,
                    created: epoch,
                    modified: epoch,
                    accessed: epoch,
                    stream: Stream { size_bytes, ..stream },
                    units: Vec::new(),
                }
            }
        };
        let mut stat = stat_of(node, &set, self.boot.cluster_bytes);
        if Self::is_root(node) {
            stat.created = None;
        }
        Ok(stat)
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
        let stream = self.file(node)?.stream;
        let end = offset_bytes.saturating_add(len_bytes).min(stream.size_bytes);
        let valid = end.min(stream.valid_bytes);
        let mut all = Vec::new();
        if offset_bytes < valid {
            let (cluster, chain) = (self.boot.cluster_bytes, self.chain(node, &stream, None)?);
            let ends = (offset_bytes / cluster, valid.div_ceil(cluster));
            for run in chain.runs(&self.media, &self.boot, ends, max)? {
                let start = (run.index * cluster).max(offset_bytes);
                let stop = ((run.index + run.clusters) * cluster).min(valid);
                let place = self.boot.place(run.cluster) + (start - run.index * cluster);
                all.push(FileExtent {
                    offset_bytes: start,
                    len_bytes: stop - start,
                    place: Place::Device { device: 0, offset_bytes: place },
                });
            }
        }
        let at = all.last().map_or(offset_bytes, |last| last.offset_bytes + last.len_bytes);
        if at >= valid && at < end && all.len() < max.max(1) {
            let place = Place::Unwritten;
            all.push(FileExtent { offset_bytes: at, len_bytes: end - at, place });
        }
        Ok(all)
    }
}
