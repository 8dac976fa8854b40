//! Hands out the work of a restore: runs of data and of holes, in order.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use backstay_store::ImageReader;

use crate::error::Result;

/// Data read and written at once. Neighbours in a pack are fetched as one read, so a run should
/// span several chunks of every size.
const RUN_BYTES: u64 = 4 << 20;
/// Holes are passed on in pieces of at most this, so that cancelling and progress get their turn.
const HOLE_BYTES: u64 = 256 << 20;
/// The image's map is asked for in pieces; this bounds what one call walks.
const WINDOW_BYTES: u64 = 1 << 30;
const WINDOW_EXTENTS: usize = 256;

/// A part of the disk. Starts at a chunk border; ends at one or at the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Runs are numbered in the order of their offsets, without gaps.
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Data must be read; otherwise it is a hole.
    pub(super) data: bool,
}

/// Shared by the workers. The runs cover the disk exactly once.
#[derive(Debug)]
pub(super) struct Runs {
    reader: ImageReader,
    run_bytes: u64,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    number: u64,
    offset: u64,
    map: VecDeque<(u64, u64, bool)>,
}

impl Runs {
    pub(super) fn new(reader: ImageReader) -> Runs {
        let run_bytes = RUN_BYTES.max(reader.chunk_size().bytes().into());
        Runs { reader, run_bytes, place: Mutex::default() }
    }

    /// The next run; `None` after the last.
    pub(super) fn next(&self) -> Result<Option<Run>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.reader.size_bytes();
        if place.offset >= size {
            return Ok(None);
        }
        if place.map.is_empty() {
            let len = (size - place.offset).min(WINDOW_BYTES);
            place.map = self.reader.extents(place.offset, len, WINDOW_EXTENTS)?.into();
        }
        let Some((start, len, data)) = place.map.pop_front() else { return Ok(None) };
        let limit = if data { self.run_bytes } else { HOLE_BYTES };
        if len > limit {
            place.map.push_front((start + limit, len - limit, data));
        }
        let run = Run { number: place.number, offset: start, len: len.min(limit), data };
        place.number += 1;
        place.offset = run.offset + run.len;
        Ok(Some(run))
    }
}
