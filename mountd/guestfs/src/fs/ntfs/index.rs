//! Directories: B-trees of file names, in the attributes $INDEX_ROOT and $INDEX_ALLOCATION named $I30.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use super::REFERENCE_MASK;
use super::collate::UpCase;
use super::file::{Attribute, File};
use super::record::{fix_up, kind};
use super::stream::{self, Kept};
use super::volume::Volume;
use crate::fields::Fields;
use crate::fs::utf16;
use crate::{Error, ErrorKind};

/// The name of a directory's index.
const INDEX: &str = "$I30";
/// Blocks of 4 KiB are what everybody makes.
const BLOCK_MAX: usize = 64 << 10;
/// VCNs of index blocks count this where a cluster is larger than a block.
const SMALL_UNIT: u64 = 512;
/// A tree of this depth would have more entries than a volume has clusters.
const DEPTH_MAX: usize = 24;
/// Blocks of one directory: some 30 million names.
const BLOCKS_MAX: usize = 1 << 20;
/// Flags of an entry.
const HAS_BELOW: u16 = 1;
const IS_LAST: u16 = 2;
/// Where the key of an entry is.
const KEY_AT: usize = 16;
/// Namespaces of names.
pub(super) const DOS: u8 = 2;

/// The index of one directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Index<'a> {
    volume: &'a Volume,
    kept: &'a Kept,
    root: &'a [u8],
    blocks: Option<&'a Attribute>,
    block_bytes: usize,
    unit: u64,
    directory: u64,
}

/// A node of the tree: its bytes, and where its entries are in them.
#[derive(Debug)]
pub(super) struct Node {
    bytes: Vec<u8>,
    what: String,
    first: usize,
    end: usize,
}

/// An entry of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The record number of what it names.
    pub(super) record: u64,
    pub(super) sequence: u16,
    /// The name, its namespace and its flags; `None` in the last entry of a node.
    pub(super) key: Option<Key<'a>>,
    /// The block with the entries before it.
    below: Option<u64>,
    /// Where it ends in its node.
    pub(super) end: usize,
}

/// What an entry says of what it names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    name: &'a [u8],
    pub(super) namespace: u8,
    /// DOS attributes, and whether it is a directory.
    pub(super) flags: u32,
}

impl<'a> Key<'a> {
    /// Takes a $FILE_NAME.
    pub(super) fn parse(bytes: &'a [u8], what: &str) -> Result<Self, Error> {
        let fields = Fields::new(bytes, what);
        let (flags, namespace) = (fields.le32(56)?, fields.u8(65)?);
        let len = usize::from(fields.u8(64)?) * 2;
        let name = bytes.get(66..66 + len).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::damaged(format!("{what}: a name is cut off")))?;
        Ok(Self { name, namespace, flags })
    }

    pub(super) fn units(&self) -> impl Iterator<Item = u16> + 'a {
        utf16::le_units(self.name)
    }
}

impl Node {
    /// The header at `header` says where the entries are, counted from itself.
    fn new(bytes: Vec<u8>, header: usize, what: String) -> Result<Self, Error> {
        let fields = Fields::new(&bytes, &what);
        let place = |at: usize| Ok::<_, Error>((fields.le32(at)? as usize).saturating_add(header));
        let (first, end) = (place(header)?, place(header + 4)?);
        if end > bytes.len() || first < header + 16 {
            let text = format!("{what}: entries from {first} to {end} of {}", bytes.len());
            return Err(Error::damaged(text));
        }
        Ok(Self { bytes, what, first, end })
    }

