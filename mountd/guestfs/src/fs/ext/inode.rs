//! Inodes. Source: Linux `Documentation/filesystems/ext4/inodes.rst`.

use super::sums::crc;
use super::superblock::{Superblock, feature};
use super::xattr;
use crate::fields::Fields;
use crate::fs::{Attributes, NodeId, NodeKind, Stat, Time};
use crate::{Error, ErrorKind};

/// `i_flags`.
pub(super) mod flag {
    pub(in super::super) const COMPRESSED: u32 = 4;
    pub(in super::super) const IMMUTABLE: u32 = 0x10;
    pub(in super::super) const APPEND: u32 = 0x20;
    pub(in super::super) const ENCRYPTED: u32 = 0x800;
    pub(in super::super) const INDEX: u32 = 0x1000;
    pub(in super::super) const HUGE_FILE: u32 = 0x4_0000;
    pub(in super::super) const EXTENTS: u32 = 0x8_0000;
    pub(in super::super) const EA_INODE: u32 = 0x20_0000;
    pub(in super::super) const INLINE_DATA: u32 = 0x1000_0000;
    pub(in super::super) const CASEFOLD: u32 = 0x4000_0000;
}

/// The part of an inode that all have.
const BASE_BYTES: usize = 128;
/// Bytes of `i_block`.
pub(super) const BLOCK_AREA: usize = 60;
/// The largest file: 2^32 blocks of 64 KiB.
const SIZE_MAX: u64 = 1 << 48;

/// An inode that is in use.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) kind: NodeKind,
    pub(super) flags: u32,
    pub(super) size: u64,
    /// `i_block`: extents, block numbers, a target, or content.
    pub(super) area: [u8; BLOCK_AREA],
    /// The block of further attributes; 0 if there is none.
    pub(super) xattr_block: u64,
    /// What follows the fields: attributes.
    pub(super) tail: Vec<u8>,
    /// What checksums of its blocks go on from.
    pub(super) seed: u32,
    mode: u16,
    uid: u32,
    gid: u32,
    links: u16,
    sectors: u64,
    times: [Time; 3],
    created: Option<Time>,
}

impl Inode {
    /// Takes an inode apart.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it is not in use, [`ErrorKind::Damaged`].
    pub(super) fn parse(sb: &Superblock, number: u32, bytes: &[u8]) -> Result<Self, Error> {
        let what = format!("inode {number}");
        let f = Fields::new(bytes, &what);
        let (mode, links) = (f.le16(0)?, f.le16(0x1a)?);
        if mode == 0 && links == 0 {
            return Err(Error::not_found(format!("{what} is not in use")));
        }
        let generation = f.le32(0x64)?;
        let seed = crc(sb.seed, &[&number.to_le_bytes(), &generation.to_le_bytes()]);
        let extra = match bytes.len() > BASE_BYTES {
            true => usize::from(f.le16(0x80)?),
            false => 0,
        };
        if BASE_BYTES + extra > bytes.len() || !extra.is_multiple_of(4) {
            return Err(Error::damaged(format!("{what} has {extra} bytes of further fields")));
        }
        if sb.has_checksums() {
            check(bytes, seed, extra, &what)?;
        }
        let kind = kind(mode)
            .ok_or_else(|| Error::damaged(format!("{what} is of no known kind (mode {mode:o})")))?;
        let flags = f.le32(0x20)?;
        let long = kind == NodeKind::File || sb.incompat & feature::LARGEDIR != 0;
        let size = u64::from(if long { f.le32(0x6c)? } else { 0 }) << 32 | u64::from(f.le32(4)?);
        if size > SIZE_MAX {
            return Err(Error::damaged(format!("{what} is {size} bytes long")));
        }
        let fits = |at: usize| at + 4 <= BASE_BYTES + extra;
        let time = |low: usize, more: usize| -> Result<Time, Error> {
            let more = if fits(more) { f.le32(more)? } else { 0 };
            Ok(time(f.le32(low)?, more))
        };
        let high = |at| -> Result<u64, Error> { Ok(u64::from(f.le16(at)?)) };
        let mut sectors = u64::from(f.le32(0x1c)?);
        if sb.ro_compat & feature::HUGE_FILE != 0 {
            sectors |= high(0x74)? << 32;
            if flags & flag::HUGE_FILE != 0 {
                sectors *= u64::from(sb.block_bytes / 512);
            }
        }
        let wide = sb.incompat & feature::WIDE != 0;
        Ok(Self {
            number,
            kind,
            flags,
            size,
            area: f.array(0x28)?,
            xattr_block: if wide { high(0x76)? << 32 } else { 0 } | u64::from(f.le32(0x68)?),
            tail: bytes.get(BASE_BYTES + extra..).unwrap_or_default().to_vec(),
            seed,
            mode: mode & 0o7777,
            uid: u32::from(f.le16(0x78)?) << 16 | u32::from(f.le16(2)?),
            gid: u32::from(f.le16(0x7a)?) << 16 | u32::from(f.le16(0x18)?),
            links,
            sectors,
            times: [time(8, 0x8c)?, time(0x10, 0x88)?, time(0xc, 0x84)?],
            created: fits(0x90).then(|| time(0x90, 0x94)).transpose()?,
        })
    }

