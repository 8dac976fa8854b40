//! What each byte of a device may be.

use std::ops::Range;

use crate::device::{Extent, PresenceExtent};

/// One bit for each thing a byte may be. The low 16 are the values that writes of the model give to
/// the byte's place: their high half says where the place is, so that bytes of another place are told
/// apart, their low half is the write's own.
pub(super) type Candidates = u32;

/// The byte may be zero.
pub(super) const ZERO: Candidates = 1 << 16;
/// The byte may be what it was at the start.
const INITIAL: Candidates = 1 << 17;
/// The byte was trimmed, and need not stay the same.
const TRIMMED: Candidates = 1 << 31;
/// After a trim: zero, or whatever was at the place before; never something of another place.
pub(super) const AFTER_TRIM: Candidates = TRIMMED | INITIAL | ZERO | 0xffff;

fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The high half of what is written at `offset`; never 0.
fn class(offset: u64) -> u8 {
    (1 + (mix(offset) >> 40) % 15) as u8
}

/// The byte that the write `tag` puts at `offset`.
pub(super) fn value(tag: u64, offset: u64) -> u8 {
    class(offset) << 4 | (mix(tag ^ offset.rotate_left(32)) >> 50 & 15) as u8
}

/// The candidate that this is.
pub(super) fn written(tag: u64, offset: u64) -> Candidates {
    1 << (value(tag, offset) & 15)
}

/// A part of a device, and what its bytes may be.
#[derive(Debug)]
pub(super) struct Oracle {
    start: u64,
    initial: Vec<u8>,
    /// The high half of what the model writes there, by [`class`].
    classes: Vec<u8>,
    now: Vec<Candidates>,
    /// What they may be after a power cut.
    cut: Vec<Candidates>,
}

impl Oracle {
    pub(super) fn new(initial: Vec<u8>) -> Self {
        let all = vec![INITIAL; initial.len()];
        let classes = (0..initial.len() as u64).map(class).collect();
        Self { start: 0, initial, classes, now: all.clone(), cut: all }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + self.initial.len() as u64
    }

    fn indices(&self, offset: u64, len: u64) -> Range<usize> {
        (offset - self.start) as usize..(offset - self.start + len) as usize
    }

    /// Takes the part from `at` on away.
    pub(super) fn split_off(&mut self, at: u64) -> Self {
        let index = (at - self.start) as usize;
        Self {
            start: at,
            initial: self.initial.split_off(index),
            classes: self.classes.split_off(index),
            now: self.now.split_off(index),
            cut: self.cut.split_off(index),
        }
    }

    /// Puts the part behind this one back.
    pub(super) fn join(&mut self, next: Self) {
        self.initial.extend(next.initial);
        self.classes.extend(next.classes);
        self.now.extend(next.now);
        self.cut.extend(next.cut);
    }

    pub(super) fn now(&self, offset: u64, len: u64) -> &[Candidates] {
        &self.now[self.indices(offset, len)]
    }

    /// A change that returned. `durable`: it lasts; `sure`: it was done (and not only perhaps).
    pub(super) fn change(
        &mut self,
        offset: u64,
        len: u64,
        (durable, sure): (bool, bool),
        new: impl Fn(u64) -> Candidates,
    ) {
        for index in self.indices(offset, len) {
            let candidate = new(self.start + index as u64);
            if sure {
                self.now[index] = candidate;
            } else {
                self.now[index] |= candidate;
            }
            if durable && sure {
                self.cut[index] = candidate;
            } else {
                self.cut[index] |= candidate;
            }
        }
    }

    /// Sets what bytes may be now; what they may be after a power cut only grows.
    pub(super) fn set(&mut self, offset: u64, candidates: &[Candidates]) {
        let indices = self.indices(offset, candidates.len() as u64);
        self.now[indices.clone()].copy_from_slice(candidates);
        self.cut[indices].iter_mut().zip(candidates).for_each(|(cut, new)| *cut |= new);
    }

    pub(super) fn flushed(&mut self) {
        self.cut.copy_from_slice(&self.now);
    }

    /// The power went: what was not flushed may be gone.
    pub(super) fn power_cut(&mut self) {
        self.now.copy_from_slice(&self.cut);
    }

