//! Extended headers, the presence context, and writes that are put off.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::{
    BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, MemDevice, Presence,
    PresenceExtent, WriteFlags,
};
use backstay_nbd::proto::extended::{ExtendedHeader, ExtendedRequest, decode_block_status_ext};
use backstay_nbd::proto::handshake::{Info, MetaContextRequest, encode_option, option, reply};
use backstay_nbd::proto::transmission::{
    ErrorChunk, chunk, command, command_flag, decode_block_status, flag,
};
use backstay_nbd::server::ServerConfig;

use crate::support::{Raw, Server, disk, run_ok, tool};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;
const TIB: u64 = 1 << 40;

/// A disk of 16 TiB that stores nothing but remembers what was asked of it.
#[derive(Debug, Default)]
struct Huge {
    calls: Mutex<Vec<(&'static str, u64, u64)>>,
}

impl Huge {
    fn note(&self, what: &'static str, offset: u64, len: u64) {
        self.calls.lock().unwrap().push((what, offset, len));
    }
}

impl BlockDevice for &'static Huge {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 16 * TIB,
            min_block_bytes: 1,
            preferred_block_bytes: 4096,
            max_request_bytes: 32 << 20,
        }
    }

    fn caps(&self) -> Caps {
        Caps { writable: true, trim: true, write_zeroes: true, presence: true, ..Caps::default() }
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), Error> {
        buf.fill(0);
        Ok(())
    }

    fn extents(&self, at: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
        // A terabyte of each sort in turn.
        let kinds = [ExtentKind::Data, ExtentKind::Hole, ExtentKind::Zero];
        let (mut list, end, mut at) = (Vec::new(), at + len, at);
        while at < end && list.len() < max {
            let next = (at / TIB + 1) * TIB;
            let kind = kinds[(at / TIB % 3) as usize];
            list.push(Extent { offset_bytes: at, len_bytes: next.min(end) - at, kind });
            at = next;
        }
        Ok(list)
    }

    fn presence(&self, at: u64, len: u64, _: usize) -> Result<Vec<PresenceExtent>, Error> {
        let presence = Presence { stored: true, at_hand: false, overlaid: true };
        let half = len.div_ceil(2);
        let mut list = vec![PresenceExtent { offset_bytes: at, len_bytes: half, presence }];
        if len > half {
            let presence = Presence { stored: false, at_hand: true, overlaid: false };
            let len_bytes = len - half;
            list.push(PresenceExtent { offset_bytes: at + half, len_bytes, presence });
        }
        Ok(list)
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.note("prefetch", offset, len);
    }

    fn write_at(&self, offset: u64, data: &[u8], _: WriteFlags) -> Result<(), Error> {
        self.note("write", offset, data.len() as u64);
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64, _: WriteFlags) -> Result<(), Error> {
        self.note("trim", offset, len);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: WriteFlags) -> Result<(), Error> {
        self.note("zero", offset, len);
        Ok(())
    }
}

fn huge() -> (&'static Huge, Server) {
    let device: &'static Huge = Box::leak(Box::default());
    (device, Server::start(device))
}

const BOTH: &[&str] = &["base:allocation", "backstay:presence"];

/// Chooses contexts; answers their ids and names.
fn contexts(raw: &mut Raw, option: u32, queries: &[&str]) -> Vec<(u32, String)> {
    let queries = queries.iter().map(|q| (*q).to_owned()).collect();
    let request = MetaContextRequest { export: "disk".to_owned(), queries };
    let (items, end) = raw.option(option, &request.encode());
    assert_eq!(end, reply::ACK);
    let item = |(_, payload): &(u32, Vec<u8>)| {
        let id = u32::from_be_bytes(*payload.first_chunk().unwrap());
        (id, String::from_utf8(payload[4..].to_vec()).unwrap())
    };
    items.iter().map(item).collect()
}

fn extended(server: &Server, queries: &[&str]) -> Raw {
    let mut raw = server.raw();
    assert_eq!(raw.option(option::EXTENDED_HEADERS, &[]).1, reply::ACK);
    if !queries.is_empty() {
        contexts(&mut raw, option::SET_META_CONTEXT, queries);
    }
    raw.go("disk", &[]);
    raw
}

