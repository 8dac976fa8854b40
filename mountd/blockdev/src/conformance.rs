//! The suite every [`BlockDevice`] is held to. It panics with what is wrong, as tests do.
//!
//! What needs an oracle over many steps (durability, trims, what threads do to each other) is the
//! business of [`crate::model`].

use crate::device::{BlockDevice, Caps, WriteFlags};
use crate::error::{Error, ErrorKind};

/// Random reads per run.
const READS: usize = 200;
/// Random writes per run.
const WRITES: usize = 100;
/// The longest random request.
const LONGEST_BYTES: u64 = 300 << 10;
/// Threads of the parallel part.
const THREADS: u64 = 4;
/// Rounds of each part about threads.
const ROUNDS: u8 = 20;

/// A small deterministic source of numbers (xorshift64*): the seed is the whole story of a failure.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        // The state may be anything but 0, and small seeds should not start alike.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound.max(1)
    }

    fn range(&mut self, size: u64) -> (u64, u64) {
        let offset = self.below(size + 1);
        // Short, block-sized and long requests alike.
        let longest = [1, 512, 4096, 65536, LONGEST_BYTES][self.below(5) as usize];
        (offset, self.below(longest + 1).min(size - offset))
    }
}

/// Holds a device to the read side of the contract. `oracle` is what it must contain.
///
/// # Panics
/// Where the device breaks the contract.
pub fn check(dev: &dyn BlockDevice, oracle: &[u8], seed: u64) {
    let size = oracle.len() as u64;
    check_shape(dev, size);
    check_reads(dev, oracle, seed);
    check_bounds(dev, size);
    check_extents(dev, oracle, seed);
    check_presence(dev, size, seed);
    if !dev.caps().writable {
        check_refuses_writes(dev, size);
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || check_reads(dev, oracle, seed ^ (thread + 1) << 32));
        }
    });
}

/// Holds a writable device to the write side too; `oracle` follows the writes.
///
/// # Panics
/// Where the device breaks the contract.
pub fn check_writes(dev: &dyn BlockDevice, oracle: &mut [u8], seed: u64) {
    assert!(dev.caps().writable, "the device says it is not writable");
    let size = oracle.len() as u64;
    let caps = dev.caps();
    let mut numbers = Numbers::new(seed);
    let initial = oracle.to_vec();
    for step in 0..WRITES {
        let (offset, len) = numbers.range(size);
        let part = offset as usize..(offset + len) as usize;
        let flags = WriteFlags {
            fua: caps.fua && numbers.below(4) == 0,
            no_hole: numbers.below(2) == 0,
            fast_zero: false,
        };
        match numbers.below(4) {
            0 if caps.write_zeroes => {
                dev.write_zeroes(offset, len, flags).expect("write_zeroes");
                oracle[part.clone()].fill(0);
            }
            1 if caps.trim => {
                dev.trim(offset, len, flags).expect("trim");
                // What a trimmed range reads as is the device's choice, but for bytes of another
                // place; take it as the new truth.
                let mut trimmed = vec![0xa5; len as usize];
                dev.read_at(offset, &mut trimmed).expect("read after trim");
                let kept = |(i, byte): (usize, &u8)| {
                    let at = offset as usize + i;
                    *byte == 0 || *byte == oracle[at] || *byte == initial[at]
                };
                assert!(
                    trimmed.iter().enumerate().all(kept),
                    "seed {seed} step {step}: a trimmed range shows foreign bytes"
                );
                oracle[part.clone()].copy_from_slice(&trimmed);
            }
            2 if caps.flush => dev.flush().expect("flush"),
            _ => {
                let fill = numbers.below(256) as u8;
                let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i % 251) as u8)).collect();
                dev.write_at(offset, &data, flags).expect("write");
                oracle[part.clone()].copy_from_slice(&data);
            }
        }
        let mut seen = vec![0xa5; len as usize];
        dev.read_at(offset, &mut seen).expect("read back");
        assert!(
            seen == oracle[part],
            "seed {seed} step {step}: {len} bytes at {offset} read back wrong"
        );
    }
    check_refuses_outside(dev, size);
    check_capabilities(dev, oracle);
    check_order(dev, oracle);
    check_one_block(dev, oracle);
    check(dev, oracle, seed);
}

