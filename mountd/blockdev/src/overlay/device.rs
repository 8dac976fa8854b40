//! The overlay as a block device.

use std::ops::Range;

use super::map::{Run, State};
use super::{BLOCK_BYTES, Overlay};
use crate::device::{
    BlockDevice, Caps, Extent, ExtentKind, Geometry, Presence, PresenceExtent, WriteFlags,
    push_extent,
};
use crate::error::Error;

/// Runs looked at with the map locked; a longer range is done in several steps.
const RUNS_AT_ONCE: usize = 64;

impl Overlay {
    /// The first runs of a range of bytes, cut to it.
    fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, State)> {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        let cut = |run: Run| {
            let from = (run.first * BLOCK_BYTES).max(range.start);
            (from..(run.end() * BLOCK_BYTES).min(range.end), run.state)
        };
        self.map.read().runs(blocks).take(RUNS_AT_ONCE).map(cut).collect()
    }

    /// The run a byte lies in, if it holds the whole range: the usual case, without a list.
    fn single(&self, range: &Range<u64>) -> Option<State> {
        let first = range.start / BLOCK_BYTES;
        let end = range.end.div_ceil(BLOCK_BYTES);
        let run = self.map.read().run(first, end);
        (run.end() >= end).then_some(run.state)
    }

    /// Fills `buf`, which lies within the device and is not empty.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let end = offset + buf.len() as u64;
        if let Some(state) = self.single(&(offset..end)) {
            return self.read_piece(state, offset, buf);
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            for (range, state) in self.pieces(at..end) {
                let (part, more) = rest.split_at_mut((range.end - range.start) as usize);
                self.read_piece(state, range.start, part)?;
                at = range.end;
                rest = more;
            }
        }
        Ok(())
    }

    fn read_piece(&self, state: State, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        match state {
            State::Base => self.base.read_at(offset, buf),
            State::Zero => {
                buf.fill(0);
                Ok(())
            }
            State::Data => self.data.read_at(buf, offset).map_err(|e| {
                let what = format!("read of {} bytes at offset {offset} failed", buf.len());
                Error::os(self.context(&what), e)
            }),
        }
    }

    fn try_piece(&self, state: State, offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
        match state {
            State::Base => self.base.try_read_at(offset, buf),
            State::Zero => {
                buf.fill(0);
                Ok(true)
            }
            // A failure is told by `read_at`.
            State::Data => Ok(self.data.try_read_at(buf, offset).unwrap_or(false)),
        }
    }
}

impl BlockDevice for Overlay {
    fn geometry(&self) -> Geometry {
        let base = self.base.geometry();
        Geometry {
            size_bytes: self.header.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: BLOCK_BYTES as u32,
            max_request_bytes: base.max_request_bytes.max(BLOCK_BYTES as u32),
        }
    }

    fn caps(&self) -> Caps {
        let base = self.base.caps();
        Caps {
            writable: true,
            flush: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            fua: true,
            // One map and one flush for all who use it.
            multi_conn: true,
            rotational: base.rotational,
            presence: true,
        }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        if buf.is_empty() { Ok(()) } else { self.read(offset_bytes, buf) }
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(true);
        }
        let end = offset_bytes + buf.len() as u64;
        if let Some(state) = self.single(&(offset_bytes..end)) {
            return self.try_piece(state, offset_bytes, buf);
        }
        let mut rest = buf;
        let pieces = self.pieces(offset_bytes..end);
        if pieces.last().is_none_or(|(range, _)| range.end < end) {
            return Ok(false);
        }
        for (range, state) in pieces {
            let (part, more) = rest.split_at_mut((range.end - range.start) as usize);
            if !self.try_piece(state, range.start, part)? {
                return Ok(false);
            }
            rest = more;
        }
        Ok(true)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        let max = max.max(1);
        let mut list: Vec<Extent> = Vec::new();
        let mut at = offset_bytes;
        while at < end {
            for (range, state) in self.pieces(at..end) {
                let (offset_bytes, len_bytes) = (range.start, range.end - range.start);
                let found = match state {
                    State::Base => self.base.extents(offset_bytes, len_bytes, max)?,
                    State::Data => {
                        vec![Extent { offset_bytes, len_bytes, kind: ExtentKind::Data }]
                    }
                    State::Zero => {
                        vec![Extent { offset_bytes, len_bytes, kind: ExtentKind::Hole }]
                    }
                };
                for extent in found {
                    if list.len() == max && list.last().is_some_and(|e| e.kind != extent.kind) {
                        return Ok(list);
                    }
                    at = extent.offset_bytes + extent.len_bytes;
                    push_extent(&mut list, extent);
                }
                if at < range.end {
                    // The base told only a part: the caller asks again from there.
                    return Ok(list);
                }
            }
        }
        Ok(list)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let mut list: Vec<PresenceExtent> = Vec::new();
        if len_bytes == 0 {
            return Ok(list);
        }
        let own = Presence { stored: false, at_hand: true, overlaid: true };
        for (range, state) in self.pieces(offset_bytes..offset_bytes + len_bytes) {
            let (offset_bytes, len_bytes) = (range.start, range.end - range.start);
            let found = match state {
                State::Base => self.base.presence(offset_bytes, len_bytes, max.max(1))?,
                _ => vec![PresenceExtent { offset_bytes, len_bytes, presence: own }],
            };
            let mut told = 0;
            for extent in found {
                told += extent.len_bytes;
                if let Some(last) = list.last_mut()
                    && last.presence == extent.presence
                {
                    last.len_bytes += extent.len_bytes;
                    continue;
                }
                if list.len() >= max.max(1) {
                    return Ok(list);
                }
                list.push(extent);
            }
            if told < len_bytes {
                break;
            }
        }
        Ok(list)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        if len_bytes == 0 || self.geometry().check(offset_bytes, len_bytes).is_err() {
            return;
        }
        for (range, state) in self.pieces(offset_bytes..offset_bytes + len_bytes) {
            if state == State::Base {
                self.base.prefetch(range.start, range.end - range.start);
            }
        }
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset_bytes, data.len() as u64)?;
        self.write(offset_bytes, data, flags)
    }

    fn flush(&self) -> Result<(), Error> {
        self.settle()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.discard(offset_bytes, len_bytes, flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.zero(offset_bytes, len_bytes, flags)
    }
}