fn ask(raw: &mut Raw, command: u16, flags: u16, offset: u64, len: u64) -> ExtendedRequest {
    let request = ExtendedRequest { flags, command, cookie: offset ^ 0xabcd, offset, len };
    raw.write(&request.encode());
    request
}

/// One chunk, which must name the request: its flags, type and payload.
#[track_caller]
fn answer(raw: &mut Raw, to: &ExtendedRequest) -> (u16, u16, Vec<u8>) {
    let header = ExtendedHeader::decode(&raw.read()).unwrap();
    assert_eq!((header.cookie, header.offset), (to.cookie, to.offset));
    assert!(header.len <= 33 << 20);
    (header.flags, header.kind, raw.read_vec(header.len as usize))
}

#[track_caller]
fn succeeds(raw: &mut Raw, command: u16, flags: u16, offset: u64, len: u64) {
    let request = ask(raw, command, flags, offset, len);
    assert_eq!(answer(raw, &request), (chunk::FLAG_DONE, chunk::NONE, vec![]));
}

#[track_caller]
fn fails(raw: &mut Raw, request: &ExtendedRequest) -> u32 {
    let (flags, kind, payload) = answer(raw, request);
    assert_eq!((flags, kind), (chunk::FLAG_DONE, chunk::ERROR));
    ErrorChunk::decode(&payload).unwrap().errno
}

#[test]
fn the_option_by_the_book() {
    let (_, server) = huge();
    let mut raw = server.raw();
    assert_eq!(raw.option(option::EXTENDED_HEADERS, b"x").1, reply::ERR_INVALID);
    assert_eq!(raw.option(option::STRUCTURED_REPLY, &[]).1, reply::ACK);
    assert_eq!(raw.option(option::EXTENDED_HEADERS, &[]).1, reply::ACK, "an upgrade");
    assert_eq!(raw.option(option::EXTENDED_HEADERS, &[]).1, reply::ERR_INVALID);
    assert_eq!(raw.option(option::STRUCTURED_REPLY, &[]).1, reply::ERR_EXT_HEADER_REQD);
    // They imply structured replies, so contexts can be chosen, and DF used.
    contexts(&mut raw, option::SET_META_CONTEXT, BOTH);
    let Info::Export { flags, .. } = raw.go("disk", &[])[0] else { panic!() };
    assert_ne!(flags & flag::SEND_DF, 0);
    assert_ne!(flags & flag::BLOCK_STATUS_PAYLOAD, 0);
    // A compact request is not understood any more.
    let mut raw = extended(&server, &[]);
    raw.request(command::READ, 0, 0, 512);
    raw.write(&[0; 4]);
    raw.expect_end();
    // EXPORT_NAME cannot carry them.
    let mut raw = server.raw();
    raw.option(option::EXTENDED_HEADERS, &[]);
    raw.write(&encode_option(option::EXPORT_NAME, b"disk"));
    raw.expect_end();
}

#[test]
fn lengths_have_64_bits() {
    let (device, server) = huge();
    let mut raw = extended(&server, BOTH);
    succeeds(&mut raw, command::TRIM, 0, 4096, 9 * TIB);
    succeeds(&mut raw, command::WRITE_ZEROES, command_flag::NO_HOLE, 1, 16 * TIB - 1);
    succeeds(&mut raw, command::CACHE, 0, TIB, 5 * TIB);
    let calls = std::mem::take(&mut *device.calls.lock().unwrap());
    assert_eq!(
        calls,
        [("trim", 4096, 9 * TIB), ("zero", 1, 16 * TIB - 1), ("prefetch", TIB, 5 * TIB)]
    );
    for (command, offset, len, errno) in [
        (command::TRIM, 1, 16 * TIB, EINVAL),
        (command::WRITE_ZEROES, u64::MAX, u64::MAX, ENOSPC),
        (command::CACHE, 1, u64::MAX, EINVAL),
        (command::BLOCK_STATUS, 0, u64::MAX, EINVAL),
        (command::READ, 0, (32 << 20) + 1, EINVAL),
        (command::READ, 0, 1 << 32, EINVAL),
    ] {
        let request = ask(&mut raw, command, 0, offset, len);
        assert_eq!(fails(&mut raw, &request), errno, "{request:?}");
    }
    assert!(device.calls.lock().unwrap().is_empty());
}

