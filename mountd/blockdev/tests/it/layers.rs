//! What each layer adds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::layer::{Delay, Fault, Operation, ReadOnly, Rule};
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
