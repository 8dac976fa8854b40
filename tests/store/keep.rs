//! Keeping runs of the base: the same tree as a plain full write, at the cost of the change alone,
//! and never on the word of a base that is not known to be whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    CheckOptions, ChunkIndex, ErrorKind, FaultPlan, FaultStorage, Folder, ImageWriter, IndexChoice,
    Location, MemoryStorage, NoProgress, ObjectKey, OpenOptions, Progress, RecoveryPoint,
    Repository, Storage, WriteScratch,
};

use crate::support::{CHUNK, init, key, new_point, open, seed};

/// A sparse disk: what stands at each chunk, as a number its bytes are made from.
#[derive(Clone, Debug)]
struct Disk {
    size: u64,
    chunks: BTreeMap<u64, u64>,
}

impl Disk {
    fn count(&self) -> u64 {
        self.size.div_ceil(CHUNK as u64)
    }

    fn bytes(&self, chunk: u64) -> Vec<u8> {
        let len = (self.size - chunk * CHUNK as u64).min(CHUNK as u64) as usize;
        let Some(stamp) = self.chunks.get(&chunk) else { return vec![0; len] };
        (stamp | 1 << 63).to_le_bytes().into_iter().cycle().take(len).collect()
    }

    /// Writes a run that is all there or all hole.
    fn write(&self, writer: &ImageWriter, run: Range<u64>, scratch: &mut WriteScratch) {
        if self.chunks.range(run.clone()).next().is_none() {
            return writer.write_holes(ChunkIndex(run.start), run.end - run.start).unwrap();
        }
        for chunk in run {
            writer.write_chunks(ChunkIndex(chunk), &self.bytes(chunk), scratch).unwrap();
        }
    }

    /// The disk cut into runs: each there, or each a hole; none spans one of `cuts`.
    fn runs(&self, cuts: &BTreeSet<u64>) -> Vec<Range<u64>> {
        let mut borders = cuts.clone();
        borders.extend(self.chunks.keys().flat_map(|c| [*c, c + 1]));
        borders.extend([0, self.count()]);
        let borders: Vec<u64> = borders.into_iter().filter(|b| *b <= self.count()).collect();
        borders.windows(2).map(|w| w[0]..w[1]).collect()
    }
}

/// Writes all of it, with no base.
fn write_plainly(repo: &Repository, disk: &Disk) -> RecoveryPoint {
    let session = repo.begin(None).unwrap();
    let writer = session.image("disk0", "x", disk.size);
    assert_eq!(writer.keepable(), 0);
    let mut scratch = WriteScratch::new().unwrap();
    for run in disk.runs(&BTreeSet::new()) {
        disk.write(&writer, run, &mut scratch);
    }
    let record = writer.finish().unwrap();
    session.commit(new_point("m", None), vec![record]).unwrap()
}

fn some_disk(random: &SeededEntropy) -> Disk {
    let most = [3, 70, 5_000, 300_000][random.below(4) as usize];
    let size = (1 + random.below(most)) * CHUNK as u64;
    let mut disk = Disk { size, chunks: BTreeMap::new() };
    scatter(&mut disk, random);
    cut_end(&mut disk, random);
    disk
}

fn cut_end(disk: &mut Disk, random: &SeededEntropy) {
    if random.below(2) == 0 {
        disk.size -= random.below(CHUNK as u64);
    }
}

/// Fills and empties runs; returns the chunks that were touched.
fn scatter(disk: &mut Disk, random: &SeededEntropy) -> BTreeSet<u64> {
    let mut touched = BTreeSet::new();
    for _ in 0..random.below(12) {
        let first = random.below(disk.count());
        let run = first..(first + 1 + random.below(150)).min(disk.count());
        let fill = random.below(3) != 0;
        for chunk in run {
            disk.chunks.remove(&chunk);
            if fill {
                disk.chunks.insert(chunk, random.below(50));
            }
            touched.insert(chunk);
        }
    }
    touched
}

/// The disk some time later: edited, and sometimes of another size.
fn later(base: &Disk, random: &SeededEntropy) -> (Disk, BTreeSet<u64>) {
    let mut disk = base.clone();
    match random.below(4) {
        0 => disk.size = (disk.count() + random.below(3 * disk.count())) * CHUNK as u64,
        1 => disk.size = (1 + random.below(disk.count())) * CHUNK as u64,
        _ => {}
    }
    if disk.size != base.size {
        cut_end(&mut disk, random);
        let count = disk.count();
        disk.chunks.retain(|chunk, _| *chunk < count);
    }
    let touched = scatter(&mut disk, random);
    (disk, touched)
}

