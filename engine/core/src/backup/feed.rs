//! Hands out the work of a backup: the next run of data, or the next hole, of the disks in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use backstay_blockdev::{BlockDevice, Extent, ExtentKind};

use crate::error::{Error, ErrorKind, Result};
use crate::ranges::Ranges;

/// Data handed to a worker at once: large enough that handing out costs nothing beside hashing,
/// small enough that a few workers' buffers stay small.
const SEGMENT_BYTES: u64 = 1 << 20;
/// The device's map is asked for in pieces: a bound on its answer, and on how long one call takes.
const WINDOW_BYTES: u64 = 1 << 30;
const WINDOW_EXTENTS: usize = 256;

/// What is to be done with a piece of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Read it.
    Data,
    /// It is a hole; nothing is read.
    Hole,
    /// It is as in the base; nothing is read.
    Keep,
}

/// A piece of work. Starts at a chunk border; ends at one or at the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Which disk, by position.
    pub(crate) disk: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) task: Task,
}

/// One disk, and how it is gone through.
#[derive(Debug)]
pub(crate) struct FeedDisk {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// What must be read, in whole chunks; the rest is as in the base. `None`: all of it.
    pub(crate) read: Option<Ranges>,
}

/// Shared by the workers. Every byte of every disk is handed out exactly once.
#[derive(Debug)]
pub(crate) struct Feed {
    disks: Vec<FeedDisk>,
    chunk_bytes: u64,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    /// Everything before this byte of this disk is handed out or in `region`.
    disk: usize,
    offset: u64,
    region: Region,
    /// Runs that turned out not to be as in the base after all.
    again: Vec<Region>,
}

/// A run of a disk that must be read.
#[derive(Debug, Default)]
struct Region {
    disk: usize,
    /// Always a chunk border or the disk's end.
    offset: u64,
    end: u64,
    /// The device's map from about `offset` on.
    map: VecDeque<Extent>,
}

impl Feed {
    pub(crate) fn new(disks: Vec<FeedDisk>, chunk_bytes: u32) -> Feed {
        Feed { disks, chunk_bytes: chunk_bytes.into(), place: Mutex::default() }
    }

