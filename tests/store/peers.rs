//! Bugs that cost users of other programs their data, each as a test of the rule that excludes it
//! here. The name tells the program and its own number for the bug.
//!
//! Bugs of parts that are no store are tested with those parts: reading holes and NBD replies in
//! `mountd`, retention rules with `backstay retention`, S3 replies in `tests/s3`, repair that says
//! too much with repair. Of the store's own, these stand elsewhere:
//!
//! - Duplicati 4341 (the list before its data), litestream 1344, nora 723 and bupstash 355 (a
//!   rename without its directory's sync): `power::a_cut_at_every_change_loses_nothing`.
//! - restic 3265 and 1289 (success though packs were not stored): `faults`.
//! - restic 21820 (a report that leaves damage out): `damage`.
//! - restic 1153, 3289, 3724 and 3464 (a full disk that nobody can clean up): `full_disk`.
//! - kopia 2074 and Duplicati 6688 (a repair that says it is done while damage is left):
//!   `repair::without_a_source_nothing_is_healed_and_the_report_says_what_is_left`.
//! - borg 2444 (a repair that judged by a wrong index): `borg_4829_a_spoilt_index_is_not_believed`,
//!   and `matrix`, where packs are judged by their own bytes.
//! - borg 8535 (an index that interruptions left wrong): `index`, `kills`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{
    CheckOptions, ChunkIndex, CollectOptions, Encryption, Error, ErrorKind, Folder, LocalStorage,
    MemoryStorage, NoProgress, ObjectKey, Repository, Storage, Unlock, WriteScratch,
};
use jiff::SignedDuration;

use crate::nodes::{Nodes, TestEntropy, back_up, collect, noise, open_node, plain, remove, write};
use crate::sim::Call;
use crate::support::{CHUNK, init, init_options, new_point, read};

/// Proxmox Backup Server, PSA-2025-00019-1: garbage collection listed the snapshots; then a backup
/// was made on top of the last one, and that one was pruned, before its chunks were marked: the new
/// snapshot's chunks were swept. G2: what must stay is read when all older writers are over.
#[test]
pub(crate) fn pbs_psa_2025_00019_1_backup_and_prune_during_collection() {
    let nodes = Nodes::new();
    let (node, bytes) = (nodes.node(), noise(1, 12));
    let waste = back_up(&node, &noise(2, 12));
    let first = back_up(&node, &bytes);
    assert!(remove(&node, waste.id));
    let made = Arc::new(parking_lot::Mutex::new(None));
    let (collector, storage) = nodes.interrupted();
    let (slot, data) = (made.clone(), bytes.clone());
    // Snapshots are listed; before the first is read and marked, all of it happens.
    storage.before(|call| matches!(call, Call::List(Folder::Points)), || {});
    storage.before(
        |call| matches!(call, Call::Get(ObjectKey::Point(_))),
        move || {
            let second = write(node.begin(Some(&first)).unwrap(), &data).unwrap().0;
            assert!(remove(&node, first.id));
            *slot.lock() = Some(second);
        },
    );
    let _ = collector.collect(&plain(), &NoProgress);
    storage.assert_done();
    collect(&nodes.node());
    let second = made.lock().take().unwrap();
    nodes.assert_whole(&second, &bytes);
}