/// Writes `disk` on top of `base` with three threads: runs that are kept, and all others.
fn write_keeping(
    repo: &Repository,
    base: &RecoveryPoint,
    disk: &Disk,
    touched: &BTreeSet<u64>,
    random: &SeededEntropy,
) -> RecoveryPoint {
    let session = repo.begin(Some(base)).unwrap();
    let writer = session.image("disk0", "x", disk.size);
    let keepable = writer.keepable();
    let mut cuts: BTreeSet<u64> =
        (0..random.below(20)).map(|_| random.below(disk.count())).collect();
    cuts.extend(touched.iter().flat_map(|c| [*c, c + 1]));
    cuts.insert(keepable);
    let mut runs = disk.runs(&cuts);
    // Neighbours that are both kept become one call, as a change map has it.
    let may_keep = |run: &Range<u64>| run.end <= keepable && !touched.contains(&run.start);
    let mut told: Vec<(Range<u64>, bool)> = Vec::new();
    for run in runs.drain(..) {
        let keep = may_keep(&run) && random.below(8) != 0;
        match told.last_mut() {
            Some((last, true)) if keep && last.end == run.start => last.end = run.end,
            _ => told.push((run, keep)),
        }
    }
    for i in (1..told.len()).rev() {
        if random.below(2) == 0 {
            told.swap(i, random.below(i as u64 + 1) as usize);
        }
    }
    std::thread::scope(|s| {
        for part in told.chunks(told.len().div_ceil(3).max(1)) {
            let writer = &writer;
            s.spawn(move || {
                let mut scratch = WriteScratch::new().unwrap();
                for (run, keep) in part {
                    if *keep {
                        writer.keep(ChunkIndex(run.start), run.end - run.start).unwrap();
                    } else {
                        disk.write(writer, run.clone(), &mut scratch);
                    }
                }
            });
        }
    });
    let record = writer.finish().unwrap();
    session.commit(new_point("m", None), vec![record]).unwrap()
}

#[test]
fn any_mix_of_keeping_and_writing_is_a_plain_full_write() {
    let seed = seed();
    for round in 0..120 {
        let random = SeededEntropy::new(seed + round);
        let entropy = Arc::new(SeededEntropy::new(round));
        let storage = Arc::new(MemoryStorage::default());
        init(&*storage, &entropy).unwrap();
        let repo = open(storage, &entropy).unwrap();
        let mut disk = some_disk(&random);
        let mut base = write_plainly(&repo, &disk);
        // Upon each other, so that a wrong tree would be kept and spread.
        for step in 0..3 {
            let (next, touched) = later(&disk, &random);
            let kept = write_keeping(&repo, &base, &next, &touched, &random);
            let plain = write_plainly(&repo, &next);
            assert_eq!(kept.disks[0].root, plain.disks[0].root, "round {round} step {step}");
            let reader = repo.image(&kept.disks[0]).unwrap();
            for chunk in next.chunks.keys().take(50) {
                let mut bytes = next.bytes(*chunk);
                let expected = bytes.clone();
                reader.read_at(chunk * CHUNK as u64, &mut bytes).unwrap();
                assert!(bytes == expected, "round {round} step {step} chunk {chunk}");
            }
            (disk, base) = (next, kept);
        }
    }
}

/// A repository in memory whose calls are counted, with an index on disk that outlives an opening.
struct Counted {
    storage: Arc<FaultStorage>,
    inner: Arc<MemoryStorage>,
    dir: tempfile::TempDir,
}

impl Counted {
    fn new() -> Self {
        let inner = Arc::new(MemoryStorage::default());
        init(&*inner, &SeededEntropy::new(1)).unwrap();
        let storage = Arc::new(FaultStorage::new(inner.clone(), FaultPlan::default()));
        Self { storage, inner, dir: tempfile::tempdir().unwrap() }
    }

