//! Extended attributes: in the inode, in a block, in inodes of their own.
//! Source: Linux `Documentation/filesystems/ext4/attributes.rst`.

use super::Ext;
use super::inode::{Inode, flag};
use super::sums::crc;
use crate::fields::Fields;
use crate::fs::{Xattr, acl};
use crate::{Error, ErrorKind};

/// `h_magic`, in the inode and in a block.
const MAGIC: u32 = 0xea02_0000;
/// The header of a block.
const BLOCK_HEADER: usize = 32;
/// An entry without its name.
const ENTRY_BYTES: usize = 16;
/// Most bytes of one value in an inode of its own (EXT4_XATTR_SIZE_MAX is 16 MiB), and of all together.
const TOTAL_MAX: usize = 16 << 20;

/// `e_name_index`.
mod index {
    pub(super) const USER: u8 = 1;
    pub(super) const ACL_ACCESS: u8 = 2;
    pub(super) const ACL_DEFAULT: u8 = 3;
    pub(super) const TRUSTED: u8 = 4;
    pub(super) const SECURITY: u8 = 6;
    pub(super) const SYSTEM: u8 = 7;
    pub(super) const RICHACL: u8 = 8;
    pub(super) const HURD: u8 = 10;
}

/// The name of the attribute that holds what has no room in an inode with content in it.
const INLINE: &[u8] = b"data";

/// An attribute as it stands on the disk.
struct Found {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// All attributes a user sees.
pub(super) fn all(fs: &Ext, inode: &Inode) -> Result<Vec<Xattr>, Error> {
    let mut list = Vec::new();
    let mut total = 0;
    each(fs, inode, &mut |found: Found| {
        let Some(name) = full_name(found.index, &found.name) else { return Ok(()) };
        let value = match found.index {
            index::ACL_ACCESS | index::ACL_DEFAULT => {
                let what = format!("the access control list of inode {}", inode.number);
                acl::from_ext(&found.value, &what)?
            }
            _ => found.value,
        };
        total += name.len() + value.len();
        if total > TOTAL_MAX {
            let text = format!("inode {} has too many attributes", inode.number);
            return Err(Error::new(ErrorKind::Limit, text));
        }
        let xattr = Xattr { name, value };
        match list.iter().any(|other: &Xattr| other.name == xattr.name) {
            true => Err(Error::damaged(format!("inode {} has an attribute twice", inode.number))),
            false => {
                list.push(xattr);
                Ok(())
            }
        }
    })?;
    Ok(list)
}

/// What an inode with content in it has beyond its area; empty if there is no more.
pub(super) fn inline_rest(fs: &Ext, inode: &Inode) -> Result<Vec<u8>, Error> {
    let mut rest = Vec::new();
    in_inode(fs, inode, &mut |found: Found| {
        if found.index == index::SYSTEM && found.name == INLINE {
            rest = found.value;
        }
        Ok(())
    })?;
    Ok(rest)
}

fn full_name(number: u8, name: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match number {
        index::USER => b"user.",
        index::ACL_ACCESS => return Some(b"system.posix_acl_access".to_vec()),
        index::ACL_DEFAULT => return Some(b"system.posix_acl_default".to_vec()),
        index::TRUSTED => b"trusted.",
        index::SECURITY => b"security.",
        index::RICHACL => return Some(b"system.richacl".to_vec()),
        index::HURD => b"gnu.",
        // The content of files, keys of encryption: not for users.
        _ => return None,
    };
    Some([prefix, name].concat())
}

type Each<'a> = dyn FnMut(Found) -> Result<(), Error> + 'a;

fn each(fs: &Ext, inode: &Inode, give: &mut Each<'_>) -> Result<(), Error> {
    in_inode(fs, inode, give)?;
    if inode.xattr_block == 0 {
        return Ok(());
    }
    let what = format!("the attributes of inode {} in block {}", inode.number, inode.xattr_block);
    fs.blocks.check_run(inode.xattr_block, 1, &what)?;
    let bytes = fs.blocks.block(inode.xattr_block, &what)?;
    let f = Fields::new(&bytes, &what);
    if f.le32(0)? != MAGIC || f.le32(8)? != 1 {
        return Err(Error::damaged(format!("{what} are none")));
    }
    if fs.sb.has_checksums() {
        let number = inode.xattr_block.to_le_bytes();
        let parts = [&number[..], f.slice(0, 0x10)?, &[0; 4], f.slice(0x14, bytes.len() - 0x14)?];
        if crc(fs.sb.seed, &parts) != f.le32(0x10)? {
            return Err(Error::damaged(format!("{what} have a wrong checksum")));
        }
    }
    let area = Area { bytes: &bytes, entries: BLOCK_HEADER, values: 0, what: &what };
    area.each(fs, give)
}

/// Whether attributes begin in what follows the fields of an inode.
pub(super) fn are_in(tail: &[u8]) -> bool {
    tail.first_chunk() == Some(&MAGIC.to_le_bytes())
        && tail.get(4..8).is_some_and(|first| first != [0; 4])
}

fn in_inode(fs: &Ext, inode: &Inode, give: &mut Each<'_>) -> Result<(), Error> {
    let what = format!("the attributes in inode {}", inode.number);
    if !are_in(&inode.tail) {
        return Ok(());
    }
    Area { bytes: &inode.tail, entries: 4, values: 4, what: &what }.each(fs, give)
}

/// Attributes in one piece.
struct Area<'a> {
    bytes: &'a [u8],
    /// Where entries begin.
    entries: usize,
    /// What places of values are counted from.
    values: usize,
    what: &'a str,
}

impl Area<'_> {
    fn each(&self, fs: &Ext, give: &mut Each<'_>) -> Result<(), Error> {
        let f = Fields::new(self.bytes, self.what);
        let mut at = self.entries;
        // The end is marked by four zeros, or by the end of the area.
        while at + 4 <= self.bytes.len() && f.le32(at)? != 0 {
            let (name_len, number) = (usize::from(f.u8(at)?), f.u8(at + 1)?);
            let (place, inode) = (usize::from(f.le16(at + 2)?), f.le32(at + 4)?);
            let len = f.le32(at + 8)? as usize;
            let name = f.slice(at + ENTRY_BYTES, name_len)?.to_vec();
            let value = match inode {
                0 if len == 0 => Vec::new(),
                0 => f.slice(self.values + place, len)?.to_vec(),
                inode => value_of(fs, inode, len, self.what)?,
            };
            if name.contains(&0) {
                return Err(Error::damaged(format!("{} have a name with a NUL", self.what)));
            }
            give(Found { index: number, name, value })?;
            at += (ENTRY_BYTES + name_len).next_multiple_of(4);
        }
        Ok(())
    }
}

/// A value in an inode of its own.
fn value_of(fs: &Ext, number: u32, len: usize, what: &str) -> Result<Vec<u8>, Error> {
    let inode = fs.inode(number.into())?;
    if !inode.has(flag::EA_INODE) || inode.size != len as u64 || len > TOTAL_MAX {
        let text = format!("{what} have a value of {len} bytes in inode {number}, which has none");
        return Err(Error::damaged(text));
    }
    let mut value = vec![0; len];
    fs.fill(&inode, 0, &mut value)?;
    Ok(value)
}