    /// An inode of which no more than its blocks is known.
    pub(super) fn of_area(number: u32, area: [u8; BLOCK_AREA], size: u64, extents: bool) -> Self {
        Self {
            number,
            kind: NodeKind::File,
            flags: if extents { flag::EXTENTS } else { 0 },
            size,
            area,
            xattr_block: 0,
            tail: Vec::new(),
            seed: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            sectors: 0,
            times: [Time::default(); 3],
            created: None,
        }
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the target of a link stands in the inode itself.
    pub(super) fn is_fast_link(&self, sb: &Superblock) -> bool {
        let attributes = match self.xattr_block {
            0 => 0,
            _ => u64::from(sb.cluster_blocks) * u64::from(sb.block_bytes / 512),
        };
        !self.has(flag::INLINE_DATA) && self.sectors <= attributes && self.size < BLOCK_AREA as u64
    }

    /// That it is a file, and one whose bytes can be read.
    pub(super) fn file(&self) -> Result<&Self, Error> {
        let number = self.number;
        match self.kind {
            NodeKind::File if self.has(flag::ENCRYPTED) => {
                let text = format!("inode {number} is encrypted by the guest's file system");
                Err(Error::new(ErrorKind::Encrypted, text))
            }
            NodeKind::File if self.has(flag::COMPRESSED) => {
                Err(Error::unsupported(format!("inode {number} is compressed by e2compr")))
            }
            NodeKind::File => Ok(self),
            NodeKind::Directory => {
                let text = format!("inode {number} is a directory");
                Err(Error::new(ErrorKind::IsADirectory, text))
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("inode {number} is no file"))),
        }
    }

    pub(super) fn directory(&self) -> Result<&Self, Error> {
        match self.kind {
            NodeKind::Directory => Ok(self),
            _ => {
                let text = format!("inode {} is no directory", self.number);
                Err(Error::new(ErrorKind::NotADirectory, text))
            }
        }
    }

    pub(super) fn stat(&self) -> Stat {
        let word = |at: usize| -> u32 {
            let bytes = self.area.get(at..at + 4).and_then(|b| b.first_chunk());
            u32::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        let device = matches!(self.kind, NodeKind::CharDevice | NodeKind::BlockDevice);
        // Linux counts what stands in an inode as if it had blocks.
        let own = match self.kind == NodeKind::File && self.has(flag::INLINE_DATA) {
            true => self.size.div_ceil(512),
            false => 0,
        };
        let sized = matches!(self.kind, NodeKind::File | NodeKind::Directory | NodeKind::Symlink);
        Stat {
            node: NodeId::inode(self.number.into()),
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links.into(),
            size_bytes: if sized { self.size } else { 0 },
            allocated_bytes: self.sectors.saturating_add(own).saturating_mul(512),
            accessed: self.times[0],
            modified: self.times[1],
            changed: self.times[2],
            created: self.created,
            device: device.then(|| device_number(word(0), word(4))),
            attributes: Attributes {
                immutable: self.has(flag::IMMUTABLE),
                append_only: self.has(flag::APPEND),
                compressed: self.has(flag::COMPRESSED),
                encrypted: self.has(flag::ENCRYPTED),
                no_xattrs: self.xattr_block == 0 && !xattr::are_in(&self.tail),
                ..Attributes::default()
            },
        }
    }
}

fn kind(mode: u16) -> Option<NodeKind> {
    Some(match mode >> 12 {
        1 => NodeKind::Fifo,
        2 => NodeKind::CharDevice,
        4 => NodeKind::Directory,
        6 => NodeKind::BlockDevice,
        8 => NodeKind::File,
        10 => NodeKind::Symlink,
        12 => NodeKind::Socket,
        _ => return None,
    })
}

/// Seconds, and in the further field two bits above them and nanoseconds.
fn time(low: u32, more: u32) -> Time {
    let seconds = i64::from(low.cast_signed()) + (i64::from(more & 3) << 32);
    Time { seconds, nanos: (more >> 2).min(999_999_999) }
}

/// A device's number, in the old form of 16 bits or in the new one.
fn device_number(old: u32, new: u32) -> (u32, u32) {
    match old {
        0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
        _ => ((old >> 8) & 0xff, old & 0xff),
    }
}

/// The checksum, over the whole inode with the checksum itself as zeros.
fn check(bytes: &[u8], seed: u32, extra: usize, what: &str) -> Result<(), Error> {
    let f = Fields::new(bytes, what);
    let mut found = crc(seed, &[f.slice(0, 0x7c)?, &[0; 2], f.slice(0x7e, 2)?]);
    let low = u32::from(f.le16(0x7c)?);
    let same = if bytes.len() > BASE_BYTES {
        found = crc(found, &[f.slice(0x80, 2)?]);
        if extra >= 4 {
            found = crc(found, &[&[0; 2], f.slice(0x84, bytes.len() - 0x84)?]);
            found == low | u32::from(f.le16(0x82)?) << 16
        } else {
            found = crc(found, &[f.slice(0x82, bytes.len() - 0x82)?]);
            found & 0xffff == low
        }
    } else {
        found & 0xffff == low
    };
    match same {
        true => Ok(()),
        false => Err(Error::damaged(format!("{what} has a wrong checksum"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038() {
        assert_eq!(time(-1i32 as u32, 0).seconds, -1);
        assert_eq!(time(0x8000_0000, 1).seconds, 0x8000_0000);
        assert_eq!(time(5, 7 << 2 | 2), Time { seconds: 5 + (2 << 32), nanos: 7 });
    }

    #[test]
    fn numbers_of_devices() {
        assert_eq!(device_number(0x0103, 0), (1, 3));
        assert_eq!(device_number(0, 0x0110_3507), (0x35, 0x1107));
    }
}
