//! Every call to the storage that any operation makes fails: once and for good, before and after
//! its effect. No fault is turned into success, nothing acknowledged is lost, the operation succeeds
//! when it is tried again, and nothing is left behind.

use std::sync::Arc;

use backstay_store::{
    CheckOptions, CollectOptions, Error, ErrorKind, FaultPlan, FaultStorage, NoProgress, PinId,
    PointId, RecoveryPoint, Repository, Secret, Unlock,
};

use crate::nodes::{Nodes, back_up, cause, noise, remove, write};
use crate::sim::nothing_left;
use crate::support::{CHUNK, read};

/// A repository in which there is something to do for everybody.
struct Stage {
    nodes: Nodes,
    kept: RecoveryPoint,
    kept_bytes: Vec<u8>,
    /// A point to remove, pin and hold.
    other: RecoveryPoint,
    other_bytes: Vec<u8>,
    pin: PinId,
    /// A session that is dead.
    dead: PointId,
}

/// What an operation that succeeded promised.
enum Promise {
    Nothing,
    Point(Box<RecoveryPoint>, Vec<u8>),
    Removed(PointId),
    Pinned(PointId),
    Freed,
}

type Run = fn(&Stage, &Repository) -> Result<Promise, Error>;

struct Operation {
    name: &'static str,
    run: Run,
    /// What a second try may answer when only the answer of the first was lost.
    done_already: &'static [ErrorKind],
}

const OPERATIONS: &[Operation] = &[
    Operation { name: "backup", run: backup, done_already: &[] },
    Operation { name: "backup on a base", run: backup_on_base, done_already: &[] },
    Operation { name: "sign of life", run: beat, done_already: &[] },
    Operation { name: "remove", run: remove_other, done_already: &[ErrorKind::NotFound] },
    Operation { name: "pin", run: pin, done_already: &[] },
    Operation { name: "unpin", run: unpin, done_already: &[ErrorKind::NotFound] },
    Operation { name: "hold and read", run: hold_and_read, done_already: &[] },
    Operation { name: "fence", run: fence, done_already: &[] },
    Operation { name: "collect", run: collect, done_already: &[] },
    Operation { name: "check", run: check, done_already: &[] },
    Operation { name: "add a key", run: add_key, done_already: &[] },
    Operation { name: "sessions, pins, points", run: lists, done_already: &[] },
];

fn stage() -> Stage {
    let nodes = Nodes::new();
    let node = nodes.node();
    let waste_bytes = noise(1, 12);
    let kept_bytes = [&waste_bytes[..3 * CHUNK], &noise(2, 3)].concat();
    let other_bytes = [&waste_bytes[..CHUNK], &noise(3, 3)].concat();
    let waste = back_up(&node, &waste_bytes);
    let kept = back_up(&node, &kept_bytes);
    let other = back_up(&node, &other_bytes);
    let pinned = back_up(&node, &noise(4, 2));
    let pin = node.pin(pinned.id, &cause()).unwrap().id;
    assert!(remove(&node, waste.id));
    let dead = nodes.node().begin(None).unwrap();
    let id = dead.id();
    // It dies: nothing of it runs any more, and its record stays.
    let key = backstay_store::ObjectKey::Session(id, 0);
    let record = backstay_store::Storage::get(&*nodes.storage, key, 1 << 16).unwrap();
    drop(dead);
    backstay_store::Storage::put(&*nodes.storage, key, &[&record]).unwrap();
    Stage { nodes, kept, kept_bytes, other, other_bytes, pin, dead: id }
}

fn backup(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    let bytes = noise(9, 8);
    let (point, _) = write(node.begin(None)?, &bytes)?;
    Ok(Promise::Point(Box::new(point), bytes))
}

fn backup_on_base(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    let bytes = [&stage.kept_bytes[..4 * CHUNK], &noise(9, 3)].concat();
    let mut session = node.begin(None)?;
    session.trust_base(&stage.kept, &NoProgress)?;
    let (point, _) = write(session, &bytes)?;
    Ok(Promise::Point(Box::new(point), bytes))
}

fn beat(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    let session = node.begin(None)?;
    session.beat()?;
    session.beat()?;
    Ok(Promise::Nothing)
}

fn remove_other(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    let id = stage.other.id;
    let report = node.remove_points(&[id], &cause())?;
    assert_eq!(report.removed, [id]);
    Ok(Promise::Removed(id))
}

fn pin(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    node.pin(stage.other.id, &cause()).map(|_| Promise::Pinned(stage.other.id))
}

fn unpin(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    node.unpin(stage.pin).map(|()| Promise::Nothing)
}

fn hold_and_read(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    let hold = node.hold(&[stage.other.id], "a mount")?;
    let bytes = read(node, &stage.other.disks[0])?;
    assert!(bytes == stage.other_bytes);
    if hold.is_held() {
        let sessions = stage.nodes.node().sessions().unwrap();
        assert!(sessions.iter().any(|s| s.holds == [stage.other.id]), "a hold nobody sees");
    }
    Ok(Promise::Nothing)
}

fn fence(stage: &Stage, node: &Repository) -> Result<Promise, Error> {
    assert!(!node.fence_session(stage.dead, &cause())?);
    Ok(Promise::Nothing)
}

