//! The cache: what it saves, that it never shows what was, and that it stays small.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use backstay_blockdev::layer::{Cache, CacheCounts, Call, Delay, Entry, Fault, Log, Sink};
use backstay_blockdev::{BlockDevice, ErrorKind, MemDevice, WriteFlags};

use crate::disk;

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn entry(&self, _: &Entry) {}
}

fn counted(inner: Arc<dyn BlockDevice>) -> Arc<Log> {
    Arc::new(Log::new(inner, Arc::new(Nowhere)))
}

fn reads(log: &Log) -> u64 {
    log.counts().get(&Call::Read).map_or(0, |count| count.calls)
}

#[test]
fn what_was_read_is_at_hand() {
    let bytes = disk(100_001);
    let mem = Arc::new(MemDevice::new(bytes.clone()));
    let log = counted(Arc::new(Delay::new(mem, Duration::ZERO)));
    let dev = Cache::new(log.clone(), 4096, 1 << 20).unwrap();
    let mut buf = vec![0; 10_000];
    assert!(!dev.try_read_at(5000, &mut buf).unwrap(), "nothing was read yet");
    dev.read_at(5000, &mut buf).unwrap();
    assert!(buf == bytes[5000..15_000]);
    // Three blocks side by side are one read.
    assert_eq!((reads(&log), dev.counts()), (1, CacheCounts { hits: 0, misses: 3 }));
    buf.fill(0);
    assert!(dev.try_read_at(5000, &mut buf).unwrap() && buf == bytes[5000..15_000]);
    dev.read_at(5000, &mut buf).unwrap();
    assert_eq!((reads(&log), dev.counts().hits), (1, 6));
    // The last block is a short one.
    dev.read_at(100_000, &mut buf[..1]).unwrap();
    assert!(dev.try_read_at(98_304, &mut buf[..1697]).unwrap());
    assert!(buf[..1697] == bytes[98_304..]);
}

#[test]
fn many_who_miss_one_block_cause_one_read() {
    let mem = Arc::new(MemDevice::new(disk(1 << 20)));
    let log = counted(Arc::new(Delay::new(mem, Duration::from_millis(20))));
    let dev = Cache::new(log.clone(), 65536, 1 << 20).unwrap();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                dev.read_at(70_000, &mut [0; 512]).unwrap();
            });
        }
    });
    assert_eq!(reads(&log), 1);
}

#[test]
fn memory_is_bounded_and_a_scan_keeps_what_is_used() {
    let mem = Arc::new(MemDevice::new(disk(16 << 20)));
    let log = counted(mem);
    let capacity = 1 << 20;
    let dev = Cache::new(log.clone(), 4096, capacity).unwrap();
    let mut buf = vec![0; 4096];
    let hot = |dev: &Cache, buf: &mut [u8]| {
        for block in 0..32 {
            dev.read_at(block * 4096, buf).unwrap();
        }
    };
    for _ in 0..4 {
        hot(&dev, &mut buf);
    }
    for block in 100..4096 {
        dev.read_at(block * 4096, &mut buf).unwrap();
        assert!(dev.used_bytes() <= capacity, "{} bytes", dev.used_bytes());
    }
    let before = reads(&log);
    hot(&dev, &mut buf);
    let again = reads(&log) - before;
    assert!(again <= 8, "{again} of 32 blocks in use were pushed out by a scan");
}

#[test]
fn a_change_is_seen_at_once_and_a_failed_one_is_looked_up() {
    let fault = Arc::new(Fault::new(Arc::new(MemDevice::new(disk(1 << 20)))));
    let dev = Cache::new(fault.clone(), 4096, 1 << 20).unwrap();
    let none = WriteFlags::default();
    let mut buf = vec![0; 12_288];
    dev.read_at(0, &mut buf).unwrap();
    dev.write_at(4000, &[9; 5000], none).unwrap();
    let mut seen = vec![0; 5000];
    assert!(dev.try_read_at(4000, &mut seen).unwrap() && seen == vec![9; 5000]);
    dev.write_zeroes(4100, 10, none).unwrap();
    dev.read_at(4099, &mut seen[..12]).unwrap();
    assert_eq!(seen[..12], [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    // Whatever the failed write did, only the device knows.
    fault.add(backstay_blockdev::layer::Rule {
        operation: backstay_blockdev::layer::Operation::Write,
        range: 0..u64::MAX,
        kind: ErrorKind::Io,
        times: Some(1),
    });
    dev.write_at(0, &[1; 4096], none).unwrap_err();
    fault.fail_reads(0..1);
    assert!(dev.read_at(0, &mut seen[..16]).is_err(), "the cache answered for a failed write");
}

/// A block with a bad place in it can still be read beside that place.
#[test]
fn a_bad_place_does_not_spoil_its_block() {
    let bytes = disk(1 << 20);
    let fault = Arc::new(Fault::new(Arc::new(MemDevice::new(bytes.clone()))));
    fault.fail_reads(70_000..70_001);
    let dev = Cache::new(fault, 65536, 1 << 20).unwrap();
    let mut buf = vec![0; 4000];
    dev.read_at(66_000, &mut buf).unwrap();
    assert!(buf == bytes[66_000..70_000]);
    assert_eq!(dev.read_at(66_001, &mut buf).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn blocks_of_strange_sizes_are_refused() {
    for size in [0, 256, 3000, 2 << 20] {
        let mem = Arc::new(MemDevice::new(disk(4096)));
        assert_eq!(Cache::new(mem, size, 1 << 20).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
