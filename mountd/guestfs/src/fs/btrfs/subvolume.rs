//! Roots of trees: subvolumes, snapshots, and the tree of checksums. Source: btrfs documentation, "On-disk format", `ROOT_ITEM`.

use super::superblock::Root;
use super::tree::{Key, find_last, key_type};
use super::volume::Volume;
use crate::Error;

/// The tree at the top.
pub(super) const TOP: u64 = 5;
/// The tree of checksums of content.
pub(super) const SUMS: u64 = 7;
/// The inode of the root directory of every subvolume, and the lowest inode and subvolume of users.
pub(super) const ROOT_INODE: u64 = 256;
/// Numbers from here on are the format's own.
const LAST_FREE: u64 = u64::MAX - 255;

/// Whether a tree of this number is a subvolume.
pub(super) fn is_subvolume(id: u64) -> bool {
    id == TOP || (ROOT_INODE..=LAST_FREE).contains(&id)
}

/// The root of tree `id`.
///
/// # Errors
/// `NotFound` if there is none, or it is being deleted.
pub(super) fn root(volume: &Volume, root_tree: Root, id: u64) -> Result<Root, Error> {
    // A snapshot's item has the generation it was made in as offset.
    let key = Key::new(id, key_type::ROOT, u64::MAX);
    let item = find_last(volume, root_tree, key)?
        .ok_or_else(|| Error::not_found(format!("there is no tree {id}")))?;
    let f = item.fields();
    if f.le32(216)? == 0 {
        return Err(Error::not_found(format!("subvolume {id} is being deleted")));
    }
    Ok(Root { generation: f.le64(160)?, address: f.le64(176)?, level: f.u8(238)? })
}