#[test]
fn both_contexts_in_one_answer() {
    let (_, server) = huge();
    let mut raw = extended(&server, BOTH);
    let request = ask(&mut raw, command::BLOCK_STATUS, 0, TIB / 2, 4 * TIB);
    let (flags, kind, payload) = answer(&mut raw, &request);
    assert_eq!((flags, kind), (0, chunk::BLOCK_STATUS_EXT));
    let half = TIB / 2;
    let list = vec![(half, 0), (TIB, 3), (TIB, 2), (TIB, 0), (half, 3)];
    assert_eq!(decode_block_status_ext(&payload).unwrap(), (1, list));
    let (flags, kind, payload) = answer(&mut raw, &request);
    assert_eq!((flags, kind), (chunk::FLAG_DONE, chunk::BLOCK_STATUS_EXT));
    let list = vec![(2 * TIB, 0b101), (2 * TIB, 0b010)];
    assert_eq!(decode_block_status_ext(&payload).unwrap(), (2, list));
    let request = ask(&mut raw, command::BLOCK_STATUS, command_flag::REQ_ONE, 0, 4 * TIB);
    for _ in 0..2 {
        let payload = answer(&mut raw, &request).2;
        assert_eq!(decode_block_status_ext(&payload).unwrap().1.len(), 1);
    }
    // With structured replies only, the same within 32 bits.
    let mut raw = server.raw();
    raw.structured();
    contexts(&mut raw, option::SET_META_CONTEXT, BOTH);
    raw.go("disk", &[]);
    let cookie = raw.request(command::BLOCK_STATUS, 0, 2 * TIB, 1 << 30);
    let first = raw.chunk();
    assert_eq!((first.cookie, first.done), (cookie, false));
    assert_eq!(decode_block_status(&first.payload).unwrap(), (1, vec![(1 << 30, 2)]));
    let second = raw.chunk();
    assert!(second.done);
    let list = vec![(1 << 29, 0b101), (1 << 29, 0b010)];
    assert_eq!(decode_block_status(&second.payload).unwrap(), (2, list));
}

#[test]
fn presence_is_offered_where_the_device_tells_it() {
    let (_, server) = huge();
    let mut raw = server.raw();
    raw.structured();
    let names = |list: Vec<(u32, String)>| list.into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    let list =
        |raw: &mut Raw, queries: &[&str]| names(contexts(raw, option::LIST_META_CONTEXT, queries));
    assert_eq!(list(&mut raw, &[]), BOTH);
    assert_eq!(list(&mut raw, &["backstay:"]), BOTH[1..]);
    assert_eq!(list(&mut raw, &["base:"]), BOTH[..1]);
    assert!(list(&mut raw, &["backstay:other", "x:", "backstay"]).is_empty());
    let set = contexts(&mut raw, option::SET_META_CONTEXT, &["backstay:presence"]);
    assert_eq!(set, [(2, "backstay:presence".to_owned())]);
    assert!(contexts(&mut raw, option::SET_META_CONTEXT, &["backstay:"]).is_empty());
    assert_eq!(server.exports.opened.load(Ordering::SeqCst), 0);
    let (plain, _) = Server::disk(4096);
    let mut raw = plain.raw();
    raw.structured();
    assert_eq!(list(&mut raw, &[]), BOTH[..1]);
    assert_eq!(contexts(&mut raw, option::SET_META_CONTEXT, BOTH).len(), 1);
}

