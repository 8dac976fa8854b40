//! Access control lists as `getxattr(2)` gives them. Source: Linux `include/uapi/linux/posix_acl_xattr.h`.

use crate::Error;
use crate::fields::Fields;

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
/// `ACL_UNDEFINED_ID`.
const NOBODY: u32 = u32::MAX;

/// `e_tag`: the entry is of the user with this number.
const USER: u16 = 2;
/// `e_tag`: of the group with this number.
const GROUP: u16 = 8;

/// A list in the kernel's form.
#[derive(Debug)]
pub(crate) struct AclBytes(Vec<u8>);

impl AclBytes {
    pub(crate) fn new() -> Self {
        Self(VERSION.to_le_bytes().to_vec())
    }

    /// Adds an entry. Those that are of nobody by number have none, whatever `id` is.
    pub(crate) fn push(&mut self, tag: u16, permissions: u16, id: u32) {
        let id = if has_id(tag) { id } else { NOBODY };
        self.0.extend(tag.to_le_bytes());
        self.0.extend(permissions.to_le_bytes());
        self.0.extend(id.to_le_bytes());
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn has_id(tag: u16) -> bool {
    matches!(tag, USER | GROUP)
}

/// An ACL as ext2 to ext4 keep it: version 1, entries of 8 bytes, or of 4 where they have no number.
/// Source: Linux `fs/ext4/acl.h`, `ext4_acl_entry`.
pub(crate) fn from_ext(value: &[u8], what: &str) -> Result<Vec<u8>, Error> {
    let f = Fields::new(value, what);
    if f.le32(0)? != 1 {
        return Err(Error::damaged(format!("{what} is no access control list")));
    }
    let mut acl = AclBytes::new();
    let mut at = 4;
    while at < value.len() {
        let (tag, permissions) = (f.le16(at)?, f.le16(at + 2)?);
        let id = if has_id(tag) { f.le32(at + 4)? } else { 0 };
        at += if has_id(tag) { 8 } else { 4 };
        acl.push(tag, permissions, id);
    }
    Ok(acl.into_bytes())
}
