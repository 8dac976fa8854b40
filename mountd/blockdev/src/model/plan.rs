//! Random operations.

use std::ops::Range;

use crate::conformance::Numbers;
use crate::device::{Caps, WriteFlags};

/// What is done; the flags and numbers are the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    TryRead,
    /// Bytes of this tag.
    Write(u64, WriteFlags),
    Zeroes(WriteFlags),
    Trim(WriteFlags),
    Flush,
    Extents(usize),
    Presence(usize),
    Prefetch,
    Reopen,
    PowerCut,
}

/// One operation of the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Counted from 1 over the whole run.
    pub(super) number: u64,
    pub(super) thread: usize,
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, thread, kind, offset, len } = self;
        write!(f, "step {number} of thread {thread}: {kind:?}, {len} bytes at {offset}")
    }
}

impl Step {
    /// Whether it has to do with a byte: it covers it, or all bytes.
    pub(super) fn touches(&self, at: u64) -> bool {
        let all = matches!(self.kind, Kind::Flush | Kind::Reopen | Kind::PowerCut);
        all || (self.offset..self.offset + self.len).contains(&at)
    }
}

/// Makes steps on a part of a device.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) numbers: Numbers,
    pub(super) caps: Caps,
    pub(super) longest: u64,
    /// Numbers of steps are this far apart, so that threads have different ones.
    pub(super) stride: u64,
    pub(super) next: u64,
    pub(super) thread: usize,
    last: u64,
}

impl Plan {
    pub(super) fn new(seed: u64, caps: Caps, longest: u64) -> Self {
        let numbers = Numbers::new(seed);
        Self { numbers, caps, longest, stride: 1, next: 1, thread: 0, last: 0 }
    }

    /// A step on `range`.
    pub(super) fn step(&mut self, range: &Range<u64>) -> Step {
        let number = self.next;
        self.next += self.stride;
        let (offset, len) = self.place(range);
        self.last = offset;
        let kind = self.kind(number);
        Step { number, thread: self.thread, kind, offset, len }
    }

    fn kind(&mut self, number: u64) -> Kind {
        let caps = self.caps;
        let bits = self.numbers.below(8);
        let flags = WriteFlags { fua: caps.fua && bits & 1 != 0, ..WriteFlags::default() };
        let max = [1, 2, 7, 1000][self.numbers.below(4) as usize];
        match self.numbers.below(32) {
            0..12 if caps.writable => Kind::Write(number, flags),
            12..15 if caps.write_zeroes => Kind::Zeroes(WriteFlags {
                no_hole: bits & 2 != 0,
                fast_zero: caps.fast_zero && bits & 4 != 0,
                ..flags
            }),
            15 | 16 if caps.trim => Kind::Trim(flags),
            17 if caps.flush => Kind::Flush,
            18 | 19 => Kind::Extents(max),
            20 => Kind::Presence(max),
            21 => Kind::Prefetch,
            22..25 => Kind::TryRead,
            _ => Kind::Read,
        }
    }

    /// Short and long, aligned and not, at the ends, and over what was touched last.
    fn place(&mut self, range: &Range<u64>) -> (u64, u64) {
        let size = range.end - range.start;
        let longest =
            [1, 64, 512, 4096, 4096, 20_000, self.longest][self.numbers.below(7) as usize];
        let mut len = self.numbers.below(longest.min(self.longest) + 1).min(size);
        let mut at = match self.numbers.below(8) {
            0 => 0,
            1 => size - len,
            2 => self.last.saturating_sub(range.start).saturating_sub(self.numbers.below(512)),
            3 => self.last.saturating_sub(range.start) + self.numbers.below(512),
            _ => self.numbers.below(size + 1),
        };
        if self.numbers.below(3) == 0 {
            let grain = [512, 4096][self.numbers.below(2) as usize];
            at -= at % grain;
            len = len.next_multiple_of(grain);
        }
        let at = at.min(size);
        (range.start + at, len.min(size - at))
    }
}