    /// Opens it with nothing in memory, as the host whose index is `name`.
    fn open(&self, name: &str, entropy: u64) -> Repository {
        let cache: &Path = self.dir.path();
        Repository::open_on(
            self.storage.clone(),
            Location::parse("/test").unwrap(),
            &key(),
            &OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new(cache) },
            IndexChoice::Directory(cache.join(name)),
            Arc::new(SeededEntropy::new(entropy)),
        )
        .unwrap()
    }
}

#[test]
fn the_cost_follows_the_change_and_not_the_disk() {
    const PIECES: u64 = 1024;
    let mut calls_without_change = Vec::new();
    for tib in [1u64, 10] {
        let counted = Counted::new();
        let random = SeededEntropy::new(tib);
        let mut disk = Disk { size: tib << 40, chunks: BTreeMap::new() };
        let count = disk.count();
        let place = |_| random.below(count);
        disk.chunks = (0..4000).map(place).map(|c| (c, c)).collect();
        let base = write_plainly(&counted.open("index", 2), &disk);
        let levels = u64::from(base.disks[0].levels);

        let mut touched: BTreeSet<u64> = disk.chunks.keys().copied().take(512).collect();
        touched.extend((0..PIECES - touched.len() as u64).map(place));
        let mut next = disk.clone();
        next.chunks.extend(touched.iter().map(|c| (*c, c + 1)));
        let cost = |disk: &Disk, touched: &BTreeSet<u64>, entropy| {
            let repo = counted.open("index", entropy);
            let session = repo.begin(Some(&base)).unwrap();
            let before = counted.storage.calls();
            let writer = session.image("disk0", "x", disk.size);
            let mut scratch = WriteScratch::new().unwrap();
            let mut at = 0;
            for chunk in touched {
                writer.keep(ChunkIndex(at), chunk - at).unwrap();
                disk.write(&writer, *chunk..chunk + 1, &mut scratch);
                at = chunk + 1;
            }
            writer.keep(ChunkIndex(at), count - at).unwrap();
            let record = writer.finish().unwrap();
            let point = session.commit(new_point("m", None), vec![record]).unwrap();
            (counted.storage.calls() - before, point)
        };
        let (calls, point) = cost(&next, &touched, 3);
        // A read for each node on a path, and the writing of a few packs and the point.
        assert!(calls <= PIECES * levels + 20, "{calls} calls at {tib} TiB");
        assert!(point.stats.new_chunks <= PIECES * (1 + levels), "{:?}", point.stats);
        assert_eq!(point.disks[0].root, write_plainly(&counted.open("x", 4), &next).disks[0].root);

        let (calls, point) = cost(&disk, &BTreeSet::new(), 5);
        assert_eq!((point.disks[0].root, point.stats.new_chunks), (base.disks[0].root, 0));
        assert_eq!(point.stats.stored_bytes, 0);
        calls_without_change.push(calls);
    }
    assert!(calls_without_change.iter().all(|calls| *calls < 8), "{calls_without_change:?}");
}

fn a_disk() -> Disk {
    let chunks = (0..200).chain(5000..5100).map(|c| (c, c)).collect();
    Disk { size: 6000 * CHUNK as u64 + 7, chunks }
}

/// The kind of what keeping the first chunks of `disk` fails with.
fn refusal(writer: &ImageWriter, count: u64) -> ErrorKind {
    writer.keep(ChunkIndex(0), count).unwrap_err().kind()
}

#[test]
fn nothing_is_kept_without_a_base_that_vouches_for_it() {
    let counted = Counted::new();
    let repo = counted.open("a", 2);
    let disk = a_disk();
    let base = write_plainly(&repo, &disk);

    let session = repo.begin(None).unwrap();
    assert!(session.base().is_none());
    assert_eq!(refusal(&session.image("disk0", "x", disk.size), 1), ErrorKind::Invalid);
    let session = repo.begin(Some(&base)).unwrap();
    assert_eq!(session.base().map(|p| p.id), Some(base.id));
    assert_eq!(refusal(&session.image("other", "x", disk.size), 1), ErrorKind::Invalid);
    let writer = session.image("disk0", "x", disk.size);
    assert_eq!(writer.keepable(), 6001);
    assert_eq!(refusal(&writer, 6002), ErrorKind::Invalid);
    assert_eq!(refusal(&writer, u64::MAX), ErrorKind::Invalid);
    // What was refused was not told, so it can be told otherwise.
    writer.keep(ChunkIndex(0), 6001).unwrap();
    assert_eq!(writer.finish().unwrap().root, base.disks[0].root);
    // Resized: the short chunk at the end is never kept.
    for (size, keepable) in [
        (disk.size + 1, 6000),
        (disk.size - 1, 6000),
        (disk.size - 7, 6000),
        (disk.size - 8, 5999),
        (1 << 40, 6000),
        (CHUNK as u64 - 1, 0),
    ] {
        assert_eq!(session.image("disk0", "x", size).keepable(), keepable, "{size}");
    }
    // Kept twice is noticed, and the disk is lost then.
    let writer = session.image("disk0", "x", disk.size);
    writer.keep(ChunkIndex(0), 64).unwrap();
    assert_eq!(refusal(&writer, 64), ErrorKind::Invalid);
    assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::Aborted);
}

