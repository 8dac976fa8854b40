//! Commands, over a raw socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::layer::{Delay, Fault, Operation, Rule};
use backstay_blockdev::{BlockDevice, ErrorKind, MemDevice};
use backstay_nbd::proto::transmission::{chunk, command, command_flag, decode_block_status, state};

use crate::support::{Raw, Server, disk};

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

#[test]
fn simple_replies_without_structured_ones() {
    let (server, bytes) = Server::disk(1 << 20);
    let mut raw = server.raw();
    raw.go("disk", &[]);
    for (offset, len) in [(0, 512), (12345, 70_000), ((1 << 20) - 1, 1), (4096, 0)] {
        let cookie = raw.request(command::READ, 0, offset, len);
        assert_eq!(raw.simple(), (0, cookie));
        let data = raw.read_vec(len as usize);
        assert!(data == bytes[offset as usize..offset as usize + len as usize]);
    }
    let cookie = raw.request(command::READ, 0, 1 << 20, 1);
    assert_eq!(raw.simple(), (EINVAL, cookie));
    let cookie = raw.request(command::READ, command_flag::DF, 0, 1);
    assert_eq!(raw.simple(), (EINVAL, cookie), "DF was not offered");
}

#[test]
fn structured_replies_leave_holes_out() {
    let (server, bytes) = Server::disk(4 << 20);
    let mut raw = Raw::ready(&server.socket);
    for (offset, len) in [(0, 4 << 20), (1 << 20, 1 << 20), (777, 100_000), (0, 4096), (9, 0)] {
        let data = raw.read_at(offset, len);
        assert!(data == bytes[offset as usize..offset as usize + len as usize]);
    }
    let cookie = raw.request(command::READ, 0, 1 << 20, 1 << 20);
    let chunk = raw.chunk();
    assert_eq!((chunk.kind, chunk.cookie, chunk.done), (chunk::OFFSET_HOLE, cookie, true));
    // DF: one chunk, whatever is in it.
    let cookie = raw.request(command::READ, command_flag::DF, 0, 4 << 20);
    let (data, chunks) = raw.data(cookie, 0, 4 << 20);
    assert!(data == bytes && chunks == 1);
}

#[test]
fn many_requests_in_flight_come_back_each_once() {
    let bytes = disk(4 << 20);
    let slow = Delay::new(Arc::new(MemDevice::read_only(bytes.clone())), Duration::from_millis(1));
    let fast = MemDevice::read_only(bytes.clone());
    for server in [Server::start(slow), Server::start(fast)] {
        let mut raw = Raw::ready(&server.socket);
        let mut waiting = std::collections::HashMap::new();
        for i in 0..64u64 {
            let offset = i * 50_021 % (4 << 20);
            let len = (i % 5 * 9000 + 1).min((4 << 20) - offset) as u32;
            waiting.insert(raw.request(command::READ, 0, offset, len), (offset, len));
        }
        while !waiting.is_empty() {
            // One chunk at a time, so that replies may come in any order.
            let chunk = raw.chunk();
            let (offset, _) = waiting[&chunk.cookie];
            if chunk.kind == chunk::OFFSET_DATA {
                let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) as usize;
                assert!(at as u64 >= offset);
                assert!(chunk.payload[8..] == bytes[at..at + chunk.payload.len() - 8]);
            }
            if chunk.done {
                waiting.remove(&chunk.cookie);
            }
        }
    }
}

#[test]
fn slow_reads_run_side_by_side() {
    let slow =
        Delay::new(Arc::new(MemDevice::read_only(disk(1 << 20))), Duration::from_millis(100));
    let server = Server::start(slow);
    let mut raw = Raw::ready(&server.socket);
    let start = Instant::now();
    let cookies: Vec<_> =
        (0..8).map(|i| raw.request(command::READ, command_flag::DF, i * 65536, 4096)).collect();
    let mut seen: Vec<_> = cookies.iter().map(|_| raw.chunk().cookie).collect();
    seen.sort_unstable();
    assert_eq!(seen, cookies);
    assert!(start.elapsed() < Duration::from_millis(700), "one after the other");
}

