//! The superblock. Source: Linux `Documentation/filesystems/ext4/super.rst`.

use super::sums::crc;
use crate::fields::Fields;
use crate::fs::FsKind;
use crate::{Error, ErrorKind, Media};

/// Where the primary superblock is.
const PLACE: u64 = 1024;
/// Its length.
const BYTES: usize = 1024;
/// `s_magic`.
const MAGIC: u16 = 0xef53;
/// The largest block, `s_log_block_size` 6.
const BLOCK_LOG_MAX: u32 = 6;

/// `s_feature_compat`, `s_feature_incompat`, `s_feature_ro_compat`.
pub(super) mod feature {
    pub(in super::super) const HAS_JOURNAL: u32 = 4;
    pub(in super::super) const SPARSE_SUPER2: u32 = 0x200;

    pub(in super::super) const FILETYPE: u32 = 2;
    pub(in super::super) const RECOVER: u32 = 4;
    pub(in super::super) const JOURNAL_DEV: u32 = 8;
    pub(in super::super) const META_BG: u32 = 0x10;
    pub(in super::super) const EXTENTS: u32 = 0x40;
    pub(in super::super) const WIDE: u32 = 0x80;
    pub(in super::super) const MMP: u32 = 0x100;
    pub(in super::super) const FLEX_BG: u32 = 0x200;
    pub(in super::super) const EA_INODE: u32 = 0x400;
    pub(in super::super) const CSUM_SEED: u32 = 0x2000;
    pub(in super::super) const LARGEDIR: u32 = 0x4000;
    pub(in super::super) const INLINE_DATA: u32 = 0x8000;
    pub(in super::super) const ENCRYPT: u32 = 0x1_0000;
    pub(in super::super) const CASEFOLD: u32 = 0x2_0000;
    /// All that can be read.
    pub(in super::super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | WIDE
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;

    pub(in super::super) const SPARSE_SUPER: u32 = 1;
    pub(in super::super) const LARGE_FILE: u32 = 2;
    pub(in super::super) const BTREE_DIR: u32 = 4;
    pub(in super::super) const HUGE_FILE: u32 = 8;
    pub(in super::super) const GDT_CSUM: u32 = 0x10;
    pub(in super::super) const BIGALLOC: u32 = 0x200;
    pub(in super::super) const METADATA_CSUM: u32 = 0x400;
}

/// Names of features that cannot be read.
const UNREAD: &[(u32, &str)] = &[
    (1, "compression"),
    (feature::JOURNAL_DEV, "journal_dev: this is the journal of another file system"),
    (0x1000, "dirdata"),
];

/// What the superblock tells.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) compat: u32,
    pub(super) incompat: u32,
    pub(super) ro_compat: u32,
    pub(super) block_bytes: u32,
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) cluster_blocks: u32,
    pub(super) first_data_block: u32,
    pub(super) blocks_per_group: u32,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_bytes: u16,
    pub(super) descriptor_bytes: u16,
    pub(super) first_meta_group: u32,
    pub(super) backup_groups: [u32; 2],
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
    pub(super) journal_inode: u32,
    /// `s_jnl_blocks`: `i_block` of the journal's inode, then both halves of its size.
    pub(super) journal_backup: [u32; 17],
    pub(super) hash_seed: [u32; 4],
    /// Names are hashed as unsigned bytes.
    pub(super) unsigned_hash: bool,
    pub(super) seed: u32,
    /// The guest's kernel has found errors.
    pub(super) has_errors: bool,
    /// The group this copy lies in; 0 is the primary one.
    pub(super) group: u64,
}

/// Whether a superblock is at its place. Reads no more than that.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 2];
    media.read(PLACE + 0x38, &mut magic, "the superblock").is_ok()
        && u16::from_le_bytes(magic) == MAGIC
}

