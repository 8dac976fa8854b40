//! Verifying in parts, quarantine, and what the collector and the next backup make of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Cause, CheckOptions, CollectOptions, CollectReport, DamageKind, Encryption, Entropy, ErrorKind,
    Folder, MemoryStorage, NoProgress, ObjectKey, PackId, Progress, RecoveryPoint, Repository,
    Storage, VerifyLevel, VerifyOptions, VerifyReport,
};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::support::{CHUNK, back_up, init, init_real, key, open, open_at, read, real};

/// Randomness by seed, and a clock that goes where the test wants.
#[derive(Debug)]
struct Clock {
    random: SeededEntropy,
    now: Mutex<Timestamp>,
}

impl Entropy for Clock {
    fn fill(&self, buf: &mut [u8]) {
        self.random.fill(buf);
    }

    fn now(&self) -> Timestamp {
        *self.now.lock()
    }
}

struct World {
    storage: Arc<MemoryStorage>,
    entropy: Arc<SeededEntropy>,
}

impl World {
    fn new() -> Self {
        let world = Self { storage: Arc::default(), entropy: Arc::new(SeededEntropy::new(1)) };
        init(&*world.storage, &world.entropy).unwrap();
        world
    }

    fn node(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    fn packs(&self) -> Vec<ObjectKey> {
        self.storage.list(Folder::Packs).unwrap()
    }

    /// The pack with most bytes: that of data.
    fn data_pack(&self) -> ObjectKey {
        self.packs().into_iter().max_by_key(|k| self.storage.size(*k).unwrap()).unwrap()
    }

    /// Flips a bit in the stored bytes of the pack's first chunk.
    fn spoil(&self, pack: ObjectKey) {
        self.storage.tamper(pack, |bytes| bytes[64 + 100] ^= 1);
    }

    fn count(&self, folder: Folder) -> usize {
        self.storage.list(folder).unwrap().len()
    }
}

fn noise(seed: u64, chunks: usize) -> Vec<u8> {
    let mut out = vec![0u8; chunks * CHUNK];
    SeededEntropy::new(seed).fill(&mut out);
    out
}

fn verify(repo: &Repository) -> VerifyReport {
    repo.verify(&VerifyOptions::default(), &NoProgress).unwrap()
}

fn collect(repo: &Repository) -> CollectReport {
    repo.collect(&CollectOptions::default(), &NoProgress).unwrap()
}

fn cause() -> Cause {
    Cause { by: "a test".into(), reason: "to see what happens".into() }
}

fn assert_clean(repo: &Repository) {
    for read_data in [false, true] {
        let report = repo.check(&CheckOptions { read_data }, &NoProgress).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
    let report = verify(repo);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

fn assert_whole(repo: &Repository, point: &RecoveryPoint, image: &[u8]) {
    assert!(read(repo, &point.disks[0]).unwrap() == image, "{} reads otherwise", point.id);
}

/// The lost ranges, as (point, first chunk, chunks).
fn lost(report: &VerifyReport) -> Vec<(backstay_store::PointId, usize, usize)> {
    let range = |kind: &DamageKind| match kind {
        DamageKind::Disk { point, offset_bytes, len_bytes, .. } => {
            Some((*point, *offset_bytes as usize / CHUNK, (*len_bytes as usize).div_ceil(CHUNK)))
        }
        _ => None,
    };
    report.damage.iter().filter_map(|d| range(&d.kind)).collect()
}

#[test]
pub(crate) fn what_is_bad_counts_as_absent_on_every_node_and_the_next_backup_heals_it() {
    let world = World::new();
    let (repo, other) = (world.node(), world.node());
    let a = noise(1, 40);
    let first = back_up(&repo, "web01", &a).unwrap();
    let twin = back_up(&repo, "web02", &a).unwrap();
    other.refresh().unwrap();
    world.spoil(world.data_pack());
    let report = verify(&world.node());
    assert_eq!((report.quarantined_packs, report.quarantined_chunks), (1, 1));
    let mut expected = [(first.id, 0, 1), (twin.id, 0, 1)];
    expected.sort_by_key(|(id, ..)| (*id != first.id, *id));
    assert_eq!(lost(&report), expected, "{report:?}");
    let e = read(&world.node(), &first.disks[0]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    // The same again: it is known, and named where something is lost; nothing is written twice.
    let again = verify(&world.node());
    assert_eq!((again.quarantined_packs, world.count(Folder::Quarantine)), (0, 1));
    assert_eq!(lost(&again), expected);
    assert!(again.damage.iter().all(|d| matches!(d.kind, DamageKind::Disk { .. })), "{again:?}");
    // A node that opened before the damage was found backs up the same data.
    let healed = back_up(&other, "web01", &a).unwrap();
    assert_eq!(healed.stats.new_chunks, 1, "only what is bad is stored again");
    for repo in [&repo, &other, &world.node()] {
        repo.refresh().unwrap();
        for point in [&first, &twin, &healed] {
            assert_whole(repo, point, &a);
        }
        assert_clean(repo);
    }
}

#[test]
fn the_same_with_an_index_on_disk_that_processes_share() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let a = noise(1, 40);
    let first = back_up(&repo, "web01", &a).unwrap();
    let (location, options) = real(dir.path());
    let other = Repository::open(&location, &key(), &options).unwrap();
    other.refresh().unwrap();
    let mut files = walk(&dir.path().join("repo/packs"));
    files.sort_by_key(|f| std::cmp::Reverse(f.metadata().unwrap().len()));
    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes[64 + 100] ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    let report = verify(&Repository::open(&location, &key(), &options).unwrap());
    assert_eq!(lost(&report), [(first.id, 0, 1)]);
    let healed = back_up(&other, "web01", &a).unwrap();
    assert_eq!(healed.stats.new_chunks, 1);
    for repo in [&repo, &other, &Repository::open(&location, &key(), &options).unwrap()] {
        repo.refresh().unwrap();
        assert_whole(repo, &first, &a);
        assert_clean(repo);
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            out.extend(walk(&entry.path()));
        } else {
            out.push(entry.path());
        }
    }
    out
}

/// A pack that holds the only copy of a chunk, bad as it is, is never deleted; once the chunk is
/// stored again, it goes, and the record of its damage with it.
#[test]
pub(crate) fn a_pack_stays_while_a_repair_may_need_it_and_goes_afterwards() {
    type Spoil = fn(&World, ObjectKey);
    // Of a bad table an index object knows the content: nothing is lost, but it must be stored anew.
    let ways: [(&str, bool, Spoil); 3] = [
        ("a bad chunk", true, |w, p| w.spoil(p)),
        ("a bad table", false, |w, p| w.storage.tamper(p, |b| b.truncate(b.len() - 1))),
        ("a bad table that nobody knows", true, |w, p| {
            w.storage.tamper(p, |b| b.truncate(b.len() - 1));
            for key in w.storage.list(Folder::Index).unwrap() {
                w.storage.delete(key).unwrap();
            }
        }),
    ];
    for (name, is_lost, spoil) in ways {
        let world = World::new();
        let repo = world.node();
        let all = noise(1, 40);
        let first = back_up(&repo, "web01", &all).unwrap();
        let pack = world.data_pack();
        let small = back_up(&repo, "db01", &all[..CHUNK]).unwrap();
        spoil(&world, pack);
        let report = verify(&world.node());
        assert_eq!(lost(&report).contains(&(small.id, 0, 1)), is_lost, "{name}: {report:?}");
        assert_eq!(report.quarantined_packs, 1, "{name}: {report:?}");
        world.node().remove_points(&[first.id], &cause()).unwrap();
        let node = world.node();
        let report = collect(&node);
        assert!(world.packs().contains(&pack), "{name}: {report:?}");
        assert_eq!(report.missing_chunks, 1, "{name}");
        // A second time, and on a node that knows the pack from before.
        collect(&world.node());
        assert!(world.packs().contains(&pack), "{name}");
        let healed = back_up(&world.node(), "db01", &all[..CHUNK]).unwrap();
        assert!(healed.stats.new_chunks > 0, "{name}");
        assert!(collect(&node).freed.packs > 0, "{name}");
        assert!(!world.packs().contains(&pack), "{name}: nothing needs it any more");
        collect(&world.node());
        assert_eq!(world.count(Folder::Quarantine), 0, "{name}");
        for point in [&small, &healed] {
            assert_whole(&world.node(), point, &all[..CHUNK]);
        }
        assert_clean(&world.node());
    }
}

#[test]
fn a_copy_that_was_found_bad_by_mistake_is_read_when_no_other_is_left() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 40);
    let point = back_up(&repo, "web01", &a).unwrap();
    // As if the machine that verified had bad memory.
    let pack = world.data_pack();
    world.spoil(pack);
    verify(&world.node());
    world.spoil(pack);
    for repo in [&repo, &world.node()] {
        assert_whole(repo, &point, &a);
        assert_clean(repo);
    }
    let again = back_up(&world.node(), "web01", &a).unwrap();
    assert_eq!(again.stats.new_chunks, 1, "it is not relied on");
}

