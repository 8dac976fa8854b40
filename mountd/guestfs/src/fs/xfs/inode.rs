//! Inodes. Source: "XFS Filesystem Structure", "On-disk Inode".

use super::superblock::Superblock;
use crate::fields::Fields;
use crate::fs::{Attributes, NodeId, NodeKind, Stat, Time};
use crate::{Error, ErrorKind};

/// `di_magic`.
const MAGIC: u16 = 0x494e;
/// `di_flags`.
const REALTIME: u16 = 1;
const IMMUTABLE: u16 = 8;
const APPEND: u16 = 0x10;
/// `di_flags2`.
const BIG_TIME: u64 = 8;
const MANY_EXTENTS: u64 = 0x10;
/// The largest file.
const SIZE_MAX: u64 = i64::MAX as u64;
/// Big times count from here: 2^31 seconds before 1970.
const BIG_TIME_START: i64 = -(1 << 31);

/// How a fork keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Device,
    Local,
    Extents,
    Tree,
}

/// One of the two parts of an inode: content, or attributes.
#[derive(Debug, Clone)]
pub(super) struct Fork {
    pub(super) form: Form,
    pub(super) bytes: Vec<u8>,
    /// Extents in it, where they stand in the inode.
    pub(super) extents: u64,
}

impl Fork {
    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        match self.form {
            Form::Extents => self.extents == 0,
            // The number of attributes stands behind their length.
            Form::Local => self.bytes.get(2) == Some(&0),
            _ => false,
        }
    }
}

/// An inode that is in use.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) kind: NodeKind,
    pub(super) size: u64,
    pub(super) data: Fork,
    pub(super) attributes: Option<Fork>,
    pub(super) realtime: bool,
    mode: u16,
    uid: u32,
    gid: u32,
    links: u32,
    blocks: u64,
    flags: u16,
    times: [Time; 3],
    created: Option<Time>,
}

impl Inode {
    /// Takes an inode apart.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it is not in use, [`ErrorKind::Damaged`].
    pub(super) fn parse(sb: &Superblock, number: u64, bytes: &[u8]) -> Result<Self, Error> {
        let what = format!("inode {number}");
        let f = Fields::new(bytes, &what);
        if f.be16(0)? != MAGIC {
            return Err(Error::not_found(format!("{what} is none")));
        }
        let version = f.u8(4)?;
        let newest = if sb.has_checksums() { 3 } else { 2 };
        if version > newest || version == 0 || (version < 3 && sb.has_checksums()) {
            return Err(Error::damaged(format!("{what} is of version {version}")));
        }
        if version == 3 {
            check(sb, number, bytes, &f, &what)?;
        }
        let mode = f.be16(2)?;
        if mode == 0 {
            return Err(Error::not_found(format!("{what} is not in use")));
        }
        let kind = kind(mode)
            .ok_or_else(|| Error::damaged(format!("{what} is of no known kind (mode {mode:o})")))?;
        let flags2 = if version == 3 { f.be64(120)? } else { 0 };
        let big = flags2 & BIG_TIME != 0;
        let time = |at: usize| time(&f, at, big);
        let size = f.be64(56)?;
        if size > SIZE_MAX {
            return Err(Error::damaged(format!("{what} is {size} bytes long")));
        }
        let (data, attributes) = forks(&f, bytes, (version, flags2), &what)?;
        Ok(Self {
            number,
            kind,
            size,
            data,
            attributes,
            realtime: f.be16(90)? & REALTIME != 0 && kind == NodeKind::File,
            mode: mode & 0o7777,
            uid: f.be32(8)?,
            gid: f.be32(12)?,
            links: if version == 1 { f.be16(6)?.into() } else { f.be32(16)? },
            blocks: f.be64(64)?,
            flags: f.be16(90)?,
            times: [time(32)?, time(40)?, time(48)?],
            created: (version == 3).then(|| time(144)).transpose()?,
        })
    }

    /// That it is a file, and one whose bytes can be read.
    pub(super) fn file(&self) -> Result<&Self, Error> {
        let number = self.number;
        match self.kind {
            NodeKind::File if self.realtime => {
                let text = format!("inode {number} lies on the realtime device, which is not read");
                Err(Error::unsupported(text))
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

    pub(super) fn stat(&self, sb: &Superblock) -> Stat {
        let number = Fields::new(&self.data.bytes, "a device's number").be32(0).unwrap_or(0);
        let device = matches!(self.kind, NodeKind::CharDevice | NodeKind::BlockDevice);
        let sized = matches!(self.kind, NodeKind::File | NodeKind::Directory | NodeKind::Symlink);
        Stat {
            node: NodeId::inode(self.number),
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links,
            size_bytes: if sized { self.size } else { 0 },
            allocated_bytes: self.blocks.saturating_mul(sb.block_bytes.into()),
            accessed: self.times[0],
            modified: self.times[1],
            changed: self.times[2],
            created: self.created,
            // As System V had it: 14 bits and 18 bits.
            device: device.then_some((number >> 18 & 0x3fff, number & 0x3_ffff)),
            attributes: Attributes {
                immutable: self.flags & IMMUTABLE != 0,
                append_only: self.flags & APPEND != 0,
                no_xattrs: self.attributes.as_ref().is_none_or(Fork::is_empty),
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

fn check(
    sb: &Superblock,
    number: u64,
    bytes: &[u8],
    f: &Fields<'_>,
    what: &str,
) -> Result<(), Error> {
    if !super::sums::is_right(bytes, 100) {
        return Err(Error::damaged(format!("{what} has a wrong checksum")));
    }
    if f.be64(152)? != number || f.array::<16>(160)? != sb.meta_uuid {
        return Err(Error::damaged(format!("{what} is another one, or of another file system")));
    }
    Ok(())
}

fn time(f: &Fields<'_>, at: usize, big: bool) -> Result<Time, Error> {
    if big {
        let nanos = f.be64(at)?;
        let seconds = (nanos / 1_000_000_000).cast_signed() + BIG_TIME_START;
        return Ok(Time { seconds, nanos: (nanos % 1_000_000_000) as u32 });
    }
    let seconds = f.be32(at)?.cast_signed().into();
    Ok(Time { seconds, nanos: f.be32(at + 4)?.min(999_999_999) })
}

fn forks(
    f: &Fields<'_>,
    bytes: &[u8],
    (version, flags2): (u8, u64),
    what: &str,
) -> Result<(Fork, Option<Fork>), Error> {
    let start = if version == 3 { 176 } else { 100 };
    let room = bytes.len() - start;
    let offset = usize::from(f.u8(82)?) * 8;
    if offset >= room {
        return Err(Error::damaged(format!("{what} has its attributes beyond its end")));
    }
    let (extents, attribute_extents) = match flags2 & MANY_EXTENTS {
        0 => (f.be32(76)?.into(), f.be16(80)?.into()),
        _ => (f.be64(24)?, u64::from(f.be32(76)?)),
    };
    let form = |number: u8| match number {
        0 => Ok(Form::Device),
        1 => Ok(Form::Local),
        2 => Ok(Form::Extents),
        3 => Ok(Form::Tree),
        other => Err(Error::damaged(format!("{what} has a fork of form {other}"))),
    };
    let len = if offset == 0 { room } else { offset };
    let data = Fork { form: form(f.u8(5)?)?, bytes: f.slice(start, len)?.to_vec(), extents };
    let attributes = match offset {
        0 => None,
        offset => Some(Fork {
            form: form(f.u8(83)?)?,
            bytes: f.slice(start + offset, room - offset)?.to_vec(),
            extents: attribute_extents,
        }),
    };
    Ok((data, attributes))
}
