//! The orders of LOCKS.md, one interleaving each, written down: what would go wrong if the order
//! were another. Where a mistake is as rare as three nodes asleep at the right moments, no seed of
//! the simulator is sure to meet it.

use std::sync::Arc;

use backstay_store::{
    ChunkIndex, ErrorKind, Folder, NoProgress, ObjectKey, RecoveryPoint, Repository, Storage,
    WriteScratch,
};
use jiff::SignedDuration;
use parking_lot::Mutex;

use crate::nodes::{Nodes, back_up, cause, collect, noise, plain, remove, write};
use crate::sim::Call;
use crate::support::{CHUNK, new_point, read};

/// A place for what an event made.
type Made<T> = Arc<Mutex<Option<T>>>;

fn made<T>() -> Made<T> {
    Arc::new(Mutex::new(None))
}

/// A point that refers to a pack which is condemned: its writer registered before the plan.
struct Condemned {
    nodes: Nodes,
    /// The node that made the point, and so trusts it as a base.
    node: Repository,
    point: RecoveryPoint,
    bytes: Vec<u8>,
}

fn condemned() -> Condemned {
    let nodes = Nodes::new();
    let (node, collector) = (nodes.node(), nodes.node());
    let bytes = noise(1, 12);
    let first = back_up(&node, &bytes);
    let session = node.begin(None).unwrap();
    assert!(remove(&collector, first.id));
    let report = collect(&collector);
    assert!(report.later.packs > 0 && report.waiting_for.len() == 1, "{report:?}");
    let (point, new) = write(session, &bytes).unwrap();
    assert_eq!(new, 0, "it registered first, so it may refer to what is condemned");
    Condemned { nodes, node, point, bytes }
}

fn puts_removal(call: &Call) -> bool {
    matches!(call, Call::Put(ObjectKey::Removal(_)))
}

fn puts_verdict(call: &Call) -> bool {
    matches!(call, Call::Put(ObjectKey::GcVerdict(_)))
}

fn puts_end(call: &Call) -> bool {
    matches!(call, Call::Put(ObjectKey::GcEnd(_)))
}

fn lists_sessions(call: &Call) -> bool {
    matches!(call, Call::List(Folder::Sessions))
}

fn deletes_pack(call: &Call) -> bool {
    matches!(call, Call::Delete(ObjectKey::Pack(_)))
}

fn asks_for_verdict(call: &Call) -> bool {
    matches!(call, Call::Get(ObjectKey::GcVerdict(_)))
}

fn any(_: &Call) -> bool {
    true
}

/// W2: what a writer recognises in its base stays, because its session holds the base.
#[test]
pub(crate) fn a_base_stays_while_a_writer_builds_upon_it() {
    let c = condemned();
    let session = c.node.begin(Some(&c.point)).unwrap();
    let writer = session.image("disk0", "test", c.bytes.len() as u64);
    let mut scratch = WriteScratch::new().unwrap();
    // From here on the tree of the base is in memory.
    let (first, rest) = c.bytes.split_at(CHUNK);
    writer.write_chunks(ChunkIndex(0), first, &mut scratch).unwrap();
    let collector = c.nodes.node();
    remove(&collector, c.point.id);
    collect(&collector);
    writer.write_chunks(ChunkIndex(1), rest, &mut scratch).unwrap();
    let disk = writer.finish().unwrap();
    let point = session.commit(new_point("m", None), vec![disk]).unwrap();
    collect(&collector);
    c.nodes.assert_whole(&point, &c.bytes);
}

