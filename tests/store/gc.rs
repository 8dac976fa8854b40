//! Removing points and taking their space back, beside writers and readers.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Cause, CheckOptions, ChunkIndex, CollectOptions, CollectReport, ErrorKind, Folder, Keeper,
    MemoryStorage, NoProgress, RecoveryPoint, Repository, Storage, WriteScratch,
};

use crate::support::{CHUNK, back_up, image, init, new_point, open, read};

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

    /// Another node: an opening of its own.
    fn node(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    fn packs(&self) -> usize {
        self.storage.list(Folder::Packs).unwrap().len()
    }
}

fn cause() -> Cause {
    Cause { by: "a test".into(), reason: "to see what happens".into() }
}

fn collect(repo: &Repository) -> CollectReport {
    repo.collect(&CollectOptions { by: "a test".into(), ..CollectOptions::default() }, &NoProgress)
        .unwrap()
}

fn assert_whole(repo: &Repository, point: &RecoveryPoint, image: &[u8]) {
    assert!(read(repo, &point.disks[0]).unwrap() == image, "{} reads otherwise", point.id);
}

fn assert_clean(repo: &Repository) {
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

fn noise(seed: u64, chunks: usize) -> Vec<u8> {
    let mut out = vec![0u8; chunks * CHUNK];
    backstay_store::Entropy::fill(&SeededEntropy::new(seed), &mut out);
    out
}

#[test]
fn a_removed_point_is_gone_and_its_space_comes_back() {
    let world = World::new();
    let repo = world.node();
    let (a, b) = (noise(1, 40), noise(2, 40));
    let first = back_up(&repo, "web01", &a).unwrap();
    let second = back_up(&repo, "db01", &b).unwrap();
    let packs = world.packs();
    let report = repo.remove_points(&[first.id], &cause()).unwrap();
    assert_eq!(report.removed, [first.id]);
    assert_eq!(repo.point(first.id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.node().points().unwrap().points, std::slice::from_ref(&second));
    let report = collect(&repo);
    assert!(report.freed.packs >= 2 && report.later.packs == 0, "{report:?}");
    assert!(world.packs() < packs);
    for repo in [&repo, &world.node()] {
        assert_whole(repo, &second, &b);
        assert_clean(repo);
    }
    assert!(world.storage.list(Folder::Removals).unwrap().is_empty());
    assert_eq!(collect(&repo).freed.packs, 0, "nothing is left for a second collection");
}

#[test]
fn a_large_disk_is_followed_whole_and_remembered() {
    const CHUNKS: usize = 9000;
    let world = World::new();
    let image = noise(3, CHUNKS);
    back_up(&world.node(), "web01", &image).unwrap();
    // Leaves of 64 chunks, nodes of 64 leaves, a root.
    let references = (CHUNKS + CHUNKS.div_ceil(64) + CHUNKS.div_ceil(64 * 64) + 1) as u64;
    let node = world.node();
    let dry = CollectOptions { dry_run: true, ..CollectOptions::default() };
    for round in ["followed", "remembered"] {
        let report = node.collect(&dry, &NoProgress).unwrap();
        assert_eq!(report.references, references, "{round}");
        assert_eq!((report.dead.packs, report.missing_chunks), (0, 0), "{round}");
    }
    // What one more point shares with it is remembered, and what is its own is followed.
    let changed = [&noise(4, 1), &image[CHUNK..]].concat();
    back_up(&node, "web01", &changed).unwrap();
    let report = node.collect(&dry, &NoProgress).unwrap();
    assert_eq!((report.dead.packs, report.missing_chunks), (0, 0));
    // A pack that vanished is noticed all the same.
    let gone = world.storage.list(Folder::Packs).unwrap()[0];
    world.storage.delete(gone).unwrap();
    for node in [&node, &world.node()] {
        let told = node.collect(&dry, &NoProgress);
        assert!(told.is_err() || told.is_ok_and(|r| r.missing_chunks > 0));
    }
}

#[test]
fn a_thin_pack_is_repacked_and_every_node_still_reads_it() {
    let world = World::new();
    let (repo, other) = (world.node(), world.node());
    // One pack holds both machines' chunks, since the second shares most with the first.
    let a = noise(1, 64);
    let first = back_up(&repo, "web01", &a).unwrap();
    let b = [&a[..8 * CHUNK], &noise(2, 4)].concat();
    let second = back_up(&repo, "db01", &b).unwrap();
    other.refresh().unwrap();
    repo.remove_points(&[first.id], &cause()).unwrap();
    let plan = repo
        .collect(&CollectOptions { dry_run: true, ..CollectOptions::default() }, &NoProgress)
        .unwrap();
    let packs = world.packs();
    assert!(plan.repacked.packs >= 1 && plan.freed.packs == 0, "{plan:?}");
    assert_eq!(world.packs(), packs, "a dry run changes nothing");
    let report = collect(&repo);
    assert_eq!(report.repacked, plan.repacked);
    assert!(report.copied_bytes > 0 && report.freed.bytes > report.copied_bytes, "{report:?}");
    for repo in [&repo, &other, &world.node()] {
        repo.refresh().unwrap();
        assert_whole(repo, &second, &b);
        assert_clean(repo);
    }
}

#[test]
fn a_collection_waits_for_older_writers_and_goes_on_later() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 40);
    let first = back_up(&repo, "web01", &a).unwrap();
    let writer = world.node();
    let session = writer.begin(None).unwrap();
    repo.remove_points(&[first.id], &cause()).unwrap();
    let report = collect(&repo);
    assert_eq!(report.freed.packs, 0);
    assert!(report.later.packs > 0, "{report:?}");
    assert_eq!(report.waiting_for.len(), 1);
    assert_eq!(report.waiting_for[0].id, session.id());
    // It deduplicates against what is condemned: it registered first, so it may.
    let image = session.image("disk0", "x", a.len() as u64);
    let stats = image.write_chunks(ChunkIndex(0), &a, &mut WriteScratch::new().unwrap()).unwrap();
    assert_eq!(stats.new_chunks, 0);
    let disk = image.finish().unwrap();
    let point = session.commit(new_point("web02", None), vec![disk]).unwrap();
    let report = collect(&repo);
    assert_eq!(report.freed.packs, 0, "the commit needs what was condemned: {report:?}");
    assert_whole(&world.node(), &point, &a);
    assert_clean(&world.node());
}