#[test]
fn a_budget_ends_cleanly_and_the_next_run_goes_on() {
    let world = World::new();
    let repo = world.node();
    for n in 0..12 {
        back_up(&repo, &format!("web{n:02}"), &noise(n, 20)).unwrap();
    }
    let total = world.packs().len() as u64;
    let part = VerifyOptions { max_bytes: Some(200_000), threads: 1, ..VerifyOptions::default() };
    let mut seen = 0;
    let mut runs = 0;
    loop {
        let node = world.node();
        let report = node.verify(&part, &NoProgress).unwrap();
        assert!(report.damage.is_empty() && report.packs > 0);
        assert!(report.read_bytes <= 200_000 || report.packs == 1, "{report:?}");
        seen += report.packs;
        runs += 1;
        let status = report.status.clone().unwrap();
        assert_eq!(
            status.never.packs,
            total.saturating_sub(seen),
            "none is read twice before all were read"
        );
        assert_eq!(status, node.verify_status(VerifyLevel::Full).unwrap());
        assert_eq!(report.left.packs, total - report.packs);
        if status.never.packs == 0 {
            break;
        }
        assert_eq!(report.points, None, "nothing is known to be bad, and there is more to read");
    }
    assert!(runs > 3, "{runs} runs");
    // Many runs leave few records.
    for _ in 0..20 {
        world.node().verify(&part, &NoProgress).unwrap();
    }
    assert!(world.count(Folder::Verified) <= 10, "{}", world.count(Folder::Verified));
    let none = VerifyOptions { older_than: Some(SignedDuration::from_hours(1)), ..part.clone() };
    let report = world.node().verify(&none, &NoProgress).unwrap();
    assert_eq!((report.packs, report.recent.packs), (0, total));
    let zero = VerifyOptions { max_time: Some(std::time::Duration::ZERO), ..part };
    assert_eq!(world.node().verify(&zero, &NoProgress).unwrap().packs, 1, "one at least");
}