/// Proxmox Backup Server, the S3 series of October and November 2025: a chunk was uploaded, its
/// mark of use written after that, and a collection looked in between. O9: a session is registered
/// before anything is uploaded, and packs name their session.
#[test]
fn pbs_s3_2025_collection_between_upload_and_commit() {
    let nodes = Nodes::new();
    let (node, bytes) = (nodes.node(), noise(1, 12));
    let session = node.begin(None).unwrap();
    let writer = session.image("disk0", "test", bytes.len() as u64);
    writer.write_chunks(ChunkIndex(0), &bytes, &mut WriteScratch::new().unwrap()).unwrap();
    session.flush().unwrap();
    let packs = nodes.packs();
    for _ in 0..3 {
        assert_eq!(collect(&nodes.node()).freed.packs, 0);
    }
    assert_eq!(nodes.packs(), packs, "they belong to an open session");
    let disk = writer.finish().unwrap();
    let point = session.commit(new_point("m", None), vec![disk]).unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// Proxmox Backup Server, bug 5982 and the checks of access times of February 2025; kopia 2227,
/// keiretsu 2746, kopia 4719: times of a storage or a clock decided what was garbage. No clock and
/// no time of an object is evidence here: with clocks thirty years wrong, nothing needed goes.
#[test]
fn pbs_5982_kopia_2227_no_clock_decides_what_is_garbage() {
    for years in [-30, 30] {
        let nodes = Nodes::new();
        let (node, bytes) = (nodes.node(), noise(1, 12));
        let kept = back_up(&node, &bytes);
        let waste = back_up(&node, &noise(2, 12));
        let hold = node.hold(&[kept.id], "a mount").unwrap();
        nodes.pass(SignedDuration::from_hours(years * 365 * 24));
        let again = back_up(&nodes.node(), &bytes);
        assert!(remove(&node, waste.id));
        assert!(collect(&nodes.node()).freed.packs > 0);
        for point in [&kept, &again] {
            nodes.assert_whole(point, &bytes);
        }
        drop(hold);
    }
}

/// restic 2452, 3126, 3182 and 3486, and rustic's documentation (pull request 144): a lock looked
/// stale, since its laptop slept or its process was stopped; prune ran; the sleeper woke and
/// finished its backup on chunks that were gone. W3: who was taken for dead cannot commit.
#[test]
pub(crate) fn restic_3182_rustic_144_the_sleeper_wakes_and_may_not_commit() {
    let nodes = Nodes::new();
    let (node, bytes) = (nodes.node(), noise(1, 12));
    let first = back_up(&node, &bytes);
    let sleeper = nodes.node();
    let session = sleeper.begin(None).unwrap();
    assert!(remove(&node, first.id));
    let report = collect(&node);
    assert_eq!(report.waiting_for.len(), 1, "who just began is waited for");
    nodes.pass(SignedDuration::from_hours(24 * 7));
    let report = collect(&node);
    assert_eq!(report.fenced.len(), 1, "a week without a sign of life");
    assert!(report.freed.packs > 0);
    let e = write(session, &bytes).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    let point = back_up(&sleeper, &bytes);
    nodes.assert_whole(&point, &bytes);
}

/// rustic 392: a pack that held one blob twice was counted as unused and deleted. Packs are judged
/// by the set of what is needed in them; see also the planted fault `TwinsCountAsNone`. Runs in a
/// process of its own: see `planted`.
pub(crate) fn rustic_392_a_chunk_twice_in_a_pack() {
    let nodes = Nodes::new();
    let (a, b) = (noise(1, 12), noise(2, 12));
    let kept = back_up(&nodes.node(), &a);
    let waste = back_up(&nodes.node(), &b);
    assert!(remove(&nodes.node(), waste.id));
    assert!(collect(&nodes.node()).freed.packs > 0);
    nodes.assert_whole(&kept, &a);
    let thin = [&a[..2 * CHUNK], &noise(3, 2)].concat();
    let other = back_up(&nodes.node(), &thin);
    assert!(remove(&nodes.node(), kept.id));
    let options = CollectOptions { waste_percent: 0, ..CollectOptions::default() };
    nodes.node().collect(&options, &NoProgress).unwrap();
    nodes.assert_whole(&other, &thin);
}

/// A listing that lacks a pack which is there.
#[derive(Debug)]
struct ShortList {
    inner: Arc<MemoryStorage>,
    hidden: ObjectKey,
}

impl Storage for ShortList {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.put(key, parts)
    }
    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>, Error> {
        self.inner.get(key, max)
    }
    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_at(key, offset, buf)
    }
    fn size(&self, key: ObjectKey) -> Result<u64, Error> {
        self.inner.size(key)
    }
    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>, Error> {
        let keys = self.inner.list(folder)?;
        Ok(keys.into_iter().filter(|k| *k != self.hidden).collect())
    }
    fn delete(&self, key: ObjectKey) -> Result<(), Error> {
        self.inner.delete(key)
    }
}

/// kopia 1949, 4769, 1087, 437 and 946: maintenance removed blobs that were needed, by listings
/// that lacked something and caches that were old. A pack that a listing hides is not needed less,
/// and hides nothing of others: whichever it is, all points read when it shows again.
#[test]
fn kopia_1949_a_listing_that_lacks_a_pack() {
    for n in 0.. {
        let nodes = Nodes::new();
        let a = noise(1, 12);
        let b = [&a[..6 * CHUNK], &noise(2, 6)].concat();
        let first = back_up(&nodes.node(), &a);
        let second = back_up(&nodes.node(), &b);
        let waste = back_up(&nodes.node(), &noise(3, 12));
        assert!(remove(&nodes.node(), waste.id));
        let Some(hidden) = nodes.packs().get(n).copied() else { break };
        let storage = ShortList { inner: nodes.storage.clone(), hidden: ObjectKey::Pack(hidden) };
        let node = nodes.node_on(Arc::new(storage));
        for _ in 0..2 {
            let _ = node.collect(&CollectOptions::default(), &NoProgress);
        }
        nodes.assert_whole(&first, &a);
        nodes.assert_whole(&second, &b);
    }
}

