//! Copies between repositories: the same bytes under other keys and in other chunks, only what is
//! missing, and never half a point.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backstay_core::backup::{self, BackupPlan};
use backstay_core::copy::{self, CopyPlan, CopyReport, Outcome, Select, Verify};
use backstay_core::source::SourceSpec;
use backstay_core::{ErrorKind, restore};
use backstay_store::{
    ChunkSize, Encryption, FaultPlan, FaultStorage, IndexChoice, InitOptions, Location,
    MemoryStorage, OpenOptions, RecoveryPoint, Repository, Secret, Storage, SystemEntropy, Unlock,
};
use jiff::Timestamp;

use crate::bench::{Bench, MIB, Watch, assert_same, error_of, random};

/// Two repositories of unlike make, and images between them.
struct Pair {
    dir: tempfile::TempDir,
    from: Repository,
    to: Repository,
}

/// Chunk size, and the key of an encrypted repository.
type Make = (u32, Option<u8>);

fn unlock(key: Option<u8>) -> Unlock {
    key.map_or(Unlock::None, |byte| Unlock::KeyFile(Secret::new(vec![byte; 32])))
}

fn init(path: &Path, (chunk, key): Make) -> Repository {
    let encryption = if key.is_some() { Encryption::Aes256Gcm } else { Encryption::None };
    let chunk_size = ChunkSize::new(chunk).unwrap();
    let options = InitOptions { chunk_size, encryption, time: Timestamp::UNIX_EPOCH };
    Repository::init(&Location::from_path(path), &options, &unlock(key)).unwrap();
    open(path, key)
}

fn open(path: &Path, key: Option<u8>) -> Repository {
    let options = OpenOptions { cache_bytes: 16 * MIB, ..OpenOptions::new(cache(path)) };
    Repository::open(&Location::from_path(path), &unlock(key), &options).unwrap()
}

fn cache(path: &Path) -> PathBuf {
    path.with_extension("cache")
}

impl Pair {
    fn new(from: Make, to: Make) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let from = init(&dir.path().join("from"), from);
        let to = init(&dir.path().join("to"), to);
        Pair { dir, from, to }
    }

    fn plain() -> Pair {
        Pair::new((65_536, None), (65_536, None))
    }

    fn image(&self, name: &str, size: u64, data: &[(u64, u64)]) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        for (offset, len) in data {
            write(&path, *offset, &random(offset ^ len, *len));
        }
        path
    }

    /// A point of the source, each a minute after the one before.
    fn point(&self, machine: &str, image: &Path) -> RecoveryPoint {
        let minute = self.from.points().unwrap().points.len() as i64 + 1;
        let time = Timestamp::from_second(60 * minute).unwrap();
        let note = Some(format!("note {minute}"));
        let plan =
            BackupPlan { note, ..BackupPlan::new(machine, vec![SourceSpec::new(image)], time) };
        backup::run(&self.from, &plan, &Watch::default()).unwrap().point
    }

    fn copy(&self, select: Select, verify: Verify) -> CopyReport {
        copy_between(&self.from, &self.to, select, verify)
    }

    fn copy_all(&self) -> CopyReport {
        self.copy(Select::All, Verify::Written)
    }

    /// Every point of the source must be in the destination, once and equal.
    #[track_caller]
    fn check_all(&self) {
        let (theirs, ours) = (self.from.points().unwrap().points, self.to.points().unwrap().points);
        assert_eq!(theirs.len(), ours.len());
        for (theirs, ours) in theirs.iter().zip(&ours) {
            check_copy((&self.from, theirs), (&self.to, ours));
        }
    }
}