#[test]
fn ages_are_told_and_a_clock_that_ran_ahead_is_not_believed() {
    let storage = Arc::new(MemoryStorage::default());
    let start: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
    let clock = Arc::new(Clock { random: SeededEntropy::new(1), now: Mutex::new(start) });
    init(&*storage, &SeededEntropy::new(2)).unwrap();
    let repo = open_at(storage.clone(), clock.clone()).unwrap();
    back_up(&repo, "web01", &noise(1, 30)).unwrap();
    verify(&repo);
    *clock.now.lock() = start + SignedDuration::from_hours(24 * 20);
    back_up(&repo, "web02", &noise(2, 30)).unwrap();
    let status = repo.verify_status(VerifyLevel::Full).unwrap();
    assert_eq!((status.stored.packs, status.never.packs), (4, 2));
    assert_eq!((status.oldest, status.ages[2].packs), (Some(start), 2));
    let week = Some(SignedDuration::from_hours(24 * 7));
    let report = repo
        .verify(&VerifyOptions { older_than: week, ..VerifyOptions::default() }, &NoProgress)
        .unwrap();
    assert_eq!((report.packs, report.recent.packs), (4, 0));
    // Checksums say less than a full verification, which says as much as they do.
    assert_eq!(repo.verify_status(VerifyLevel::Checksums).unwrap().never.packs, 0);
    *clock.now.lock() = start;
    assert_eq!(repo.verify_status(VerifyLevel::Full).unwrap().never.packs, 4);
}

