//! Getting rid of the rows of packs that are gone. Merging drops them when it comes by; where a
//! good part of all rows is of that kind, the sweep makes it come by, a slice of the ids at a time.

use std::time::{Duration, Instant};

use rocksdb::WriteBatch;

use super::database::chunks;
use super::publish::Primary;
use crate::error::Result;

/// Below this many rows nothing is worth a sweep.
const STALE_ROWS_MIN: u64 = 16 * 1024;
/// A sweep goes by the first byte of the ids.
const END: u32 = 256;
/// Rows of a slice: it must be merged within a moment, as others wait for the lock meanwhile.
const SLICE_ROWS: u64 = 1 << 20;
/// How long one writing may sweep.
const SWEEP_TIME: Duration = Duration::from_secs(2);

/// Goes on with the sweep under way, or starts one if a quarter of the rows is of no use.
pub(super) fn sweep(primary: &mut Primary<'_>) -> Result<()> {
    let c = primary.counters;
    if c.sweep_at == 0 && (c.stale < STALE_ROWS_MIN || c.stale < primary.live_rows() / 4) {
        return Ok(());
    }
    let start = Instant::now();
    if c.sweep_at == 0 {
        primary.counters.sweeping = c.stale;
    }
    let slices = (primary.live_rows() + c.stale).div_ceil(SLICE_ROWS);
    let step = END / u32::try_from(slices).unwrap_or(END).clamp(1, END);
    while primary.counters.sweep_at < END && start.elapsed() < SWEEP_TIME {
        let at = primary.counters.sweep_at;
        let next = (at + step).min(END);
        let end = (next < END).then_some([next as u8]);
        primary.db.compact_range_cf(&chunks(&primary.db)?, Some([at as u8]), end);
        primary.counters.sweep_at = next;
    }
    if primary.counters.sweep_at == END {
        primary.counters.sweep_at = 0;
        primary.counters.stale = primary.counters.stale.saturating_sub(primary.counters.sweeping);
        primary.counters.sweeping = 0;
    }
    let mut batch = WriteBatch::default();
    primary.put_counters(&mut batch);
    primary.write(batch)
}
