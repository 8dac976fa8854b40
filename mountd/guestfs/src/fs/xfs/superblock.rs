//! The superblock, and what numbers of blocks and inodes mean.
//! Source: "XFS Filesystem Structure" (Red Hat/SGI documentation), "Superblocks"; Linux `Documentation/filesystems/xfs`.

use crate::fields::Fields;
use crate::{Error, ErrorKind, Media};

/// `sb_magicnum`.
const MAGIC: [u8; 4] = *b"XFSB";
/// What is read of it: the smallest sector holds all that is used here.
const BYTES: usize = 512;
/// The largest sector.
const SECTOR_MAX: usize = 32 << 10;
/// Copies that are tried where the primary one is damaged.
const COPIES_TRIED: u32 = 4;

/// `sb_versionnum`: directories of version 2.
const DIR_V2: u16 = 0x2000;
/// `sb_versionnum`: names are compared without the case of ASCII letters.
const ASCII_CI: u16 = 0x4000;
/// `sb_features2`: entries tell what they lead to.
const V4_FTYPE: u32 = 0x200;

/// `sb_features_incompat`.
const FTYPE: u32 = 1;
const META_UUID: u32 = 4;
const NEEDS_REPAIR: u32 = 0x10;
/// Types, sparse inodes, another UUID, big times, repair, 64-bit counts, exchanged ranges, parents.
const KNOWN: u32 = 0xff;
/// Names of features that cannot be read.
const UNREAD: &[(u32, &str)] = &[(0x100, "metadir"), (0x200, "zoned")];

/// What the superblock tells.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// 4 or 5.
    pub(super) version: u16,
    pub(super) block_bytes: u32,
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) uuid: [u8; 16],
    /// The one that blocks of metadata have.
    pub(super) meta_uuid: [u8; 16],
    pub(super) root: u64,
    pub(super) inode_bytes: u16,
    pub(super) dir_block_bytes: u32,
    pub(super) label: [u8; 12],
    pub(super) has_types: bool,
    pub(super) ascii_ci: bool,
    pub(super) needs_repair: bool,
    pub(super) has_realtime: bool,
    /// The first block of the log; 0: it is on another device.
    pub(super) log_start: u64,
    pub(super) log_blocks: u32,
    group_blocks: u32,
    groups: u32,
    block_log: u32,
    inode_log: u32,
    inodes_per_block_log: u32,
    group_log: u32,
}

/// Whether a superblock is at the start. Reads no more than that.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 4];
    media.read(0, &mut magic, "the superblock").is_ok() && magic == MAGIC
}

impl Superblock {
    /// The primary one, or a copy where it is damaged; then a note.
    pub(super) fn read(media: &Media) -> Result<(Self, Option<String>), Error> {
        let error = match Self::read_at(media, 0) {
            Ok(found) => return Ok((found, None)),
            Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
            Err(error) => error,
        };
        // Where the copies are is told by the damaged one, or else by nobody.
        let bytes = media.bytes(0, BYTES, "the superblock")?;
        let f = Fields::new(&bytes, "the superblock");
        let group_bytes = u64::from(f.be32(84)?).saturating_mul(u64::from(f.be32(4)?));
        for group in 1..=COPIES_TRIED {
            let place = group_bytes.saturating_mul(group.into());
            if let Ok(copy) = Self::read_at(media, place)
                && u64::from(copy.group_blocks) * u64::from(copy.block_bytes) == group_bytes
            {
                let note = format!("{error}; its copy in group {group} is used.");
                return Ok((copy, Some(note)));
            }
        }
        Err(error)
    }

    fn read_at(media: &Media, place: u64) -> Result<Self, Error> {
        let what = format!("the superblock at byte {place}");
        let bytes = media.bytes(place, BYTES, &what)?;
        let f = Fields::new(&bytes, &what);
        if f.array::<4>(0)? != MAGIC {
            return Err(Error::damaged(format!("{what} is none")));
        }
        let version = f.be16(100)? & 15;
        if version == 5 {
            let sector = usize::from(f.be16(102)?);
            if !(BYTES..=SECTOR_MAX).contains(&sector) {
                return Err(Error::damaged(format!("{what} tells sectors of {sector} bytes")));
            }
            let whole = media.bytes(place, sector, &what)?;
            if !super::sums::is_right(&whole, 224) {
                return Err(Error::damaged(format!("{what} has a wrong checksum")));
            }
        }
        let this = Self::parse(&f, version)?;
        this.check(&what)?;
        Ok(this)
    }