#[test]
fn block_status_tells_holes_as_they_are() {
    let (server, bytes) = Server::disk(4 << 20);
    let mut raw = Raw::ready(&server.socket);
    let mut at = 0u64;
    let mut holes = 0;
    while at < 4 << 20 {
        let cookie = raw.request(command::BLOCK_STATUS, 0, at, (4 << 20) - at as u32);
        let chunk = raw.chunk();
        assert_eq!((chunk.kind, chunk.cookie, chunk.done), (chunk::BLOCK_STATUS, cookie, true));
        let (id, list) = decode_block_status(&chunk.payload).unwrap();
        assert_eq!(id, 1);
        for (len, status) in list {
            if status == state::HOLE | state::ZERO {
                let range = at as usize..at as usize + len as usize;
                assert!(bytes[range].iter().all(|b| *b == 0));
                holes += u64::from(len);
            } else {
                assert_eq!(status, 0);
            }
            at += u64::from(len);
        }
    }
    assert_eq!(at, 4 << 20, "never beyond what was asked");
    assert!(holes >= 1 << 20);
    let cookie = raw.request(command::BLOCK_STATUS, command_flag::REQ_ONE, 0, 4 << 20);
    let chunk = raw.chunk();
    assert_eq!((chunk.cookie, decode_block_status(&chunk.payload).unwrap().1.len()), (cookie, 1));
    for (offset, len, flags) in [(0, 0, 0), (4 << 20, 1, 0), (0, 512, command_flag::DF)] {
        let cookie = raw.request(command::BLOCK_STATUS, flags, offset, len);
        assert_eq!(raw.error(cookie), EINVAL);
    }
}

#[test]
fn read_only_exports_take_no_writes_and_stay_in_step() {
    let (server, bytes) = Server::disk(1 << 20);
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::WRITE, 0, 0, 300_000);
    raw.write(&vec![0x55; 300_000]);
    assert_eq!(raw.simple(), (EPERM, cookie));
    for command in [command::TRIM, command::WRITE_ZEROES] {
        let cookie = raw.request(command, 0, 0, 4096);
        assert_eq!(raw.simple(), (EPERM, cookie));
    }
    let cookie = raw.request(command::FLUSH, 0, 0, 0);
    assert_eq!(raw.simple(), (0, cookie));
    assert!(raw.read_at(0, 4096) == bytes[..4096]);
}

#[test]
fn cache_is_a_hint_with_a_range() {
    let (server, bytes) = Server::disk(1 << 20);
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::CACHE, 0, 0, 1 << 20);
    assert_eq!(raw.simple(), (0, cookie));
    let cookie = raw.request(command::CACHE, 0, 1, 1 << 20);
    assert_eq!(raw.simple(), (EINVAL, cookie));
    assert!(raw.read_at(5, 10) == bytes[5..15]);
}

#[test]
fn writes_reach_the_device() {
    let server = Server::start(MemDevice::new(vec![1; 1 << 20]));
    let mut raw = Raw::ready(&server.socket);
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let cookie = raw.request(command::WRITE, command_flag::FUA, 4000, 200_000);
    raw.write(&data);
    assert_eq!(raw.simple(), (0, cookie));
    assert!(raw.read_at(4000, 200_000) == data);
    let cookie = raw.request(command::WRITE_ZEROES, command_flag::NO_HOLE, 4000, 5000);
    assert_eq!(raw.simple(), (0, cookie));
    let cookie = raw.request(command::TRIM, 0, 10_000, 50);
    assert_eq!(raw.simple(), (0, cookie));
    let cookie = raw.request(command::FLUSH, 0, 0, 0);
    assert_eq!(raw.simple(), (0, cookie));
    assert!(raw.read_at(4000, 5000) == vec![0; 5000]);
    let cookie = raw.request(command::WRITE, 0, (1 << 20) - 1, 2);
    raw.write(&[9, 9]);
    assert_eq!(raw.simple(), (ENOSPC, cookie), "behind the end");
    let cookie = raw.request(command::WRITE_ZEROES, 0, 1 << 20, 1);
    assert_eq!(raw.simple(), (ENOSPC, cookie));
    let cookie = raw.request(command::WRITE, 0, 0, 0);
    assert_eq!(raw.simple(), (0, cookie), "an empty write");
}