/// G1: a collector that slept before it looked which collection is the newest does not plan one
/// beside that: it would rely on what the other deletes.
#[test]
pub(crate) fn no_collection_is_planned_beside_another() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let first = back_up(&nodes.node(), &bytes);
    let (sleeper, storage) = nodes.interrupted();
    let (asleep, sleeps) = std::sync::mpsc::channel();
    let (wake, wakes) = std::sync::mpsc::channel::<()>();
    let mut looks = 0;
    storage.before(
        move |call| {
            looks += u32::from(matches!(call, Call::List(Folder::Gc)));
            looks == 2
        },
        move || {
            asleep.send(()).unwrap();
            wakes.recv().unwrap();
        },
    );
    let thread = std::thread::spawn(move || sleeper.collect(&plain(), &NoProgress));
    sleeps.recv().unwrap();
    assert!(remove(&nodes.node(), first.id));
    let (collector, storage) = nodes.interrupted();
    let made = made();
    let (slot, other, data) = (made.clone(), nodes.node(), bytes.clone());
    // It has judged. A writer that knows the plan stores the chunks again.
    storage.before(deletes_pack, move || {
        let (point, new) = write(other.begin(None).unwrap(), &data).unwrap();
        assert!(new > 0);
        *slot.lock() = Some(point);
        wake.send(()).unwrap();
        let woken = thread.join().unwrap();
        assert!(
            woken.is_err_and(|e| e.kind() == ErrorKind::Busy),
            "it leaves the work to the other"
        );
    });
    collect(&collector);
    storage.assert_done();
    let point: RecoveryPoint = made.lock().take().unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// A fence that comes when its session has committed, and the point was removed and buried: for
/// whoever remembers the point, its name is taken again, and yet it is no point.
#[test]
pub(crate) fn a_fence_in_the_place_of_a_buried_point_is_no_point() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let session = nodes.node().begin(None).unwrap();
    let id = session.id();
    let (fencer, storage) = nodes.interrupted();
    let (collector, others) = (nodes.node(), nodes.clone());
    let rememberer = collector.clone();
    storage.before(
        move |call| matches!(call, Call::Put(ObjectKey::Point(_))),
        move || {
            let (point, _) = write(session, &bytes).unwrap();
            assert_eq!(rememberer.points().unwrap().points, [point]);
            assert!(remove(&others.node(), id));
            assert!(collect(&others.node()).freed.packs > 0);
        },
    );
    fencer.fence_session(id, &cause()).unwrap();
    storage.assert_done();
    let kept = noise(2, 12);
    let point = back_up(&nodes.node(), &kept);
    let dead = back_up(&nodes.node(), &noise(3, 12));
    assert!(remove(&nodes.node(), dead.id));
    let report = collect(&collector);
    assert!(report.freed.packs > 0 && report.missing_chunks == 0, "{report:?}");
    nodes.assert_whole(&point, &kept);
}

