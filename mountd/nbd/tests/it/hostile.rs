//! Clients that mean harm, and clients that are only slow. After each, a legitimate one must be
//! served.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, Caps, Error, Extent, Geometry, MemDevice};
use backstay_nbd::proto::handshake::{encode_option, option, reply};
use backstay_nbd::proto::transmission::{Request, command, decode_block_status};
use backstay_nbd::server::ServerConfig;

use crate::support::{Raw, Server, disk};

const EINVAL: u32 = 22;

#[track_caller]
fn still_serves(server: &Server) {
    let start = Instant::now();
    let mut raw = Raw::ready(&server.socket);
    assert!(raw.read_at(0, 4096) == disk(4096));
    assert!(start.elapsed() < Duration::from_secs(2), "served, but slowly");
}

fn header(option: u32, len: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// nbd-server CVE-2022-26495: a name length of 0xffffffff became an allocation of nothing.
#[test]
fn cve_2022_26495_huge_name_length() {
    let (server, _) = Server::disk(1 << 20);
    for option in [option::INFO, option::GO, option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let mut raw = server.raw();
        raw.structured();
        for len in [u32::MAX, u32::MAX - 5, 1 << 31, 4097, 5] {
            let mut payload = len.to_be_bytes().to_vec();
            payload.extend_from_slice(b"disk");
            let (_, end) = raw.option(option, &payload);
            assert_eq!(end, reply::ERR_INVALID, "option {option}, length {len:#x}");
        }
        raw.go("disk", &[]);
    }
    still_serves(&server);
}

/// nbd-server CVE-2022-26496 and qemu's 3000-byte name of 2.10: a long name smashed the stack.
#[test]
fn cve_2022_26496_long_names() {
    let (server, _) = Server::disk(1 << 20);
    for option in [option::INFO, option::GO] {
        let mut raw = server.raw();
        for len in [1025, 3000, 4096] {
            let mut payload = (len as u32).to_be_bytes().to_vec();
            payload.extend(std::iter::repeat_n(b'n', len));
            payload.extend_from_slice(&[0, 0]);
            assert_eq!(raw.option(option, &payload).1, reply::ERR_UNKNOWN, "{len} bytes");
        }
        let mut payload = 4097u32.to_be_bytes().to_vec();
        payload.extend(std::iter::repeat_n(b'n', 4097));
        payload.extend_from_slice(&[0, 0]);
        assert_eq!(raw.option(option, &payload).1, reply::ERR_INVALID);
    }
    let mut raw = server.raw();
    raw.write(&encode_option(option::EXPORT_NAME, &[b'n'; 4096]));
    raw.expect_end();
    still_serves(&server);
}

/// nbd-server CVE-2013-7441: closing during the negotiation ended the server.
#[test]
fn cve_2013_7441_leaving_during_negotiation() {
    let (server, _) = Server::disk(1 << 20);
    let whole = encode_option(option::GO, b"\0\0\0\x04disk\0\0");
    for cut in 0..whole.len() {
        let mut raw = server.raw();
        raw.write(&whole[..cut]);
    }
    for _ in 0..50 {
        drop(Raw::silent(&server.socket));
    }
    still_serves(&server);
}

/// nbdkit CVE-2019-14850: the back end was opened before the negotiation ended.
#[test]
fn cve_2019_14850_nothing_is_opened_before_it_is_named() {
    let (server, _) = Server::disk(1 << 20);
    for _ in 0..20 {
        let mut raw = server.raw();
        raw.structured();
        raw.option(option::LIST, &[]);
        raw.option(option::STARTTLS, &[]);
    }
    drop(server.raw());
    assert_eq!(server.exports.opened.load(Ordering::SeqCst), 0);
    still_serves(&server);
}

/// nbdkit CVE-2019-14851: an assertion by the order of commands.
#[test]
fn cve_2019_14851_commands_in_any_order() {
    let (server, _) = Server::disk(1 << 20);
    let mut raw = server.raw();
    raw.option(option::LIST_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0");
    raw.structured();
    raw.structured();
    raw.option(option::SET_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0");
    raw.option(option::INFO, b"\0\0\0\0\0\0");
    raw.go("disk", &[]);
    for command in [7, 6, 5, 4, 3, 0] {
        raw.request(command, 0, 0, 0);
    }
    raw.request(command::DISC, 0, 0, 0);
    raw.drain();
    still_serves(&server);
}

/// nbdkit CVE-2025-47711: a block status of the largest length tripped an assertion.
#[test]
fn cve_2025_47711_largest_block_status() {
    let size = (1 << 20) + 512;
    let (server, _) = Server::disk(size);
    let mut raw = Raw::ready(&server.socket);
    for (offset, len) in [(0, u32::MAX), (1, u32::MAX), (u64::MAX, 1), (1 << 63, u32::MAX)] {
        let cookie = raw.request(command::BLOCK_STATUS, 0, offset, len);
        assert_eq!(raw.error(cookie), EINVAL);
    }
    let cookie = raw.request(command::BLOCK_STATUS, 0, 0, size as u32);
    let chunk = raw.chunk();
    let (_, list) = decode_block_status(&chunk.payload).unwrap();
    assert_eq!(chunk.cookie, cookie);
    assert!(list.len() <= 4096);
    still_serves(&server);
}

/// qemu CVE-2024-7409: idle clients at the time of a stop. See also lifecycle.rs.
#[test]
fn cve_2024_7409_stop_with_idle_clients() {
    let (mut server, _) = Server::disk(1 << 20);
    let idle: Vec<_> = (0..5).map(|_| Raw::silent(&server.socket)).collect();
    let attached: Vec<_> = (0..5).map(|_| Raw::ready(&server.socket)).collect();
    let start = Instant::now();
    server.handle.take().unwrap().stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    for mut raw in attached {
        raw.expect_end();
    }
    for mut raw in idle {
        raw.drain();
    }
}

#[test]
fn block_status_with_too_many_extents_is_cut() {
    // Every other block is a hole: far more extents than one reply may have.
    let mut bytes = vec![0; 48 << 20];
    for block in bytes.chunks_mut(8192) {
        block[0] = 1;
    }
    let server = Server::start(MemDevice::read_only(bytes));
    let mut raw = Raw::ready(&server.socket);
    raw.request(command::BLOCK_STATUS, 0, 0, 48 << 20);
    let (_, list) = decode_block_status(&raw.chunk().payload).unwrap();
    assert_eq!(list.len(), 4096);
}

#[test]
fn options_too_long_are_told_or_cut_off() {
    let (server, _) = Server::disk(1 << 20);
    let mut raw = server.raw();
    assert_eq!(raw.option(option::GO, &[0; 5000]).1, reply::ERR_TOO_BIG);
    assert_eq!(raw.option(77, &[0; 60_000]).1, reply::ERR_TOO_BIG);
    raw.go("disk", &[]);
    for len in [70_000, u32::MAX, 1 << 31] {
        let mut raw = server.raw();
        raw.write(&header(option::GO, len));
        raw.expect_end();
    }
    still_serves(&server);
}

#[test]
fn more_than_64_options_end_the_connection() {
    let (server, _) = Server::disk(1 << 20);
    let mut raw = server.raw();
    for _ in 0..64 {
        assert_eq!(raw.option(option::LIST, &[]).1, reply::ACK);
    }
    raw.expect_end();
    still_serves(&server);
}

#[test]
fn garbage_instead_of_an_option() {
    let (server, _) = Server::disk(1 << 20);
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 64], &[0; 64]] {
        let mut raw = server.raw();
        // The server may have hung up before all of it is written.
        let _ = raw.stream.write_all(garbage);
        raw.drain();
    }
    still_serves(&server);
}

#[test]
fn requests_beyond_the_end_and_around_the_corner() {
    let (server, _) = Server::disk(1 << 20);
    let mut raw = Raw::ready(&server.socket);
    for (offset, len) in [
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (u64::MAX - 510, 512),
        (1 << 20, 1),
        (0, (1 << 20) + 1),
        (1 << 63, 1 << 20),
        (u64::MAX, u32::MAX),
        (0, u32::MAX),
    ] {
        let cookie = raw.request(command::READ, 0, offset, len);
        assert_eq!(raw.error(cookie), EINVAL, "{len} at {offset}");
        for command in [command::CACHE, command::TRIM, command::WRITE_ZEROES] {
            let cookie = raw.request(command, 0, offset, len);
            let (errno, own) = raw.simple();
            assert!(errno != 0 && own == cookie);
        }
    }
    still_serves(&server);
}

#[test]
fn reads_longer_than_the_largest_payload_are_refused() {
    let server = Server::start(MemDevice::read_only(vec![7; 40 << 20]));
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::READ, 0, 0, (32 << 20) + 1);
    assert_eq!(raw.error(cookie), EINVAL);
    assert!(raw.read_at(0, 32 << 20) == vec![7; 32 << 20]);
}

