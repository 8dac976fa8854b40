//! What differs from the base.

use super::map::State;
use super::{BLOCK_BYTES, Overlay};

impl Overlay {
    /// Ranges that were written, trimmed or zeroed, whatever is in them now: offset and length in bytes, in
    /// order, from `offset_bytes` on, at most `max`. A backup of the overlay reads these and nothing
    /// else. What changes meanwhile may be missing.
    pub fn changed(&self, offset_bytes: u64, max: usize) -> Vec<(u64, u64)> {
        let map = self.map.read();
        let first = offset_bytes / BLOCK_BYTES;
        let mut list: Vec<(u64, u64)> = Vec::new();
        for run in map.runs(first..map.blocks()).filter(|run| run.state != State::Base) {
            let start = (run.first * BLOCK_BYTES).max(offset_bytes);
            let end = (run.end() * BLOCK_BYTES).min(self.header.size_bytes);
            if let Some((offset, len)) = list.last_mut()
                && *offset + *len == start
            {
                *len += end - start;
                continue;
            }
            if list.len() == max {
                break;
            }
            list.push((start, end - start));
        }
        list
    }
}
