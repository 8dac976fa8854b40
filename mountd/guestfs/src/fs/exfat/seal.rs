//! Puts the checksums of an image right, for fuzzers.

use super::set::{self, SECONDARY_MAX};

const SECTOR: usize = 512;

/// The boot region with sectors of 512 bytes, and all that looks like an entry set or the entry of the table of capital letters.
pub(crate) fn seal(disk: &mut [u8]) {
    for at in (0..disk.len().saturating_sub(32)).step_by(32) {
        match disk[at] {
            set::FILE => {
                let count = 1 + usize::from(disk[at + 1]).min(SECONDARY_MAX);
                let entries = follow(disk, at, count);
                let sum = set::checksum(&entries);
                disk[at + 2..at + 4].copy_from_slice(&sum.to_le_bytes());
            }
            set::UPCASE => capitals(disk, at),
            _ => {}
        }
    }
    if disk.len() >= 12 * SECTOR {
        let counted = disk[..11 * SECTOR].iter().enumerate();
        let counted = counted.filter(|(i, _)| !matches!(i, 106 | 107 | 112));
        let sum = counted.fold(0u32, |sum, (_, b)| sum.rotate_right(1).wrapping_add((*b).into()));
        for place in disk[11 * SECTOR..12 * SECTOR].chunks_exact_mut(4) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// The entries of a set: in a row, or where the chain of a table at sector 24 goes on.
fn follow(disk: &[u8], start: usize, count: usize) -> Vec<[u8; 32]> {
    let (mut entries, mut at) = (Vec::new(), start);
    while entries.len() < count {
        let Some(entry) = disk.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        entries.push(*entry);
        at += 32;
        if at % SECTOR == 0 && at / SECTOR > 26 {
            let cluster = at / SECTOR - 1 - 26 + 2;
            let next = disk.get(24 * SECTOR + cluster * 4..).and_then(|rest| rest.first_chunk());
            let next = next.copied().map_or(0, u32::from_le_bytes);
            at = match next {
                2..=0xff => (next as usize - 2 + 26) * SECTOR,
                _ => at,
            };
        }
    }
    entries
}

fn capitals(disk: &mut [u8], at: usize) {
    let first = usize::from(disk[at + 20]);
    let len = usize::from(disk[at + 24]);
    let start = (26 + first.saturating_sub(2)) * SECTOR;
    let table = disk.get(start..start + len).unwrap_or_default();
    let sum = table.iter().fold(0u32, |s, b| s.rotate_right(1).wrapping_add((*b).into()));
    disk[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}
