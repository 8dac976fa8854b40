//! Repositories as they were once written, kept as files: what was stored then can be read, checked,
//! collected and added to now.
//!
//! `tests/fixtures/golden` holds a folder for each set, named after the format version; a set holds
//! a folder for each repository:
//!
//! - `repo`: its objects, and files beside them that are none;
//! - `secrets`: what opens it: `key-file`, `passphrase`, `recovery-key`; empty without encryption;
//! - `seen.txt`: what its writer saw of it: points, digests of every disk, pins, sessions.
//!
//! A set is never changed, whatever comes: repositories like these are out there. When what is
//! written changes (the format version is raised; an object has a new field; another release of
//! zstd makes other bytes), the second test fails. If the first still passes, name a new set in
//! [`CURRENT`] (`v2`; within a version `v1-zstd-1.6`), extend `golden/make.rs` by what is new, and run
//! `BACKSTAY_UPDATE_GOLDEN=1 cargo nextest run -p backstay-tests golden`, which makes the set and
//! touches no other. If the first fails, today's program cannot read what its users have: mend that.

mod make;
mod seen;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use backstay_store::{
    Cause, CheckOptions, ChunkIndex, CollectOptions, CollectReport, DiskRecord, LocalStorage,
    Location, NoProgress, OpenOptions, RecoveryKey, RecoveryPoint, Repository, Secret, SessionKind,
    Unlock, WriteScratch,
};

use crate::support::{new_point, read};

/// The set that today's code writes.
const CURRENT: &str = "v1";
/// Set to write the set [`CURRENT`], which must not be there.
const UPDATE: &str = "BACKSTAY_UPDATE_GOLDEN";

/// The files of a repository's folder, by their paths in it.
type Files = BTreeMap<String, Vec<u8>>;

fn sets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden")
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

