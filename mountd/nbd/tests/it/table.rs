//! Exports that come and go, and who may have them.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::layer::Delay;
use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_nbd::proto::handshake::{Info, InfoRequest, encode_option, option, reply};
use backstay_nbd::proto::transmission::{command, command_flag, flag};
use backstay_nbd::server::{
    Access, BoundAddress, ExportSpec, ExportTable, Listen, Peer, Permission, ServerConfig,
    ServerHandle, Source, Who,
};

use crate::support::{Raw, Server, disk, eventually};

const ESHUTDOWN: u32 = 108;
const EPERM: u32 = 1;

fn spec(name: &str, device: impl BlockDevice + 'static, access: Access) -> ExportSpec {
    let source = Source::Device(Arc::new(device));
    ExportSpec { name: name.to_owned(), description: format!("about {name}"), source, access }
}

fn memory(name: &str, access: Access) -> ExportSpec {
    spec(name, MemDevice::new(disk(1 << 20)), access)
}

fn serve(table: ExportTable) -> Server<ExportTable> {
    let config = ServerConfig { end_grace: Duration::from_millis(300), ..ServerConfig::default() };
    Server::of(Arc::new(table), config)
}

fn everybody() -> Access {
    Access::everybody(Permission::ReadWrite)
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

fn attach<E>(server: &Server<E>, export: &str) -> Raw {
    let mut raw = server.raw();
    raw.structured();
    raw.go(export, &[]);
    raw
}

#[test]
fn what_is_forbidden_is_answered_like_what_is_not_there() {
    let table = ExportTable::new();
    table.add(memory("open", everybody())).unwrap();
    let own = Who::User(own_uid());
    table.add(memory("mine", Access::nobody().allow(own, Permission::ReadWrite))).unwrap();
    let other = Who::User(own_uid() + 1);
    table.add(memory("theirs", Access::nobody().allow(other, Permission::ReadWrite))).unwrap();
    let server = serve(table);
    let mut raw = server.raw();
    raw.structured();
    let (items, _) = raw.option(option::LIST, &[]);
    let names: Vec<_> = items.iter().map(|(_, payload)| payload[4..8].to_vec()).collect();
    assert_eq!(names, [b"mine", b"open"]);
    let mut answers = Vec::new();
    for export in ["theirs", "nobody", ""] {
        let request = InfoRequest { export: export.to_owned(), wants: vec![] };
        for option in [option::INFO, option::GO] {
            raw.write(&encode_option(option, &request.encode()));
            answers.push(raw.option_reply(option));
        }
        let mut query = (export.len() as u32).to_be_bytes().to_vec();
        query.extend(export.as_bytes());
        query.extend([0; 4]);
        raw.write(&encode_option(option::LIST_META_CONTEXT, &query));
        answers.push(raw.option_reply(option::LIST_META_CONTEXT));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, reply::ERR_UNKNOWN);
    assert!(
        raw.option(option::GO, &InfoRequest { export: "mine".into(), wants: vec![] }.encode()).1
            == reply::ACK
    );
}

#[test]
fn addresses_decide_over_tcp_and_the_weaker_right_is_read_only() {
    let table = ExportTable::new();
    let two = Who::Addresses("127.0.0.2".parse().unwrap());
    let all = Who::Addresses("127.0.0.0/8".parse().unwrap());
    let access =
        Access::nobody().allow(all, Permission::ReadOnly).allow(two, Permission::ReadWrite);
    table.add(memory("disk", access)).unwrap();
    let listen = vec![Listen::Tcp("127.0.0.1:0".parse().unwrap())];
    let table = Arc::new(table);
    let server = ServerHandle::start(listen, table.clone(), ServerConfig::default()).unwrap();
    let BoundAddress::Tcp(address) = server.addresses()[0] else { panic!("no address") };
    for (from, writable) in [([127, 0, 0, 1], false), ([127, 0, 0, 2], true)] {
        let mut raw = crate::support::TcpRaw::connect(address, from.into());
        let Info::Export { flags, .. } = raw.go("disk") else { panic!("no export") };
        assert_eq!(flags & flag::READ_ONLY == 0, writable);
        let errno = raw.write_zeros(512);
        assert_eq!(errno, if writable { 0 } else { EPERM });
        let attached = table.attached("disk");
        assert_eq!(attached.len(), 1);
        let Peer::Tcp(peer) = attached[0].client.peer else { panic!("{attached:?}") };
        assert_eq!(peer.ip(), std::net::IpAddr::from(from));
        drop(raw);
        eventually("it is gone", || table.attached("disk").is_empty());
    }
}

#[test]
fn a_removed_export_ends_its_clients_and_no_others() {
    let slow = Delay::new(Arc::new(MemDevice::new(disk(1 << 20))), Duration::from_millis(150));
    let table = ExportTable::new();
    table.add(spec("gone", slow, everybody())).unwrap();
    table.add(memory("stays", everybody())).unwrap();
    let server = serve(table);
    let mut gone = attach(&server, "gone");
    let mut stays = attach(&server, "stays");
    let under_way = gone.request(command::READ, command_flag::DF, 0, 4096);
    std::thread::sleep(Duration::from_millis(50));
    let removed = server.exports.remove("gone").unwrap();
    assert!(server.exports.remove("gone").is_none());
    assert_eq!(removed.attached().len(), 1);
    // It is gone for newcomers, and its name is free.
    let request = InfoRequest { export: "gone".to_owned(), wants: vec![] }.encode();
    assert_eq!(server.raw().option(option::GO, &request).1, reply::ERR_UNKNOWN);
    server.exports.add(memory("gone", everybody())).unwrap();
    // What came late is told so, writes with their payload too, in step.
    let start = Instant::now();
    let write = gone.request(command::WRITE, 0, 0, 512);
    gone.write(&[1; 512]);
    assert_eq!(gone.simple(), (ESHUTDOWN, write), "late requests do not wait for early ones");
    assert!(gone.data(under_way, 0, 4096).0 == disk(4096));
    let late = gone.request(command::READ, 0, 0, 512);
    assert_eq!(gone.error(late), ESHUTDOWN);
    gone.expect_end();
    assert!(start.elapsed() > Duration::from_millis(150), "the grace");
    assert!(removed.wait(Duration::from_secs(5)));
    assert!(stays.read_at(0, 4096) == disk(4096));
    assert!(attach(&server, "gone").read_at(0, 512) == disk(512));
}

#[test]
fn a_busy_client_does_not_outlive_its_export() {
    let table = ExportTable::new();
    table.add(memory("disk", everybody())).unwrap();
    let server = serve(table);
    let mut raw = attach(&server, "disk");
    let mut own = raw.stream.try_clone().unwrap();
    // Requests without end, and a reader that takes all replies: the server is never idle.
    let writer = std::thread::spawn(move || {
        let request = backstay_nbd::proto::transmission::Request {
            flags: command_flag::DF,
            command: command::READ,
            cookie: 1,
            offset: 0,
            len: 65536,
        };
        let many = request.encode().repeat(100);
        while own.write_all(&many).is_ok() {}
    });
    let start = Instant::now();
    let remover = std::thread::spawn({
        let table = server.exports.clone();
        move || {
            std::thread::sleep(Duration::from_millis(200));
            assert!(table.remove("disk").unwrap().wait(Duration::from_secs(10)));
        }
    });
    raw.drain();
    remover.join().unwrap();
    writer.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn attached_clients_are_counted() {
    let table = ExportTable::new();
    table.add(memory("disk", everybody())).unwrap();
    table.set_default(Some("disk"));
    let server = serve(table);
    let mut raw = attach(&server, "");
    let _second = attach(&server, "disk");
    raw.read_at(0, 4096);
    raw.read_at(0, 100_000);
    let write = raw.request(command::WRITE, 0, 0, 1000);
    raw.write(&[1; 1000]);
    assert_eq!(raw.simple(), (0, write));
    let attached = server.exports.attached("disk");
    let counts: Vec<_> =
        attached.iter().map(|one| (one.requests, one.read_bytes, one.written_bytes)).collect();
    assert_eq!(counts, [(3, 104_096, 1000), (0, 0, 0)]);
    let own = std::process::id() as i32;
    for one in &attached {
        let Peer::Unix { uid, pid, .. } = one.client.peer else { panic!("{one:?}") };
        assert_eq!((uid, pid), (own_uid(), Some(own)));
        assert!(one.since.elapsed().unwrap() < Duration::from_secs(20));
    }
    drop(raw);
    eventually("the first is gone", || server.exports.attached("disk").len() == 1);
}

#[test]
fn a_lazy_export_is_opened_once_by_the_first_who_may() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let open = Box::new(
        move || -> Result<Arc<dyn BlockDevice>, Box<dyn std::error::Error + Send + Sync>> {
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => Err("not today".into()),
                _ => Ok(Arc::new(MemDevice::new(disk(4096)))),
            }
        },
    );
    let table = ExportTable::new();
    let source = Source::Lazy { open, presence: false };
    let description = String::new();
    table
        .add(ExportSpec { name: "lazy".into(), description, source, access: everybody() })
        .unwrap();
    let server = serve(table);
    let mut raw = server.raw();
    raw.structured();
    raw.option(option::LIST, &[]);
    raw.allocation("lazy");
    assert_eq!(opened.load(Ordering::SeqCst), 0, "opened before it was named (CVE-2019-14850)");
    let request = InfoRequest { export: "lazy".to_owned(), wants: vec![] }.encode();
    assert_eq!(raw.option(option::GO, &request).1, reply::ERR_UNKNOWN, "it fails once");
    for _ in 0..3 {
        attach(&server, "lazy");
    }
    assert_eq!(opened.load(Ordering::SeqCst), 2);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let table = ExportTable::new();
    table.add(memory("a", everybody())).unwrap();
    for bad in ["a", "", "x\0y", &"x".repeat(4097)] {
        assert!(table.add(memory(bad, everybody())).is_err(), "{bad:?}");
    }
    table.add(memory(&"x".repeat(4096), everybody())).unwrap();
    assert_eq!(table.list().len(), 2);
}

/// CVE-2024-7409's kin in a table: exports come and go while clients of both come and go.
#[test]
fn exports_and_clients_come_and_go_at_once() {
    let table = ExportTable::new();
    table.add(memory("stays", everybody())).unwrap();
    let server = serve(table);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                server.exports.add(memory("comes", everybody())).unwrap();
                std::thread::sleep(Duration::from_millis(3));
                assert!(server.exports.remove("comes").is_some());
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let request = InfoRequest { export: "comes".into(), wants: vec![] }.encode();
                for _ in 0..50 {
                    assert!(attach(&server, "stays").read_at(0, 512) == disk(512));
                    let mut raw = server.raw();
                    let end = raw.option(option::GO, &request).1;
                    assert!(end == reply::ACK || end == reply::ERR_UNKNOWN);
                }
            });
        }
    });
    eventually("all are gone", || server.exports.attached("stays").is_empty());
}