/// Stops the work, or does something else, after so many packs.
struct After<F: Fn() -> bool + Send + Sync> {
    packs: u64,
    seen: AtomicU64,
    then: F,
}

impl<F: Fn() -> bool + Send + Sync> Progress for After<F> {
    fn add(&self, what: &'static str, count: u64) {
        if what == "packs" {
            self.seen.fetch_add(count, Ordering::SeqCst);
        }
    }

    fn cancelled(&self) -> bool {
        self.seen.load(Ordering::SeqCst) >= self.packs && (self.then)()
    }
}

#[test]
fn a_stopped_run_keeps_what_it_read_and_what_it_found() {
    let world = World::new();
    let repo = world.node();
    for n in 0..6 {
        back_up(&repo, &format!("web{n:02}"), &noise(n, 20)).unwrap();
    }
    world.packs().into_iter().for_each(|p| world.spoil(p));
    let stop = After { packs: 3, seen: AtomicU64::new(0), then: || true };
    let options = VerifyOptions { threads: 1, ..VerifyOptions::default() };
    let e = world.node().verify(&options, &stop).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Aborted);
    assert_eq!(world.node().verify_status(VerifyLevel::Full).unwrap().bad.packs, 3);
    assert_eq!(world.count(Folder::Quarantine), 1);
    verify(&world.node());
    assert_eq!(world.node().verify_status(VerifyLevel::Full).unwrap().never.packs, 0);
}

#[test]
fn a_pack_that_is_collected_meanwhile_is_no_damage() {
    let world = World::new();
    let repo = world.node();
    let (a, b) = (noise(1, 30), noise(2, 30));
    let first = back_up(&repo, "web01", &a).unwrap();
    let second = back_up(&repo, "web02", &b).unwrap();
    let done = AtomicU64::new(0);
    let other = world.node();
    let beside = After {
        packs: 0,
        seen: AtomicU64::new(0),
        then: || {
            if done.fetch_add(1, Ordering::SeqCst) == 0 {
                other.remove_points(&[first.id], &cause()).unwrap();
                assert!(collect(&other).freed.packs > 0);
            }
            false
        },
    };
    let report = world
        .node()
        .verify(&VerifyOptions { threads: 1, ..VerifyOptions::default() }, &beside)
        .unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    assert_eq!((report.packs, report.gone), (2, 2));
    assert_whole(&world.node(), &second, &b);
}

#[test]
fn a_record_of_damage_that_cannot_be_read_stops_the_collector_until_all_was_read_again() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 30);
    let first = back_up(&repo, "web01", &a).unwrap();
    let second = back_up(&repo, "web02", &noise(2, 30)).unwrap();
    world.spoil(world.data_pack());
    verify(&world.node());
    let record = world.storage.list(Folder::Quarantine).unwrap()[0];
    world.storage.tamper(record, |b| b[50] ^= 1);
    let node = world.node();
    node.remove_points(&[first.id], &cause()).unwrap();
    let e = node.collect(&CollectOptions::default(), &NoProgress).unwrap_err();
    assert!(e.to_string().contains("verify --full"), "{e}");
    let report = verify(&node);
    let named = |d: &&backstay_store::Damage| d.kind == DamageKind::Object(record.path());
    assert_eq!(report.damage.iter().filter(named).count(), 1);
    assert!(!world.storage.list(Folder::Quarantine).unwrap().contains(&record));
    assert!(collect(&world.node()).freed.packs > 0);
    assert!(world.node().point(second.id).is_ok());
}