    /// The candidates that `seen` is, of those in `allowed`.
    fn fitting(&self, index: usize, allowed: Candidates, seen: u8) -> Candidates {
        let mut fits = 0;
        if seen == 0 {
            fits |= ZERO;
        }
        if seen == self.initial[index] {
            fits |= INITIAL;
        }
        if seen >> 4 == self.classes[index] {
            fits |= 1 << (seen & 15);
        }
        fits & allowed
    }

    /// The first byte of `seen`, read from `offset` on, that cannot be: its offset, and what is wrong.
    pub(super) fn check(
        &self,
        offset: u64,
        seen: &[u8],
        allowed: &[Candidates],
    ) -> Result<(), (u64, String)> {
        let first = self.indices(offset, 0).start;
        for (i, (seen, allowed)) in seen.iter().zip(allowed).enumerate() {
            if self.fitting(first + i, *allowed, *seen) == 0 {
                let at = offset + i as u64;
                return Err((
                    at,
                    format!("byte {at} is {seen:#04x}, {}", self.expected(at, *allowed)),
                ));
            }
        }
        Ok(())
    }

    /// Takes what was seen as the truth; what is durable of it is not known better than before.
    pub(super) fn settle(&mut self, offset: u64, seen: &[u8]) {
        let first = self.indices(offset, 0).start;
        for (i, seen) in seen.iter().enumerate() {
            let now = self.now[first + i];
            if now & TRIMMED == 0 {
                self.now[first + i] = self.fitting(first + i, now, *seen);
            }
        }
    }

    fn expected(&self, at: u64, allowed: Candidates) -> String {
        let mut list: Vec<String> = (0..16u8)
            .filter(|low| allowed & 1 << low != 0)
            .map(|low| format!("{:#04x}", class(at) << 4 | low))
            .collect();
        if allowed & ZERO != 0 {
            list.push("0x00".to_owned());
        }
        if allowed & INITIAL != 0 {
            let initial = self.initial[(at - self.start) as usize];
            list.push(format!("{initial:#04x} (as at the start)"));
        }
        format!("and can only be {}", list.join(", "))
    }

    /// Holds a list of extents of `[offset, offset + len)` to its shape, and its holes to zeros.
    pub(super) fn check_extents(
        &self,
        (offset, len, max): (u64, u64, usize),
        list: &[Extent],
    ) -> Result<(), (u64, String)> {
        check_shape((offset, len, max), list, |e| (e.offset_bytes, e.len_bytes), |e| e.kind)?;
        for extent in list.iter().filter(|extent| extent.kind.is_zero()) {
            let indices = self.indices(extent.offset_bytes, extent.len_bytes);
            for index in indices {
                let zero = self.fitting(index, self.now[index], 0) != 0;
                if !zero {
                    let at = self.start + index as u64;
                    let expected = self.expected(at, self.now[index]);
                    return Err((at, format!("byte {at} lies in {extent:?}, {expected}")));
                }
            }
        }
        Ok(())
    }
}

/// Holds a list of presence to its shape.
pub(super) fn check_presence(
    asked: (u64, u64, usize),
    list: &[PresenceExtent],
) -> Result<(), (u64, String)> {
    check_shape(asked, list, |e| (e.offset_bytes, e.len_bytes), |e| e.presence)
}

fn check_shape<E: std::fmt::Debug, K: PartialEq>(
    (offset, len, max): (u64, u64, usize),
    list: &[E],
    range: impl Fn(&E) -> (u64, u64),
    kind: impl Fn(&E) -> K,
) -> Result<(), (u64, String)> {
    if list.len() > max || list.is_empty() != (len == 0) {
        return Err((offset, format!("{} of at most {max} extents", list.len())));
    }
    let mut end = offset;
    for (i, extent) in list.iter().enumerate() {
        let (at, extent_len) = range(extent);
        let merged = i == 0 || kind(&list[i - 1]) != kind(extent);
        let next = at.checked_add(extent_len);
        if at != end || extent_len == 0 || !merged || next.is_none_or(|next| next > offset + len) {
            return Err((
                end,
                format!("{extent:?} has the wrong shape in an answer for {len} bytes at {offset}"),
            ));
        }
        end = at + extent_len;
    }
    Ok(())
}
