//! Extended attributes: in the inode, in blocks, values in blocks of their own.
//! Source: "XFS Filesystem Structure", "Extended Attributes".

use std::collections::HashSet;

use super::Xfs;
use super::bmap::{self, Place};
use super::index::{self, Kind, LEVELS_MAX};
use super::inode::{Fork, Form, Inode};
use super::sums;
use crate::fields::Fields;
use crate::fs::{Xattr, acl};
use crate::{Error, ErrorKind};

/// Flags of an attribute.
mod flag {
    pub(super) const LOCAL: u8 = 1;
    pub(super) const TRUSTED: u8 = 2;
    pub(super) const SECURE: u8 = 4;
    /// A name of the file in a directory above.
    pub(super) const PARENT: u8 = 8;
    pub(super) const INCOMPLETE: u8 = 0x80;
}

/// Most bytes of one value (XFS_XATTR_SIZE_MAX).
const VALUE_MAX: usize = 64 << 10;
/// Most bytes of all attributes of a file.
const TOTAL_MAX: usize = 16 << 20;
/// Most blocks of attributes of a file.
const BLOCKS_MAX: usize = 16 << 10;
/// The head of each block of a value.
const REMOTE_HEAD: usize = 56;

/// An attribute as it stands on the disk.
struct Found {
    flags: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// All attributes a user sees.
pub(super) fn all(fs: &Xfs, inode: &Inode) -> Result<Vec<Xattr>, Error> {
    let Some(fork) = &inode.attributes else { return Ok(Vec::new()) };
    let mut gathered =
        Gathered { list: Vec::new(), names: HashSet::new(), total: 0, number: inode.number };
    match fork.form {
        Form::Local => short(fork, inode, &mut gathered)?,
        // All were taken away again.
        Form::Extents if fork.extents == 0 => {}
        Form::Extents | Form::Tree => blocks(fs, fork, inode, &mut gathered)?,
        Form::Device => {
            let text = format!("the attributes of inode {} are a device", inode.number);
            return Err(Error::damaged(text));
        }
    }
    Ok(gathered.list)
}

struct Gathered {
    list: Vec<Xattr>,
    names: HashSet<Vec<u8>>,
    total: usize,
    number: u64,
}

impl Gathered {
    fn add(&mut self, found: Found) -> Result<(), Error> {
        if found.flags & (flag::INCOMPLETE | flag::PARENT) != 0 {
            return Ok(());
        }
        let own = |name: &[u8]| found.flags & flag::TRUSTED != 0 && found.name == name;
        let (name, value) = if own(b"SGI_ACL_FILE") {
            (b"system.posix_acl_access".to_vec(), acl(&found.value, self.number)?)
        } else if own(b"SGI_ACL_DEFAULT") {
            (b"system.posix_acl_default".to_vec(), acl(&found.value, self.number)?)
        } else {
            let space: &[u8] = match found.flags & (flag::TRUSTED | flag::SECURE) {
                flag::TRUSTED => b"trusted.",
                flag::SECURE => b"security.",
                _ => b"user.",
            };
            ([space, &found.name].concat(), found.value)
        };
        self.total += name.len() + value.len();
        if self.total > TOTAL_MAX {
            let text = format!("inode {} has too many attributes", self.number);
            return Err(Error::new(ErrorKind::Limit, text));
        }
        if !self.names.insert(name.clone()) {
            let text = format!("inode {} has an attribute twice", self.number);
            return Err(Error::damaged(text));
        }
        self.list.push(Xattr { name, value });
        Ok(())
    }
}

/// An access control list as XFS keeps it: entries of 12 bytes.
fn acl(value: &[u8], number: u64) -> Result<Vec<u8>, Error> {
    let what = format!("the access control list of inode {number}");
    let f = Fields::new(value, &what);
    let mut list = acl::AclBytes::new();
    for i in 0..f.be32(0)? as usize {
        let at = i.saturating_mul(12).saturating_add(4);
        list.push(f.be32(at)? as u16, f.be16(at + 8)?, f.be32(at + 4)?);
    }
    Ok(list.into_bytes())
}

/// Attributes in the inode.
fn short(fork: &Fork, inode: &Inode, to: &mut Gathered) -> Result<(), Error> {
    let what = format!("the attributes in inode {}", inode.number);
    let f = Fields::new(&fork.bytes, &what);
    let count = f.u8(2)?;
    let mut at = 4;
    for _ in 0..count {
        let (name_len, value_len) = (usize::from(f.u8(at)?), usize::from(f.u8(at + 1)?));
        let flags = f.u8(at + 2)?;
        let name = f.slice(at + 3, name_len)?.to_vec();
        let value = f.slice(at + 3 + name_len, value_len)?.to_vec();
        to.add(Found { flags, name, value })?;
        at += 3 + name_len + value_len;
    }
    Ok(())
}

/// Attributes in blocks: the leaves from the first on.
fn blocks(fs: &Xfs, fork: &Fork, inode: &Inode, to: &mut Gathered) -> Result<(), Error> {
    let mut number = 0u64;
    let mut level = None;
    for _ in 0..BLOCKS_MAX {
        let what = format!("block {number} of the attributes of inode {}", inode.number);
        let bytes = block(fs, fork, inode, number, &what)?;
        let f = Fields::new(&bytes, &what);
        let head = index::head(&f, fs.sb.has_checksums(), bytes.len(), &what)?;
        match head.kind {
            Kind::Node
                if head.count > 0
                    && (1..=LEVELS_MAX).contains(&head.level)
                    && level.is_none_or(|level| level == head.level) =>
            {
                level = Some(head.level - 1);
                number = f.be32(head.entries + 4)?.into();
            }
            Kind::AttributeLeaf if level.unwrap_or(0) == 0 => {
                level = Some(0);
                leaf(fs, fork, inode, (&f, &head, &what), to)?;
                if head.forward == 0 {
                    return Ok(());
                }
                number = head.forward.into();
            }
            _ => return Err(Error::damaged(format!("{what} is at the wrong level"))),
        }
    }
    let text =
        format!("the attributes of inode {} are in more than {BLOCKS_MAX} blocks", inode.number);
    Err(Error::damaged(text))
}

fn place(fs: &Xfs, fork: &Fork, inode: &Inode, number: u64, what: &str) -> Result<u64, Error> {
    match bmap::run(fs, inode.number, fork, number)?.place {
        Place::At(place) => Ok(place),
        _ => Err(Error::damaged(format!("{what} is not there"))),
    }
}

fn block(fs: &Xfs, fork: &Fork, inode: &Inode, number: u64, what: &str) -> Result<Vec<u8>, Error> {
    let place = place(fs, fork, inode, number, what)?;
    let bytes = fs.media.bytes(place, fs.sb.block_bytes as usize, what)?;
    if fs.sb.has_checksums() {
        sums::check(&fs.sb, &bytes, sums::INDEX, (place, inode.number), what)?;
    }
    Ok(bytes)
}

fn leaf(
    fs: &Xfs,
    fork: &Fork,
    inode: &Inode,
    (f, head, what): (&Fields<'_>, &index::Head, &str),
    to: &mut Gathered,
) -> Result<(), Error> {
    for i in 0..head.count {
        let entry = head.entries + i * 8;
        let (at, flags) = (usize::from(f.be16(entry + 4)?), f.u8(entry + 6)?);
        // One that is being written has no value to be read.
        if flags & flag::INCOMPLETE != 0 {
            continue;
        }
        let found = if flags & flag::LOCAL != 0 {
            let (value_len, name_len) = (usize::from(f.be16(at)?), usize::from(f.u8(at + 2)?));
            let name = f.slice(at + 3, name_len)?.to_vec();
            Found { flags, name, value: f.slice(at + 3 + name_len, value_len)?.to_vec() }
        } else {
            let (first, len) = (u64::from(f.be32(at)?), f.be32(at + 4)? as usize);
            let name = f.slice(at + 9, f.u8(at + 8)?.into())?.to_vec();
            if len > VALUE_MAX {
                return Err(Error::damaged(format!("{what} has a value of {len} bytes")));
            }
            Found { flags, name, value: remote(fs, fork, inode, first, len)? }
        };
        to.add(found)?;
    }
    Ok(())
}

/// A value in blocks of its own.
fn remote(fs: &Xfs, fork: &Fork, inode: &Inode, first: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut value = Vec::with_capacity(len);
    let mut number = first;
    while value.len() < len {
        let what = format!("block {number} of a value of inode {}", inode.number);
        let place = place(fs, fork, inode, number, &what)?;
        let bytes = fs.media.bytes(place, fs.sb.block_bytes as usize, &what)?;
        let part = match fs.sb.has_checksums() {
            false => &bytes[..],
            true => {
                sums::check(&fs.sb, &bytes, sums::REMOTE, (place, inode.number), &what)?;
                let f = Fields::new(&bytes, &what);
                let (offset, used) = (f.be32(4)? as usize, f.be32(8)? as usize);
                if f.array::<4>(0)? != *b"XARM" || offset != value.len() || used == 0 {
                    return Err(Error::damaged(format!("{what} is not its part")));
                }
                f.slice(REMOTE_HEAD, used)?
            }
        };
        value.extend(part.iter().take(len - value.len()));
        number += 1;
    }
    Ok(value)
}
