use crate::FormatError;

/// One fixed field of a binary record: its name in FORMAT.md, its offset and its size in bytes.
///
/// Records are written and read through these constants only, so the layout stands in one place
/// of the code, and a test compares that place with FORMAT.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name in the table of FORMAT.md.
    pub name: &'static str,
    /// Bytes from the start of the record.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

impl Field {
    /// A field at `offset` of `size` bytes.
    pub const fn new(name: &'static str, offset: usize, size: usize) -> Self {
        Self { name, offset, size }
    }

    /// The field that follows this one.
    pub const fn then(&self, name: &'static str, size: usize) -> Self {
        Self { name, offset: self.offset + self.size, size }
    }

    /// The offset just after this field.
    pub const fn end(&self) -> usize {
        self.offset + self.size
    }

    pub(crate) fn put(&self, record: &mut [u8], value: &[u8]) {
        assert_eq!(value.len(), self.size, "field {} is {} bytes", self.name, self.size);
        record[self.offset..self.end()].copy_from_slice(value);
    }

    pub(crate) fn bytes<'a>(&self, record: &'a [u8]) -> Result<&'a [u8], FormatError> {
        record
            .get(self.offset..self.end())
            .ok_or_else(|| FormatError::damaged(self.name, "the record ends before this field"))
    }

    pub(crate) fn array<const N: usize>(&self, record: &[u8]) -> Result<[u8; N], FormatError> {
        self.bytes(record)?
            .try_into()
            .map_err(|_| FormatError::damaged(self.name, "the field has another size"))
    }

    pub(crate) fn u16(&self, record: &[u8]) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array(record)?))
    }

    pub(crate) fn u32(&self, record: &[u8]) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(record)?))
    }

    pub(crate) fn u64(&self, record: &[u8]) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(record)?))
    }

    pub(crate) fn expect_zero(&self, record: &[u8]) -> Result<(), FormatError> {
        if self.bytes(record)?.iter().any(|&b| b != 0) {
            return Err(FormatError::unsupported(self.name, "reserved bytes are not zero"));
        }
        Ok(())
    }
}
