//! The mixed image that figures are measured with: about 25 % holes, 40 % text that compresses
//! (every 4 KiB of it stamped with its number, so no two chunks are equal), 35 % random bytes, in
//! runs of 1, 2, 4 or 8 MiB. Made from a seed: the same numbers give the same bytes anywhere.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Size of the image that the goals speak of.
pub(super) const DEFAULT_MIB: u64 = 4096;
/// Any number; this one is the figures'.
pub(super) const DEFAULT_SEED: u64 = 7;

const MIB: usize = 1 << 20;
const WORDS: usize = 4000;
const TEXTS: usize = 8;
const TEXT_BYTES: usize = 4 * MIB;
const STAMP_EVERY_BYTES: usize = 4096;
/// Below this share of the draws a run is a hole, below the next it is text, above it is random.
const HOLES_BELOW: f64 = 0.25;
const TEXT_BELOW: f64 = 0.65;

/// Writes the image; holes are holes of the file.
pub(super) fn write(out: &Path, size_mib: u64, seed: u64) -> Result<()> {
    let file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let size = size_mib * MIB as u64;
    file.set_len(size)?;
    let texts = texts(&mut Random::new(seed));
    let mut random = Random::new(seed ^ 0x5bd1_e995);
    let mut buffer = vec![0; MIB];
    let mut at = 0;
    while at < size {
        let kind = random.share();
        let run = ((1 << random.below(4)) * MIB as u64).min(size - at);
        let end = at + run;
        while at < end {
            if kind < HOLES_BELOW {
                at = end;
                break;
            }
            if kind < TEXT_BELOW {
                let text = &texts[random.below(TEXTS as u64) as usize];
                let from = random.below((TEXT_BYTES - MIB) as u64) as usize;
                buffer.copy_from_slice(&text[from..from + MIB]);
                stamp(&mut buffer, at);
            } else {
                random.fill(&mut buffer);
            }
            file.write_all_at(&buffer, at)?;
            at += MIB as u64;
        }
    }
    BufWriter::new(file).into_inner().map_err(|e| e.into_error())?.sync_all()?;
    Ok(())
}

fn stamp(buffer: &mut [u8], at: u64) {
    for (i, block) in buffer.chunks_mut(STAMP_EVERY_BYTES).enumerate() {
        let number = at / STAMP_EVERY_BYTES as u64 + i as u64;
        block[..16].copy_from_slice(format!("{number:016}").as_bytes());
    }
}

fn texts(random: &mut Random) -> Vec<Vec<u8>> {
    let words: Vec<Vec<u8>> = (0..WORDS)
        .map(|_| (0..2 + random.below(8)).map(|_| b'a' + random.below(26) as u8).collect())
        .collect();
    let text = |random: &mut Random| {
        let mut text = Vec::with_capacity(TEXT_BYTES + 16);
        while text.len() < TEXT_BYTES {
            text.extend_from_slice(&words[random.below(WORDS as u64) as usize]);
            text.push(if random.below(2000) == 0 { b'\n' } else { b' ' });
        }
        text.truncate(TEXT_BYTES);
        text
    };
    (0..TEXTS).map(|_| text(random)).collect()
}

/// SplitMix64: small, quick, and the same everywhere. Not for secrets.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; the slight unevenness of the remainder does not matter here.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From 0 up to but not including 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for part in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::write;

    #[test]
    fn the_same_seed_makes_the_same_image_of_the_three_kinds() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str, seed| {
            let path = dir.path().join(name);
            write(&path, 64, seed).expect("written");
            fs::read(path).expect("read")
        };
        let image = make("a", 7);
        assert_eq!(image.len(), 64 << 20);
        assert!(image == make("b", 7));
        assert!(image != make("c", 8));
        let (mut holes, mut texts, mut randoms) = (0, 0, 0);
        let mut seen = HashSet::new();
        for block in image.chunks(4096) {
            if block.iter().all(|b| *b == 0) {
                holes += 1;
                continue;
            }
            assert!(seen.insert(block), "a block occurs twice");
            if block.is_ascii() { texts += 1 } else { randoms += 1 }
        }
        assert!(holes > 0 && texts > 0 && randoms > 0, "{holes} {texts} {randoms}");
    }
}