#[test]
fn every_small_object_that_cannot_be_read_is_named() {
    let world = World::new();
    let repo = world.node();
    let first = back_up(&repo, "web01", &noise(1, 30)).unwrap();
    let second = back_up(&repo, "web02", &noise(2, 30)).unwrap();
    repo.remove_points(&[first.id], &cause()).unwrap();
    collect(&repo);
    repo.pin(second.id, &cause()).unwrap();
    let third = back_up(&repo, "web03", &noise(3, 30)).unwrap();
    world.spoil(world.packs()[0]);
    verify(&repo);
    // The last, so that no collection buries it.
    repo.remove_points(&[third.id], &cause()).unwrap();
    let session = repo.begin(None).unwrap();
    let folders = [
        Folder::Slots,
        Folder::Sessions,
        Folder::Removals,
        Folder::Pins,
        Folder::Gc,
        Folder::Quarantine,
        Folder::Verified,
    ];
    let node = world.node();
    for folder in folders {
        let objects = world.storage.list(folder).unwrap();
        assert!(!objects.is_empty(), "{folder:?}");
        for object in objects {
            let len = world.storage.size(object).unwrap() as usize;
            for at in [0, 9, 20, len / 2, len - 1] {
                world.storage.tamper(object, |b| b[at] ^= 1);
                let report = node.check(&CheckOptions::default(), &NoProgress).unwrap();
                let named =
                    |d: &&backstay_store::Damage| d.kind == DamageKind::Object(object.path());
                let count = report.damage.iter().filter(named).count();
                assert_eq!(count, 1, "{object} with byte {at} flipped: {:?}", report.damage);
                world.storage.tamper(object, |b| b[at] ^= 1);
            }
        }
    }
    drop(session);
}

#[test]
fn without_a_key_a_budget_ends_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    for n in 0..4 {
        back_up(&repo, &format!("web{n:02}"), &noise(n, 20)).unwrap();
    }
    let total = repo.stats().unwrap().packs;
    let (location, _) = real(dir.path());
    let mut options = backstay_store::KeylessOptions { max_bytes: Some(1), ..Default::default() };
    let mut seen = 0;
    loop {
        let report = Repository::verify_without_key(&location, &options, &NoProgress).unwrap();
        assert!(report.damage.is_empty());
        seen += report.packs;
        options.resume_after = report.stopped_after;
        if options.resume_after.is_none() {
            break;
        }
        assert_eq!(report.packs, 1);
    }
    assert_eq!(seen, total);
    let id: PackId = "00000000000000000000000000".parse().unwrap();
    let one = VerifyOptions { packs: vec![id], ..VerifyOptions::default() };
    assert_eq!(repo.verify(&one, &NoProgress).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A storage that takes nothing more: full, or mounted read-only.
#[derive(Debug)]
struct ReadOnly(Arc<MemoryStorage>);

impl Storage for ReadOnly {
    fn put(&self, key: ObjectKey, _: &[&[u8]]) -> Result<(), backstay_store::Error> {
        Err(backstay_store::Error::new(ErrorKind::Denied, format!("{key}: read-only")))
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>, backstay_store::Error> {
        self.0.get(key, max)
    }

    fn read_at(
        &self,
        key: ObjectKey,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), backstay_store::Error> {
        self.0.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64, backstay_store::Error> {
        self.0.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>, backstay_store::Error> {
        self.0.list(folder)
    }

    fn delete(&self, key: ObjectKey) -> Result<(), backstay_store::Error> {
        Err(backstay_store::Error::new(ErrorKind::Denied, format!("{key}: read-only")))
    }
}

#[test]
fn where_nothing_can_be_written_it_still_finds_everything_and_says_so() {
    let world = World::new();
    let repo = world.node();
    let point = back_up(&repo, "web01", &noise(1, 40)).unwrap();
    world.spoil(world.data_pack());
    let node = open(Arc::new(ReadOnly(world.storage.clone())), &world.entropy).unwrap();
    let report = verify(&node);
    assert_eq!(lost(&report), [(point.id, 0, 1)]);
    assert!(report.unsaved.as_ref().is_some_and(|why| why.contains("read-only")), "{report:?}");
    assert_eq!((report.quarantined_packs, world.count(Folder::Quarantine)), (0, 0));
    let mut options = backstay_store::RepairOptions::default();
    assert!(node.repair(&mut options, &NoProgress).is_err());
    options.dry_run = true;
    assert_eq!(node.repair(&mut options, &NoProgress).unwrap().left.len(), 1);
}
