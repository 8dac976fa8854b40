//! What each layer adds.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstay_blockdev::layer::{
    Call, Clock, Compare, Delay, Entry, Fault, Limits, Log, Operation, Range, Rate, ReadOnly, Rule,
    Sink, Verify,
};
use backstay_blockdev::{BlockDevice, ErrorKind, MemDevice, WriteFlags};

use crate::disk;

#[test]
fn faults_hit_what_they_name_and_nothing_else() {
    let mem = Arc::new(MemDevice::new(disk(100_000)));
    let dev = Fault::new(mem);
    dev.fail_reads(8192..8193);
    let mut buf = [0; 4096];
    dev.read_at(4096, &mut buf).expect("the neighbour before");
    dev.read_at(8193, &mut buf).expect("the neighbour behind");
    let error = dev.read_at(8000, &mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("at offset 8000"), "{error}");
    assert!(dev.try_read_at(8192, &mut buf).is_err());
    dev.clear();
    dev.read_at(8000, &mut buf).expect("the fault is gone");
}

#[test]
fn a_fault_can_pass() {
    let dev = Fault::new(Arc::new(MemDevice::new(disk(10_000))));
    let rule = |operation| Rule {
        operation,
        range: 0..u64::MAX,
        kind: ErrorKind::NoSpace,
        times: Some(2),
    };
    dev.add(rule(Operation::Write));
    dev.add(rule(Operation::Flush));
    for _ in 0..2 {
        let error = dev.write_at(0, &[1], WriteFlags::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(dev.flush().is_err());
    }
    dev.write_at(0, &[1], WriteFlags::default()).unwrap();
    dev.flush().unwrap();
}

#[test]
fn delay_takes_its_time_and_has_no_hits() {
    let dev = Delay::new(Arc::new(MemDevice::new(disk(10_000))), Duration::from_millis(30));
    let mut buf = [0; 100];
    let start = Instant::now();
    dev.read_at(0, &mut buf).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(!dev.try_read_at(0, &mut buf).unwrap());
}

#[test]
fn read_only_never_reaches_the_device() {
    let mem = Arc::new(MemDevice::new(disk(10_000)));
    let before = mem.to_vec();
    let dev = ReadOnly::new(mem.clone());
    assert!(dev.write_at(0, &[9; 512], WriteFlags::default()).is_err());
    assert!(dev.trim(4096, 4096, WriteFlags::default()).is_err());
    assert!(mem.to_vec() == before);
    assert!(dev.caps().multi_conn && !dev.caps().writable && !dev.caps().fua);
}

#[test]
fn a_range_is_a_partition() {
    let bytes = disk(100_000);
    let mem = Arc::new(MemDevice::new(bytes.clone()));
    let dev = Range::new(mem.clone(), 30_000, 40_000).unwrap();
    let mut buf = vec![0; 40_000];
    dev.read_at(0, &mut buf).unwrap();
    assert!(buf == bytes[30_000..70_000]);
    dev.write_at(39_999, &[0xee], WriteFlags::default()).unwrap();
    assert_eq!(dev.write_at(39_999, &[1; 2], WriteFlags::default()).unwrap_err().kind(), {
        ErrorKind::OutOfRange
    });
    let after = mem.to_vec();
    assert_eq!(after[69_999], 0xee);
    assert!(after[..69_999] == bytes[..69_999] && after[70_000..] == bytes[70_000..]);
    for (offset, len) in [(60_001, 40_000), (100_001, 0), (u64::MAX, 1), (1, u64::MAX)] {
        let error = Range::new(mem.clone(), offset, len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{offset} {len}");
    }
    // The place in an error is that of the device below, and says so.
    let fault = Arc::new(Fault::new(mem));
    fault.fail_reads(30_005..30_006);
    let error = Range::new(fault, 30_000, 10).unwrap().read_at(0, &mut buf[..10]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("starts at byte 30000") && text.contains("at offset 30000"), "{text}");
}

/// A clock that is only moved by those who sleep by it.
#[derive(Debug, Default)]
struct Still(Mutex<Duration>);

impl Clock for Still {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

#[test]
fn rate_lets_a_burst_pass_and_then_its_rate() {
    let clock = Arc::new(Still::default());
    let mem = Arc::new(MemDevice::new(disk(100_000)));
    let limits = Limits {
        bytes_per_second: 10_000,
        burst_bytes: 5000,
        operations_per_second: 100,
        burst_operations: 10,
    };
    let dev = Rate::with_clock(mem, limits, clock.clone());
    clock.sleep(Duration::from_secs(100));
    let start = clock.now();
    let passed = || clock.now() - start;
    let mut buf = vec![0; 5000];
    dev.read_at(0, &mut buf).unwrap();
    assert_eq!(passed(), Duration::ZERO, "the burst");
    assert!(!dev.try_read_at(0, &mut buf).unwrap(), "nothing is left");
    dev.write_at(0, &buf, WriteFlags::default()).unwrap();
    assert_eq!(passed(), Duration::from_millis(500));
    // More than the burst passes too, and waits for all of it.
    dev.read_at(0, &mut vec![0; 20_000]).unwrap();
    assert_eq!(passed(), Duration::from_millis(2500));
    // A long pause gives no more than one burst.
    clock.sleep(Duration::from_secs(3600));
    let start = clock.now();
    for _ in 0..4 {
        dev.read_at(0, &mut buf).unwrap();
    }
    assert_eq!(clock.now() - start, Duration::from_millis(1500));
    clock.sleep(Duration::from_secs(3600));
    let start = clock.now();
    for _ in 0..110 {
        dev.flush().unwrap();
    }
    assert_eq!(clock.now() - start, Duration::from_secs(1), "100 operations over the burst");
}

#[test]
fn rate_is_that_of_all_threads_together() {
    let mem = Arc::new(MemDevice::new(disk(100_000)));
    let limits = Limits { bytes_per_second: 100_000, burst_bytes: 1000, ..Limits::default() };
    let dev = Rate::new(mem, limits);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| dev.read_at(0, &mut [0; 1000]).unwrap()));
        }
    });
    // 20,000 bytes less a burst; who waits holds up nobody else's clock.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(185), "{took:?}");
}

