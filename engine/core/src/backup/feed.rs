//! Hands out the work of a backup: the next run of data, or the next hole, of the disks in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use backstay_blockdev::{BlockDevice, Extent, ExtentKind};

use crate::error::{Error, ErrorKind, Result};

/// Data handed to a worker at once: large enough that handing out costs nothing beside hashing,
/// small enough that a few workers' buffers stay small.
const SEGMENT_BYTES: u64 = 1 << 20;
/// The device's map is asked for in pieces: a bound on its answer, and on how long one call takes.
const WINDOW_BYTES: u64 = 1 << 30;
const WINDOW_EXTENTS: usize = 256;

/// A piece of work. Starts at a chunk border; ends at one or at the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Which disk, by position.
    pub(super) disk: usize,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Data must be read; a hole must not.
    pub(super) kind: ExtentKind,
}

/// Shared by the workers. Every byte of every disk is handed out exactly once.
#[derive(Debug)]
pub(super) struct Feed {
    disks: Vec<Arc<dyn BlockDevice>>,
    chunk_bytes: u64,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    disk: usize,
    /// Always a chunk border or the disk's end.
    offset: u64,
    /// The map from about `offset` on.
    map: VecDeque<Extent>,
}

impl Feed {
    pub(super) fn new(disks: Vec<Arc<dyn BlockDevice>>, chunk_bytes: u32) -> Feed {
        Feed { disks, chunk_bytes: chunk_bytes.into(), place: Mutex::default() }
    }

    /// Largest segment of data, in bytes.
    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.max(self.chunk_bytes)
    }

    /// The next segment; `None` when everything has been handed out.
    pub(super) fn next(&self) -> Result<Option<Segment>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut *place;
        loop {
            let Some(device) = self.disks.get(place.disk) else { return Ok(None) };
            let size = device.geometry().size_bytes;
            if place.offset >= size {
                *place = Place { disk: place.disk + 1, ..Place::default() };
                continue;
            }
            if place.map.is_empty() {
                let len = (size - place.offset).min(WINDOW_BYTES);
                place.map = device.extents(place.offset, len, WINDOW_EXTENTS)?.into();
            }
            let Some(extent) = place.map.front().copied() else {
                return Err(Error::new(ErrorKind::Io, "the device's map of holes is empty"));
            };
            let end = extent.offset_bytes.saturating_add(extent.len_bytes).min(size);
            if end <= place.offset {
                place.map.pop_front();
                continue;
            }
            return Ok(Some(self.cut(place, extent.kind, end, size)));
        }
    }

    /// Takes the segment that starts at the current place and lies in an extent that ends at `end`.
    fn cut(&self, place: &mut Place, kind: ExtentKind, end: u64, size: u64) -> Segment {
        let chunk = self.chunk_bytes;
        let start = place.offset;
        // A chunk that is only partly a hole is data.
        let hole_end = if end == size { size } else { end - end % chunk };
        let (kind, stop) = if kind == ExtentKind::Hole && hole_end > start {
            (ExtentKind::Hole, hole_end)
        } else {
            let whole = end.checked_next_multiple_of(chunk).unwrap_or(size);
            (ExtentKind::Data, whole.min(start.saturating_add(self.segment_bytes())).min(size))
        };
        place.offset = stop;
        Segment { disk: place.disk, offset: start, len: stop - start, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_blockdev::{Caps, Geometry};

    /// A device that is only a map; its holes are the listed ranges.
    #[derive(Debug)]
    struct Map {
        size: u64,
        holes: Vec<(u64, u64)>,
        /// Extents per answer.
        stingy: usize,
    }

    impl BlockDevice for Map {
        fn geometry(&self) -> Geometry {
            Geometry {
                size_bytes: self.size,
                min_block_bytes: 1,
                preferred_block_bytes: 4096,
                max_request_bytes: 1 << 20,
            }
        }
        fn caps(&self) -> Caps {
            Caps::default()
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), backstay_blockdev::Error> {
            unreachable!("the feed reads no data")
        }
        fn extents(
            &self,
            offset: u64,
            len: u64,
            max: usize,
        ) -> Result<Vec<Extent>, backstay_blockdev::Error> {
            let mut list = Vec::new();
            let mut at = offset;
            while at < offset + len {
                let hole = self.holes.iter().find(|(s, e)| (*s..*e).contains(&at));
                let next = self.holes.iter().map(|(s, _)| *s).filter(|s| *s > at).min();
                let (stop, kind) = match hole {
                    Some((_, e)) => (*e, ExtentKind::Hole),
                    None => (next.unwrap_or(self.size), ExtentKind::Data),
                };
                let stop = stop.min(offset + len);
                list.push(Extent { offset_bytes: at, len_bytes: stop - at, kind });
                at = stop;
            }
            list.truncate(max.min(self.stingy));
            Ok(list)
        }
    }

    fn feed(maps: Vec<Map>, chunk: u32) -> Vec<Segment> {
        let disks = maps.into_iter().map(|m| Arc::new(m) as Arc<dyn BlockDevice>).collect();
        let feed = Feed::new(disks, chunk);
        let mut all = Vec::new();
        while let Some(segment) = feed.next().unwrap() {
            all.push(segment);
            assert!(all.len() < 10_000, "it does not end");
        }
        all
    }

    #[test]
    fn every_byte_once_holes_apart() {
        const CHUNK: u64 = 4096;
        let size = 5 * (1 << 20) + 777;
        let holes = vec![
            (0, 1000),
            (5000, 20_000),
            (1 << 20, 3 << 20),
            ((3 << 20) + 1, (3 << 20) + 5000),
            (size - 100, size),
        ];
        for stingy in [1, 2, 3, 100] {
            let maps = || {
                vec![
                    Map { size, holes: holes.clone(), stingy },
                    Map { size: 1, holes: vec![], stingy },
                    Map { size: 1 << 40, holes: vec![(0, 1 << 40)], stingy },
                ]
            };
            let all = feed(maps(), 4096);
            for (disk, map) in maps().iter().enumerate() {
                let mut at = 0;
                for s in all.iter().filter(|s| s.disk == disk) {
                    assert_eq!(s.offset, at, "no gap, no overlap");
                    at += s.len;
                    assert!(s.offset.is_multiple_of(CHUNK) && s.len > 0);
                    assert!(at.is_multiple_of(CHUNK) || at == map.size);
                    match s.kind {
                        ExtentKind::Hole => assert!(
                            map.holes.iter().any(|(a, e)| *a <= s.offset && at <= *e),
                            "{s:?} is no hole"
                        ),
                        ExtentKind::Data => assert!(s.len <= SEGMENT_BYTES),
                    }
                }
                assert_eq!(at, map.size);
            }
            let hole: u64 = all
                .iter()
                .filter(|s| s.kind == ExtentKind::Hole && s.disk == 0)
                .map(|s| s.len)
                .sum();
            // 8192..20480 inside the second, all of the third, nothing of the small ones.
            assert_eq!(hole, (16_384 - 8192) + (2 << 20));
        }
    }

    #[test]
    fn a_chunk_larger_than_a_segment_is_one_segment() {
        let all = feed(vec![Map { size: 9 << 20, holes: vec![], stingy: 9 }], 4 << 20);
        assert_eq!(all.iter().map(|s| s.len).collect::<Vec<_>>(), [4 << 20, 4 << 20, 1 << 20]);
    }
}
