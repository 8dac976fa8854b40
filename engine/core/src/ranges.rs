//! Sets of byte ranges of a disk, bounded in memory however scattered they are.

use crate::error::{Error, ErrorKind, Result};

/// Most ranges kept, 16 MiB of them; beyond it neighbours are joined over small gaps.
pub const RANGES_MAX: usize = 1 << 20;
/// The finest grain that joining begins with.
const GRAIN_MIN: u64 = 128 << 10;

/// Byte ranges of a disk: in order, apart from each other, none empty.
///
/// The set may hold more than was put in, never less: beyond [`RANGES_MAX`] ranges it grows
/// coarser. It serves where more costs time and less costs data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Start and end of each.
    list: Vec<(u64, u64)>,
}

impl Ranges {
    /// The ranges given as (offset, length) in bytes, in any order; they may overlap.
    ///
    /// `Invalid`: a range ends beyond 2^64 bytes.
    pub fn from_any(ranges: impl IntoIterator<Item = (u64, u64)>) -> Result<Ranges> {
        let mut list = Vec::new();
        for (offset, len) in ranges {
            let end = offset.checked_add(len).ok_or_else(|| {
                let text = format!("{len} bytes from {offset} on are no range of a disk");
                Error::new(ErrorKind::Invalid, text)
            })?;
            list.push((offset, end));
        }
        list.sort_unstable();
        let mut all = Ranges::default();
        list.into_iter().for_each(|(start, end)| all.push(start, end));
        Ok(all)
    }

    /// Adds `start..end`, which must not start before the last range does.
    pub(crate) fn push(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        match self.list.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => self.list.push((start, end)),
        }
        let mut grain = GRAIN_MIN;
        while self.list.len() > RANGES_MAX {
            // Half, so that it does not begin anew with the next range.
            while self.list.len() > RANGES_MAX / 2 && grain < 1 << 62 {
                *self = self.aligned(grain, u64::MAX);
                grain *= 2;
            }
        }
    }

    /// The same grown to multiples of `grain` bytes, and cut off at `size`.
    pub(crate) fn aligned(&self, grain: u64, size: u64) -> Ranges {
        let mut out = Ranges::default();
        for &(start, end) in &self.list {
            let end = end.checked_next_multiple_of(grain).unwrap_or(u64::MAX).min(size);
            let start = start - start % grain;
            match out.list.last_mut() {
                _ if start >= end => {}
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => out.list.push((start, end)),
            }
        }
        out
    }

    /// The first range that ends after `offset`, as start and end.
    pub(crate) fn ending_after(&self, offset: u64) -> Option<(u64, u64)> {
        let i = self.list.partition_point(|(_, end)| *end <= offset);
        self.list.get(i).copied()
    }

    /// Bytes in all ranges together.
    pub fn total_bytes(&self) -> u64 {
        self.list.iter().map(|(start, end)| end - start).sum()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_joined_and_aligned() {
        let all = Ranges::from_any([(100, 10), (0, 5), (105, 20), (125, 1), (50, 0)]).unwrap();
        assert_eq!(all.list, [(0, 5), (100, 126)]);
        assert_eq!((all.len(), all.total_bytes(), all.is_empty()), (2, 31, false));
        assert_eq!(all.aligned(64, 1000).list, [(0, 128)]);
        assert_eq!(all.aligned(16, 120).list, [(0, 16), (96, 120)]);
        assert_eq!(all.aligned(16, 90).list, [(0, 16)]);
        assert_eq!(all.ending_after(0), Some((0, 5)));
        assert_eq!(all.ending_after(5), Some((100, 126)));
        assert_eq!(all.ending_after(125), Some((100, 126)));
        assert_eq!(all.ending_after(126), None);
        assert!(Ranges::from_any([]).unwrap().is_empty());
        assert_eq!(Ranges::from_any([(u64::MAX, 2)]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Ranges::from_any([(u64::MAX - 1, 1)]).unwrap().len(), 1);
    }

    #[test]
    fn too_many_ranges_grow_coarser_and_lose_nothing() {
        let mut all = Ranges::default();
        let places = || (0..3 * RANGES_MAX as u64).map(|i| i * 200_000);
        for start in places() {
            all.push(start, start + 1000);
            assert!(all.len() <= RANGES_MAX);
        }
        let held =
            |at: u64| all.ending_after(at).is_some_and(|(start, end)| start <= at && at < end);
        assert!(places().all(|start| held(start) && held(start + 999)));
        // Coarse, but not everything.
        assert!(all.len() > RANGES_MAX / 8, "{}", all.len());
    }
}
