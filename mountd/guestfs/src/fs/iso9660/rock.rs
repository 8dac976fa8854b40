//! Rock Ridge (IEEE P1282) in the fields of the System Use Sharing Protocol (P1281): names, modes and links of Unix.

use super::record::{long_time, short_time};
use super::volume::both32;
use crate::fields::Fields;
use crate::fs::Time;
use crate::{Error, ErrorKind, Media};

/// Continuations of one record, and the bytes of all its fields.
const AREAS_MAX: usize = 64;
const BYTES_MAX: usize = 256 << 10;
/// The longest name and target.
const NAME_MAX: usize = 1024;
const TARGET_MAX: usize = 65_535;

/// What the fields of a record say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rock {
    pub(super) name: Option<Vec<u8>>,
    /// Mode with its type, links, owner and group.
    pub(super) posix: Option<[u32; 4]>,
    pub(super) device: Option<(u32, u32)>,
    pub(super) target: Vec<u8>,
    /// The target is cut off, as genisoimage writes those with names of more than 248 bytes, or cannot be one.
    pub(super) broken_target: bool,
    /// Made, changed, read, metadata changed.
    pub(super) times: [Option<Time>; 4],
    /// The directory is elsewhere, at this block.
    pub(super) moved_to: Option<u32>,
    /// It was moved here, and is shown where it was.
    pub(super) moved: bool,
    /// Compressed (zisofs).
    pub(super) packed: bool,
    /// How many bytes other programs put before the fields; only in the root's own record.
    pub(super) skip: Option<u8>,
    pieces: Pieces,
}

/// What goes on in the next field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pieces {
    name_goes_on: bool,
    part_goes_on: bool,
}

/// Reads the fields of a record, which begin in `area` and may go on elsewhere.
pub(super) fn read(media: &Media, block_bytes: u64, area: &[u8], at: u64) -> Result<Rock, Error> {
    let what = format!("the system use fields of the record at byte {at}");
    let (mut rock, mut bytes, mut total) = (Rock::default(), area.to_vec(), area.len());
    for _ in 0..AREAS_MAX {
        let Some((block, offset, len)) = rock.area(&bytes, &what)? else { return Ok(rock) };
        total = total.saturating_add(len as usize);
        if total > BYTES_MAX {
            break;
        }
        let place = u64::from(block) * block_bytes + u64::from(offset);
        bytes = media.bytes(place, len as usize, &what)?;
    }
    Err(Error::new(ErrorKind::Limit, format!("{what} go on and on")))
}

impl Rock {
    /// Takes the fields of one area; answers where they go on.
    fn area(&mut self, area: &[u8], what: &str) -> Result<Option<(u32, u32, u32)>, Error> {
        let (mut rest, mut next) = (area, None);
        while let [a, b, len, _, ..] = rest {
            let Some((field, behind)) = rest.split_at_checked(usize::from(*len)) else { break };
            if field.len() < 4 {
                break;
            }
            let fields = Fields::new(field, what);
            match &[*a, *b] {
                b"CE" => {
                    let number = |at| both32(&fields, at, what);
                    next = Some((number(4)?, number(12)?, number(20)?));
                }
                b"ST" => break,
                _ => self.field(&[*a, *b], &fields, field, what)?,
            }
            rest = behind;
        }
        Ok(next)
    }

    fn field(
        &mut self,
        kind: &[u8; 2],
        fields: &Fields<'_>,
        field: &[u8],
        what: &str,
    ) -> Result<(), Error> {
        let number = |at| both32(fields, at, what);
        match kind {
            b"SP" if fields.le16(4)? == 0xefbe => self.skip = Some(fields.u8(6)?),
            b"PX" => self.posix = Some([number(4)?, number(12)?, number(20)?, number(28)?]),
            b"PN" => self.device = Some(device(number(4)?, number(12)?)),
            b"NM" => self.add_name(fields.u8(4)?, field.get(5..).unwrap_or_default(), what)?,
            b"SL" => self.add_target(field.get(5..).unwrap_or_default()),
            b"CL" => self.moved_to = Some(number(4)?),
            b"RE" => self.moved = true,
            b"ZF" => self.packed = true,
            b"TF" => self.add_times(fields.u8(4)?, field.get(5..).unwrap_or_default()),
            _ => {}
        }
        Ok(())
    }