impl Superblock {
    /// The primary one, or a copy where it is damaged; then a note.
    pub(super) fn read(media: &Media) -> Result<(Self, Option<String>), Error> {
        let first = Self::read_at(media, PLACE);
        let error = match first {
            Ok(found) => return Ok((found, None)),
            Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
            Err(error) => error,
        };
        for block_log in [2, 0, 1, 6] {
            let block_bytes = 1024u64 << block_log;
            // Groups are as large as one block of the map of blocks can tell.
            let group_bytes = block_bytes * 8 * block_bytes;
            let skip = if block_log == 0 { block_bytes } else { 0 };
            for group in [1, 3, 5, 7, 9] {
                let place = group * group_bytes + skip;
                if let Ok(copy) = Self::read_at(media, place)
                    && u64::from(copy.block_bytes) == block_bytes
                    && copy.group == group
                {
                    let note = format!("{error}; its copy in group {group} is used.");
                    return Ok((copy, Some(note)));
                }
            }
        }
        Err(error)
    }

    pub(super) fn read_at(media: &Media, place: u64) -> Result<Self, Error> {
        let bytes = media.bytes(place, BYTES, "the superblock")?;
        Self::parse(&bytes, place, media.size_bytes())
    }

    pub(super) fn parse(bytes: &[u8], place: u64, device_bytes: u64) -> Result<Self, Error> {
        let what = format!("the superblock at byte {place}");
        let f = Fields::new(bytes, &what);
        if f.le16(0x38)? != MAGIC {
            return Err(Error::damaged(format!("{what} is none")));
        }
        let dynamic = f.le32(0x4c)? != 0;
        let feature = |at| if dynamic { f.le32(at) } else { Ok(0) };
        let (compat, incompat, ro_compat) = (feature(0x5c)?, feature(0x60)?, feature(0x64)?);
        if ro_compat & feature::METADATA_CSUM != 0
            && crc(u32::MAX, &[f.slice(0, 0x3fc)?]) != f.le32(0x3fc)?
        {
            return Err(Error::damaged(format!("{what} has a wrong checksum")));
        }
        check_features(incompat)?;
        let wide = incompat & feature::WIDE != 0;
        let high = |at| if wide { f.le32(at) } else { Ok(0) };
        let uuid: [u8; 16] = f.array(0x68)?;
        let seed = match incompat & feature::CSUM_SEED {
            0 => crc(u32::MAX, &[&uuid]),
            _ => f.le32(0x270)?,
        };
        let mut journal_backup = [0; 17];
        for (i, word) in journal_backup.iter_mut().enumerate() {
            *word = f.le32(0x10c + 4 * i)?;
        }
        let (block_log, cluster_log) = (f.le32(0x18)?, f.le32(0x1c)?);
        let this = Self {
            compat,
            incompat,
            ro_compat,
            block_bytes: 1024u32.checked_shl(block_log.min(31)).unwrap_or(0),
            blocks: u64::from(high(0x150)?) << 32 | u64::from(f.le32(4)?),
            free_blocks: u64::from(high(0x158)?) << 32 | u64::from(f.le32(0xc)?),
            cluster_blocks: match ro_compat & feature::BIGALLOC {
                0 => 1,
                _ => 1u32.checked_shl(cluster_log.wrapping_sub(block_log)).unwrap_or(0),
            },
            first_data_block: f.le32(0x14)?,
            blocks_per_group: f.le32(0x20)?,
            inodes: f.le32(0)?,
            inodes_per_group: f.le32(0x28)?,
            inode_bytes: if dynamic { f.le16(0x58)? } else { 128 },
            descriptor_bytes: if wide { f.le16(0xfe)? } else { 32 },
            first_meta_group: f.le32(0x104)?,
            backup_groups: [f.le32(0x24c)?, f.le32(0x250)?],
            uuid,
            label: f.array(0x78)?,
            journal_inode: if dynamic { f.le32(0xe0)? } else { 0 },
            journal_backup,
            hash_seed: [f.le32(0xec)?, f.le32(0xf0)?, f.le32(0xf4)?, f.le32(0xf8)?],
            unsigned_hash: f.le32(0x160)? & 2 != 0,
            seed,
            has_errors: f.le16(0x3a)? & 2 != 0,
            group: f.le16(0x5a)?.into(),
        };
        if block_log > BLOCK_LOG_MAX {
            return Err(Error::damaged(format!("{what} tells blocks of 2^{block_log} KiB")));
        }
        this.check(&what, device_bytes)?;
        Ok(this)
    }

