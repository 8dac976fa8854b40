//! Whether a vhdx stands on a parent disk: the "has parent" bit of its file parameters, reached by
//! way of the region table and the metadata table ([MS-VHDX] 2.2.3 and 2.6). QEMU itself checks
//! that every block lies inside the file.

use std::fs::File;
use std::path::Path;

use super::bytes::{le16, le32, le64, read_up_to};
use crate::error::{Error, ErrorKind, Result};

/// The first of the two region tables ([MS-VHDX] 2.2).
const REGION_TABLE_AT: u64 = 192 * 1024;
const REGION_TABLE_BYTES: usize = 64 * 1024;
/// Both tables hold at most this many entries ([MS-VHDX] 2.2.3.1, 2.6.1.1).
const ENTRIES_MAX: usize = 2047;
const ENTRY_BYTES: usize = 32;
const METADATA_REGION: [u8; 16] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
const FILE_PARAMETERS: [u8; 16] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const HAS_PARENT: u32 = 1 << 1;

/// Refuses differencing images and tables that make no sense.
pub(crate) fn check(path: &Path, file: &File) -> Result<()> {
    let damaged =
        |what: &str| Error::new(ErrorKind::Damaged, format!("{}: {what}", path.display()));
    let table = read_table(path, file, REGION_TABLE_AT)?;
    if !table.starts_with(b"regi") {
        return Err(damaged("no vhdx region table where it should be"));
    }
    let count = le32(&table, 8).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let entry = find(&table, 16, count, &METADATA_REGION)
        .ok_or_else(|| damaged("the vhdx region table has no metadata region"))?;
    let region = le64(entry, 16).ok_or_else(|| damaged("a short vhdx region entry"))?;

    let table = read_table(path, file, region)?;
    if !table.starts_with(b"metadata") {
        return Err(damaged("no vhdx metadata table where it should be"));
    }
    let count = le16(&table, 10).map_or(usize::MAX, usize::from);
    let entry = find(&table, 32, count, &FILE_PARAMETERS)
        .ok_or_else(|| damaged("the vhdx metadata has no file parameters"))?;
    let place = le32(entry, 16).map(u64::from).and_then(|at| region.checked_add(at));
    let place = place.ok_or_else(|| damaged("the vhdx file parameters lie outside the file"))?;
    let mut parameters = [0u8; 8];
    if read_up_to(path, file, place, &mut parameters)? < parameters.len() {
        return Err(damaged("the vhdx file parameters lie outside the file"));
    }
    if le32(&parameters, 4).unwrap_or_default() & HAS_PARENT != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is a vhdx checkpoint on top of another disk, which is not opened on its word: \
                 merge it into its parent first",
                path.display()
            ),
        ));
    }
    Ok(())
}

fn read_table(path: &Path, file: &File, at: u64) -> Result<Vec<u8>> {
    let mut table = vec![0u8; REGION_TABLE_BYTES];
    let got = read_up_to(path, file, at, &mut table)?;
    table.truncate(got);
    Ok(table)
}

/// The entry that begins with `id` among `count` entries from `first` on.
fn find<'a>(table: &'a [u8], first: usize, count: usize, id: &[u8; 16]) -> Option<&'a [u8]> {
    if count > ENTRIES_MAX {
        return None;
    }
    table.get(first..)?.chunks_exact(ENTRY_BYTES).take(count).find(|entry| entry.starts_with(id))
}
