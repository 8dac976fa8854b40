//! Records: pieces of metadata of some sectors, with fixups against torn writes, and the attributes in them.

use crate::Error;
use crate::fields::Fields;

/// The unit of fixups, whatever the sectors of the device.
const STRIDE: usize = 512;
/// The type that ends a list of attributes.
const END: u32 = u32::MAX;

/// Types of attributes.
pub(super) mod kind {
    pub(in super::super) const STANDARD_INFORMATION: u32 = 0x10;
    pub(in super::super) const ATTRIBUTE_LIST: u32 = 0x20;
    pub(in super::super) const FILE_NAME: u32 = 0x30;
    pub(in super::super) const VOLUME_NAME: u32 = 0x60;
    pub(in super::super) const VOLUME_INFORMATION: u32 = 0x70;
    pub(in super::super) const DATA: u32 = 0x80;
    pub(in super::super) const INDEX_ROOT: u32 = 0x90;
    pub(in super::super) const INDEX_ALLOCATION: u32 = 0xa0;
    pub(in super::super) const REPARSE_POINT: u32 = 0xc0;
    pub(in super::super) const EA: u32 = 0xe0;
}

/// Flags of attributes.
pub(super) mod flag {
    pub(in super::super) const COMPRESSED: u16 = 0x00ff;
    pub(in super::super) const ENCRYPTED: u16 = 0x4000;
    pub(in super::super) const SPARSE: u16 = 0x8000;
}

/// Puts the last two bytes of each 512 back, which were kept aside when the record was written.
///
/// A sector without the number of this write is torn, or not of this record.
pub(super) fn fix_up(bytes: &mut [u8], magic: &[u8; 4], what: &str) -> Result<(), Error> {
    let fields = Fields::new(bytes, what);
    let found = fields.array::<4>(0)?;
    if &found != magic {
        let text = match &found {
            b"BAAD" => "it is marked as bad".to_owned(),
            _ => format!("it begins with {found:02x?} in place of {magic:02x?}"),
        };
        return Err(Error::damaged(format!("{what}: {text}")));
    }
    let (at, count) = (usize::from(fields.le16(4)?), usize::from(fields.le16(6)?));
    if count != bytes.len() / STRIDE + 1 || !at.is_multiple_of(2) || at + count * 2 > STRIDE - 2 {
        return Err(Error::damaged(format!("{what}: {count} fixups at its byte {at}")));
    }
    let kept = fields.slice(at, count * 2)?.to_vec();
    let mut kept = kept.chunks_exact(2);
    let number = kept.next().unwrap_or_default();
    for (i, (sector, kept)) in bytes.chunks_exact_mut(STRIDE).zip(kept).enumerate() {
        let tail = &mut sector[STRIDE - 2..];
        if tail != number {
            let text = format!("{what}: its sector {i} was not written with the others");
            return Err(Error::damaged(text));
        }
        tail.copy_from_slice(kept);
    }
    Ok(())
}

/// A record of the MFT.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) number: u64,
    what: String,
    bytes: Vec<u8>,
    used: usize,
}

/// An attribute as it stands in a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) kind: u32,
    /// UTF-16, little-endian.
    pub(super) name: &'a [u8],
    pub(super) flags: u16,
    pub(super) instance: u16,
    pub(super) body: Body<'a>,
}

/// Where the value of an attribute is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    /// Here.
    Resident(&'a [u8]),
    /// In clusters; this record maps a part of them.
    Mapped(Mapped<'a>),
}

/// The head of an attribute in clusters. The sizes mean something only where `first` is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapped<'a> {
    pub(super) first: u64,
    /// One before `first` for an attribute without clusters.
    pub(super) last: u64,
    pub(super) pairs: &'a [u8],
    /// Clusters of a compression unit as a power of two; 0 for none.
    pub(super) unit: u16,
    pub(super) allocated: u64,
    pub(super) data: u64,
    pub(super) initialized: u64,
    /// What is really allocated of a sparse or compressed attribute.
    pub(super) total: Option<u64>,
}

impl Record {
    /// Takes the bytes of record `number`, which lie at byte `at` of the device.
    pub(super) fn parse(number: u64, at: u64, mut bytes: Vec<u8>) -> Result<Self, Error> {
        let what = format!("MFT record {number} at byte {at}");
        fix_up(&mut bytes, b"FILE", &what)?;
        let used = Fields::new(&bytes, &what).le32(0x18)? as usize;
        if used > bytes.len() {
            return Err(Error::damaged(format!("{what}: {used} bytes of it are in use")));
        }
        Ok(Self { number, what, bytes, used })
    }

    /// Names it in errors.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    fn fields(&self) -> Fields<'_> {
        Fields::new(&self.bytes, &self.what)
    }

    pub(super) fn sequence(&self) -> Result<u16, Error> {
        self.fields().le16(0x10)
    }

    pub(super) fn is_used(&self) -> Result<bool, Error> {
        Ok(self.fields().le16(0x16)? & 1 != 0)
    }

    pub(super) fn is_directory(&self) -> Result<bool, Error> {
        Ok(self.fields().le16(0x16)? & 2 != 0)
    }

    /// The record this one continues; 0 for none.
    pub(super) fn base(&self) -> Result<u64, Error> {
        Ok(self.fields().le64(0x20)? & super::REFERENCE_MASK)
    }

    /// All attributes in it, in order.
    pub(super) fn attributes(&self) -> Result<Vec<Raw<'_>>, Error> {
        let mut all = Vec::new();
        let mut at = usize::from(self.fields().le16(0x14)?);
        loop {
            let fields = Fields::new(&self.bytes[..self.used], &self.what);
            if fields.le32(at)? == END {
                return Ok(all);
            }
            let len = fields.le32(at + 4)? as usize;
            if len < 24 || !len.is_multiple_of(8) {
                let text = format!("{}: its attribute at {at} is {len} bytes long", self.what);
                return Err(Error::damaged(text));
            }
            all.push(attribute(fields.slice(at, len)?, &self.what)?);
            at += len;
        }
    }
}

/// `what` names the record: the attribute is known by its type.
fn attribute<'a>(bytes: &'a [u8], what: &str) -> Result<Raw<'a>, Error> {
    let fields = Fields::new(bytes, what);
    let (kind, flags, instance) = (fields.le32(0)?, fields.le16(12)?, fields.le16(14)?);
    let slice = |at: usize, len: usize| {
        bytes.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
            let text = format!("{len} bytes at {at} of {}", bytes.len());
            Error::damaged(format!("the attribute {kind:#x} of {what} has {text}"))
        })
    };
    let name_len = usize::from(fields.u8(9)?) * 2;
    let name = if name_len == 0 { &[] } else { slice(usize::from(fields.le16(10)?), name_len)? };
    let body = if fields.u8(8)? == 0 {
        Body::Resident(slice(usize::from(fields.le16(0x14)?), fields.le32(0x10)? as usize)?)
    } else {
        let (first, pairs_at) = (fields.le64(0x10)?, usize::from(fields.le16(0x20)?));
        let has_total = flags & (flag::COMPRESSED | flag::SPARSE) != 0 && first == 0;
        Body::Mapped(Mapped {
            first,
            last: fields.le64(0x18)?,
            pairs: slice(pairs_at, bytes.len().saturating_sub(pairs_at))?,
            unit: fields.le16(0x22)?,
            allocated: fields.le64(0x28)?,
            data: fields.le64(0x30)?,
            initialized: fields.le64(0x38)?,
            total: if has_total { Some(fields.le64(0x40)?) } else { None },
        })
    };
    Ok(Raw { kind, name, flags, instance, body })
}