/// nbdkit CVE-2022-0485's server side, and rule 7 of the house: a failed read is never data.
#[test]
fn failed_reads_are_errors_and_the_connection_lives() {
    let fault = Fault::new(Arc::new(MemDevice::read_only(disk(1 << 20))));
    fault.fail_reads(100_000..100_001);
    fault.add(Rule {
        operation: Operation::Extents,
        range: 0..1,
        kind: ErrorKind::Damaged,
        times: None,
    });
    // Behind a delay, so that the pool's way is taken too.
    let fault: Arc<dyn BlockDevice> = Arc::new(fault);
    let slow = Delay::new(fault.clone(), Duration::from_micros(10));
    for server in [Server::start(slow), Server::start(Fault::new(fault))] {
        let mut raw = Raw::ready(&server.socket);
        for len in [4096, 200_000] {
            let cookie = raw.request(command::READ, 0, 99_000, len);
            assert_eq!(raw.error(cookie), EIO);
        }
        let cookie = raw.request(command::BLOCK_STATUS, 0, 0, 4096);
        assert_eq!(raw.error(cookie), EIO);
        assert!(raw.read_at(0, 4096) == disk(4096));
        let mut plain = server.raw();
        plain.go("disk", &[]);
        let cookie = plain.request(command::READ, 0, 100_000, 1);
        assert_eq!(plain.simple(), (EIO, cookie));
    }
}

#[test]
fn a_device_that_panics_costs_an_error() {
    #[derive(Debug)]
    struct Panics(MemDevice);
    impl BlockDevice for Panics {
        fn geometry(&self) -> backstay_blockdev::Geometry {
            self.0.geometry()
        }
        fn caps(&self) -> backstay_blockdev::Caps {
            backstay_blockdev::Caps::default()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), backstay_blockdev::Error> {
            assert!(offset != 4096, "a bug in a device");
            self.0.read_at(offset, buf)
        }
        fn extents(
            &self,
            offset: u64,
            len: u64,
            max: usize,
        ) -> Result<Vec<backstay_blockdev::Extent>, backstay_blockdev::Error> {
            self.0.extents(offset, len, max)
        }
    }
    let server = Server::start(Panics(MemDevice::read_only(disk(1 << 20))));
    let mut raw = Raw::ready(&server.socket);
    for _ in 0..100 {
        let cookie = raw.request(command::READ, 0, 4096, 512);
        assert_eq!(raw.error(cookie), EIO);
    }
    assert!(raw.read_at(0, 512) == disk(512));
}

#[test]
fn unknown_commands_and_flags_are_einval() {
    let (server, bytes) = Server::disk(1 << 20);
    let mut raw = Raw::ready(&server.socket);
    for command in [8, 9, 77, u16::MAX] {
        let cookie = raw.request(command, 0, 0, 512);
        assert_eq!(raw.simple(), (EINVAL, cookie));
    }
    let cookie = raw.request(command::READ, 1 << 15, 0, 512);
    assert_eq!(raw.error(cookie), EINVAL);
    let cookie = raw.request(command::CACHE, command_flag::REQ_ONE, 0, 512);
    assert_eq!(raw.simple(), (EINVAL, cookie));
    assert!(raw.read_at(0, 512) == bytes[..512]);
}

#[test]
fn disconnect_ends_in_good_order_after_what_is_owed() {
    let slow = Delay::new(Arc::new(MemDevice::read_only(disk(1 << 20))), Duration::from_millis(50));
    let server = Server::start(slow);
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::READ, command_flag::DF, 0, 4096);
    raw.request(command::DISC, 0, 0, 0);
    assert!(raw.data(cookie, 0, 4096).0 == disk(4096));
    raw.expect_end();
}