fn copy_between(from: &Repository, to: &Repository, select: Select, verify: Verify) -> CopyReport {
    copy::run(from, to, &CopyPlan { verify, ..CopyPlan::new(select) }, &Watch::default()).unwrap()
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn bytes(repo: &Repository, point: &RecoveryPoint, disk: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let disk = &point.disks[disk];
    restore::to_writer(repo, disk, &mut out, None, &Watch::default()).unwrap();
    out
}

#[track_caller]
fn check_copy(
    (from, source): (&Repository, &RecoveryPoint),
    (to, copy): (&Repository, &RecoveryPoint),
) {
    assert_eq!(copy.machine, source.machine);
    assert_eq!((copy.time, &copy.note), (source.time, &source.note));
    assert_eq!((copy.consistency, &copy.origin), (source.consistency, &source.origin));
    let names = |p: &RecoveryPoint| -> Vec<_> {
        p.disks.iter().map(|d| (d.name.clone(), d.source.clone(), d.size_bytes)).collect()
    };
    assert_eq!(names(copy), names(source));
    for disk in 0..source.disks.len() {
        assert_same("copy", &bytes(to, copy, disk), &bytes(from, source, disk));
    }
}

/// The outcomes in a word each.
fn words(report: &CopyReport) -> Vec<&'static str> {
    let word = |o: &Outcome| match o {
        Outcome::Present(_) => "present",
        Outcome::Planned { .. } => "planned",
        Outcome::Copied { .. } => "copied",
        Outcome::Failed(_) => "failed",
    };
    report.points.iter().map(|p| word(&p.outcome)).collect()
}

/// What the copied point at this place cost: bytes read, kept, verified.
#[track_caller]
fn cost(report: &CopyReport, at: usize) -> (u64, u64, u64) {
    match &report.points[at].outcome {
        Outcome::Copied { point, kept_bytes, verified_bytes } => {
            (point.stats.read_bytes, *kept_bytes, *verified_bytes)
        }
        other => panic!("{other:?}"),
    }
}

fn largest_pack(repo: &Path) -> PathBuf {
    let folders = fs::read_dir(repo.join("packs")).unwrap().map(|f| f.unwrap().path());
    let packs = folders.flat_map(|f| fs::read_dir(f).unwrap()).map(|p| p.unwrap().path());
    packs.max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap()
}

/// Flips bytes in the middle of a file.
fn damage(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut bytes = [0u8; 16];
    file.read_exact_at(&mut bytes, middle).unwrap();
    file.write_all_at(&bytes.map(|b| !b), middle).unwrap();
}

#[test]
fn all_points_arrive_once_and_a_second_run_has_nothing_to_do() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", 24 * MIB + 5, &[(0, 8 * MIB), (20 * MIB, MIB)]);
    pair.point("web", &image);
    write(&image, 3 * MIB, b"a change");
    let other = pair.image("b.raw", 2 * MIB, &[(0, 2 * MIB)]);
    pair.point("db", &other);
    let last = pair.point("web", &image);

    let report = pair.copy_all();
    assert_eq!(words(&report), ["copied"; 3]);
    assert!(report.is_complete());
    assert_eq!(cost(&report, 0), (9 * MIB, 0, 9 * MIB));
    // The third is the second of its machine: one chunk is read, written and read back.
    assert_eq!(cost(&report, 2), (65_536, 24 * MIB + 5 - 65_536, 65_536));
    pair.check_all();
    let copies = pair.to.points().unwrap().points;
    assert_eq!(copies[2].parent, Some(copies[0].id), "the copy's parent is a copy");
    let from = copies[2].copied_from.unwrap();
    assert_eq!((from.repository, from.point), (pair.from.config().id, last.id));

    let before = pair.to.stats().unwrap();
    let report = pair.copy_all();
    assert_eq!(words(&report), ["present"; 3]);
    assert!(report.is_complete());
    assert_eq!(pair.to.stats().unwrap(), before, "nothing was written");
}

