//! The suite every [`BlockDevice`] is held to. It panics with what is wrong, as tests do.

use crate::device::{BlockDevice, WriteFlags};
use crate::error::ErrorKind;

/// Random reads per run.
const READS: usize = 200;
/// Random writes per run.
const WRITES: usize = 100;
/// The longest random request.
const LONGEST_BYTES: u64 = 300 << 10;
/// Threads of the parallel part.
const THREADS: u64 = 4;

/// A small deterministic source of numbers (xorshift64*): the seed is the whole story of a failure.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
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
    let mut numbers = Numbers(seed | 1);
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
                // What a trimmed range reads as is the device's choice; take it as the new truth.
                dev.read_at(offset, &mut oracle[part.clone()]).expect("read after trim");
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
    for (offset, len) in outside(size) {
        let data = vec![1; len.min(4096) as usize];
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
            let error = dev
                .write_at(offset, &data, WriteFlags::default())
                .expect_err("a write behind the end");
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
        }
        let error = dev.write_zeroes(offset, len, WriteFlags::default());
        assert!(error.is_err(), "write_zeroes behind the end was taken");
    }
    check(dev, oracle, seed);
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
    let mut numbers = Numbers(seed | 1);
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
        // A hint may say nonsense.
        dev.prefetch(offset, len);
    }
}

fn check_extents(dev: &dyn BlockDevice, oracle: &[u8], seed: u64) {
    let size = oracle.len() as u64;
    assert!(dev.extents(0, 0, 8).expect("extents of nothing").is_empty());
    let mut numbers = Numbers(seed | 1);
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
}