#[derive(Default)]
struct Looked {
    cancel: bool,
    total: std::sync::atomic::AtomicU64,
    done: std::sync::atomic::AtomicU64,
}

impl Progress for Looked {
    fn total(&self, _: &'static str, count: u64) {
        self.total.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
    fn add(&self, _: &'static str, count: u64) {
        self.done.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        self.cancel
    }
}

#[test]
fn a_base_of_another_host_is_looked_through_once() {
    let counted = Counted::new();
    let disk = a_disk();
    let base = write_plainly(&counted.open("a", 2), &disk);

    let repo = counted.open("b", 3);
    let mut session = repo.begin(Some(&base)).unwrap();
    assert_eq!(session.image("disk0", "x", disk.size).keepable(), 0);
    let cancelled = Looked { cancel: true, ..Looked::default() };
    let stopped = session.trust_base(&base, &cancelled).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Aborted);
    assert!(session.base().is_none());
    let looked = Looked::default();
    session.trust_base(&base, &looked).unwrap();
    assert_eq!((looked.total.into_inner(), looked.done.into_inner()), (6001, 6001));
    let writer = session.image("disk0", "x", disk.size);
    writer.keep(ChunkIndex(0), writer.keepable()).unwrap();
    assert_eq!(writer.finish().unwrap().root, base.disks[0].root);
    drop((session, repo));

    // The next process of that host knows.
    let repo = counted.open("b", 4);
    let session = repo.begin(Some(&base)).unwrap();
    assert_eq!(session.image("disk0", "x", disk.size).keepable(), 6001);
}