#[test]
fn writes_longer_than_the_largest_payload_end_the_connection() {
    let server = Server::start(MemDevice::new(disk(1 << 20)));
    for len in [(32 << 20) + 1, u32::MAX] {
        let mut raw = Raw::ready(&server.socket);
        raw.request(command::WRITE, 0, 0, len);
        raw.expect_end();
    }
    still_serves(&server);
}

#[test]
fn garbage_and_halves_instead_of_requests() {
    let (server, _) = Server::disk(1 << 20);
    let request = Request { flags: 0, command: command::READ, cookie: 1, offset: 0, len: 512 };
    let whole = request.encode();
    for cut in 0..whole.len() {
        let mut raw = Raw::ready(&server.socket);
        raw.write(&whole[..cut]);
        raw.stream.shutdown(Shutdown::Write).unwrap();
        raw.expect_end();
    }
    let mut raw = Raw::ready(&server.socket);
    raw.write(&[0x42; 28]);
    raw.expect_end();
    // Half a payload.
    let mut raw = Raw::ready(&server.socket);
    raw.request(command::WRITE, 0, 0, 100_000);
    raw.write(&[1; 5000]);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    raw.expect_end();
    still_serves(&server);
}

#[test]
fn random_bytes_after_the_handshake() {
    let (server, _) = Server::disk(1 << 20);
    let mut state = 12345u64;
    for _ in 0..200 {
        let mut raw = Raw::ready(&server.socket);
        let mut bytes = Vec::new();
        for _ in 0..8 {
            for _ in 0..28 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes.push((state >> 40) as u8);
            }
        }
        // A right magic, so that the rest of the first request is looked at.
        bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        let _ = raw.stream.write_all(&bytes);
        let _ = raw.stream.shutdown(Shutdown::Write);
    }
    still_serves(&server);
}