#[test]
fn keys_and_chunk_sizes_may_differ() {
    for (from, to) in [
        ((4096, None), (262_144, Some(1))),
        ((262_144, Some(1)), (4096, Some(2))),
        ((65_536, Some(3)), (65_536, Some(4))),
        ((65_536, Some(3)), (4096, None)),
        ((4096, None), (4096, None)),
        ((262_144, None), (65_536, None)),
        ((65_536, Some(5)), (4 << 20, None)),
    ] {
        let pair = Pair::new(from, to);
        let odd = 9 * MIB + 1234;
        let image = pair.image("a.raw", odd, &[(5000, MIB), (4 * MIB - 7, 2 * MIB), (odd - 9, 9)]);
        pair.point("m", &image);
        // Small changes, a hole that fills, data that empties, and every way to resize.
        write(&image, 3 * MIB, &random(7, 100));
        write(&image, 5 * MIB, &[0; 300_000]);
        pair.point("m", &image);
        for size in [odd + 1, odd + 700_000, 6 * MIB, 6 * MIB - 1, 20_000, 12 * MIB] {
            File::options().write(true).open(&image).unwrap().set_len(size).unwrap();
            write(&image, size - 1, b"x");
            pair.point("m", &image);
        }
        let report = pair.copy(Select::All, Verify::Full);
        assert_eq!(words(&report), ["copied"; 8], "{from:?} to {to:?}");
        pair.check_all();
        // Both changes lie in one large chunk each, and the third of them is unchanged.
        let kept = if to.0 > 262_144 { MIB } else { 7 * MIB };
        assert!(cost(&report, 1).1 > kept, "{from:?} to {to:?}: {:?}", cost(&report, 1));
        // Read back as a whole.
        let (read, _, verified) = cost(&report, 1);
        assert!(verified > read && verified >= MIB, "{read} {verified}");
    }
}

#[test]
fn one_point_one_machine_and_older_points_later() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", 16 * MIB, &[(0, 16 * MIB)]);
    let mut points = Vec::new();
    for i in 0..4 {
        write(&image, i * MIB, b"changed");
        points.push(pair.point("m", &image));
    }
    pair.point("other", &image);
    let report = pair.copy(Select::Points(vec![points[2].id]), Verify::Written);
    assert_eq!(words(&report), ["copied"]);
    // An older one differs from the newer one that is there by one chunk; the newest too.
    let report = pair.copy(Select::Machine("m".into()), Verify::Written);
    assert_eq!(words(&report), ["copied", "copied", "present", "copied"]);
    assert_eq!(cost(&report, 0).0, 2 * 65_536);
    assert_eq!((cost(&report, 1).0, cost(&report, 3).0), (65_536, 65_536));
    assert_eq!(words(&pair.copy_all()), ["present", "present", "present", "present", "copied"]);
    pair.check_all();
}