#[test]
fn a_base_that_lost_a_pack_is_not_built_upon() {
    let packs = {
        let counted = Counted::new();
        write_plainly(&counted.open("a", 2), &a_disk());
        counted.inner.list(Folder::Packs).unwrap().len()
    };
    assert_eq!(packs, 2, "one of data, one of tree nodes");
    for lost in 0..packs {
        let counted = Counted::new();
        let repo = counted.open("a", 2);
        let disk = a_disk();
        let base = write_plainly(&repo, &disk);
        // All nodes are remembered by now, and still none may be kept that is not stored.
        repo.image(&base.disks[0]).unwrap().extents(0, disk.size, 10_000).unwrap();
        let pack: ObjectKey = counted.inner.list(Folder::Packs).unwrap()[lost];
        counted.inner.delete(pack).unwrap();
        let mut session = repo.begin(Some(&base)).unwrap();
        assert!(session.base().is_none());
        let error = session.trust_base(&base, &NoProgress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        let writer = session.image("disk0", "x", disk.size);
        assert_eq!(writer.keepable(), 0);
        let mut scratch = WriteScratch::new().unwrap();
        for run in disk.runs(&BTreeSet::new()) {
            disk.write(&writer, run, &mut scratch);
        }
        let record = writer.finish().unwrap();
        assert_eq!(record.root, base.disks[0].root);
        session.commit(new_point("m", None), vec![record]).unwrap();
        // Whole again, both of them.
        let mut session = repo.begin(None).unwrap();
        session.trust_base(&base, &NoProgress).unwrap();
    }
}

#[test]
fn a_run_whose_nodes_cannot_be_read_is_told_by_writing() {
    let counted = Counted::new();
    let disk = a_disk();
    let base = write_plainly(&counted.open("a", 2), &disk);
    let repo = counted.open("a", 3);
    let session = repo.begin(Some(&base)).unwrap();
    let writer = session.image("disk0", "x", disk.size);
    counted.storage.set_plan(FaultPlan {
        fail_at: Some(0),
        sticky: true,
        kind: Some(ErrorKind::Damaged),
        ..FaultPlan::default()
    });
    assert_eq!(refusal(&writer, 6001), ErrorKind::Damaged);
    counted.storage.set_plan(FaultPlan::default());
    let mut scratch = WriteScratch::new().unwrap();
    for run in disk.runs(&BTreeSet::new()) {
        disk.write(&writer, run, &mut scratch);
    }
    assert_eq!(writer.finish().unwrap().root, base.disks[0].root);
}

#[test]
fn a_fault_at_any_call_of_a_keeping_backup_loses_nothing() {
    let disk = a_disk();
    let mut next = disk.clone();
    next.chunks.extend([(3, 77), (2000, 78), (5050, 79)]);
    let attempt = |counted: &Counted, base: &RecoveryPoint, entropy, plan: FaultPlan| {
        let repo = counted.open("a", entropy);
        counted.storage.set_plan(plan);
        let mut session = repo.begin(Some(base))?;
        session.trust_base(base, &NoProgress)?;
        let writer = session.image("disk0", "x", next.size);
        let mut scratch = WriteScratch::new()?;
        let mut at = 0;
        for chunk in [3, 2000, 5050] {
            writer.keep(ChunkIndex(at), chunk - at)?;
            writer.write_chunks(ChunkIndex(chunk), &next.bytes(chunk), &mut scratch)?;
            session.flush()?;
            at = chunk + 1;
        }
        writer.keep(ChunkIndex(at), writer.keepable() - at)?;
        let record = writer.finish()?;
        session.commit(new_point("m", None), vec![record])
    };
    let setup = || {
        let counted = Counted::new();
        let base = write_plainly(&counted.open("a", 2), &disk);
        (counted, base)
    };
    let (counted, base) = setup();
    let expected = attempt(&counted, &base, 3, FaultPlan::default()).unwrap().disks[0].root;
    let calls = counted.storage.calls();
    assert!(calls > 10, "it makes {calls} calls");
    for at in 0..calls {
        for sticky in [false, true] {
            let (counted, base) = setup();
            let kind = Some(ErrorKind::NoSpace);
            let plan = FaultPlan { fail_at: Some(at), sticky, kind, ..FaultPlan::default() };
            let outcome = attempt(&counted, &base, 3, plan);
            let what = format!("fault at call {at}, sticky {sticky}");
            match &outcome {
                Ok(point) => assert_eq!(point.disks[0].root, expected, "{what}"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace, "{what}: {e}"),
            }
            counted.storage.set_plan(FaultPlan::default());
            let list = counted.open("b", 4).points().unwrap();
            assert_eq!(list.points.len(), 1 + usize::from(outcome.is_ok()), "{what}");
            let again = attempt(&counted, &base, 5, FaultPlan::default()).unwrap();
            assert_eq!(again.disks[0].root, expected, "{what}");
            let repo = counted.open("b", 6);
            let checked = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
            assert!(checked.damage.is_empty(), "{what}: {checked:?}");
        }
    }
}

#[test]
fn what_is_flushed_can_be_read_before_the_commit() {
    let counted = Counted::new();
    let repo = counted.open("a", 2);
    let disk = a_disk();
    let session = repo.begin(None).unwrap();
    let writer = session.image("disk0", "x", disk.size);
    let mut scratch = WriteScratch::new().unwrap();
    for (i, run) in disk.runs(&BTreeSet::new()).into_iter().enumerate() {
        disk.write(&writer, run, &mut scratch);
        // Between runs, so that several small packs come to be.
        if i % 50 == 0 {
            session.flush().unwrap();
        }
    }
    let record = writer.finish().unwrap();
    session.flush().unwrap();
    let mut bytes = vec![1; CHUNK];
    repo.image(&record).unwrap().read_at(5000 * CHUNK as u64, &mut bytes).unwrap();
    assert!(bytes == disk.bytes(5000));
    assert!(repo.points().unwrap().points.is_empty());
    let point = session.commit(new_point("m", None), vec![record]).unwrap();
    assert_eq!(point.disks[0].root, write_plainly(&repo, &disk).disks[0].root);
}
