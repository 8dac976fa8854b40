//! Arrays with parity (RAID 4, 5, 6), as long as what is read lies on a member that is there: which member has which chunk.
//! The layouts are those of Linux' md driver (`drivers/md/raid5.h` lists them by number).

use std::sync::Arc;

use super::map::{Leg, Map, Step, beyond};
use crate::Error;

/// How data and parity take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    level: u8,
    number: u32,
}

impl Layout {
    /// RAID 4, 5 or 6 with that layout; an error names it if it is not known.
    pub(super) fn new(level: u8, number: u32) -> Result<Self, Error> {
        let known = match level {
            4 => true,
            5 => number <= 5,
            6 => matches!(number, 0..=5 | 8..=10 | 16..=20),
            _ => false,
        };
        if !known {
            let text = format!("RAID {level} with layout {number} is not read here");
            return Err(Error::unsupported(text));
        }
        Ok(Self { level, number })
    }

    pub(super) fn parities(self) -> u64 {
        if self.level == 6 { 2 } else { 1 }
    }

    /// The member that has data chunk `index` of a row.
    fn place(self, row: u64, index: u64, members: u64) -> u64 {
        match (self.level, self.number) {
            // Level 4 has its parity behind the data, whatever the number.
            (4, _) => index,
            (5, number) => five(number, row, index, members),
            // The second parity is alone on the last member; the others are as RAID 5.
            (6, number @ 16..=20) => {
                let number = if number == 20 { 4 } else { number - 16 };
                five(number, row, index, members - 1)
            }
            (_, number) => six(number, row, index, members),
        }
    }
}

fn around(parity: u64, index: u64) -> u64 {
    if index >= parity { index + 1 } else { index }
}

fn five(number: u32, row: u64, index: u64, members: u64) -> u64 {
    let (left, right) = (members - 1 - row % members, row % members);
    match number {
        0 => around(left, index),
        1 => around(right, index),
        2 => (left + 1 + index) % members,
        3 => (right + 1 + index) % members,
        4 => index + 1,
        _ => index,
    }
}

fn six(number: u32, row: u64, index: u64, members: u64) -> u64 {
    // Both parities side by side; where they go around the end, the data are between them.
    let pair = |parity: u64| {
        if parity == members - 1 {
            index + 1
        } else if index >= parity {
            index + 2
        } else {
            index
        }
    };
    let (left, right) = (members - 1 - row % members, row % members);
    match number {
        0 => pair(left),
        1 | 8 => pair(right),
        2 => (left + 2 + index) % members,
        3 => (right + 2 + index) % members,
        4 => index + 2,
        5 => index,
        9 => pair(members - 1 - (row + 1) % members),
        // Q before P before the data.
        _ => (left + 1 + index) % members,
    }
}

/// An array with parity.
#[derive(Debug)]
pub(super) struct Parity {
    legs: Vec<Option<Leg>>,
    chunk: u64,
    layout: Layout,
    size: u64,
    why: Arc<str>,
    refused: Option<Arc<str>>,
}

impl Parity {
    /// `legs` that are missing are `None`: what lies on them is refused with `why`.
    pub(super) fn new(
        legs: Vec<Option<Leg>>,
        chunk: u64,
        layout: Layout,
        size: u64,
        why: &str,
    ) -> Result<Self, Error> {
        if (legs.len() as u64) < layout.parities() + 1 || chunk == 0 {
            let text = format!("{} members and chunks of {chunk} bytes", legs.len());
            return Err(Error::damaged(format!("an array with parity cannot have {text}")));
        }
        let why: Arc<str> = why.into();
        let below = || legs.iter().flatten().find_map(|leg| leg.map.refused());
        let lost = legs.iter().any(Option::is_none);
        let refused = if lost { Some(Arc::clone(&why)) } else { below() };
        Ok(Self { legs, chunk, layout, size, why, refused })
    }

    /// The row of a chunk, and the member it is on.
    fn row(&self, chunk: u64) -> (u64, u64) {
        let members = self.legs.len() as u64;
        let data = members - self.layout.parities();
        let row = chunk / data;
        (row, self.layout.place(row, chunk % data, members))
    }
}

impl Map for Parity {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let (chunk, skip) = (offset / self.chunk, offset % self.chunk);
        let len = len.min(self.chunk - skip).min(self.size.saturating_sub(offset));
        if len == 0 {
            return Err(beyond("the array", offset, self.size));
        }
        let (row, member) = self.row(chunk);
        match self.legs.get(member as usize) {
            Some(Some(leg)) => {
                let at = row.checked_mul(self.chunk).and_then(|at| at.checked_add(skip));
                leg.step(at, len)
            }
            _ => Err(Error::damaged(self.why.as_ref())),
        }
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.refused.clone()
    }
}