/// Everything below `dir`.
fn files_below(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

fn write_below(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A repository of a set, copied to where it may be changed. Git keeps no empty folders, so those
/// of a new repository are made first.
struct Copy {
    dir: tempfile::TempDir,
    golden: PathBuf,
}

impl Copy {
    fn of(golden: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        drop(LocalStorage::create_real(&dir.path().join("repo")).unwrap());
        write_below(&dir.path().join("repo"), &files_below(&golden.join("repo")));
        Self { dir, golden: golden.to_path_buf() }
    }

    fn location(&self) -> Location {
        Location::from_path(&self.dir.path().join("repo"))
    }

    /// Everything that opens it.
    fn keys(&self) -> Vec<Unlock> {
        let secrets = files_below(&self.golden.join("secrets"));
        let unlock = |(name, bytes): (&String, &Vec<u8>)| match name.as_str() {
            "key-file" => Some(Unlock::KeyFile(Secret::new(bytes.clone()))),
            "passphrase" => Some(Unlock::Passphrase(Secret::new(bytes.clone()))),
            "recovery-key" => {
                let text = std::str::from_utf8(bytes).unwrap();
                Some(Unlock::RecoveryKey(RecoveryKey::parse(text).unwrap()))
            }
            "none" => Some(Unlock::None),
            other => panic!("{other} is no secret that is known"),
        };
        secrets.iter().filter_map(unlock).collect()
    }

    /// Opened as a user does it, with a cache of its own that has nothing yet.
    fn open(&self, key: &Unlock, cache: &str) -> Repository {
        let options = OpenOptions::new(self.dir.path().join(cache));
        Repository::open(&self.location(), key, &options).unwrap()
    }
}

fn assert_clean(repo: &Repository, what: &str) {
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{what}: {:?}", report.damage);
    assert!(report.points > 0 && report.chunks > 0, "{what}: {report:?}");
}

/// Backs up these bytes as the disks of a point on top of `base`, or of nothing.
fn back_up(
    repo: &Repository,
    like: &RecoveryPoint,
    base: bool,
    disks: &[(DiskRecord, Vec<u8>)],
) -> RecoveryPoint {
    let session = repo.begin(base.then_some(like)).unwrap();
    let mut scratch = WriteScratch::new().unwrap();
    let mut records = Vec::new();
    for (disk, bytes) in disks {
        let writer = session.image(&disk.name, &disk.source, bytes.len() as u64);
        writer.write_chunks(ChunkIndex(0), bytes, &mut scratch).unwrap();
        records.push(writer.finish().unwrap());
    }
    session.commit(new_point(&like.machine, Some(like.id)), records).unwrap()
}

/// New points on old ones: what is there is recognised, what changed is stored, both can be read.
fn add_to(repo: &Repository, what: &str) {
    let last = repo.points().unwrap().points.pop().unwrap();
    let whole = |disk: &DiskRecord| (disk.clone(), read(repo, disk).unwrap());
    let mut disks: Vec<_> = last.disks.iter().map(whole).collect();
    for base in [false, true] {
        let same = back_up(repo, &last, base, &disks);
        assert_eq!(same.stats.new_chunks, 0, "{what}: it is all there, base {base}");
        let roots = |point: &RecoveryPoint| point.disks.iter().map(|d| d.root).collect::<Vec<_>>();
        assert_eq!(roots(&same), roots(&last), "{what}");
    }
    for (_, bytes) in &mut disks {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
    }
    let changed = back_up(repo, &last, true, &disks);
    assert!(changed.stats.new_chunks > 0, "{what}");
    for (disk, (_, bytes)) in changed.disks.iter().zip(&disks) {
        assert!(read(repo, disk).unwrap() == *bytes, "{what}: {}", disk.name);
    }
}

fn collect(repo: &Repository) -> CollectReport {
    let options = CollectOptions {
        // No clock of the machine that runs the test shall matter.
        stale_after: jiff::SignedDuration::MAX,
        by: "the test".into(),
        ..CollectOptions::default()
    };
    repo.collect(&options, &NoProgress).unwrap()
}

/// A collection goes on where the one of long ago stopped: it waits for writers, and ends without
/// them.
fn collect_all(repo: &Repository, what: &str) {
    let mut writers = repo.sessions().unwrap();
    writers.retain(|session| session.kind == SessionKind::Writer);
    let report = collect(repo);
    let waiting: Vec<_> = report.waiting_for.iter().map(|session| session.id).collect();
    assert_eq!(waiting, writers.iter().map(|s| s.id).collect::<Vec<_>>(), "{what}");
    let cause = Cause { by: "the test".into(), reason: "nobody is behind it".into() };
    for session in &writers {
        assert!(!repo.fence_session(session.id, &cause).unwrap(), "{what}: it had committed");
    }
    let removed = repo.removed_points().unwrap();
    for _ in 0..2 {
        let report = collect(repo);
        assert!(report.waiting_for.is_empty(), "{what}: {report:?}");
        assert_eq!((report.locked.packs, report.missing_chunks), (0, 0), "{what}: {report:?}");
    }
    assert!(repo.removed_points().unwrap().is_empty(), "{what}: {removed:?}");
}

#[test]
fn golden_repositories_of_every_version_are_read_checked_collected_and_added_to() {
    let mut count = 0;
    for golden in folders(&sets()).iter().flat_map(|set| folders(set)) {
        let what = golden.strip_prefix(sets()).unwrap().display().to_string();
        println!("{what}");
        let copy = Copy::of(&golden);
        let written = fs::read_to_string(golden.join("seen.txt")).unwrap();
        let keys = copy.keys();
        assert!(!keys.is_empty(), "{what}: no key");
        for (n, key) in keys.iter().enumerate() {
            let repo = copy.open(key, &format!("cache{n}"));
            let now = seen::describe(&repo);
            assert_eq!(now, written, "{what}: what is seen now, and what its writer saw");
        }
        let sums = Repository::check_without_key(&copy.location(), &NoProgress).unwrap();
        assert!(sums.damage.is_empty() && sums.packs > 1, "{what}: {sums:?}");
        let repo = copy.open(&keys[0], "cache0");
        assert_clean(&repo, &what);
        let disks = seen::disks(&repo);
        add_to(&repo, &what);
        collect_all(&repo, &what);
        assert_clean(&repo, &what);
        let after = seen::disks(&copy.open(&keys[0], "fresh"));
        for disk in &disks {
            assert!(after.contains(disk), "{what}: {disk} is gone or reads otherwise");
        }
        // What is none of the repository's was left alone.
        for (name, bytes) in make::beside() {
            let found = fs::read(copy.dir.path().join("repo").join(&name));
            assert_eq!(found.unwrap(), bytes, "{what}: {name}");
        }
        count += 1;
    }
    assert!(count >= make::all().len(), "{count} repositories");
}

/// Chance and the time come from a seed, and one thread does all, so the bytes are the same
/// everywhere; only another zstd may compress otherwise.
#[test]
fn golden_repositories_are_written_today_byte_for_byte() {
    let set = sets().join(CURRENT);
    let version = backstay_format::magic::VERSION;
    let named = CURRENT.split('-').next();
    assert_eq!(named, Some(format!("v{version}").as_str()), "the set is of another version");
    let made = make::all();
    if std::env::var_os(UPDATE).is_some() {
        assert!(!set.exists(), "{} is there and stays as it is; name a new set", set.display());
        for (name, files) in &made {
            write_below(&set.join(name), files);
        }
    }
    let names: Vec<PathBuf> = made.keys().map(|name| set.join(name)).collect();
    assert_eq!(folders(&set), names);
    for (name, files) in &made {
        let kept = files_below(&set.join(name));
        let list = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(list(files), list(&kept), "{name}: files made now, and kept");
        for (file, bytes) in files {
            assert!(kept[file] == *bytes, "{name}/{file} is written otherwise: see golden.rs");
        }
    }
}