/// kopia 3712: a snapshot was deduplicated against entries of the index whose pack was gone; it
/// uploaded nothing, and could not be restored. A chunk counts as stored only in a pack that is
/// listed, and a base only while no pack has vanished.
#[test]
pub(crate) fn kopia_3712_backup_after_a_pack_was_lost() {
    for with_base in [false, true] {
        let nodes = Nodes::new();
        let (node, bytes) = (nodes.node(), noise(1, 12));
        let first = back_up(&node, &bytes);
        let size = |p: &backstay_store::PackId| nodes.storage.size(ObjectKey::Pack(*p)).unwrap();
        let data = nodes.packs().into_iter().max_by_key(size).unwrap();
        nodes.storage.delete(ObjectKey::Pack(data)).unwrap();
        let session = node.begin(with_base.then_some(&first)).unwrap();
        let (point, new) = write(session, &bytes).unwrap();
        assert_eq!(new, 12, "all is stored again");
        nodes.assert_whole(&point, &bytes);
        // And the point that had lost everything has it again.
        nodes.assert_whole(&first, &bytes);
    }
}

/// borg 4829: a bug of its hash table spoilt the index of chunks, and compaction believed it.
#[test]
fn borg_4829_a_spoilt_index_is_not_believed() {
    crate::orders::a_wrong_index_deletes_nothing();
}

/// What was missing once and is back, a pack whose disk was away, is needed as before: though a
/// collector looked meanwhile and remembers what subtrees need. (Like borg 4829, in what this
/// program derives.)
#[test]
fn borg_4829_what_a_collector_remembers_of_worse_times() {
    let nodes = Nodes::new();
    let collector = nodes.node();
    // Two disks of two levels that share one chunk, of the first one's pack.
    let mut a = vec![0u8; 70 * CHUNK];
    a[..CHUNK].copy_from_slice(&noise(1, 1));
    let mut b = a.clone();
    a[66 * CHUNK..67 * CHUNK].copy_from_slice(&noise(2, 1));
    b[66 * CHUNK..67 * CHUNK].copy_from_slice(&noise(3, 1));
    let first = back_up(&nodes.node(), &a);
    let data =
        nodes.packs().into_iter().max_by_key(|p| nodes.storage.size(ObjectKey::Pack(*p)).unwrap());
    let data = ObjectKey::Pack(data.unwrap());
    let second = back_up(&nodes.node(), &b);
    let bytes = nodes.storage.get(data, 1 << 24).unwrap();
    nodes.storage.delete(data).unwrap();
    let report = collector.collect(&plain(), &NoProgress).unwrap();
    assert!(report.missing_chunks > 0, "{report:?}");
    nodes.storage.put(data, &[&bytes]).unwrap();
    assert!(remove(&nodes.node(), first.id));
    for _ in 0..2 {
        collector.collect(&plain(), &NoProgress).unwrap();
    }
    nodes.assert_whole(&second, &b);
}

/// borg 2099: a segment that was complete was opened for appending, and got a header in its middle.
/// An object that exists is never opened for writing, nor replaced.
#[test]
fn borg_2099_what_is_stored_is_never_written_to_again() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create_real(&dir.path().join("repo")).unwrap();
    let key = ObjectKey::Pack(backstay_store::PackId::from_bytes([7; 16]));
    storage.put(key, &[b"first"]).unwrap();
    let e = storage.put(key, &[b"second"]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists, "{e}");
    assert_eq!(storage.get(key, 100).unwrap(), b"first");
}

