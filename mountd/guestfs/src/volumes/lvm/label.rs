//! Labels and metadata areas of physical volumes. The layout is that of lvm2's `lib/label/label.h` and
//! `lib/format_text/layout.h`, which libvslvm describes too in
//! "Logical Volume Manager (LVM) format".

use std::sync::Arc;

use crate::fields::Fields;
use crate::{Error, Media};

const SECTOR_BYTES: usize = 512;
/// A label is in one of the first four sectors.
const LABEL_SECTORS: u64 = 4;
/// Areas of one kind on one physical volume; LVM makes one of data and two of metadata.
const AREAS_MAX: usize = 16;
const UUID_BYTES: usize = 32;
const AREA_HEADER_BYTES: u64 = 512;
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// A copy of the metadata that LVM is told to pass over.
const IGNORED: u32 = 1;

/// What the label of a physical volume says.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    /// Its UUID as LVM writes it.
    pub(crate) uuid: String,
    /// Texts of the metadata areas that have one and are not to be passed over.
    pub(crate) texts: Vec<Arc<str>>,
    /// What was wrong with an area.
    pub(crate) errors: Vec<String>,
}

/// Where something lies.
#[derive(Debug, Clone, Copy)]
struct Area {
    offset: u64,
    len: u64,
}

/// Reads the label of a device; `None` if there is none.
pub(crate) fn read(media: &Media) -> Result<Option<Label>, Error> {
    let end = (LABEL_SECTORS * SECTOR_BYTES as u64).min(media.size_bytes()) as usize;
    let head = media.bytes(0, end, "the start of a volume")?;
    for (number, sector) in head.chunks_exact(SECTOR_BYTES).enumerate() {
        if sector.starts_with(b"LABELONE") && sector[24..32] == *b"LVM2 001" {
            let what = format!("the LVM label at byte {}", number * SECTOR_BYTES);
            let fields = Fields::new(sector, &what);
            if fields.le64(8)? != number as u64 {
                return Err(Error::damaged(format!("{what} is made for another place")));
            }
            if crc(&sector[20..]) != fields.le32(16)? {
                return Err(Error::damaged(format!("the checksum of {what} is wrong")));
            }
            return header(media, &fields).map(Some);
        }
    }
    Ok(None)
}

fn header(media: &Media, fields: &Fields<'_>) -> Result<Label, Error> {
    let start = fields.le32(20)? as usize;
    let uuid = uuid(fields.slice(start, UUID_BYTES)?);
    let mut at = start + UUID_BYTES + 8;
    // Data areas first, then those of metadata.
    areas(fields, &mut at)?;
    let mut label = Label { uuid, texts: Vec::new(), errors: Vec::new() };
    for area in areas(fields, &mut at)? {
        match text(media, area) {
            Ok(Some(text)) if label.texts.iter().any(|other| **other == *text) => {}
            Ok(Some(text)) => label.texts.push(text.into()),
            Ok(None) => {}
            Err(e) => label.errors.push(e.to_string()),
        }
    }
    Ok(label)
}

fn areas(fields: &Fields<'_>, at: &mut usize) -> Result<Vec<Area>, Error> {
    let mut list = Vec::new();
    loop {
        let area = Area { offset: fields.le64(*at)?, len: fields.le64(*at + 8)? };
        *at += 16;
        if area.offset == 0 {
            return Ok(list);
        }
        if list.len() >= AREAS_MAX {
            return Err(Error::damaged("an LVM label has too many areas"));
        }
        list.push(area);
    }
}

/// The text in a metadata area, which is a ring.
fn text(media: &Media, area: Area) -> Result<Option<String>, Error> {
    let what = format!("the LVM metadata area at byte {}", area.offset);
    let header = media.bytes(area.offset, AREA_HEADER_BYTES as usize, &what)?;
    let fields = Fields::new(&header, &what);
    if crc(&header[4..]) != fields.le32(0)? {
        return Err(Error::damaged(format!("the checksum of {what} is wrong")));
    }
    if &fields.array::<16>(4)? != AREA_MAGIC || fields.le32(20)? != 1 {
        return Err(Error::damaged(format!("{what} is none")));
    }
    let (start, size) = (fields.le64(24)?, fields.le64(32)?);
    let fits = area.len == 0 || size <= area.len;
    if start != area.offset || size <= AREA_HEADER_BYTES || !fits {
        return Err(Error::damaged(format!(
            "{what} says it is at byte {start}, {size} bytes long"
        )));
    }
    let (offset, len, sum) = (fields.le64(40)?, fields.le64(48)?, fields.le32(56)?);
    if offset == 0 || fields.le32(60)? & IGNORED != 0 {
        return Ok(None);
    }
    if !(AREA_HEADER_BYTES..size).contains(&offset) || len > size - AREA_HEADER_BYTES {
        let text = format!("the text of {what} would be at its byte {offset}, {len} bytes long");
        return Err(Error::damaged(text));
    }
    let place = start.checked_add(offset);
    let place = place.ok_or_else(|| Error::damaged(format!("{what} lies behind any disk")))?;
    let first = len.min(size - offset);
    let mut bytes = media.bytes(place, first as usize, &what)?;
    if first < len {
        let rest = media.bytes(start + AREA_HEADER_BYTES, (len - first) as usize, &what)?;
        bytes.extend_from_slice(&rest);
    }
    if crc(&bytes) != sum {
        return Err(Error::damaged(format!("the checksum of the text of {what} is wrong")));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::damaged(format!("{what} holds something that is no text")))
}

/// LVM's checksum: CRC-32 with a start value of its own, and nothing at the end.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    let mut crc = 0xf597_a6cf_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    crc
}

/// Thirty-two characters as LVM writes them: in groups of 6, 4, 4, 4, 4, 4 and 6.
fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(38);
    for (n, byte) in bytes.iter().enumerate() {
        if (6..=26).contains(&n) && n % 4 == 2 {
            text.push('-');
        }
        let c = char::from(*byte);
        text.push(if c.is_ascii_alphanumeric() || c == '!' || c == '#' { c } else { '?' });
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn uuids_are_grouped_as_lvm_does() {
        assert_eq!(
            super::uuid(b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
            "abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"
        );
    }
}
