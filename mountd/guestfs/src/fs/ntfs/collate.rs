//! The order of names in directories, by the volume's own table of capital letters ($UpCase).

use std::cmp::Ordering;

use crate::fs::utf16;

/// The table has an entry for each unit of UTF-16.
pub(super) const TABLE_BYTES: usize = 128 << 10;

/// Capital letters.
#[derive(Debug)]
pub(super) struct UpCase {
    table: Vec<u16>,
}

impl UpCase {
    /// From the content of $UpCase. Units it has no entry for are their own capitals.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { table: utf16::le_units(bytes).collect() }
    }

    pub(super) fn of(&self, unit: u16) -> u16 {
        self.table.get(usize::from(unit)).copied().unwrap_or(unit)
    }

    /// Compares names as directories are sorted, without regard to case.
    pub(super) fn compare(
        &self,
        a: impl Iterator<Item = u16>,
        b: impl Iterator<Item = u16>,
    ) -> Ordering {
        a.map(|unit| self.of(unit)).cmp(b.map(|unit| self.of(unit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_case_of_letters_does_not_count() {
        let table: Vec<u8> = (0..=u16::MAX)
            .map(|u| char::from_u32(u.into()).map_or(u, |c| c.to_ascii_uppercase() as u16))
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(table.len(), TABLE_BYTES);
        let upcase = UpCase::new(&table);
        let compare = |a: &str, b: &str| upcase.compare(a.encode_utf16(), b.encode_utf16());
        assert_eq!(compare("aBc", "AbC"), Ordering::Equal);
        assert_eq!(compare("a_", "AB"), Ordering::Greater);
        assert_eq!(compare("a", "AB"), Ordering::Less);
    }
}