#[test]
fn what_is_not_there_is_told() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", MIB, &[(0, MIB)]);
    pair.point("m", &image);
    let run =
        |from, to, select| error_of(copy::run(from, to, &CopyPlan::new(select), &Watch::default()));
    let strange = backstay_store::PointId::from_bytes([7; 16]);
    let missing = run(&pair.from, &pair.to, Select::Points(vec![strange]));
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let missing = run(&pair.from, &pair.to, Select::Machine("x".into()));
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let same = open(&pair.dir.path().join("from/../from"), None);
    assert_eq!(run(&pair.from, &same, Select::All).kind(), ErrorKind::Invalid);
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", 16 * MIB, &[(0, 4 * MIB)]);
    pair.point("m", &image);
    write(&image, MIB, b"changed");
    pair.point("m", &image);
    let before = pair.to.stats().unwrap();
    let plan = CopyPlan { dry_run: true, ..CopyPlan::new(Select::All) };
    let report = copy::run(&pair.from, &pair.to, &plan, &Watch::default()).unwrap();
    let planned: Vec<u64> = report
        .points
        .iter()
        .map(|p| match p.outcome {
            Outcome::Planned { read_bytes } => read_bytes,
            ref other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(planned, [4 * MIB, 65_536]);
    assert_eq!(pair.to.stats().unwrap(), before);
    // It told the truth.
    let report = pair.copy_all();
    assert_eq!(vec![cost(&report, 0).0, cost(&report, 1).0], planned);
}

#[test]
fn copies_of_copies_are_known_for_what_they_are() {
    let pair = Pair::new((65_536, None), (65_536, Some(1)));
    let image = pair.image("a.raw", 4 * MIB, &[(0, 4 * MIB)]);
    let first = pair.point("m", &image);
    pair.copy_all();
    let third_path = pair.dir.path().join("third");
    let third = init(&third_path, (65_536, Some(2)));
    let on = copy_between(&pair.to, &third, Select::All, Verify::Written);
    assert_eq!(words(&on), ["copied"]);
    let from = third.points().unwrap().points[0].copied_from.unwrap();
    assert_eq!((from.repository, from.point), (pair.from.config().id, first.id));
    // From the first, by a shorter way, and back again: nothing to do.
    for (from, to) in [(&pair.from, &third), (&third, &pair.to), (&third, &pair.from)] {
        assert_eq!(words(&copy_between(from, to, Select::All, Verify::Written)), ["present"]);
    }
    // Where the first was lost, it comes back.
    fs::remove_file(pair.dir.path().join(format!("from/points/{}", first.id))).unwrap();
    let from = open(&pair.dir.path().join("from"), None);
    assert_eq!(words(&copy_between(&third, &from, Select::All, Verify::Written)), ["copied"]);
    check_copy(
        (&third, &third.points().unwrap().points[0]),
        (&from, &from.points().unwrap().points[0]),
    );
    assert_eq!(words(&copy_between(&from, &pair.to, Select::All, Verify::Written)), ["present"]);
}

#[test]
fn a_damaged_point_is_named_and_the_others_are_copied() {
    let mut pair = Pair::plain();
    let image = pair.image("a.raw", 16 * MIB, &[(0, 16 * MIB)]);
    pair.point("m", &image);
    let known = pack_names(&pair.dir.path().join("from"));
    write(&image, 5 * MIB, &random(50, 65_536));
    pair.point("m", &image);
    let mut new = pack_names(&pair.dir.path().join("from"));
    new.retain(|p| !known.contains(p));
    let data = new.into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    write(&image, 5 * MIB, &random(51, 65_536));
    pair.point("m", &image);
    damage(&data);
    pair.from = open(&pair.dir.path().join("from"), None);

    for run in 0..2 {
        let report = pair.copy_all();
        let good = if run == 0 { "copied" } else { "present" };
        assert_eq!(words(&report), [good, "failed", good]);
        assert!(!report.is_complete() && report.stopped.is_none());
        let Outcome::Failed(error) = &report.points[1].outcome else { panic!("{report:?}") };
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let place = format!("byte {}", 5 * MIB);
        assert!(
            error.to_string().contains("disk0") && error.to_string().contains(&place),
            "{error}"
        );
    }
    let (theirs, ours) = (pair.from.points().unwrap().points, pair.to.points().unwrap().points);
    assert_eq!(ours.len(), 2);
    check_copy((&pair.from, &theirs[0]), (&pair.to, &ours[0]));
    check_copy((&pair.from, &theirs[2]), (&pair.to, &ours[1]));

    // A record that cannot be read is told too, and stops nobody.
    damage(&pair.dir.path().join(format!("from/points/{}", theirs[0].id)));
    let from = open(&pair.dir.path().join("from"), None);
    let report = copy_between(&from, &pair.to, Select::All, Verify::Written);
    assert_eq!((words(&report), report.unreadable.len()), (vec!["failed", "present"], 1));
    assert!(!report.is_complete());
    let one = copy_between(&from, &pair.to, Select::Points(vec![theirs[2].id]), Verify::Written);
    assert!(one.is_complete(), "nobody asked for the other");
}

fn pack_names(repo: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(repo.join("packs")).unwrap().map(|f| f.unwrap().path());
    folders.flat_map(|f| fs::read_dir(f).unwrap()).map(|p| p.unwrap().path()).collect()
}

#[test]
fn what_cannot_be_read_back_never_becomes_a_point() {
    let mut pair = Pair::plain();
    let image = pair.image("a.raw", 4 * MIB, &[(0, 4 * MIB)]);
    pair.point("m", &image);
    // The destination has the same chunks already, and one of them went bad unnoticed.
    let plan = BackupPlan::new("own", vec![SourceSpec::new(&image)], Timestamp::UNIX_EPOCH);
    backup::run(&pair.to, &plan, &Watch::default()).unwrap();
    damage(&largest_pack(&pair.dir.path().join("to")));
    pair.to = open(&pair.dir.path().join("to"), None);
    for verify in [Verify::Written, Verify::Full] {
        let report = pair.copy(Select::All, verify);
        assert_eq!(words(&report), ["failed"]);
        let Outcome::Failed(error) = &report.points[0].outcome else { panic!("{report:?}") };
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("the copy of disk disk0"), "{error}");
        assert_eq!(pair.to.points().unwrap().points.len(), 1);
    }
    assert_eq!(words(&pair.copy(Select::All, Verify::None)), ["copied"], "as was asked");
}

