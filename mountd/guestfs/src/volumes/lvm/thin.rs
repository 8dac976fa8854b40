//! Thin pools: where the blocks of a thin volume lie, by the pool's two-level B-tree (kernel document
//! `admin-guide/device-mapper/thin-provisioning.rst`; the structures are those of `dm-thin-metadata.c` and
//! `persistent-data/dm-btree-internal.h`).
//!
//! Space maps are not needed to read, and not looked at.

use std::sync::Arc;

use crc_fast::{CrcAlgorithm, checksum};

use crate::fields::Fields;
use crate::volumes::map::{Map, Place, Step, below, beyond};
use crate::{Error, Media};

/// Metadata blocks always have this size.
const BLOCK_BYTES: usize = 4096;
const SECTOR_BYTES: u64 = 512;
const MAGIC: u64 = 27_022_010;
/// What is mixed into the checksums of superblocks and of nodes.
const SUPERBLOCK_XOR: u32 = 160_774;
const NODE_XOR: u32 = 121_107;
const NODE_HEADER_BYTES: usize = 32;
const NODE_INTERNAL: u32 = 1;
const NODE_LEAF: u32 = 2;
/// Nodes have some hundred children, so a tree this deep has more blocks than there are.
const DEPTH_MAX: usize = 12;
/// The lower bits of a mapping are a time.
const TIME_BITS: u32 = 24;
/// The pool was not shut down well, or ran out of metadata: its kernel wants it checked.
const NEEDS_CHECK: u32 = 1;
/// Chunks are 64 KiB to 1 GiB.
const CHUNK_SECTORS: std::ops::RangeInclusive<u32> = 128..=2_097_152;

/// A pool that can be read.
#[derive(Debug)]
pub(crate) struct Pool {
    meta: Media,
    data: Arc<dyn Map>,
    chunk: u64,
    root: u64,
    /// The transaction of the pool, which LVM compares with its own.
    pub(crate) transaction: u64,
    pub(crate) needs_check: bool,
}

/// The children or values of a node.
struct Node {
    bytes: Vec<u8>,
    what: String,
    leaf: bool,
    entries: usize,
    max: usize,
}

/// What a tree says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// Its value, and how many keys follow each other from it on whose values do so too.
    Value { value: u64, run: u64 },
    /// Nothing, and the next key that may have something.
    Nothing { until: u64 },
}

impl Pool {
    /// Opens the pool whose metadata and data are there.
    pub(crate) fn open(meta: Media, data: Arc<dyn Map>) -> Result<Self, Error> {
        let what = "the superblock of a thin pool";
        let block = meta.bytes(0, BLOCK_BYTES, what)?;
        let fields = Fields::new(&block, what);
        if fields.le64(32)? != MAGIC {
            return Err(Error::damaged(format!("{what} is none")));
        }
        if sum(&block, SUPERBLOCK_XOR) != fields.le32(0)? || fields.le64(8)? != 0 {
            return Err(Error::damaged(format!("the checksum of {what} is wrong")));
        }
        let version = fields.le32(40)?;
        let incompat = fields.le32(368)?;
        if !matches!(version, 1 | 2) || incompat != 0 {
            let text = format!("a thin pool of version {version} with features {incompat:#x}");
            return Err(Error::unsupported(format!("{text} is not read here")));
        }
        let sectors = fields.le32(336)?;
        if !CHUNK_SECTORS.contains(&sectors) {
            return Err(Error::damaged(format!("{what} has chunks of {sectors} sectors")));
        }
        Ok(Self {
            chunk: u64::from(sectors) * SECTOR_BYTES,
            root: fields.le64(320)?,
            transaction: fields.le64(48)?,
            needs_check: fields.le32(4)? & NEEDS_CHECK != 0,
            meta,
            data,
        })
    }

    /// The root of the mappings of a thin volume; `None` if the pool does not know it.
    fn device(&self, device: u64) -> Result<Option<u64>, Error> {
        Ok(match self.lookup(self.root, device)? {
            Looked::Value { value, .. } => Some(value),
            Looked::Nothing { .. } => None,
        })
    }

    fn lookup(&self, root: u64, key: u64) -> Result<Looked, Error> {
        let mut block = root;
        let mut until = u64::MAX;
        for _ in 0..DEPTH_MAX {
            let node = self.node(block)?;
            let after = node.after(key)?;
            if !node.leaf {
                // Keys before the first one are nowhere.
                let Some(child) = after.checked_sub(1) else {
                    return Ok(Looked::Nothing { until: node.key(0)?.min(until) });
                };
                if after < node.entries {
                    until = until.min(node.key(after)?);
                }
                block = node.value(child)?;
                continue;
            }
            if let Some(at) = after.checked_sub(1)
                && node.key(at)? == key
            {
                return node.run(at);
            }
            if after < node.entries {
                until = until.min(node.key(after)?);
            }
            return Ok(Looked::Nothing { until });
        }
        let text = format!("the tree of a thin pool at block {root} is deeper than {DEPTH_MAX}");
        Err(Error::damaged(text))
    }