    fn parse(f: &Fields<'_>, version: u16) -> Result<Self, Error> {
        let bits = f.be16(100)?;
        let incompat = match version {
            5 => f.be32(216)?,
            4 if bits & DIR_V2 != 0 => 0,
            4 => return Err(Error::unsupported("XFS with directories of version 1")),
            other => return Err(Error::unsupported(format!("XFS of version {other}"))),
        };
        check_features(incompat)?;
        let uuid = f.array(32)?;
        let has_types = match version {
            5 => incompat & FTYPE != 0,
            _ => f.be32(200)? & V4_FTYPE != 0,
        };
        let (block_log, dir_log) = (u32::from(f.u8(120)?), u32::from(f.u8(192)?));
        Ok(Self {
            version,
            block_bytes: f.be32(4)?,
            blocks: f.be64(8)?,
            free_blocks: f.be64(144)?,
            uuid,
            meta_uuid: if incompat & META_UUID != 0 { f.array(248)? } else { uuid },
            root: f.be64(56)?,
            inode_bytes: f.be16(104)?,
            dir_block_bytes: 1u32.checked_shl(block_log.saturating_add(dir_log)).unwrap_or(0),
            label: f.array(108)?,
            has_types,
            ascii_ci: bits & ASCII_CI != 0,
            needs_repair: incompat & NEEDS_REPAIR != 0,
            has_realtime: f.be64(16)? != 0,
            log_start: f.be64(48)?,
            log_blocks: f.be32(96)?,
            group_blocks: f.be32(84)?,
            groups: f.be32(88)?,
            block_log,
            inode_log: f.u8(122)?.into(),
            inodes_per_block_log: f.u8(123)?.into(),
            group_log: f.u8(124)?.into(),
        })
    }

    /// Whether the numbers can be.
    fn check(&self, what: &str) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::damaged(format!("{what} tells {why}")));
        let is_log = |bytes: u32, log: u32| 1u32.checked_shl(log) == Some(bytes);
        if !(9..=16).contains(&self.block_log) || !is_log(self.block_bytes, self.block_log) {
            return wrong(format!("blocks of {} bytes", self.block_bytes));
        }
        let inode = u32::from(self.inode_bytes);
        if !(8..=11).contains(&self.inode_log)
            || !is_log(inode, self.inode_log)
            || inode > self.block_bytes
            || self.inode_log + self.inodes_per_block_log != self.block_log
        {
            return wrong(format!("inodes of {inode} bytes"));
        }
        if !(self.block_bytes..=64 << 10).contains(&self.dir_block_bytes) {
            return wrong(format!("directory blocks of {} bytes", self.dir_block_bytes));
        }
        if self.group_log > 31
            || self.group_blocks == 0
            || u64::from(self.group_blocks) > 1 << self.group_log
            || u64::from(self.groups) * u64::from(self.group_blocks) < self.blocks
            || self.blocks > 1 << 54
        {
            return wrong(format!(
                "{} blocks in {} groups of {}",
                self.blocks, self.groups, self.group_blocks
            ));
        }
        Ok(())
    }

    /// Where `len` blocks from block `number` on lie, in bytes; `what` names who leads there.
    pub(super) fn place(&self, number: u64, len: u64, what: &str) -> Result<u64, Error> {
        let (group, within) = (number >> self.group_log, number & ((1u64 << self.group_log) - 1));
        let first = group.checked_mul(self.group_blocks.into()).and_then(|b| b.checked_add(within));
        let end = first.and_then(|first| first.checked_add(len));
        match (first, end) {
            (Some(first), Some(end))
                if within + len <= self.group_blocks.into() && end <= self.blocks =>
            {
                Ok(first << self.block_log)
            }
            _ => Err(Error::damaged(format!(
                "{what} leads to {len} blocks from {number} on, which are not there"
            ))),
        }
    }

    /// Where an inode lies, in bytes.
    pub(super) fn inode_place(&self, number: u64) -> Result<u64, Error> {
        let missing = || Error::not_found(format!("there is no inode {number}"));
        let bits = self.inodes_per_block_log;
        let index = number & ((1u64 << bits) - 1);
        let block = self.place(number >> bits, 1, "a number").map_err(|_| missing())?;
        Ok(block + (index << self.inode_log))
    }

    /// The number of blocks of a directory below which its index begins: 32 GiB.
    pub(super) fn leaf_block(&self) -> u64 {
        (1 << 35) >> self.block_log
    }

    pub(super) fn has_checksums(&self) -> bool {
        self.version == 5
    }
}

fn check_features(incompat: u32) -> Result<(), Error> {
    let unknown = incompat & !KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let named: Vec<&str> =
        UNREAD.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, name)| *name).collect();
    Err(Error::unsupported(format!(
        "XFS with features that cannot be read: {} (incompat {unknown:#x})",
        named.join(", ")
    )))
}