/// H1: who holds a point too late, when its packs are gone and only its record is left, has not
/// asked yet, or was told so. That is no damage, and stops no collection.
#[test]
pub(crate) fn a_hold_that_comes_too_late_stops_no_collection() {
    let c = condemned();
    assert!(remove(&c.nodes.node(), c.point.id));
    let (collector, storage) = c.nodes.interrupted();
    let made = made();
    let (slot, late, point) = (made.clone(), c.nodes.node(), c.point.clone());
    storage.before(puts_end, move || {
        let mut session = late.begin(None).unwrap();
        let error = session.trust_base(&point, &NoProgress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        *slot.lock() = Some(session);
    });
    let report = collect(&collector);
    storage.assert_done();
    assert!(report.freed.packs > 0, "{report:?}");
    assert_eq!(report.missing_chunks, 0, "{report:?}");
    // Twice, for what the open session made wait.
    let bytes = noise(2, 12);
    let second = back_up(&collector, &bytes);
    assert!(remove(&collector, second.id));
    let report = collect(&collector);
    assert!(report.later.packs > 0 && report.missing_chunks == 0, "{report:?}");
    drop(made.lock().take());
    assert!(collect(&collector).freed.packs > 0);
    assert_eq!(c.nodes.storage.list(Folder::Points).unwrap(), []);
}

/// W1: a writer that registers while a plan is being written looks again, and heeds the plan.
#[test]
pub(crate) fn a_writer_that_registers_beside_a_plan_heeds_it() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let first = back_up(&nodes.node(), &bytes);
    assert!(remove(&nodes.node(), first.id));
    let (writer, storage) = nodes.interrupted();
    let (asleep, sleeps) = std::sync::mpsc::channel();
    let (wake, wakes) = std::sync::mpsc::channel::<()>();
    // It has seen no collection, and sleeps before its session is there.
    storage.before(
        |call| matches!(call, Call::Put(ObjectKey::Session(..))),
        move || {
            asleep.send(()).unwrap();
            wakes.recv().unwrap();
        },
    );
    let data = bytes.clone();
    let thread = std::thread::spawn(move || write(writer.begin(None).unwrap(), &data).unwrap().0);
    sleeps.recv().unwrap();
    let (collector, storage) = nodes.interrupted();
    let made = made();
    let slot = made.clone();
    // No older writer was there, and all roots were read: now it wakes, and commits.
    storage.before(puts_verdict, move || {
        wake.send(()).unwrap();
        *slot.lock() = Some(thread.join().unwrap());
    });
    collect(&collector);
    storage.assert_done();
    collect(&nodes.node());
    let point: RecoveryPoint = made.lock().take().unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// G2: what must stay is read when the older writers are over. One commits in between.
#[test]
pub(crate) fn roots_are_read_when_older_writers_are_over() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let first = back_up(&nodes.node(), &bytes);
    let session = nodes.node().begin(None).unwrap();
    assert!(remove(&nodes.node(), first.id));
    assert_eq!(collect(&nodes.node()).waiting_for.len(), 1);
    let (collector, storage) = nodes.interrupted();
    let made = made();
    let (slot, data) = (made.clone(), bytes.clone());
    storage.before(asks_for_verdict, || {});
    // The listing of sessions that asks who is waited for; that of the roots follows the pins.
    let mut after_pins = false;
    let asks_who = move |call: &Call| {
        let asks = lists_sessions(call) && !after_pins;
        after_pins = matches!(call, Call::List(Folder::Pins));
        asks
    };
    storage.before(asks_who, move || *slot.lock() = Some(write(session, &data).unwrap().0));
    collect(&collector);
    storage.assert_done();
    let point: RecoveryPoint = made.lock().take().unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// H1: a hold or a pin of a point that is removed and collected at that moment is none.
#[test]
pub(crate) fn what_is_gone_can_neither_be_held_nor_pinned() {
    for pin in [false, true] {
        let nodes = Nodes::new();
        let point = back_up(&nodes.node(), &noise(1, 12));
        let (node, storage) = nodes.interrupted();
        let (others, id) = (nodes.clone(), point.id);
        storage.before(
            |call| matches!(call, Call::Put(ObjectKey::Session(..) | ObjectKey::Pin(_))),
            move || {
                assert!(remove(&others.node(), id));
                assert!(collect(&others.node()).freed.packs > 0);
            },
        );
        let e = match pin {
            true => node.pin(id, &cause()).map(drop).unwrap_err(),
            false => node.hold(&[id], "a mount").map(drop).unwrap_err(),
        };
        storage.assert_done();
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
        assert!(nodes.storage.list(Folder::Sessions).unwrap().is_empty());
        assert!(nodes.storage.list(Folder::Pins).unwrap().is_empty());
    }
}

/// W1 and G3: a writer that registers when a collection has ended finds no pack any more that the
/// collection deletes.
#[test]
pub(crate) fn the_end_comes_after_the_deletes() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let first = back_up(&nodes.node(), &bytes);
    assert!(remove(&nodes.node(), first.id));
    let (collector, storage) = nodes.interrupted();
    let made = made();
    let (slot, others, data) = (made.clone(), nodes.clone(), bytes.clone());
    storage.before(puts_verdict, || {});
    storage.before(deletes_pack, move || *slot.lock() = Some(back_up(&others.node(), &data)));
    collect(&collector);
    storage.assert_done();
    let point: RecoveryPoint = made.lock().take().unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// W1: packs are listed after the registration. One that a collection deletes in between is not
/// found any more.
#[test]
pub(crate) fn packs_are_listed_after_the_registration() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let first = back_up(&nodes.node(), &bytes);
    assert!(remove(&nodes.node(), first.id));
    let (writer, storage) = nodes.interrupted();
    writer.refresh().unwrap();
    let others = nodes.clone();
    let registers = |call: &Call| matches!(call, Call::Put(ObjectKey::Session(..)));
    storage.before(registers, move || assert!(collect(&others.node()).freed.packs > 0));
    let point = back_up(&writer, &bytes);
    storage.assert_done();
    nodes.assert_whole(&point, &bytes);
}