    /// Names it in errors.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Its entries; the last one has no name.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<Entry<'_>, Error>> {
        let mut at = Some(self.first);
        std::iter::from_fn(move || {
            let entry = self.entry(at?);
            at = match &entry {
                Ok(entry) if entry.key.is_some() => Some(entry.end),
                _ => None,
            };
            Some(entry)
        })
    }

    fn entry(&self, at: usize) -> Result<Entry<'_>, Error> {
        let fields = Fields::new(self.bytes.get(..self.end).unwrap_or_default(), &self.what);
        let reference = fields.le64(at)?;
        let (len, key_len) =
            (usize::from(fields.le16(at + 8)?), usize::from(fields.le16(at + 10)?));
        let flags = fields.le16(at + 12)?;
        let bytes = fields.slice(at, len)?;
        let tail = if flags & HAS_BELOW == 0 { 0 } else { 8 };
        if !len.is_multiple_of(8) || KEY_AT + key_len + tail > len {
            let text = format!("{}: its entry at {at} is {len} bytes long", self.what);
            return Err(Error::damaged(text));
        }
        let below = match tail {
            0 => None,
            _ => Some(Fields::new(bytes, &self.what).le64(len - tail)?),
        };
        let key = match flags & IS_LAST {
            0 => Some(Key::parse(&bytes[KEY_AT..KEY_AT + key_len], &self.what)?),
            _ => None,
        };
        Ok(Entry {
            record: reference & REFERENCE_MASK,
            sequence: (reference >> 48) as u16,
            key,
            below,
            end: at + len,
        })
    }
}

impl<'a> Index<'a> {
    pub(super) fn new(volume: &'a Volume, kept: &'a Kept, file: &'a File) -> Result<Self, Error> {
        let what = format!("the index of MFT record {}", file.number);
        let Some(root) = file.attribute(kind::INDEX_ROOT, INDEX) else {
            return Err(Error::damaged(format!("{what} is missing")));
        };
        let root = root.resident(&what)?;
        let fields = Fields::new(root, &what);
        let block_bytes = fields.le32(8)? as usize;
        if fields.le32(0)? != kind::FILE_NAME
            || !block_bytes.is_power_of_two()
            || !(512..=BLOCK_MAX).contains(&block_bytes)
        {
            let text = format!("{what}: it is none of names, or has blocks of {block_bytes} bytes");
            return Err(Error::damaged(text));
        }
        let cluster = volume.boot.cluster_bytes;
        let unit = if cluster <= block_bytes as u64 { cluster } else { SMALL_UNIT };
        let blocks = file.attribute(kind::INDEX_ALLOCATION, INDEX);
        Ok(Self { volume, kept, root, blocks, block_bytes, unit, directory: file.number })
    }

    /// The node in the file's record.
    pub(super) fn root(&self) -> Result<Node, Error> {
        let what = format!("the index root of MFT record {}", self.directory);
        Node::new(self.root.to_vec(), 16, what)
    }

    /// Block `number` of the tree.
    pub(super) fn block(&self, number: u32) -> Result<Node, Error> {
        let offset = u64::from(number) * self.block_bytes as u64;
        let what = format!("index block {number} of MFT record {}", self.directory);
        let Some(blocks) = self.blocks else {
            return Err(Error::damaged(format!("{what}: the directory has no blocks")));
        };
        let mut bytes = vec![0; self.block_bytes];
        stream::metadata(self.volume, self.kept, blocks, offset, &mut bytes, &what)?;
        fix_up(&mut bytes, b"INDX", &what)?;
        let vcn = Fields::new(&bytes, &what).le64(16)?;
        if vcn != offset / self.unit {
            return Err(Error::damaged(format!("{what}: it says that it is at {vcn}")));
        }
        Node::new(bytes, 24, what)
    }