#[test]
fn payloads_by_the_book() {
    let (device, server) = huge();
    let mut raw = extended(&server, BOTH);
    let with = command_flag::PAYLOAD_LEN;
    let request = ask(&mut raw, command::WRITE, with, 10, 1000);
    raw.write(&[7; 1000]);
    assert_eq!(answer(&mut raw, &request), (chunk::FLAG_DONE, chunk::NONE, vec![]));
    // A write should say that it has a payload; QEMU 10.0 does not, and means it all the same.
    let request = ask(&mut raw, command::WRITE, 0, 11, 1000);
    raw.write(&[7; 1000]);
    assert_eq!(answer(&mut raw, &request), (chunk::FLAG_DONE, chunk::NONE, vec![]));
    assert_eq!(*device.calls.lock().unwrap(), [("write", 10, 1000), ("write", 11, 1000)]);
    // Payloads of others are read over.
    for command in [command::READ, command::TRIM, 77] {
        let request = ask(&mut raw, command, with, 0, 300_000);
        raw.write(&vec![1; 300_000]);
        assert_eq!(fails(&mut raw, &request), EINVAL);
    }
    let filter = |len: u64, ids: &[u32]| {
        let mut payload = len.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        payload
    };
    let status = |raw: &mut Raw, payload: &[u8]| {
        let len = payload.len() as u64;
        let request = ask(raw, command::BLOCK_STATUS, with, TIB, len);
        raw.write(payload);
        request
    };
    let request = status(&mut raw, &filter(TIB, &[2]));
    let (flags, _, payload) = answer(&mut raw, &request);
    assert_eq!(flags, chunk::FLAG_DONE);
    let list = vec![(TIB / 2, 5), (TIB / 2, 2)];
    assert_eq!(decode_block_status_ext(&payload).unwrap(), (2, list));
    for bad in [
        filter(TIB, &[]),
        filter(TIB, &[3]),
        filter(TIB, &[1, 1]),
        filter(0, &[1]),
        filter(u64::MAX, &[1]),
        vec![0; 7],
        vec![0; 15],
        vec![0; 4096],
        vec![],
    ] {
        let request = status(&mut raw, &bad);
        assert_eq!(fails(&mut raw, &request), EINVAL, "{bad:?}");
    }
    // Beyond all bounds: the end.
    ask(&mut raw, command::READ, with, 0, u64::MAX);
    raw.expect_end();
    // Without extended headers the flag is unknown, and nothing follows.
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::READ, with, 0, 512);
    assert_eq!(raw.error(cookie), EINVAL);
    assert!(raw.read_at(0, 512) == vec![0; 512]);
}

#[test]
fn reads_are_whole_with_and_without_holes() {
    let (server, bytes) = Server::disk(4 << 20);
    let mut raw = extended(&server, &[]);
    for (offset, len, flags) in
        [(0u64, 4 << 20, 0u16), (777, 100_000, 0), (5, 0, 0), (0, 4 << 20, command_flag::DF)]
    {
        let request = ask(&mut raw, command::READ, flags, offset, len);
        let mut out = vec![0xa5; len as usize];
        loop {
            let (flags, kind, payload) = answer(&mut raw, &request);
            if kind != chunk::NONE {
                let at = u64::from_be_bytes(*payload.first_chunk().unwrap()) - offset;
                let at = at as usize;
                if kind == chunk::OFFSET_HOLE {
                    let hole = u32::from_be_bytes(*payload[8..].first_chunk().unwrap());
                    out[at..at + hole as usize].fill(0);
                } else {
                    assert_eq!(kind, chunk::OFFSET_DATA);
                    out[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
                }
            }
            if flags == chunk::FLAG_DONE {
                break;
            }
        }
        assert!(out == bytes[offset as usize..(offset + len) as usize]);
    }
}

/// qemu-img of this age asks for extended headers by itself.
#[test]
fn qemu_maps_terabytes() {
    let (device, server) = huge();
    let uri = server.uri_text("disk");
    let mut map = tool("qemu-img", "qemu-utils");
    let text = run_ok(map.args(["map", "-f", "raw", "--output=json", &uri]));
    assert!(text.contains(&format!("\"length\": {TIB}")), "{text}");
    assert!(text.contains("\"present\": true, \"zero\": true, \"data\": true"), "{text}");
    let mut io = tool("qemu-io", "qemu-utils");
    let text =
        run_ok(io.args(["-f", "raw", &uri, "-c", "write -z 0 1G", "-c", "write -P 3 8G 64k"]));
    assert!(!text.contains("failed"), "{text}");
    let calls = device.calls.lock().unwrap();
    let longest = calls.iter().filter(|call| call.0 == "zero").map(|call| call.2).max();
    assert!(calls.iter().any(|call| call.0 == "write"), "{calls:?}");
    assert!(longest.is_some(), "{calls:?}");
}

#[test]
fn nbdinfo_sees_the_presence_map() {
    let (_, server) = huge();
    let uri = server.uri_text("disk");
    let text = run_ok(tool("nbdinfo", "libnbd-bin").arg(&uri));
    assert!(text.contains("backstay:presence"), "{text}");
    let mut map = tool("nbdinfo", "libnbd-bin");
    let text = run_ok(map.args(["--map=backstay:presence", &uri]));
    let first: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!((first[0], first[2]), ("0", "5"), "{text}");
}

/// A device that has no room for writes now and then.
#[derive(Debug)]
struct Pausing {
    inner: MemDevice,
    full: AtomicBool,
    refused: AtomicUsize,
}

impl Pausing {
    fn start() -> (&'static Self, Server) {
        let inner = MemDevice::new(disk(1 << 20));
        let (full, refused) = (AtomicBool::new(true), AtomicUsize::new(0));
        let device: &'static Self = Box::leak(Box::new(Self { inner, full, refused }));
        let config = ServerConfig { worker_threads: 1, io_threads: 1, ..ServerConfig::default() };
        (device, Server::with(device, config))
    }

    fn room(&self) -> Result<(), Error> {
        if self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Paused, "no room now"));
        }
        Ok(())
    }
}