#[test]
fn a_writer_that_comes_later_takes_condemned_chunks_for_absent() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 40);
    let first = back_up(&repo, "web01", &a).unwrap();
    let other = world.node();
    let blocker = other.begin(None).unwrap();
    repo.remove_points(&[first.id], &cause()).unwrap();
    assert!(collect(&repo).later.packs > 0);
    let later = world.node();
    let point = back_up(&later, "web02", &a).unwrap();
    assert!(point.stats.new_chunks > 0, "it may not refer to what is condemned");
    drop(blocker);
    assert!(collect(&repo).freed.packs > 0);
    for repo in [&repo, &later, &world.node()] {
        repo.refresh().unwrap();
        assert_whole(repo, &point, &a);
        assert_clean(repo);
    }
}

#[test]
fn a_fenced_writer_fails_loudly_and_loses_nothing_of_others() {
    let world = World::new();
    let repo = world.node();
    let a = image(3, 60 * CHUNK);
    let sleeper = world.node();
    let session = sleeper.begin(None).unwrap();
    let writer = session.image("disk0", "x", a.len() as u64);
    writer.write_chunks(ChunkIndex(0), &a, &mut WriteScratch::new().unwrap()).unwrap();
    let disk = writer.finish().unwrap();
    let committed = repo.fence_session(session.id(), &cause()).unwrap();
    assert!(!committed);
    let kept = back_up(&repo, "web01", &a).unwrap();
    collect(&repo);
    let id = session.id();
    let e = session.commit(new_point("web02", None), vec![disk]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    assert_eq!(repo.point(id).unwrap_err().kind(), ErrorKind::NotFound);
    collect(&repo);
    assert_eq!(repo.points().unwrap().points, std::slice::from_ref(&kept));
    assert_whole(&world.node(), &kept, &a);
    assert_clean(&world.node());
    assert!(world.storage.list(Folder::Sessions).unwrap().is_empty());
}

#[test]
fn a_fence_comes_too_late_for_a_committed_point() {
    let world = World::new();
    let repo = world.node();
    let a = image(3, 20 * CHUNK);
    let point = back_up(&repo, "web01", &a).unwrap();
    assert!(repo.fence_session(point.id, &cause()).unwrap());
    assert_whole(&world.node(), &point, &a);
}

#[test]
fn what_is_held_or_pinned_stays() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 40);
    let point = back_up(&repo, "web01", &a).unwrap();
    let reader = world.node();
    let hold = reader.hold(&[point.id], "mount of web01").unwrap();
    assert!(hold.is_held());
    let report = repo.remove_points(&[point.id], &cause()).unwrap();
    assert!(matches!(&report.kept[..], [(id, Keeper::Session { .. })] if *id == point.id));
    drop(hold);
    let pin = repo.pin(point.id, &cause()).unwrap();
    let report = repo.remove_points(&[point.id], &cause()).unwrap();
    assert!(matches!(&report.kept[..], [(_, Keeper::Pin(p))] if *p == pin));
    repo.unpin(pin.id).unwrap();
    assert_eq!(repo.remove_points(&[point.id], &cause()).unwrap().removed, [point.id]);
    // Two may remove it at once; neither is wrong.
    assert_eq!(reader.remove_points(&[point.id], &cause()).unwrap().removed, [point.id]);
    assert_eq!(repo.removed_points().unwrap(), [point.id]);
    assert_eq!(reader.hold(&[point.id], "mount").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(repo.pin(point.id, &cause()).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(collect(&repo).freed.packs > 0);
    assert_eq!(reader.hold(&[point.id], "mount").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(world.storage.list(Folder::Pins).unwrap().is_empty());
}

#[test]
pub(crate) fn a_point_removed_while_it_is_read_stays_until_the_reader_is_done() {
    let world = World::new();
    let repo = world.node();
    let a = noise(1, 40);
    let point = back_up(&repo, "web01", &a).unwrap();
    let pin = repo.pin(point.id, &cause()).unwrap();
    // Somebody removes it on a node that read the pins before ours was there.
    let key = backstay_store::ObjectKey::Pin(pin.id);
    let bytes = world.storage.get(key, 1 << 20).unwrap();
    world.storage.delete(key).unwrap();
    repo.remove_points(&[point.id], &cause()).unwrap();
    world.storage.put(key, &[&bytes]).unwrap();
    assert_eq!(collect(&repo).freed.packs, 0);
    assert_whole(&world.node(), &point, &a);
    repo.unpin(pin.id).unwrap();
    assert!(collect(&repo).freed.packs > 0);
}

#[test]
pub(crate) fn nothing_is_collected_while_a_point_cannot_be_read() {
    let world = World::new();
    let repo = world.node();
    let (a, b) = (noise(1, 40), noise(2, 40));
    let first = back_up(&repo, "web01", &a).unwrap();
    let second = back_up(&repo, "db01", &b).unwrap();
    let third = back_up(&repo, "db02", &b).unwrap();
    repo.remove_points(&[second.id], &cause()).unwrap();
    world.storage.tamper(backstay_store::ObjectKey::Point(first.id), |bytes| bytes[40] ^= 1);
    let node = world.node();
    let e = node.collect(&CollectOptions::default(), &NoProgress).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert!(e.to_string().contains(&first.id.short()), "{e}");
    assert_whole(&node, &third, &b);
    // Removing it is the remedy the message names.
    node.remove_points(&[first.id], &cause()).unwrap();
    assert!(collect(&node).freed.packs > 0);
    assert_whole(&world.node(), &third, &b);
}

/// What a collector remembers of trees must never change what it deletes: with the index in a
/// directory, over many rounds of changes, removals, repacking and nodes that come and go.
#[test]
fn a_collector_with_a_long_memory_deletes_what_one_without_would() {
    let dir = tempfile::tempdir().unwrap();
    let seed = crate::support::seed();
    let random = SeededEntropy::new(seed);
    let repo = crate::support::init_real(dir.path(), backstay_store::Encryption::None);
    let mut disk = noise(seed, 200);
    let mut points: Vec<(RecoveryPoint, Vec<u8>)> = Vec::new();
    for round in 0..12 {
        for _ in 0..random.below(20) {
            let at = random.below(200) as usize * CHUNK;
            backstay_store::Entropy::fill(&random, &mut disk[at..at + CHUNK]);
        }
        points.push((back_up(&repo, "web01", &disk).unwrap(), disk.clone()));
        if round % 3 == 2 {
            let gone = points.remove(random.below(points.len() as u64) as usize);
            repo.remove_points(&[gone.0.id], &cause()).unwrap();
        }
        // The same plan with an empty memory: an opening with an index of its own.
        let dry = CollectOptions { dry_run: true, ..CollectOptions::default() };
        let (location, _) = crate::support::real(dir.path());
        let fresh = backstay_store::OpenOptions::new(dir.path().join(format!("cache-{round}")));
        let fresh = Repository::open(&location, &crate::support::key(), &fresh).unwrap();
        let (a, b) = (repo.collect(&dry, &NoProgress), fresh.collect(&dry, &NoProgress));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.dead, a.repacked, a.points), (b.dead, b.repacked, b.points), "{round}");
        collect(&repo);
        for (point, disk) in &points {
            assert_whole(&repo, point, disk);
        }
        assert_clean(&fresh);
    }
}