#[test]
fn a_destination_that_lost_a_pack_gets_it_again() {
    let mut pair = Pair::plain();
    let image = pair.image("a.raw", 4 * MIB, &[(0, 4 * MIB)]);
    pair.point("m", &image);
    pair.copy_all();
    fs::remove_file(largest_pack(&pair.dir.path().join("to"))).unwrap();
    pair.to = open(&pair.dir.path().join("to"), None);
    write(&image, MIB, b"changed");
    pair.point("m", &image);
    let report = pair.copy_all();
    assert_eq!(words(&report), ["present", "copied"]);
    assert_eq!(cost(&report, 1), (4 * MIB, 0, 4 * MIB));
    let points = pair.to.points().unwrap().points;
    check_copy((&pair.from, &report.points[1].source), (&pair.to, &points[1]));
}

#[test]
fn a_cancelled_copy_goes_on_where_it_was() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", 32 * MIB, &[(0, 32 * MIB)]);
    pair.point("m", &image);
    let watch = Arc::new(Watch::default());
    let cancel = Arc::clone(&watch);
    *watch.at_first_bytes.lock().unwrap() =
        Some(Box::new(move || cancel.cancel.store(true, Ordering::Relaxed)));
    let plan = CopyPlan::new(Select::All);
    let report = copy::run(&pair.from, &pair.to, &plan, &*watch).unwrap();
    assert_eq!(report.stopped.as_ref().map(|e| e.kind()), Some(ErrorKind::Cancelled));
    assert!(report.points.is_empty() && !report.is_complete());
    assert!(pair.to.points().unwrap().points.is_empty());
    assert_eq!(words(&pair.copy_all()), ["copied"]);
    pair.check_all();
}

#[test]
fn two_copies_at_once_do_no_harm() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", 8 * MIB, &[(0, 8 * MIB)]);
    for i in 0..3 {
        write(&image, i * MIB, b"changed");
        pair.point("m", &image);
    }
    let to = pair.dir.path().join("to");
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let report =
                    copy_between(&pair.from, &open(&to, None), Select::All, Verify::Written);
                assert!(report.is_complete(), "{report:?}");
            });
        }
    });
    assert_eq!(words(&pair.copy_all()), ["present"; 3]);
    let theirs = pair.from.points().unwrap().points;
    for copy in pair.to.points().unwrap().points {
        let from = copy.copied_from.unwrap().point;
        let source = theirs.iter().find(|p| p.id == from).unwrap();
        check_copy((&pair.from, source), (&pair.to, &copy));
    }
}

/// A destination in memory whose calls fail as planned.
fn faulty(plan: FaultPlan) -> (Arc<FaultStorage>, Repository) {
    let inner = Arc::new(MemoryStorage::default());
    let options = InitOptions {
        chunk_size: ChunkSize::DEFAULT,
        encryption: Encryption::None,
        time: Timestamp::UNIX_EPOCH,
    };
    Repository::init_on(&*inner, &options, &Unlock::None, &SystemEntropy).unwrap();
    let storage = Arc::new(FaultStorage::new(inner, FaultPlan::default()));
    let repo = open_on(storage.clone());
    storage.set_plan(plan);
    (storage, repo)
}