    /// Largest segment of data, in bytes.
    pub(crate) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.max(self.chunk_bytes)
    }

    /// The next segment; `None` when everything has been handed out.
    pub(crate) fn next(&self) -> Result<Option<Segment>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut *place;
        loop {
            if place.region.offset < place.region.end {
                return self.segment_of(&mut place.region).map(Some);
            }
            if let Some(run) = place.again.pop() {
                place.region = run;
                continue;
            }
            let Some(disk) = self.disks.get(place.disk) else { return Ok(None) };
            let size = disk.device.geometry().size_bytes;
            if place.offset >= size {
                (place.disk, place.offset) = (place.disk + 1, 0);
                continue;
            }
            let (start, end) = match &disk.read {
                None => (place.offset, size),
                Some(ranges) => ranges.ending_after(place.offset).unwrap_or((size, size)),
            };
            let from = place.offset;
            if start > from {
                place.offset = start;
                let task = Task::Keep;
                let len = start - from;
                return Ok(Some(Segment { disk: place.disk, offset: from, len, task }));
            }
            place.region = Region { disk: place.disk, offset: from, end, map: VecDeque::default() };
            place.offset = end;
        }
    }

    /// Takes a segment back that was to be kept: it is handed out again, to be read.
    pub(crate) fn read_instead(&self, segment: Segment) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let Segment { disk, offset, len, .. } = segment;
        place.again.push(Region { disk, offset, end: offset + len, map: VecDeque::default() });
    }

    /// The next segment of a region that is not at its end.
    fn segment_of(&self, region: &mut Region) -> Result<Segment> {
        let gone = || Error::new(ErrorKind::Invalid, "a region of a disk that is not there");
        let device = &self.disks.get(region.disk).ok_or_else(gone)?.device;
        loop {
            if region.map.is_empty() {
                let len = (region.end - region.offset).min(WINDOW_BYTES);
                region.map = device.extents(region.offset, len, WINDOW_EXTENTS)?.into();
            }
            let Some(extent) = region.map.front().copied() else {
                return Err(Error::new(ErrorKind::Io, "the device's map of holes is empty"));
            };
            let end = extent.offset_bytes.saturating_add(extent.len_bytes).min(region.end);
            if end <= region.offset {
                region.map.pop_front();
                continue;
            }
            return Ok(self.cut(region, extent.kind, end));
        }
    }

    /// Takes the segment that starts at the current place and lies in an extent that ends at `end`.
    fn cut(&self, region: &mut Region, kind: ExtentKind, end: u64) -> Segment {
        let chunk = self.chunk_bytes;
        let (start, last) = (region.offset, region.end);
        // A chunk that is only partly a hole is data.
        let hole_end = if end == last { last } else { end - end % chunk };
        let (task, stop) = if kind.is_zero() && hole_end > start {
            (Task::Hole, hole_end)
        } else {
            let whole = end.checked_next_multiple_of(chunk).unwrap_or(last);
            (Task::Data, whole.min(start.saturating_add(self.segment_bytes())).min(last))
        };
        region.offset = stop;
        Segment { disk: region.disk, offset: start, len: stop - start, task }
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
        feed_of(maps.into_iter().map(|m| FeedDisk { device: Arc::new(m), read: None }), chunk)
    }

    fn feed_of(disks: impl Iterator<Item = FeedDisk>, chunk: u32) -> Vec<Segment> {
        let feed = Feed::new(disks.collect(), chunk);
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
                    match s.task {
                        Task::Keep => panic!("{s:?}: nothing was to be kept"),
                        Task::Hole => assert!(
                            map.holes.iter().any(|(a, e)| *a <= s.offset && at <= *e),
                            "{s:?} is no hole"
                        ),
                        Task::Data => assert!(s.len <= SEGMENT_BYTES),
                    }
                }
                assert_eq!(at, map.size);
            }
            let hole: u64 =
                all.iter().filter(|s| s.task == Task::Hole && s.disk == 0).map(|s| s.len).sum();
            // 8192..20480 inside the second, all of the third, nothing of the small ones.
            assert_eq!(hole, (16_384 - 8192) + (2 << 20));
        }
    }

    #[test]
    fn a_chunk_larger_than_a_segment_is_one_segment() {
        let all = feed(vec![Map { size: 9 << 20, holes: vec![], stingy: 9 }], 4 << 20);
        assert_eq!(all.iter().map(|s| s.len).collect::<Vec<_>>(), [4 << 20, 4 << 20, 1 << 20]);
    }

    #[test]
    fn only_what_must_be_read_is_and_the_rest_is_kept_in_one_piece() {
        const CHUNK: u64 = 4096;
        let size = (1 << 40) + 5;
        let holes = vec![(3 * CHUNK, 5 * CHUNK), (1 << 30, size)];
        let ranges = |list: &[(u64, u64)]| {
            Some(Ranges::from_any(list.iter().map(|(s, e)| (*s, e - s))).unwrap())
        };
        for stingy in [1, 100] {
            let disk = |read| {
                let map = Map { size, holes: holes.clone(), stingy };
                FeedDisk { device: Arc::new(map), read }
            };
            let read = ranges(&[(2 * CHUNK, 7 * CHUNK), (1 << 20, 3 << 20), (1 << 40, size)]);
            let all = feed_of([disk(read), disk(ranges(&[]))].into_iter(), 4096);
            let told: Vec<_> =
                all.iter().map(|s| (s.disk, s.task, s.offset, s.offset + s.len)).collect();
            assert_eq!(
                told,
                [
                    (0, Task::Keep, 0, 2 * CHUNK),
                    (0, Task::Data, 2 * CHUNK, 3 * CHUNK),
                    (0, Task::Hole, 3 * CHUNK, 5 * CHUNK),
                    (0, Task::Data, 5 * CHUNK, 7 * CHUNK),
                    (0, Task::Keep, 7 * CHUNK, 1 << 20),
                    (0, Task::Data, 1 << 20, 2 << 20),
                    (0, Task::Data, 2 << 20, 3 << 20),
                    (0, Task::Keep, 3 << 20, 1 << 40),
                    (0, Task::Hole, 1 << 40, size),
                    (1, Task::Keep, 0, size),
                ]
            );
        }
    }

    #[test]
    fn what_cannot_be_kept_is_handed_out_to_be_read() {
        let map = Map { size: 5 << 20, holes: vec![(1 << 20, 2 << 20)], stingy: 9 };
        let read = Some(Ranges::from_any([(4 << 20, 1 << 20)]).unwrap());
        let feed = Feed::new(vec![FeedDisk { device: Arc::new(map), read }], 65_536);
        let next = || feed.next().unwrap();
        let kept = next().unwrap();
        assert_eq!((kept.task, kept.len), (Task::Keep, 4 << 20));
        let last = next().unwrap();
        feed.read_instead(kept);
        let rest: Vec<_> = std::iter::from_fn(next).map(|s| (s.task, s.offset >> 20)).collect();
        assert_eq!(rest, [(Task::Data, 0), (Task::Hole, 1), (Task::Data, 2), (Task::Data, 3)]);
        assert_eq!((last.task, last.offset), (Task::Data, 4 << 20));
    }
}