#[test]
fn silent_and_slow_clients_do_not_keep_others_out() {
    let config = ServerConfig {
        handshake_timeout: Duration::from_millis(800),
        max_handshakes: 16,
        // Fewer than the silent ones: without giving way, there would be no place left.
        max_per_address: 24,
        ..ServerConfig::default()
    };
    let server = Server::with(MemDevice::read_only(disk(1 << 20)), config);
    let mut silent: Vec<_> = (0..40).map(|_| Raw::silent(&server.socket)).collect();
    let mut slow = server.raw();
    still_serves(&server);
    let start = Instant::now();
    // A byte now and then does not extend the deadline.
    while start.elapsed() < Duration::from_secs(3) {
        if slow.stream.write_all(&[0x49]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "the slow client was never cut off");
    for raw in &mut silent {
        raw.drain();
    }
    still_serves(&server);
}

/// Counts the reads that reach it.
#[derive(Debug)]
struct Counting(MemDevice, Arc<AtomicUsize>);

impl BlockDevice for Counting {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn caps(&self) -> Caps {
        self.0.caps()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read_at(offset, buf)
    }
    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.read_at(offset, buf).map(|()| true)
    }
    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.0.extents(offset, len, max)
    }
}

#[test]
fn a_client_that_takes_no_replies_is_not_read_any_more() {
    const LIMIT: usize = 4 << 20;
    let config =
        ServerConfig { max_inflight_bytes_per_connection: LIMIT as u64, ..ServerConfig::default() };
    let bytes: Vec<u8> = disk(1 << 20).iter().map(|b| b | 1).collect();
    let reads = Arc::new(AtomicUsize::new(0));
    let server = Server::with(Counting(MemDevice::read_only(bytes), reads.clone()), config);
    // Long reads take the way through the pool, short ones are answered on the spot.
    for len in [1 << 20, 64 << 10] {
        reads.store(0, Ordering::SeqCst);
        let mut raw = Raw::ready(&server.socket);
        raw.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let request =
            Request { flags: 0, command: command::READ, cookie: 1, offset: 0, len }.encode();
        let stuck = (0..100_000).any(|_| raw.stream.write_all(&request).is_err());
        assert!(stuck, "the server takes every request of a client that reads nothing");
        let done = reads.load(Ordering::SeqCst) * len as usize;
        // The kernel holds some more in the socket.
        assert!(done <= LIMIT + (2 << 20), "{done} bytes read for nobody");
        // The rest must not be hurt, and leaving with everything unread must not either.
        let mut other = Raw::ready(&server.socket);
        assert_eq!(other.read_at(0, 100).len(), 100);
        drop(raw);
        assert_eq!(other.read_at(0, 100).len(), 100);
    }
}

/// nbdkit 1.32.5 aborts as a whole when a client leaves with many replies unread.
#[test]
fn clients_that_vanish_with_replies_unread() {
    let bytes: Vec<u8> = disk(1 << 20).iter().map(|b| b | 1).collect();
    let server = Server::start(MemDevice::read_only(bytes));
    let mut other = Raw::ready(&server.socket);
    for round in 0..200 {
        let mut raw = Raw::ready(&server.socket);
        for _ in 0..64 {
            raw.request(command::READ, 0, 0, 1 << 20);
        }
        if round % 2 == 0 {
            raw.chunk();
        }
        assert_eq!(other.read_at(0, 100).len(), 100, "round {round}");
    }
    let mut raw = Raw::ready(&server.socket);
    assert_eq!(raw.read_at(0, 100).len(), 100);
}