fn collect(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    let options = CollectOptions {
        waste_percent: 0,
        stale_after: jiff::SignedDuration::ZERO,
        ..CollectOptions::default()
    };
    // The first fences the dead writer or notes its last sign of life; the second goes on.
    node.collect(&options, &NoProgress)?;
    node.collect(&options, &NoProgress)?;
    Ok(Promise::Freed)
}

fn check(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    // What cannot be read is told as damage, or ends the check.
    node.check(&CheckOptions { read_data: true }, &NoProgress).map(|_| Promise::Nothing)
}

fn add_key(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    let new = Unlock::KeyFile(Secret::new(b"another key file, of 32 bytes or more".to_vec()));
    let time = "2026-11-22T03:00:00Z".parse().unwrap();
    let slot = node.add_key(&new, "second", time)?;
    node.remove_key(&slot.id.to_string())?;
    Ok(Promise::Nothing)
}

fn lists(_: &Stage, node: &Repository) -> Result<Promise, Error> {
    node.sessions()?;
    node.pins()?;
    let list = node.points()?;
    // A record that could not be read now is told as such, and hides no other.
    assert_eq!(list.points.len() + list.damaged.len(), 3);
    Ok(Promise::Nothing)
}

/// What an operation promised is so.
fn hold_to(promise: &Promise, stage: &Stage) {
    let node = stage.nodes.node();
    match promise {
        Promise::Nothing => {}
        Promise::Point(point, bytes) => stage.nodes.assert_whole(point, bytes),
        Promise::Removed(id) => {
            assert!(node.points().unwrap().points.iter().all(|p| p.id != *id));
        }
        Promise::Pinned(id) => assert!(node.pins().unwrap().iter().any(|p| p.point == *id)),
        Promise::Freed => {
            let options = CollectOptions { dry_run: true, ..CollectOptions::default() };
            assert_eq!(node.collect(&options, &NoProgress).unwrap().dead.packs, 0);
        }
    }
}

fn one(operation: &Operation, plan: FaultPlan) {
    let what = format!("{}: {plan:?}", operation.name);
    let (kind, lost_answer) = (plan.kind.unwrap(), plan.after_the_fact);
    let stage = stage();
    let storage = Arc::new(FaultStorage::new(stage.nodes.storage.clone(), FaultPlan::default()));
    let node = stage.nodes.node_on(storage.clone());
    storage.set_plan(plan);
    let outcome = (operation.run)(&stage, &node);
    storage.set_plan(FaultPlan::default());
    match &outcome {
        Ok(promise) => hold_to(promise, &stage),
        Err(e) => assert_eq!(e.kind(), kind, "{what}: {e}"),
    }
    drop(node);
    stage.nodes.assert_whole(&stage.kept, &stage.kept_bytes);
    // Again, by somebody else, without faults.
    match (operation.run)(&stage, &stage.nodes.node()) {
        Ok(promise) => hold_to(&promise, &stage),
        Err(e) => {
            let done = outcome.is_ok() || lost_answer;
            assert!(done && operation.done_already.contains(&e.kind()), "{what}, again: {e}");
        }
    }
    stage.nodes.assert_whole(&stage.kept, &stage.kept_bytes);
    clean_up(&stage, &what);
}

/// When the dead are given up and all is removed, nothing is left.
fn clean_up(stage: &Stage, what: &str) {
    let node = stage.nodes.node();
    for session in node.sessions().unwrap() {
        node.fence_session(session.id, &cause()).unwrap();
    }
    for pin in node.pins().unwrap() {
        node.unpin(pin.id).unwrap();
    }
    let all: Vec<PointId> = node.points().unwrap().points.iter().map(|p| p.id).collect();
    node.remove_points(&all, &cause()).unwrap();
    for _ in 0..2 {
        node.collect(&CollectOptions::default(), &NoProgress).unwrap();
    }
    nothing_left(&*stage.nodes.storage).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// Calls that the operation makes when nothing fails.
fn calls(operation: &Operation) -> u64 {
    let stage = stage();
    let storage = Arc::new(FaultStorage::new(stage.nodes.storage.clone(), FaultPlan::default()));
    let node = stage.nodes.node_on(storage.clone());
    storage.set_plan(FaultPlan::default());
    let promise = (operation.run)(&stage, &node).unwrap();
    let calls = storage.calls();
    drop(node);
    hold_to(&promise, &stage);
    clean_up(&stage, operation.name);
    calls
}

#[test]
fn every_call_of_every_operation_fails_in_turn() {
    let mut cases = 0;
    for operation in OPERATIONS {
        let calls = calls(operation);
        for at in 0..calls {
            for (sticky, after_the_fact, kind) in [
                (false, false, ErrorKind::NoSpace),
                (true, false, ErrorKind::Io),
                (false, true, ErrorKind::Io),
                (true, false, ErrorKind::NoSpace),
            ] {
                let plan = FaultPlan {
                    fail_at: Some(at),
                    sticky,
                    kind: Some(kind),
                    after_the_fact,
                    ..FaultPlan::default()
                };
                one(operation, plan);
                cases += 1;
            }
        }
        println!("{}: {calls} calls", operation.name);
    }
    println!("{cases} faults");
}
