//! Entry sets: a file is an entry with its times, one with its place, and some with its name (specification, sections 6 and 7).

use crate::Error;
use crate::fields::Fields;
use crate::fs::fat::dir::time;
use crate::fs::{Time, utf16};

pub(super) const ENTRY_BYTES: u64 = 32;
/// Types of entries.
pub(super) const END: u8 = 0;
pub(super) const BITMAP: u8 = 0x81;
pub(super) const UPCASE: u8 = 0x82;
pub(super) const LABEL: u8 = 0x83;
pub(super) const FILE: u8 = 0x85;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;
/// A file has at most so many entries behind its first one; 17 of them for a name of 255 units.
pub(super) const SECONDARY_MAX: usize = 18;
const NAME_UNITS: usize = 15;
/// Attributes.
pub(super) mod attribute {
    pub(in super::super) const READ_ONLY: u16 = 1;
    pub(in super::super) const HIDDEN: u16 = 2;
    pub(in super::super) const SYSTEM: u16 = 4;
    pub(in super::super) const DIRECTORY: u16 = 16;
}

/// Where a stream of clusters is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) first: u32,
    pub(super) size_bytes: u64,
    /// Behind this it reads as zeros.
    pub(super) valid_bytes: u64,
    /// Its clusters lie side by side, and the table says nothing of them.
    pub(super) contiguous: bool,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) attributes: u16,
    pub(super) created: Time,
    pub(super) modified: Time,
    pub(super) accessed: Time,
    pub(super) stream: Stream,
    pub(super) units: Vec<u16>,
}

impl Set {
    /// From its entries, of which the first is that of a file and says how many follow. `what` names it.
    pub(super) fn parse(entries: &[[u8; 32]], what: &str) -> Result<Self, Error> {
        let bad = |text: &str| Error::damaged(format!("{what}: {text}"));
        let [file, stream, names @ ..] = entries else {
            return Err(bad("it has too few entries"));
        };
        let kept = u16::from_le_bytes([file[2], file[3]]);
        if checksum(entries) != kept {
            return Err(bad("its checksum is wrong"));
        }
        if stream[0] != STREAM {
            return Err(bad("it does not say where it is"));
        }
        let place = Fields::new(stream, what);
        let (flags, len) = (place.u8(1)?, usize::from(place.u8(3)?));
        let stream = Stream {
            first: place.le32(20)?,
            size_bytes: place.le64(24)?,
            valid_bytes: place.le64(8)?,
            contiguous: flags & 2 != 0,
        };
        let has_clusters = flags & 1 != 0 && stream.first != 0;
        if stream.valid_bytes > stream.size_bytes || (!has_clusters && stream.size_bytes != 0) {
            return Err(bad("its sizes contradict each other"));
        }
        let names = names.iter().filter(|entry| entry[0] == NAME);
        let mut units: Vec<u16> = names.flat_map(|entry| utf16::le_units(&entry[2..])).collect();
        if len == 0 || units.len() < len || units.len() >= len + NAME_UNITS {
            return Err(bad("its name has another length than it says"));
        }
        units.truncate(len);
        let fields = Fields::new(file, what);
        let moment = |at: usize, tenths: Option<usize>, zone: usize| {
            let (clock, date) = (fields.le16(at)?, fields.le16(at + 2)?);
            let tenths = tenths.map_or(Ok(0), |at| fields.u8(at))?;
            Ok::<_, Error>(moment(date, clock, tenths, fields.u8(zone)?))
        };
        Ok(Self {
            attributes: fields.le16(4)?,
            created: moment(8, Some(20), 22)?,
            modified: moment(12, Some(21), 23)?,
            accessed: moment(16, None, 24)?,
            stream,
            units,
        })
    }

    pub(super) fn is_directory(&self) -> bool {
        self.attributes & attribute::DIRECTORY != 0
    }
}

/// The checksum of all entries of a set but the two bytes that keep it (section 6.3.3).
pub(super) fn checksum(entries: &[[u8; 32]]) -> u16 {
    let bytes = entries.iter().flatten().enumerate().filter(|(i, _)| !matches!(i, 2 | 3));
    bytes.fold(0u16, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()))
}

/// A time with its distance to UTC: seven bits of quarters of an hour, if the eighth says so; else it is taken as UTC.
fn moment(date: u16, clock: u16, tenths: u8, zone: u8) -> Time {
    let Some(local) = time(date, clock) else { return Time::default() };
    let quarters = if zone & 0x80 == 0 { 0 } else { i64::from((zone << 1).cast_signed() >> 1) };
    Time {
        seconds: local.seconds + i64::from(tenths / 100) - quarters * 900,
        nanos: u32::from(tenths % 100) * 10_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_zones() {
        let (date, clock) = (20 << 9 | 1 << 5 | 1, 12 << 11);
        let noon = 946_728_000;
        let at = |seconds, nanos| Time { seconds, nanos };
        assert_eq!(moment(date, clock, 0, 0), at(noon, 0));
        assert_eq!(moment(date, clock, 150, 0x80), at(noon + 1, 500_000_000));
        assert_eq!(moment(date, clock, 0, 0x84), at(noon - 3600, 0));
        assert_eq!(moment(date, clock, 0, 0xfc), at(noon + 3600, 0));
        // Without the bit that says so, it is no zone.
        assert_eq!(moment(date, clock, 0, 0x7c), at(noon, 0));
    }
}