/// Holds a device to what a failed flush means: after it, every flush fails. `fail` makes the device's
/// next flush fail, whatever that takes below it; later ones must fail though nothing is wrong any more.
///
/// # Panics
/// Where the device breaks the contract.
pub fn check_failed_flush(dev: &dyn BlockDevice, fail: impl FnOnce()) {
    dev.write_at(0, &[1], WriteFlags::default()).expect("write");
    dev.flush().expect("flush");
    dev.write_at(0, &[2], WriteFlags::default()).expect("write");
    fail();
    dev.flush().expect_err("the flush that was made to fail");
    for _ in 0..3 {
        dev.flush().expect_err("a flush after one that failed");
    }
    let mut seen = [0];
    dev.read_at(0, &mut seen).expect("reading goes on");
}

/// Writes behind the end: refused as such, and nothing of them is done.
fn check_refuses_outside(dev: &dyn BlockDevice, size: u64) {
    let none = WriteFlags::default();
    let tail = size.min(4096);
    let mut before = vec![0; tail as usize];
    dev.read_at(size - tail, &mut before).expect("read");
    let refused = |what: &str, result: Result<(), Error>, offset: u64, len: u64| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{what} {offset} {len}: {error}");
    };
    let caps = dev.caps();
    for (offset, len) in outside(size) {
        let data = vec![1; len.min(4096) as usize];
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
            refused("write", dev.write_at(offset, &data, none), offset, len);
        }
        if caps.write_zeroes {
            refused("write_zeroes", dev.write_zeroes(offset, len, none), offset, len);
        }
        if caps.trim {
            refused("trim", dev.trim(offset, len, none), offset, len);
        }
    }
    let mut after = vec![0; tail as usize];
    dev.read_at(size - tail, &mut after).expect("read");
    assert!(before == after, "a write that was refused changed the end of the device");
}

/// What [`Caps`] promises does work, and what it does not is refused.
fn check_capabilities(dev: &dyn BlockDevice, oracle: &mut [u8]) {
    let Caps { flush, trim, write_zeroes, fast_zero, fua, .. } = dev.caps();
    let len = oracle.len().min(8192) as u64;
    let none = WriteFlags::default();
    let settle = |what: &str, has: bool, result: Result<(), Error>| match result {
        Ok(()) => assert!(has, "{what}: done without the capability"),
        Err(e) => {
            let refusal = matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::ReadOnly);
            assert!(refusal && !has, "{what}: {e}");
        }
    };
    let data = vec![0x42; len as usize];
    dev.write_at(0, &data, none).expect("write");
    settle("flush", flush, dev.flush());
    settle("fua", fua, dev.write_at(0, &data, WriteFlags { fua: true, ..none }));
    settle("trim", trim, dev.trim(0, 0, none));
    let zero_fua = WriteFlags { fua: true, ..none };
    settle("zero with fua", write_zeroes && fua, dev.write_zeroes(0, 0, zero_fua));
    for no_hole in [false, true] {
        dev.write_at(0, &data, none).expect("write");
        settle("zero", write_zeroes, dev.write_zeroes(0, len, WriteFlags { no_hole, ..none }));
        check_zeros(dev, if write_zeroes { 0 } else { 0x42 }, len);
    }
    // Fast or refused, but never done by halves when it says it is done.
    dev.write_at(0, &data, none).expect("write");
    match dev.write_zeroes(0, len, WriteFlags { fast_zero: true, ..none }) {
        Ok(()) => {
            assert!(fast_zero && write_zeroes, "fast_zero: done without the capability");
            check_zeros(dev, 0, len);
        }
        Err(e) => {
            let refusal = matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::ReadOnly);
            assert!(refusal, "fast_zero: {e}");
        }
    }
    dev.write_at(0, &oracle[..len as usize], none).expect("write");
}

fn check_zeros(dev: &dyn BlockDevice, expected: u8, len: u64) {
    let mut seen = vec![0xa5; len as usize];
    dev.read_at(0, &mut seen).expect("read");
    assert!(seen.iter().all(|b| *b == expected), "what was zeroed reads as something else");
}