/// W1: a base that was removed, and is about to be collected, is not used.
#[test]
pub(crate) fn a_removed_base_is_not_used() {
    let nodes = Nodes::new();
    let node = nodes.node();
    let bytes = noise(1, 12);
    let first = back_up(&node, &bytes);
    assert!(remove(&nodes.node(), first.id));
    let (collector, storage) = nodes.interrupted();
    let made = made();
    let (slot, data) = (made.clone(), bytes.clone());
    // Judged, and not deleted yet.
    storage.before(puts_verdict, move || {
        let session = node.begin(Some(&first)).unwrap();
        *slot.lock() = Some(write(session, &data).unwrap().0);
    });
    collect(&collector);
    storage.assert_done();
    let point: RecoveryPoint = made.lock().take().unwrap();
    nodes.assert_whole(&point, &bytes);
}

/// W2 with a removal that asked before the writer was there: nobody could refuse it.
#[test]
pub(crate) fn a_base_that_is_removed_under_a_writer_stays_until_the_end() {
    let c = condemned();
    let (remover, storage) = c.nodes.interrupted();
    let session = made();
    let (slot, node, base) = (session.clone(), c.node.clone(), c.point.clone());
    storage.before(puts_removal, move || {
        *slot.lock() = Some(node.begin(Some(&base)).unwrap());
    });
    assert!(remove(&remover, c.point.id));
    storage.assert_done();
    let collector = c.nodes.node();
    collect(&collector);
    let session = session.lock().take().unwrap();
    let (point, _) = write(session, &c.bytes).unwrap();
    collect(&collector);
    c.nodes.assert_whole(&point, &c.bytes);
}

/// G2: sessions are listed before points. The writer of the test before commits in between.
#[test]
pub(crate) fn a_commit_between_the_listings_is_seen() {
    let c = condemned();
    let (remover, storage) = c.nodes.interrupted();
    let session = made();
    let (slot, node, base) = (session.clone(), c.node.clone(), c.point.clone());
    storage.before(puts_removal, move || {
        *slot.lock() = Some(node.begin(Some(&base)).unwrap());
    });
    assert!(remove(&remover, c.point.id));
    let (collector, storage) = c.nodes.interrupted();
    let point = made();
    let (slot, bytes) = (point.clone(), c.bytes.clone());
    // The judgement's own listing of pins comes before that of sessions, in whatever order points
    // are listed.
    storage.before(asks_for_verdict, || {});
    storage.before(|call| matches!(call, Call::List(Folder::Pins)), || {});
    storage.before(lists_sessions, move || {
        let session = session.lock().take().unwrap();
        *slot.lock() = Some(write(session, &bytes).unwrap().0);
    });
    collect(&collector);
    storage.assert_done();
    let point = point.lock().take().unwrap();
    c.nodes.assert_whole(&point, &c.bytes);
}

/// G2: removals are listed before sessions. A reader comes when sessions were listed, and then a
/// removal that asked before it was there.
#[test]
pub(crate) fn a_reader_that_comes_after_the_listing_of_sessions_is_safe() {
    let nodes = Nodes::new();
    let node = nodes.node();
    let bytes = noise(1, 12);
    let point = back_up(&node, &bytes);
    let (collector, storage) = nodes.interrupted();
    let (reader, id, others) = (nodes.node(), point.id, nodes.clone());
    let hold = made();
    let slot = hold.clone();
    storage.before(|call| matches!(call, Call::List(Folder::Pins)), || {});
    storage.before(lists_sessions, || {});
    storage.before(any, move || {
        let (remover, storage) = others.interrupted();
        let (slot, reader) = (slot.clone(), reader.clone());
        storage.before(puts_removal, move || {
            *slot.lock() = Some(reader.hold(&[id], "a mount").unwrap());
        });
        assert!(remove(&remover, id));
        storage.assert_done();
    });
    collect(&collector);
    storage.assert_done();
    collect(&nodes.node());
    assert!(hold.lock().as_ref().unwrap().is_held());
    assert!(read(&nodes.node(), &point.disks[0]).unwrap() == bytes);
}

