//! Master boot records: four entries, one of which may lead to a chain of further ones ("Linux" `block/partitions/msdos.c` and
//! the Wikipedia article on extended boot records name the same layout).

use super::{PartitionInfo, types};
use crate::fields::Fields;
use crate::{Error, Media};

const SECTOR_BYTES: u64 = 512;
/// Where the disk's identifier stands.
const DISK_ID_AT: u64 = 440;
const ENTRIES_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
/// How many logical partitions are followed. Linux takes 255 partitions of a disk at most, all together.
const LOGICAL_MAX: u32 = 251;
/// The type of the one entry that stands before a GUID partition table.
pub(super) const PROTECTIVE: u8 = 0xee;

/// An entry with a length, in bytes on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) info: PartitionInfo,
    pub(super) len: u64,
    pub(super) kind: u8,
}

impl Part {
    pub(super) fn is_extended(&self) -> bool {
        is_extended(self.kind)
    }

    /// Whether a byte of the device lies in it.
    pub(super) fn holds(&self, at: u64) -> bool {
        let inside = at.checked_sub(self.info.start_bytes);
        self.kind != PROTECTIVE && inside.is_some_and(|inside| inside < self.len)
    }
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// The partitions of a table, and what was wrong with its chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) parts: Vec<Part>,
    pub(super) errors: Vec<String>,
}

/// An entry as it lies on the disk, in sectors.
#[derive(Debug, Clone, Copy)]
struct Raw {
    boot: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

/// The four entries of the sector at `offset`, or `None` if it is no such record.
fn entries(media: &Media, offset: u64) -> Result<Option<[Raw; 4]>, Error> {
    let what = format!("the boot record at byte {offset}");
    let sector = media.bytes(offset, SECTOR_BYTES as usize, &what)?;
    let fields = Fields::new(&sector, &what);
    if fields.le16(510)? != 0xaa55 {
        return Ok(None);
    }
    let mut list = [Raw { boot: 0, kind: 0, start: 0, sectors: 0 }; 4];
    for (n, raw) in list.iter_mut().enumerate() {
        let at = ENTRIES_AT + n * ENTRY_BYTES;
        *raw = Raw {
            boot: fields.u8(at)?,
            kind: fields.u8(at + 4)?,
            start: fields.le32(at + 8)?,
            sectors: fields.le32(at + 12)?,
        };
    }
    Ok(Some(list))
}

/// Reads the table at the start of a device. `None` if there is none: no signature, entries that cannot be such, or none at
/// all with a length.
pub(super) fn read(media: &Media) -> Result<Option<Table>, Error> {
    if media.size_bytes() < SECTOR_BYTES {
        return Ok(None);
    }
    let Some(list) = entries(media, 0)? else { return Ok(None) };
    // Code and texts of boot sectors lie where the entries would be; the mark of the active one is 0 or 0x80.
    if list.iter().any(|raw| raw.boot & 0x7f != 0) {
        return Ok(None);
    }
    let starts = |raw: &Raw| u64::from(raw.start) * SECTOR_BYTES < media.size_bytes();
    if !list.iter().any(|raw| raw.kind != 0 && raw.sectors != 0 && starts(raw)) {
        return Ok(None);
    }
    let mut table = Table::default();
    for (number, raw) in (1..).zip(list) {
        if raw.kind != 0 && raw.sectors != 0 {
            table.parts.push(part(number, raw, 0));
        }
    }
    let extended = table.parts.iter().find(|part| part.is_extended()).cloned();
    if let Some(extended) = extended {
        logical(media, &extended, &mut table);
    }
    name(media, &mut table)?;
    Ok(Some(table))
}

/// Gives partitions the identifiers that Linux makes of the disk's and their numbers.
fn name(media: &Media, table: &mut Table) -> Result<(), Error> {
    let what = "the disk's identifier";
    let bytes = media.bytes(DISK_ID_AT, 4, what)?;
    let disk = Fields::new(&bytes, what).le32(0)?;
    for part in table.parts.iter_mut().filter(|_| disk != 0) {
        part.info.uuid = Some(format!("{disk:08x}-{:02x}", part.info.number));
    }
    Ok(())
}

fn part(number: u32, raw: Raw, base: u64) -> Part {
    let flags = if raw.boot == 0x80 { vec!["boot".into()] } else { Vec::new() };
    Part {
        info: PartitionInfo {
            number,
            // Three numbers of 32 bits times 512 stay below 2^43.
            start_bytes: (base + u64::from(raw.start)) * SECTOR_BYTES,
            type_name: types::of_mbr(raw.kind),
            name: String::new(),
            flags,
            uuid: None,
        },
        len: u64::from(raw.sectors) * SECTOR_BYTES,
        kind: raw.kind,
    }
}

/// Follows the chain of an extended partition. Each record has one logical partition, counted from the record on, and the
/// next record, counted from the start of the extended partition on.
fn logical(media: &Media, extended: &Part, table: &mut Table) {
    let first = extended.info.start_bytes / SECTOR_BYTES;
    let mut record = first;
    let mut seen = Vec::new();
    for number in 5..5 + LOGICAL_MAX {
        if seen.contains(&record) {
            table.errors.push(format!(
                "The chain of logical partitions comes back to sector {record}; what follows is not known."
            ));
            return;
        }
        seen.push(record);
        let list = match entries(media, record * SECTOR_BYTES) {
            Ok(Some(list)) => list,
            Ok(None) => {
                table.errors.push(format!(
                    "Sector {record}, where a boot record of a logical partition should be, is none."
                ));
                return;
            }
            Err(e) => {
                table.errors.push(format!("The chain of logical partitions is cut: {e}."));
                return;
            }
        };
        // The extended partition may be empty: then its first record has no entry.
        let data = list.iter().take(2).find(|raw| raw.sectors != 0 && !is_extended(raw.kind));
        if let Some(raw) = data.filter(|raw| raw.kind != 0) {
            table.parts.push(part(number, *raw, record));
        }
        let next = list.iter().take(2).find(|raw| raw.sectors != 0 && is_extended(raw.kind));
        let Some(next) = next else { return };
        record = first + u64::from(next.start);
    }
    table.errors.push(format!("There are more than {LOGICAL_MAX} logical partitions."));
}
