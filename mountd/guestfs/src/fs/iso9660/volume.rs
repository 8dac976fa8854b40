//! Volume descriptors: where the root is, and which names to take (ECMA-119, section 8; Joliet).

use crate::fields::Fields;
use crate::{Error, Media};

/// Descriptors lie in sectors of this size from the sixteenth on, whatever the blocks.
const SECTOR_BYTES: u64 = 2048;
const FIRST_SECTOR: u64 = 16;
/// No disc has more descriptors than a handful.
const DESCRIPTORS_MAX: u64 = 64;
const MAGIC: &[u8; 5] = b"CD001";
/// Where the record of the root is in a descriptor.
const ROOT_AT: u64 = 156;
/// Kinds of descriptors.
const PRIMARY: u8 = 1;
const SUPPLEMENTARY: u8 = 2;
const END: u8 = 255;

/// One of the trees of a disc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tree {
    /// Where the record of its root is on the device.
    pub(super) root: u64,
    pub(super) block_bytes: u64,
    pub(super) blocks: u64,
    /// Names are UTF-16 (Joliet).
    pub(super) joliet: bool,
    pub(super) label: [u8; 32],
}

/// Whether a primary descriptor is where it must be. Reads some bytes only.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 5];
    let at = FIRST_SECTOR * SECTOR_BYTES + 1;
    media.read(at, &mut magic, "a volume descriptor").is_ok() && &magic == MAGIC
}

/// The primary tree, and that of Joliet.
pub(super) fn trees(media: &Media) -> Result<(Tree, Option<Tree>), Error> {
    let (mut primary, mut joliet) = (None, None);
    for i in 0..DESCRIPTORS_MAX {
        let at = (FIRST_SECTOR + i) * SECTOR_BYTES;
        let what = format!("the volume descriptor at byte {at}");
        let bytes = match media.bytes(at, SECTOR_BYTES as usize, &what) {
            Ok(bytes) => bytes,
            // Some discs end without the last descriptor.
            Err(_) if primary.is_some() => break,
            Err(e) => return Err(e),
        };
        let fields = Fields::new(&bytes, &what);
        if &fields.array::<5>(1)? != MAGIC {
            break;
        }
        match fields.u8(0)? {
            PRIMARY if primary.is_none() => primary = Some(tree(&fields, at, false, &what)?),
            SUPPLEMENTARY if joliet.is_none() && is_joliet(&fields)? => {
                joliet = Some(tree(&fields, at, true, &what)?);
            }
            END => break,
            _ => {}
        }
    }
    let missing = || Error::damaged("there is no primary volume descriptor of ISO 9660");
    Ok((primary.ok_or_else(missing)?, joliet))
}

/// Escape sequences for UCS-2 of three levels.
fn is_joliet(fields: &Fields<'_>) -> Result<bool, Error> {
    let escape = fields.array::<3>(88)?;
    Ok(matches!(&escape, b"%/@" | b"%/C" | b"%/E"))
}

fn tree(fields: &Fields<'_>, at: u64, joliet: bool, what: &str) -> Result<Tree, Error> {
    let block_bytes = u64::from(both16(fields, 128, what)?);
    if !block_bytes.is_power_of_two() || !(512..=SECTOR_BYTES).contains(&block_bytes) {
        return Err(Error::damaged(format!("{what}: blocks of {block_bytes} bytes")));
    }
    let blocks = u64::from(both32(fields, 80, what)?);
    let label = fields.array(40)?;
    Ok(Tree { root: at + ROOT_AT, block_bytes, blocks, joliet, label })
}

/// A number of two bytes in both byte orders, which must agree.
fn both16(fields: &Fields<'_>, at: usize, what: &str) -> Result<u16, Error> {
    let (little, big) = (fields.le16(at)?, fields.be16(at + 2)?);
    if little != big {
        return Err(Error::damaged(format!("{what}: a number is {little} and {big} at once")));
    }
    Ok(little)
}

/// The same of four bytes.
pub(super) fn both32(fields: &Fields<'_>, at: usize, what: &str) -> Result<u32, Error> {
    let (little, big) = (fields.le32(at)?, fields.be32(at + 4)?);
    if little != big {
        return Err(Error::damaged(format!("{what}: a number is {little} and {big} at once")));
    }
    Ok(little)
}