/// No clock is evidence: a hold of a reader that is two years old holds.
#[test]
pub(crate) fn a_hold_does_not_grow_old() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let point = back_up(&nodes.node(), &bytes);
    let (remover, storage) = nodes.interrupted();
    let hold = made();
    let (slot, reader, id) = (hold.clone(), nodes.node(), point.id);
    storage.before(puts_removal, move || {
        *slot.lock() = Some(reader.hold(&[id], "a mount").unwrap());
    });
    assert!(remove(&remover, id));
    nodes.pass(SignedDuration::from_hours(2 * 365 * 24));
    collect(&nodes.node());
    assert!(read(&nodes.node(), &point.disks[0]).unwrap() == bytes);
    drop(hold.lock().take());
    assert!(collect(&nodes.node()).freed.packs > 0, "and then it is over");
}

/// W3: whose registration is lost, by a storage that forgets or a hand that deletes, hears it at
/// the commit.
#[test]
pub(crate) fn a_writer_whose_registration_was_lost_may_not_commit() {
    let nodes = Nodes::new();
    let (node, collector) = (nodes.node(), nodes.node());
    let bytes = noise(1, 12);
    let first = back_up(&node, &bytes);
    let session = node.begin(None).unwrap();
    nodes.storage.delete(ObjectKey::Session(session.id(), 0)).unwrap();
    assert!(remove(&collector, first.id));
    assert!(collect(&collector).freed.packs > 0);
    let e = write(session, &bytes).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    assert!(nodes.node().points().unwrap().points.is_empty());
}

/// G3: of two judgements the first stands, also for a collector that wakes when the other died
/// with its verdict written and a third took it to the end.
#[test]
pub(crate) fn the_first_verdict_stands() {
    let c = condemned();
    let (second, storage) = c.nodes.interrupted();
    let (others, id) = (c.nodes.clone(), c.point.id);
    storage.before(asks_for_verdict, || {});
    storage.before(lists_sessions, || {});
    storage.before(any, move || {
        // The first judges that the pack is needed, and dies.
        let (first, storage) = others.interrupted();
        storage.before(puts_verdict, || {});
        storage.die_before(any);
        first.collect(&plain(), &NoProgress).unwrap_err();
        storage.assert_done();
        // By the time the second judges, it is not needed any more.
        assert!(remove(&others.node(), id));
    });
    let point = made();
    let (slot, others, bytes) = (point.clone(), c.nodes.clone(), c.bytes.clone());
    storage.before(puts_verdict, || {});
    let late: fn(&Call) -> bool = |call| deletes_pack(call) || puts_end(call);
    storage.before(late, move || {
        // A third ends the collection by the first verdict; who comes now may use the pack.
        let (third, storage) = others.interrupted();
        let (node, storing, bytes) = (others.node(), slot.clone(), bytes.clone());
        storage.before(puts_end, || {});
        storage.before(any, move || *storing.lock() = Some(back_up(&node, &bytes)));
        collect(&third);
        storage.assert_done();
    });
    let _ = second.collect(&plain(), &NoProgress);
    storage.assert_done();
    let point = point.lock().take().unwrap();
    c.nodes.assert_whole(&point, &c.bytes);
}

/// G2: a collector that slept over the end of its collection and of the next finds its verdict's
/// place free, and nobody heeds what it puts there: not itself, nor another that slept as long.
#[test]
pub(crate) fn a_verdict_that_comes_too_late_is_not_heeded() {
    let c = condemned();
    let (sleeper, storage) = c.nodes.interrupted();
    let (others, id, bytes) = (c.nodes.clone(), c.point.id, c.bytes.clone());
    let point = made();
    let slot = point.clone();
    storage.before(asks_for_verdict, || {});
    storage.before(lists_sessions, {
        let others = others.clone();
        move || {
            // Judged elsewhere when the pack was needed still: it is kept.
            let (first, storage) = others.interrupted();
            storage.die_before(puts_end);
            first.collect(&plain(), &NoProgress).unwrap_err();
            assert!(remove(&others.node(), id));
        }
    });
    storage.before(puts_verdict, move || {
        let node = others.node();
        // Generation 1 ends; the data is stored again, by reference; generation 2 comes and goes.
        let (third, storage) = others.interrupted();
        let (writer, slot, bytes) = (others.node(), slot.clone(), bytes.clone());
        storage.before(puts_end, || {});
        storage.before(any, move || *slot.lock() = Some(back_up(&writer, &bytes)));
        collect(&third);
        storage.assert_done();
        let waste = back_up(&node, &noise(7, 4));
        assert!(remove(&node, waste.id));
        assert!(collect(&node).freed.packs > 0);
        let old = others.storage.list(Folder::Gc).unwrap();
        assert!(!old.iter().any(|k| matches!(k, ObjectKey::GcVerdict(n) if n.0 == 1)), "{old:?}");
    });
    let e = sleeper.collect(&plain(), &NoProgress).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    storage.assert_done();
    let point = point.lock().take().unwrap();
    c.nodes.assert_whole(&point, &c.bytes);
}