/// A write that returned is seen by every thread, also where it can be answered at once.
fn check_order(dev: &dyn BlockDevice, oracle: &mut [u8]) {
    let len = oracle.len().min(5000);
    for round in 1..=ROUNDS {
        let data = vec![round; len];
        let write = || dev.write_at(0, &data, WriteFlags::default()).expect("write");
        let read = || {
            let mut seen = vec![0xa5; len];
            if dev.try_read_at(0, &mut seen).expect("try_read_at") {
                assert!(seen == data, "round {round}: try_read_at misses a write that returned");
            }
            dev.read_at(0, &mut seen).expect("read");
            assert!(seen == data, "round {round}: a write that returned is not seen");
        };
        // Started one after the other, so what the first did has happened for the second.
        std::thread::scope(|scope| scope.spawn(write).join().expect("writes"));
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(read))));
    }
    dev.write_at(0, &oracle[..len], WriteFlags::default()).expect("write");
}

/// Threads that write beside each other within a block do not undo each other's writes.
fn check_one_block(dev: &dyn BlockDevice, oracle: &mut [u8]) {
    let each = oracle.len().min(4096) / THREADS as usize;
    let barrier = std::sync::Barrier::new(THREADS as usize);
    for round in 1..=ROUNDS {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let barrier = &barrier;
                scope.spawn(move || {
                    let data = vec![round ^ (thread as u8) << 6; each];
                    barrier.wait();
                    dev.write_at(thread * each as u64, &data, WriteFlags::default())
                        .expect("write");
                });
            }
        });
        let mut seen = vec![0; each * THREADS as usize];
        dev.read_at(0, &mut seen).expect("read");
        for (i, byte) in seen.iter().enumerate() {
            let expected = round ^ ((i / each) as u8) << 6;
            assert_eq!(*byte, expected, "round {round}: a write beside another one was lost");
        }
    }
    dev.write_at(0, &oracle[..each * THREADS as usize], WriteFlags::default()).expect("write");
}

fn check_shape(dev: &dyn BlockDevice, size: u64) {
    let geometry = dev.geometry();
    assert_eq!(geometry.size_bytes, size, "size");
    assert!(geometry.min_block_bytes.is_power_of_two(), "{geometry:?}");
    assert!(geometry.preferred_block_bytes.is_power_of_two(), "{geometry:?}");
    assert!(geometry.preferred_block_bytes >= geometry.min_block_bytes, "{geometry:?}");
    assert!(geometry.max_request_bytes >= geometry.preferred_block_bytes, "{geometry:?}");
    assert_eq!(dev.geometry(), geometry, "the geometry changed");
    assert_eq!(dev.caps(), dev.caps(), "the capabilities changed");
}

fn check_reads(dev: &dyn BlockDevice, oracle: &[u8], seed: u64) {
    let size = oracle.len() as u64;
    let mut numbers = Numbers::new(seed);
    for step in 0..READS {
        let (offset, len) = match step {
            0 => (0, size.min(LONGEST_BYTES)),
            1 => (size.saturating_sub(4097), size.min(4097)),
            2 => (size, 0),
            _ => numbers.range(size),
        };
        let expected = &oracle[offset as usize..(offset + len) as usize];
        // Bytes that were there before must not pass for an answer.
        let mut buf = vec![0xa5; len as usize];
        if dev.try_read_at(offset, &mut buf).expect("try_read_at") {
            assert!(
                buf == expected,
                "seed {seed}: try_read_at of {len} bytes at {offset} is wrong"
            );
            buf.fill(0x5a);
        }
        dev.read_at(offset, &mut buf).expect("read_at");
        assert!(buf == expected, "seed {seed}: read_at of {len} bytes at {offset} is wrong");
        if numbers.below(8) == 0 {
            dev.prefetch(offset, len);
        }
    }
}

/// Ranges that do not lie in a device of `size` bytes.
fn outside(size: u64) -> Vec<(u64, u64)> {
    vec![
        (size, 1),
        (size + 1, 1),
        (size.saturating_sub(1), 2),
        (0, size + 1),
        (u64::MAX, 1),
        (u64::MAX - 4095, 4096),
        (1 << 63, 4096),
    ]
}