    /// The number of the block at `vcn`.
    fn number(&self, vcn: u64) -> Result<u32, Error> {
        let bytes = vcn.checked_mul(self.unit);
        let size = self.block_bytes as u64;
        let number = bytes.filter(|at| at.is_multiple_of(size)).map(|at| at / size);
        number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
            Error::damaged(format!("a block of MFT record {} would be at {vcn}", self.directory))
        })
    }

    /// The numbers of all blocks of the tree, ascending: found from the root down, each once.
    pub(super) fn all_blocks(&self) -> Result<Arc<[u32]>, Error> {
        let (mut seen, mut waiting) = (HashSet::new(), Vec::new());
        self.push_below(&self.root()?, 0, &mut waiting)?;
        while let Some((number, depth)) = waiting.pop() {
            if !seen.insert(number) || depth > DEPTH_MAX {
                let text = format!("block {number} comes again in the tree, or far too deep");
                return Err(Error::damaged(format!("MFT record {}: {text}", self.directory)));
            }
            if seen.len() > BLOCKS_MAX {
                return Err(self.too_many());
            }
            self.push_below(&self.block(number)?, depth, &mut waiting)?;
        }
        let mut all: Vec<_> = seen.into_iter().collect();
        all.sort_unstable();
        Ok(all.into())
    }

    fn too_many(&self) -> Error {
        let text = format!("the index of MFT record {} has", self.directory);
        Error::new(ErrorKind::Limit, format!("{text} more than {BLOCKS_MAX} blocks"))
    }

    fn push_below(
        &self,
        node: &Node,
        depth: usize,
        waiting: &mut Vec<(u32, usize)>,
    ) -> Result<(), Error> {
        for entry in node.entries() {
            if let Some(vcn) = entry?.below {
                waiting.push((self.number(vcn)?, depth + 1));
            }
            if waiting.len() > BLOCKS_MAX {
                return Err(self.too_many());
            }
        }
        Ok(())
    }

    /// The record, its sequence number, and how well it fits, of the entry that fits `name` best.
    pub(super) fn find(&self, upcase: &UpCase, name: &[u16]) -> Result<Option<(u64, u16)>, Error> {
        let mut search = Search { index: self, upcase, name, seen: HashSet::new(), best: None };
        search.node(&self.root()?, 0)?;
        Ok(search.best.map(|(_, record, sequence)| (record, sequence)))
    }
}

/// How an entry fits a name, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The short name for DOS.
    Dos,
    /// Other letters' case.
    Case,
    Exact,
}

struct Search<'a> {
    index: &'a Index<'a>,
    upcase: &'a UpCase,
    name: &'a [u16],
    seen: HashSet<u32>,
    best: Option<(Fit, u64, u16)>,
}

impl Search<'_> {
    /// Looks for all spellings of the name; they are neighbours in the order of the tree.
    fn node(&mut self, node: &Node, depth: usize) -> Result<(), Error> {
        for entry in node.entries() {
            let entry = entry?;
            let order = match entry.key {
                None => Ordering::Less,
                Some(key) => self.upcase.compare(self.name.iter().copied(), key.units()),
            };
            if order == Ordering::Greater {
                continue;
            }
            if let Some(vcn) = entry.below {
                self.below(vcn, depth)?;
            }
            if order == Ordering::Less {
                return Ok(());
            }
            if let Some(key) = entry.key {
                self.take(&entry, &key);
            }
            if self.best.is_some_and(|(fit, ..)| fit == Fit::Exact) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn below(&mut self, vcn: u64, depth: usize) -> Result<(), Error> {
        let number = self.index.number(vcn)?;
        if !self.seen.insert(number) || depth >= DEPTH_MAX {
            let text = format!("block {number} comes again in the tree, or far too deep");
            return Err(Error::damaged(format!("MFT record {}: {text}", self.index.directory)));
        }
        let node = self.index.block(number)?;
        self.node(&node, depth + 1)
    }

    fn take(&mut self, entry: &Entry<'_>, key: &Key<'_>) {
        let fit = match key.namespace {
            DOS => Fit::Dos,
            _ if key.units().eq(self.name.iter().copied()) => Fit::Exact,
            _ => Fit::Case,
        };
        if self.best.is_none_or(|(best, ..)| fit > best) {
            self.best = Some((fit, entry.record, entry.sequence));
        }
    }
}