/// G2: the index may be wrong; before a pack goes, its own footer is asked.
#[test]
pub(crate) fn a_wrong_index_deletes_nothing() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let point = back_up(&nodes.node(), &bytes);
    let node = nodes.node();
    node.refresh().unwrap();
    let size = |p: &&backstay_store::PackId| nodes.storage.size(ObjectKey::Pack(**p)).unwrap();
    let packs = nodes.packs();
    let data = packs.iter().max_by_key(size).unwrap();
    backstay_store::testkit::forget_chunks(&node, *data).unwrap();
    let report = node.collect(&plain(), &NoProgress).unwrap();
    assert_eq!(report.freed.packs, 0, "{report:?}");
    nodes.assert_whole(&point, &bytes);
}

/// A reader finds a chunk in a pack in quarantine alone; before it reads it there, the chunk is stored
/// again, and the pack deleted.
#[test]
pub(crate) fn what_leaves_quarantine_under_a_reader_is_read_elsewhere() {
    // At its first look into the pack, and at every later one.
    for calls in 0.. {
        let nodes = Nodes::new();
        let bytes = noise(1, 12);
        let point = back_up(&nodes.node(), &bytes);
        let size = |p: &backstay_store::PackId| nodes.storage.size(ObjectKey::Pack(*p)).unwrap();
        let pack = nodes.packs().into_iter().max_by_key(size).unwrap();
        backstay_store::testkit::layout::quarantine(&nodes.node(), pack, None).unwrap();
        let (reader, storage) = nodes.interrupted();
        for _ in 0..calls {
            storage.before(move |call| reads(call, pack), || {});
        }
        let others = nodes.clone();
        storage.before(
            move |call| reads(call, pack),
            move || {
                let node = others.node();
                back_up(&node, &noise(1, 12));
                assert!(collect(&node).freed.packs > 0);
            },
        );
        assert!(read(&reader, &point.disks[0]).unwrap() == bytes, "look {calls}");
        if storage.is_done() {
            assert!(!nodes.packs().contains(&pack));
        } else {
            assert!(calls > 2, "it looked {calls} times");
            break;
        }
    }
}

fn reads(call: &Call, pack: backstay_store::PackId) -> bool {
    matches!(call, Call::Read(ObjectKey::Pack(id)) if *id == pack)
}

/// H1: of a removed point that is held, a node may be gone; but the index alone does not say so, for
/// what hangs below it would go unmarked.
#[test]
pub(crate) fn a_wrong_index_takes_nothing_from_who_holds_a_removed_point() {
    let nodes = Nodes::new();
    let bytes = noise(1, 12);
    let point = back_up(&nodes.node(), &bytes);
    let reader = nodes.node();
    // A removal asks who holds the point; this holder comes right after that.
    let (remover, storage) = nodes.interrupted();
    let made = made();
    let (slot, holder, id) = (made.clone(), reader.clone(), point.id);
    storage.before(puts_removal, move || {
        *slot.lock() = Some(holder.hold(&[id], "a look").unwrap());
    });
    assert!(remove(&remover, id));
    storage.assert_done();
    let node = nodes.node();
    node.refresh().unwrap();
    let size = |p: &backstay_store::PackId| nodes.storage.size(ObjectKey::Pack(*p)).unwrap();
    let tree = nodes.packs().into_iter().min_by_key(size).unwrap();
    backstay_store::testkit::forget_chunks(&node, tree).unwrap();
    let report = node.collect(&plain(), &NoProgress).unwrap();
    assert_eq!(report.freed.packs, 0, "{report:?}");
    assert!(read(&reader, &point.disks[0]).unwrap() == bytes);
    drop(made.lock().take());
    assert!(collect(&nodes.node()).freed.packs > 0);
}

