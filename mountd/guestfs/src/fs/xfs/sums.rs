//! Checksums and the marks of blocks of version 5.
//! Source: "XFS Filesystem Structure", "XFS Self-Describing Metadata".

use super::superblock::Superblock;
use crate::Error;
use crate::fields::Fields;

/// Whether the CRC-32C at `at` is that of all bytes with itself as zeros. It is the one number here that is little-endian.
pub(super) fn is_right(bytes: &[u8], at: usize) -> bool {
    use crc_fast::{CrcAlgorithm, Digest};
    let (Some(head), Some(stored), Some(rest)) =
        (bytes.get(..at), bytes.get(at..at + 4), bytes.get(at + 4..))
    else {
        return false;
    };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(&[0; 4]);
    digest.update(rest);
    stored == (digest.finalize() as u32).to_le_bytes()
}

/// Where a block of one kind has its marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) sum: usize,
    pub(super) place: usize,
    pub(super) uuid: usize,
    pub(super) owner: usize,
}

/// Blocks of entries of directories: `xfs_dir3_blk_hdr`.
pub(super) const DIR_DATA: Marks = Marks { sum: 4, place: 8, uuid: 24, owner: 40 };
/// Blocks of indexes, of directories and attributes: `xfs_da3_blkinfo`.
pub(super) const INDEX: Marks = Marks { sum: 12, place: 16, uuid: 32, owner: 48 };
/// Blocks of extents: `xfs_btree_block`, long form.
pub(super) const EXTENTS: Marks = Marks { sum: 64, place: 24, uuid: 40, owner: 56 };
/// Values of attributes and targets of links: `xfs_attr3_rmt_hdr`, `xfs_dsymlink_hdr`.
pub(super) const REMOTE: Marks = Marks { sum: 12, place: 40, uuid: 16, owner: 32 };

/// That a block of version 5 is what was written to this place for this inode.
pub(super) fn check(
    sb: &Superblock,
    bytes: &[u8],
    marks: Marks,
    (place_bytes, owner): (u64, u64),
    what: &str,
) -> Result<(), Error> {
    let f = Fields::new(bytes, what);
    let wrong = |why: &str| Err(Error::damaged(format!("{what}, at byte {place_bytes}, {why}")));
    if !is_right(bytes, marks.sum) {
        return wrong("has a wrong checksum");
    }
    if f.be64(marks.place)? != place_bytes / 512 {
        return wrong("was written for another place");
    }
    if f.array::<16>(marks.uuid)? != sb.meta_uuid {
        return wrong("is of another file system");
    }
    if f.be64(marks.owner)? != owner {
        return wrong("is of another inode");
    }
    Ok(())
}