    fn add_name(&mut self, flags: u8, part: &[u8], what: &str) -> Result<(), Error> {
        // Names of the directory itself and the one above.
        if flags & 6 != 0 {
            return Ok(());
        }
        let name = self.name.get_or_insert_default();
        if !self.pieces.name_goes_on {
            name.clear();
        }
        name.extend(part);
        self.pieces.name_goes_on = flags & 1 != 0;
        if name.len() > NAME_MAX {
            return Err(Error::damaged(format!("{what} have a name of {} bytes", name.len())));
        }
        Ok(())
    }

    fn add_target(&mut self, parts: &[u8]) {
        let mut rest = parts;
        while let [flags, len, behind @ ..] = rest {
            let Some((text, behind)) = behind.split_at_checked(usize::from(*len)) else {
                self.broken_target = true;
                return;
            };
            let slash = !self.target.is_empty() && self.target != b"/" && !self.pieces.part_goes_on;
            if slash {
                self.target.push(b'/');
            }
            match flags & 0xe {
                2 => self.target.push(b'.'),
                4 => self.target.extend(b".."),
                8 => self.target = b"/".to_vec(),
                _ => self.target.extend(text),
            }
            self.pieces.part_goes_on = flags & 1 != 0;
            rest = behind;
        }
        self.broken_target |= self.target.len() > TARGET_MAX || self.target.contains(&0);
    }

    /// Times come in the order of their flags, each if its flag is set.
    fn add_times(&mut self, flags: u8, bytes: &[u8]) {
        let mut rest = bytes;
        for (i, place) in self.times.iter_mut().enumerate() {
            if flags & 1 << i == 0 {
                continue;
            }
            let time = match flags & 0x80 {
                0 => rest.split_first_chunk::<7>().map(|(t, rest)| (short_time(t), rest)),
                _ => rest.split_first_chunk::<17>().map(|(t, rest)| (long_time(t), rest)),
            };
            let Some((time, behind)) = time else { return };
            (*place, rest) = (Some(time), behind);
        }
    }
}

/// A device's number, in two halves or, as Linux' own numbers fit, in the lower one alone.
fn device(high: u32, low: u32) -> (u32, u32) {
    match high {
        0 => ((low >> 8) & 0xfff, (low & 0xff) | ((low >> 12) & 0xf_ff00)),
        _ => (high, low),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: &[u8; 2], data: &[u8]) -> Vec<u8> {
        [&kind[..], &[data.len() as u8 + 4, 1], data].concat()
    }

    #[test]
    fn names_and_links_in_pieces() {
        let mut rock = Rock::default();
        let area = [
            field(b"NM", b"\x01long "),
            field(b"NM", b"\x00name"),
            field(b"SL", b"\x01\x08\x00\x00\x01a\x01\x02bc"),
            field(b"SL", b"\x00\x00\x01d\x04\x00"),
            field(b"ST", b""),
            field(b"NM", b"\x00not read"),
        ];
        assert_eq!(rock.area(&area.concat(), "x").unwrap(), None);
        assert_eq!(rock.name.as_deref().unwrap(), b"long name");
        assert_eq!(rock.target, b"/a/bcd/..");
        let mut broken = Rock::default();
        broken.area(&field(b"SL", b"\0\0\x09a"), "x").unwrap();
        assert!(broken.broken_target && !rock.broken_target);
    }

    #[test]
    fn numbers_of_devices() {
        assert_eq!(device(0, 0x0103), (1, 3));
        assert_eq!(device(259, 70_000), (259, 70_000));
    }
}
