//! GUID partition tables (UEFI specification, section 5.3).

use crc_fast::{CrcAlgorithm, checksum};

use super::{PartitionInfo, types};
use std::borrow::Cow;

use crate::fields::Fields;
use crate::{Error, Media};

const MAGIC: &[u8; 8] = b"EFI PART";
/// Sizes of sectors a table may count in.
const SECTORS: [u64; 2] = [512, 4096];
/// The header as of revision 1.0, and the longest that is read.
const HEADER_BYTES: usize = 92;
/// The array of entries has 16 KiB as a rule; more than this is no honest table.
const ENTRIES_BYTES_MAX: u64 = 1 << 20;
const ENTRY_BYTES: u64 = 128;
const NAME_AT: usize = 56;
const NAME_BYTES: usize = 72;

/// A partition, in bytes on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) info: PartitionInfo,
    pub(super) len: u64,
}

/// A table that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) guid: String,
    pub(super) parts: Vec<Part>,
    pub(super) notes: Vec<String>,
}

/// Why there is no table.
#[derive(Debug)]
pub(super) enum Missing {
    /// Nothing looks like one.
    None,
    /// Both copies are damaged, or the only one.
    Damaged(Error),
}

/// Reads the first table, or if it is damaged the second one at the end of the device.
pub(super) fn read(media: &Media) -> Result<Table, Missing> {
    let mut damage = None;
    for sector in SECTORS {
        let Some(last) = (media.size_bytes() / sector).checked_sub(1) else { continue };
        match table(media, sector, 1) {
            Ok(Some(table)) => return Ok(table),
            Ok(None) => {}
            Err(e) => damage = Some((sector, e)),
        }
        match table(media, sector, last) {
            Ok(Some(mut table)) => {
                let why = damage.map_or("it is not there".to_owned(), |(_, e)| e.to_string());
                table.notes.push(format!(
                    "The first partition table cannot be used ({why}); this is the copy at the end of the disk."
                ));
                return Ok(table);
            }
            Ok(None) => {}
            Err(e) => damage = damage.or(Some((sector, e))),
        }
    }
    Err(damage.map_or(Missing::None, |(_, e)| Missing::Damaged(e)))
}

/// The table whose header is in that sector; `None` if there is none.
fn table(media: &Media, sector: u64, lba: u64) -> Result<Option<Table>, Error> {
    let Some(at) = lba.checked_mul(sector).filter(|at| at + sector <= media.size_bytes()) else {
        return Ok(None);
    };
    let what = format!("the GPT header at byte {at}");
    let header = media.bytes(at, sector as usize, &what)?;
    let fields = Fields::new(&header, &what);
    if &fields.array::<8>(0)? != MAGIC {
        return Ok(None);
    }
    let len = fields.le32(12)? as usize;
    if !(HEADER_BYTES..=header.len()).contains(&len) {
        return Err(Error::damaged(format!("{what} says it has {len} bytes")));
    }
    let mut summed = header[..len].to_vec();
    summed[16..20].fill(0);
    let sum = checksum(CrcAlgorithm::Crc32IsoHdlc, &summed) as u32;
    if sum != fields.le32(16)? {
        return Err(Error::damaged(format!("the checksum of {what} is wrong")));
    }
    if fields.le64(24)? != lba {
        return Err(Error::damaged(format!("{what} says it is in sector {}", fields.le64(24)?)));
    }
    let guid = guid(&fields.array(56)?);
    let parts = entries(media, sector, &fields)?;
    let mut notes = Vec::new();
    let last = fields.le64(32)?.max(lba);
    if last.checked_mul(sector).is_none_or(|end| end >= media.size_bytes()) {
        notes.push("The disk is shorter than its partition table says.".to_owned());
    }
    Ok(Some(Table { guid, parts, notes }))
}

fn entries(media: &Media, sector: u64, header: &Fields<'_>) -> Result<Vec<Part>, Error> {
    let (lba, count, size) = (header.le64(72)?, header.le32(80)?, header.le32(84)?);
    let (count, size) = (u64::from(count), u64::from(size));
    let len = count * size;
    let good = size >= ENTRY_BYTES && size % 8 == 0 && len <= ENTRIES_BYTES_MAX;
    let Some(at) = lba.checked_mul(sector).filter(|_| good) else {
        let text = format!("a GPT with {count} entries of {size} bytes from sector {lba} on");
        return Err(Error::damaged(format!("{text} is none")));
    };
    let what = format!("the GPT entries at byte {at}");
    let bytes = media.bytes(at, len as usize, &what)?;
    if checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes) as u32 != header.le32(88)? {
        return Err(Error::damaged(format!("the checksum of {what} is wrong")));
    }
    let mut parts = Vec::new();
    for (number, entry) in (1..).zip(bytes.chunks_exact(size as usize)) {
        let fields = Fields::new(entry, &what);
        if fields.array::<16>(0)? == [0; 16] {
            continue;
        }
        let (first, last) = (fields.le64(32)?, fields.le64(40)?);
        let start = first.checked_mul(sector);
        let len = last.checked_sub(first).and_then(|n| n.checked_add(1)?.checked_mul(sector));
        let (Some(start_bytes), Some(len)) = (start, len) else {
            let text = format!("entry {number} of {what} goes from sector {first} to {last}");
            return Err(Error::damaged(text));
        };
        let kind = guid(&fields.array(0)?);
        let info = PartitionInfo {
            number,
            start_bytes,
            type_name: types::of_gpt(&kind),
            name: name(fields.slice(NAME_AT, NAME_BYTES)?),
            flags: flags(&kind, fields.le64(48)?),
            uuid: Some(guid(&fields.array(16)?).to_lowercase()),
        };
        parts.push(Part { info, len });
    }
    Ok(parts)
}

/// A GUID as it is written: the first three parts are little-endian.
fn guid(bytes: &[u8; 16]) -> String {
    let mut turned = *bytes;
    turned[..4].reverse();
    turned[4..6].reverse();
    turned[6..8].reverse();
    super::probe::uuid(&turned).to_uppercase()
}

/// UTF-16 up to a NUL; what is no text comes as U+FFFD, and so do control characters.
fn name(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| clean(c.unwrap_or(char::REPLACEMENT_CHARACTER)))
        .collect()
}

/// Bits all types share (table 5.8), and those of Microsoft's basic data.
fn flags(kind: &str, bits: u64) -> Vec<Cow<'static, str>> {
    const SHARED: [(u32, &str); 2] = [(0, "required"), (2, "boot")];
    const MICROSOFT: [(u32, &str); 4] =
        [(60, "read-only"), (61, "shadow-copy"), (62, "hidden"), (63, "no-automount")];
    let microsoft: &[_] = if kind.starts_with("EBD0A0A2-") { &MICROSOFT } else { &[] };
    let all = SHARED.iter().chain(microsoft);
    all.filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| (*name).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_guids() {
        let utf16 = |text: &str| -> Vec<u8> {
            text.encode_utf16().chain([0, 65]).flat_map(u16::to_le_bytes).collect()
        };
        assert_eq!(name(&utf16("EFI \u{fc}\u{1f600}")), "EFI \u{fc}\u{1f600}");
        assert_eq!(name(&utf16("a\u{1b}[31m")), "a\u{fffd}[31m");
        assert_eq!(name(&[0x00, 0xd8, 65, 0]), "\u{fffd}A");
        let bytes = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9,
            0x3b,
        ];
        assert_eq!(types::of_gpt(&guid(&bytes)), "EFI system");
        assert_eq!(types::of_gpt("X"), "X");
    }
}
