//! Directories: lists of entries of 32 bytes, the pieces of a long name before the entry it belongs to.

use super::names::{self, Long};
use crate::Error;
use crate::fs::{Time, utf16};

pub(super) const ENTRY_BYTES: u64 = 32;
/// The format allows no directory more.
pub(super) const BYTES_MAX: u64 = 2 << 20;
/// Attributes of an entry.
pub(super) mod attribute {
    pub(in super::super) const READ_ONLY: u8 = 1;
    pub(in super::super) const HIDDEN: u8 = 2;
    pub(in super::super) const SYSTEM: u8 = 4;
    pub(in super::super) const LABEL: u8 = 8;
    pub(in super::super) const DIRECTORY: u8 = 16;
}
/// The attributes that mark a piece of a long name.
const LONG: u8 = 15;
/// The first byte of an entry: there are no more, and: there is none here.
const END: u8 = 0;
const DELETED: u8 = 0xe5;

/// An entry as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: [u8; 11],
    pub(super) attributes: u8,
    case: u8,
    created: (u8, u16, u16),
    accessed: u16,
    modified: (u16, u16),
    pub(super) cluster: u32,
    pub(super) size_bytes: u32,
}

/// What 32 bytes of a directory are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    End,
    Deleted,
    Piece,
    Label([u8; 11]),
    Entry(Entry),
}

impl Slot {
    /// `wide`: the upper half of a cluster's number is there (FAT32).
    pub(super) fn parse(bytes: &[u8; 32], wide: bool) -> Self {
        let le16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let attributes = bytes[11];
        let name = std::array::from_fn(|i| bytes[i]);
        match bytes[0] {
            END => return Self::End,
            DELETED => return Self::Deleted,
            _ if attributes & 0x3f == LONG => return Self::Piece,
            _ if attributes & attribute::LABEL != 0 => return Self::Label(name),
            _ => {}
        }
        let high = if wide { u32::from(le16(20)) << 16 } else { 0 };
        Self::Entry(Entry {
            name,
            attributes,
            case: bytes[12],
            created: (bytes[13], le16(14), le16(16)),
            accessed: le16(18),
            modified: (le16(22), le16(24)),
            cluster: high | u32::from(le16(26)),
            size_bytes: u32::from(le16(28)) | u32::from(le16(30)) << 16,
        })
    }
}

impl Entry {
    pub(super) fn is_directory(&self) -> bool {
        self.attributes & attribute::DIRECTORY != 0
    }

    /// Whether it stands for the directory itself, or the one above.
    fn is_dots(&self) -> bool {
        &self.name == b".          " || &self.name == b"..         "
    }

    /// Its short name, as it is shown.
    pub(super) fn short(&self) -> String {
        names::short(&self.name, self.case)
    }

    pub(super) fn created(&self) -> Option<Time> {
        let (tenths, clock, date) = self.created;
        let time = time(date, clock)?;
        // Hundredths of a second, up to two seconds.
        let nanos = u32::from(tenths % 100) * 10_000_000;
        Some(Time { seconds: time.seconds + i64::from(tenths / 100), nanos })
    }

    /// 1970 if it has none.
    pub(super) fn modified(&self) -> Time {
        time(self.modified.1, self.modified.0).unwrap_or_default()
    }

    /// The day it was read; the day it was written if it has none.
    pub(super) fn accessed(&self) -> Time {
        time(self.accessed, 0).unwrap_or_else(|| self.modified())
    }
}

/// Date and time of day of DOS, taken as UTC; `None` for a month or day that is none.
pub(crate) fn time(date: u16, clock: u16) -> Option<Time> {
    let year = i64::from(date >> 9) + 1980;
    let days = days(year, i64::from(date >> 5 & 15), i64::from(date & 31))?;
    let (hours, minutes, pairs) = (clock >> 11, clock >> 5 & 63, clock & 31);
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60 + i64::from(pairs) * 2;
    Some(Time { seconds: days * 86_400 + seconds, nanos: 0 })
}

/// Days from 1970 to a day; `None` for a month or day that is none.
pub(crate) fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(365 * year + leap + (153 * month + 2) / 5 + day - 719_469)
}

/// A named entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: Vec<u8>,
    pub(super) entry: Entry,
    /// The number of its slot.
    pub(super) slot: u32,
}

/// Goes through slots, and gives names to entries.
#[derive(Debug, Default)]
pub(super) struct Names {
    long: Long,
    /// Where the first piece of the name that is being read was.
    ended: bool,
}

impl Names {
    /// Takes the next slot; gives the entry that ends there. `None` also for what is none.
    pub(super) fn take(
        &mut self,
        bytes: &[u8; 32],
        wide: bool,
        slot: u32,
        what: &str,
    ) -> Result<Option<Named>, Error> {
        if self.ended {
            return Ok(None);
        }
        let entry = match Slot::parse(bytes, wide) {
            Slot::End => {
                self.ended = true;
                return Ok(None);
            }
            Slot::Piece => {
                self.long.take(bytes);
                return Ok(None);
            }
            Slot::Deleted | Slot::Label(_) => {
                self.long = Long::default();
                return Ok(None);
            }
            Slot::Entry(entry) => entry,
        };
        let long = self.long.finish(&entry.name);
        if entry.is_dots() {
            return Ok(None);
        }
        let name = long.unwrap_or_else(|| entry.short().into_bytes());
        if !utf16::is_name(&name) {
            let text = format!("entry {slot} of {what} has the name \"{}\"", name.escape_ascii());
            return Err(Error::damaged(text));
        }
        Ok(Some(Named { name, entry, slot }))
    }

    /// Whether the end of the directory was seen.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_dos() {
        let date = |y: u16, m: u16, d: u16| (y - 1980) << 9 | m << 5 | d;
        let seconds = |date, clock| time(date, clock).map(|time| time.seconds);
        assert_eq!(seconds(date(1980, 1, 1), 0), Some(315_532_800));
        assert_eq!(seconds(date(2000, 2, 29), 12 << 11), Some(951_825_600));
        assert_eq!(seconds(date(2107, 12, 31), 23 << 11 | 59 << 5 | 29), Some(4_354_819_198));
        assert_eq!(seconds(0, 0), None);
        assert_eq!(seconds(date(1999, 13, 1), 0), None);
    }
}