fn open_on(storage: Arc<dyn Storage>) -> Repository {
    Repository::open_on(
        storage,
        Location::parse("/memory").unwrap(),
        &Unlock::None,
        &OpenOptions { cache_bytes: MIB, ..OpenOptions::new("/nonexistent") },
        IndexChoice::Memory,
        Arc::new(SystemEntropy),
    )
    .unwrap()
}

#[test]
fn a_fault_of_the_destination_at_any_call_loses_nothing() {
    let pair = Pair::plain();
    let image = pair.image("a.raw", MIB, &[(0, 300_000)]);
    pair.point("m", &image);
    write(&image, 70_000, b"changed");
    pair.point("m", &image);
    let run =
        |to: &Repository| copy::run(&pair.from, to, &CopyPlan::new(Select::All), &Watch::default());
    let (storage, to) = faulty(FaultPlan::default());
    assert!(run(&to).unwrap().is_complete());
    let calls = storage.calls();
    assert!(calls > 10, "a copy makes {calls} calls");
    for at in 0..calls {
        for sticky in [false, true] {
            let kind = Some(backstay_store::ErrorKind::NoSpace);
            let plan = FaultPlan { fail_at: Some(at), sticky, kind, ..FaultPlan::default() };
            let (storage, to) = faulty(plan);
            let what = format!("fault at call {at}, sticky {sticky}");
            // What cannot be read back is told as that, whatever the storage says.
            let kinds = [ErrorKind::NoSpace, ErrorKind::Io];
            match run(&to) {
                Err(error) => assert!(kinds.contains(&error.kind()), "{what}: {error}"),
                Ok(report) => {
                    let stopped = report.stopped.as_ref().map(|e| e.kind());
                    assert!(stopped.is_none_or(|k| kinds.contains(&k)), "{what}: {report:?}");
                    assert!(stopped.is_some() || report.is_complete(), "{what}: {report:?}");
                    // The last call takes the session away, after the last point is safe.
                    let last = at + 1 == calls;
                    assert!(!sticky || last || stopped.is_some(), "{what}: {report:?}");
                }
            }
            storage.set_plan(FaultPlan::default());
            let to = open_on(storage);
            assert!(run(&to).unwrap().is_complete(), "{what}");
            let theirs = pair.from.points().unwrap().points;
            let ours = to.points().unwrap().points;
            assert_eq!(ours.len(), 2, "{what}");
            for (theirs, ours) in theirs.iter().zip(&ours) {
                check_copy((&pair.from, theirs), (&to, ours));
            }
        }
    }
}

#[test]
fn a_huge_sparse_disk_is_copied_in_no_time() {
    const TIB: u64 = 1 << 40;
    let pair = Pair::plain();
    let image = pair.image("a.raw", 2 * TIB, &[(0, MIB), (TIB, MIB)]);
    pair.point("m", &image);
    write(&image, TIB + 5, b"changed");
    pair.point("m", &image);
    let started = std::time::Instant::now();
    let report = pair.copy(Select::All, Verify::Full);
    assert_eq!((cost(&report, 0).0, cost(&report, 1).0), (2 * MIB, 65_536));
    assert_eq!(cost(&report, 1).2, 2 * MIB);
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn points_of_several_disks_keep_their_order_and_names() {
    let bench = Bench::new();
    let a = bench.image("a.img", 3 * MIB, &[(0, MIB)]);
    let b = bench.image("b.img", 5 * MIB + 1, &[(MIB, MIB), (5 * MIB, 1)]);
    let named = SourceSpec { name: Some("data".into()), ..SourceSpec::new(&b) };
    let source = bench.backup_specs(vec![SourceSpec::new(&a), named]).unwrap().point;
    let to = init(&bench.at("other"), (4096, Some(1)));
    let report = copy_between(&bench.repo, &to, Select::All, Verify::Written);
    assert_eq!(words(&report), ["copied"]);
    check_copy((&bench.repo, &source), (&to, &to.points().unwrap().points[0]));
}