    /// Whether the numbers can be.
    fn check(&self, what: &str, device_bytes: u64) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::damaged(format!("{what} tells {why}")));
        let inode = u32::from(self.inode_bytes);
        if !(128..=self.block_bytes).contains(&inode) || !inode.is_power_of_two() {
            return wrong(format!("inodes of {inode} bytes"));
        }
        let per_block = self.block_bytes / inode;
        let most = self.block_bytes.saturating_mul(8);
        if self.inodes_per_group < per_block || self.inodes_per_group > most || self.inodes == 0 {
            return wrong(format!("{} inodes in a group", self.inodes_per_group));
        }
        let descriptor = self.descriptor_bytes;
        let least = if self.incompat & feature::WIDE != 0 { 64 } else { 32 };
        if !(least..=1024).contains(&descriptor) || !descriptor.is_power_of_two() {
            return wrong(format!("group descriptors of {descriptor} bytes"));
        }
        let clusters_most = u64::from(most) * u64::from(self.cluster_blocks);
        if self.cluster_blocks == 0 || self.cluster_blocks > 1 << 20 {
            return wrong("clusters that are too large".into());
        }
        if self.blocks_per_group < 8 || u64::from(self.blocks_per_group) > clusters_most {
            return wrong(format!("{} blocks in a group", self.blocks_per_group));
        }
        if self.blocks <= u64::from(self.first_data_block) || self.first_data_block > 1 {
            return wrong(format!("{} blocks from {} on", self.blocks, self.first_data_block));
        }
        if self.groups() > u64::from(self.inodes).div_ceil(self.inodes_per_group.into()) {
            return wrong(format!("{} groups and {} inodes", self.groups(), self.inodes));
        }
        match self.blocks.checked_mul(self.block_bytes.into()) {
            Some(bytes) if bytes <= device_bytes => Ok(()),
            // What lies beyond is an error when it is read; the rest can be had.
            Some(_) => Ok(()),
            None => wrong(format!("{} blocks", self.blocks)),
        }
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> u64 {
        (self.blocks - u64::from(self.first_data_block)).div_ceil(self.blocks_per_group.into())
    }

    pub(super) fn has_checksums(&self) -> bool {
        self.ro_compat & feature::METADATA_CSUM != 0
    }

    pub(super) fn needs_recovery(&self) -> bool {
        self.compat & feature::HAS_JOURNAL != 0 && self.incompat & feature::RECOVER != 0
    }

    /// Which of the three it is, as `blkid` tells them apart.
    pub(super) fn kind(&self) -> FsKind {
        let third = feature::FILETYPE | feature::RECOVER | feature::META_BG;
        let old = feature::SPARSE_SUPER | feature::LARGE_FILE | feature::BTREE_DIR;
        if self.incompat & !third != 0 || self.ro_compat & !old != 0 {
            FsKind::Ext4
        } else if self.compat & feature::HAS_JOURNAL != 0 {
            FsKind::Ext3
        } else {
            FsKind::Ext2
        }
    }
}

fn check_features(incompat: u32) -> Result<(), Error> {
    let unknown = incompat & !feature::KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let named: Vec<&str> =
        UNREAD.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, name)| *name).collect();
    let rest = unknown & !UNREAD.iter().fold(0, |bits, (bit, _)| bits | bit);
    let mut text = format!("ext4 with features that cannot be read: {}", named.join(", "));
    if rest != 0 {
        text.push_str(&format!(" (incompat {rest:#x})"));
    }
    Err(Error::unsupported(text))
}
