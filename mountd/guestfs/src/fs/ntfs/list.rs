//! Attribute lists: where the attributes of a file are that has more than one record.

use super::REFERENCE_MASK;
use super::record::Raw;
use crate::Error;
use crate::fields::Fields;

/// Windows keeps them below this.
pub(super) const BYTES_MAX: usize = 256 << 10;
const HEAD_BYTES: usize = 26;

/// An entry: an attribute, or a further piece of one, and the record it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) kind: u32,
    pub(super) name: &'a [u8],
    /// The first cluster its piece maps.
    pub(super) first: u64,
    pub(super) record: u64,
    pub(super) sequence: u16,
    pub(super) instance: u16,
}

impl Entry<'_> {
    /// Whether `raw` is the attribute this entry speaks of.
    pub(super) fn is(&self, raw: &Raw<'_>) -> bool {
        raw.kind == self.kind && raw.instance == self.instance && raw.name == self.name
    }
}

/// All entries, in their order: by type, name, and first cluster.
pub(super) fn entries<'a>(bytes: &'a [u8], what: &str) -> Result<Vec<Entry<'a>>, Error> {
    let what = format!("the attribute list of {what}");
    let (mut all, mut rest) = (Vec::new(), bytes);
    while rest.len() >= HEAD_BYTES {
        let fields = Fields::new(rest, &what);
        let len = usize::from(fields.le16(4)?);
        let (name_len, name_at) = (usize::from(fields.u8(6)?) * 2, usize::from(fields.u8(7)?));
        let reference = fields.le64(16)?;
        let (kind, first, instance) = (fields.le32(0)?, fields.le64(8)?, fields.le16(24)?);
        let split = rest.split_at_checked(len).filter(|_| len >= HEAD_BYTES);
        let name = split.and_then(|(entry, _)| match name_len {
            0 => Some(&[][..]),
            _ => entry.get(name_at..name_at + name_len),
        });
        let (Some((_, behind)), Some(name)) = (split, name) else {
            let at = bytes.len() - rest.len();
            return Err(Error::damaged(format!("{what}: its entry at {at} is {len} bytes long")));
        };
        let record = reference & REFERENCE_MASK;
        all.push(Entry { kind, name, first, record, sequence: (reference >> 48) as u16, instance });
        rest = behind;
    }
    Ok(all)
}