impl BlockDevice for &'static Pausing {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_at(offset, buf)
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.inner.extents(offset, len, max)
    }

    fn write_at(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.room()?;
        self.inner.write_at(offset, data, flags)
    }

    fn trim(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.room()?;
        self.inner.trim(offset, len, flags)
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.room()?;
        self.inner.write_zeroes(offset, len, flags)
    }
}

#[test]
fn writes_wait_for_room_and_reads_do_not() {
    let (device, server) = Pausing::start();
    let mut raw = Raw::ready(&server.socket);
    let mut waiting: Vec<u64> = Vec::new();
    for i in 0..8 {
        waiting.push(raw.request(command::WRITE, 0, i * 1000, 1000));
        raw.write(&[i as u8 + 1; 1000]);
    }
    waiting.push(raw.request(command::WRITE_ZEROES, 0, 100_000, 1000));
    waiting.push(raw.request(command::TRIM, 0, 200_000, 1000));
    // The pool has one thread: it reads, so nothing waits in it.
    let start = Instant::now();
    for _ in 0..5 {
        assert!(raw.read_at(0, 4096) == disk(4096), "nothing was done");
    }
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    std::thread::sleep(Duration::from_millis(700));
    let refused = device.refused.load(Ordering::SeqCst);
    assert!((20..=60).contains(&refused), "tried {refused} times in about 0.8 s, ten writes");
    device.full.store(false, Ordering::SeqCst);
    while !waiting.is_empty() {
        let (errno, cookie) = raw.simple();
        assert_eq!(errno, 0);
        waiting.retain(|one| *one != cookie);
    }
    assert!(raw.read_at(7000, 1000) == vec![8; 1000]);
    assert!(raw.read_at(100_000, 1000) == vec![0; 1000]);
}

#[test]
fn writes_that_wait_are_answered_when_the_server_stops() {
    let (_, mut server) = Pausing::start();
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::WRITE, 0, 0, 1000);
    raw.write(&[1; 1000]);
    assert!(raw.read_at(0, 512) == disk(512));
    let start = Instant::now();
    server.handle.take().unwrap().stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(raw.simple(), (ESHUTDOWN, cookie));
    raw.expect_end();
}

#[test]
fn writes_that_wait_fail_when_the_export_ends_and_vanish_with_the_client() {
    use backstay_nbd::server::{Access, ExportSpec, ExportTable, Permission, Source};
    let (device, _) = Pausing::start();
    let table = ExportTable::new();
    let source = Source::Device(std::sync::Arc::new(device));
    let access = Access::everybody(Permission::ReadWrite);
    let spec = ExportSpec { name: "disk".into(), description: String::new(), source, access };
    table.add(spec).unwrap();
    let server = Server::of(std::sync::Arc::new(table), ServerConfig::default());
    let write = |raw: &mut Raw| {
        let cookie = raw.request(command::WRITE, 0, 0, 1000);
        raw.write(&[1; 1000]);
        assert!(raw.read_at(0, 512) == disk(512));
        cookie
    };
    let mut leaves = Raw::ready(&server.socket);
    write(&mut leaves);
    drop(leaves);
    let gone = || server.exports.attached("disk").is_empty();
    crate::support::eventually("the client is gone", gone);
    let mut stays = Raw::ready(&server.socket);
    let cookie = write(&mut stays);
    let removed = server.exports.remove("disk").unwrap();
    assert_eq!(stays.simple(), (ENOSPC, cookie));
    stays.expect_end();
    assert!(removed.wait(Duration::from_secs(5)));
    let refused = device.refused.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(device.refused.load(Ordering::SeqCst), refused, "somebody still tries");
}
