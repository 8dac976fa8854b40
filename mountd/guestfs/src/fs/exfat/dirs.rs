//! Going through directories, and finding names in them.

use std::sync::Arc;

use super::ROOT;
use super::chain::Chain;
use super::set::{self, ENTRY_BYTES, SECONDARY_MAX, Set, Stream};
use super::{ExFat, Names, Node};
use crate::fs::{NodeId, utf16};
use crate::{Error, ErrorKind};

/// The format allows no directory more.
pub(super) const BYTES_MAX: u64 = 256 << 20;
/// Slots read at once.
const SLOTS_AT_ONCE: u64 = 256;
/// Runs of clusters asked for at once.
const RUNS_AT_ONCE: usize = 64;
/// Directories with more names are gone through for each that is looked for.
const INDEXED_MAX: usize = 1 << 20;

/// A file in a directory.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Vec<u8>,
    pub(super) node: NodeId,
    pub(super) set: Set,
    /// The slot behind its last entry.
    pub(super) next: u64,
}

/// The entries of a set as they come.
#[derive(Debug, Default)]
struct Collected {
    entries: Vec<[u8; 32]>,
    wanted: usize,
    start: u64,
    last: u64,
    /// Where it goes on if not in the next bytes.
    continued: u32,
}

impl ExFat {
    /// Where the slots of a directory are, and how many bytes at most.
    fn directory(&self, dir: NodeId) -> Result<Arc<Chain>, Error> {
        match self.node(dir)? {
            Node::Root => {
                let stream = Stream {
                    first: self.boot.root_cluster,
                    size_bytes: 0,
                    valid_bytes: 0,
                    contiguous: false,
                };
                self.chain(dir, &stream, Some(BYTES_MAX))
            }
            Node::Set(set) if !set.is_directory() => {
                Err(Error::new(ErrorKind::NotADirectory, format!("{dir} is no directory")))
            }
            Node::Set(set) if set.stream.size_bytes > BYTES_MAX => {
                let text = format!("{dir} is a directory of {} bytes", set.stream.size_bytes);
                Err(Error::damaged(text))
            }
            Node::Set(set) => self.chain(dir, &set.stream, None),
        }
    }