    fn node(&self, block: u64) -> Result<Node, Error> {
        let what = format!("the node of a thin pool in its metadata block {block}");
        let at = block.checked_mul(BLOCK_BYTES as u64);
        let at = at.ok_or_else(|| Error::damaged(format!("{what} lies behind any disk")))?;
        let bytes = self.meta.bytes(at, BLOCK_BYTES, &what)?;
        let fields = Fields::new(&bytes, &what);
        if sum(&bytes, NODE_XOR) != fields.le32(0)? || fields.le64(8)? != block {
            return Err(Error::damaged(format!("the checksum of {what} is wrong")));
        }
        let (kind, entries, max) = (fields.le32(4)?, fields.le32(16)?, fields.le32(20)?);
        let (entries, max) = (entries as usize, max as usize);
        let fits = (BLOCK_BYTES - NODE_HEADER_BYTES) / 16;
        let known = kind == NODE_INTERNAL || kind == NODE_LEAF;
        if !known || entries > max || max > fits || fields.le32(24)? != 8 {
            let text = format!("{what} has {entries} of {max} entries, and marks {kind:#x}");
            return Err(Error::damaged(text));
        }
        Ok(Node { leaf: kind == NODE_LEAF, entries, max, bytes, what })
    }
}

impl Node {
    fn fields(&self) -> Fields<'_> {
        Fields::new(&self.bytes, &self.what)
    }

    fn key(&self, at: usize) -> Result<u64, Error> {
        self.fields().le64(NODE_HEADER_BYTES + 8 * at)
    }

    fn value(&self, at: usize) -> Result<u64, Error> {
        self.fields().le64(NODE_HEADER_BYTES + 8 * (self.max + at))
    }

    /// How many keys are not behind `key`.
    fn after(&self, key: u64) -> Result<usize, Error> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let mid = low + (high - low) / 2;
            if self.key(mid)? <= key {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        Ok(low)
    }

    fn run(&self, at: usize) -> Result<Looked, Error> {
        let (key, value) = (self.key(at)?, self.value(at)?);
        let mut run = 1;
        for next in at + 1..self.entries {
            let block = (value >> TIME_BITS) + run;
            if self.key(next)?.checked_sub(key) != Some(run)
                || self.value(next)? >> TIME_BITS != block
            {
                break;
            }
            run += 1;
        }
        Ok(Looked::Value { value, run })
    }
}

/// The checksum of a metadata block: CRC-32C of what follows its place, not turned at the end, with a number of its kind mixed in.
pub(crate) fn sum(block: &[u8], xor: u32) -> u32 {
    !(checksum(CrcAlgorithm::Crc32Iscsi, block.get(4..).unwrap_or_default()) as u32) ^ xor
}

/// A thin volume: its mappings are looked up where it is read.
#[derive(Debug)]
pub(crate) struct Thin {
    pool: Arc<Pool>,
    root: u64,
    size: u64,
    external: Option<Arc<dyn Map>>,
}

impl Thin {
    /// The volume with that id; what was never written reads from `external`, or as zeros.
    pub(crate) fn new(
        pool: Arc<Pool>,
        device: u64,
        size: u64,
        external: Option<Arc<dyn Map>>,
    ) -> Result<Self, Error> {
        let Some(root) = pool.device(device)? else {
            return Err(Error::damaged(format!("the thin pool knows no volume with id {device}")));
        };
        Ok(Self { pool, root, size, external })
    }
}

impl Map for Thin {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        if offset >= self.size {
            return Err(beyond("the thin volume", offset, self.size));
        }
        let len = len.min(self.size - offset);
        let chunk = self.pool.chunk;
        let (key, skip) = (offset / chunk, offset % chunk);
        match self.pool.lookup(self.root, key)? {
            Looked::Value { value, run } => {
                let at =
                    (value >> TIME_BITS).checked_mul(chunk).and_then(|at| at.checked_add(skip));
                // A run stays in a node, so this is some MiB at most.
                below(&self.pool.data, at, len.min(run.saturating_mul(chunk) - skip))
            }
            Looked::Nothing { until } => {
                let len = len.min(until.saturating_mul(chunk).saturating_sub(offset).max(1));
                match &self.external {
                    Some(origin) if offset < origin.size() => below(origin, Some(offset), len),
                    _ => Ok(Step { len, place: Place::Zeros }),
                }
            }
        }
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.pool.data.refused()
    }
}