#[derive(Debug, Default)]
struct Entries(Mutex<Vec<Entry>>);

impl Sink for Entries {
    fn entry(&self, entry: &Entry) {
        self.0.lock().unwrap().push(*entry);
    }
}

#[test]
fn log_tells_what_was_done() {
    let fault = Arc::new(Fault::new(Arc::new(MemDevice::new(disk(100_000)))));
    fault.fail_reads(50_000..50_001);
    let sink = Arc::new(Entries::default());
    let dev = Log::new(Arc::new(Delay::new(fault, Duration::from_millis(2))), sink.clone());
    let fua = WriteFlags { fua: true, ..WriteFlags::default() };
    dev.read_at(10, &mut [0; 20]).unwrap();
    dev.read_at(50_000, &mut [0; 20]).unwrap_err();
    assert!(!dev.try_read_at(0, &mut [0; 5]).unwrap());
    dev.write_at(7, &[0; 9], fua).unwrap();
    dev.prefetch(1, 2);
    dev.flush().unwrap();
    let entries = sink.0.lock().unwrap();
    let told: Vec<_> =
        entries.iter().map(|e| (e.call, e.offset_bytes, e.len_bytes, e.result)).collect();
    assert_eq!(
        told,
        [
            (Call::Read, 10, 20, Ok(true)),
            (Call::Read, 50_000, 20, Err(ErrorKind::Io)),
            (Call::TryRead, 0, 5, Ok(false)),
            (Call::Write, 7, 9, Ok(true)),
            (Call::Prefetch, 1, 2, Ok(true)),
            (Call::Flush, 0, 0, Ok(true)),
        ]
    );
    assert!(entries[3].flags.fua && !entries[0].flags.fua);
    let count = dev.counts()[&Call::Read];
    assert_eq!((count.calls, count.bytes, count.failed), (2, 20, 1));
    assert!(count.duration >= Duration::from_millis(4));
    assert!(!dev.counts().contains_key(&Call::Trim));
}

#[test]
fn compare_finds_the_byte() {
    let bytes = disk(100_000);
    let mut other = bytes.clone();
    other[77_777] ^= 0x10;
    let device = |bytes: &Vec<u8>| Arc::new(MemDevice::new(bytes.clone()));
    let dev = Compare::new(device(&bytes), device(&other)).unwrap();
    let mut buf = vec![0; 50_000];
    dev.read_at(0, &mut buf).unwrap();
    for error in
        [dev.read_at(50_000, &mut buf).unwrap_err(), dev.try_read_at(50_000, &mut buf).unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("byte 77777"), "{error}");
    }
    assert!(dev.write_at(0, &[1], WriteFlags::default()).is_err());
    let error = Compare::new(device(&bytes), device(&disk(99_999))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[test]
fn verify_holds_a_device_to_what_was_written() {
    let mem = Arc::new(MemDevice::new(disk(100_000)));
    let dev = Verify::new(mem.clone(), 1000);
    let none = WriteFlags::default();
    let spoil = |at: u64| {
        let mut byte = [0];
        mem.read_at(at, &mut byte).unwrap();
        mem.write_at(at, &[byte[0] ^ 1], none).unwrap();
    };
    let damaged = |at: u64| {
        let result = dev.read_at(at, &mut [0; 10]);
        assert_eq!(result.as_ref().is_err(), dev.try_read_at(at, &mut [0; 10]).is_err());
        result.is_err_and(|e| e.kind() == ErrorKind::Damaged)
    };
    dev.write_at(5000, &[3; 20_000], none).unwrap();
    dev.read_at(0, &mut [0; 100_000]).unwrap();
    // The whole block counts that a write touches, also where it did not write.
    spoil(4100);
    assert!(damaged(5000) && damaged(8000) && !damaged(8192));
    spoil(4100);
    assert!(!damaged(5000));
    dev.write_zeroes(50_000, 50_000, none).unwrap();
    spoil(99_999);
    assert!(damaged(99_990) && damaged(98_400) && !damaged(60_000));
    dev.write_at(99_000, &[1; 10], none).expect_err("a part of a block that is wrong");
    // What is trimmed may be anything, and what was never written is believed.
    dev.trim(98_304, 1696, none).unwrap();
    spoil(99_998);
    spoil(40_000);
    assert!(!damaged(99_990) && !damaged(40_000));
}

#[test]
fn verify_forgets_rather_than_grow() {
    let mem = Arc::new(MemDevice::new(vec![0; 8 << 20]));
    let dev = Verify::new(mem, 16);
    for block in 0..2048u64 {
        dev.write_at(block * 4096, &[block as u8; 4096], WriteFlags::default()).unwrap();
    }
    dev.write_zeroes(0, 8 << 20, WriteFlags::default()).unwrap();
    dev.read_at(0, &mut vec![0; 8 << 20]).unwrap();
}
