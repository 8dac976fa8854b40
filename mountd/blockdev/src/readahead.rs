//! Decides what to fetch before it is asked for. Policy only: it does no reading itself.

/// Readers one connection or handle may interleave (a guest reading a few files at once) before the
/// oldest is forgotten.
const STREAMS: usize = 4;
/// The first window: enough to keep a few fetches in the air, little enough to waste.
const FIRST_WINDOW_BYTES: u64 = 256 << 10;
/// The largest window: at 1 GB/s some 8 ms ahead, beyond which memory goes and speed does not come.
const MAX_WINDOW_BYTES: u64 = 8 << 20;
/// How far a read may jump from where the last one ended and still be the same reader. Clients with
/// many requests in flight send them out of order, and readers step over small things.
const JUMP_BYTES: u64 = 1 << 20;
/// Reads in a row before anything is fetched: one neighbour may be chance.
const READS_BEFORE_START: u32 = 2;

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// The highest end of its reads.
    next: u64,
    /// Up to here it has been asked to be fetched.
    fetched: u64,
    /// The window to fetch next; 0 marks an unused slot.
    window: u64,
    /// Reads in a row.
    reads: u32,
    /// When it was last used, for forgetting the oldest.
    tick: u64,
}

/// The read-ahead policy of one connection or handle: finds sequential readers and answers with
/// windows that double from 256 KiB to 8 MiB; a random reader gets none.
#[derive(Debug)]
pub struct Readahead {
    size_bytes: u64,
    streams: [Stream; STREAMS],
    tick: u64,
}

impl Readahead {
    /// The policy for a device of `size_bytes`.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, streams: [Stream::default(); STREAMS], tick: 0 }
    }

    /// Notes a read; answers the range (offset and length in bytes) worth prefetching now, if any.
    /// A range is answered once: ranges of one reader follow each other without overlap.
    pub fn on_read(&mut self, offset_bytes: u64, len_bytes: u64) -> Option<(u64, u64)> {
        let end = offset_bytes.saturating_add(len_bytes).min(self.size_bytes);
        self.tick += 1;
        let tick = self.tick;
        let Some(stream) = self
            .streams
            .iter_mut()
            .find(|s| s.window > 0 && offset_bytes.abs_diff(s.next) <= JUMP_BYTES)
        else {
            if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.tick) {
                *oldest =
                    Stream { next: end, fetched: end, window: FIRST_WINDOW_BYTES, reads: 1, tick };
            }
            return None;
        };
        stream.tick = tick;
        stream.reads = stream.reads.saturating_add(1);
        stream.next = stream.next.max(end);
        stream.fetched = stream.fetched.max(stream.next);
        if stream.reads < READS_BEFORE_START || stream.fetched - stream.next > stream.window / 2 {
            return None;
        }
        let start = stream.fetched;
        let stop = stream.next.saturating_add(stream.window).min(self.size_bytes);
        if stop <= start {
            return None;
        }
        stream.fetched = stop;
        stream.window = (stream.window * 2).min(MAX_WINDOW_BYTES);
        Some((start, stop - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    #[test]
    fn sequential_reads_grow_the_window_without_overlap() {
        let mut policy = Readahead::new(SIZE);
        let mut covered = 0;
        let mut longest = 0;
        let mut at = 0;
        while at < 256 << 20 {
            if let Some((start, len)) = policy.on_read(at, 64 << 10) {
                assert!(start >= covered, "{start} was fetched before");
                assert!(start + len <= SIZE);
                covered = start + len;
                longest = longest.max(len);
            }
            at += 64 << 10;
            assert!(covered <= at + MAX_WINDOW_BYTES, "runs too far ahead");
            assert!(
                at <= 64 << 10 || covered > at,
                "a sequential reader at {at} has no read-ahead"
            );
        }
        assert!(longest >= MAX_WINDOW_BYTES / 4, "the window never grew: {longest}");
    }

    #[test]
    fn random_reads_fetch_nothing() {
        let mut policy = Readahead::new(SIZE);
        let mut state = 7u64;
        let mut fetched = 0;
        for _ in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (state >> 20) % (SIZE / 4096) * 4096;
            fetched += policy.on_read(offset, 4096).map_or(0, |(_, len)| len);
        }
        // A neighbour by chance happens (4 streams of 2 MiB each in 1 GiB), a grown window does not.
        assert!(fetched < 2000 * 4096 * 4, "{fetched} bytes fetched for random reads");
    }

    #[test]
    fn small_jumps_stay_one_reader_and_large_ones_reset() {
        let mut policy = Readahead::new(SIZE);
        assert_eq!(policy.on_read(0, 4096), None);
        assert!(policy.on_read(128 << 10, 4096).is_some(), "a small jump forward");
        policy.on_read(64 << 10, 4096);
        assert_eq!(policy.on_read(512 << 20, 4096), None, "a far jump starts anew");
        assert_eq!(
            policy.on_read((512 << 20) + 4096, 4096),
            Some(((512 << 20) + 8192, FIRST_WINDOW_BYTES))
        );
    }

    #[test]
    fn two_interleaved_readers_both_get_windows() {
        let mut policy = Readahead::new(SIZE);
        let mut windows = [0; 2];
        for i in 0..64u64 {
            for (which, base) in [0, SIZE / 2].into_iter().enumerate() {
                windows[which] += policy.on_read(base + i * 65536, 65536).map_or(0, |_| 1);
            }
        }
        assert!(windows[0] > 2 && windows[1] > 2, "{windows:?}");
    }

    #[test]
    fn nothing_beyond_the_end() {
        let mut policy = Readahead::new(1 << 20);
        for i in 0..16 {
            if let Some((start, len)) = policy.on_read(i << 16, 1 << 16) {
                assert!(start + len <= 1 << 20 && len > 0);
            }
        }
        assert_eq!(policy.on_read(u64::MAX, u64::MAX), None);
    }
}
