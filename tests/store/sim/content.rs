//! Disks of a few chunks, kept as the numbers that their chunks are made from.

use crate::support::CHUNK;

use super::schedule::Rng;

/// Chunks that all machines share.
const COMMON: u32 = 10;
/// Chunks of a large disk: its tree has two levels.
const LARGE: usize = 70;

/// A disk: a number for each chunk, zero for a hole; and what its last chunk lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) chunks: Vec<u32>,
    cut: usize,
}

/// Hands out numbers that no chunk had before.
#[derive(Debug)]
pub(crate) struct Fresh(u32);

impl Default for Fresh {
    fn default() -> Self {
        Self(1000)
    }
}

impl Fresh {
    fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

fn chunk(rng: &mut Rng, fresh: &mut Fresh) -> u32 {
    match rng.below(10) {
        0 | 1 => 0,
        2..=5 => 1 + rng.below(COMMON as usize) as u32,
        _ => fresh.next(),
    }
}

impl Content {
    /// A disk of its own.
    pub(crate) fn draw(rng: &mut Rng, fresh: &mut Fresh, small: bool) -> Self {
        let cut = rng.pick(&[0, 0, 100]).unwrap_or(0);
        if !small && rng.chance(60) {
            let mut chunks = vec![0; LARGE];
            for _ in 0..6 {
                chunks[rng.below(LARGE)] = chunk(rng, fresh);
            }
            return Self { chunks, cut };
        }
        let chunks =
            (0..2 + rng.below(if small { 3 } else { 8 })).map(|_| chunk(rng, fresh)).collect();
        Self { chunks, cut }
    }

    /// The same disk a day later.
    pub(crate) fn age(&mut self, rng: &mut Rng, fresh: &mut Fresh) {
        for _ in 0..rng.below(4) {
            let at = rng.below(self.chunks.len());
            self.chunks[at] = chunk(rng, fresh);
        }
        if rng.chance(100) {
            self.chunks.push(chunk(rng, fresh));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.len() * CHUNK - self.cut
    }

    /// The bytes of `count` chunks from `first` on.
    pub(crate) fn bytes(&self, first: usize, count: usize) -> Vec<u8> {
        let end = (first + count).min(self.chunks.len());
        let mut out = Vec::with_capacity(count * CHUNK);
        for &number in &self.chunks[first..end] {
            fill(number, &mut out);
        }
        out.truncate(self.len() - first * CHUNK);
        out
    }

    /// The whole disk.
    pub(crate) fn all(&self) -> Vec<u8> {
        self.bytes(0, self.chunks.len())
    }
}

/// Appends the chunk made from `number`: most are noise, as what is left after compression is.
fn fill(number: u32, out: &mut Vec<u8>) {
    let end = out.len() + CHUNK;
    if number == 0 {
        out.resize(end, 0);
        return;
    }
    let mut rng = Rng::new(u64::from(number));
    let pattern = rng.next().to_le_bytes();
    while out.len() < end {
        let word = if number.is_multiple_of(5) { pattern } else { rng.next().to_le_bytes() };
        out.extend_from_slice(&word);
    }
}
