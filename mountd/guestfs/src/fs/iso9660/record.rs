//! Directory records (ECMA-119, section 9.1).

use super::volume::both32;
use crate::fields::Fields;
use crate::fs::Time;
use crate::fs::fat::dir::days;
use crate::{Error, Media};

const HEAD_BYTES: usize = 33;
/// Flags of a record.
const DIRECTORY: u8 = 2;
const CONTINUED: u8 = 0x80;

/// A record: a file, a directory, or a further piece of a file.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Where it is on the device.
    pub(super) at: u64,
    /// Where the record behind it may be.
    pub(super) end: u64,
    /// The first block of its content, and its length.
    pub(super) block: u64,
    pub(super) len_bytes: u64,
    pub(super) modified: Time,
    pub(super) directory: bool,
    /// The next record is a further piece of the same file.
    pub(super) continued: bool,
    /// Pieces lie in turns with others'.
    pub(super) interleaved: bool,
    pub(super) name: Vec<u8>,
    /// What other standards keep here.
    pub(super) system_use: Vec<u8>,
}

impl Record {
    /// Reads the record at byte `at`; `None` if the rest of its sector is empty.
    pub(super) fn read(media: &Media, at: u64) -> Result<Option<Self>, Error> {
        let what = format!("the directory record at byte {at}");
        let mut len = [0];
        media.read(at, &mut len, &what)?;
        match usize::from(len[0]) {
            0 => Ok(None),
            len if len < HEAD_BYTES + 1 => {
                Err(Error::damaged(format!("{what} is {len} bytes long")))
            }
            len => Self::parse(at, &media.bytes(at, len, &what)?, &what).map(Some),
        }
    }

    fn parse(at: u64, bytes: &[u8], what: &str) -> Result<Self, Error> {
        let fields = Fields::new(bytes, what);
        let name_len = usize::from(fields.u8(32)?);
        let name = fields.slice(HEAD_BYTES, name_len)?.to_vec();
        let rest = (HEAD_BYTES + name_len).next_multiple_of(2);
        let (flags, skip) = (fields.u8(25)?, u64::from(fields.u8(1)?));
        Ok(Self {
            at,
            end: at + bytes.len() as u64,
            block: u64::from(both32(&fields, 2, what)?) + skip,
            len_bytes: u64::from(both32(&fields, 10, what)?),
            modified: short_time(&fields.array(18)?),
            directory: flags & DIRECTORY != 0,
            continued: flags & CONTINUED != 0,
            interleaved: fields.u8(26)? != 0 || fields.u8(27)? != 0,
            name,
            system_use: bytes.get(rest..).unwrap_or_default().to_vec(),
        })
    }

    /// Whether it stands for the directory itself, or the one above.
    pub(super) fn is_dots(&self) -> bool {
        matches!(self.name[..], [] | [0] | [1])
    }
}

/// A time of seven bytes, the last one its distance to UTC in quarters of an hour. 1970 for one that is none.
pub(super) fn short_time(bytes: &[u8; 7]) -> Time {
    let [year, month, day, hours, minutes, seconds, zone] = *bytes;
    let Some(days) = days(1900 + i64::from(year), month.into(), day.into()) else {
        return Time::default();
    };
    let clock = i64::from(hours) * 3600 + i64::from(minutes) * 60 + i64::from(seconds);
    Time { seconds: days * 86_400 + clock - zone_seconds(zone), nanos: 0 }
}

/// A distance to UTC, in quarters of an hour, as seconds. ECMA-119 9.1.5 has -48 to +52; what is beyond is no distance
/// (genisoimage writes -96 for moments that are still to come) and is passed over, as Linux does.
fn zone_seconds(quarters: u8) -> i64 {
    match quarters.cast_signed() {
        quarters @ -52..=52 => i64::from(quarters) * 900,
        _ => 0,
    }
}

/// A time of seventeen bytes: sixteen digits down to hundredths of a second, and the distance to UTC.
pub(super) fn long_time(bytes: &[u8; 17]) -> Time {
    let number = |from: usize, to: usize| {
        let digits = bytes[from..to].iter();
        digits.fold(0i64, |n, b| n * 10 + i64::from(b.wrapping_sub(b'0').min(9)))
    };
    let Some(days) = days(number(0, 4), number(4, 6), number(6, 8)) else {
        return Time::default();
    };
    let clock = number(8, 10) * 3600 + number(10, 12) * 60 + number(12, 14);
    let seconds = days * 86_400 + clock - zone_seconds(bytes[16]);
    Time { seconds, nanos: number(14, 16) as u32 * 10_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(short_time(&[100, 2, 29, 12, 0, 1, 4]).seconds, 951_825_601 - 3600);
        assert_eq!(short_time(&[0; 7]), Time::default());
        let time = long_time(b"2000022912000150\x04");
        assert_eq!((time.seconds, time.nanos), (951_825_601 - 3600, 500_000_000));
        assert_eq!(long_time(&[0xff; 17]), Time::default());
    }
}
