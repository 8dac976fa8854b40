//! Where the bytes of a volume are: layers of segments and stripes, down to the disks of the machine.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Where a byte is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it reads as zeros.
    Zeros,
    /// On a disk of the machine.
    Disk { disk: usize, offset: u64 },
}

/// One step of a walk: the next `len` bytes (never 0) are in one place, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) len: u64,
    pub(crate) place: Place,
}

/// A layer that turns an offset into a place.
///
/// Layers are made from the bottom up, each over such that were there before, so that a chain of them ends; how many can
/// lie over each other is bounded by those who make them.
pub(crate) trait Map: fmt::Debug + Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Where the bytes from `offset` on are. `offset < size()`, `len > 0`; answers for 1 to `len` bytes.
    fn step(&self, offset: u64, len: u64) -> Result<Step, Error>;

    /// Whether some of its bytes are refused: why. Cheap.
    fn refused(&self) -> Option<Arc<str>> {
        None
    }
}

/// A whole disk of the machine.
#[derive(Debug)]
pub(crate) struct WholeDisk {
    pub(crate) disk: usize,
    pub(crate) size: u64,
}

impl Map for WholeDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let left = self.size.saturating_sub(offset);
        if left == 0 {
            return Err(beyond("the disk", offset, self.size));
        }
        Ok(Step { len: len.min(left), place: Place::Disk { disk: self.disk, offset } })
    }
}

/// What a segment leads to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// It reads as zeros.
    Zeros,
    /// It cannot be read, and this is why: a disk is missing.
    Refused(Arc<str>),
    /// Into a layer below, from this offset of it on.
    Below(Arc<dyn Map>, u64),
}

#[derive(Debug)]
struct Segment {
    start: u64,
    len: u64,
    target: Target,
}

/// Segments one after the other.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    list: Vec<Segment>,
    size: u64,
    /// Known when a segment comes: asking each time would go down the same layers again and again.
    refused: Option<Arc<str>>,
}

impl Segments {
    /// One segment.
    pub(crate) fn one(len: u64, target: Target) -> Self {
        let mut segments = Self::default();
        // One segment of any length ends at that length.
        let _ = segments.push(len, target);
        segments
    }

    /// Puts a segment behind the last one.
    pub(crate) fn push(&mut self, len: u64, target: Target) -> Result<(), Error> {
        let Some(size) = self.size.checked_add(len) else {
            return Err(Error::damaged("the segments of a volume are longer than any disk"));
        };
        if len > 0 {
            if self.refused.is_none() {
                self.refused = match &target {
                    Target::Zeros => None,
                    Target::Refused(why) => Some(Arc::clone(why)),
                    Target::Below(map, _) => map.refused(),
                };
            }
            self.list.push(Segment { start: self.size, len, target });
            self.size = size;
        }
        Ok(())
    }
}

impl Map for Segments {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let index = self.list.partition_point(|s| s.start + s.len <= offset);
        let Some(segment) = self.list.get(index) else {
            return Err(beyond("the volume", offset, self.size));
        };
        let skip = offset - segment.start;
        let len = len.min(segment.len - skip);
        match &segment.target {
            Target::Zeros => Ok(Step { len, place: Place::Zeros }),
            Target::Refused(why) => Err(Error::damaged(why.as_ref())),
            Target::Below(map, start) => below(map, start.checked_add(skip), len),
        }
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.refused.clone()
    }
}

/// A step in a layer below, whose size is checked here: what lies behind its end is an error and not taken from elsewhere.
pub(crate) fn below(map: &Arc<dyn Map>, offset: Option<u64>, len: u64) -> Result<Step, Error> {
    let size = map.size();
    match offset {
        Some(offset) if offset < size => map.step(offset, len.min(size - offset)),
        _ => Err(beyond("what holds the volume", offset.unwrap_or(u64::MAX), size)),
    }
}

pub(crate) fn beyond(what: &str, offset: u64, size: u64) -> Error {
    Error::damaged(format!("{what} has {size} bytes, and byte {offset} is asked for"))
}

/// A leg of a striped volume: the layer and where its data start.
#[derive(Debug, Clone)]
pub(crate) struct Leg {
    pub(crate) map: Arc<dyn Map>,
    pub(crate) start: u64,
}

impl Leg {
    /// A leg that is not there.
    pub(crate) fn refused(size: u64, why: &str) -> Self {
        Self { map: Arc::new(Segments::one(size, Target::Refused(why.into()))), start: 0 }
    }

    pub(crate) fn step(&self, offset: Option<u64>, len: u64) -> Result<Step, Error> {
        below(&self.map, offset.and_then(|offset| self.start.checked_add(offset)), len)
    }
}

/// Chunks dealt out to legs in turn; `copies` of each chunk side by side (RAID 10 "near"), of which one that is there is read.
#[derive(Debug)]
pub(crate) struct Stripes {
    legs: Vec<Option<Leg>>,
    chunk: u64,
    copies: u64,
    size: u64,
    why: Arc<str>,
    refused: Option<Arc<str>>,
}

impl Stripes {
    /// `legs` that are missing are `None`; `refused` is said where no copy of a chunk is there.
    pub(crate) fn new(
        legs: Vec<Option<Leg>>,
        chunk: u64,
        copies: usize,
        size: u64,
        refused: &str,
    ) -> Result<Self, Error> {
        if legs.is_empty() || chunk == 0 || copies == 0 || copies > legs.len() {
            let text = format!("{} stripes of {chunk} bytes, {copies} copies", legs.len());
            return Err(Error::damaged(format!("a striped volume cannot have {text}")));
        }
        let why: Arc<str> = refused.into();
        // Chunk n has its copies on the legs from n * copies on, so these are all the places a run of copies can start at.
        let lost = (0..legs.len())
            .any(|n| (0..copies).all(|copy| legs[(n * copies + copy) % legs.len()].is_none()));
        let below = || legs.iter().flatten().find_map(|leg| leg.map.refused());
        let refused = if lost { Some(Arc::clone(&why)) } else { below() };
        Ok(Self { legs, chunk, copies: copies as u64, size, why, refused })
    }
}

impl Map for Stripes {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let (chunk, skip) = (offset / self.chunk, offset % self.chunk);
        let len = len.min(self.chunk - skip).min(self.size.saturating_sub(offset));
        if len == 0 {
            return Err(beyond("the striped volume", offset, self.size));
        }
        let legs = self.legs.len() as u64;
        for copy in 0..self.copies {
            let Some(at) = chunk.checked_mul(self.copies).and_then(|at| at.checked_add(copy))
            else {
                return Err(beyond("the striped volume", offset, self.size));
            };
            if let Some(Some(leg)) = self.legs.get((at % legs) as usize) {
                let row = (at / legs).checked_mul(self.chunk).and_then(|row| row.checked_add(skip));
                return leg.step(row, len);
            }
        }
        Err(Error::damaged(self.why.as_ref()))
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.refused.clone()
    }
}