/// What hangs below a node that cannot be read is not known, so nothing is deleted.
#[test]
pub(crate) fn nothing_is_collected_while_a_tree_cannot_be_read() {
    let nodes = Nodes::new();
    let (kept, waste) = (noise(1, 12), noise(2, 12));
    let point = back_up(&nodes.node(), &kept);
    let small =
        nodes.packs().into_iter().min_by_key(|p| nodes.storage.size(ObjectKey::Pack(*p)).unwrap());
    let tree = ObjectKey::Pack(small.unwrap());
    let other = back_up(&nodes.node(), &waste);
    assert!(remove(&nodes.node(), other.id));
    nodes.storage.tamper(tree, |bytes| bytes[70] ^= 1);
    let before = nodes.packs();
    let e = nodes.node().collect(&plain(), &NoProgress).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    assert_eq!(nodes.packs(), before);
    nodes.storage.tamper(tree, |bytes| bytes[70] ^= 1);
    assert!(collect(&nodes.node()).freed.packs > 0);
    nodes.assert_whole(&point, &kept);
}

/// A fence that is removed by its id stays: without it the sleeper could commit.
#[test]
fn a_fence_cannot_be_removed() {
    let nodes = Nodes::new();
    let (node, collector) = (nodes.node(), nodes.node());
    let bytes = noise(1, 12);
    let first = back_up(&node, &bytes);
    let session = node.begin(None).unwrap();
    let id = session.id();
    collector.fence_session(id, &cause()).unwrap();
    let e = collector.remove_points(&[id], &cause()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    assert!(remove(&collector, first.id));
    collect(&collector);
    assert_eq!(write(session, &bytes).unwrap_err().kind(), ErrorKind::Fenced);
}

/// W2: a base that a writer trusts later is held by the writer's own session. Whoever gives that
/// session up for dead forbids the commit, and nobody can give up the hold alone.
#[test]
fn a_base_trusted_later_is_held_by_the_writer_itself() {
    let c = condemned();
    let mut session = c.node.begin(None).unwrap();
    session.trust_base(&c.point, &NoProgress).unwrap();
    let writer = session.image("disk0", "test", c.bytes.len() as u64);
    let mut scratch = WriteScratch::new().unwrap();
    let (first, rest) = c.bytes.split_at(CHUNK);
    writer.write_chunks(ChunkIndex(0), first, &mut scratch).unwrap();
    let collector = c.nodes.node();
    for other in collector.sessions().unwrap().iter().filter(|s| s.id != session.id()) {
        collector.fence_session(other.id, &cause()).unwrap();
    }
    remove(&collector, c.point.id);
    collect(&collector);
    writer.write_chunks(ChunkIndex(1), rest, &mut scratch).unwrap();
    let disk = writer.finish().unwrap();
    let point = session.commit(new_point("m", None), vec![disk]).unwrap();
    collect(&collector);
    c.nodes.assert_whole(&point, &c.bytes);
    assert!(c.nodes.storage.list(Folder::Sessions).unwrap().is_empty());
}

/// A sign of life whose answer was lost is neither in the way of the next nor left behind.
#[test]
fn a_lost_answer_to_a_sign_of_life_leaves_nothing() {
    use backstay_store::{FaultPlan, FaultStorage};
    let nodes = Nodes::new();
    let storage = Arc::new(FaultStorage::new(nodes.storage.clone(), FaultPlan::default()));
    let node = nodes.node_on(storage.clone());
    let bytes = noise(1, 12);
    let session = node.begin(None).unwrap();
    storage.set_plan(FaultPlan {
        fail_at: Some(0),
        kind: Some(ErrorKind::Io),
        after_the_fact: true,
        ..FaultPlan::default()
    });
    assert_eq!(session.beat().unwrap_err().kind(), ErrorKind::Io);
    drop(session);
    assert!(nodes.storage.list(Folder::Sessions).unwrap().is_empty());
    let session = node.begin(None).unwrap();
    storage.set_plan(FaultPlan {
        fail_at: Some(0),
        kind: Some(ErrorKind::Io),
        after_the_fact: true,
        ..FaultPlan::default()
    });
    session.beat().unwrap_err();
    session.beat().unwrap();
    write(session, &bytes).unwrap();
    assert!(nodes.storage.list(Folder::Sessions).unwrap().is_empty());
}
