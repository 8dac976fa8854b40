//! The storage suite on both servers, and what is special about S3.

use backstay_store::testkit::conformance::suite;
use backstay_store::{ErrorKind, Folder, Location, ObjectKey, PackId, S3Storage, Storage};
use backstay_tests::s3_proxy::{Fault, Seen};
use backstay_tests::s3_server::{Bucket, Kind};

use crate::support::{hasty, rig};

fn pack(n: u8) -> ObjectKey {
    ObjectKey::Pack(PackId::from_bytes([n; 16]))
}

#[test]
fn the_suite_on_moto() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    suite(&rig.storage("a/b"));
    suite(&rig.storage(""));
}

#[test]
fn the_suite_on_seaweedfs() {
    let Some(rig) = rig(Kind::Seaweed, Bucket::Plain) else { return };
    suite(&rig.storage("a/b"));
    suite(&rig.storage(""));
}

/// More objects than a page tells.
#[test]
fn long_listings_are_complete() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let storage = rig.storage("long");
    let mut wanted = Vec::new();
    for n in 0..150u32 {
        let mut id = [0u8; 16];
        // Spread over all directories, and some far fuller than others.
        id[0] = if n % 3 == 0 { (n * 7) as u8 } else { 3 };
        id[12..].copy_from_slice(&n.to_be_bytes());
        let key = ObjectKey::Pack(PackId::from_bytes(id));
        rig.server.ask("PUT", &format!("/backups/long/{key}"), "", b"x").unwrap();
        wanted.push(key);
    }
    for foreign in ["packs/0/not-an-id", "packs/README", "packs/z/0000", "tmp/x"] {
        rig.server.ask("PUT", &format!("/backups/long/{foreign}"), "", b"x").unwrap();
    }
    wanted.sort();
    assert_eq!(storage.list(Folder::Packs).unwrap(), wanted);
    assert!(rig.proxy.requests() > 32);
    // A small folder costs one request, however many directories it has.
    let small = rig.storage("small");
    small.put(pack(1), &[b"x"]).unwrap();
    rig.proxy.plan(|_| Fault::None);
    assert_eq!(small.list(Folder::Packs).unwrap(), [pack(1)]);
    assert_eq!(rig.proxy.requests(), 1);
}

fn creates(rig: &crate::support::Rig, prefix: &str) -> Result<S3Storage, backstay_store::Error> {
    S3Storage::create(rig.location(prefix).s3().unwrap(), hasty())
}

#[test]
fn a_server_that_overwrites_is_refused() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    creates(&rig, "fine").unwrap();
    let left = rig.server.ask("GET", "/backups?prefix=fine/", "", b"").unwrap();
    assert!(!left.contains("<Key>"), "the probe leaves nothing: {left}");
    rig.proxy.plan(|_| Fault::Strip("if-none-match"));
    let e = creates(&rig, "bad").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("use another server"), "{e}");
    let left = rig.server.ask("GET", "/backups?prefix=bad/", "", b"").unwrap();
    assert!(!left.contains("<Key>"), "the probe leaves nothing: {left}");
    // And so it is when a repository exists, before the first object is written.
    let storage = rig.storage("late");
    let e = storage.put(pack(1), &[b"x"]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    rig.proxy.plan(|_| Fault::None);
    assert!(storage.list(Folder::Packs).unwrap().is_empty());
    storage.put(pack(1), &[b"x"]).unwrap();
}

/// One request once a process: then the standing object is there.
#[test]
fn the_check_before_writing_is_cheap() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    rig.storage("p").put(pack(1), &[b"x"]).unwrap();
    let storage = rig.storage("p");
    rig.proxy.plan(|_| Fault::None);
    storage.put(pack(2), &[b"x"]).unwrap();
    storage.put(pack(3), &[b"x"]).unwrap();
    assert_eq!(rig.proxy.requests(), 3);
}

#[test]
fn errors_say_what_can_be_done() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let kind = |text: &str| {
        let location = Location::parse(text).unwrap();
        let storage = S3Storage::new(location.s3().unwrap(), hasty()).unwrap();
        storage.get(ObjectKey::Config, 1 << 16).unwrap_err().kind()
    };
    let address = rig.proxy.address();
    assert_eq!(kind(&format!("s3://backups/x?endpoint=http://{address}")), ErrorKind::NotFound);
    assert_eq!(kind(&format!("s3://nobody?endpoint=http://{address}")), ErrorKind::NotFound);
    // Nobody listens on port 1: a few quick tries, no minutes.
    let start = std::time::Instant::now();
    assert_eq!(kind("s3://backups?endpoint=http://127.0.0.1:1"), ErrorKind::Io);
    assert!(start.elapsed().as_secs() < 5);
    let storage = rig.storage("e");
    storage.put(pack(1), &[b"x"]).unwrap();
    for (status, code, expected) in [
        (403, "AccessDenied", ErrorKind::Denied),
        (403, "QuotaExceeded", ErrorKind::NoSpace),
        (507, "InsufficientStorage", ErrorKind::NoSpace),
        (503, "SlowDown", ErrorKind::Busy),
        (429, "TooManyRequests", ErrorKind::Busy),
        (500, "InternalError", ErrorKind::Io),
        (400, "InvalidArgument", ErrorKind::Io),
    ] {
        rig.proxy.plan(move |_: &Seen| Fault::Refuse(status, code));
        let e = storage.put(pack(2), &[b"x"]).unwrap_err();
        assert_eq!(e.kind(), expected, "{status} {code}: {e}");
        let e = storage.get(pack(1), 10).unwrap_err();
        assert_eq!(e.kind(), expected, "{status} {code}: {e}");
        let tries = if matches!(status, 429 | 500 | 503) { 4 } else { 1 };
        assert_eq!(rig.proxy.requests(), 2 * tries, "{status} {code}");
    }
}
