//! Power cuts at every change of the file system while a point is removed and collected, thin packs
//! are repacked, and a writer works beside: whatever the cut leaves, acknowledged points are whole,
//! what was removed stays removed, and a collection goes on from there to the end.

use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{CollectOptions, Error, LocalStorage, NoProgress, PointId, Repository};

use crate::nodes::{TestEntropy, back_up, cause, noise, open_node, remove, write};
use crate::sim::nothing_left;
use crate::support::{CHUNK, init, read, seed};

const ROOT: &str = "/repo";

/// What was acknowledged before the lights went out.
#[derive(Default)]
struct Acknowledged {
    points: Vec<(PointId, Vec<u8>)>,
    removed: Vec<PointId>,
    freed: bool,
}

struct Stage {
    fs: SimFs,
    node: Repository,
    waste: PointId,
    before: Acknowledged,
}

fn options() -> CollectOptions {
    CollectOptions { waste_percent: 0, ..CollectOptions::default() }
}

fn open(fs: SimFs, seed: u64) -> Result<(Repository, Arc<LocalStorage>), Error> {
    let storage = Arc::new(LocalStorage::open(Path::new(ROOT), Arc::new(fs), "n")?);
    Ok((open_node(storage.clone(), TestEntropy::new(seed), "node")?, storage))
}

/// A repository with a point to remove and one that shares chunks with it, all durable.
fn stage(seed: u64) -> Stage {
    let fs = SimFs::new();
    let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").unwrap();
    init(&storage, &SeededEntropy::new(1)).unwrap();
    let node = open_node(Arc::new(storage), TestEntropy::new(seed), "node").unwrap();
    let waste = noise(1, 8);
    let kept = [&waste[..2 * CHUNK], &noise(2, 2)].concat();
    let first = back_up(&node, &waste);
    let second = back_up(&node, &kept);
    let before = Acknowledged { points: vec![(second.id, kept)], ..Acknowledged::default() };
    Stage { fs, node, waste: first.id, before }
}

/// Removes and collects beside a writer, as far as the power lasts.
fn work(stage: &mut Stage) -> Result<(), Error> {
    let Stage { node, before, waste, .. } = stage;
    let session = node.begin(None)?;
    node.remove_points(&[*waste], &cause())?;
    before.removed.push(*waste);
    // It waits for the writer, which refers to what is condemned.
    node.collect(&options(), &NoProgress)?;
    let bytes = [&noise(1, 8)[..CHUNK], &noise(3, 1)].concat();
    let (point, _) = write(session, &bytes)?;
    before.points.push((point.id, bytes));
    before.freed |= node.collect(&options(), &NoProgress)?.freed.packs > 0;
    let bytes = noise(4, 2);
    let (point, _) = write(node.begin(None)?, &bytes)?;
    before.points.push((point.id, bytes));
    before.freed |= node.collect(&options(), &NoProgress)?.freed.packs > 0;
    Ok(())
}

/// What is wrong after the power came back; nothing if all is well.
fn inspect(fs: SimFs, seed: u64, before: &Acknowledged) -> Result<(), String> {
    let (node, storage) = open(fs, seed).map_err(|e| format!("it does not open: {e}"))?;
    whole(&node, before)?;
    for session in node.sessions().map_err(|e| format!("sessions: {e}"))? {
        node.fence_session(session.id, &cause()).map_err(|e| format!("fence: {e}"))?;
    }
    for _ in 0..2 {
        node.collect(&options(), &NoProgress).map_err(|e| format!("collect: {e}"))?;
    }
    whole(&node, before)?;
    let all: Vec<PointId> =
        node.points().map_err(|e| e.to_string())?.points.iter().map(|p| p.id).collect();
    for id in all {
        remove(&node, id);
    }
    for _ in 0..2 {
        node.collect(&options(), &NoProgress).map_err(|e| format!("collect: {e}"))?;
    }
    nothing_left(&*storage)
}

fn whole(node: &Repository, before: &Acknowledged) -> Result<(), String> {
    let list = node.points().map_err(|e| format!("points cannot be listed: {e}"))?;
    if let Some((id, e)) = list.damaged.first() {
        return Err(format!("visible point {id} is damaged: {e}"));
    }
    for point in &list.points {
        read(node, &point.disks[0]).map_err(|e| format!("visible point {}: {e}", point.id))?;
        if before.removed.contains(&point.id) {
            return Err(format!("removed point {} shows", point.id));
        }
    }
    for (id, bytes) in &before.points {
        let point = node.point(*id).map_err(|e| format!("acknowledged point {id}: {e}"))?;
        let found = read(node, &point.disks[0]).map_err(|e| format!("point {id}: {e}"))?;
        if found != *bytes {
            return Err(format!("acknowledged point {id} reads back other bytes"));
        }
    }
    Ok(())
}

/// The changes before the work and after it.
fn changes() -> std::ops::Range<u64> {
    let mut stage = stage(0);
    let first = stage.fs.changes();
    work(&mut stage).unwrap();
    assert!(stage.before.freed && stage.before.points.len() == 3);
    first..stage.fs.changes()
}

/// Runs the work with a cut at `at` and looks at `states` ways in which it may have ended.
fn cut(at: u64, seed: u64, states: u64, lying: bool) -> Vec<String> {
    let mut stage = stage(seed ^ at);
    stage.fs.set_lying_sync(lying);
    stage.fs.cut_power_at(at);
    let _ = work(&mut stage);
    let each = |n: u64| {
        let chance = SeededEntropy::new(seed ^ at ^ (n << 32));
        inspect(stage.fs.after_power_cut(&chance), n, &stage.before)
            .err()
            .map(|e| format!("cut at change {at}, state {n}: {e}"))
    };
    (0..states).filter_map(each).collect()
}

#[test]
fn a_cut_at_every_change_of_a_collection_loses_nothing() {
    let seed = seed();
    let changes = changes();
    let states = if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 100 } else { 5 };
    let count = (changes.end - changes.start + 1) * states;
    let all = changes.start..=changes.end;
    let failures: Vec<String> = all.flat_map(|at| cut(at, seed, states, false)).collect();
    assert!(failures.is_empty(), "{} failures, first: {}", failures.len(), failures[0]);
    println!("{count} power-cut states of removals and collections");
}

/// The control: where syncs do nothing, the same test must find losses.
#[test]
fn the_test_of_collections_notices_a_storage_that_does_not_sync() {
    let failures: usize = changes().step_by(3).map(|at| cut(at, 7, 2, true).len()).sum();
    assert!(failures > 20, "only {failures} losses were noticed");
}
