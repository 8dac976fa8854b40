//! Headers of LUKS, which say how a volume is encrypted ("LUKS1 On-Disk Format Specification" 1.2.3, and "LUKS2 On-Disk
//! Format Specification" 1.1.4, section 2). Nothing is opened here.

use super::Content;
use super::probe::{Found, bytes, text};
use crate::fields::Fields;
use crate::{Error, Media};

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
/// The part before the JSON, of which the first 512 bytes are used.
const BINARY_BYTES: u64 = 4096;
const HEADER_BYTES: usize = 512;
/// Where the second header of LUKS2 can be: sizes of the first.
const SECOND_AT: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// The JSON is up to 4 MiB less 4 KiB long.
const JSON_BYTES_MAX: u64 = (4 << 20) - BINARY_BYTES;

/// What to tell a user.
pub(super) const HINT: &str = "It is encrypted, and its keys are not here: attach its disk with `backstay mount nbd` or \
    `backstay mount iscsi` and open it there with cryptsetup.";

/// Looks for a header at the start of a device, and for the second one of LUKS2 behind it.
pub(super) fn read(media: &Media) -> Result<Option<Found>, Error> {
    if let Some(header) = bytes(media, 0, HEADER_BYTES)?
        && &header[..6] == MAGIC
    {
        return one(media, 0, &header).map(Some);
    }
    for at in SECOND_AT {
        let Some(header) = bytes(media, at, HEADER_BYTES)? else { break };
        let fields = Fields::new(&header, "the second LUKS2 header");
        // It says itself where it is, so that data that look like one are not taken for it.
        if &header[..6] == SECOND_MAGIC && fields.be64(256)? == at {
            return one(media, at, &header).map(Some);
        }
    }
    Ok(None)
}

fn one(media: &Media, at: u64, header: &[u8]) -> Result<Found, Error> {
    let what = format!("the LUKS header at byte {at}");
    let fields = Fields::new(header, &what);
    let version = fields.be16(6)?;
    let uuid = text(fields.slice(168, 40)?);
    let (cipher, label) = match version {
        1 => {
            let (cipher, mode) = (text(fields.slice(8, 32)?), text(fields.slice(40, 32)?));
            (format!("{cipher}-{mode}"), String::new())
        }
        2 => {
            let len = fields.be64(8)?.saturating_sub(BINARY_BYTES).min(JSON_BYTES_MAX);
            let json = bytes(media, at + BINARY_BYTES, len as usize)?.unwrap_or_default();
            // The volume is what it is, also if its JSON cannot be read.
            (cipher(&json).unwrap_or_else(|| "unknown".to_owned()), text(fields.slice(24, 48)?))
        }
        other => {
            return Err(Error::unsupported(format!("{what} is of version {other}")));
        }
    };
    let content = Content::Luks { version, cipher, uuid: uuid.clone() };
    Ok(Found { content, label, uuid: Some(uuid) })
}

/// The cipher of the first segment that is encrypted.
fn cipher(json: &[u8]) -> Option<String> {
    let end = json.iter().position(|b| *b == 0).unwrap_or(json.len());
    let value: serde_json::Value = serde_json::from_slice(&json[..end]).ok()?;
    let segments = value.get("segments")?.as_object()?;
    let cipher = segments.values().find_map(|segment| segment.get("encryption")?.as_str())?;
    Some(text(cipher.as_bytes()))
}