    /// Calls `each` with the place on the device of every slot from number `from` on, until it answers `false`.
    pub(super) fn each_slot(
        &self,
        dir: NodeId,
        from: u64,
        mut each: impl FnMut(u64, &[u8; 32]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let (chain, cluster) = (self.directory(dir)?, self.boot.cluster_bytes);
        let mut skip = from.saturating_mul(ENTRY_BYTES);
        let mut index = skip / cluster;
        skip %= cluster;
        let mut bytes = Vec::new();
        loop {
            let ends = (index, u64::MAX);
            let runs = chain.runs(&self.media, &self.boot, ends, RUNS_AT_ONCE)?;
            let Some(last) = runs.last() else { return Ok(()) };
            index = last.index + last.clusters;
            for run in &runs {
                let start = self.boot.place(run.cluster);
                let (mut at, end) = (start + skip, start + run.clusters * cluster);
                skip = 0;
                while at < end {
                    bytes.resize((end - at).min(SLOTS_AT_ONCE * ENTRY_BYTES) as usize, 0);
                    self.media.read(at, &mut bytes, "a directory")?;
                    for slot in bytes.as_chunks::<32>().0 {
                        if !each(at, slot)? {
                            return Ok(());
                        }
                        at += ENTRY_BYTES;
                    }
                }
            }
        }
    }

    /// Calls `each` with every file from slot `from` on, until it answers `false`.
    pub(super) fn each_file(
        &self,
        dir: NodeId,
        from: u64,
        mut each: impl FnMut(Named) -> bool,
    ) -> Result<(), Error> {
        let (mut slot, mut set) = (from, Collected::default());
        self.each_slot(dir, from, |at, bytes| {
            slot += 1;
            if set.entries.is_empty() {
                match bytes[0] {
                    set::END => return Ok(false),
                    set::FILE => set = Collected::new(at, bytes),
                    _ => return Ok(true),
                }
            } else {
                set.push(at, bytes, self);
            }
            if set.entries.len() < set.wanted {
                return Ok(true);
            }
            let whole = std::mem::take(&mut set);
            Ok(each(whole.finish(slot)?))
        })?;
        if !set.entries.is_empty() {
            let text = format!("{dir} ends within the file at byte {}", set.start);
            return Err(Error::damaged(text));
        }
        Ok(())
    }

    /// The hash of a name without regard to case.
    fn hash(&self, units: &[u16]) -> u32 {
        use std::hash::BuildHasher as _;
        let upper: Vec<u16> = units.iter().map(|unit| self.upcase.of(*unit)).collect();
        self.hasher.hash_one(upper) as u32
    }

    /// The slots at which files of a directory begin, by the hash of their names, ascending. `None`: there are too many.
    fn index(&self, dir: NodeId) -> Result<Option<Names>, Error> {
        if let Some(index) = self.names.get(&dir) {
            return Ok(Some(index));
        }
        let (mut index, mut begin) = (Vec::new(), 0u64);
        self.each_file(dir, 0, |named| {
            index.push((self.hash(&named.set.units), begin as u32));
            begin = named.next;
            index.len() <= INDEXED_MAX
        })?;
        if index.len() > INDEXED_MAX {
            return Ok(None);
        }
        index.sort_unstable();
        let index: Names = index.into();
        self.names.insert(dir, Arc::clone(&index));
        Ok(Some(index))
    }

    /// The file that a name leads to: the exact one, or in other letters' case.
    pub(super) fn find(&self, dir: NodeId, units: &[u16]) -> Result<Option<NodeId>, Error> {
        let same = |named: &Named| {
            let (a, b) = (named.set.units.iter(), units.iter());
            a.map(|unit| self.upcase.of(*unit)).eq(b.map(|unit| self.upcase.of(*unit)))
        };
        let mut found: Option<(bool, NodeId)> = None;
        let mut take = |named: &Named| {
            let exact = named.set.units == units;
            if same(named) && (exact || found.is_none()) {
                found = Some((exact, named.node));
            }
        };
        match self.index(dir)? {
            None => self.each_file(dir, 0, |named| {
                take(&named);
                true
            })?,
            Some(index) => {
                let hash = self.hash(units);
                let first = index.partition_point(|(other, _)| *other < hash);
                for (_, slot) in index.iter().skip(first).take_while(|(other, _)| *other == hash) {
                    self.each_file(dir, u64::from(*slot), |named| {
                        take(&named);
                        false
                    })?;
                }
            }
        }
        Ok(found.map(|(_, node)| node))
    }

    /// Reads the set that a node's number stands for.
    pub(super) fn set(&self, node: NodeId) -> Result<Set, Error> {
        let missing = || Error::not_found(format!("there is no {node}"));
        let at = node.inode.checked_mul(ENTRY_BYTES).ok_or_else(missing)?;
        let (mut cluster, mut at) = (self.boot.cluster_at(at).ok_or_else(missing)?, at);
        let what = format!("the file at byte {at}");
        let mut bytes = [0; 32];
        self.media.read(at, &mut bytes, &what)?;
        if bytes[0] != set::FILE {
            return Err(missing());
        }
        let mut set = Collected::new(at, &bytes);
        while set.entries.len() < set.wanted {
            at += ENTRY_BYTES;
            if self.boot.cluster_at(at) != Some(cluster) {
                // The table knows nothing of directories that lie in one piece: the number says where it goes on.
                cluster = match node.part {
                    0 => cluster.saturating_add(1),
                    part => u32::try_from(part).map_err(|_| missing())?,
                };
                if !self.boot.has(cluster) {
                    return Err(missing());
                }
                at = self.boot.place(cluster);
            }
            self.media.read(at, &mut bytes, &what)?;
            set.push(at, &bytes, self);
        }
        Set::parse(&set.entries, &what)
    }

    /// The root's number.
    pub(super) fn is_root(node: NodeId) -> bool {
        node == NodeId::inode(ROOT)
    }
}

impl Collected {
    fn new(at: u64, bytes: &[u8; 32]) -> Self {
        let wanted = 1 + usize::from(bytes[1]).min(SECONDARY_MAX);
        Self { entries: vec![*bytes], wanted, start: at, last: at, continued: 0 }
    }

    fn push(&mut self, at: u64, bytes: &[u8; 32], fs: &ExFat) {
        if at != self.last + ENTRY_BYTES {
            self.continued = fs.boot.cluster_at(at).unwrap_or(0);
        }
        self.last = at;
        self.entries.push(*bytes);
    }

    fn finish(self, next: u64) -> Result<Named, Error> {
        let what = format!("the file at byte {}", self.start);
        let set = Set::parse(&self.entries, &what)?;
        let name = utf16::to_wtf8(set.units.iter().copied());
        if !utf16::is_name(&name) {
            let text = format!("{what} has the name \"{}\"", name.escape_ascii());
            return Err(Error::damaged(text));
        }
        let node = NodeId { inode: self.start / ENTRY_BYTES, part: u64::from(self.continued) };
        Ok(Named { name, node, set, next })
    }
}
