//! Numbers out of structures, checked.

use crate::Error;

/// The bytes of one structure, and its name and place for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    what: &'a str,
}

impl<'a> Fields<'a> {
    /// `what` names the structure and says where it is: "group descriptor 3 at byte 4128".
    pub(crate) fn new(bytes: &'a [u8], what: &'a str) -> Self {
        Self { bytes, what }
    }

    /// `N` bytes from `at` on.
    pub(crate) fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Error> {
        let end = at.checked_add(N);
        let part = end.and_then(|end| self.bytes.get(at..end)).and_then(|p| p.first_chunk());
        part.copied().ok_or_else(|| self.cut(at, N))
    }

    /// `len` bytes from `at` on.
    pub(crate) fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], Error> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes.get(at..end)).ok_or_else(|| self.cut(at, len))
    }

    pub(crate) fn u8(&self, at: usize) -> Result<u8, Error> {
        Ok(self.array::<1>(at)?[0])
    }

    pub(crate) fn le16(&self, at: usize) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn le32(&self, at: usize) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn le64(&self, at: usize) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn be16(&self, at: usize) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.array(at)?))
    }

    pub(crate) fn be32(&self, at: usize) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.array(at)?))
    }

    pub(crate) fn be64(&self, at: usize) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.array(at)?))
    }

    fn cut(&self, at: usize, len: usize) -> Error {
        Error::damaged(format!(
            "{} has {} bytes, and {len} are wanted from byte {at} of it on",
            self.what,
            self.bytes.len()
        ))
    }
}