fn check_bounds(dev: &dyn BlockDevice, size: u64) {
    for (offset, len) in outside(size) {
        if len <= LONGEST_BYTES {
            let mut buf = vec![0; len as usize];
            let error = dev.read_at(offset, &mut buf).expect_err("a read behind the end");
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
            let answered = dev.try_read_at(offset, &mut buf).is_ok_and(|done| done);
            assert!(!answered, "try_read_at answered {len} bytes at {offset}, behind the end");
        }
        let error = dev.extents(offset, len, 8).expect_err("extents behind the end");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
        let error = dev.presence(offset, len, 8).expect_err("presence behind the end");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
        // A hint may say nonsense.
        dev.prefetch(offset, len);
    }
}

fn check_extents(dev: &dyn BlockDevice, oracle: &[u8], seed: u64) {
    let size = oracle.len() as u64;
    assert!(dev.extents(0, 0, 8).expect("extents of nothing").is_empty());
    let mut numbers = Numbers::new(seed);
    let mut ranges = vec![(0, size)];
    ranges.extend((0..16).map(|_| numbers.range(size)).filter(|(_, len)| *len > 0));
    for max in [1, 3, 1000] {
        for (offset, len) in ranges.iter().copied().filter(|(_, len)| *len > 0) {
            let mut at = offset;
            while at < offset + len {
                let list = dev.extents(at, offset + len - at, max).expect("extents");
                assert!(!list.is_empty() && list.len() <= max, "{} of {max} extents", list.len());
                let mut last = None;
                for extent in list {
                    assert_eq!(extent.offset_bytes, at, "a gap or an overlap: {extent:?}");
                    assert!(extent.len_bytes > 0, "{extent:?}");
                    assert!(last != Some(extent.kind), "not merged: {extent:?}");
                    last = Some(extent.kind);
                    let end = at + extent.len_bytes;
                    assert!(end <= offset + len, "{extent:?} is longer than asked");
                    if extent.kind.is_zero() {
                        let zeros = oracle[at as usize..end as usize].iter().all(|b| *b == 0);
                        assert!(zeros, "{extent:?} does not hold zeros");
                    }
                    at = end;
                }
            }
        }
    }
}

fn check_presence(dev: &dyn BlockDevice, size: u64, seed: u64) {
    assert!(dev.presence(0, 0, 8).expect("presence of nothing").is_empty());
    let mut numbers = Numbers::new(seed);
    let mut ranges = vec![(0, size)];
    ranges.extend((0..16).map(|_| numbers.range(size)));
    for (max, (offset, len)) in [1, 3, 1000]
        .into_iter()
        .flat_map(|max| ranges.iter().filter(|(_, len)| *len > 0).map(move |range| (max, *range)))
    {
        let mut at = offset;
        while at < offset + len {
            let list = dev.presence(at, offset + len - at, max).expect("presence");
            assert!(!list.is_empty() && list.len() <= max, "{} of {max}", list.len());
            let mut last = None;
            for extent in list {
                assert_eq!(extent.offset_bytes, at, "a gap or an overlap: {extent:?}");
                assert!(extent.len_bytes > 0, "{extent:?}");
                assert!(last != Some(extent.presence), "not merged: {extent:?}");
                last = Some(extent.presence);
                at += extent.len_bytes;
                assert!(at <= offset + len, "{extent:?} is longer than asked");
            }
        }
    }
}

fn check_refuses_writes(dev: &dyn BlockDevice, size: u64) {
    let len = size.min(512);
    let data = vec![0x77; len as usize];
    let flags = WriteFlags::default();
    for result in
        [dev.write_at(0, &data, flags), dev.trim(0, len, flags), dev.write_zeroes(0, len, flags)]
    {
        let error = result.expect_err("a read-only device took a write");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    }
    dev.flush().expect("flush of a read-only device");
    let Caps { flush, trim, write_zeroes, fast_zero, fua, .. } = dev.caps();
    assert!(!(flush || trim || write_zeroes || fast_zero || fua), "a read-only device that writes");
}
