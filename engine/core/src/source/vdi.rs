//! What a VirtualBox vdi header says: whether it stands on another disk, and how long the file must
//! be. QEMU reads zeros behind the end of a vdi cut short, so the length is checked here. Field
//! places are those of VirtualBox's VDIHEADER1PLUS.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::bytes::{le32, read_up_to};
use crate::error::{Error, ErrorKind, Result};

const HEADER_BYTES: usize = 512;
const TYPE_DYNAMIC: u32 = 1;
const TYPE_STATIC: u32 = 2;
/// UUIDs of the disk below: uuidLinkage and uuidParentModify, zero where there is none.
const PARENT_UUIDS: std::ops::Range<usize> = 424..456;

/// Refuses differencing images and files that are shorter than their blocks.
pub(crate) fn check(path: &Path, file: &File) -> Result<()> {
    let mut head = [0u8; HEADER_BYTES];
    let got = read_up_to(path, file, 0, &mut head)?;
    let damaged =
        |what: &str| Error::new(ErrorKind::Damaged, format!("{}: {what}", path.display()));
    if got < HEADER_BYTES {
        return Err(damaged("the vdi header is cut short"));
    }
    let field = |at| le32(&head, at).map(u64::from).unwrap_or_default();
    let kind = le32(&head, 76).unwrap_or_default();
    let has_parent = head.get(PARENT_UUIDS).is_some_and(|ids| ids.iter().any(|b| *b != 0));
    if has_parent || ![TYPE_DYNAMIC, TYPE_STATIC].contains(&kind) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is a vdi on top of another disk, which is not opened on its word: make a \
                 whole disk of it first (VBoxManage clonemedium)",
                path.display()
            ),
        ));
    }
    let (data_at, block_bytes, blocks) = (field(344), field(376), field(388));
    let length = file.metadata().map_err(|e| Error::io("look at", path, e))?.size();
    let end = block_bytes.checked_mul(blocks).and_then(|b| b.checked_add(data_at));
    if end.is_none_or(|end| end > length) {
        return Err(damaged("the file is shorter than its vdi header says: it is cut short"));
    }
    Ok(())
}