/// borg, CVE-2023-36811 and CVE-2016-10099: archives and lists that anybody could forge were
/// believed, and retention then deleted the real ones. An object under another name, or made
/// without the key, is damage: nothing is deleted for its sake.
#[test]
fn borg_cve_2023_36811_forged_objects_are_not_believed() {
    let (nodes, forger) = (Nodes::new(), Nodes::of(666));
    let bytes = noise(1, 12);
    let point = back_up(&nodes.node(), &bytes);
    let other = back_up(&forger.node(), &bytes);
    assert!(remove(&forger.node(), other.id));
    let _late = forger.node().begin(None).unwrap();
    collect(&forger.node());
    let forged = forger.storage.list(Folder::Gc).unwrap();
    let before = nodes.packs();
    for key in forged {
        nodes.storage.put(key, &[&forger.storage.get(key, 1 << 20).unwrap()]).unwrap();
        let e = nodes.node().collect(&plain(), &NoProgress).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        nodes.storage.delete(key).unwrap();
    }
    let moved = ObjectKey::Point(backstay_store::PointId::from_bytes([9; 16]));
    let record = nodes.storage.get(ObjectKey::Point(point.id), 1 << 20).unwrap();
    nodes.storage.put(moved, &[&record]).unwrap();
    let list = nodes.node().points().unwrap();
    assert_eq!((list.points.len(), list.damaged.len()), (1, 1));
    assert_eq!(nodes.packs(), before);
    nodes.storage.delete(moved).unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// restic 4523 and 4677: the compressor produced blobs that nobody could decompress, twice. O1:
/// what will be stored is decoded before it counts. Runs in a process of its own: see `planted`.
pub(crate) fn restic_4523_a_compressor_that_spoils_chunks() {
    let nodes = Nodes::new();
    let e = write(nodes.node().begin(None).unwrap(), &noise(1, 12)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    assert!(e.to_string().contains("cannot be read back before it is stored"), "{e}");
    assert!(nodes.packs().is_empty() && nodes.node().points().unwrap().points.is_empty());
}

/// restic 4779 and 5289: packs of an upload that was interrupted stood in no index, and all was
/// sent again. Packs describe themselves: the next backup finds what is there.
#[test]
fn restic_4779_an_interrupted_backup_is_not_sent_again() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let node = nodes.node();
    let session = node.begin(None).unwrap();
    let writer = session.image("disk0", "test", bytes.len() as u64);
    writer.write_chunks(ChunkIndex(0), &bytes, &mut WriteScratch::new().unwrap()).unwrap();
    session.flush().unwrap();
    drop((writer, session, node));
    let (point, new) = write(nodes.node().begin(None).unwrap(), &bytes).unwrap();
    assert_eq!(new, 0);
    nodes.assert_whole(&point, &bytes);
}

/// Duplicati 4129, 5023 and 4967: compacting changed the remote side and its own database, and was
/// interrupted in between. A collector that dies at any call leaves nothing that only it knows.
#[test]
pub(crate) fn duplicati_5023_a_collection_that_dies_anywhere() {
    for at in 0.. {
        let nodes = Nodes::new();
        let a = noise(1, 12);
        let b = [&a[..3 * CHUNK], &noise(2, 3)].concat();
        let first = back_up(&nodes.node(), &a);
        let second = back_up(&nodes.node(), &b);
        assert!(remove(&nodes.node(), first.id));
        let (collector, storage) = nodes.interrupted();
        for _ in 0..at {
            storage.before(|_| true, || {});
        }
        storage.die_before(|_| true);
        let options = CollectOptions { waste_percent: 0, ..CollectOptions::default() };
        let finished = collector.collect(&options, &NoProgress).is_ok();
        let listed = nodes.node().points().unwrap().points;
        assert!(listed.iter().all(|p| p.id == second.id), "what was removed shows again");
        nodes.assert_whole(&second, &b);
        // Nobody knows whether a session of the dead lives, but that it gives no sign of life.
        for session in nodes.node().sessions().unwrap() {
            nodes.node().fence_session(session.id, &crate::nodes::cause()).unwrap();
        }
        nodes.node().collect(&options, &NoProgress).unwrap();
        nodes.node().collect(&options, &NoProgress).unwrap();
        nodes.assert_whole(&second, &b);
        assert!(nodes.storage.list(Folder::Removals).unwrap().is_empty());
        if finished {
            assert!(at > 20, "a collection makes more than {at} calls");
            break;
        }
    }
}

/// PostgreSQL's fsyncgate: a sync failed, the kernel dropped the bytes, the next sync said that all
/// was well. O6: a file whose sync failed is given up.
#[test]
pub(crate) fn postgresql_fsyncgate_a_failed_sync_is_final() {
    let mut failed = 0;
    for n in 0..12 {
        let fs = SimFs::new();
        let storage = LocalStorage::create(Path::new("/repo"), Arc::new(fs.clone()), "w").unwrap();
        init(&storage, &SeededEntropy::new(1)).unwrap();
        let node = open_node(Arc::new(storage), TestEntropy::new(n), "w").unwrap();
        let bytes = noise(1, 12);
        fs.fail_sync_in(n);
        let outcome = node.begin(None).and_then(|session| write(session, &bytes));
        let fs = fs.after_power_cut(&SeededEntropy::new(n));
        let storage = LocalStorage::open(Path::new("/repo"), Arc::new(fs), "r").unwrap();
        let node = open_node(Arc::new(storage), TestEntropy::new(99), "r").unwrap();
        match outcome {
            Ok((point, _)) => {
                let found = node.point(point.id).unwrap();
                assert!(read(&node, &found.disks[0]).unwrap() == bytes, "sync {n}");
            }
            Err(_) => failed += 1,
        }
        let (point, _) = write(node.begin(None).unwrap(), &bytes).unwrap();
        assert!(read(&node, &point.disks[0]).unwrap() == bytes, "after sync {n}");
    }
    assert!(failed >= 3, "only {failed} syncs were met");
}

/// Jepsen on TigerBeetle: one old block on the disk made every start panic. Whatever stands in any
/// one object, nothing panics, nothing needed is deleted, and when the object is as it was, so is
/// everything.
#[test]
fn jepsen_tigerbeetle_no_object_makes_it_panic() {
    let nodes = Nodes::new();
    let a = noise(1, 12);
    let b = [&a[..3 * CHUNK], &noise(2, 3)].concat();
    let point = back_up(&nodes.node(), &b);
    let waste = back_up(&nodes.node(), &a);
    nodes.node().pin(point.id, &crate::nodes::cause()).unwrap();
    let blocker = nodes.node();
    let _open = blocker.begin(Some(&point)).unwrap();
    assert!(remove(&nodes.node(), waste.id));
    collect(&nodes.node());
    let keys: Vec<ObjectKey> =
        Folder::ALL.iter().flat_map(|f| nodes.storage.list(*f).unwrap()).collect();
    let mut tried = 0;
    for key in keys.into_iter().chain([ObjectKey::Config]) {
        let good = nodes.storage.get(key, 1 << 24).unwrap();
        let half = good.len() / 2;
        let flipped: Vec<u8> = good.iter().map(|b| b ^ 0x55).collect();
        let others = [vec![], good[..half].to_vec(), flipped, [&good[..], b"more"].concat()];
        for bytes in others {
            nodes.storage.delete(key).unwrap();
            nodes.storage.put(key, &[&bytes]).unwrap();
            let look = || {
                let Ok(node) = try_node(&nodes) else { return };
                let _ = (node.points(), node.pins(), node.sessions());
                let _ = node.check(&CheckOptions { read_data: true }, &NoProgress);
                let _ = node.collect(&CollectOptions::default(), &NoProgress);
                let _ = node.begin(None).and_then(|s| write(s, &a[..CHUNK]));
            };
            assert!(catch_unwind(AssertUnwindSafe(look)).is_ok(), "{key}");
            // A collection may have taken a removal, a session or an index object away.
            let _ = nodes.storage.delete(key);
            nodes.storage.put(key, &[&good]).unwrap();
            tried += 1;
        }
    }
    println!("{tried} damaged objects");
    let node = nodes.node();
    assert!(read(&node, &node.point(point.id).unwrap().disks[0]).unwrap() == b);
}

fn try_node(nodes: &Nodes) -> Result<Repository, Error> {
    open_node(nodes.storage.clone(), TestEntropy::new(77), "node")
}

/// Blocks that a disk wrote to the wrong place (misdirected writes, in TigerBeetle's list of what
/// disks do): each is whole in itself. O8: a chunk is what its name says, or an error. Without
/// encryption nothing but the name tells.
#[test]
pub(crate) fn misdirected_blocks_are_no_data() {
    let storage: Arc<MemoryStorage> = Arc::default();
    let options = init_options(Encryption::None);
    Repository::init_on(&*storage, &options, &Unlock::None, &SeededEntropy::new(1)).unwrap();
    let node = || open_node(storage.clone(), TestEntropy::new(3), "node").unwrap();
    let bytes = noise(1, 4);
    let point = back_up(&node(), &bytes);
    let packs = storage.list(Folder::Packs).unwrap();
    let data = packs.into_iter().max_by_key(|k| storage.size(*k).unwrap()).unwrap();
    storage.tamper(data, |pack| {
        let at = |piece: &[u8], pack: &Vec<u8>| pack.windows(CHUNK).position(|w| w == piece);
        let (a, b) = (&bytes[..CHUNK], &bytes[CHUNK..2 * CHUNK]);
        let (i, j) = (at(a, pack).unwrap(), at(b, pack).unwrap());
        pack[i..i + CHUNK].copy_from_slice(b);
        pack[j..j + CHUNK].copy_from_slice(a);
    });
    let e = read(&node(), &point.disks[0]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
}
