//! The table of capital letters (specification, section 7.2).

use crate::Error;
use crate::fs::utf16;

/// All units of UTF-16, not packed.
pub(super) const BYTES_MAX: u64 = 128 << 10;
/// Stands before a number of units that are their own capitals.
const SAME: u16 = 0xffff;

/// Capital letters.
#[derive(Debug)]
pub(super) struct UpCase {
    table: Vec<u16>,
}

impl UpCase {
    /// Letters of ASCII only: for a volume whose table cannot be read.
    pub(super) fn ascii() -> Self {
        Self { table: (0u8..128).map(|b| b.to_ascii_uppercase().into()).collect() }
    }

    /// Unpacks a table, whose checksum must be `sum`.
    pub(super) fn parse(bytes: &[u8], sum: u32) -> Result<Self, Error> {
        let found = bytes.iter().fold(0u32, |s, b| s.rotate_right(1).wrapping_add((*b).into()));
        if found != sum {
            return Err(Error::damaged("the table of capital letters has a wrong checksum"));
        }
        let mut table: Vec<u16> = Vec::new();
        let mut units = utf16::le_units(bytes);
        while let Some(unit) = units.next() {
            let left = (1 << 16) - table.len();
            let count = match unit {
                // At the very end of a whole table it is the capital of 0xffff.
                SAME if left > 1 => usize::from(units.next().unwrap_or(0)),
                _ if left > 0 => {
                    table.push(unit);
                    continue;
                }
                _ => usize::MAX,
            };
            if count > left {
                return Err(Error::damaged("the table of capital letters is too long"));
            }
            let from = table.len();
            table.extend((from..from + count).map(|unit| unit as u16));
        }
        Ok(Self { table })
    }

    pub(super) fn of(&self, unit: u16) -> u16 {
        self.table.get(usize::from(unit)).copied().unwrap_or(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(units: &[u16]) -> Result<UpCase, Error> {
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let sum = bytes.iter().fold(0u32, |s, b| s.rotate_right(1).wrapping_add((*b).into()));
        assert!(UpCase::parse(&bytes, sum ^ 1).is_err());
        UpCase::parse(&bytes, sum)
    }

    #[test]
    fn packed_tables() {
        let table = parse(&[SAME, 97, 65, 66]).unwrap();
        assert_eq!([0, 97, 98, 99, 0xffff].map(|u| table.of(u)), [0, 65, 66, 99, 0xffff]);
        assert!(parse(&[SAME, 0xffff, SAME]).is_ok());
        assert!(parse(&[SAME, 0xffff, 1, 2]).is_err());
        assert!(parse(&[SAME, 0xffff, SAME, 0xffff]).is_err());
    }
}
