//! Repositories opened by their address, as the command line does: keys from the environment, the
//! index and the cache in a directory that processes share.

use std::path::Path;
use std::process::Command;

use backstay_store::{
    CheckOptions, ChunkSize, Encryption, ErrorKind, InitOptions, Location, NoProgress, OpenOptions,
    Repository, Unlock,
};
use backstay_tests::s3_server::{Bucket, Kind};

use crate::support::{BUCKET, back_up, image, key, read, rig};

const ROLE: &str = "BACKSTAY_TEST_ROLE";
const LEN: usize = 12 << 20;

/// Does nothing by itself; the work of a child process when started by the tests below.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let location = Location::parse(&std::env::var("BACKSTAY_TEST_AT").unwrap()).unwrap();
    let cache = std::env::var("BACKSTAY_TEST_CACHE").unwrap();
    let open = |bytes| {
        let options = OpenOptions { disk_cache_bytes: bytes, ..OpenOptions::new(&cache) };
        Repository::open(&location, &key(), &options)
    };
    match role.as_str() {
        "write" => {
            let init = InitOptions {
                chunk_size: ChunkSize::new(4096).unwrap(),
                encryption: Encryption::Aes256Gcm,
                time: jiff::Timestamp::now(),
                parity: false,
            };
            let missing = open(0).unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
            assert!(missing.to_string().contains("there is no repository at s3://"), "{missing}");
            Repository::init(&location, &init, &key()).unwrap();
            let again = Repository::init(&location, &init, &key()).unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Exists);
            assert_eq!(Repository::key_slots(&location).unwrap().len(), 1);
            let wrong = Repository::open(&location, &Unlock::None, &OpenOptions::new(&cache));
            assert_eq!(wrong.unwrap_err().kind(), ErrorKind::NeedsKey);
            back_up(&open(0).unwrap(), "web01", &image(5, LEN)).unwrap();
        }
        "read" | "read-without-cache" => {
            let repo = open(if role == "read" { 1 << 30 } else { 0 }).unwrap();
            let points = repo.points().unwrap().points;
            assert!(read(&repo, &points[0]).unwrap() == image(5, LEN));
        }
        "check" => {
            let repo = open(1 << 30).unwrap();
            let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
            assert!(report.damage.is_empty(), "{:?}", report.damage);
            let keyless = Repository::check_without_key(&location, &NoProgress).unwrap();
            assert!(keyless.packs > 0 && keyless.damage.is_empty());
        }
        other => panic!("no role {other}"),
    }
}

fn run(role: &str, address: &str, dir: &Path) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["opened::child", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env("BACKSTAY_TEST_AT", address)
        .env("BACKSTAY_TEST_CACHE", dir.join("cache"))
        .env("HOME", dir)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .status();
    assert!(status.unwrap().success(), "{role}");
}

#[test]
fn processes_share_what_they_fetched() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let dir = tempfile::tempdir().unwrap();
    let address = format!("s3://{BUCKET}/by-address?endpoint=http://{}", rig.proxy.address());
    run("write", &address, dir.path());
    let received = |role: &str| {
        let before = rig.proxy.counts().received;
        run(role, &address, dir.path());
        rig.proxy.counts().received - before
    };
    let without = received("read-without-cache");
    let first = received("read");
    let second = received("read");
    assert!(without > LEN as u64 / 4, "{without}");
    assert!(first > LEN as u64 / 4, "{first}");
    assert!(second < first / 20, "{second} of {first} bytes were fetched again");
    run("check", &address, dir.path());
}

#[test]
fn a_repository_that_is_not_there_is_told() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let storage = rig.storage("nothing");
    let e = backstay_store::Storage::get(&storage, backstay_store::ObjectKey::Config, 100);
    let e = e.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().starts_with("there is no repository at s3://backups/nothing"), "{e}");
}
