//! The index is derived: delete it, break it, or share it, and nothing is lost.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Encryption, FaultPlan, FaultStorage, IndexChoice, LocalStorage, Location, OpenOptions,
    Repository,
};

use crate::support::{CHUNK, back_up, image, init_real, key, read, real};

#[test]
fn deleting_the_index_costs_only_the_footers() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let disk = image(1, 3000 * CHUNK);
    let point = back_up(&repo, "web01", &disk).unwrap();
    drop(repo);
    let (location, options) = real(dir.path());
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let repo = Repository::open(&location, &key(), &options).unwrap();
    assert!(read(&repo, &point.disks[0]).unwrap() == disk);
    let again = back_up(&repo, "web01", &disk).unwrap();
    assert_eq!(again.stats.new_chunks, 0, "everything is recognised after the rebuild");
    assert_eq!(again.disks[0].root, point.disks[0].root);
}

#[test]
fn rebuilding_reads_no_chunk_data() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    back_up(&repo, "web01", &image(1, 3000 * CHUNK)).unwrap();
    let stats = repo.stats().unwrap();
    drop(repo);
    let storage = Arc::new(LocalStorage::open_real(&dir.path().join("repo")).unwrap());
    let counted = Arc::new(FaultStorage::new(storage, FaultPlan::default()));
    let repo = Repository::open_on(
        counted.clone(),
        Location::from_path(&dir.path().join("repo")),
        &key(),
        &OpenOptions::new(dir.path().join("other-cache")),
        IndexChoice::Directory(dir.path().join("other-cache/index")),
        Arc::new(SeededEntropy::new(1)),
    )
    .unwrap();
    let before = counted.calls();
    repo.refresh().unwrap();
    // Two listings of packs and of damage; and for each pack its size, header, tail, and its table
    // where that is long.
    let calls = counted.calls() - before;
    assert!(calls <= 4 + 4 * stats.packs, "{calls} calls for {} packs", stats.packs);
    let rebuilt = repo.stats().unwrap();
    assert_eq!(rebuilt, stats);
}

#[test]
fn a_cache_directory_that_cannot_be_made_does_not_stop_reading() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::None);
    let disk = image(1, 100 * CHUNK);
    let point = back_up(&repo, "web01", &disk).unwrap();
    let (location, _) = real(dir.path());
    // Not even root can make a directory there.
    let options = OpenOptions::new("/proc/self/backstay-cache");
    match Repository::open(&location, &key(), &options).and_then(|r| read(&r, &point.disks[0])) {
        Ok(bytes) => assert!(bytes == disk),
        Err(e) => panic!("{e}: {:?}", std::error::Error::source(&e).map(ToString::to_string)),
    }
}

#[test]
fn two_open_repositories_learn_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let a = init_real(dir.path(), Encryption::Aes256Gcm);
    let (location, options) = real(dir.path());
    let b = Repository::open(&location, &key(), &options).unwrap();
    let disk = image(1, 200 * CHUNK);
    assert!(b.points().unwrap().points.is_empty());
    let point = back_up(&a, "web01", &disk).unwrap();
    assert!(read(&b, &point.disks[0]).unwrap() == disk, "b finds packs that a wrote meanwhile");
    let second = back_up(&b, "db01", &disk).unwrap();
    assert_eq!(second.stats.new_chunks, 0, "b recognises what a stored");
}

/// A copy of a repository has the same id; what one place stored must not count as stored in the
/// other.
#[test]
fn a_copied_repository_has_an_index_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let original = init_real(dir.path(), Encryption::Aes256Gcm);
    back_up(&original, "web01", &image(1, 50 * CHUNK)).unwrap();
    let (location, options) = real(dir.path());
    let copied = Location::from_path(&dir.path().join("copy"));
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([location.directory().unwrap(), copied.directory().unwrap()])
        .status()
        .unwrap();
    assert!(done.success());
    let copy = Repository::open(&copied, &key(), &options).unwrap();
    let disk = image(2, 200 * CHUNK);
    back_up(&original, "web01", &disk).unwrap();
    let point = back_up(&copy, "web01", &disk).unwrap();
    assert!(point.stats.new_chunks > 0, "the copy has none of the original's later chunks");
    let cache = dir.path().join("cache").join(copy.config().id.to_string());
    let indexes = std::fs::read_dir(cache).unwrap().flatten();
    let indexes = indexes.filter(|e| e.file_name().to_string_lossy().starts_with("index-"));
    assert_eq!(indexes.count(), 2, "one for each place");
    drop(original);
    std::fs::remove_dir_all(location.directory().unwrap()).unwrap();
    assert!(read(&copy, &point.disks[0]).unwrap() == disk);
}

/// The index at sizes that no test can store, under a memory limit of the kernel; and a point read
/// at once while it is built from objects behind a storage that takes 20 ms a call.
#[test]
fn memory_is_bounded_and_points_read_at_once_at_any_size() {
    let chunks =
        if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 100_000_000 } else { 3_000_000 };
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_index_limit"))
        .args(["--chunks", &chunks.to_string(), "--limit-mib", "512", "--delay-ms", "20"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for line in text.lines().filter(|l| l.contains("first_read_s")) {
        let value = |name: &str| -> f64 {
            let rest = line.split_once(&format!("\"{name}\":")).unwrap().1;
            rest.split([',', '}']).next().unwrap().parse().unwrap()
        };
        // Promised: 5 s to the first read. The rate is told and not judged here, where others work
        // on the same processors.
        assert!(value("first_read_s") < 5.0, "{line}");
    }
}
